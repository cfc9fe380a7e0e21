"""The figure of simulation-based calibration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pluralpref.diagnostics.calibration_result import CalibrationResult
from pluralpref.diagnostics.plots import COLOURS, new_figure
from pluralpref.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_COLUMNS = 3


def plot_calibration_ranks(
    result: CalibrationResult, names: Sequence[str] | None = None, *, prob: float = 0.95
) -> Figure:
    r"""The ECDF of the ranks minus that of uniform ones, with its simultaneous band, one panel for each quantity.

    A calibrated quantity's whole line keeps within the band with probability ``prob``. Above it on the left and
    below on the right: draws too narrow; the other way round: too wide. Below all along: draws too low; above: too
    high.

    :param names: quantities, by default all.
    :param prob: of the band, for one quantity by itself.
    :raises ConfigError: for an unknown quantity or none, or ``prob`` outside (0, 1).

    Reference: Säilynoja, Bürkner and Vehtari, arXiv:2103.10522.
    """
    chosen = result.names if names is None else list(names)
    if not chosen:
        raise ConfigError("names is empty: leave it out for all quantities")
    columns = min(len(chosen), _MOST_COLUMNS)
    rows = math.ceil(len(chosen) / columns)
    lower, upper = result.envelope(prob)
    lines = [result.ecdf_difference(name) for name in chosen]
    figure, _ = new_figure(3.6 * columns, 2.9 * rows)
    figure.clear()
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for ax, name, line in zip(axes, chosen, lines, strict=False):
        ax.fill_between(result.points, lower, upper, color=COLOURS[0], alpha=0.2, linewidth=0, label=f"{prob:.0%} band")
        ax.axhline(0, color=COLOURS[6], linewidth=0.6)
        ax.plot(result.points, line, color=COLOURS[1], linewidth=1.2, label="ranks")
        ax.set(
            xlabel="rank of the truth (share of draws)",
            ylabel="ECDF minus uniform",
            title=f"{name} (p = {result.p_value(name):.2g})",
        )
        ax.spines[["top", "right"]].set_visible(False)
    for ax in axes[len(chosen) :]:
        ax.remove()
    axes[0].legend(frameon=False, fontsize="small")
    return figure
