"""Preference pairs whose chosen answer is the one that people of different viewpoints agree on more."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pluralpref.data.bridging.factorization import Factorization
from pluralpref.data.bridging.ratings import item_key
from pluralpref.data.report import REASONS
from pluralpref.data.sets.pair_report import PairReport
from pluralpref.data.sets.pairs import Outcome, all_by_score, keep
from pluralpref.data.sets.values import check_tie_threshold
from pluralpref.errors import DataError

#: Means of the same ratings may differ by this.
_ROUNDING = 1e-12


@dataclass
class BridgingPairs:
    """Pairs by bridging score, and what became of the others.

    :param rows: prompt, chosen, rejected, weight, chosen_bridging, rejected_bridging.
    :param report: how many pairs were left out, by reason.
    :param not_comparable: pairs of answers in different components.
    :param reversed: pairs whose chosen answer has the lower plain mean rating.
    :param equal_means: pairs whose plain mean ratings are the same.
    :param separated: pairs whose ranges of :func:`intercept_bounds` don't overlap, where they were given.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    report: PairReport = field(default_factory=PairReport)
    not_comparable: int = 0
    reversed: int = 0
    equal_means: int = 0
    separated: int = 0

    def summary(self) -> str:
        """A sentence for a person."""
        parts = [f"{len(self.rows)} pairs of answers to {self.report.choices} prompts"]
        parts += [f"{count} left out: {REASONS[reason]}" for reason, count in sorted(self.report.skipped.items())]
        if self.not_comparable:
            parts.append(f"{self.not_comparable} left out: no rating connects the two answers")
        return "; ".join(parts)


def bridging_pairs(
    fit: Factorization,
    *,
    tie_threshold: float = 1e-6,
    bounds: tuple[np.ndarray, np.ndarray] | None = None,
) -> BridgingPairs:
    """All pairs of answers to the same prompt, the one with the higher intercept chosen.

    That is the reward of reinforcement learning from community feedback (RLCF) as preferences: a policy that learns
    from the pairs learns to raise the intercept. Each of the n pairs of a prompt has weight 1/n, so that prompts with
    many answers don't count more. There is no soft label: a difference of intercepts is one of ratings, not a
    probability.

    :param tie_threshold: a difference of at most this, in units of the ratings, is a tie, left out and counted. The
        default is what the intercepts are exact to.
    :param bounds: see :func:`~pluralpref.data.bridging.intercept_bounds`; to count the pairs whose ranges don't
        overlap.
    :raises ConfigError: for a threshold that can't be one.
    :raises DataError: if no pair is left.

    Source of RLCF: H. Li et al., arXiv:2506.24118.
    """
    check_tie_threshold(tie_threshold)
    score, mean = fit.parameters.item_intercept, fit.ratings.item_means()
    result = BridgingPairs()
    prompts: dict[int, list[int]] = defaultdict(list)
    for item, prompt in enumerate(fit.ratings.prompt_of_item()):
        prompts[int(prompt)].append(item)
    for number, items in prompts.items():
        groups: dict[int, list[int]] = defaultdict(list)
        for item in items:
            groups[int(fit.item_component[item])].append(item)
        outcomes: list[Outcome] = []
        for group in groups.values():
            texts = [item_key(fit.ratings.items[item]) for item in group]
            found = all_by_score(texts, [float(score[item]) for item in group], tie_threshold) if group[1:] else []
            outcomes += [
                outcome._replace(chosen=group[outcome.chosen], rejected=group[outcome.rejected]) for outcome in found
            ]
        result.not_comparable += len(items) * (len(items) - 1) // 2 - len(outcomes)
        if len(items) < 2:
            result.report.unusable("single_answer", number)
        for chosen, rejected, weight in keep(outcomes, number, result.report):
            result.rows.append(_row(fit, chosen, rejected, weight))
            same = abs(mean[chosen] - mean[rejected]) <= _ROUNDING
            result.equal_means += int(same)
            result.reversed += int(not same and mean[chosen] < mean[rejected])
            if bounds is not None:
                result.separated += int(bounds[0][chosen] > bounds[1][rejected])
    if not result.rows:
        raise DataError(f"no pair of answers is left: {result.summary()}")
    return result


def _row(fit: Factorization, chosen: int, rejected: int, weight: float) -> dict[str, Any]:
    items, score = fit.ratings.items, fit.parameters.item_intercept
    return {
        "prompt": items[chosen].prompt,
        "chosen": items[chosen].answer,
        "rejected": items[rejected].answer,
        "weight": weight,
        "chosen_bridging": float(score[chosen]),
        "rejected_bridging": float(score[rejected]),
    }
