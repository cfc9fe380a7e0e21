"""What holds for every law and margin, looked for by hypothesis."""

import math

import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pluralpref.distributions import MixtureGeneral
from pluralpref.inference.marginal import log_marginal

settings.register_profile("marginal", max_examples=60, deadline=None)
settings.load_profile("marginal")

log_margin = st.floats(-12, 12)
sign = st.sampled_from([-1.0, 1.0])


def tensor(x):
    return torch.tensor(x, dtype=torch.float64)


@st.composite
def laws(draw):
    """(a function of a factor c that gives the law of c beta, the law's own mean)."""
    kind = draw(st.sampled_from(["gamma", "lognormal", "weibull", "classes", "zero-inflated"]))
    if kind == "weibull":  # by the general rule
        k, scale = 10 ** draw(st.floats(-0.2, 1)), 10 ** draw(st.floats(-2, 2))
        return lambda c: dist.Weibull(tensor(scale * c), tensor(k))
    if kind == "classes":
        values = [10**x for x in draw(st.lists(st.floats(-4, 4), min_size=2, max_size=4))]
        shares = dist.Categorical(logits=tensor([float(i) for i in range(len(values))]))
        return lambda c: dist.MixtureSameFamily(shares, dist.Delta(tensor(values) * c))
    if kind == "zero-inflated":
        m, s, share = draw(st.floats(-5, 5)), 10 ** draw(st.floats(-2, 0.6)), draw(st.floats(0.01, 0.9))
        return lambda c: MixtureGeneral(
            dist.Categorical(tensor([share, 1 - share])),
            [dist.Delta(tensor(0.0)), dist.LogNormal(tensor(m + math.log(c)), tensor(s))],
        )
    if kind == "gamma":
        a, b = 10 ** draw(st.floats(-2, 4)), 10 ** draw(st.floats(-4, 4))
        return lambda c: dist.Gamma(tensor(a), tensor(b / c))
    m, s = draw(st.floats(-5, 5)), 10 ** draw(st.floats(-2, 0.6))
    return lambda c: dist.LogNormal(tensor(m + math.log(c)), tensor(s))


@given(laws(), log_margin)
def test_the_two_probabilities_add_up_to_one(law, x):
    h = tensor([math.exp(x), -math.exp(x)])
    p = log_marginal(law(1.0), h).exp()
    assert abs(p.sum().item() - 1) <= 4 * torch.finfo(torch.float64).eps


@given(laws())
def test_no_margin_is_a_coin(law):
    assert log_marginal(law(1.0), tensor([0.0])).item() == pytest.approx(math.log(0.5), rel=3e-14)


@given(laws(), log_margin, sign, st.floats(1.001, 3.0))
def test_increasing_in_the_margin(law, x, s, factor):
    small = s * math.exp(x)
    h = tensor(sorted([small, small * factor]))
    low, high = log_marginal(law(1.0), h).tolist()
    # Near 0 the difference may be below rounding.
    assert low < high or (low == high and abs(low) < 1e-290) or abs(high - low) < 1e-13


@given(laws(), log_margin, sign, st.floats(-8, 8))
def test_only_the_product_of_beta_and_margin_matters(law, x, s, log_c):
    h, c = s * math.exp(x), math.exp(log_c)
    a = log_marginal(law(1.0), tensor(h)).item()
    b = log_marginal(law(c), tensor(h / c)).item()
    assert a == pytest.approx(b, rel=1e-11, abs=1e-290)


@given(laws(), log_margin, sign)
def test_gradient_in_the_margin_is_finite_and_positive(law, x, s):
    h = tensor(s * math.exp(x)).requires_grad_()
    value = log_marginal(law(1.0), h)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(h.grad)
    assert h.grad >= 0


@given(laws(), st.floats(-3, 3), sign)
def test_mixing_is_bounded_by_a_coin_and_by_the_sure_choice(law, x, s):
    p = log_marginal(law(1.0), tensor(s * math.exp(x))).exp().item()
    assert (0.5 <= p <= 1) if s > 0 else (0 <= p <= 0.5)


@pytest.mark.parametrize("family", ["gamma", "lognormal"])
@pytest.mark.parametrize("h", [-30.0, -4.0, 2.0, 15.0])
def test_limit_of_no_heterogeneity(family, h):
    """log P = log s(m h) + 1/2 Var(beta) s''(m h) h^2 / s(m h) + O(cv^3), with Var = m^2 cv^2."""
    mean = 0.2

    def value(cv):
        if family == "gamma":
            law = dist.Gamma(tensor(cv**-2), tensor(cv**-2 / mean))
        else:
            variance = math.log1p(cv**2)
            law = dist.LogNormal(tensor(math.log(mean) - variance / 2), tensor(math.sqrt(variance)))
        return log_marginal(law, tensor(h)).item()

    x = tensor(mean * h)
    limit = torch.nn.functional.logsigmoid(x).item()
    p = torch.sigmoid(x).item()
    coefficient = 0.5 * (mean * h) ** 2 * (1 - p) * (1 - 2 * p)
    errors = []
    for cv in (0.02, 0.01):
        errors.append((value(cv) - limit) / cv**2 - coefficient)
    # The rest falls with cv^2 (the third cumulants are of order cv^4): a quarter at half the cv.
    assert abs(errors[1]) < 0.01 * max(1.0, abs(coefficient))
    assert errors[1] / errors[0] == pytest.approx(0.25, rel=0.15)
