from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pluralpref.errors import DataError
from pluralpref.inference import MixedLogit, MonteCarlo, log_marginal, log_marginal_panel
from pluralpref.models import FixedStrength, GammaStrength, LogNormalStrength

H = torch.tensor([-8.0, -1.0, 0.0, 0.5, 30.0], dtype=torch.float64)
ONE = torch.ones((), dtype=torch.float64)
LAWS = [
    dist.Gamma(torch.tensor(0.7).double(), torch.tensor(2.0).double()),
    dist.LogNormal(torch.tensor(-1.0).double(), torch.tensor(1.2).double()),
]


def brute_force(law, margins, weight=None):
    """log E of a product of sigmoids, by a fine grid in log beta."""
    u = torch.linspace(-60, 12, 200_001, dtype=torch.float64)
    terms = torch.nn.functional.logsigmoid(u.exp()[:, None] * margins)
    joint = (terms if weight is None else weight * terms).sum(1) + law.log_prob(u.exp()) + u
    return torch.logsumexp(joint, 0) + (u[1] - u[0]).log()


@pytest.mark.parametrize("law", LAWS)
def test_both_outcomes_and_soft_labels(law):
    choice = MixedLogit(law, H)
    win, lose = choice.log_prob(ONE), choice.log_prob(0 * ONE)
    torch.testing.assert_close(win.exp() + lose.exp(), torch.ones(5).double(), rtol=0, atol=1e-14)
    torch.testing.assert_close(win, log_marginal(law, H), rtol=0, atol=0)
    torch.testing.assert_close(choice.log_prob(0.3 * ONE), 0.3 * win + 0.7 * lose, rtol=1e-14, atol=0)
    torch.testing.assert_close(choice.mean, win.exp(), rtol=1e-14, atol=0)
    for i, h in enumerate(H):
        torch.testing.assert_close(win[i], brute_force(law, h[None]), rtol=1e-9, atol=1e-10)


def test_samples_plates_and_scale():
    torch.manual_seed(0)
    choice = MixedLogit(LogNormalStrength(0.5, 1.0), H)
    draws = choice.sample(torch.Size([20_000]))
    assert draws.shape == (20_000, 5)
    assert ((draws == 0) | (draws == 1)).all()
    assert (draws.double().mean(0) - choice.mean).abs().max() < 0.015

    def model():
        with pyro.plate("pairs", 5), poutine.scale(scale=2.0):
            pyro.sample("preferred", choice, obs=torch.ones(5).double())

    trace = poutine.trace(model).get_trace()
    torch.testing.assert_close(trace.log_prob_sum(), 2 * choice.log_prob(ONE).sum())


def test_nan_margins_are_refused():
    with pytest.raises(DataError, match="1"):
        MixedLogit(LAWS[0], torch.tensor([0.0, float("nan")])).log_prob(ONE)


@pytest.mark.parametrize("law", LAWS)
def test_a_panel_of_single_choices_is_the_single_path(law):
    panel = log_marginal_panel(law, H, torch.arange(5), 5)
    torch.testing.assert_close(panel, log_marginal(law, H), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("law", LAWS)
def test_panels_against_brute_force_in_any_order_and_with_weights(law):
    code = torch.tensor([0, 1, 0, 1, 0])
    exact = torch.stack([brute_force(law, H[code == a]) for a in (0, 1)])
    panel = log_marginal_panel(law, H, code, 2)
    torch.testing.assert_close(panel, exact, rtol=1e-9, atol=1e-10)
    assert (panel - torch.stack([log_marginal(law, H[code == a]).sum() for a in (0, 1)])).abs().max() > 0.01
    order = torch.tensor([4, 2, 0, 3, 1])
    torch.testing.assert_close(log_marginal_panel(law, H[order], code[order], 2), panel, rtol=1e-12, atol=0)
    twice = log_marginal_panel(law, torch.cat([H, H]), torch.cat([code, code]), 2)
    doubled = log_marginal_panel(law, H, code, 2, weight=torch.full((5,), 2.0).double())
    torch.testing.assert_close(doubled, twice, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("family", [LogNormalStrength, GammaStrength])
def test_converges_to_fixed_with_the_square_of_cv(family):
    mean = 0.4
    h = torch.tensor([-3.0, -0.5, 2.0], dtype=torch.float64)
    fixed = log_marginal(FixedStrength(mean).law(), h)
    # E[sigma(beta h)] = sigma(m h) + Var(beta) h^2 sigma''(m h) / 2 + ..., and Var(beta) = (m cv)^2.
    p = torch.sigmoid(mean * h)
    coefficient = 0.5 * (mean * h) ** 2 * p * (1 - p) * (1 - 2 * p) / p
    for cv in (1e-1, 1e-2, 1e-3):
        gap = (log_marginal(family(mean, cv).law(), h) - fixed).detach()
        torch.testing.assert_close(gap / cv**2, coefficient, rtol=0, atol=max(2 * cv, 2e-7 / cv))


def test_the_bias_of_monte_carlo_follows_its_law():
    law = LAWS[1].__class__(torch.zeros(()).double(), torch.ones(()).double())
    k, pairs = 16, 400_000
    torch.manual_seed(0)
    p = torch.sigmoid(-law.sample(torch.Size([2_000_000])))
    exact = log_marginal(law, -ONE[None])
    values = log_marginal(law, -torch.ones(pairs).double(), MonteCarlo(k))
    bias = float((values - exact).mean())
    theory = -float(p.var() / (2 * k * p.mean() ** 2))
    # The next term of the expansion is of order 1/K of the first.
    assert bias == pytest.approx(theory, abs=4 * float(values.std()) / pairs**0.5 + 0.25 * abs(theory))
    assert bias < 0.5 * theory < 0
