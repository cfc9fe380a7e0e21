"""Everything that is known of one run's held-out pairs, in one object."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pluralpref.errors import DataError
from pluralpref.evaluation.bootstrap import bootstrap_intervals
from pluralpref.evaluation.calibration import calibration_scores, reliability_curve
from pluralpref.evaluation.held_out import metrics_of
from pluralpref.evaluation.scores import PairScores
from pluralpref.evaluation.tables import group_table, per_annotator_table, worst_groups


@dataclass(frozen=True)
class Evaluation:
    """What :func:`evaluate` found. Tables are pandas ``DataFrame``.

    :param metrics: see :func:`metrics_of`.
    :param intervals: see :func:`bootstrap_intervals`, or ``None``.
    :param groups: by column, see :func:`group_table`.
    :param worst: see :func:`worst_groups`.
    :param people: see :func:`per_annotator_table`, or ``None`` where annotators aren't known.
    :param reliability: see :func:`reliability_curve`, or ``None``.
    :param calibration: see :func:`calibration_scores`, or ``None``.
    :param notes: why one of these isn't there though asked for.
    """

    metrics: Mapping[str, float]
    intervals: Any
    groups: Mapping[str, Any]
    worst: Any
    people: Any
    reliability: Any
    calibration: Any
    notes: tuple[str, ...]

    def record(self) -> dict[str, Any]:
        """Everything but single annotators as JSON knows it; what isn't finite is ``None``."""
        found: dict[str, Any] = {"metrics": dict(self.metrics), "notes": list(self.notes)}
        if self.intervals is not None:
            found["intervals"] = self.intervals.to_dict("index")
            found["bootstrap"] = dict(self.intervals.attrs)
        if self.groups:
            found["groups"] = {
                column: frame.reset_index(names="group").to_dict("records") for column, frame in self.groups.items()
            }
            found["worst_groups"] = self.worst.reset_index().to_dict("records")
        if self.reliability is not None:
            found["calibration"] = self.reliability.to_dict("list") | {"ties": self.reliability.attrs["ties"]}
            found["calibration_scores"] = self.calibration.to_dict("index")
        return plain(found)


def evaluate(
    scores: PairScores, *, bins: int = 10, level: float = 0.95, num_resamples: int = 2000, seed: int = 0
) -> Evaluation:
    """Metrics, intervals, groups, annotators and calibration of scored pairs.

    What can't be had of these pairs (intervals of one cluster, calibration of nothing but ties) is left out with a note.

    :param scores: see :func:`pair_scores`.
    :param bins: of the reliability curve; 0 for no calibration.
    :param level: of the intervals, see :func:`bootstrap_intervals`; likewise ``seed``.
    :param num_resamples: likewise; 0 for no intervals.
    :raises ConfigError: for numbers out of range.
    """
    notes = []
    intervals = reliability = calibration = None
    if num_resamples:
        try:
            intervals = bootstrap_intervals(scores, level=level, num_resamples=num_resamples, seed=seed)
        except DataError as error:
            notes.append(f"no intervals: {error}")
    if bins:
        try:
            reliability, calibration = reliability_curve(scores, bins), calibration_scores(scores, bins)
        except DataError as error:
            notes.append(f"no calibration: {error}")
    if not scores.has_plug_in:
        notes.append(f"no plug-in law: the law's mean is {scores.mean_beta}")
    return Evaluation(
        metrics=metrics_of(scores),
        intervals=intervals,
        groups={column: group_table(scores, column, intervals) for column in scores.groups},
        worst=worst_groups(scores),
        people=None if scores.annotator is None else per_annotator_table(scores),
        reliability=reliability,
        calibration=calibration,
        notes=tuple(notes),
    )


def plain(value: Any) -> Any:
    """The same with numbers that JSON knows; what isn't finite is ``None``."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
