"""Pairs of a choice among two or more answers, and what each counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

from pluralpref.data.sets.pair_report import PairReport


class Outcome(NamedTuple):
    """A candidate pair: positions of both answers, and the reason not to use it, or ``None``."""

    chosen: int
    rejected: int
    reason: str | None


def chosen_against_others(answers: Sequence[str], chosen: int) -> list[Outcome]:
    """The chosen answer against each of the others: n − 1 pairs of n answers."""
    others = [i for i in range(len(answers)) if i != chosen]
    return [Outcome(chosen, i, _unequal(answers, chosen, i)) for i in others] or _SINGLE


def all_by_score(answers: Sequence[str], scores: Sequence[float | None], tie_threshold: float) -> list[Outcome]:
    """All n(n − 1)/2 pairs, the higher score chosen; a tie where |difference| ≤ ``tie_threshold``."""
    pairs = combinations(range(len(answers)), 2)
    return [_by_score(answers, scores, i, j, tie_threshold) for i, j in pairs] or _SINGLE


def extremes(answers: Sequence[str], scores: Sequence[float | None], tie_threshold: float) -> list[Outcome]:
    """The highest score against the lowest: one pair. Of equal scores the first counts.

    Empty answers, answers without a score and repeated texts don't take part.
    """
    usable = [
        i for i, text in enumerate(answers) if text.strip() and scores[i] is not None and not _is_repeat(answers, i)
    ]
    if len(usable) < 2:
        return _SINGLE
    ranked = sorted(usable, key=lambda i: -(scores[i] or 0.0))  # stable: the first of equals stays first
    lowest = min(usable, key=lambda i: scores[i] or 0.0)
    if lowest == ranked[0]:  # all are equal
        lowest = ranked[1]
    return [_by_score(answers, scores, ranked[0], lowest, tie_threshold)]


def keep(outcomes: Sequence[Outcome], row: int, report: PairReport) -> Iterator[tuple[int, int, float]]:
    """Chosen, rejected and weight of the pairs of one choice that can be used; the others are counted.

    Each of n usable pairs weighs 1/n, so that a choice counts once however many answers were shown.
    """
    report.total += len(outcomes)
    usable = [outcome for outcome in outcomes if outcome.reason is None]
    for outcome in outcomes:
        if outcome.reason is not None:
            report.skip(outcome.reason, row)
    if usable:
        report.choices += 1
    for outcome in usable:
        yield outcome.chosen, outcome.rejected, 1 / len(usable)


_SINGLE = [Outcome(0, 0, "single_answer")]


def _unequal(answers: Sequence[str], i: int, j: int) -> str | None:
    if not answers[i].strip() or not answers[j].strip():
        return "empty_answer"
    if answers[i].strip() == answers[j].strip():
        return "tie"
    # Of two other answers with one text only the first gives a pair; the chosen one is used wherever it stands.
    first = next(k for k, text in enumerate(answers) if text.strip() == answers[j].strip())
    return None if first == j else "duplicate_answer"


def _by_score(answers: Sequence[str], scores: Sequence[float | None], i: int, j: int, tie_threshold: float) -> Outcome:
    first, second = scores[i], scores[j]
    reason = _unequal(answers, i, j)
    if reason is None and _is_repeat(answers, i):
        reason = "duplicate_answer"
    if first is None or second is None:
        return Outcome(i, j, reason or "no_score")
    if reason is None and abs(first - second) <= tie_threshold:
        reason = "score_tie"
    return Outcome(i, j, reason) if first >= second else Outcome(j, i, reason)


def _is_repeat(answers: Sequence[str], i: int) -> bool:
    return any(text.strip() == answers[i].strip() for text in answers[:i])
