"""Sections of a report about people: their strengths, groups, predictive checks, models side by side, calibration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pluralpref.diagnostics.agreement_plot import plot_agreement
from pluralpref.diagnostics.calibration_result import CalibrationResult
from pluralpref.diagnostics.comparison import Comparison
from pluralpref.diagnostics.people_plots import group_means, plot_comparison, plot_groups, plot_people
from pluralpref.diagnostics.predictive_checks import PredictiveChecks
from pluralpref.diagnostics.rank_plot import plot_calibration_ranks
from pluralpref.diagnostics.report import Report, Table

if TYPE_CHECKING:
    from pluralpref.inference.conditional import ConditionalStrengths
    from pluralpref.inference.posterior_draws import PosteriorDraws

#: People at either end of the order in the report's table.
_SHOWN_PEOPLE = 10
#: Above this probability of being less sensitive than the median, or opposed, a person counts as such.
_CERTAIN = 0.9


def add_people(report: Report, people: ConditionalStrengths) -> None:
    """What each person's choices say of their own strength."""
    report.add_section("People")
    table = people.table()
    less, more = (table["less_sensitive"] > _CERTAIN).sum(), (table["less_sensitive"] < 1 - _CERTAIN).sum()
    said = (
        f"Of {len(table):,} people with {table['choices'].min():,} to {table['choices'].max():,} choices each, {less:,} are "
        f"less sensitive than the median person with a probability above {_CERTAIN:.0%}, and {more:,} more sensitive. The "
        "choices of the others don't tell on which side of the median they are."
    )
    if (table["opposed"] > 0.01).any():
        said += (
            f" {(table['opposed'] > _CERTAIN).sum():,} are opposed with a probability above {_CERTAIN:.0%}: they prefer what "
            "the margin speaks against."
        )
    report.add_text(said)
    report.add_figure(plot_people(people), "Each person's strength given their choices, ordered; intervals of 90 %.")
    ordered = table.sort_values("beta_mean", kind="stable")
    ends = ordered if len(ordered) <= 2 * _SHOWN_PEOPLE else _both_ends(ordered)
    report.add_table(
        Table.from_frame(
            ends,
            f"The {_SHOWN_PEOPLE} least and the {_SHOWN_PEOPLE} most sensitive people. Agreement is the share of choices "
            "with the sign of the margin; less_sensitive and opposed are probabilities.",
            "annotator",
        )
    )


def _both_ends(ordered: Any) -> Any:
    import pandas as pd

    return pd.concat([ordered.head(_SHOWN_PEOPLE), ordered.tail(_SHOWN_PEOPLE)])


def add_groups(report: Report, posterior: PosteriorDraws) -> None:
    """The strength of each set of people with the same columns."""
    report.add_section("Groups")
    labels, values = group_means(posterior)
    low, high = np.quantile(values, [0.025, 0.975], axis=0)
    rows = [
        [labels[i], float(np.median(values[:, i])), (low[i], high[i])] for i in np.argsort(np.median(values, axis=0))
    ]
    report.add_figure(plot_groups(posterior), "The mean of β for each group, with its 95 % interval.")
    report.add_table(
        Table(
            ["group", "mean of β", "95 %"],
            rows,
            "Levels are partially pooled: those of small groups are drawn together.",
        )
    )


def add_checks(report: Report, checks: PredictiveChecks) -> None:
    """Whether replicated choices look like those observed."""
    report.add_section("Predictive checks")
    for sentence in checks.sentences:
        report.add_text(sentence)
    report.add_table(
        Table.from_frame(
            checks.table(),
            "Observed statistics beside those of replicated choices; low and high hold 95 % of the replications.",
            "statistic",
        )
    )
    if "agreement" in checks.statistics:
        report.add_figure(plot_agreement(checks), "How often each person agrees with the margin's sign.")


def add_comparison(report: Report, comparison: Comparison | Mapping[str, Any]) -> None:
    """Models side by side.

    :param comparison: of :func:`~pluralpref.diagnostics.compare`, or its record as ``pluralpref compare`` writes it.
    """
    import pandas as pd

    record = comparison.record() if isinstance(comparison, Comparison) else comparison
    report.add_section("Models compared")
    for sentence in record["sentences"]:
        report.add_text(sentence)
    for level, rows in record["levels"].items():
        frame = pd.DataFrame(rows).set_index("model")
        report.add_figure(plot_comparison(frame, level=level), f"Prediction of one {level} that is left out.")
        report.add_table(
            Table.from_frame(
                frame,
                f"One {level} left out at a time, by Pareto-smoothed importance sampling; nats. weight is the stacking "
                "weight, high_k counts units with a Pareto k-hat above 0.7.",
                "model",
            )
        )
    drivers = record.get("drivers")
    if drivers:
        units = drivers["units"]
        report.add_table(
            Table(
                list(units[0]),
                [list(unit.values()) for unit in units],
                f"Units that make {drivers['model']} better than {drivers['reference']}: gain in nats, share of all gains.",
            )
        )


def add_calibration(report: Report, calibration: CalibrationResult) -> None:
    """Simulation-based calibration of the method."""
    report.add_section("Calibration of the inference")
    fine = calibration.uniform()
    (report.add_text if fine else report.add_notice)(repr(calibration))
    report.add_figure(
        plot_calibration_ranks(calibration),
        "Ranks of true parameters among posterior draws, over simulated data sets; a calibrated method keeps in the band.",
    )
    report.add_table(Table.from_frame(calibration.summary(), "", "quantity"))
