"""Quadrature for one pair: LogNormal against 50-digit values, Gamma against its closed form."""

import json
import math
import runpy
import warnings
from pathlib import Path

import mpmath as mp
import pyro.distributions as dist
import pytest
import torch

from pluralpref.errors import NumericsWarning, UnsupportedError
from pluralpref.inference.marginal import Quadrature, log_marginal, log_marginal_with_error

REFERENCE = Path(__file__).parent / "reference"
TINY = 1e-290


@pytest.fixture(scope="module")
def table():
    content = json.loads((REFERENCE / "lognormal_table.json").read_text())
    columns = zip(*content["rows"], strict=True)
    return {
        name: torch.tensor([float(x) for x in column], dtype=torch.float64)
        for name, column in zip(content["columns"], columns, strict=True)
    }


def worst(actual, expected):
    big = expected.abs() > TINY
    assert not torch.isnan(actual).any()
    return float(((actual.detach() - expected) / expected).abs()[big].max())


@pytest.mark.parametrize("log_margin", [0.0, 4.0, -9.0])
@pytest.mark.parametrize("side", ["losing", "winning"])
def test_value_gradients_and_reported_error(table, side, log_margin):
    loc = (table["loc"] - log_margin).requires_grad_()
    scale = table["scale"].clone().requires_grad_()
    h = torch.full_like(loc, math.exp(log_margin) * (-1 if side == "losing" else 1)).requires_grad_()
    value, error = log_marginal_with_error(dist.LogNormal(loc, scale), h)
    expected = table[f"log_{side}"]
    assert worst(value, expected) < 1e-12
    d_loc, d_scale, d_h = torch.autograd.grad(value.sum(), (loc, scale, h))
    assert worst(d_loc, table[f"{side}_d_loc"]) < 1e-11
    assert worst(d_scale, table[f"{side}_d_scale"]) < 1e-11
    assert worst(d_h * h, table[f"{side}_d_loc"]) < 1e-11
    normal = expected.abs() > TINY
    true_error = (value.detach() - expected).abs()
    assert ((true_error <= error)[normal]).double().mean() >= 0.99
    assert (error / expected.abs())[normal].max() < 1e-8


def test_fewer_nodes_report_a_larger_error_that_still_bounds(table):
    law = dist.LogNormal(table["loc"], table["scale"])
    for tolerance in (1e-1, 1e-3, 1e-5):
        value, error = log_marginal_with_error(law, -torch.ones_like(table["loc"]), Quadrature(tolerance))
        true_error = (value - table["log_losing"]).abs()
        relevant = true_error > 1e-12 * table["log_losing"].abs()
        assert (true_error <= tolerance * (1 + 1e-9 * table["log_losing"].abs())).all()
        if relevant.any():
            assert (true_error <= error)[relevant].double().mean() >= 0.95


def test_gamma_quadrature_agrees_with_its_closed_form():
    shape, ratio, sign = torch.meshgrid(
        torch.tensor([0.05, 0.3, 1.0, 4.0, 50.0, 1e3, 1e4], dtype=torch.float64),
        torch.logspace(-6, 4, 11, dtype=torch.float64),
        torch.tensor([-1.0, 1.0], dtype=torch.float64),
        indexing="ij",
    )
    shape, h = shape.clone().requires_grad_(), (sign * ratio * 3).requires_grad_()
    rate = torch.full_like(shape, 3.0).requires_grad_()
    law = dist.Gamma(shape, rate)
    exact, value = log_marginal(law, h, "closed_form"), log_marginal(law, h, "quadrature")
    assert worst(value, exact.detach()) < 1e-11
    for variable, tolerance in ((rate, 1e-11), (h, 1e-11)):
        (a,) = torch.autograd.grad(value.sum(), variable, retain_graph=True)
        (b,) = torch.autograd.grad(exact.sum(), variable, retain_graph=True)
        assert worst(a, b) < tolerance
    # d/dshape is a difference of two means of log beta, accurate in absolute terms.
    (a,) = torch.autograd.grad(value.sum(), shape)
    (b,) = torch.autograd.grad(exact.sum(), shape)
    assert ((a - b).abs() / (b.abs() + 1e-2)).max() < 1e-11


def test_exponential_quadrature():
    h = torch.tensor([-40.0, -1.0, 2.0], dtype=torch.float64)
    law = dist.Exponential(torch.tensor(2.5, dtype=torch.float64))
    torch.testing.assert_close(log_marginal(law, h, "quadrature"), log_marginal(law, h), rtol=1e-12, atol=0)


def test_second_derivatives_against_differences_of_first_ones(derivatives_of_jacobian):
    h = torch.tensor([-30.0, -2.0, -0.1, 0.0, 0.5, 20.0], dtype=torch.float64)
    weights = torch.linspace(0.5, 2.0, 6, dtype=torch.float64)

    def loss(x):
        # loc is a function of scale: each must be counted once.
        scale = torch.exp(x[1])
        return (weights * log_marginal(dist.LogNormal(x[0] - scale**2 / 2, scale), h * x[2])).sum()

    x = torch.tensor([-1.0, -0.3, 1.0], dtype=torch.float64)
    hessian = torch.autograd.functional.hessian(loss, x)
    differences = derivatives_of_jacobian(loss, x, step=1e-4)
    torch.testing.assert_close(hessian, differences, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(hessian, hessian.T, rtol=1e-10, atol=1e-11)


def exact_winning(loc, scale, h):
    """(value, d/dloc, d/dscale, d²/dloc², d²/dloc dscale, d²/dscale²) of log E[sigmoid(beta h)], h > 0, in 50 digits.

    By the trapezoidal rule in x = (log beta - loc)/scale around the peak of the losing side, and pathwise derivatives.
    """
    with mp.workdps(50):
        m, s, h = mp.mpf(loc), mp.mpf(scale), mp.mpf(h)
        y = mp.lambertw(s * s * h * mp.exp(m)).real
        step = mp.mpf("0.1") / mp.sqrt(1 + y)
        sums = [mp.mpf(0)] * 6
        for k in range(-200, 201):
            x = -y / s + k * step
            v = h * mp.exp(m + s * x)
            q = 1 / (1 + mp.exp(v))
            slope = -v * q * (1 - q)
            bend = slope * (1 - v * (1 - 2 * q))
            terms = (q, slope, x * slope, bend, x * bend, x * x * bend)
            sums = [total + step * mp.npdf(x) * term for total, term in zip(sums, terms, strict=True)]
        losing, *derivatives = sums
        d_loc, d_scale, *second = [-d / (1 - losing) for d in derivatives]
        products = d_loc * d_loc, d_loc * d_scale, d_scale * d_scale
        result = mp.log1p(-losing), d_loc, d_scale, *(a - b for a, b in zip(second, products, strict=True))
        return torch.tensor([float(x) for x in result], dtype=torch.float64)


@pytest.mark.parametrize("scale", [1e-3, 0.02, 0.1, 0.5])
@pytest.mark.parametrize("size", [40.0, 400.0, 700.0, 715.0, 2000.0, 1e5])
def test_second_derivatives_where_the_choice_is_nearly_certain(size, scale):
    """Where the losing side's probability underflows they are 0."""
    x = torch.tensor([5.0, scale], dtype=torch.float64, requires_grad=True)
    h = torch.tensor(size * math.exp(-5.0), dtype=torch.float64)
    value = log_marginal(dist.LogNormal(x[0], x[1]), h)
    (slope,) = torch.autograd.grad(value, x, create_graph=True)
    by_loc, by_scale = (torch.autograd.grad(s, x, retain_graph=True)[0] for s in slope)
    actual = torch.stack([value, *slope, *by_loc, by_scale[1]]).detach()
    torch.testing.assert_close(actual, exact_winning(5.0, scale, h.item()), rtol=1e-11, atol=TINY)


def test_gamma_quadrature_hessian_equals_that_of_the_closed_form():
    h = torch.tensor([-30.0, -2.0, -0.1, 0.5, 20.0], dtype=torch.float64)

    def loss(x, method):
        return log_marginal(dist.Gamma(torch.exp(x[0]), torch.exp(x[1])), h * x[2], method).sum()

    for log_shape in (-2.0, 0.5, 3.0):
        x = torch.tensor([log_shape, 0.4, 1.0], dtype=torch.float64)
        exact = torch.autograd.functional.hessian(lambda x: loss(x, "closed_form"), x)
        value = torch.autograd.functional.hessian(lambda x: loss(x, "quadrature"), x)
        torch.testing.assert_close(value, exact, rtol=1e-9, atol=1e-10)


def test_values_do_not_depend_on_batch_mates():
    torch.manual_seed(1)
    h = torch.cat([torch.randn(20, dtype=torch.float64) * 10, torch.tensor([1e-9, -1e9, 0.0], dtype=torch.float64)])
    scale = torch.cat([torch.full((20,), 0.3), torch.tensor([3.0, 0.02, 1.0])]).double()
    law = dist.LogNormal(torch.zeros_like(scale), scale)
    together = log_marginal(law, h)
    alone = torch.stack(
        [log_marginal(dist.LogNormal(torch.zeros_like(s), s), x) for s, x in zip(scale, h, strict=True)]
    )
    torch.testing.assert_close(together, alone, rtol=1e-13, atol=0)


def test_zero_margin():
    h = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    loc = torch.tensor([-2.0, 0.0, 3.0], dtype=torch.float64)
    scale = torch.tensor([0.1, 1.0, 2.0], dtype=torch.float64)
    value = log_marginal(dist.LogNormal(loc, scale), h)
    torch.testing.assert_close(value, torch.full_like(value, math.log(0.5)), rtol=4e-15, atol=0)
    (slope,) = torch.autograd.grad(value.sum(), h)
    torch.testing.assert_close(slope, torch.exp(loc + scale**2 / 2) / 2, rtol=1e-11, atol=0)


@pytest.mark.parametrize("h", [1e30, -1e30, 1e-320, -1e-320])
@pytest.mark.parametrize(("loc", "scale"), [(0.0, 1e-6), (0.0, 5.0), (-300.0, 1.0), (300.0, 1.0)])
def test_extreme_arguments_are_finite(loc, scale, h):
    arguments = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (loc, scale, h)]
    value = log_marginal(dist.LogNormal(*arguments[:2]), arguments[2])
    assert torch.isfinite(value)
    for grad in torch.autograd.grad(value, arguments):
        assert not torch.isnan(grad)


def test_tiny_scale_is_the_point_mass():
    h = torch.tensor([-3.0, 2.0], dtype=torch.float64)
    law = dist.LogNormal(torch.tensor(0.5, dtype=torch.float64), torch.tensor(1e-8, dtype=torch.float64))
    expected = torch.nn.functional.logsigmoid(math.exp(0.5) * h)
    torch.testing.assert_close(log_marginal(law, h), expected, rtol=1e-13, atol=0)


def test_float32_arguments(table):
    loc, scale = table["loc"].float().requires_grad_(), table["scale"].float()
    value = log_marginal(dist.LogNormal(loc, scale), -torch.ones_like(loc))
    exact = log_marginal(dist.LogNormal(loc.double(), scale.double()), -torch.ones_like(loc).double())
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), exact, rtol=1e-7, atol=0)
    value.sum().backward()
    assert torch.isfinite(loc.grad).all()


def test_broadcasting_over_draws_and_pairs():
    torch.manual_seed(0)
    scale = torch.rand(4, 1, dtype=torch.float64) + 0.2
    h = torch.randn(6, dtype=torch.float64)
    value = log_marginal(dist.LogNormal(torch.zeros_like(scale), scale), h)
    assert value.shape == (4, 6)
    single = log_marginal(dist.LogNormal(torch.zeros_like(scale[2, 0]), scale[2, 0]), h)
    torch.testing.assert_close(value[2], single, rtol=1e-13, atol=0)
    assert log_marginal(dist.LogNormal(torch.zeros(0), torch.ones(0)), torch.zeros(0)).shape == (0,)


def test_too_few_nodes_warn():
    law = dist.LogNormal(torch.tensor(0.0, dtype=torch.float64), torch.tensor(4.0, dtype=torch.float64))
    h = torch.tensor([-1.0, 5.0], dtype=torch.float64)
    with pytest.warns(NumericsWarning, match="max_nodes=16"):
        value = log_marginal(law, h, Quadrature(max_nodes=16))
    assert (value - log_marginal(law, h)).abs().max() > 1e-10
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log_marginal(law, h, Quadrature(max_nodes=512))


def test_error_is_only_reported_where_there_is_a_density(opaque):
    with pytest.raises(UnsupportedError, match="OpaqueLaw has no quadrature"):
        log_marginal_with_error(opaque(torch.tensor(1.0)), torch.zeros(2))


@pytest.mark.slow
def test_table_is_what_the_script_makes():
    script = runpy.run_path(str(REFERENCE / "make_lognormal_table.py"))
    stored = {(row[0], row[1]): row[2:] for row in json.loads((REFERENCE / "lognormal_table.json").read_text())["rows"]}
    for loc, scale in (("-30", "5"), ("0", "0.01"), ("2", "1"), ("30", "0.3")):
        point = script["reference_point"](loc, scale)
        assert [mp.nstr(point[name], 25) for name in script["FIELDS"]] == stored[loc, scale]
