"""Mixtures, point masses, scaled and negated laws: against sums by hand, high precision and brute force."""

import math

import mpmath
import pyro.distributions as dist
import pytest
import torch

from pluralpref.distributions import MixtureGeneral, Scaled, negate
from pluralpref.errors import ConfigError, UnsupportedError
from pluralpref.inference.marginal import (
    MonteCarlo,
    Quadrature,
    available_methods,
    log_marginal,
    log_marginal_panel,
    log_marginal_with_error,
)
from pluralpref.inference.marginal.dispatch import available_panel_methods


def t(*values):
    return torch.tensor(values if len(values) > 1 else values[0], dtype=torch.float64)


MARGINS = t(-700.0, -40.0, -1.0, -1e-8, 0.0, 0.3, 40.0, 700.0)


def three_kinds(weights=(0.2, 0.5, 0.3)):
    """Nobody's preference, a Gamma and a log-normal class."""
    parts = [dist.Delta(t(0.0)), dist.Gamma(t(2.0), t(20.0)), dist.LogNormal(t(-1.0), t(0.5))]
    return MixtureGeneral(dist.Categorical(t(*weights)), parts)


def opposed(share, law=None):
    law = dist.LogNormal(t(0.0), t(1.0)) if law is None else law
    return MixtureGeneral(dist.Categorical(t(1 - share, share)), [law, negate(law)])


def latent_classes(weights, values):
    return dist.MixtureSameFamily(dist.Categorical(t(*weights)), dist.Delta(t(*values)))


# -- which methods ---------------------------------------------------------------------------------------------------


def test_a_mixture_has_what_its_parts_have(opaque):
    assert available_methods(three_kinds()) == ("quadrature", "monte_carlo")
    assert available_methods(latent_classes((0.5, 0.5), (0.1, 1.0))) == ("closed_form", "monte_carlo")
    gammas = MixtureGeneral(dist.Categorical(t(0.5, 0.5)), [dist.Delta(t(1.0)), dist.Exponential(t(2.0))])
    assert available_methods(gammas) == ("closed_form", "quadrature", "monte_carlo")
    assert available_panel_methods(gammas) == ("quadrature", "monte_carlo")
    with_opaque = MixtureGeneral(dist.Categorical(t(0.5, 0.5)), [dist.Delta(t(1.0)), opaque(t(1.0))])
    assert available_methods(with_opaque) == ("monte_carlo",)
    assert available_methods(Scaled(dist.Gamma(t(1.0), t(1.0)), 2.0))[0] == "closed_form"


def test_a_mixture_with_a_part_that_nothing_integrates_is_refused():
    # Empirical has neither density nor rsample.
    part = dist.Empirical(t(1.0, 2.0), t(0.0, 0.0))
    law = MixtureGeneral(dist.Categorical(t(0.5, 0.5)), [dist.Delta(t(1.0)), part])
    assert available_methods(law) == ()
    with pytest.raises(UnsupportedError, match="MixtureGeneral has no reparameterised sampler"):
        log_marginal(law, MARGINS)


# -- values ----------------------------------------------------------------------------------------------------------


def test_latent_classes_against_high_precision():
    weights, values = (0.2, 0.5, 0.3), (0.0, 0.1, 2.5)
    for law in (
        latent_classes(weights, values),
        MixtureGeneral(dist.Categorical(t(*weights)), [dist.Delta(t(v)) for v in values]),
    ):
        found = log_marginal(law, MARGINS, "closed_form")
        with mpmath.workdps(400):
            for h, value in zip(MARGINS.tolist(), found.tolist(), strict=True):
                # The weights as the law holds them, after normalisation in logs.
                p = sum(
                    mpmath.mpf(w) / sum(map(mpmath.mpf, weights)) / (1 + mpmath.exp(-mpmath.mpf(v) * mpmath.mpf(h)))
                    for w, v in zip(weights, values, strict=True)
                )
                assert value == pytest.approx(float(mpmath.log(p)), rel=1e-13)


def test_the_probable_side_keeps_its_digits():
    law = latent_classes((0.5, 0.5), (1.0, 2.0))
    # log(1 - (e^-700 + e^-1400)/2): a sum of probabilities near 1 would give 0.
    assert float(log_marginal(law, t(700.0))) == pytest.approx(-0.5 * math.exp(-700), rel=1e-12)


def test_against_the_sum_of_parts():
    law = three_kinds()
    parts = [log_marginal(c, MARGINS).exp() for c in law.component_distributions]
    expected = sum(w * p for w, p in zip((0.2, 0.5, 0.3), parts, strict=True)).log()
    torch.testing.assert_close(log_marginal(law, MARGINS), expected, rtol=1e-12, atol=1e-15)


def test_same_family_equals_general():
    loc, scale = t(-2.0, 1.0), t(0.1, 0.4)
    same = dist.MixtureSameFamily(dist.Categorical(t(0.3, 0.7)), dist.LogNormal(loc, scale))
    parts = [dist.LogNormal(loc[k], scale[k]) for k in (0, 1)]
    general = MixtureGeneral(dist.Categorical(t(0.3, 0.7)), parts)
    torch.testing.assert_close(log_marginal(same, MARGINS), log_marginal(general, MARGINS), rtol=1e-14, atol=0)
    panel = torch.arange(8) // 4
    small = MARGINS / 100
    torch.testing.assert_close(
        log_marginal_panel(same, small, panel, 2), log_marginal_panel(general, small, panel, 2), rtol=1e-14, atol=0
    )


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_opposed_preferences(share):
    law = opposed(share)
    one = dist.LogNormal(t(0.0), t(1.0))
    expected = (1 - share) * log_marginal(one, MARGINS).exp() + share * log_marginal(one, -MARGINS).exp()
    torch.testing.assert_close(log_marginal(law, MARGINS).exp(), expected, rtol=1e-12, atol=0)
    both = log_marginal(law, MARGINS).exp() + log_marginal(law, -MARGINS).exp()
    torch.testing.assert_close(both, torch.ones_like(both), rtol=1e-14, atol=0)


def test_almost_everybody_opposed_keeps_the_digits_of_the_rare_side():
    law = negate(dist.Gamma(t(3.0), t(1.0)))
    torch.testing.assert_close(
        log_marginal(law, MARGINS), log_marginal(dist.Gamma(t(3.0), t(1.0)), -MARGINS), rtol=1e-14, atol=0
    )
    law = opposed(1 - 1e-12, dist.Delta(t(1.0)))
    rare = 1e-12 / (1 + math.exp(-50)) + (1 - 1e-12) / (1 + math.exp(50))
    assert float(log_marginal(law, t(50.0)).exp()) == pytest.approx(rare, rel=1e-4)  # 1 - (1 - 1e-12) has four digits


def test_infinite_margins_tell_the_shares_of_the_signs():
    ends = t(math.inf, -math.inf)
    torch.testing.assert_close(log_marginal(opposed(0.3), ends).exp(), t(0.7, 0.3), rtol=1e-14, atol=0)
    torch.testing.assert_close(log_marginal(three_kinds(), ends).exp(), t(0.9, 0.1), rtol=1e-14, atol=0)
    negative = 0.5 * math.erfc(0.8 / 1.7 / math.sqrt(2))
    normal = log_marginal(dist.Normal(t(0.8), t(1.7)), ends).exp()
    torch.testing.assert_close(normal, t(1 - negative, negative), rtol=1e-13, atol=0)
    assert log_marginal(dist.LogNormal(t(0.8), t(1.7)), ends).exp().tolist() == [1.0, 0.0]
    # A scaled opposed law turns with its factor.
    turned = Scaled(opposed(0.3), t(-2.0))
    torch.testing.assert_close(log_marginal(turned, ends).exp(), t(0.3, 0.7), rtol=1e-14, atol=0)


def test_a_factor_moves_to_the_margin():
    gamma = dist.Gamma(t(2.0), t(3.0))
    torch.testing.assert_close(
        log_marginal(Scaled(gamma, t(0.25)), MARGINS), log_marginal(gamma, 0.25 * MARGINS), rtol=0, atol=0
    )
    shifted = dist.TransformedDistribution(gamma, [dist.transforms.AffineTransform(t(1.0), t(0.25))])
    # With an offset there's no closed form; the general rule takes it.
    assert available_methods(shifted)[0] == "quadrature"


@pytest.mark.parametrize("base", [dist.Gamma(t(2.0), t(3.0)), dist.Weibull(t(0.5), t(1.5)), three_kinds()])
def test_one_law_with_a_factor_for_each_pair(base):
    factor = t(0.1, 1.0, 3.0, 10.0)
    law, h = Scaled(base, factor), t(-1.0, 2.0, 0.5, -0.3)
    assert law.batch_shape == (4,)
    alone = torch.stack([log_marginal(Scaled(base, c), x) for c, x in zip(factor, h, strict=True)])
    torch.testing.assert_close(log_marginal(law, h), alone, rtol=1e-9, atol=0)
    panel = torch.tensor([0, 1, 2, 3])
    torch.testing.assert_close(log_marginal_panel(law, h, panel, 4), alone, rtol=1e-9, atol=0)
    draws = law.expand(torch.Size([2, 4]))
    torch.testing.assert_close(log_marginal(draws, h), alone.expand(2, 4), rtol=1e-9, atol=0)
    torch.testing.assert_close(log_marginal_panel(draws, h, panel, 4), alone.expand(2, 4), rtol=1e-9, atol=0)


def test_monte_carlo_of_a_mixture_and_its_gradient_in_the_weights():
    torch.manual_seed(0)
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    parts = [dist.Delta(t(0.0)), dist.Gamma(t(2.0), t(20.0)), dist.LogNormal(t(-1.0), t(0.5))]
    law = MixtureGeneral(dist.Categorical(logits=logits), parts)
    h = t(-3.0, 2.0)
    exact = log_marginal(law, h)
    (expected,) = torch.autograd.grad(exact.sum(), logits, retain_graph=True)
    drawn = log_marginal(law, h, MonteCarlo(40_000))
    (found,) = torch.autograd.grad(drawn.sum(), logits)
    torch.testing.assert_close(drawn, exact, rtol=0, atol=5e-3)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)
    assert expected.abs().min() > 0.01  # a gradient that's lost would be 0


def test_what_monte_carlo_of_a_mixture_refuses():
    with pytest.raises(UnsupportedError, match="bias_correction isn't available for MixtureGeneral"):
        log_marginal(three_kinds(), MARGINS, MonteCarlo(16, bias_correction=True))
    with pytest.raises(UnsupportedError, match="bias_correction isn't available for MixtureGeneral"):
        log_marginal_panel(
            three_kinds(), t(1.0, 2.0), torch.tensor([0, 0]), 1, method=MonteCarlo(16, bias_correction=True)
        )
    with pytest.raises(ConfigError, match="bias_correction has no place here"):
        log_marginal_with_error(dist.LogNormal(t(0.0), t(1.0)), MARGINS, MonteCarlo(16, bias_correction=True))


# -- panels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", [three_kinds(), opposed(0.3), latent_classes((0.4, 0.6), (0.2, 1.5))])
def test_panels_are_sums_of_panels(law):
    torch.manual_seed(1)
    h, panel = torch.randn(40, dtype=torch.float64) * 3, torch.arange(40) % 7
    weight = torch.rand(40, dtype=torch.float64)
    preferred = torch.rand(40, dtype=torch.float64)
    found = log_marginal_panel(law, h, panel, 8, weight, preferred)
    torch.manual_seed(2)
    beta = law.sample(torch.Size([200_000]))
    logits = beta[:, None] * h
    terms = weight * (
        preferred * torch.nn.functional.logsigmoid(logits) + (1 - preferred) * torch.nn.functional.logsigmoid(-logits)
    )
    total = torch.zeros(beta.shape[0], 8, dtype=torch.float64).index_add_(1, panel, terms)
    p = total.exp()
    error = p.std(0) / p.mean(0) / math.sqrt(beta.shape[0])
    assert ((found - p.mean(0).log()).abs() <= 4.5 * error + 1e-15).all()
    assert abs(float(found[7])) < 1e-15  # nobody's choices; the shares add up to 1 but for rounding
    single = log_marginal_panel(law, h, torch.arange(40), 40)
    torch.testing.assert_close(single, log_marginal(law, h), rtol=1e-11, atol=1e-14)


def test_draws_of_the_parameters_in_panels():
    weights = t(0.2, 0.8)
    locs = torch.tensor([[-1.0], [0.5], [1.0]], dtype=torch.float64)
    stacked = MixtureGeneral(
        dist.Categorical(weights.expand(3, 1, 2)), [dist.Delta(t(0.0)), dist.LogNormal(locs, t(0.5))]
    )
    h, panel = t(-1.0, 2.0, 0.5, 1.5), torch.tensor([0, 1, 0, 1])
    rows = [
        log_marginal_panel(
            MixtureGeneral(dist.Categorical(weights), [dist.Delta(t(0.0)), dist.LogNormal(loc[0], t(0.5))]),
            h,
            panel,
            2,
        )
        for loc in locs
    ]
    torch.testing.assert_close(log_marginal_panel(stacked, h, panel, 2), torch.stack(rows), rtol=1e-13, atol=0)


# -- derivatives and errors ------------------------------------------------------------------------------------------


def test_first_and_second_derivatives(derivatives_of_jacobian):
    def value(x):
        law = MixtureGeneral(
            dist.Categorical(logits=torch.stack([x[0], torch.zeros_like(x[0]), x[1]])),
            [dist.Delta(x[2]), dist.Gamma(x[3].exp(), x[4].exp()), negate(dist.LogNormal(x[5], x[6].exp()))],
        )
        return (log_marginal(law, t(-3.0, -0.2, 0.7, 4.0)) * t(1.0, 2.0, -1.0, 0.5)).sum()

    x = t(0.3, -0.7, 0.4, 0.6, 0.1, -0.5, -0.3)
    hessian = torch.autograd.functional.hessian(value, x)
    torch.testing.assert_close(hessian, derivatives_of_jacobian(value, x, 1e-3), rtol=1e-8, atol=1e-9)
    slopes = []
    for i in range(len(x)):
        e = torch.zeros_like(x)
        e[i] = 1e-3
        slopes.append((value(x - 2 * e) - 8 * value(x - e) + 8 * value(x + e) - value(x + 2 * e)) / 12e-3)
    torch.testing.assert_close(torch.autograd.functional.jacobian(value, x), torch.stack(slopes), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("law", [three_kinds(), opposed(0.3), opposed(0.8), latent_classes((0.4, 0.6), (0.2, 1.5))])
@pytest.mark.parametrize("tolerance", [1e-2, 1e-5])
def test_the_error_of_a_mixture_bounds_the_true_one(law, tolerance):
    value, error = log_marginal_with_error(law, MARGINS, Quadrature(tolerance))
    exact = log_marginal(law, MARGINS)
    assert ((value - exact).abs() <= error + 1e-15).all()
    assert (error <= 10 * tolerance).all()


# -- the distributions themselves ------------------------------------------------------------------------------------


def test_moments_draws_and_density_of_a_mixture():
    law = three_kinds()
    torch.manual_seed(3)
    draws = law.sample(torch.Size([400_000]))
    assert float(draws.mean()) == pytest.approx(float(law.mean), rel=5e-3)
    assert float(draws.std()) == pytest.approx(float(law.stddev), rel=1e-2)
    assert float((draws == 0).double().mean()) == pytest.approx(0.2, abs=3e-3)
    at = t(0.0, 0.1, 0.5)
    torch.testing.assert_close(law.cdf(at), torch.stack([(draws <= x).double().mean() for x in at]), atol=3e-3, rtol=0)
    assert float(law.log_prob(t(0.0)).exp()) == pytest.approx(0.2, rel=1e-12)  # the atom's mass
    density = 0.5 * law.component_distributions[1].log_prob(t(0.1)).exp()
    density = density + 0.3 * law.component_distributions[2].log_prob(t(0.1)).exp()
    assert float(law.log_prob(t(0.1)).exp()) == pytest.approx(float(density), rel=1e-12)
    wide = law.expand(torch.Size([2, 3]))
    assert wide.sample().shape == (2, 3)
    assert wide.mean.shape == (2, 3)


def test_density_of_a_signed_mixture_is_zero_on_the_other_side_of_each_part():
    law = opposed(0.25)
    torch.testing.assert_close(
        law.log_prob(t(-2.0, 2.0)).exp(),
        dist.LogNormal(t(0.0), t(1.0)).log_prob(t(2.0)).exp() * t(0.25, 0.75),
        rtol=1e-14,
        atol=0,
    )
