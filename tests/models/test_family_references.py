"""The families' numbers against SciPy, high precision and brute force."""

import functools
import itertools
import math

import mpmath as mp
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.optimize
import scipy.stats
import torch
from pyro import poutine

from pluralpref.distributions import LogLogistic, MixtureGeneral, PositiveNormal, Scaled, negate
from pluralpref.distributions.truncated_normal import excess_of_ratio
from pluralpref.errors import ConfigError, DataError
from pluralpref.inference import log_marginal
from pluralpref.models import (
    CovariateStrength,
    ExponentialStrength,
    FixedStrength,
    GammaStrength,
    GroupStrength,
    HalfNormalStrength,
    InverseGammaStrength,
    LatentClassStrength,
    LogLogisticStrength,
    LogNormalStrength,
    MixtureStrength,
    NormalStrength,
    OpposedStrength,
    TruncatedNormalStrength,
    WeibullStrength,
    ZeroInflatedStrength,
)


def t(*values):
    return torch.tensor(values[0] if len(values) == 1 else values, dtype=torch.float64)


@pytest.fixture(autouse=True)
def _digits():
    with mp.workdps(30):
        yield


def close(value, exact, relative, absolute=0.0):
    error = abs(mp.mpf(float(value)) - exact)
    assert error <= relative * abs(exact) + absolute, f"{float(value)!r} instead of {mp.nstr(exact, 17)}"


# -- means and coefficients of variation ------------------------------------------------------------------------------


def hazard(r):
    return mp.sqrt(2 / mp.pi) * mp.exp(-r * r / 2) / mp.erfc(-r / mp.sqrt(2))


def weibull_moments(law):
    k, scale = mp.mpf(float(law.concentration.detach())), mp.mpf(float(law.scale.detach()))
    first, second = mp.gamma(1 + 1 / k), mp.gamma(1 + 2 / k)
    return scale * first, mp.sqrt(second / first**2 - 1)


def inverse_gamma_moments(law):
    a, rate = mp.mpf(float(law.concentration.detach())), mp.mpf(float(law.rate.detach()))
    return rate / (a - 1), 1 / mp.sqrt(a - 2)


def log_logistic_moments(law):
    scale, x = mp.mpf(float(law.scale.detach())), mp.pi / mp.mpf(float(law.concentration.detach()))
    return scale * x / mp.sin(x), mp.sqrt(mp.tan(x) / x - 1)


def truncated_normal_moments(law):
    # 30 digits less twice the logarithm of the ratio are left.
    with mp.workdps(60):
        scale, r = (
            mp.mpf(float(law.scale.detach())),
            mp.mpf(float(law.loc.detach())) / mp.mpf(float(law.scale.detach())),
        )
        h = hazard(r)
        return scale * (r + h), mp.sqrt(1 - h * (h + r)) / (r + h)


def normal_moments(law):
    return mp.mpf(float(law.loc.detach())), mp.mpf(float(law.scale.detach())) / mp.mpf(float(law.loc.detach()))


CVS = (1e-3, 0.01, 0.06, 0.062, 0.2, 0.5, 0.75, 0.9, 0.96, 0.99, 0.999)
WIDE = (1.0, 1.5, 3.0, 10.0, 50.0)
#: Family, moments of its law in high precision, cvs, and how far the law's own formula for the variance cancels.
BY_MOMENTS = {
    "weibull": (WeibullStrength, weibull_moments, CVS + WIDE, 1e-10),
    "inverse_gamma": (InverseGammaStrength, inverse_gamma_moments, CVS + WIDE, 1e-12),
    "log_logistic": (LogLogisticStrength, log_logistic_moments, CVS + WIDE, 1e-10),
    "truncated_normal": (TruncatedNormalStrength, truncated_normal_moments, (*CVS, 1 - 1e-6, 1 - 1e-10), 1e-12),
    "normal": (NormalStrength, normal_moments, CVS + WIDE, 1e-14),
}


@pytest.mark.parametrize(
    ("name", "mean", "cv"),
    [(name, mean, cv) for name, row in BY_MOMENTS.items() for cv in row[2] for mean in (0.1, 40.0)],
)
def test_mean_and_cv_come_back(name, mean, cv):
    family, moments, _, cancelled = BY_MOMENTS[name]
    strength = family(mean, cv)
    assert float(strength.mean) == pytest.approx(mean, rel=1e-13, abs=0)
    assert float(strength.cv) == pytest.approx(cv, rel=cancelled, abs=0)
    exact_mean, exact_cv = moments(strength.law())
    # A law is known to the last digit of its parameters; near both ends of the cvs' range that is what remains.
    rounding = 1e-9 if name in ("log_logistic", "inverse_gamma") and cv > 5 else 1e-12
    close(mean, exact_mean, 1e-12)
    close(cv, exact_cv, rounding)


@pytest.mark.parametrize(
    ("strength", "cv"),
    [
        (HalfNormalStrength(0.3), math.sqrt(math.pi / 2 - 1)),
        (HalfNormalStrength(scale=0.3 * math.sqrt(math.pi / 2)), math.sqrt(math.pi / 2 - 1)),
        (ExponentialStrength(0.3), 1.0),
        (ExponentialStrength(rate=1 / 0.3), 1.0),
    ],
)
def test_one_parameter_families(strength, cv):
    assert float(strength.mean) == pytest.approx(0.3, rel=1e-14)
    assert float(strength.cv) == pytest.approx(cv, rel=1e-14)


@pytest.mark.parametrize(
    ("mean", "cv", "count"),
    [(0.1, 0.5, 2), (0.1, 0.99, 2), (3.0, 1e-3, 5), (0.1, 1.4, 3), (0.2, 2.9, 10), (1.0, 7.0, 60)],
)
def test_latent_classes_have_the_mean_and_the_cv(mean, cv, count):
    strength = LatentClassStrength(mean, cv, num_classes=count)
    law = strength.law()
    values = np.array([float(c.v.detach()) for c in law.component_distributions])
    assert len(values) == count
    assert (np.diff(values) > 0).all()
    assert values[0] > 0
    assert law.mixing_distribution.probs.tolist() == pytest.approx([1 / count] * count)
    assert values.mean() == pytest.approx(mean, rel=1e-12)
    assert values.std() == pytest.approx(mean * cv, rel=1e-10)
    assert float(strength.mean) == pytest.approx(mean, rel=1e-12)
    assert float(strength.cv) == pytest.approx(cv, rel=1e-10)


def test_moments_of_composed_families():
    inner = GammaStrength(0.2, 0.5)
    zero = ZeroInflatedStrength(inner, 0.3)
    assert float(zero.mean) == pytest.approx(0.7 * 0.2, rel=1e-14)
    assert float(zero.cv) == pytest.approx(math.sqrt((1 + 0.25) / 0.7 - 1), rel=1e-13)
    opposed = OpposedStrength(GammaStrength(0.2, 0.5), 0.3)
    assert float(opposed.mean) == pytest.approx(0.4 * 0.2, rel=1e-13)
    assert float(opposed.std) == pytest.approx(0.2 * math.sqrt(1.25 - 0.4**2), rel=1e-13)
    mixture = MixtureStrength(
        [WeibullStrength(0.1, 0.5), NormalStrength(0.5, 2.0), FixedStrength(1.0)], [0.5, 0.2, 0.3]
    )
    second = 0.5 * 0.01 * 1.25 + 0.2 * 0.25 * 5 + 0.3
    mean = 0.05 + 0.1 + 0.3
    assert float(mixture.mean) == pytest.approx(mean, rel=1e-13)
    assert float(mixture.std) == pytest.approx(math.sqrt(second - mean**2), rel=1e-13)


# -- the law's own parameters and their derivatives in mean and cv ----------------------------------------------------


def weibull_parameters(mean, cv):
    spread = mp.log(1 + cv**2)
    start = mp.log(spread) / 2 - mp.mpf("0.25") if cv < 5 else mp.log(spread)

    def equation(u):
        return mp.log(mp.loggamma(1 + 2 * mp.exp(u)) - 2 * mp.loggamma(1 + mp.exp(u))) - mp.log(spread)

    x = mp.exp(mp.findroot(equation, start))
    return 1 / x, mean * mp.exp(-mp.loggamma(1 + x))


def log_logistic_parameters(mean, cv):
    start = mp.log(3 * cv**2) / 2 + mp.log(1 + cv * mp.pi / 2 / mp.sqrt(3))
    tangent = mp.exp(mp.findroot(lambda u: mp.log(mp.exp(u) / mp.atan(mp.exp(u)) - 1) - 2 * mp.log(cv), start))
    x = mp.atan(tangent)
    return mp.pi / x, mean * mp.sin(x) / x


def truncated_normal_parameters(mean, cv):
    logit = mp.log(cv**2 / (1 - cv**2))

    def equation(u):
        r = 2 * mp.sinh(u)
        h = hazard(r)
        variance, squared = 1 - h * (h + r), (h + r) ** 2
        return mp.log(variance / (squared - variance)) - logit

    r = 2 * mp.sinh(mp.findroot(equation, -logit / 2))
    scale = mean / (r + hazard(r))
    return r * scale, scale


DERIVATIVES = [
    # torch's polygamma(1, x) has nine digits, and a lognormal-like scale little curvature.
    *[
        (WeibullStrength, ("concentration", "scale"), weibull_parameters, cv, 1e-8)
        for cv in (0.03, 0.063, 0.5, 2.0, 20.0)
    ],
    *[
        (LogLogisticStrength, ("concentration", "scale"), log_logistic_parameters, cv, 1e-9)
        for cv in (0.01, 0.058, 0.5, 2.0, 20.0)
    ],
    *[
        (TruncatedNormalStrength, ("loc", "scale"), truncated_normal_parameters, cv, 1e-9)
        for cv in (0.1, 0.5, 0.9, 0.96, 0.965, 0.99, 0.9955, 0.999)
    ],
]


@pytest.mark.parametrize(("family", "names", "exact", "cv", "tolerance"), DERIVATIVES)
def test_derivatives_of_the_laws_parameters(family, names, exact, cv, tolerance):
    mean = 0.3
    strength = family(mean, cv).with_priors()
    m, c = t(mean).requires_grad_(), t(cv).requires_grad_()
    law = strength.law(parameters={"beta_mean": m, "beta_cv": c})
    with mp.workdps(40):
        M, C = mp.mpf(mean), mp.mpf(cv)
        for i, name in enumerate(names):
            # All of them are proportional to the mean, or don't depend on it.
            value = [mp.diff(lambda x, i=i: exact(M, x)[i], C, n) for n in (0, 1, 2)]
            power = 0 if name == "concentration" else 1
            found = getattr(law, name)
            g_m, g_c = torch.autograd.grad(found, (m, c), create_graph=True, materialize_grads=True)
            h_cc = torch.autograd.grad(g_c, c, retain_graph=True)[0]
            unit = abs(value[0]) + abs(value[1]) * C  # derivatives that are 0 in all digits are so up to this
            close(found, value[0], tolerance / 100)
            close(g_c, value[1], tolerance, 1e-13 * unit / C)
            close(h_cc, value[2], tolerance, 1e-12 * unit / C**2)
            close(g_m, power * value[0] / M, tolerance)
            if power:
                close(torch.autograd.grad(g_m, c, retain_graph=True)[0], value[1] / M, tolerance, 1e-13 * unit / C / M)


# -- the truncated normal ---------------------------------------------------------------------------------------------

RATIOS = (-1e3, -40.0, -15.0, -5.0 - 1e-9, -5.0, -1.0, 0.0, 3.0, 30.0)
LEVELS = (1e-6, 0.01, 0.3, 0.5, 0.9, 0.999, 1 - 1e-9)
SCALE = 0.7


def log_ndtr(x):
    return mp.log(mp.erfc(-x / mp.sqrt(2)) / 2)


def exact_quantile(loc, scale, q, start):
    """In log x, where Newton's secants can't leave the half line."""
    r = loc / scale
    target = log_ndtr(r) + mp.log(1 - q)
    return scale * mp.exp(mp.findroot(lambda u: log_ndtr(r - mp.exp(u)) - target, mp.log(start / scale)))


def positive_normal(ratio, **kwargs):
    return PositiveNormal(t(ratio * SCALE, **kwargs), t(SCALE, **kwargs))


@pytest.mark.parametrize("ratio", RATIOS)
def test_positive_normal(ratio):
    law = positive_normal(ratio)
    with mp.workdps(60):
        loc, scale = mp.mpf(float(law.loc.detach())), mp.mpf(SCALE)
        r = loc / scale
        h = hazard(r)
        close(law.mean, scale * (r + h), 1e-14)
        close(law.variance, scale**2 * (1 - h * (h + r)), 1e-12)
        close(excess_of_ratio(law.loc / law.scale), (r + h) ** 2 - 1 + h * (h + r), 1e-11)
        for q in LEVELS:
            found = law.icdf(t(q))
            exact = exact_quantile(loc, scale, mp.mpf(q), mp.mpf(float(found)))
            x = mp.mpf(float(found))
            log_density = -(((x - loc) / scale) ** 2) / 2 - mp.log(2 * mp.pi) / 2 - mp.log(scale) - log_ndtr(r)
            close(law.log_prob(found), log_density, 0, 2e-14 * (1 + abs(log_density)))
            close(law.cdf(found), 1 - mp.exp(log_ndtr(r - x / scale) - log_ndtr(r)), 1e-14, 1e-15)
            # The level's rounding, seen through the density.
            close(found, exact, 1e-13, 2e-15 / mp.exp(log_density))


@pytest.mark.parametrize("ratio", [-30.0, -5.0, 0.0, 3.0, 30.0])
def test_positive_normal_is_scipys(ratio):
    law, scipys = positive_normal(ratio), scipy.stats.truncnorm(-ratio, np.inf, loc=ratio * SCALE, scale=SCALE)
    # Without the lowest level, where SciPy has eight digits.
    x = law.icdf(t(LEVELS[1:]))
    np.testing.assert_allclose(law.log_prob(x), scipys.logpdf(x), rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(law.cdf(x), scipys.cdf(x), rtol=1e-9)
    np.testing.assert_allclose(law.mean, scipys.mean(), rtol=1e-9)


@pytest.mark.parametrize("ratio", [-1e3, -40.0, -15.0, -5.5, -4.5, 0.0, 3.0, 30.0])
def test_positive_normals_quantiles_have_two_derivatives(ratio):
    for q in (1e-3, 0.9):
        loc, scale = t(ratio * SCALE).requires_grad_(), t(SCALE).requires_grad_()
        value = PositiveNormal(loc, scale).icdf(t(q))
        first = torch.autograd.grad(value, (loc, scale), create_graph=True)
        second = [torch.autograd.grad(g, p, retain_graph=True)[0] for g in first for p in (loc, scale)]
        with mp.workdps(60):
            point, start = (mp.mpf(loc.item()), mp.mpf(SCALE)), mp.mpf(value.item())
            # At ratios of 3 and more the law is all but a normal one, whose second derivatives are 0.
            for found, order in zip((*first, *second), ((1, 0), (0, 1), (2, 0), (1, 1), (1, 1), (0, 2)), strict=True):
                exact = mp.diff(lambda m, s, q=q, start=start: exact_quantile(m, s, mp.mpf(q), start), point, order)
                close(found, exact, 1e-9, 1e-12 * value.item() / SCALE ** sum(order))


def test_positive_normals_draws_have_the_quantiles_gradient():
    loc, scale = t(-0.4, 0.3).requires_grad_(), t(0.5, 0.2).requires_grad_()

    def draws(loc, scale):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            return PositiveNormal(loc, scale).rsample((50,))

    assert torch.autograd.gradcheck(draws, (loc, scale), atol=1e-8, rtol=1e-6)
    assert bool((draws(loc, scale) > 0).all())


@pytest.mark.parametrize("ratio", [-1e8, -1e5])
def test_positive_normal_becomes_exponential(ratio):
    law = PositiveNormal(t(ratio), t(1.0))
    exponential = scipy.stats.expon(scale=-1 / ratio)
    x = t(0.01, 1.0, 5.0) / -ratio
    np.testing.assert_allclose(law.log_prob(x), exponential.logpdf(x), rtol=1e-8)
    np.testing.assert_allclose(law.cdf(x), exponential.cdf(x), rtol=1e-8)
    np.testing.assert_allclose(law.mean, -1 / ratio, rtol=1e-8)
    np.testing.assert_allclose(law.variance, ratio**-2, rtol=1e-8)


# -- the log-logistic and scaled laws ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("scale", "concentration"), [(0.2, 6.0), (3.0, 2.5), (0.1, 0.7), (1.0, 400.0)])
def test_log_logistic_is_scipys(scale, concentration):
    law, scipys = LogLogistic(t(scale), t(concentration)), scipy.stats.fisk(concentration, scale=scale)
    levels = t(1e-6, 0.1, 0.5, 0.9, 1 - 1e-6)
    x = law.icdf(levels)
    np.testing.assert_allclose(x, scipys.ppf(levels), rtol=1e-9)
    np.testing.assert_allclose(law.log_prob(x), scipys.logpdf(x), rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(law.cdf(x), scipys.cdf(x), rtol=1e-9)
    np.testing.assert_allclose(law.mean, scipys.mean() if concentration > 1 else np.inf, rtol=1e-12)
    np.testing.assert_allclose(law.variance, scipys.var() if concentration > 2 else np.inf, rtol=1e-6)
    wide = law.expand((2, 3))
    assert wide.sample().shape == (2, 3)
    assert wide.mean.shape == (2, 3)


@pytest.mark.parametrize("factor", [2.5, -0.4])
def test_scaled_laws(factor):
    law, base = Scaled(dist.InverseGamma(t(5.0), t(0.8)), t(factor)), scipy.stats.invgamma(5.0, scale=0.8)
    x = t(-3.0, -0.1, 0.0, 0.1, 3.0)
    below = base.cdf(x / factor) if factor > 0 else base.sf(x / factor)
    np.testing.assert_allclose(law.cdf(x), below, rtol=1e-10, atol=1e-15)
    assert float(law.mean) == pytest.approx(factor * base.mean(), rel=1e-13)
    assert float(law.variance) == pytest.approx(factor**2 * base.var(), rel=1e-13)
    inside = t(0.3) * factor
    assert float(law.log_prob(inside)) == pytest.approx(base.logpdf(0.3) - math.log(abs(factor)), rel=1e-12)
    assert bool(law.support.check(inside))
    assert not bool(law.support.check(-inside))
    assert law.expand((4,)).cdf(x[0]).shape == (4,)


def test_a_scaled_laws_support_with_factors_of_both_signs():
    law = Scaled(dist.Exponential(t(1.0)).expand((2,)), t(1.0, -1.0))
    assert bool(law.support.check(t(-1.0, 1.0)).all())
    np.testing.assert_allclose(law.cdf(t(-1.0, -1.0)), [0.0, math.exp(-1.0)], rtol=1e-12)


def test_negation():
    assert float(negate(dist.Delta(t(0.3))).v) == -0.3
    mixture = MixtureGeneral(dist.Categorical(t(0.3, 0.7)), [dist.Delta(t(0.5)), dist.Gamma(t(2.0), t(3.0))])
    mirror = negate(mixture)
    assert float(mirror.mean) == pytest.approx(-float(mixture.mean))
    assert float(mirror.variance) == pytest.approx(float(mixture.variance))
    assert float(mirror.log_prob(t(-0.7))) == pytest.approx(float(mixture.log_prob(t(0.7))))
    assert float(mirror.log_prob(t(-0.5))) == pytest.approx(math.log(0.3))


# -- quantiles --------------------------------------------------------------------------------------------------------


@functools.cache
def gamma(mean, cv):
    return scipy.stats.gamma(cv**-2, scale=mean * cv**2)


@functools.cache
def lognormal(mean, cv):
    s = math.sqrt(math.log1p(cv**2))
    return scipy.stats.lognorm(s, scale=mean * math.exp(-(s**2) / 2))


@functools.cache
def inverse_gamma(mean, cv):
    a = 2 + cv**-2
    return scipy.stats.invgamma(a, scale=(a - 1) * mean)


#: A family, its distribution function by SciPy, and its point masses.
COMPOSED = {
    "mixture": (
        lambda: MixtureStrength([GammaStrength(0.1, 0.5), LogNormalStrength(0.5, 0.3)], [0.4, 0.6]),
        lambda x: 0.4 * gamma(0.1, 0.5).cdf(x) + 0.6 * lognormal(0.5, 0.3).cdf(x),
        (),
    ),
    "far apart": (
        lambda: MixtureStrength([GammaStrength(1e-3, 0.1), InverseGammaStrength(20.0, 0.1)], [0.25, 0.75]),
        lambda x: 0.25 * gamma(1e-3, 0.1).cdf(x) + 0.75 * inverse_gamma(20.0, 0.1).cdf(x),
        (),
    ),
    "zero inflated": (
        lambda: ZeroInflatedStrength(InverseGammaStrength(0.2, 0.5), 0.3),
        lambda x: 0.3 * (x >= 0) + 0.7 * inverse_gamma(0.2, 0.5).cdf(x),
        (0.0,),
    ),
    "zero inflated normal": (
        lambda: ZeroInflatedStrength(NormalStrength(0.2, 0.8), 0.2),
        lambda x: 0.2 * (x >= 0) + 0.8 * scipy.stats.norm(0.2, 0.16).cdf(x),
        (0.0,),
    ),
    "opposed": (
        lambda: OpposedStrength(InverseGammaStrength(0.2, 0.5), 0.35),
        lambda x: 0.65 * inverse_gamma(0.2, 0.5).cdf(x) + 0.35 * inverse_gamma(0.2, 0.5).sf(-x),
        (),
    ),
    "opposed and indifferent": (
        lambda: OpposedStrength(ZeroInflatedStrength(GammaStrength(0.2, 0.5), 0.3), 0.35),
        lambda x: 0.3 * (x >= 0) + 0.7 * (0.65 * gamma(0.2, 0.5).cdf(x) + 0.35 * gamma(0.2, 0.5).sf(-x)),
        (0.0,),
    ),
    "fixed and others": (
        lambda: MixtureStrength([FixedStrength(0.3), GammaStrength(0.2, 0.5)], [0.5, 0.5]),
        lambda x: 0.5 * (x >= 0.3) + 0.5 * gamma(0.2, 0.5).cdf(x),
        (0.3,),
    ),
    "classes": (
        lambda: LatentClassStrength(values=[0.05, 0.6, 2.0], shares=[0.31, 0.2, 0.49]),
        lambda x: 0.31 * (x >= 0.05) + 0.2 * (x >= 0.6) + 0.49 * (x >= 2.0),
        (0.05, 0.6, 2.0),
    ),
    "opposed classes": (
        lambda: OpposedStrength(LatentClassStrength(values=[0.1, 0.4], shares=[0.6, 0.4]), 0.25),
        lambda x: 0.1 * (x >= -0.4) + 0.15 * (x >= -0.1) + 0.45 * (x >= 0.1) + 0.3 * (x >= 0.4),
        (-0.4, -0.1, 0.1, 0.4),
    ),
}
QUANTILE_LEVELS = (1e-4, 0.05, 0.22, 0.33, 0.42, 0.62, 0.8, 0.95, 0.9999)


@pytest.mark.parametrize("name", COMPOSED)
def test_quantiles_by_brute_force(name):
    build, cdf, atoms = COMPOSED[name]
    strength = build()
    several = strength.quantile(t(QUANTILE_LEVELS)).tolist()
    for q, found in zip(QUANTILE_LEVELS, several, strict=True):
        at = next((a for a in atoms if cdf(a - 1e-9) < q <= cdf(a)), None)
        if at is not None:
            # Values are stored through logarithms.
            assert found == pytest.approx(at, rel=1e-14, abs=1e-20)
        else:
            exact = scipy.optimize.brentq(lambda x, q=q: cdf(x) - q, -1e3, 1e3, xtol=1e-14 * q, rtol=1e-12)
            assert found == pytest.approx(exact, rel=1e-9)
    assert float(strength.quantile(QUANTILE_LEVELS[3])) == pytest.approx(several[3], rel=1e-13, abs=1e-20)


@pytest.mark.parametrize("name", COMPOSED)
def test_distribution_functions_of_composed_families(name):
    build, cdf, _ = COMPOSED[name]
    x = np.array([-30.0, -0.45, -0.15, -1e-3, 1e-3, 0.07, 0.33, 0.7, 2.5, 30.0])
    np.testing.assert_allclose(build().law().cdf(t(x.tolist())).detach(), cdf(x), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("strength", "scipys"),
    [
        (WeibullStrength(concentration=1.7, scale=0.3), scipy.stats.weibull_min(1.7, scale=0.3)),
        (InverseGammaStrength(0.2, 0.5), inverse_gamma(0.2, 0.5)),
        (HalfNormalStrength(scale=0.4), scipy.stats.halfnorm(scale=0.4)),
        (ExponentialStrength(0.3), scipy.stats.expon(scale=0.3)),
        (LogLogisticStrength(scale=0.2, concentration=6.0), scipy.stats.fisk(6.0, scale=0.2)),
        (TruncatedNormalStrength(loc=-0.1, scale=0.3), scipy.stats.truncnorm(1 / 3, np.inf, -0.1, 0.3)),
        (NormalStrength(0.2, 1.2), scipy.stats.norm(0.2, 0.24)),
    ],
)
def test_quantiles_are_scipys(strength, scipys):
    for q in QUANTILE_LEVELS:
        assert float(strength.quantile(q)) == pytest.approx(scipys.ppf(q), rel=1e-9)


# -- probabilities of a choice ----------------------------------------------------------------------------------------

CHOICES = {
    "weibull": (
        [(0.9, 0.3), (1.7, 0.8), (8.0, 0.05)],
        lambda k, s: WeibullStrength(concentration=k, scale=s),
        lambda b, k, s: k / s * (b / s) ** (k - 1) * mp.exp(-((b / s) ** k)),
    ),
    "inverse_gamma": (
        [(1.5, 0.3), (5.0, 1.0), (60.0, 6.0)],
        lambda a, r: InverseGammaStrength(concentration=a, rate=r),
        lambda b, a, r: r**a / mp.gamma(a) * b ** (-a - 1) * mp.exp(-r / b),
    ),
    "log_logistic": (
        [(0.2, 6.0), (1.0, 1.4), (0.1, 30.0)],
        lambda s, k: LogLogisticStrength(scale=s, concentration=k),
        lambda b, s, k: k / b / ((b / s) ** (k / 2) + (b / s) ** (-k / 2)) ** 2,
    ),
    "truncated_normal": (
        [(-0.1, 0.3), (0.5, 0.1), (-20.0, 2.0)],
        lambda m, s: TruncatedNormalStrength(loc=m, scale=s),
        lambda b, m, s: mp.npdf(b, m, s) / mp.ncdf(m / s),
    ),
    "half_normal": (
        [(0.4,), (2.0,)],
        lambda s: HalfNormalStrength(scale=s),
        lambda b, s: 2 * mp.npdf(b, 0, s),
    ),
    "exponential": ([(4.0,)], lambda r: ExponentialStrength(rate=r), lambda b, r: r * mp.exp(-r * b)),
    "normal": (
        [(-0.1, 0.3), (0.5, 0.1), (0.0, 0.6)],
        lambda m, s: NormalStrength(loc=m, scale=s),
        lambda b, m, s: mp.npdf(b, m, s),
    ),
}
CHOICE_MARGINS = (-60.0, -1.0, 0.3, 25.0)


def exact_probability(density, median, margin, signed):
    """By quadrature over log |beta|, in pieces that are short beside any of the laws."""

    def integrand(x, sign):
        b = sign * mp.exp(x)
        return density(b) * abs(b) / (1 + mp.exp(-b * margin))

    centre = mp.log(abs(median))
    pieces = [centre + k for k in (-50, -30, -20, -14, -10, -7, -5, -4, -3, -2.5, -2, -1.5, -1, -0.5)]
    pieces += [centre + k for k in (-0.25, 0, 0.25, 0.5, 1, 1.5, 2, 2.5, 3, 4, 5, 7, 10, 15, 22, 30, 40)]
    return sum(
        mp.quad(lambda x, sign=sign: integrand(x, sign), pieces, method="gauss-legendre")
        for sign in ((1, -1) if signed else (1,))
    )


@pytest.mark.parametrize(
    ("name", "parameters"), [(name, parameters) for name, row in CHOICES.items() for parameters in row[0]]
)
def test_probabilities_of_a_choice(name, parameters):
    _, build, density = CHOICES[name]
    strength = build(*parameters)
    median = float(strength.quantile(0.9 if name == "normal" else 0.5))
    exact_parameters = [mp.mpf(float(p.detach())) for p in strength.learned().values()]
    values = log_marginal(strength.law(), t(CHOICE_MARGINS)).exp()
    with mp.workdps(20):
        for margin, value in zip(CHOICE_MARGINS, values, strict=True):
            exact = exact_probability(lambda b: density(b, *exact_parameters), median, margin, name == "normal")
            close(value, exact, 1e-10)


# -- covariates and groups --------------------------------------------------------------------------------------------


def with_weights(strength, *weights):
    with torch.no_grad():
        strength.weight_unconstrained.copy_(t(weights))
    return strength


def test_features_multiply_the_mean():
    strength = with_weights(CovariateStrength(["length", "difficulty"], GammaStrength(0.2, 0.5)), 0.5, -0.3)
    x = t([0.0, 0.0], [1.0, 0.0], [2.0, -1.0])
    law = strength.law(x)
    np.testing.assert_allclose(law.mean.detach(), 0.2 * np.exp([0.0, 0.5, 1.3]), rtol=1e-13)
    np.testing.assert_allclose((law.stddev / law.mean).detach(), 0.5, rtol=1e-13)
    assert float(strength.mean) == pytest.approx(0.2, rel=1e-13)
    h = t(1.0, -2.0, 3.0)
    alone = [
        log_marginal(GammaStrength(0.2 * math.exp(f), 0.5).law(), m) for f, m in zip((0.0, 0.5, 1.3), h, strict=True)
    ]
    np.testing.assert_allclose(log_marginal(law, h).detach(), [float(a) for a in alone], rtol=1e-10)


def test_a_network_of_features_is_0_at_0():
    strength = with_weights(CovariateStrength(2, LogNormalStrength(0.2, 0.5), hidden=3), 0.7, -0.4, 0.2)
    x = t([0.0, 0.0], [1.0, -0.5])
    inner, offset = strength.inner.detach().numpy(), strength.offset.detach().numpy()
    by_hand = (np.tanh(x.numpy() @ inner.T + offset) - np.tanh(offset)) @ np.array([0.7, -0.4, 0.2])
    assert by_hand[0] == 0
    assert by_hand[1] != 0
    np.testing.assert_allclose(strength.log_factor(x).detach(), by_hand, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(strength.law(x).mean.detach(), 0.2 * np.exp(by_hand), rtol=1e-12)
    again = CovariateStrength(2, hidden=3)
    assert torch.equal(again.inner, strength.inner)


def test_features_that_start_at_0_change_nothing():
    strength = CovariateStrength(2, WeibullStrength(0.2, 0.5))
    np.testing.assert_allclose(strength.law(t([3.0, -1.0], [0.5, 2.0])).mean.detach(), 0.2, rtol=1e-13)


def test_context_from_columns():
    strength = CovariateStrength(["a", "b"])
    assert strength.context_columns == ("a", "b")
    context = strength.make_context({"b": [3, 4], "a": [1, 2.5], "other": ["x", "y"]})
    assert context.tolist() == [[1.0, 3.0], [2.5, 4.0]]
    groups = GroupStrength(["north", 2], column="region")
    assert groups.make_context({"region": ["2", "north", 2]}).tolist() == [1, 0, 1]


def test_groups_have_their_effects():
    strength = GroupStrength(["x", "y", "z"], LogNormalStrength(0.2, 0.5), scale=0.4)
    codes, effect = torch.tensor([2, 0, 1, 0]), t(1.0, -2.0, 0.5)
    expected = 0.2 * np.exp(0.4 * np.array([0.5, 1.0, -2.0, 1.0]))
    given = strength.law(codes, parameters={"effect": effect})
    conditioned = poutine.condition(strength, data={"effect": effect})(codes)
    for law in (given, conditioned):
        np.testing.assert_allclose(law.mean.detach(), expected, rtol=1e-13)
        np.testing.assert_allclose((law.stddev / law.mean).detach(), 0.5, rtol=1e-13)
    # Their prior's mean is 0, and so is the effect that a law without a context has.
    np.testing.assert_allclose(strength.law(codes).mean.detach(), 0.2, rtol=1e-13)
    assert float(strength.law(parameters={"effect": effect}).mean) == pytest.approx(0.2, rel=1e-13)
    prior = strength.priors()["effect"]
    assert prior.event_shape == (3,)
    assert float(prior.log_prob(effect)) == pytest.approx(scipy.stats.norm.logpdf(effect).sum(), rel=1e-12)
    many = strength.law(codes, parameters={"effect": torch.stack([effect, 0 * effect])})
    np.testing.assert_allclose(many.mean.detach(), np.stack([expected, [0.2] * 4]), rtol=1e-13)


# -- priors instead of numbers ----------------------------------------------------------------------------------------

PRIOR = dist.LogNormal(t(-2.0), t(0.3))
UNIT = dist.Beta(t(2.0), t(3.0))
WITH_PRIORS = {
    "weibull": (lambda: WeibullStrength(PRIOR, 0.5), "beta_mean", WeibullStrength, (0.3, 0.5)),
    "inverse_gamma": (lambda: InverseGammaStrength(0.1, PRIOR), "beta_cv", InverseGammaStrength, (0.1, 0.3)),
    "log_logistic": (lambda: LogLogisticStrength(PRIOR, 0.5), "beta_mean", LogLogisticStrength, (0.3, 0.5)),
    "truncated_normal": (lambda: TruncatedNormalStrength(0.1, UNIT), "beta_cv", TruncatedNormalStrength, (0.1, 0.3)),
    "half_normal": (lambda: HalfNormalStrength(PRIOR), "beta_mean", HalfNormalStrength, (0.3,)),
    "exponential": (lambda: ExponentialStrength(PRIOR), "beta_mean", ExponentialStrength, (0.3,)),
    "normal": (lambda: NormalStrength(0.1, PRIOR), "beta_cv", NormalStrength, (0.1, 0.3)),
    "zero_inflated": (
        lambda: ZeroInflatedStrength(share=UNIT),
        "share",
        lambda share: ZeroInflatedStrength(share=share),
        (0.3,),
    ),
    "opposed": (lambda: OpposedStrength(share=UNIT), "share", lambda share: OpposedStrength(share=share), (0.3,)),
}


@pytest.mark.parametrize("name", WITH_PRIORS)
def test_a_prior_instead_of_a_number(name):
    build, parameter, family, numbers = WITH_PRIORS[name]
    strength = build()
    assert set(strength.priors()) == {parameter}
    assert parameter not in strength.learned()
    h = t(-3.0, 0.5, 8.0)
    fixed = log_marginal(family(*numbers).law(), h)
    torch.testing.assert_close(log_marginal(strength.law(parameters={parameter: t(0.3)}), h), fixed, rtol=1e-12, atol=0)
    # Without a value, the mean of the prior.
    mean = strength.priors()[parameter].mean
    other = log_marginal(strength.law(parameters={parameter: mean}), h)
    torch.testing.assert_close(log_marginal(strength.law(), h), other, rtol=1e-12, atol=0)
    drawn = poutine.trace(strength).get_trace()
    assert parameter in drawn.nodes
    draws = strength.law(parameters={parameter: t(0.2, 0.3)})
    assert draws.batch_shape == (2,)
    torch.testing.assert_close(log_marginal(draws, h[:1])[1], fixed[0], rtol=1e-10, atol=0)


def test_priors_of_shares_and_of_the_spread_between_groups():
    shares = MixtureStrength([FixedStrength(0.1), FixedStrength(0.3)], dist.Dirichlet(t(1.0, 3.0)))
    assert float(shares.law().mean) == pytest.approx(0.25 * 0.1 + 0.75 * 0.3)
    assert float(shares.law(parameters={"shares": t(0.5, 0.5)}).mean) == pytest.approx(0.2)
    groups = GroupStrength(2, scale=dist.HalfNormal(t(1.0)))
    assert set(groups.priors()) == {"effect", "scale"}
    law = groups.law(torch.tensor([0, 1]), parameters={"scale": t(2.0), "effect": t(0.5, -0.5)})
    np.testing.assert_allclose(law.mean.detach(), 0.1 * np.exp([1.0, -1.0]), rtol=1e-13)


# -- refusals ---------------------------------------------------------------------------------------------------------

FAMILIES_WITH_TWO = [
    (WeibullStrength, "concentration", "scale"),
    (InverseGammaStrength, "concentration", "rate"),
    (LogLogisticStrength, "scale", "concentration"),
    (TruncatedNormalStrength, "loc", "scale"),
    (NormalStrength, "loc", "scale"),
]


@pytest.mark.parametrize(("family", "first", "second"), FAMILIES_WITH_TWO)
def test_two_ways_are_not_mixed(family, first, second):
    name = family.__name__
    with pytest.raises(ConfigError, match=f"{name}: give mean and cv, or {first} and {second}, not a mixture of both"):
        family(0.1, **{first: 1.0, second: 1.0})
    with pytest.raises(ConfigError, match=f"{name}: {first} was given without {second}"):
        family(**{first: 1.0})
    with pytest.raises(ConfigError, match=f"{name}: {second} was given without {first}"):
        family(**{second: 1.0})
    with pytest.raises(ConfigError, match=f"{name}: cv=0 is a point mass; use FixedStrength"):
        family(0.1, 0)
    with pytest.raises(ConfigError, match=r"beta_mean=-1: must be greater than 0"):
        family(-1, 0.5)
    with pytest.raises(ConfigError, match=r"beta_mean='x': give a number \(learned\) or a Pyro distribution"):
        family("x", 0.5)
    with pytest.raises(ConfigError, match=r"beta_mean=nan: must be finite"):
        family(math.nan, 0.5)
    with pytest.raises(ConfigError, match=f"{second}=-2.0: must be greater than 0"):
        family(**{first: 1.0, second: -2.0})


class NotAStrength:
    def __repr__(self):
        return "a number"


CONFIG_ERRORS = [
    (lambda: HalfNormalStrength(0.1, scale=1.0), "HalfNormalStrength: give mean or scale, not both"),
    (lambda: HalfNormalStrength(scale=0.0), "scale=0.0: must be greater than 0"),
    (lambda: ExponentialStrength(0.1, rate=1.0), "ExponentialStrength: give mean or rate, not both"),
    (lambda: ExponentialStrength(-1), "beta_mean=-1: must be greater than 0"),
    (lambda: TruncatedNormalStrength(0.1, 1.0), "cv=1.0 is out of reach, this family's cv lies between 0 and 1"),
    (lambda: TruncatedNormalStrength(0.1, t(1.0)), "is out of reach, this family's cv lies between 0 and 1"),
    (lambda: TruncatedNormalStrength(0.1, -0.5), "cv=-0.5 is out of reach"),
    (lambda: LatentClassStrength(shares=[0.5, 0.5]), "shares were given without values"),
    (lambda: LatentClassStrength(0.1, values=[1.0, 2.0]), "give mean, cv and num_classes, or values, not both"),
    (lambda: LatentClassStrength(num_classes=3, values=[1.0, 2.0]), "not both"),
    (lambda: LatentClassStrength(values=[2.0, 1.0]), "must be 2 or more increasing numbers"),
    (lambda: LatentClassStrength(values=[1.0, 1.0]), "must be 2 or more increasing numbers"),
    (lambda: LatentClassStrength(values=[1.0]), "must be 2 or more increasing numbers"),
    (lambda: LatentClassStrength(values=[0.0, 1.0]), "must be greater than 0"),
    (lambda: LatentClassStrength(values=[1.0, 2.0], shares=[0.5, 0.6]), "must be 2 positive numbers that add up to 1"),
    (lambda: LatentClassStrength(values=[1.0, 2.0], shares=[0.0, 1.0]), "must be 2 positive numbers that add up to 1"),
    (lambda: LatentClassStrength(values=[1.0, 2.0], shares=[1.0]), "must be 2 positive numbers that add up to 1"),
    (lambda: LatentClassStrength(num_classes=1), "num_classes=1 must be an integer of at least 2"),
    (lambda: LatentClassStrength(num_classes=True), "num_classes=True must be an integer"),
    (lambda: LatentClassStrength(num_classes=2.0), "num_classes=2.0 must be an integer"),
    (lambda: LatentClassStrength(cv=1.0), r"cv=1.0 is out of reach for 2 classes of equal shares.*sqrt\(1\) = 1;"),
    (lambda: LatentClassStrength(cv=-1.0), "cv=-1.0: must be greater than 0"),
    (lambda: LatentClassStrength(PRIOR), "mean=LogNormal.*: give a number"),
    (lambda: MixtureStrength([GammaStrength()]), "must be two or more strength models"),
    (lambda: MixtureStrength([GammaStrength(), 3]), "must be two or more strength models"),
    (lambda: MixtureStrength([GammaStrength()] * 2), "the same strength model is given twice"),
    (lambda: MixtureStrength([GammaStrength(), GammaStrength()], [0.5]), "must be 2 positive numbers that add up to 1"),
    (lambda: MixtureStrength([GammaStrength(), GammaStrength()], [0.5, 0.6]), "must be 2 positive numbers"),
    (lambda: MixtureStrength([GammaStrength(), GammaStrength()], [0.0, 1.0]), "must be 2 positive numbers"),
    (lambda: MixtureStrength([GammaStrength(), GammaStrength()], t(0.2, 0.3, 0.5)), "must be 2 positive numbers"),
    (lambda: MixtureStrength([GammaStrength(), GammaStrength()], dist.Dirichlet(torch.ones(3))), "a prior of as many"),
    (lambda: ZeroInflatedStrength(share=0.0), "ZeroInflatedStrength: share=0.0 must lie between 0 and 1"),
    (lambda: ZeroInflatedStrength(share=1), "ZeroInflatedStrength: share=1 must lie between 0 and 1"),
    (lambda: ZeroInflatedStrength(NotAStrength()), "strength=a number must be a strength model"),
    (lambda: OpposedStrength(share=1.5), "OpposedStrength: share=1.5 must lie between 0 and 1"),
    (lambda: OpposedStrength(share=t(-0.1)), "must lie between 0 and 1"),
    (lambda: OpposedStrength(NotAStrength()), "OpposedStrength: strength=a number must be a strength model"),
    (lambda: CovariateStrength(0), "features=0 must be column names, all different, or their number"),
    (lambda: CovariateStrength("length"), "features='length' must be column names"),
    (lambda: CovariateStrength(["a", "a"]), "must be column names, all different"),
    (lambda: CovariateStrength(2, hidden=0), "hidden=0 must be at least 1, or None for a linear function"),
    (lambda: CovariateStrength(2, NotAStrength()), "CovariateStrength: strength=a number must be a strength model"),
    (
        lambda: CovariateStrength(["y", "x"], CovariateStrength(["x"])),
        "the column 'x' is used by the CovariateStrength within it as well",
    ),
    (lambda: GroupStrength(1), "groups=1 must be two or more labels, all different"),
    (lambda: GroupStrength("north"), "groups='north' must be two or more labels"),
    (lambda: GroupStrength(["a", "a"]), "must be two or more labels, all different"),
    (lambda: GroupStrength([1, "1"]), "must be two or more labels, all different"),
    (lambda: GroupStrength(2, scale=0), "scale=0: must be greater than 0"),
    (lambda: GroupStrength(2, NotAStrength()), "GroupStrength: strength=a number must be a strength model"),
    (
        lambda: GroupStrength(2, ZeroInflatedStrength(GroupStrength(2))),
        "GroupStrength: the column 'group' is used by the ZeroInflatedStrength within it as well",
    ),
    (
        lambda: MixtureStrength([CovariateStrength(1), GroupStrength(2)]).context_columns,
        r"made of 2 strength models with a context of their own \(CovariateStrength, GroupStrength\)",
    ),
    (lambda: GroupStrength(2).law(parameters={"scale": t(1.0)}), "scale is no parameter with a prior"),
    (lambda: MixtureGeneral(dist.Categorical(t(0.5, 0.5)), [dist.Delta(t(1.0))]), "2 probabilities for 1 components"),
    (
        lambda: MixtureGeneral(dist.Categorical(t(1.0).reshape(1)), [dist.Dirichlet(t(1.0, 1.0))]),
        r"component 0 \(Dirichlet\) has event shape \(2,\)",
    ),
]
DATA_ERRORS = [
    (lambda: CovariateStrength(["a", "b"]).law(torch.ones(2, 3)), r"shape \(pairs, 2\), .*of a, b; got \(2, 3\)"),
    (lambda: CovariateStrength(["a", "b"]).law([1, 2]), "got list"),
    (lambda: CovariateStrength(["a"]).make_context({"a": [1, 2, math.inf]}), "column 'a': row 2 of a batch is inf"),
    (lambda: CovariateStrength(["a"]).make_context({"a": [1, math.nan]}), "column 'a': row 1 of a batch is nan"),
    (lambda: CovariateStrength(["a"]).make_context({"a": [1, "x"]}), "column 'a' must hold numbers.*'x'"),
    (lambda: CovariateStrength(["a"]).make_context({"a": [None]}), "column 'a' must hold numbers, one for each pair"),
    (lambda: CovariateStrength(["a"]).make_context({"c": [1]}), "no column 'a', which CovariateStrength needs.* c"),
    (lambda: CovariateStrength(["a", "b"]).make_context({"a": [1, 2], "b": [1]}), "'b' has 1 values, but 'a' has 2"),
    (lambda: GroupStrength(3).law(torch.tensor([0, 3])), "integer codes from 0 to 2"),
    (lambda: GroupStrength(3).law(torch.tensor([-1])), "integer codes from 0 to 2"),
    (lambda: GroupStrength(3).law(t(0.0, 1.0)), "integer codes from 0 to 2"),
    (
        lambda: GroupStrength(["x", "y"], column="place").make_context({"place": ["x", "z"]}),
        "column 'place': row 1 of a batch has the label 'z', which is none of the groups x, y",
    ),
    (lambda: GroupStrength(2).make_context({"c": [1]}), "no column 'group', which GroupStrength needs.* c"),
]


@pytest.mark.parametrize(
    ("kind", "build", "message"),
    [
        (kind, *row)
        for kind, row in itertools.chain(
            zip(itertools.repeat(ConfigError), CONFIG_ERRORS), zip(itertools.repeat(DataError), DATA_ERRORS)
        )
    ],
)
def test_refusals(kind, build, message):
    with pytest.raises(kind, match=message):
        build()


def test_nothing_is_left_in_the_store():
    assert len(pyro.get_param_store()) == 0
