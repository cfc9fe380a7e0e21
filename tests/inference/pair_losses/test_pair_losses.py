"""Other methods' losses, on cases whose answers are known."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import logsigmoid

from pluralpref.errors import ConfigError, DataError
from pluralpref.inference.pair_losses import (
    ConservativeLoss,
    DynamicBetaLoss,
    GroupRobustLoss,
    IdentityLoss,
    RobustLoss,
)

H = torch.tensor([-30.0, -1.0, 0.0, 0.5, 4.0, 200.0], dtype=torch.float64)
ONE = torch.ones_like(H)


def minimum(loss, low=-200.0, high=200.0):
    """The margin at which the loss of a chosen answer is least."""
    grid = torch.linspace(low, high, 400_001, dtype=torch.float64)
    return float(grid[loss(grid, torch.ones_like(grid)).argmin()])


def test_conservative():
    loss = ConservativeLoss(0.1, 0.2)
    torch.testing.assert_close(loss(H, ONE), -(0.8 * logsigmoid(0.1 * H) + 0.2 * logsigmoid(-0.1 * H)))
    # Least where the model believes a label as much as it is worth.
    assert minimum(loss) == pytest.approx(math.log(0.8 / 0.2) / 0.1, abs=1e-3)
    torch.testing.assert_close(loss(H, 0 * ONE), loss(-H, ONE))


@given(st.floats(0.01, 0.49), st.floats(-50, 50), st.floats(0.01, 2))
def test_robust_is_unbiased(noise, margin, beta):
    """Averaged over flipped labels it is the loss on the true ones: the theorem that it is made for."""
    loss, h = RobustLoss(beta, noise), torch.tensor(margin, dtype=torch.float64)
    right, flipped = loss(h, torch.ones_like(h)), loss(h, torch.zeros_like(h))
    truth = -logsigmoid(beta * h)
    torch.testing.assert_close((1 - noise) * right + noise * flipped, truth, rtol=1e-9, atol=1e-9 / (1 - 2 * noise))


@pytest.mark.parametrize("loss", [ConservativeLoss, RobustLoss])
@pytest.mark.parametrize("noise", [0.0, 0.5, -0.1])
def test_shares_of_noise(loss, noise):
    with pytest.raises(ConfigError, match=r"between 0 and 0\.5"):
        loss(0.1, noise)


def test_identity():
    loss = IdentityLoss(0.1)
    torch.testing.assert_close(loss(H, ONE), (H - 5) ** 2)
    assert minimum(loss) == pytest.approx(5, abs=1e-3)
    # Labels that disagree in a quarter of the cases: the margin halves.
    soft = torch.full_like(H, 0.75)
    torch.testing.assert_close(loss(H, soft), 0.75 * (H - 5) ** 2 + 0.25 * (H + 5) ** 2)


def test_group_weights_by_hand():
    loss = GroupRobustLoss(1.0, ["b", "a", "b"], step_size=2.0)
    assert loss.groups == ("a", "b")
    h, weight = torch.tensor([0.0, 0.0, 3.0], dtype=torch.float64), torch.tensor([1.0, 3.0, 4.0], dtype=torch.float64)
    y, groups = torch.ones_like(h), ["a", "b", "b"]
    counts = loss.begin_step(h, y, weight, groups)
    losses = -logsigmoid(h)
    mean = torch.stack([losses[0], (3 * losses[1] + 4 * losses[2]) / 7])
    alpha = torch.softmax(2 * mean, 0)
    torch.testing.assert_close(loss.log_alpha.exp(), alpha)
    # The step's weighted mean is the sum of the groups' losses times their weights.
    found = (weight * counts * loss(h, y)).sum() / weight.sum()
    torch.testing.assert_close(found, alpha @ mean)
    torch.testing.assert_close(loss.eval_weight(h, y, weight, groups), counts)
    assert loss.metrics() == pytest.approx({"gr_dpo/weight/a": alpha[0].item(), "gr_dpo/weight/b": alpha[1].item()})
    # A group that isn't in the step keeps its weight, and isn't in the step's loss.
    counts = loss.begin_step(h[:1], y[:1], weight[:1], ["a"])
    torch.testing.assert_close(loss.log_alpha.exp(), alpha)
    torch.testing.assert_close(counts, torch.ones(1, dtype=torch.float64))


def test_group_weights_find_the_worst_group():
    """Two groups want opposite margins; with equal weights the larger one wins, with GR-DPO both are served alike."""
    h = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    preferred = torch.tensor([1.0] * 9 + [0.0], dtype=torch.float64)
    groups = ["many"] * 9 + ["one"]
    loss, weight = GroupRobustLoss(1.0, groups, 0.05), torch.ones(10, dtype=torch.float64)
    average = 0.0
    for step in range(4000):
        margins = h.expand(10)
        counts = loss.begin_step(margins, preferred, weight, groups)
        (gradient,) = torch.autograd.grad((weight * counts * loss(margins, preferred)).sum() / 10, [h])
        h.data -= 0.05 * gradient
        average += h.item() / 2000 if step >= 2000 else 0
    assert abs(average) < 0.05  # plain DPO: log 9 = 2.2
    assert loss.log_alpha.exp().tolist() == pytest.approx([0.5, 0.5], abs=0.1)


def test_groups_that_have_no_weight():
    loss = GroupRobustLoss(1.0, ["a", "b"], 0.1)
    with pytest.raises(DataError, match="'c' isn't among those of the training pairs"):
        loss.eval_weight(H[:1], ONE[:1], ONE[:1], ["c"])
    with pytest.raises(ConfigError, match="at least two groups"):
        GroupRobustLoss(1.0, ["a"], 0.1)
    with pytest.raises(ConfigError, match="gr_dpo_step_size=0"):
        GroupRobustLoss(1.0, ["a", "b"], 0)


def test_dynamic_beta_by_hand():
    loss = DynamicBetaLoss(0.1, scaling=0.5, filtered=0.0, momentum=0.9)
    h, weight = torch.tensor([1.0, 3.0], dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    counts = loss.begin_step(h, weight, weight)
    torch.testing.assert_close(counts, weight)
    assert loss.metrics() == pytest.approx({"beta_dpo/beta": 0.1 * (1 + 0.5 * (2 - 0.2)), "beta_dpo/threshold": 0.2})
    assert float(loss.std) == pytest.approx(0.1 * math.sqrt(2))
    torch.testing.assert_close(loss(h, weight), -logsigmoid(0.19 * h))
    loss.begin_step(-100 * weight, weight, weight)
    assert float(loss.current) == pytest.approx(1e-3)  # never negative


def test_scaling_of_zero_is_dpo():
    loss = DynamicBetaLoss(0.1, scaling=0.0, filtered=0.0)
    loss.begin_step(H, ONE, ONE)
    torch.testing.assert_close(loss(H, ONE), -logsigmoid(0.1 * H))


def test_outliers_are_left_out():
    loss = DynamicBetaLoss(0.1, filtered=0.25, momentum=0.0)
    h = torch.tensor([0.1, -0.1, 0.2, 50.0], dtype=torch.float64)
    kept = torch.stack([loss.begin_step(h, torch.ones(4), torch.ones(4)) for _ in range(200)])
    torch.testing.assert_close(kept.unique().double(), torch.tensor([0, 4 / 3], dtype=torch.float64), rtol=1e-6, atol=0)
    torch.testing.assert_close(kept.sum(1), torch.full((200,), 4.0))
    # Drawn one after the other, the outlier is the last of four with this probability.
    inlier, outlier = (torch.exp(-0.5 * ((h - h.mean()) / h.std()) ** 2)[[0, 3]]).tolist()
    expected = math.prod(i * inlier / (i * inlier + outlier) for i in (3, 2, 1))
    share = float((kept[:, 3] == 0).double().mean())
    assert share == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / 200))
    again = DynamicBetaLoss(0.1, filtered=0.25, momentum=0.0)
    assert torch.equal(kept[0], again.begin_step(h, torch.ones(4), torch.ones(4)))


@pytest.mark.parametrize("options", [{"scaling": -1.0}, {"filtered": 1.0}, {"momentum": 1.0}, {"filtered": -0.1}])
def test_values_out_of_range(options):
    with pytest.raises(ConfigError, match=f"beta_dpo_{next(iter(options))}="):
        DynamicBetaLoss(0.1, **options)
