"""The posterior of one annotator's beta on a grid."""

import math

import pyro.distributions as dist
import pytest
import torch

from pluralpref.errors import ConfigError, UnsupportedError
from pluralpref.inference.marginal import MonteCarlo, log_marginal_panel, panel_posterior


def tensor(x):
    return torch.tensor(x, dtype=torch.float64)


LAWS = [
    dist.LogNormal(tensor(-1.5), tensor(0.9)),
    dist.Gamma(tensor(2.0), tensor(8.0)),
    dist.Gamma(tensor(0.2), tensor(1.0)),
]
IDS = ["lognormal", "gamma", "small shape"]


def choices(pairs=24, panels=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(pairs, dtype=torch.float64, generator=generator) * 6
    return h, torch.randint(0, panels - 1, (pairs,), generator=generator)


def brute_force(law, h):
    u = torch.linspace(-200.0, 8.0, 200_001, dtype=torch.float64)
    total = law.log_prob(u.exp()) + u
    total = total + torch.nn.functional.logsigmoid(u.exp().unsqueeze(-1) * h).sum(-1)
    return u, torch.softmax(total, 0)


@pytest.mark.parametrize("law", LAWS, ids=IDS)
def test_moments_quantiles_and_density_against_brute_force(law):
    h, panel = choices()
    grid = panel_posterior(law, h, panel, 4)
    assert grid.batch_shape == (4,)
    for a in range(4):
        u, weight = brute_force(law, h[panel == a])
        mean = (weight * u.exp()).sum()
        variance = (weight * (u.exp() - mean) ** 2).sum()
        assert grid.mean()[a].item() == pytest.approx(mean.item(), rel=1e-9)
        assert grid.variance()[a].item() == pytest.approx(variance.item(), rel=1e-9)
        cumulative = torch.cumsum(weight, 0) - weight / 2
        for q in (0.025, 0.25, 0.5, 0.9, 0.999):
            value = grid.quantile(q)[a].log()
            # Between two nodes: the node above alone is off by up to a node's mass, more than the bound allows.
            j = torch.searchsorted(u, value)
            share = (value - u[j - 1]) / (u[j] - u[j - 1])
            reached = torch.lerp(cumulative[j - 1], cumulative[j], share)
            assert reached.item() == pytest.approx(q, rel=2e-3)
        beta = grid.quantile(tensor([0.1, 0.5, 0.8]))[:, a]
        log_density = torch.log(weight[torch.searchsorted(u, beta.log())] / (u[1] - u[0])) - beta.log()
        together = grid.log_prob(beta.unsqueeze(-1).expand(3, 4))[:, a]
        torch.testing.assert_close(together, log_density, rtol=0, atol=2e-3)


@pytest.mark.parametrize("law", LAWS, ids=IDS)
def test_without_choices_it_is_the_law(law):
    grid = panel_posterior(law, *choices(), 4)
    assert grid.mean()[3].item() == pytest.approx(law.mean.item(), rel=1e-10)
    assert grid.variance()[3].item() == pytest.approx(law.variance.item(), rel=1e-9)
    beta = tensor([0.05, 0.2, 0.7])
    torch.testing.assert_close(grid.log_prob(beta.unsqueeze(-1))[:, 3], law.log_prob(beta), rtol=0, atol=1e-3)
    if hasattr(law, "loc"):
        q = tensor([0.01, 0.3, 0.5, 0.99])
        torch.testing.assert_close(grid.quantile(q)[:, 3], law.icdf(q), rtol=1e-3, atol=0)


@pytest.mark.parametrize("law", LAWS, ids=IDS)
def test_draws(law):
    grid = panel_posterior(law, *choices(), 4)
    draws = grid.sample((100_000,), torch.Generator().manual_seed(1))
    assert draws.shape == (100_000, 4)
    error = (grid.variance() / 100_000).sqrt()
    assert ((draws.mean(0) - grid.mean()).abs() < 4 * error).all()
    torch.testing.assert_close(draws.var(0), grid.variance(), rtol=0.08, atol=0)
    assert ((draws < grid.quantile(0.2)).double().mean(0) - 0.2).abs().max() < 0.006
    assert torch.corrcoef(draws.T)[0, 1].abs() < 0.02
    again = grid.sample((100_000,), torch.Generator().manual_seed(1))
    assert torch.equal(draws, again)
    assert grid.sample().shape == (4,)
    assert grid.sample((2, 3)).shape == (2, 3, 4)


def test_bayes_rule_normalises():
    """log p(beta | choices) = log p(beta) + log-likelihood - log-marginal, in the same units."""
    law = LAWS[0]
    h, panel = choices()
    grid = panel_posterior(law, h, panel, 4)
    evidence = log_marginal_panel(law, h, panel, 4)
    beta = tensor([0.1, 0.2, 0.35])
    for a in range(3):
        likelihood = torch.nn.functional.logsigmoid(beta.unsqueeze(-1) * h[panel == a]).sum(-1)
        expected = law.log_prob(beta) + likelihood - evidence[a]
        torch.testing.assert_close(grid.log_prob(beta.unsqueeze(-1))[:, a], expected, rtol=0, atol=1e-3)


def test_law_of_total_expectation():
    """Over simulated annotators the posterior means average to the law's mean."""
    torch.manual_seed(3)
    law = dist.Gamma(tensor(2.0), tensor(10.0))
    people, each = 4000, 5
    beta = law.sample((people,))
    panel = torch.arange(people).repeat_interleave(each)
    h = torch.randn(people * each, dtype=torch.float64) * 10
    chosen = torch.bernoulli(torch.sigmoid(beta[panel] * h)).double()
    grid = panel_posterior(law, h, panel, people, preferred=chosen)
    means = grid.mean()
    assert abs(means.mean() - 0.2) < 4 * beta.std() / math.sqrt(people)
    explained = means.var() + grid.variance().mean()
    assert explained.item() == pytest.approx(law.variance.item(), rel=0.1)
    assert torch.corrcoef(torch.stack([means, beta]))[0, 1] > 0.4
    # The posterior is calibrated: the true value's rank is uniform.
    rank = (beta < grid.quantile(0.3)).double().mean()
    assert abs(rank - 0.3) < 4 * math.sqrt(0.21 / people)


def test_draws_of_the_parameters_and_memory_bound():
    h, panel = choices()
    shape = tensor([0.5, 2.0, 10.0]).unsqueeze(-1)
    law = dist.Gamma(shape, 4 * shape)
    grid = panel_posterior(law, h, panel, 4)
    assert grid.batch_shape == (3, 4)
    assert grid.quantile(tensor([0.1, 0.9])).shape == (2, 3, 4)
    assert grid.sample((6,)).shape == (6, 3, 4)
    alone = panel_posterior(dist.Gamma(shape[1, 0], 4 * shape[1, 0]), h, panel, 4)
    torch.testing.assert_close(grid.mean()[1], alone.mean(), rtol=1e-10, atol=0)
    bounded = panel_posterior(law, h, panel, 4, max_elements=300)
    torch.testing.assert_close(bounded.mean(), grid.mean(), rtol=1e-10, atol=0)
    torch.testing.assert_close(bounded.quantile(0.7), grid.quantile(0.7), rtol=2e-3, atol=0)


def test_more_choices_narrow_it():
    torch.manual_seed(0)
    law = LAWS[0]
    widths = []
    for pairs in (50, 5000):
        h = torch.randn(pairs, dtype=torch.float64) * 5
        chosen = torch.bernoulli(torch.sigmoid(0.3 * h))
        grid = panel_posterior(law, h, torch.zeros(pairs, dtype=torch.int64), 1, preferred=chosen)
        widths.append(grid.variance().item())
        assert abs(grid.mean().item() - 0.3) < 4 * math.sqrt(widths[-1])
    assert 50 < widths[0] / widths[1] < 200


def test_arguments_are_checked():
    h, panel = choices()
    with pytest.raises(UnsupportedError, match="quadrature"):
        panel_posterior(LAWS[0], h, panel, 4, method=MonteCarlo(4))
    with pytest.raises(ConfigError, match="quadrature"):
        panel_posterior(LAWS[0], h, panel, 4, method="monte_carlo")
    with pytest.raises(UnsupportedError, match="HalfNormal"):
        panel_posterior(dist.HalfNormal(1.0), h, panel, 4)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        panel_posterior(LAWS[0], h, panel, 4).quantile(1.2)
