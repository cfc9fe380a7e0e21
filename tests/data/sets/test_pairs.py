"""Pairs of a choice among several answers."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pluralpref.data.sets.pair_report import PairReport
from pluralpref.data.sets.pairs import Outcome, all_by_score, chosen_against_others, extremes, keep


def test_chosen_against_others():
    # b is chosen; c is empty, the last b is the chosen text again, the second d repeats the first.
    outcomes = chosen_against_others(["a", "b", " ", "b", "d", "d "], 1)
    assert outcomes == [
        (1, 0, None),
        (1, 2, "empty_answer"),
        (1, 3, "tie"),
        (1, 4, None),
        (1, 5, "duplicate_answer"),
    ]


def test_an_empty_chosen_answer_gives_nothing():
    assert [o.reason for o in chosen_against_others(["", "b", "c"], 0)] == ["empty_answer", "empty_answer"]


def test_the_chosen_answer_may_repeat_an_earlier_one():
    assert chosen_against_others(["a", "b", "a"], 2) == [(2, 0, "tie"), (2, 1, None)]


@pytest.mark.parametrize("rule", [lambda a: chosen_against_others(a, 0), lambda a: all_by_score(a, [1.0] * len(a), 0)])
@pytest.mark.parametrize("answers", [[], ["a"]])
def test_a_single_answer(rule, answers):
    assert [o.reason for o in rule(answers)] == ["single_answer"]


def test_all_by_score():
    # Scores 90, 85, 40, none: 90 and 85 are a tie at 5.
    outcomes = all_by_score(["a", "b", "c", "d"], [40, 85, 90, None], 5)
    assert outcomes == [
        (1, 0, None),
        (2, 0, None),
        (0, 3, "no_score"),
        (2, 1, "score_tie"),
        (1, 3, "no_score"),
        (2, 3, "no_score"),
    ]
    assert all_by_score(["a", "b"], [85, 90], 4.9) == [(1, 0, None)]
    assert all_by_score(["a", "b"], [85, 85], 0) == [(0, 1, "score_tie")]


def test_all_by_score_uses_a_repeated_text_once():
    # a, b, a: (a, a) is no pair, and b against the second a would be the first pair again, or contradict it.
    outcomes = all_by_score(["a", "b", "a"], [50, 60, 70], 0)
    assert outcomes == [(1, 0, None), (2, 0, "tie"), (2, 1, "duplicate_answer")]
    assert [o.reason for o in all_by_score(["a", "a", "b"], [50, 60, 70], 0)] == ["tie", None, "duplicate_answer"]


def test_extremes():
    assert extremes(["a", "b", "c", "d"], [40, 90, 10, 90], 0) == [(1, 2, None)]  # of two 90s the first
    assert extremes(["a", "b", "", "d"], [40, 90, 1, None], 0) == [(1, 0, None)]  # neither empty nor without score
    assert extremes(["a", "b"], [40, 44], 5) == [(1, 0, "score_tie")]
    assert extremes(["a", "b", "c"], [40, 40, 40], 0) == [(0, 1, "score_tie")]
    assert extremes(["a", "a", ""], [40, 90, 1], 0)[0].reason == "single_answer"


def test_keep_weighs_and_counts():
    report = PairReport()
    outcomes = [Outcome(0, 1, None), Outcome(0, 2, "tie"), Outcome(0, 3, None)]
    assert list(keep(outcomes, 7, report)) == [(0, 1, 0.5), (0, 3, 0.5)]
    assert list(keep([Outcome(0, 1, "tie")], 8, report)) == []
    assert (report.total, report.kept, report.choices) == (4, 2, 1)
    assert report.examples == {"tie": [7, 8]}


_ANSWERS = st.lists(st.tuples(st.sampled_from(["", "a", "b", "c"]), st.none() | st.integers(1, 100)), max_size=5)


@given(_ANSWERS, st.integers(0, 30), st.sampled_from(["chosen", "scores", "extremes"]))
def test_any_choice_counts_once_and_has_no_pair_twice(shown, threshold, rule):
    answers, scores = [text for text, _ in shown], [score for _, score in shown]
    if rule == "chosen":
        outcomes = chosen_against_others(answers, 0)
    else:
        outcomes = (all_by_score if rule == "scores" else extremes)(answers, scores, threshold)
    report = PairReport()
    pairs = list(keep(outcomes, 0, report))
    assert report.total == len(outcomes) == report.kept + sum(report.skipped.values())
    assert report.kept == len(pairs)
    assert math.isclose(sum(weight for *_, weight in pairs), report.choices)
    texts = [(answers[i], answers[j]) for i, j, _ in pairs]
    assert len(texts) == len(set(texts))
    assert not any((b, a) in texts for a, b in texts)
    assert all(a and b and a != b for a, b in texts)
    if rule != "chosen":
        assert all(scores[i] - scores[j] > threshold for i, j, _ in pairs)


def test_report_in_words():
    report = PairReport(rows=3, choices=1, total=2)
    report.skip("called_tie", 2)
    report.notes["no_survey"] = 1
    assert report.summary() == (
        "1 pairs of 1 choices from 3 rows; 1 skipped: the annotator called it a tie (rows 2); "
        "1 conversations of people without a survey: their groups are 'unknown'"
    )
    assert report.to_dict() == {
        "rows": 3,
        "choices": 1,
        "notes": {"no_survey": 1},
        "total": 2,
        "kept": 1,
        "skipped": {"called_tie": 1},
        "examples": {"called_tie": [2]},
    }
