"""Choices that share a beta: against brute force, and what must not matter."""

import math

import mpmath as mp
import pyro.distributions as dist
import pytest
import torch

from pluralpref.errors import ConfigError, DataError, UnsupportedError
from pluralpref.inference.marginal import MonteCarlo, Quadrature, log_marginal, log_marginal_panel


def tensor(x):
    return torch.tensor(x, dtype=torch.float64)


def lognormal(loc=-2.0, scale=0.8):
    return dist.LogNormal(tensor(loc), tensor(scale))


def gamma(shape=2.0, rate=20.0):
    return dist.Gamma(tensor(shape), tensor(rate))


LAWS = [
    lognormal(),
    lognormal(1.0, 0.05),
    lognormal(-1.0, 3.0),
    gamma(),
    gamma(0.07, 3.0),
    gamma(300.0, 900.0),
    dist.Exponential(tensor(4.0)),
]
IDS = ["lognormal", "narrow", "wide", "gamma", "small shape", "large shape", "exponential"]


def brute_force(law, margins, weight=None, preferred=None, low=-400.0, high=14.0, count=2_000_001):
    """The trapezoidal rule on two million nodes of u = log beta."""
    u = torch.linspace(low, high, count, dtype=torch.float64)
    beta = torch.exp(u)
    total = law.log_prob(beta) + u
    for j, h in enumerate(margins):
        p = 1.0 if preferred is None else preferred[j].item()
        w = 1.0 if weight is None else weight[j].item()
        for q, sign in ((p, 1), (1 - p, -1)):
            if q:
                total = total + w * q * torch.nn.functional.logsigmoid(sign * beta * h)
    return torch.logsumexp(total, 0) + math.log((high - low) / (count - 1))


def problem(seed, pairs=60, panels=7, spread=10.0):
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(pairs, dtype=torch.float64, generator=generator) * spread
    panel = torch.randint(0, panels, (pairs,), generator=generator)
    weight = torch.rand(pairs, dtype=torch.float64, generator=generator) * 2
    preferred = torch.rand(pairs, dtype=torch.float64, generator=generator).clamp(0.1, 0.9).round(decimals=1)
    return h, panel, weight, preferred


@pytest.mark.parametrize("law", LAWS, ids=IDS)
def test_one_choice_is_the_single_pair(law):
    h = torch.cat([torch.randn(20, dtype=torch.float64) * 30, tensor([0.0, 1e-8, -1e-8, 1e8, -1e4])]).requires_grad_()
    panel = torch.randperm(25)
    value = log_marginal_panel(law, h, panel, 25)[panel]
    single = log_marginal(law, h)
    # A panel integrates the winning side as well, so that its accuracy is that of P, not of 1 - P.
    torch.testing.assert_close(value, single, rtol=1e-12, atol=3e-14)
    (a,) = torch.autograd.grad(value.sum(), h)
    (b,) = torch.autograd.grad(single.sum(), h)
    torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("law", LAWS, ids=IDS)
def test_two_and_three_choices_against_mpmath(law):
    for margins in ([3.0, -1.0], [0.5, 40.0, -2.0], [25.0, 8.0, 3.0]):
        value = log_marginal_panel(law, tensor(margins), torch.zeros(len(margins), dtype=torch.int64), 1).item()
        with mp.workdps(30):
            if isinstance(law, torch.distributions.LogNormal):
                loc, scale = mp.mpf(law.loc.item()), mp.mpf(law.scale.item())

                def density(u, loc=loc, scale=scale):
                    return mp.exp(-(((u - loc) / scale) ** 2) / 2) / (scale * mp.sqrt(2 * mp.pi))

                left, right = loc - 14 * scale, loc + 14 * scale
            else:
                a = mp.mpf(getattr(law, "concentration", tensor(1.0)).item())
                b = mp.mpf(law.rate.item())

                def density(u, a=a, b=b):
                    return mp.exp(a * (u + mp.log(b)) - b * mp.exp(u) - mp.loggamma(a))

                centre = mp.log(a / b)
                left, right = centre - 75 / a - 12 / mp.sqrt(a), centre + 5 / mp.sqrt(a) + 4

            def integrand(u, density=density, margins=margins):
                product = density(u)
                for h in margins:
                    product /= 1 + mp.exp(-mp.exp(u) * h)
                return product

            count = max(2400, int((right - left) / mp.mpf("0.2")))
            step = (right - left) / count
            expected = mp.log(mp.fsum(integrand(left + step * k) for k in range(count + 1)) * step)
        assert value == pytest.approx(float(expected), rel=1e-11)


@pytest.mark.parametrize("law", [lognormal(), lognormal(-1.0, 3.0), gamma(), gamma(0.3, 3.0)])
def test_weights_and_soft_labels_against_brute_force(law):
    h, panel, weight, preferred = problem(0)
    value = log_marginal_panel(law, h, panel, 7, weight, preferred)
    for a in (0, 3):
        rows = panel == a
        expected = brute_force(law, h[rows], weight[rows], preferred[rows])
        assert value[a].item() == pytest.approx(expected.item(), rel=1e-10)


@pytest.mark.parametrize("law", [lognormal(), lognormal(-1.0, 2.0), gamma(), gamma(0.3, 3.0), gamma(50.0, 300.0)])
@pytest.mark.parametrize("pattern", ["winning", "losing", "mixed", "far"])
@pytest.mark.parametrize("choices", [30, 2000])
def test_many_choices_against_brute_force(law, pattern, choices):
    """Posteriors far narrower than the law, and far from its middle: the search for the range must not lose them."""
    generator = torch.Generator().manual_seed(choices)
    h = torch.rand(choices, dtype=torch.float64, generator=generator) * 5
    if pattern == "losing":
        h = -h
    elif pattern == "mixed":
        true_beta = 0.3
        h = torch.where(
            torch.rand(choices, dtype=torch.float64, generator=generator) < torch.sigmoid(true_beta * h), h, -h
        )
    elif pattern == "far":
        h = h * 1e-4
        h[::7] *= -1
    value = log_marginal_panel(law, h, torch.zeros(choices, dtype=torch.int64), 1).item()
    u = torch.linspace(-60.0, 14.0, 20001, dtype=torch.float64)
    total = law.log_prob(u.exp()) + u
    for block in h.split(100):
        total = total + torch.nn.functional.logsigmoid(u.exp().unsqueeze(-1) * block).sum(-1)
    step = 74.0 / 20000
    if hasattr(law, "concentration"):
        # Left of the first node the integrand is geometric.
        total[0] -= torch.log(-torch.expm1(-law.concentration * step))
    expected = (torch.logsumexp(total, 0) + math.log(step)).item()
    assert value == pytest.approx(expected, rel=1e-11, abs=1e-11)


@pytest.mark.parametrize("law", [lognormal(), gamma(), gamma(0.1, 3.0)])
def test_more_nodes_change_nothing(law):
    for seed, spread in ((1, 0.1), (2, 3.0), (3, 300.0)):
        h, panel, weight, preferred = problem(seed, pairs=300, panels=11, spread=spread)
        value = log_marginal_panel(law, h, panel, 11, weight, preferred)
        finest = log_marginal_panel(law, h, panel, 11, weight, preferred, Quadrature(1e-12))
        coarse = log_marginal_panel(law, h, panel, 11, weight, preferred, Quadrature(1e-6))
        torch.testing.assert_close(value, finest, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(value, coarse, rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", ["lognormal", "gamma"])
def test_gradients_against_differences(family):
    h, panel, weight, preferred = problem(4, pairs=40, panels=5)

    def f(x, h):
        law = (
            dist.LogNormal(x[0], torch.exp(x[1]))
            if family == "lognormal"
            else dist.Gamma(torch.exp(x[0]), torch.exp(x[1]))
        )
        return log_marginal_panel(law, h, panel, 5, weight, preferred)

    x = tensor([-1.0, 0.3]).requires_grad_()
    h.requires_grad_()
    direction = torch.linspace(1.0, 2.0, 5, dtype=torch.float64)
    grads = torch.autograd.grad(f(x, h) @ direction, (x, h))
    for variable, grad in zip((x, h), grads, strict=True):
        for i in range(0, len(variable), 7) if variable is h else range(2):
            step = 1e-3
            values = []
            for k in (-2, -1, 1, 2):
                moved = variable.detach().clone()
                moved[i] += k * step
                args = (moved, h) if variable is x else (x, moved)
                values.append((f(*args) @ direction).item())
            slope = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * step)
            assert grad[i].item() == pytest.approx(slope, rel=1e-8, abs=1e-9)


@pytest.mark.parametrize("family", ["lognormal", "gamma"])
def test_second_derivatives(family, derivatives_of_jacobian):
    h, panel, weight, preferred = problem(5, pairs=20, panels=3)

    def f(x):
        scale = torch.exp(x[1])
        law = (
            dist.LogNormal(x[0] - scale**2 / 2, scale)
            if family == "lognormal"
            else dist.Gamma(scale, scale / torch.exp(x[0]))
        )
        return log_marginal_panel(law, h * x[2], panel, 3, weight, preferred).sum()

    x = tensor([-1.0, -0.2, 1.0])
    hessian = torch.autograd.functional.hessian(f, x)
    differences = derivatives_of_jacobian(f, x, step=1e-3)
    torch.testing.assert_close(hessian, differences, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("law", [lognormal(), gamma(), dist.Delta(tensor(0.1))])
def test_order_of_rows_and_names_of_panels_do_not_matter(law):
    h, panel, weight, preferred = problem(6)
    value = log_marginal_panel(law, h, panel, 7, weight, preferred)
    order = torch.randperm(len(h))
    shuffled = log_marginal_panel(law, h[order], panel[order], 7, weight[order], preferred[order])
    torch.testing.assert_close(shuffled, value, rtol=1e-13, atol=0)
    names = torch.randperm(7)
    renamed = log_marginal_panel(law, h, names[panel], 7, weight, preferred)
    torch.testing.assert_close(renamed[names], value, rtol=1e-13, atol=0)


@pytest.mark.parametrize("law", [lognormal(), gamma(), dist.Delta(tensor(0.1))])
def test_weights_are_repeated_rows_and_labels_turn_the_sign(law):
    h, panel, _, _ = problem(7)
    weight = torch.arange(60) % 4
    value = log_marginal_panel(law, h, panel, 7, weight)
    repeated = log_marginal_panel(law, h.repeat_interleave(weight), panel.repeat_interleave(weight), 7)
    torch.testing.assert_close(value, repeated, rtol=1e-13, atol=0)
    hard = (torch.arange(60) % 3 == 0).double()
    turned = log_marginal_panel(law, torch.where(hard == 1, h, -h), panel, 7)
    torch.testing.assert_close(log_marginal_panel(law, h, panel, 7, None, hard), turned, rtol=1e-13, atol=0)
    # A row with p = 0.5 and weight 2 is a row of each sign.
    both = log_marginal_panel(law, torch.cat([h, -h]), torch.cat([panel, panel]), 7)
    half = log_marginal_panel(law, h, panel, 7, torch.full((60,), 2.0), torch.full((60,), 0.5))
    torch.testing.assert_close(half, both, rtol=1e-13, atol=0)


def test_the_product_is_inside_the_expectation():
    law, h = lognormal(0.0, 1.5), tensor([1.0, 1.0, 1.0])
    together = log_marginal_panel(law, h, torch.zeros(3, dtype=torch.int64), 1)
    apart = log_marginal(law, h).sum()
    assert together.item() > apart.item() + 0.05
    # Choices that agree are positively correlated; no heterogeneity, no difference.
    narrow = lognormal(0.0, 1e-7)
    same = log_marginal_panel(narrow, h, torch.zeros(3, dtype=torch.int64), 1)
    torch.testing.assert_close(same.squeeze(), log_marginal(narrow, h).sum(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("law", [lognormal(), gamma(), dist.Delta(tensor(0.1)), dist.HalfNormal(tensor(1.0))])
def test_panels_without_choices(law):
    value = log_marginal_panel(law, tensor([1.0, 2.0]), torch.tensor([1, 1]), 4)
    torch.testing.assert_close(value[[0, 2, 3]], torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-14)
    assert value[1] < -0.1
    assert log_marginal_panel(law, torch.zeros(0), torch.zeros(0, dtype=torch.int64), 0).shape == (0,)
    empty = log_marginal_panel(law, torch.zeros(0), torch.zeros(0, dtype=torch.int64), 3)
    torch.testing.assert_close(empty.double(), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", ["lognormal", "gamma", "delta"])
def test_draws_of_the_parameters(family):
    h, panel, weight, preferred = problem(8)
    x = torch.linspace(0.4, 1.5, 5, dtype=torch.float64).unsqueeze(-1)
    make = {
        "lognormal": lambda x: dist.LogNormal(-x, x),
        "gamma": lambda x: dist.Gamma(x, 3 * x),
        "delta": lambda x: dist.Delta(x),
    }[family]
    value = log_marginal_panel(make(x), h, panel, 7, weight, preferred)
    assert value.shape == (5, 7)
    for s in range(5):
        alone = log_marginal_panel(make(x[s, 0]), h, panel, 7, weight, preferred)
        torch.testing.assert_close(value[s], alone, rtol=1e-12, atol=1e-13)
    own = log_marginal_panel(make(x.expand(5, 7)), h, panel, 7, weight, preferred)
    torch.testing.assert_close(own, value, rtol=1e-12, atol=1e-13)
    each = torch.linspace(0.4, 1.5, 7, dtype=torch.float64)
    mixed = log_marginal_panel(make(each), h, panel, 7, weight, preferred)
    alone = log_marginal_panel(make(each[2]), h, panel, 7, weight, preferred)
    torch.testing.assert_close(mixed[2], alone[2], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("law", [lognormal(), gamma()])
@pytest.mark.parametrize("max_elements", [1, 500, 5000])
def test_a_memory_bound_changes_nothing(law, max_elements):
    h, panel, weight, preferred = problem(9)
    h.requires_grad_()
    value = log_marginal_panel(law, h, panel, 7, weight, preferred)
    bounded = log_marginal_panel(law, h, panel, 7, weight, preferred, max_elements=max_elements)
    torch.testing.assert_close(bounded, value, rtol=1e-13, atol=1e-13)
    (a,) = torch.autograd.grad(value.sum(), h)
    (b,) = torch.autograd.grad(bounded.sum(), h)
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    draws = dist.LogNormal(torch.linspace(-2, 0, 6, dtype=torch.float64).unsqueeze(-1), tensor(0.8))
    torch.testing.assert_close(
        log_marginal_panel(draws, h, panel, 7, max_elements=max_elements),
        log_marginal_panel(draws, h, panel, 7),
        rtol=1e-13,
        atol=1e-13,
    )


def test_monte_carlo_shares_a_draw_within_and_not_between_panels():
    torch.manual_seed(0)
    h, panel, weight, preferred = problem(10, spread=1.0)
    law = lognormal(-1.0, 0.6)
    exact = log_marginal_panel(law, h, panel, 7, weight, preferred)
    estimate = log_marginal_panel(law, h, panel, 7, weight, preferred, MonteCarlo(200_000))
    torch.testing.assert_close(estimate, exact, rtol=0, atol=0.02)
    wide = lognormal(0.0, 1.5)
    same = log_marginal_panel(
        wide, torch.ones(20_000, dtype=torch.float64), torch.arange(20_000) // 2, 10_000, method=MonteCarlo(1)
    ).reshape(2, -1)
    assert abs(torch.corrcoef(same)[0, 1]) < 0.05
    # Two equal choices with one draw: the square of one probability, which one draw each would not give.
    expected = log_marginal_panel(wide, tensor([1.0, 1.0]), torch.tensor([0, 0]), 1).exp()
    mean, std = same.exp().mean(), same.exp().std()
    assert abs(mean - expected.squeeze()) < 4 * std / 100
    squared = (2 * log_marginal(wide, tensor(1.0))).exp()
    assert abs(mean - squared) > 6 * std / 100


def test_a_law_that_can_only_be_drawn_goes_by_monte_carlo(opaque):
    h, panel, _, _ = problem(11)
    scale = tensor(0.5).requires_grad_()
    torch.manual_seed(0)
    value = log_marginal_panel(opaque(scale), h, panel, 7)
    assert value.shape == (7,)
    (slope,) = torch.autograd.grad(value.sum(), scale)
    assert slope != 0
    torch.manual_seed(0)
    bounded = log_marginal_panel(opaque(scale), h, panel, 7, max_elements=100)
    torch.testing.assert_close(bounded, value, rtol=1e-12, atol=0)


def test_float32():
    h, panel, _, _ = problem(12)
    law = dist.LogNormal(torch.tensor(-2.0), torch.tensor(0.8))
    value = log_marginal_panel(law, h.float(), panel, 7)
    assert value.dtype == torch.float32
    double = dist.LogNormal(law.loc.double(), law.scale.double())
    torch.testing.assert_close(
        value.double(), log_marginal_panel(double, h.float().double(), panel, 7), rtol=1e-6, atol=0
    )


def test_errors_name_the_row():
    h, panel = tensor([1.0, 2.0, 3.0]), torch.tensor([0, 1, 1])
    law = gamma()
    with pytest.raises(DataError, match=r"1 panel codes are outside 0\.\.1, the first \(2\) at index 2"):
        log_marginal_panel(law, h, torch.tensor([0, 1, 2]), 2)
    with pytest.raises(DataError, match="integers"):
        log_marginal_panel(law, h, panel.double(), 2)
    with pytest.raises(DataError, match="3 margins"):
        log_marginal_panel(law, h, panel[:2], 2)
    with pytest.raises(DataError, match=r"weight .*index 1"):
        log_marginal_panel(law, h, panel, 2, tensor([1.0, -1.0, 1.0]))
    with pytest.raises(DataError, match=r"preferred .*index 2"):
        log_marginal_panel(law, h, panel, 2, None, tensor([1.0, 0.0, 1.5]))
    with pytest.raises(DataError, match="Margin 1 is infinite"):
        log_marginal_panel(law, tensor([1.0, math.inf, 0.0]), panel, 2)
    with pytest.raises(DataError, match="1 of 3 margins are NaN"):
        log_marginal_panel(law, tensor([1.0, math.nan, 0.0]), panel, 2)
    with pytest.raises(ConfigError, match="batch shape"):
        log_marginal_panel(dist.Gamma(torch.ones(3), 1.0), h, panel, 2)
    with pytest.raises(UnsupportedError, match=r"panels.*register_panel_marginal\(Gamma, ClosedForm\)"):
        log_marginal_panel(law, h, panel, 2, method="closed_form")


@pytest.mark.parametrize(
    ("build", "method"),
    [
        (lambda a, b: dist.LogNormal(a, b), "auto"),
        (lambda a, b: dist.Weibull(a.exp(), 1 + b), Quadrature(1e-8)),
        (lambda a, b: dist.LogNormal(a, b), MonteCarlo(8, seed=1)),
    ],
    ids=["engine", "general rule", "Monte Carlo"],
)
def test_derivatives_do_not_depend_on_the_memory_bound(build, method):
    torch.manual_seed(5)
    h, panel = torch.randn(60, dtype=torch.float64) * 2, torch.randint(0, 9, (60,))
    weight, preferred = torch.rand(60, dtype=torch.float64), torch.rand(60, dtype=torch.float64)
    x = torch.tensor([0.2, 0.7], dtype=torch.float64)
    results = []
    for max_elements in (2**24, 300, 60):

        def total(x, max_elements=max_elements):
            law = build(x[0], x[1])
            values = log_marginal_panel(
                law, h * x[0].exp(), panel, 9, weight, preferred, method, max_elements=max_elements
            )
            return (values * torch.arange(1, 10)).sum()

        results.append(
            (total(x), torch.autograd.functional.jacobian(total, x), torch.autograd.functional.hessian(total, x))
        )
    for other in results[1:]:
        for found, expected in zip(other, results[0], strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11)
    assert results[0][2].abs().min() > 1e-3
