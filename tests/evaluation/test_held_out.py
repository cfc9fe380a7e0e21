from __future__ import annotations

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch

from pluralpref.errors import ConfigError, DataError
from pluralpref.evaluation import calibration_table, held_out_metrics
from pluralpref.models import FixedStrength, LogNormalStrength


def test_by_hand():
    margins = [2.0, -1.0, 0.0, 1.0]
    result = held_out_metrics(
        FixedStrength(0.5), margins, annotator=["a", "a", "a", "b"], groups={"topic": ["x", "y", "x", "y"]}
    )
    loss = sum(math.log1p(math.exp(-0.5 * h)) for h in margins) / 4
    assert result["log_loss"] == pytest.approx(loss)
    assert result["accuracy"] == 0.5
    assert result["ties"] == 0.25
    assert result["margins"] == pytest.approx(0.5)
    assert result["margins/macro"] == pytest.approx((1 / 3 + 1.0) / 2)
    assert result["accuracy/macro"] == pytest.approx((1 / 3 + 1.0) / 2)
    assert result["rewards/margins"] == pytest.approx(0.25)
    assert result["group/topic=x/margins"] == pytest.approx(1.0)
    assert result["group/topic=y/accuracy"] == pytest.approx(0.5)
    assert result["margins/macro/topic"] == pytest.approx(0.5)
    assert (result["pairs"], result["annotators"], result["beta/mean"]) == (4, 2, pytest.approx(0.5))


def test_weights_and_labels():
    plain = held_out_metrics(FixedStrength(0.5), [1.0, 1.0, -2.0])
    weighted = held_out_metrics(FixedStrength(0.5), [1.0, -2.0], weight=[2.0, 1.0])
    turned = held_out_metrics(FixedStrength(0.5), [-1.0, 2.0], weight=[2.0, 1.0], preferred=[0.0, 0.0])
    for name in ("log_loss", "accuracy", "margins", "ties"):
        assert plain[name] == pytest.approx(weighted[name])
        assert turned[name] == pytest.approx(weighted[name])
    soft = held_out_metrics(FixedStrength(0.5), [1.0], preferred=[0.75])
    assert soft["accuracy"] == 0.75
    assert soft["margins"] == pytest.approx(0.5)
    assert soft["log_loss"] == pytest.approx(0.75 * math.log1p(math.exp(-0.5)) + 0.25 * math.log1p(math.exp(0.5)))


def test_mixed_law_by_quadrature():
    u = torch.linspace(-12, 6, 4001, dtype=torch.float64)
    law = LogNormalStrength(mean=1.0, cv=1.0).law()
    p = (torch.sigmoid(-1.5 * u.exp()) * law.log_prob(u.exp()).exp() * u.exp()).sum() * (u[1] - u[0])
    assert held_out_metrics(law, [-1.5])["log_loss"] == pytest.approx(-float(p.detach().log()), rel=1e-8)


def test_monte_carlo_leaves_the_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    law = dist.Weibull(torch.tensor(1.0), torch.tensor(2.0))
    first = held_out_metrics(law, [0.3, -0.2])
    assert first == held_out_metrics(law, [0.3, -0.2])
    assert torch.equal(before, torch.get_rng_state())


def test_bad_input():
    with pytest.raises(DataError, match=r"margins: 1 of 2 .*row 1: nan"):
        held_out_metrics(FixedStrength(0.5), [1.0, float("nan")])
    with pytest.raises(ConfigError, match="not float"):
        held_out_metrics(0.5, [1.0])
    with pytest.raises(DataError, match="topic has 1 entries"):
        held_out_metrics(FixedStrength(0.5), [1.0, 2.0], groups={"topic": ["x"]})
    with pytest.raises(ConfigError, match="one law for all pairs"):
        held_out_metrics(dist.Gamma(torch.ones(2), torch.ones(2)), [1.0, 2.0])


def test_calibration_of_the_true_law():
    torch.manual_seed(0)
    law = LogNormalStrength(mean=1.0, cv=0.8).law()
    utility = 2 * torch.randn(20_000, dtype=torch.float64)
    chosen = torch.bernoulli(torch.sigmoid(law.sample((20_000,)) * utility))
    margins = torch.where(chosen == 1, utility, -utility)
    table = calibration_table(law, margins, bins=8)
    assert table["count"].sum() == 20_000
    assert (np.abs(table["observed"] - table["predicted"]) < 4 * table["standard_error"]).all()
    assert (np.diff(table["predicted"]) > 0).all()
    wrong = calibration_table(FixedStrength(1.0), margins, bins=8)
    assert (np.abs(wrong["observed"] - wrong["predicted"]) > 4 * wrong["standard_error"]).any()
    with pytest.raises(DataError, match="every margin is 0"):
        calibration_table(law, [0.0, 0.0])
