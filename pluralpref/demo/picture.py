"""The demo's picture: what was put in, what training ended with, and what the posterior says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from pluralpref.diagnostics.plots import COLOURS
from pluralpref.models import LogNormalStrength

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LARGEST = 3.5


@dataclass(frozen=True)
class Panel:
    """One population.

    :param true_cv: of its annotators' strengths.
    :param training_cv: of the log-normal law at the end of training.
    :param posterior_cv: draws of the posterior on held-out margins, (draws,).
    """

    true_cv: float
    training_cv: float
    posterior_cv: np.ndarray


def plot_populations(panels: Sequence[Panel]) -> Figure:
    """Densities of beta relative to its mean, one panel for each population; a point mass is a vertical line.

    A policy that is free fixes beta up to scale only, so the truth can be compared in this unit alone.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    grid = np.linspace(0.01, _LARGEST, 600)
    for ax, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        ax.spines[["top", "right"]].set_visible(False)
        draws = np.stack([_density(cv, grid) for cv in panel.posterior_cv])
        low, middle, high = np.quantile(draws, [0.05, 0.5, 0.95], axis=0)
        ax.fill_between(grid, low, high, color=COLOURS[0], alpha=0.25, linewidth=0, label="posterior, 90% band")
        ax.plot(grid, middle, color=COLOURS[0], label="posterior, median")
        training = _density(panel.training_cv, grid)
        ax.plot(grid, training, color=COLOURS[1], linestyle="--", label="LogNormal, end of training")
        top = max(middle.max(), training.max())
        if panel.true_cv:
            truth = _density(panel.true_cv, grid)
            ax.plot(grid, truth, color=COLOURS[6], linestyle=":", label="truth")
            top = max(top, truth.max())
        # Plain DPO gives everybody the same strength, and so did the homogeneous population's maker.
        label = "plain DPO" if panel.true_cv else "plain DPO, and truth"
        ax.axvline(1.0, color=COLOURS[3], linestyle="-.", label=label)
        ax.set(
            xlim=(0, _LARGEST),
            ylim=(0, 1.15 * top),
            xlabel="β relative to its mean",
            title=f"true cv {panel.true_cv:g}",
        )
        ax.legend(frameon=False, fontsize="small")
    return figure


def _density(cv: float, grid: np.ndarray) -> np.ndarray:
    law = LogNormalStrength(mean=1.0, cv=max(float(cv), 1e-3)).law()
    with torch.no_grad():
        return law.log_prob(torch.as_tensor(grid)).exp().numpy()
