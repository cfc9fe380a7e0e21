"""Monte Carlo: consistency, the law of its bias, independence of the draws, reproducibility."""

import math

import pyro.distributions as dist
import pytest
import torch

from pluralpref.errors import ConfigError
from pluralpref.inference.marginal import MonteCarlo, log_marginal, log_marginal_panel


def lognormal(loc=0.0, scale=1.0):
    return dist.LogNormal(torch.tensor(loc, dtype=torch.float64), torch.tensor(scale, dtype=torch.float64))


def test_bias_of_the_logarithm():
    """E[log p_K] - log p = -V/(2K) + third-order terms, V = Var(p)/p^2.

    With p_K = p (1 + e), E log(1 + e) = -m2/(2K) + m3/(3K^2) - (3 m2^2/K^2 + ...)/4 ...: m2, m3, m4 are the moments of
    sigmoid/p - 1. For h = -1 and beta ~ LogNormal(0, 1) the leading term at K = 16 is -0.0106; the next one, of order
    1/K^2, is included, and what is left out is below 1e-3 of the total here. The standard error of a mean over a
    million estimates is about 1.5e-4.
    """
    torch.manual_seed(20)
    law, count, draws = lognormal(), 1_000_000, 16
    log_p = log_marginal(law, torch.tensor(-1.0, dtype=torch.float64)).item()
    x = torch.linspace(-9, 9, 20001, dtype=torch.float64)
    weight = torch.exp(-x * x / 2)
    weight = weight / weight.sum()
    relative = torch.sigmoid(-torch.exp(x)) / math.exp(log_p) - 1
    assert abs((weight * relative).sum()) < 1e-10
    m2, m3 = ((weight * relative**k).sum().item() for k in (2, 3))
    leading = -m2 / (2 * draws)
    assert leading == pytest.approx(-0.0106, abs=1e-4)
    second = m3 / (3 * draws**2) - 3 * m2**2 / (4 * draws**2)
    estimates = torch.cat(
        [log_marginal(law, torch.full((count // 10,), -1.0, dtype=torch.float64), MonteCarlo(draws)) for _ in range(10)]
    )
    bias = estimates.mean().item() - log_p
    standard_error = estimates.std().item() / math.sqrt(count)
    assert standard_error < 2e-4
    assert abs(bias - (leading + second)) < 4 * standard_error + 2e-4
    # A unit error in K (15 or 17 draws) or a missing factor would be seen.
    assert abs(bias - leading * 2) > 20 * standard_error


def test_probability_is_unbiased_and_error_falls_with_the_root_of_the_draws():
    torch.manual_seed(1)
    law = lognormal()
    h = torch.full((20_000,), -1.0, dtype=torch.float64)
    p = log_marginal(law, h[:1]).exp().item()
    spread = []
    for draws in (16, 256):
        estimates = log_marginal(law, h, MonteCarlo(draws)).exp()
        spread.append(estimates.std().item())
        assert abs(estimates.mean().item() - p) < 4 * spread[-1] / math.sqrt(len(h))
    assert spread[0] / spread[1] == pytest.approx(4.0, rel=0.05)


def test_every_pair_has_draws_of_its_own():
    torch.manual_seed(0)
    values = log_marginal(lognormal(), torch.full((2, 50_000), -1.0, dtype=torch.float64), MonteCarlo(4))
    assert abs(torch.corrcoef(values)[0, 1]) < 0.02


def test_global_generator_repeats_the_draws():
    h = torch.randn(10)
    torch.manual_seed(3)
    first = log_marginal(dist.HalfNormal(1.0), h, MonteCarlo())
    second = log_marginal(dist.HalfNormal(1.0), h, MonteCarlo())
    torch.manual_seed(3)
    assert torch.equal(first, log_marginal(dist.HalfNormal(1.0), h, MonteCarlo()))
    assert not torch.equal(first, second)


def test_gradients_agree_with_the_exact_ones():
    torch.manual_seed(5)
    loc = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    h = torch.tensor([-1.5], dtype=torch.float64, requires_grad=True)
    law = dist.LogNormal(loc, scale)
    exact = torch.autograd.grad(log_marginal(law, h).sum(), (loc, scale, h))
    estimate = torch.autograd.grad(log_marginal(law, h, MonteCarlo(400_000)).sum(), (loc, scale, h))
    for a, b in zip(estimate, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=0.02, atol=0)


def test_shapes_and_one_draw():
    law = dist.HalfNormal(torch.ones(3, 1))
    value = log_marginal(law, torch.zeros(5), MonteCarlo(1))
    assert value.shape == (3, 5)
    torch.testing.assert_close(value, torch.full((3, 5), math.log(0.5)))


def replicate_bias(evaluate, parameters, blocks=20):
    """Mean of 20 * 20,000 estimates of (log P, its slopes) and their standard errors."""
    means = []
    for _ in range(blocks):
        value = evaluate()
        slopes = torch.autograd.grad(value.mean(), parameters)
        means.append(torch.stack([value.detach().mean(), *slopes]))
    means = torch.stack(means)
    return means.mean(0), means.std(0) / math.sqrt(blocks)


@pytest.mark.parametrize(("scale", "h"), [(1.0, -1.0), (2.0, -5.0)])
@pytest.mark.parametrize("panel", [False, True])
def test_bias_correction_takes_most_of_the_bias_away(scale, h, panel):
    """Of log P and its slopes at K = 16, for one pair and for two choices that share beta."""
    torch.manual_seed(7)
    parameters = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (0.0, scale)]
    law, count = dist.LogNormal(*parameters), 20_000
    if panel:
        codes = torch.arange(2 * count) // 2
        margins = torch.tensor([h, 0.5], dtype=torch.float64).repeat(count)
        exact = log_marginal_panel(law, margins[:2], codes[:2], 1)
    else:
        margins = torch.full((count,), h, dtype=torch.float64)
        exact = log_marginal(law, margins[:1])
    truth = torch.stack([exact.detach()[0], *torch.autograd.grad(exact[0], parameters)])

    def evaluate(method):
        return (
            log_marginal_panel(law, margins, codes, count, method=method)
            if panel
            else log_marginal(law, margins, method)
        )

    plain, plain_error = replicate_bias(lambda: evaluate(MonteCarlo(16)), parameters)
    mean, error = replicate_bias(lambda: evaluate(MonteCarlo(16, bias_correction=True)), parameters)
    bias, corrected = (plain - truth).abs(), (mean - truth).abs()
    # The value and the slope in loc, whose bias is far above its standard error; a third of it may be left.
    assert (bias[:2] > 15 * plain_error[:2]).all()
    assert (corrected[:2] < bias[:2] / 3 + 3 * error[:2]).all()
    # The slope in scale may happen to have a small bias without the correction.
    assert corrected[2] < bias[2] + 3 * (plain_error + error)[2]


def test_bias_correction_is_the_formula_and_keeps_probabilities():
    torch.manual_seed(0)
    h = torch.cat([torch.linspace(-40, 40, 201, dtype=torch.float64), torch.tensor([-1e8], dtype=torch.float64)])
    for count in (2, 3, 16):
        value = log_marginal(lognormal(0.3, 3.0), h, MonteCarlo(count, seed=5, bias_correction=True))
        # The same draws, as one law for each pair.
        torch.manual_seed(5)
        p = torch.sigmoid(lognormal(0.3, 3.0).expand(h.shape).rsample((count,)) * h)
        expected = torch.log(p.mean(0)) + p.var(0) / (2 * count * p.mean(0) ** 2)
        normal = p.mean(0) > 1e-100
        torch.testing.assert_close(value[normal], expected[normal], rtol=1e-10, atol=1e-14)
        assert (value <= 0).all()
        assert torch.isfinite(value).all()


def test_bias_correction_needs_independent_draws():
    with pytest.raises(ConfigError, match="aren't"):
        MonteCarlo(16, "antithetic", bias_correction=True)
    with pytest.raises(ConfigError, match="aren't"):
        MonteCarlo(16, "stratified", bias_correction=True)
    with pytest.raises(ConfigError, match="at least 2 draws"):
        MonteCarlo(1, bias_correction=True)
