"""Metrics of held-out choices."""

from pluralpref.evaluation.bootstrap import bootstrap_intervals
from pluralpref.evaluation.calibration import calibration_scores, calibration_table, reliability_curve
from pluralpref.evaluation.held_out import held_out_metrics, metrics_of
from pluralpref.evaluation.runs import compare_runs
from pluralpref.evaluation.scores import PairScores, pair_scores
from pluralpref.evaluation.summary import Evaluation, evaluate
from pluralpref.evaluation.tables import group_table, per_annotator_table, worst_groups

__all__ = [
    "Evaluation",
    "PairScores",
    "bootstrap_intervals",
    "calibration_scores",
    "calibration_table",
    "compare_runs",
    "evaluate",
    "group_table",
    "held_out_metrics",
    "metrics_of",
    "pair_scores",
    "per_annotator_table",
    "reliability_curve",
    "worst_groups",
]
