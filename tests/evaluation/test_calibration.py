from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pluralpref.errors import ConfigError, DataError
from pluralpref.evaluation import calibration_scores, calibration_table, pair_scores, reliability_curve
from pluralpref.models import FixedStrength, LogNormalStrength


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


def test_curve_and_scores_by_hand():
    scores = pair_scores(
        FixedStrength(1.0),
        [1.0, -1.0, 3.0, 3.0, 0.0, 2.0],
        weight=[1.0, 1.0, 2.0, 1.0, 1.0, 0.0],
        preferred=[1.0, 1.0, 0.75, 1.0, 1.0, 1.0],
    )
    curve = reliability_curve(scores, bins=2)
    p, q = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-3))
    assert curve["margin"].tolist() == [1, 3]
    assert curve["count"].tolist() == [2, 2]
    assert curve["weight"].tolist() == [2, 3]
    assert curve["predicted"].tolist() == pytest.approx([p, q])
    assert curve["observed"].tolist() == pytest.approx([0.5, (2 * 0.75 + 1) / 3])
    assert curve.attrs["ties"] == 1
    # Agresti-Coull with (2 + 1)^2 / (2^2 + 1^2) = 1.8 pairs in the second bin.
    smoothed = 2.5 / 3 * 1.8 / 5.8 + 2 / 5.8
    assert curve["standard_error"][1] == pytest.approx(math.sqrt(smoothed * (1 - smoothed) / 5.8))
    found = calibration_scores(scores, bins=2)
    errors = [p - 0.5, q - 2.5 / 3]
    soft = 0.75 * (1 - q) ** 2 + 0.25 * q**2
    for law in ("mixed", "plug_in"):
        assert found.loc[law, "ece"] == pytest.approx((2 * errors[0] + 3 * errors[1]) / 5)
        assert found.loc[law, "largest_error"] == pytest.approx(max(errors))
        assert found.loc[law, "brier"] == pytest.approx(((1 - p) ** 2 + p**2 + 2 * soft + (1 - q) ** 2 + 0.25) / 6)


def test_equal_margins_stay_together_and_order_changes_nothing():
    margins = np.array([1.0] * 5 + [-1.0] * 4 + [2.0] * 3 + [-4.0])
    curve = reliability_curve(pair_scores(FixedStrength(0.5), margins), bins=4)
    # The middles of the three values' weight lie at 4.5, 10.5 and 12.5 of 13: quarters 2, 4 and 4.
    assert curve["count"].tolist() == [9, 4]
    turned = reliability_curve(pair_scores(FixedStrength(0.5), margins[::-1].copy()), bins=4)
    assert turned.to_numpy() == pytest.approx(curve.to_numpy(), rel=1e-12)


def test_the_mixed_law_is_calibrated_where_the_mean_in_its_place_is_not():
    generator = np.random.default_rng(0)
    law = LogNormalStrength(mean=1.0, cv=1.2)
    utility = 2 * generator.standard_normal(20_000)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        beta = law.law().sample((20_000,)).numpy()
    chosen = generator.random(20_000) < 1 / (1 + np.exp(-beta * utility))
    scores = pair_scores(law, np.where(chosen, utility, -utility))
    found = calibration_scores(scores)
    # A calibrated law has an error of about 0.4 sqrt(10 / 20000) = 0.009 by chance, at most.
    assert found.loc["mixed", "ece"] < 0.012
    assert found.loc["plug_in", "ece"] > 0.04
    assert found.loc["mixed", "brier"] < found.loc["plug_in", "brier"]
    assert found.loc["mixed", "log_loss"] < found.loc["plug_in", "log_loss"]
    # Labels turned together with margins are the same choices.
    turned = pair_scores(law, np.where(chosen, -utility, utility), preferred=np.zeros(20_000))
    assert calibration_scores(turned).to_numpy() == pytest.approx(found.to_numpy(), rel=1e-9)


def test_bad_input():
    scores = pair_scores(FixedStrength(1.0), [1.0, 0.0], weight=[0.0, 1.0])
    with pytest.raises(ConfigError, match="bins=0"):
        reliability_curve(scores, bins=0)
    with pytest.raises(DataError, match="every margin is 0"):
        calibration_scores(scores)
