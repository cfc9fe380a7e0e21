"""One policy of several by min-max regret."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pluralpref.errors import ConfigError, DataError
from pluralpref.inference.em_dpo import min_max_regret


def game(regrets):
    """Log-ratios of one prompt that give these regrets."""
    return -torch.as_tensor(regrets, dtype=torch.float64)[None]


def by_optimistic_hedge(regrets, steps=5_000):
    """The authors' way: multiplicative weights of both sides, a further opponent without regret, averages over steps."""
    matrix = np.r_[np.zeros((1, len(regrets))), regrets]
    rate = 5 / steps**0.5
    x, y = np.full(len(matrix), 1 / len(matrix)), np.full(len(regrets), 1 / len(regrets))
    gains, losses, mean = matrix @ y, matrix.T @ x, np.zeros(len(regrets))
    for _ in range(steps):
        mean += y / steps
        new_gains, new_losses = matrix @ y, matrix.T @ x
        x, y = x * np.exp(rate * (2 * new_gains - gains)), y * np.exp(-rate * (2 * new_losses - losses))
        x, y, gains, losses = x / x.sum(), y / y.sum(), new_gains, new_losses
    return mean


def test_two_classes_by_hand():
    """Regrets a w_2 and b w_1 are equal at w_1 = a / (a + b)."""
    found = min_max_regret(game([[0, 3], [1, 0]]))
    torch.testing.assert_close(found.weights, torch.tensor([0.75, 0.25]).double(), rtol=0, atol=1e-6)
    assert found.worst_of(found.weights) == pytest.approx(0.75, abs=1e-6)
    torch.testing.assert_close(found.regret_of(found.weights), torch.tensor([0.75, 0.75]).double(), rtol=0, atol=1e-6)
    assert found.worst_of(torch.tensor([0.5, 0.5]).double()) == 1.5


def test_a_class_that_counts_more_regrets_less():
    found = min_max_regret(game([[0, 3], [1, 0]]), [1, 6])
    torch.testing.assert_close(found.weights, torch.tensor([1 / 3, 2 / 3]).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.regret_of(found.weights), torch.tensor([2, 1 / 3]).double(), rtol=0, atol=1e-5)
    assert found.worst_of(found.weights) == pytest.approx(2, abs=1e-5)


def test_a_policy_that_suits_all_answers_alone():
    found = min_max_regret(game([[0, 0, 2], [1, 0, 1], [4, 0, 0]]))
    torch.testing.assert_close(found.weights, torch.tensor([0, 1, 0]).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_equal_policies_answer_equally_often(classes):
    found = min_max_regret(torch.ones(3, classes, classes))
    torch.testing.assert_close(found.weights, torch.full((classes,), 1 / classes).double(), rtol=0, atol=1e-6)
    assert found.worst_of(found.weights) == 0


def test_regrets_below_nought_are_noise():
    found = min_max_regret(game([[0, -1], [-2, 0]]))
    torch.testing.assert_close(found.weights, torch.tensor([0.5, 0.5]).double(), rtol=0, atol=1e-6)
    assert found.worst_of(found.weights) == 0


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 5), st.integers(0, 2**32 - 1), st.sampled_from([1e-3, 1.0, 1e3]))
def test_as_good_as_the_authors_way(classes, seed, scale):
    generator = np.random.default_rng(seed)
    regrets = generator.exponential(size=(classes, classes)) * (1 - np.eye(classes))
    found = min_max_regret(game(scale * regrets))
    assert float(found.weights.sum()) == pytest.approx(1, abs=1e-12)
    assert bool((found.weights >= 0).all())
    theirs = (scale * regrets @ by_optimistic_hedge(regrets)).max()
    ours = found.worst_of(found.weights)
    assert ours <= theirs + 1e-9 * scale
    assert ours >= theirs - 0.01 * scale


def test_means_and_errors_over_prompts():
    log_ratios = torch.randn(50, 2, 2, generator=torch.Generator().manual_seed(0)).double()
    found = min_max_regret(log_ratios)
    loss = log_ratios[:, 0, 0] - log_ratios[:, 0, 1]
    assert float(found.regrets[0, 1]) == pytest.approx(float(loss.mean()), abs=1e-12)
    assert float(found.standard_errors[0, 1]) == pytest.approx(float(loss.std()) / 50**0.5, abs=1e-12)
    assert float(found.standard_errors[1, 1]) == 0
    assert bool(min_max_regret(log_ratios[:1]).standard_errors.isnan().all())


def test_what_is_refused():
    with pytest.raises(DataError, match="expected \\(prompts, classes, classes\\)"):
        min_max_regret(torch.ones(4, 2, 3))
    with pytest.raises(DataError, match="shape \\(0, 2, 2\\)"):
        min_max_regret(torch.ones(0, 2, 2))
    broken = torch.ones(4, 2, 2)
    broken[2, 0, 1] = torch.inf
    with pytest.raises(DataError, match="prompt 2 aren't finite"):
        min_max_regret(broken)
    for weights in ([1], [1, 0], [1, float("nan")], [1, 2, 3]):
        with pytest.raises(ConfigError, match="2 positive numbers"):
            min_max_regret(torch.ones(1, 2, 2), weights)
