from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from pluralpref.errors import ConfigError, DataError, InferenceError
from pluralpref.evaluation.win_rate import Answer, CallableJudge, Prompt, Verdict, make_pairs, summarize
from pluralpref.evaluation.win_rate.length_control import RIDGE, fit_length_control, length_feature
from pluralpref.evaluation.win_rate.verdicts import ORDERS


def verdicts_of(said):
    """From "AB"-like words: the verdict with the policy first, then with the baseline first (T tie, I invalid)."""
    names = {"A": "A", "B": "B", "T": "TIE", "I": "INVALID"}
    return [
        Verdict(i, order, names[v], v) for i, word in enumerate(said) for order, v in zip(ORDERS, word, strict=True)
    ]


def judged(pairs, function):
    judge = CallableJudge(function, "f")
    return list(judge.judge([pair.comparison(order) for pair in pairs for order in ORDERS]))


def test_by_hand(pairs_of):
    # Scores: policy wins both 1; loses both 0; first place wins both 1/2 (a flip); tie and win 3/4; tie twice 1/2;
    # a win and an invalid verdict: left out.
    words = ["AB", "BA", "AA", "TB", "TT", "AI"]
    answers = [("longer", "x"), ("x", "longer"), ("", "y"), ("p", "q"), ("p", "p"), (" \n", "")]
    summary = summarize(pairs_of(answers), verdicts_of(words), num_bootstrap=20)
    value = {name: e.value for name, e in summary.estimates.items()}
    assert value["win_rate"] == pytest.approx((1 + 0 + 0.5 + 0.75 + 0.5) / 5)
    assert value["tie_share"] == pytest.approx(3 / 10)
    assert value["first_position_share"] == pytest.approx(4 / 7)  # A: 1 + 1 + 2; B: 1 + 1 + 1
    assert value["flip_share"] == pytest.approx(1 / 5)
    assert value["inconsistent_share"] == pytest.approx(2 / 5)
    assert summary.counts == {
        "prompts": 6, "different_prompts": 6, "pairs_used": 5, "pairs_with_invalid_verdicts": 1,
        "pairs_not_judged_prompt_too_long": 0, "verdicts": 12, "invalid_verdicts": 1,
        "empty_answers_policy": 2, "empty_answers_baseline": 1, "cut_answers_policy": 0, "cut_answers_baseline": 0,
        "equal_answers": 1,
    }  # fmt: skip
    assert summary.lengths["mean_characters_policy"] == pytest.approx((6 + 1 + 0 + 1 + 1) / 5)
    assert summary.lengths["policy_longer_share"] == pytest.approx(1 / 5)
    assert summary.lengths["baseline_longer_share"] == pytest.approx(2 / 5)


def test_a_judge_that_looks_at_the_place_only_gives_one_half(pairs_of):
    pairs = pairs_of([("a" * i, "b" * (i * i % 7)) for i in range(20)])
    found = summarize(pairs, judged(pairs, lambda p, a, b: "A"), num_bootstrap=50).estimates
    assert (found["win_rate"].value, found["win_rate"].low, found["win_rate"].high) == (0.5, 0.5, 0.5)
    assert found["length_controlled_win_rate"].value == pytest.approx(0.5, abs=1e-6)
    assert found["first_position_share"].value == found["flip_share"].value == 1.0
    assert found["inconsistent_share"].value == 1.0


def test_a_judge_that_looks_at_length_only_is_brought_back_to_one_half(pairs_of):
    rng = np.random.default_rng(0)
    difference = rng.normal(20, 24, size=400).round()  # the policy is longer four times out of five
    pairs = pairs_of([("a" * int(100 + d), "b" * 100) for d in difference])

    def judge(prompt, first, second):
        return "TIE" if len(first) == len(second) else "A" if len(first) > len(second) else "B"

    found = summarize(pairs, judged(pairs, judge), num_bootstrap=100)
    expected = (difference > 0).mean() + 0.5 * (difference == 0).mean()
    assert found.estimates["win_rate"].value == pytest.approx(expected)
    assert expected > 0.75
    controlled = found.estimates["length_controlled_win_rate"]
    # Length separates wins from losses, so that the few pairs of nearly equal length decide.
    assert abs(controlled.value - 0.5) < 0.1
    assert controlled.low < 0.5 < controlled.high


def test_a_judge_that_leans_to_length_is_brought_back_to_one_half(pairs_of):
    rng = np.random.default_rng(4)
    difference = rng.normal(20, 24, size=2000).round()
    pairs = pairs_of([("a" * int(120 + d), "b" * 120) for d in difference])
    wins = rng.random(2000) < 1 / (1 + np.exp(-2 * np.tanh(difference / difference.std())))
    found = summarize(pairs, verdicts_of(["AB" if w else "BA" for w in wins]), num_bootstrap=20).estimates
    assert found["win_rate"].value > 0.65
    assert abs(found["length_controlled_win_rate"].value - 0.5) < 0.05


def test_length_control_finds_the_model_that_made_the_verdicts():
    rng = np.random.default_rng(1)
    x = length_feature(rng.normal(10, 30, size=40_000))
    y = (rng.random(len(x)) < 1 / (1 + np.exp(-(0.4 + 1.5 * x)))).astype(float)
    theta, phi = fit_length_control(x, y)
    assert theta == pytest.approx(0.4, abs=0.05)
    assert phi == pytest.approx(1.5, abs=0.08)


def test_length_control_by_hand():
    # Two pairs of opposite length: x = ±tanh(1). By symmetry theta = 0 if the longer wins; phi solves its score equation.
    x = length_feature(np.array([5.0, -5.0]))
    assert x == pytest.approx([math.tanh(1), -math.tanh(1)])
    t = math.tanh(1)
    theta, phi = fit_length_control(x, np.array([1.0, 0.0]))
    assert theta == pytest.approx(0, abs=1e-6)
    assert phi == pytest.approx(brentq(lambda c: 2 * t / (1 + math.exp(c * t)) - RIDGE * c, 0, 100), rel=1e-5)
    # Equal lengths: only theta is left, and it solves n (y - sigma(theta)) = RIDGE theta.
    same = length_feature(np.zeros(10))
    theta, phi = fit_length_control(same, np.ones(10))
    assert phi == pytest.approx(0, abs=1e-9)
    assert theta == pytest.approx(brentq(lambda c: 10 / (1 + math.exp(c)) - RIDGE * c, 0, 100), rel=1e-5)
    weighted = fit_length_control(x, np.array([1.0, 0.0]), np.array([2.0, 1.0]))
    repeated = fit_length_control(x[[0, 0, 1]], np.array([1.0, 1.0, 0.0]))
    assert weighted == pytest.approx(repeated, abs=1e-6)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(-10_000, 10_000), st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])), min_size=1, max_size=30
    )
)
def test_length_control_is_the_minimum_and_turns_with_the_sides(rows):
    difference, score = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    x = length_feature(difference)
    theta, phi = fit_length_control(x, score)
    residual = 1 / (1 + np.exp(-(theta + phi * x))) - score
    assert abs(residual.sum() + RIDGE * theta) < 1e-5
    assert abs(residual @ x + RIDGE * phi) < 1e-5
    turned = fit_length_control(length_feature(-difference), 1 - score)
    assert turned[0] == pytest.approx(-theta, abs=1e-3)


def test_intervals_cover_and_prompts_are_the_clusters(pairs_of):
    # 20 different prompts five times each, with one outcome for a prompt: as many independent outcomes as prompts.
    rng = np.random.default_rng(2)
    covered, widths = 0, []
    for seed in range(50):
        wins = rng.random(20) < 0.6
        words = ["AB" if w else "BA" for w in np.repeat(wins, 5)]
        pairs = pairs_of([("p", "q")] * 100, [f"prompt {i // 5}" for i in range(100)])
        found = summarize(pairs, verdicts_of(words), num_bootstrap=60, seed=seed)
        e = found.estimates["win_rate"]
        covered += e.low <= 0.6 <= e.high
        widths.append(e.high - e.low)
    assert found.counts["different_prompts"] == 20
    assert covered >= 40  # 95% of 50 less what 20 clusters and chance take; independent rows would give about 30
    assert np.mean(widths) == pytest.approx(2 * 1.96 * math.sqrt(0.6 * 0.4 / 20), rel=0.15)


def test_the_bootstrap_is_seeded_and_undefined_numbers_are_said_to_be(pairs_of):
    pairs = pairs_of([("p", "q")] * 8)
    verdicts = verdicts_of(["AB", "BA"] * 4)
    first = summarize(pairs, verdicts, num_bootstrap=50, seed=1)
    assert first == summarize(pairs, verdicts, num_bootstrap=50, seed=1)
    assert first != summarize(pairs, verdicts, num_bootstrap=50, seed=2)
    ties = summarize(pairs, verdicts_of(["TT"] * 8), num_bootstrap=5).estimates
    assert ties["first_position_share"].value is None
    assert ties["win_rate"].value == 0.5
    one = summarize(pairs[:1], verdicts_of(["AB"]), num_bootstrap=5).estimates["win_rate"]
    assert (one.value, one.low, one.high) == (1.0, None, None)


def test_what_cannot_be_summarised(pairs_of):
    pairs = pairs_of([("p", ""), ("p", "q")])
    with pytest.raises(
        InferenceError, match=r"no pair has a valid verdict in both orders: .*invalid_verdicts 3.*empty"
    ):
        summarize(pairs, verdicts_of(["AI", "II"]))
    with pytest.raises(DataError, match=r"no verdict on prompt_id and order \(1, 'policy_first'\)"):
        summarize(pairs, verdicts_of(["AB"]))
    with pytest.raises(ConfigError, match="num_bootstrap=0"):
        summarize(pairs, verdicts_of(["AB", "AB"]), num_bootstrap=0)
    asked = [Prompt(0, "a"), Prompt(1, "b")]
    with pytest.raises(DataError, match="prompt_id 1 has no answer"):
        make_pairs(asked, [Answer(0, "x"), Answer(1, "x")], [Answer(0, "x")])
