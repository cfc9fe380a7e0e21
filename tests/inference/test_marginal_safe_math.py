"""Values and gradients at the extremes, against mpmath."""

import math

import mpmath as mp
import pytest
import torch

from pluralpref.inference.marginal.safe_math import absolute, log1mexp, log_mean_exp, promote


@pytest.mark.parametrize("x", [-1e-300, -1e-20, -1e-8, -0.1, -0.69, -0.6932, -1.0, -30.0, -700.0, -745.0])
def test_log1mexp_value_and_gradient(x):
    t = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    value = log1mexp(t)
    value.backward()
    with mp.workdps(350):
        expected = mp.log1p(-mp.exp(mp.mpf(x)))
        slope = -1 / mp.expm1(-mp.mpf(x))
    assert value.item() == pytest.approx(float(expected), rel=4e-16, abs=5e-324)
    assert t.grad.item() == pytest.approx(float(slope), rel=1e-15, abs=5e-324)


def test_log1mexp_at_the_ends_has_no_nan():
    x = torch.tensor([0.0, -math.inf, 1e-17, -1e-3], dtype=torch.float64, requires_grad=True)
    value = log1mexp(x)
    torch.where(value.isfinite(), value, torch.zeros_like(value)).sum().backward()
    assert value[0] == -math.inf
    assert value[1] == 0
    assert value[2] == -math.inf
    assert torch.isfinite(x.grad).all()
    assert x.grad[3].item() == pytest.approx(-1 / math.expm1(1e-3), rel=1e-14)
    # Even an upstream gradient that isn't zero gives no NaN.
    x.grad = None
    log1mexp(x).sum().backward()
    assert not torch.isnan(x.grad).any()


def test_log1mexp_second_derivative():
    x = torch.tensor([-0.01, -0.5, -0.7, -3.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(log1mexp, (x,), atol=0, rtol=1e-6)


def test_log1mexp_keeps_nan():
    assert torch.isnan(log1mexp(torch.tensor(math.nan)))


def test_absolute_has_slope_one_at_zero():
    x = torch.tensor([-2.0, 0.0, 3.0], requires_grad=True)
    absolute(x).sum().backward()
    assert absolute(x).tolist() == [2.0, 0.0, 3.0]
    assert x.grad.tolist() == [-1.0, 1.0, 1.0]


def test_log_mean_exp():
    x = torch.tensor([[-1000.0, -1001.0], [0.0, math.log(3.0)]], dtype=torch.float64)
    expected = [-1000 + math.log((1 + math.exp(-1)) / 2), math.log(2.0)]
    torch.testing.assert_close(log_mean_exp(x, -1), torch.tensor(expected, dtype=torch.float64), rtol=1e-15, atol=0)


def test_promotion_is_at_least_float32():
    assert promote(torch.bfloat16, torch.float16) == torch.float32
    assert promote(torch.float32, torch.int64) == torch.float32
    assert promote(torch.float16, torch.float64) == torch.float64
