"""EM-DPO's E-step and predictions against values worked out by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pluralpref.errors import ConfigError, DataError
from pluralpref.inference.em_dpo import (
    EMDPOResult,
    initial_responsibilities,
    log_shares_before,
    mixture_log_prob,
    mixture_metrics,
    observed_log_likelihood,
    pair_log_likelihoods,
    responsibilities,
)
from pluralpref.inference.em_dpo.e_step import annotator_codes, check_num_classes
from pluralpref.inference.em_dpo.record import read_responsibilities, write_responsibilities

LOG_3, LOG_9 = math.log(3.0), math.log(9.0)
#: beta 0.5 and these margins give the probabilities 3/4 | 1/4, 9/10 | 1/2 and 1/2 | 3/4.
MARGINS = torch.tensor([[2 * LOG_3, -2 * LOG_3], [2 * LOG_9, 0.0], [0.0, 2 * LOG_3]], dtype=torch.float64)
PROBABILITIES = torch.tensor([[0.75, 0.25], [0.9, 0.5], [0.5, 0.75]], dtype=torch.float64)
ETA = torch.tensor([0.4, 0.6], dtype=torch.float64)
ANNOTATOR = torch.tensor([0, 1, 0])


def test_pair_log_likelihoods_by_hand():
    found = pair_log_likelihoods(MARGINS, 0.5)
    torch.testing.assert_close(found.exp(), PROBABILITIES, rtol=1e-14, atol=0)
    # A soft label of 1/4 with weight 2 on the first pair: 2 [log(p)/4 + 3 log(1-p)/4].
    soft = pair_log_likelihoods(MARGINS[:1], 0.5, preferred=[0.25], weight=[2.0])
    assert soft[0, 0].item() == pytest.approx(0.5 * math.log(0.75) + 1.5 * math.log(0.25), rel=1e-14)
    assert soft[0, 1].item() == pytest.approx(0.5 * math.log(0.25) + 1.5 * math.log(0.75), rel=1e-14)


def test_responsibilities_by_hand():
    """Annotator 0 made choices 0 and 2: 0.4 x 3/4 x 1/2 = 0.15 to 0.6 x 1/4 x 3/4 = 0.1125; annotator 1: 0.36 to 0.3."""
    found = responsibilities(PROBABILITIES.log(), ANNOTATOR, ETA.log())
    expected = torch.tensor([[0.15 / 0.2625, 0.1125 / 0.2625], [0.36 / 0.66, 0.3 / 0.66]], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)
    assert observed_log_likelihood(PROBABILITIES.log(), ANNOTATOR, ETA.log()) == pytest.approx(
        math.log(0.2625) + math.log(0.66), rel=1e-14
    )


def test_many_choices_do_not_underflow():
    """2000 choices with probabilities 0.1 and 0.2: products of 1e-2000 and more, whose odds are still 2^2000 to 1."""
    logs = torch.tensor([[0.1, 0.2]], dtype=torch.float64).log().repeat(2000, 1)
    found = responsibilities(logs, torch.zeros(2000, dtype=torch.int64), ETA.log())
    assert found[0, 1].item() == 1.0
    expected = 2000 * math.log(0.2) + math.log(0.6)
    likelihood = observed_log_likelihood(logs, torch.zeros(2000, dtype=torch.int64), ETA.log())
    assert likelihood == pytest.approx(expected, rel=1e-12)


def test_an_empty_class_stays_empty():
    found = responsibilities(PROBABILITIES.log(), ANNOTATOR, torch.tensor([1.0, 0.0]).log())
    assert found.tolist() == [[1.0, 0.0], [1.0, 0.0]]


finite = st.floats(-20, 20)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(finite, finite, finite, st.integers(0, 3)), min_size=1, max_size=12), st.integers(0, 99))
def test_an_em_step_of_the_shares_never_lowers_the_likelihood(rows, seed):
    margins = torch.tensor([row[:3] for row in rows], dtype=torch.float64)
    codes, names = annotator_codes([row[3] for row in rows])
    logs = pair_log_likelihoods(margins, 0.3)
    eta = initial_responsibilities(len(names), 3, seed).mean(0)
    gamma = responsibilities(logs, codes, eta.log())
    assert gamma.shape == (len(names), 3)
    torch.testing.assert_close(gamma.sum(1), torch.ones(len(names), dtype=torch.float64))
    before = observed_log_likelihood(logs, codes, eta.log())
    after = observed_log_likelihood(logs, codes, gamma.mean(0).log())
    assert after >= before - 1e-9 * (1 + abs(before))
    # Choices don't depend on their order.
    order = torch.randperm(len(codes), generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(responsibilities(logs[order], codes[order], eta.log()), gamma)


def test_initial_responsibilities():
    found = initial_responsibilities(5000, 3, 7)
    assert torch.equal(found, initial_responsibilities(5000, 3, 7))
    assert not torch.equal(found, initial_responsibilities(5000, 3, 8))
    torch.testing.assert_close(found.sum(1), torch.ones(5000, dtype=torch.float64))
    # Dirichlet(1, 1, 1): mean 1/3, variance (1/3)(2/3)/4 = 1/18.
    torch.testing.assert_close(found.mean(0), torch.full((3,), 1 / 3, dtype=torch.float64), atol=0.01, rtol=0)
    torch.testing.assert_close(found.var(0), torch.full((3,), 1 / 18, dtype=torch.float64), atol=0.003, rtol=0)


# -- prediction ------------------------------------------------------------------------------------------------------


def test_mixture_by_hand():
    found = mixture_log_prob(PROBABILITIES.log(), ETA.log()).exp()
    expected = [0.4 * 0.75 + 0.6 * 0.25, 0.4 * 0.9 + 0.6 * 0.5, 0.4 * 0.5 + 0.6 * 0.75]
    assert found.tolist() == pytest.approx(expected, rel=1e-14)


def test_sequential_posterior_is_the_chain_rule():
    """The predictions one after another multiply to the probability of all choices of an annotator."""
    shares = log_shares_before(PROBABILITIES.log(), ANNOTATOR, ETA.log())
    # Annotator 0's second choice is row 2; after row 0 the odds are 0.4 x 3/4 to 0.6 x 1/4 = 2 to 1.
    expected = torch.tensor([[0.4, 0.6], [0.4, 0.6], [2 / 3, 1 / 3]], dtype=torch.float64)
    torch.testing.assert_close(shares.exp(), expected, rtol=1e-14, atol=0)
    total = mixture_log_prob(PROBABILITIES.log(), shares).sum().item()
    assert total == pytest.approx(math.log(0.2625) + math.log(0.66), rel=1e-14)


def test_metrics_by_hand():
    log_p = torch.tensor([0.8, 0.5, 0.3], dtype=torch.float64).log()
    log_q = torch.tensor([0.2, 0.5, 0.7], dtype=torch.float64).log()
    found = mixture_metrics(log_p, log_q)
    assert found["log_loss"] == pytest.approx(-(math.log(0.8) + math.log(0.5) + math.log(0.3)) / 3, rel=1e-14)
    assert found["accuracy"] == pytest.approx(1 / 3)  # a tie is no win
    found = mixture_metrics(log_p, log_q, preferred=[1.0, 1.0, 0.25], weight=[1.0, 0.0, 3.0])
    loss = -(math.log(0.8) + 3 * (0.25 * math.log(0.3) + 0.75 * math.log(0.7))) / 4
    assert found["log_loss"] == pytest.approx(loss, rel=1e-14)
    assert found["accuracy"] == pytest.approx((1 + 3 * 0.75) / 4)


@pytest.fixture
def mixture():
    gamma = torch.tensor([[0.9, 0.1], [0.0, 1.0]], dtype=torch.float64)
    return EMDPOResult(0.5, ETA, ("ann", "7"), gamma, (), ())


def test_known_and_unknown_annotators(mixture):
    assert mixture.log_prob(MARGINS).exp().tolist() == pytest.approx([0.45, 0.66, 0.65], rel=1e-14)
    found = mixture.log_prob(MARGINS, ["ann", "new", 7]).exp()
    assert found.tolist() == pytest.approx([0.9 * 0.75 + 0.1 * 0.25, 0.66, 0.75], rel=1e-14)
    # Of somebody new the second choice is predicted with odds of 2 to 1, see above.
    found = mixture.log_prob(MARGINS, ["new", "ann", "new"], sequential=True).exp()
    assert found.tolist() == pytest.approx([0.45, 0.9 * 0.9 + 0.1 * 0.5, 2 / 3 * 0.5 + 1 / 3 * 0.75], rel=1e-14)
    # A label of 0 turns what is learned: odds 0.4 x 1/4 to 0.6 x 3/4 = 2 to 9.
    found = mixture.log_prob(MARGINS, ["new", "ann", "new"], sequential=True, preferred=[0.0, 1.0, 1.0]).exp()
    assert found[2].item() == pytest.approx(2 / 11 * 0.5 + 9 / 11 * 0.75, rel=1e-14)


def test_metrics_count_people(mixture):
    found = mixture.metrics(MARGINS, ["new", "ann", "new"])
    assert found["annotators"] == 2
    assert found["annotators/known"] == 1
    assert found["log_loss"] == pytest.approx(-(math.log(0.45) + math.log(0.86) + math.log(0.65)) / 3, rel=1e-12)
    expected = -(math.log(0.45) + math.log(0.86) + math.log(1 / 3 + 0.25)) / 3
    assert found["log_loss/sequential"] == pytest.approx(expected, rel=1e-12)
    assert found["accuracy"] == pytest.approx(2 / 3)


# -- bad input, files ------------------------------------------------------------------------------------------------


def test_bad_input(mixture):
    for missing in (None, " ", float("nan")):
        with pytest.raises(DataError, match="row 1: column 'annotator' is empty; EM-DPO needs"):
            annotator_codes(["a", missing])
    with pytest.raises(DataError, match="don't fit"):
        responsibilities(PROBABILITIES.log(), ANNOTATOR[:2], ETA.log())
    with pytest.raises(DataError, match="margins must be finite"):
        pair_log_likelihoods([[float("nan"), 1.0]], 0.1)
    for number in (0, -1, 1.5, True):
        with pytest.raises(ConfigError, match="num_classes="):
            check_num_classes(number)
    with pytest.raises(DataError, match=r"expected \(pairs, 2\)"):
        mixture.log_prob(torch.zeros(3, 3))
    with pytest.raises(DataError, match="need to know who chose"):
        mixture.log_prob(MARGINS, sequential=True)
    with pytest.raises(DataError, match="annotator has 2 entries"):
        mixture.log_prob(MARGINS, ["a", "b"])


def test_responsibilities_file_is_exact(tmp_path):
    gamma = initial_responsibilities(50, 3, 0)
    gamma[0] = torch.tensor([1e-300, 1 / 3, 2 / 3])
    names = ("NA", "007", 'say "hi", then', *(str(i) for i in range(47)))
    write_responsibilities(tmp_path, names, gamma)
    found_names, found = read_responsibilities(tmp_path)
    assert found_names == names
    assert torch.equal(found, gamma)
    assert (tmp_path / "responsibilities.csv").read_text().startswith("annotator,class_1,class_2,class_3\n")
    with pytest.raises(DataError, match=r"responsibilities\.csv can't be read"):
        read_responsibilities(tmp_path / "elsewhere")
