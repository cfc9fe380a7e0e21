"""Metrics of held-out choices."""

from pluralpref.evaluation.held_out import calibration_table, held_out_metrics

__all__ = ["calibration_table", "held_out_metrics"]
