"""A linear reward and the spread of strengths, learned together from simulated people."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pluralpref.inference import fit_posterior, log_marginal_panel
from pluralpref.models import LogNormalStrength

PEOPLE, CHOICES, FEATURES, SEEDS = 2000, 10, 8, 5
#: What is learned is the direction of the weights; their length is as good as the mean of beta.
LENGTH = FEATURES**0.5


def simulate(cv, seed):
    """(differences of features (pairs, features), annotators): standard normal weights, strengths with mean 1."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        code = torch.arange(PEOPLE).repeat_interleave(CHOICES)
        beta = torch.ones(PEOPLE, dtype=torch.float64)
        if cv:
            beta = LogNormalStrength(mean=1.0, cv=cv).law().sample((PEOPLE,)).double()
        weight = torch.randn(FEATURES, dtype=torch.float64)
        x = torch.randn(len(code), FEATURES, dtype=torch.float64)
        utility = LENGTH * x @ (weight / weight.norm())
        chosen = torch.rand(len(code), dtype=torch.float64) < torch.sigmoid(beta[code] * utility)
        return torch.where(chosen[:, None], x, -x), code


def learn(x, code):
    """(margins, strength) by maximum likelihood: the direction of a reward, and the mean and cv of beta."""
    strength = LogNormalStrength(mean=0.5, cv=0.5)
    weight = torch.zeros(FEATURES, dtype=torch.float64) + 0.1
    weight.requires_grad_()

    def margins():
        return LENGTH * x @ (weight / weight.norm())

    optimiser = torch.optim.LBFGS([weight, *strength.parameters()], max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        loss = -log_marginal_panel(strength.law(), margins(), code, PEOPLE).sum() / len(code)
        loss.backward()
        return loss

    optimiser.step(closure)
    return margins().detach(), strength


@pytest.mark.slow
@pytest.mark.parametrize("cv", [0.0, 0.5, 1.0, 1.5])
def test_the_spread_is_learned_beside_a_reward(cv):
    learned, medians, lower, upper = [], [], [], []
    for seed in range(SEEDS):
        x, code = simulate(cv, seed)
        h, strength = learn(x, code)
        learned.append(float(strength.cv))
        posterior = fit_posterior(
            LogNormalStrength(mean=0.5),
            h,
            annotator=code.tolist(),
            method="laplace",
            num_samples=500,
            progress_bar=False,
        )
        medians.append(float(np.median(posterior.draws("beta_cv"))))
        low, high = posterior.interval("beta_cv", 0.95)
        lower.append(low)
        upper.append(high)
    assert np.abs(np.array(learned) - cv).mean() < 0.05 + 0.1 * cv
    if cv == 0:
        assert max(upper) < 0.3
    else:
        assert np.abs(np.array(medians) - cv).mean() < 0.05 + 0.1 * cv
        assert sum(a <= cv <= b for a, b in zip(lower, upper, strict=True)) >= SEEDS - 1
