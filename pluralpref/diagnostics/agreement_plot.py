"""The figure of how often annotators agree with the margins, observed and replicated."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pluralpref.diagnostics.plots import COLOURS, GREY, new_figure
from pluralpref.diagnostics.predictive_checks import PredictiveChecks
from pluralpref.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_BINS = 20


def plot_agreement(checks: PredictiveChecks, *, prob: float = 0.9) -> Figure:
    """Histogram of the annotators' agreement with the margins' signs, with that of the replications.

    The band holds ``prob`` of the replicated counts of each bin by itself, so that a few of the bins lie outside of it by
    chance. Observed counts above the band in both tails: people differ more than the model says.

    :raises ConfigError: without annotators, or for ``prob`` outside (0, 1).
    """
    if "agreement" not in checks.statistics:
        raise ConfigError("there is no agreement to plot without annotators: fit with annotator=...")
    if not 0 < prob < 1:
        raise ConfigError(f"prob={prob}: must lie strictly between 0 and 1")
    people = checks.statistics["agreement"]
    edges = _edges(int(np.median(people.count)))
    observed, _ = np.histogram(people.observed, bins=edges)
    replicated = np.array([np.histogram(row, bins=edges)[0] for row in people.replicated])
    low, high = np.quantile(replicated, [(1 - prob) / 2, (1 + prob) / 2], axis=0)
    seen = np.flatnonzero(observed + replicated.sum(0))
    figure, ax = new_figure()
    ax.stairs(high, edges, baseline=low, color=COLOURS[0], fill=True, alpha=0.25, linewidth=0,
              label=f"{checks.people} people by the model, {prob:.0%} band")  # fmt: skip
    ax.stairs(replicated.mean(0), edges, color=COLOURS[0], linestyle="--", linewidth=1.2, label="their mean")
    ax.stairs(observed, edges, color=COLOURS[1], linewidth=1.6, label="observed")
    ax.axvline(0.5, color=GREY, linestyle=":", linewidth=1)
    ax.set_xlim(edges[seen[0]], edges[seen[-1] + 1])
    ax.set_ylim(bottom=0)
    ax.yaxis.get_major_locator().set_params(integer=True)
    spread = checks.table().loc["agreement_sd"]
    ax.set(
        xlabel="share of an annotator's choices that agree with the margin",
        ylabel="annotators",
        title=f"Agreement of {len(people.observed)} annotators\nsd {spread['observed']:.3g}, "
        f"predicted {spread['low']:.3g} to {spread['high']:.3g} (95 %)",
    )
    ax.legend(frameon=False, fontsize="small")
    return figure


def _edges(choices: int) -> np.ndarray:
    # Shares of n choices are multiples of 1/n: bins that hold as many of these each have no teeth like a comb. Edges lie
    # between the multiples, where rounding can't move a share across.
    values = max(1, -(-choices // _MOST_BINS))
    bins = choices // values + 1
    return (np.arange(bins + 1) * values - 0.5) / max(choices, 1)
