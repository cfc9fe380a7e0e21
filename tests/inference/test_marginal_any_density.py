"""The general rule: any law with a density, against formulas, high precision and itself."""

import math

import mpmath
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import logsigmoid

from pluralpref.errors import NumericsWarning, UnsupportedError
from pluralpref.inference.marginal import (
    Quadrature,
    any_density,
    available_methods,
    log_marginal,
    log_marginal_panel,
    log_marginal_with_error,
)
from pluralpref.inference.marginal.any_density import density_with_error, has_density


def t(*values):
    return torch.tensor(values[0] if len(values) == 1 else values, dtype=torch.float64)


MARGINS = torch.cat([-torch.logspace(-6, 4, 21, dtype=torch.float64), torch.logspace(-6, 2, 17, dtype=torch.float64)])

#: Laws, and the same in mpmath: density and the points at which to split the integral.
OTHERS = {
    "weibull": (
        lambda: dist.Weibull(t(0.8), t(1.7)),
        lambda b: 1.7 / 0.8 * (b / 0.8) ** 0.7 * mpmath.exp(-((b / 0.8) ** 1.7)),
        [0, 1e-3, 0.1, 1, 3, 10],
    ),
    "half_normal": (
        lambda: dist.HalfNormal(t(1.5)),
        lambda b: mpmath.sqrt(2 / mpmath.pi) / 1.5 * mpmath.exp(-(b**2) / (2 * mpmath.mpf(1.5) ** 2)),
        [0, 1e-3, 0.1, 1, 3, 20],
    ),
    "inverse_gamma": (
        lambda: dist.InverseGamma(t(2.0), t(0.6)),
        lambda b: mpmath.mpf(0.6) ** 2 * b**-3 * mpmath.exp(-mpmath.mpf(0.6) / b),
        [0, 1e-3, 0.05, 0.2, 1, 10, 1e3, mpmath.inf],
    ),
    "uniform": (lambda: dist.Uniform(t(0.25), t(2.0)), lambda b: 1 / mpmath.mpf(1.75), [0.25, 0.5, 1, 2]),
    "normal": (
        lambda: dist.Normal(t(0.3), t(0.7)),
        lambda b: mpmath.npdf(b, mpmath.mpf(0.3), mpmath.mpf(0.7)),
        [-9, -3, -1, -0.1, 0, 0.1, 1, 3, 9],
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_against_high_precision(name):
    law, density, points = OTHERS[name]
    h = t(-40.0, -3.0, -0.2, 0.0, 1e-3, 1.0, 12.0)
    found = log_marginal(law(), h)
    with mpmath.workdps(30):
        for value, margin in zip(found.tolist(), h.tolist(), strict=True):
            expected = mpmath.log(mpmath.quad(lambda b, m=margin: density(b) / (1 + mpmath.exp(-b * m)), points))
            assert value == pytest.approx(float(expected), rel=1e-9), margin


@pytest.mark.parametrize("cv", [0.01, 0.3, 1.0, 3.0])
@pytest.mark.parametrize("family", ["lognormal", "gamma"])
def test_agrees_with_the_engines_of_known_families(family, cv):
    mean, spread = t(0.7).requires_grad_(), t(cv).requires_grad_()

    def law():
        if family == "gamma":
            return dist.Gamma(spread**-2, spread**-2 / mean)
        variance = torch.log1p(spread**2)
        return dist.LogNormal(torch.log(mean) - variance / 2, variance.sqrt())

    h = MARGINS.clone().requires_grad_()
    expected = log_marginal(law(), h)
    found, error = density_with_error(law(), h, Quadrature())
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-10)
    assert ((found - expected).abs() <= error + 1e-13).double().mean() > 0.98
    gradients = [torch.autograd.grad(value.sum(), (mean, spread, h)) for value in (found, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-7, atol=1e-7 * float(theirs.abs().max()))


@settings(max_examples=25, deadline=None)
@given(
    concentration=st.floats(0.4, 8.0),
    scale=st.floats(1e-3, 1e3),
    margin=st.floats(-30.0, 30.0),
    factor=st.floats(0.01, 100.0),
)
def test_identities(concentration, scale, margin, factor):
    law = dist.Weibull(t(scale), t(concentration))
    h = t(margin, -margin, 0.0) / scale
    value = log_marginal(law, h)
    assert float(value[:2].exp().sum()) == pytest.approx(1.0, abs=1e-10)
    assert float(value[2]) == pytest.approx(math.log(0.5), abs=1e-10)
    assert bool(value[0] >= value[1]) == (margin >= 0) or abs(float(value[0] - value[1])) < 1e-9
    scaled = log_marginal(dist.Weibull(t(scale * factor), t(concentration)), h / factor)
    assert torch.allclose(scaled, value, rtol=1e-8, atol=1e-10)


def test_a_batch_of_unlike_laws_is_what_each_law_gives():
    scale, concentration = t(1e-3, 0.8, 40.0), t(0.5, 2.0, 60.0)
    h = t(-2.0, 0.5, 3.0)
    together = log_marginal(dist.Weibull(scale, concentration), h)
    crossed = log_marginal(dist.Weibull(scale[:, None], concentration[:, None]), h)
    assert crossed.shape == (3, 3)
    for i in range(3):
        alone = log_marginal(dist.Weibull(scale[i], concentration[i]), h)
        assert torch.allclose(crossed[i], alone, atol=1e-9)
        assert float(together[i]) == pytest.approx(float(alone[i]), abs=1e-9)


def test_gradients_by_finite_differences():
    point = t(0.8, 1.7, -1.3)

    def value(x):
        return log_marginal(dist.Weibull(x[0], x[1]), x[2:])[0]

    x = point.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(x), x)
    for i in range(3):
        step = torch.zeros(3, dtype=torch.float64)
        step[i] = 1e-5
        numeric = (value(point + step) - value(point - step)) / 2e-5
        assert float(gradient[i]) == pytest.approx(float(numeric), rel=1e-6)
    assert torch.autograd.gradgradcheck(value, (x,))


def test_blocks_of_pairs_change_nothing(monkeypatch):
    h = torch.linspace(-3, 3, 500, dtype=torch.float64)
    results = []
    for size in (2**21, 2**13):
        monkeypatch.setattr(any_density, "_CHUNK", size)
        scale = t(0.8).requires_grad_()
        value = log_marginal(dist.Weibull(scale, t(1.7)), h)
        results.append((value.detach(), *torch.autograd.grad(value.sum(), scale)))
    assert torch.allclose(results[0][0], results[1][0], atol=1e-14)
    assert torch.allclose(results[0][1], results[1][1], rtol=1e-12)


@pytest.mark.parametrize("batch", ["one", "draws", "own", "draws of own"])
def test_panels_by_brute_force(batch):
    torch.manual_seed(0)
    panel = torch.tensor([0, 2, 0, 2, 2, 0])
    h, weight, preferred = torch.randn(6).double() * 2, torch.rand(6).double() * 2, torch.rand(6).double()
    scale = {
        "one": t(0.8),
        "draws": t(0.8, 2.0)[:, None],
        "own": t(0.5, 1.0, 3.0),
        "draws of own": torch.rand(2, 3) + 0.3,
    }
    law = dist.Weibull(scale[batch].double(), t(1.7))
    found = log_marginal_panel(law, h, panel, 3, weight=weight, preferred=preferred)
    shape = (*law.batch_shape[:-1], 3)
    assert found.shape == shape
    q = (torch.arange(400_000, dtype=torch.float64) + 0.5) / 400_000
    beta = law.icdf(q.reshape(-1, *(1,) * len(law.batch_shape))).expand(-1, *(shape if law.batch_shape else ()))
    beta = beta if law.batch_shape else beta[:, None].expand(-1, 3)
    for a in range(3):
        mine = panel == a
        own = beta[..., a, None] * h[mine]
        terms = weight[mine] * (preferred[mine] * logsigmoid(own) + (1 - preferred[mine]) * logsigmoid(-own))
        expected = torch.logsumexp(terms.sum(-1), 0) - math.log(400_000)
        assert torch.allclose(found[..., a], expected, atol=1e-5), a
    assert torch.allclose(found[..., 1], torch.zeros_like(found[..., 1]), atol=1e-8)  # made no choice


def test_a_panel_of_one_is_a_pair():
    h = t(-3.0, -0.2, 0.0, 1.0, 5.0)
    law = dist.InverseGamma(t(2.0), t(0.6))
    panels = log_marginal_panel(law, h, torch.arange(5), 5)
    assert torch.allclose(panels, log_marginal(law, h), rtol=1e-8, atol=1e-9)


def test_large_panels_agree_with_the_engine():
    torch.manual_seed(0)
    h = torch.randn(1500).double()
    panel = torch.arange(1500) % 3
    law = dist.LogNormal(t(-1.0), t(1.2))
    expected = log_marginal_panel(law, h, panel, 3)
    problem = any_density.PanelProblem(h, panel, 3, None, None, torch.Size(), 2**18)
    assert torch.allclose(any_density._panel(law, problem, Quadrature()), expected, atol=1e-8)


def test_the_global_generator_is_left_alone():
    state = torch.get_rng_state()
    law = dist.Weibull(t(0.8), t(1.7))
    first = log_marginal(law, MARGINS)
    assert torch.equal(state, torch.get_rng_state())
    torch.rand(3)
    assert torch.equal(first, log_marginal(law, MARGINS))


def test_dtypes_and_empty_batches():
    law = dist.Weibull(torch.tensor(0.8), torch.tensor(1.7))
    assert log_marginal(law, torch.ones(2)).dtype == torch.float32
    assert log_marginal(law, torch.ones(2).double()).dtype == torch.float64
    assert log_marginal(law, torch.ones(0)).shape == (0,)


def test_the_error_that_is_reported():
    law = dist.Weibull(t(0.8), t(1.7))
    exact = log_marginal(law, MARGINS, Quadrature(tolerance=1e-13))
    for tolerance in (1e-4, 1e-7, 1e-10):
        value, error = log_marginal_with_error(law, MARGINS, Quadrature(tolerance=tolerance))
        assert ((value - exact).abs() <= error).double().mean() > 0.98
        assert float(error.max()) < 10 * tolerance


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", [dist.Weibull, dist.InverseGamma, dist.Uniform])
def test_extreme_margins_have_finite_values_and_gradients(family, dtype):
    kind = dtype if dtype == torch.float64 else torch.float32
    a = torch.tensor(0.8, dtype=kind, requires_grad=True)
    b = torch.tensor(1.7, dtype=kind, requires_grad=True)
    largest = 3e4 if dtype == torch.float16 else 1e30
    h = torch.tensor([-largest, -1.0, 0.0, 1.0, largest], dtype=dtype, requires_grad=True)
    value = log_marginal(family(a, b), h)
    assert torch.isfinite(value).all()
    assert value.dtype == kind
    assert float(value[2].detach()) == pytest.approx(math.log(0.5), abs=1e-6)
    assert all(bool(torch.isfinite(g).all()) for g in torch.autograd.grad(value.sum(), (a, b, h)))
    limits = log_marginal(family(a, b), torch.tensor([math.inf, -math.inf], dtype=dtype))
    assert limits.tolist() == [0.0, -math.inf]


@pytest.mark.parametrize("margin", [60.0, 1e8, 1e30])
@pytest.mark.parametrize(
    ("law", "negative"),
    [
        (dist.Normal(t(0.8), t(1.7)), 0.5 * math.erfc(0.8 / 1.7 / math.sqrt(2))),
        (dist.Normal(t(0.0), t(2.0)), 0.5),
        (dist.Cauchy(t(0.3), t(0.2)), 0.5 - math.atan(1.5) / math.pi),
    ],
    ids=["normal", "centred normal", "cauchy"],
)
def test_a_signed_law_at_large_margins_is_a_step(law, negative, margin):
    # P(h) = P(beta > 0) + O(1/h): where h is the largest margin, the sigmoid is as good as a step.
    value = log_marginal(law, t(-margin, margin)).exp()
    slack = 0.5 / margin + 1e-12
    assert abs(float(value[0]) - negative) < slack
    assert abs(float(value.sum()) - 1) < 1e-13


@pytest.mark.parametrize("df", [1.5, 3.0, 6.0])
def test_tails_like_a_power_on_both_sides(df):
    law = dist.StudentT(t(df), t(0.3), t(0.2))
    margins = (-60.0, -1.0, 0.05, 8.0)
    found = log_marginal(law, t(*margins))
    with mpmath.workdps(25):
        for h, value in zip(margins, found.tolist(), strict=True):
            constant = mpmath.gamma((df + 1) / 2) / (
                mpmath.gamma(df / 2) * mpmath.sqrt(df * mpmath.pi) * mpmath.mpf(0.2)
            )

            def integrand(x, h=h, constant=constant):
                density = constant * (1 + ((x - mpmath.mpf(0.3)) / mpmath.mpf(0.2)) ** 2 / df) ** (-(df + 1) / 2)
                return density / (1 + mpmath.exp(-x * h))

            parts = [-mpmath.inf, -100, -3, -0.3, -0.05, 0, 0.05, 0.2, 0.3, 0.4, 1, 3, 100, mpmath.inf]
            assert value == pytest.approx(float(mpmath.log(mpmath.quad(integrand, parts))), rel=1e-9)


def test_too_few_nodes_are_said():
    law = dist.Weibull(t(0.8), t(0.3))
    with pytest.warns(NumericsWarning, match=r"Quadrature of Weibull stopped at max_nodes=32.*raise max_nodes"):
        log_marginal(law, MARGINS, Quadrature(max_nodes=32))
    # A law that's narrow where the margins are absurd: the sampler of a posterior may come by, and must be told.
    with pytest.warns(NumericsWarning, match="the value is of no use"):
        log_marginal(dist.Normal(t(1e3), t(1e-3)), t(1e8))


class HalfDensity(dist.HalfNormal):
    """Forgets that a folded density is twice as high."""

    def log_prob(self, value):
        return super().log_prob(value) - math.log(2)


def test_mass_beyond_floating_point_numbers_is_no_fault_of_the_density():
    """Of this law 1e-4 lies below 1e-300: E[sigmoid(beta h)] in the coordinate beta = scale e^(g/k)."""
    law, h = dist.Weibull(t(0.24), t(0.012)), t([-3.0, 0.5, 30.0])
    with pytest.warns(NumericsWarning, match=r"finds 0\.9998\d of its mass: the rest lies at strengths below 1e-300"):
        value = log_marginal(law, h, Quadrature(tolerance=1e-7))
    for found, margin in zip(value.tolist(), h.tolist(), strict=True):
        exact = mpmath.quad(
            lambda g, m=margin: (
                mpmath.exp(g - mpmath.exp(g)) / (1 + mpmath.exp(-m * mpmath.mpf("0.24") * mpmath.exp(g / 0.012)))
            ),
            mpmath.linspace(-60, 6, 200),
        )
        assert found == pytest.approx(float(mpmath.log(exact)), abs=1.2e-4)


def test_a_law_narrower_than_rounding_is_no_fault_of_the_density():
    with pytest.warns(NumericsWarning, match="narrower than floating-point numbers can tell"):
        value = log_marginal(dist.Weibull(t(1.9e24), t(1.9e15)), t([-3.0, 1.0]), Quadrature(tolerance=1e-7))
    assert value.tolist() == pytest.approx([-5.7e24, 0.0], rel=1e-9)


def test_a_density_that_misses_mass_is_refused():
    with pytest.raises(UnsupportedError, match=r"density of HalfDensity adds up to 0\.5 over its support"):
        log_marginal(HalfDensity(t(1.0)), t(0.5))


def test_which_laws_have_a_density(opaque):
    assert has_density(dist.Weibull(1.0, 2.0))
    assert has_density(dist.Normal(0.0, 1.0))
    mixture = dist.MixtureSameFamily(dist.Categorical(t(0.3, 0.7)), dist.LogNormal(t(-2.0, 1.0), t(0.1, 0.4)))
    assert available_methods(mixture) == ("quadrature", "monte_carlo")
    h = t(-1.0, 2.0)
    parts = log_marginal(dist.LogNormal(t(-2.0, 1.0), t(0.1, 0.4)), h[:, None])
    expected = torch.logsumexp(parts + t(0.3, 0.7).log(), -1)
    torch.testing.assert_close(log_marginal(mixture, h), expected, rtol=1e-13, atol=0)
    for law in (
        dist.Delta(torch.tensor(1.0)),
        dist.Poisson(1.0),
        opaque(torch.tensor(1.0)),
        dist.Empirical(t(1.0, 2.0), t(0.0, 0.0)),
    ):
        assert not has_density(law), law
