"""The Gamma closed form against 60-digit values, and what holds whatever the numbers are."""

import json
import math
import runpy
from pathlib import Path

import pyro.distributions as dist
import pytest
import torch

from pluralpref.inference.marginal import log_marginal
from pluralpref.inference.marginal.gamma import _GammaChoice, alternating_weights, gamma_log_losing

REFERENCE = Path(__file__).parent / "reference"
# Values below this are subnormal numbers or zero: they have no relative accuracy.
TINY = 1e-290


def read_table(name):
    table = json.loads((REFERENCE / name).read_text())
    columns = zip(*table["rows"], strict=True)
    return {
        name: torch.tensor([float(x) for x in column], dtype=torch.float64)
        for name, column in zip(table["columns"], columns, strict=True)
    }


def assert_relative(actual, expected, rtol, tiny=TINY):
    expected, actual = expected.double(), actual.detach().double()
    assert not torch.isnan(actual).any()
    big = expected.abs() > tiny
    error = ((actual - expected) / expected).abs()[big]
    assert error.max() <= rtol, f"worst relative error {error.max():.2e}"
    # What underflows must do so quietly.
    assert (actual[~big].abs() <= 10 * tiny).all()


@pytest.fixture(scope="module")
def table():
    return read_table("gamma_table.json")


@pytest.mark.parametrize("rate", [1.0, 3e-4, 7e5])
@pytest.mark.parametrize("side", ["losing", "winning"])
def test_value_and_first_derivatives(table, side, rate):
    shape = table["shape"].clone().requires_grad_()
    rates = torch.full_like(shape, rate).requires_grad_()
    h = ((-1 if side == "losing" else 1) * table["ratio"] * rate).requires_grad_()
    value = log_marginal(dist.Gamma(shape, rates), h, "closed_form")
    d_shape, d_rate, d_h = torch.autograd.grad(value.sum(), (shape, rates, h))
    assert_relative(value, table[f"log_{side}"], 2e-13 if side == "winning" else 2e-14)
    assert_relative(d_shape, table[f"{side}_d_shape"], 1e-12)
    assert_relative(d_rate * rates, -table[f"{side}_d_log_ratio"], 1e-12)
    assert_relative(d_h * h, table[f"{side}_d_log_ratio"], 1e-12)


@pytest.mark.parametrize("side", ["losing", "winning"])
def test_float32_arguments(table, side):
    # The arguments are those that float32 holds exactly enough: shape and margin rounded to it.
    shape, ratio = table["shape"].float(), table["ratio"].float()
    sign = -1 if side == "losing" else 1
    exact = log_marginal(dist.Gamma(shape.double(), torch.ones_like(shape).double()), sign * ratio.double())
    shape.requires_grad_()
    value = log_marginal(dist.Gamma(shape, torch.ones_like(shape)), sign * ratio)
    assert value.dtype == torch.float32
    assert_relative(value, exact, 2e-6, tiny=1e-37)
    (slope,) = torch.autograd.grad(value.sum(), shape)
    assert torch.isfinite(slope).all()


def test_arithmetic_in_float32(table):
    """Where the device has no float64 the losing side is summed in float32 itself, with fewer terms."""
    shape, ratio = table["shape"].float().requires_grad_(), table["ratio"].float().requires_grad_()
    value = gamma_log_losing(shape, torch.ones_like(shape), ratio)
    assert value.dtype == torch.float32
    assert_relative(value, table["log_losing"], 2e-6)
    d_shape, d_ratio = torch.autograd.grad(value.sum(), (shape, ratio))
    assert_relative(d_shape, table["losing_d_shape"], 2e-5)
    assert_relative(d_ratio * ratio, table["losing_d_log_ratio"], 2e-5, tiny=1e-37)


def test_bfloat16_margins_are_promoted():
    h = torch.tensor([1.5, -2.0], dtype=torch.bfloat16)
    value = log_marginal(dist.Gamma(2.0, 20.0), h)
    assert torch.equal(value, log_marginal(dist.Gamma(2.0, 20.0), h.float()))


def test_weights_are_exact():
    weights = alternating_weights(24)
    assert sum(weights) == pytest.approx(0.5, abs=1e-16)
    # sum_k (-1)^k / (k + 1) = log 2, moments of the uniform measure.
    assert sum(w / (k + 1) for k, w in enumerate(weights)) == pytest.approx(math.log(2), rel=3e-16)
    assert abs(weights[0]) <= 1


def test_series_of_few_terms_has_the_stated_bound():
    for n in (4, 8, 12):
        total = sum(w / (k + 1) for k, w in enumerate(alternating_weights(n)))
        error = abs(total / math.log(2) - 1)
        assert 1e-3 * 5.828**-n < error < 2 * 5.828**-n


def test_exponential_and_chi2():
    h = torch.tensor([-8.0, 0.0, 3.0], dtype=torch.float64)
    rate = torch.tensor(0.7, dtype=torch.float64)
    exponential = log_marginal(dist.Exponential(rate), h)
    torch.testing.assert_close(exponential, log_marginal(dist.Gamma(torch.ones_like(rate), rate), h), rtol=0, atol=0)
    # For shape 1: sum (-1)^k / (1 + k z) = digamma difference / (2 z).
    z = 8.0 / 0.7
    w = torch.tensor([1 / z], dtype=torch.float64)
    losing = (torch.digamma((w + 2) / 2) - torch.digamma((w + 1) / 2)) / (2 * z)
    torch.testing.assert_close(exponential[:1], torch.log(losing), rtol=1e-13, atol=0)
    chi2 = log_marginal(dist.Chi2(torch.tensor(3.0, dtype=torch.float64)), h)
    by_gamma = log_marginal(dist.Gamma(torch.tensor(1.5, dtype=torch.float64), 0.5), h)
    torch.testing.assert_close(chi2, by_gamma, rtol=1e-15, atol=0)


def test_zero_margin():
    shape = torch.tensor([1e-3, 2.0, 1e6], dtype=torch.float64)
    rate = torch.tensor([1e-2, 20.0, 3.0], dtype=torch.float64)
    h = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    value = log_marginal(dist.Gamma(shape, rate), h)
    torch.testing.assert_close(value, torch.full_like(value, math.log(0.5)), rtol=2e-16, atol=0)
    (slope,) = torch.autograd.grad(value.sum(), h)
    torch.testing.assert_close(slope, shape / rate / 2, rtol=1e-13, atol=0)


@pytest.mark.parametrize("h", [0.0, 1e30, -1e30, 1e-320, -1e-320, 1.0, -1.0])
@pytest.mark.parametrize("rate", [1e-300, 1.0, 1e300])
@pytest.mark.parametrize("shape", [1e-300, 0.5, 1e8])
def test_extreme_arguments_have_no_nan(shape, rate, h):
    a, b, margin = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (shape, rate, h))
    value = log_marginal(dist.Gamma(a, b), margin)
    grads = torch.autograd.grad(value, (a, b, margin))
    assert torch.isfinite(value)
    assert value <= -1e-300 or h > 0
    for grad in grads[:2]:
        assert torch.isfinite(grad)
    # The slope in h is about shape / (2 rate), which may exceed every number.
    assert not torch.isnan(grads[2])


def test_huge_ratio_is_a_power_law():
    """z = 1e330 overflows; log Q = -a log z + log of the alternating zeta function at a."""
    a = torch.tensor(2.0, dtype=torch.float64)
    h, rate = torch.tensor(-1e30, dtype=torch.float64), torch.tensor(1e-300, dtype=torch.float64)
    expected = -2 * 330 * math.log(10) + math.log(math.pi**2 / 12)
    assert log_marginal(dist.Gamma(a, rate), h).item() == pytest.approx(expected, rel=1e-14)


def test_no_seam_where_the_quotient_is_replaced():
    h = -torch.logspace(17.9, 18.1, 9, dtype=torch.float64)
    value = log_marginal(dist.Gamma(torch.tensor(0.7, dtype=torch.float64), 1.0), h)
    expected = value[0] - 0.7 * (torch.log(-h) - torch.log(-h[0]))
    torch.testing.assert_close(value, expected, rtol=2e-15, atol=0)


def test_second_derivatives():
    import mpmath as mp

    reference = runpy.run_path(str(REFERENCE / "make_gamma_table.py"))["reference_point"]
    for shape, ratio in (("0.3", "2"), ("3", "0.1"), ("30", "1"), ("100", "0.01")):
        with mp.workdps(60):
            step = mp.mpf("1e-15")

            def first(da, dz, name, shape=shape, ratio=ratio):
                point = reference(mp.mpf(shape) + da, mp.mpf(ratio) + dz)
                # Derivatives in log z are turned into those in z.
                return point[name] / (mp.mpf(ratio) + dz) if name.endswith("ratio") else point[name]

            for side, sign in (("losing", -1), ("winning", 1)):
                by_shape, by_ratio = f"{side}_d_shape", f"{side}_d_log_ratio"
                d_aa = (first(step, 0, by_shape) - first(-step, 0, by_shape)) / (2 * step)
                d_az = (first(0, step, by_shape) - first(0, -step, by_shape)) / (2 * step)
                d_zz = (first(0, step, by_ratio) - first(0, -step, by_ratio)) / (2 * step)
                x = torch.tensor([float(shape), float(ratio)], dtype=torch.float64)

                def f(x, sign=sign):
                    return log_marginal(dist.Gamma(x[0], torch.ones_like(x[0])), sign * x[1])

                hessian = torch.autograd.functional.hessian(f, x)
                for actual, expected in ((hessian[0, 0], d_aa), (hessian[0, 1], d_az), (hessian[1, 1], d_zz)):
                    assert actual.item() == pytest.approx(float(expected), rel=1e-10)


@pytest.mark.parametrize("side", ["losing", "winning"])
def test_second_derivatives_over_the_grid(side):
    """Shape 1e-2..1e3 and |h|/rate 1e-3..1e3, half decades; rate 2^-3, which scales exactly."""
    reference = runpy.run_path(str(REFERENCE / "make_gamma_table.py"))["second_derivatives"]
    steps = [f"{digit}e{k}" for k in range(-3, 3) for digit in (1, 3)] + ["1e3"]
    points = [(shape, ratio) for shape in steps[2:] for ratio in steps]
    expected = [reference(float(shape), float(ratio))[side] for shape, ratio in points]
    rate, sign = 2.0**-3, -1 if side == "losing" else 1
    shape, ratio = torch.tensor([[float(x) for x in point] for point in points], dtype=torch.float64).T
    arguments = {"shape": shape.clone(), "rate": torch.full_like(shape, rate), "h": sign * ratio * rate}
    for x in arguments.values():
        x.requires_grad_()
    value = log_marginal(dist.Gamma(arguments["shape"], arguments["rate"]), arguments["h"], "closed_form")
    first = torch.autograd.grad(value.sum(), arguments.values(), create_graph=True)
    for by, slope in zip(arguments, first, strict=True):
        second = torch.autograd.grad(slope.sum(), arguments.values(), retain_graph=True)
        for and_by, actual in zip(arguments, second, strict=True):
            name = f"{by} {and_by}" if f"{by} {and_by}" in expected[0] else f"{and_by} {by}"
            scaled = actual * rate ** sum(variable != "shape" for variable in (by, and_by))
            assert_relative(scaled, torch.tensor([float(x[name]) for x in expected], dtype=torch.float64), 1e-9)


def test_first_derivatives_are_those_of_the_plain_formula_and_no_row_feels_another():
    torch.manual_seed(0)
    shape = torch.exp(3 * torch.randn(7001, dtype=torch.float64))
    h = torch.exp(4 * torch.randn(7001, dtype=torch.float64)) * torch.randn(7001, dtype=torch.float64).sign()
    h[:3] = torch.tensor([0.0, 1e25, -1e25])
    arguments = [shape.requires_grad_(), torch.full_like(shape, 0.3).requires_grad_(), h.requires_grad_()]

    def evaluate(rows, create_graph=False):
        a, b, margins = (x.detach()[rows].requires_grad_() for x in arguments)
        value = log_marginal(dist.Gamma(a, b), margins)
        return [value.detach(), *torch.autograd.grad(value.sum(), (a, b, margins), create_graph=create_graph)]

    together = evaluate(slice(None))
    for actual, plain in zip(together, evaluate(slice(None), create_graph=True), strict=True):
        assert_relative(actual, plain.detach(), 5e-13)
    # Blocks of other sizes, other places within a block, other remainders.
    for rows in (slice(0, 1), slice(5, 12), slice(2900, 7001), slice(3, 7001, 64)):
        for actual, alone in zip(together, evaluate(rows), strict=True):
            assert torch.equal(actual[rows], alone)


@pytest.mark.parametrize("side", ["losing", "winning"])
def test_blocks_in_float32(table, side):
    """What a device without float64 computes."""
    shape, ratio = table["shape"].float().requires_grad_(), table["ratio"].float()
    h = (ratio if side == "winning" else -ratio).requires_grad_()
    value = _GammaChoice.apply(shape, torch.ones(1), h)
    assert value.dtype == torch.float32
    # log P of the winning side is about -Q, whose relative error is the absolute one of log Q, down to -83 here.
    tolerance = 1e-5 if side == "winning" else 2e-6
    assert_relative(value, table[f"log_{side}"], tolerance, tiny=1e-36)
    d_shape, d_h = torch.autograd.grad(value.sum(), (shape, h))
    assert_relative(d_shape, table[f"{side}_d_shape"], 2e-5, tiny=1e-36)
    # The slope in h itself, with h up to 1e12, must not be a subnormal number.
    assert_relative(d_h * h, table[f"{side}_d_log_ratio"], 2e-5, tiny=1e-24)


@pytest.mark.parametrize(
    ("batch", "margins", "result"), [((), (7,), (7,)), ((5, 1), (7,), (5, 7)), ((3, 5, 1), (1,), (3, 5, 1))]
)
def test_broadcasting(batch, margins, result):
    torch.manual_seed(0)
    shape = torch.rand(batch, dtype=torch.float64) + 0.5
    h = torch.randn(margins, dtype=torch.float64)
    value = log_marginal(dist.Gamma(shape, torch.full_like(shape, 2.0)), h)
    assert value.shape == result
    index = tuple(0 for _ in result)
    alone = log_marginal(dist.Gamma(shape.flatten()[0], torch.tensor(2.0, dtype=torch.float64)), h.flatten()[0])
    torch.testing.assert_close(value[index], alone, rtol=4e-15, atol=0)


@pytest.mark.slow
def test_table_is_what_the_script_makes(table):
    """A part of the table made again, and compared with quadrature of the defining integral."""
    import mpmath as mp

    script = runpy.run_path(str(REFERENCE / "make_gamma_table.py"))
    stored = {(row[0], row[1]): row[2:] for row in json.loads((REFERENCE / "gamma_table.json").read_text())["rows"]}
    for shape in ("1e-3", "3e-1", "1e2", "1e6"):
        for ratio in ("1e-12", "1e-1", "1e2", "1e12"):
            point = script["reference_point"](shape, ratio)
            assert [mp.nstr(point[name], 25) for name in script["FIELDS"]] == stored[shape, ratio]
    for shape, ratio in (("0.3", "1"), ("1", "1e2"), ("30", "1e2"), ("10", "1e3")):
        direct = script["quadrature_point"](shape, ratio)
        assert abs(direct / script["reference_point"](shape, ratio)["log_losing"] - 1) < 1e-25
