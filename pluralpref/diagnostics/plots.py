"""Figures of training runs and posteriors.

Every function returns a :class:`matplotlib.figure.Figure` made without pyplot: nothing is registered globally, no
window opens, and no display is needed. Save one with ``figure.savefig(path)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pluralpref.distributions.mixture import log_density
from pluralpref.distributions.structure import atoms_of
from pluralpref.errors import ConfigError, DataError
from pluralpref.evaluation import calibration_table
from pluralpref.models import StrengthModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pluralpref.inference.posterior_draws import PosteriorDraws

# Okabe and Ito's palette, which colour-blind readers can tell apart; lines differ in style as well.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES = ("-", "--", "-.", ":")
GREY = "#666666"
_MOST_COMPONENTS = 8


def new_figure(width: float = 6.4, height: float = 4.0, columns: int = 1) -> tuple[Figure, Any]:
    """A figure of that many inches with a row of axes, or one, in the house style; made without pyplot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, columns)
    for ax in np.atleast_1d(axes):
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(True, alpha=0.25, linewidth=0.6)
    return figure, axes


@torch.no_grad()
def plot_strength(
    posterior: PosteriorDraws | None = None,
    training_law: StrengthModel | None = None,
    *,
    truth: Any = None,
    prob: float = 0.9,
) -> Figure:
    r"""The density of :math:`\beta` in the population: the training law, and the posterior with its band.

    The line is the median over the draws of the density at each point, the band holds ``prob`` of the draws. A point
    mass is drawn as a vertical line; a posterior of laws with point masses, or of a family that isn't known, as a
    histogram of people's strengths.

    :param posterior: fitted on held-out margins.
    :param training_law: where the strength stood at the end of training.
    :param truth: a distribution to compare with, where it is known (simulations).
    :raises ConfigError: if there is nothing to draw.
    """
    if posterior is None and training_law is None and truth is None:
        raise ConfigError("plot_strength needs a posterior, a training law, or a true law")
    figure, ax = new_figure()
    grid = _strength_grid(posterior, training_law, truth)
    top = 0.0
    if posterior is not None and posterior.has_spread and not posterior.has_density:
        drawn = posterior.draws("beta").ravel()
        heights, edges = np.histogram(drawn, bins=np.linspace(grid[0], grid[-1], 61))
        heights = heights / (len(drawn) * (edges[1] - edges[0]))
        ax.stairs(heights, edges, color=COLOURS[0], fill=True, alpha=0.4, label="posterior, strengths of people")
        top = max(top, float(heights.max()))
    elif posterior is not None and posterior.has_spread:
        density = posterior.density(grid)
        low, middle, high = np.quantile(density, [(1 - prob) / 2, 0.5, (1 + prob) / 2], axis=0)
        ax.fill_between(grid, low, high, color=COLOURS[0], alpha=0.25, linewidth=0, label=f"posterior, {prob:.0%} band")
        ax.plot(grid, middle, color=COLOURS[0], label="posterior, median")
        top = max(top, _visible_top(middle))
    elif posterior is not None:
        low, high = posterior.interval("beta_mean", prob)
        ax.axvspan(low, high, color=COLOURS[0], alpha=0.25, linewidth=0, label=f"posterior of the one β, {prob:.0%}")
    for law, colour, style, label in (
        (None if training_law is None else training_law.law(), COLOURS[1], "--", "training law"),
        (truth, COLOURS[6], ":", "truth"),
    ):
        if law is None:
            continue
        points = atoms_of(law)
        for value, share in points:
            shown = label if len(points) == 1 and share > 0.999 else f"{label}: {share:.0%} at {value:.3g}"
            ax.axvline(value, color=colour, linestyle=style, label=shown)
        if sum(share for _, share in points) > 0.999:
            continue
        values = log_density(law, torch.as_tensor(grid)).exp().detach().numpy()
        ax.plot(grid, values, color=colour, linestyle=style, label=label)
        top = max(top, _visible_top(values))
    if top:
        ax.set_ylim(0, 1.15 * top)
    # Room on the left, so that a point mass at 0 is seen beside the axis.
    ax.set_xlim(min(-0.02 * grid[-1], grid[0]), grid[-1])
    ax.set(
        xlabel="preference strength β (1/nat)", ylabel="density (nats)", title="Preference strength in the population"
    )
    ax.legend(frameon=False)
    return figure


def _strength_grid(posterior: PosteriorDraws | None, training_law: StrengthModel | None, truth: Any) -> np.ndarray:
    ends = []
    if posterior is not None:
        ends.append(float(np.quantile(posterior.draws("beta"), 0.97)))
    if training_law is not None:
        ends.append(
            float(training_law.quantile(0.97)) if float(training_law.std) > 0 else 1.5 * float(training_law.mean)
        )
    if truth is not None:
        ends.append(float((truth.mean + 2 * truth.stddev).detach()))
    end = max(ends)
    lowest = [0.0]
    if posterior is not None:
        lowest.append(float(np.quantile(posterior.draws("beta"), 0.03)))
    if training_law is not None:
        lowest.append(float(training_law.quantile(0.03)))
    start = min(lowest)
    return np.linspace(start if start < 0 else end / 400, end, 400)


def _visible_top(density: np.ndarray) -> float:
    # A gamma law with cv > 1 is unbounded at 0: its first few points must not flatten all the rest.
    return float(np.quantile(density[np.isfinite(density)], 0.98))


def plot_parameter(
    posterior: PosteriorDraws, name: str = "beta_cv", *, truth: float | None = None, prob: float = 0.95
) -> Figure:
    """Histogram of one quantity's draws, with its prior and its interval.

    :param name: any single quantity of the posterior: ``"beta_cv"``, ``"beta_mean"``, a parameter.
    :param truth: marked where it is known.
    """
    values = posterior.draws(name).ravel()
    low, high = posterior.interval(name, prob)
    figure, ax = new_figure()
    span = float(values.max() - values.min()) or abs(float(values.mean())) or 1.0
    left, right = values.min() - 0.3 * span, values.max() + 0.3 * span
    left = max(left, 0.0) if values.min() >= 0 else left
    bins = np.linspace(left, right, 70)
    width = bins[1] - bins[0]
    ax.hist(values, bins=bins, density=True, color=COLOURS[0], alpha=0.6, label="posterior")
    prior = posterior.prior_draws(name).ravel()
    heights, _ = np.histogram(prior, bins=bins)
    ax.stairs(heights / (len(prior) * width), bins, color=GREY, linestyle="--", linewidth=1.4, label="prior")
    ax.plot([low, high], [0, 0], color=COLOURS[1], linewidth=5, solid_capstyle="butt", clip_on=False,
            label=f"{prob:.0%} interval {low:.3g} to {high:.3g}")  # fmt: skip
    if truth is not None:
        ax.axvline(truth, color=COLOURS[6], linestyle=":", label=f"truth {truth:.3g}")
    labels = {"beta_cv": "coefficient of variation of β (no unit)", "beta_mean": "mean of β (1/nat)"}
    ax.set(xlabel=labels.get(name, name), ylabel="density", title=f"Posterior of {name}")
    ax.legend(frameon=False)
    return figure


def plot_training(
    rows: Sequence[Mapping[str, Any]], names: Sequence[str] = ("loss", "beta/mean", "beta/cv", "rewards/accuracies")
) -> Figure:
    """Logged metrics over the steps, one panel each; ``eval_`` values of the same name are marked by points.

    :param rows: dicts as in ``metrics.jsonl``, with ``step``.
    :param names: those that occur nowhere are left out.
    :raises DataError: if no row has any of them.
    """
    present = [name for name in names if any(name in row or f"eval_{name}" in row for row in rows)]
    if not present:
        raise DataError(f"no row has any of the metrics {', '.join(names)}: was anything logged?")
    figure, axes = new_figure(3.4 * len(present), 3.2, len(present))
    units = {"loss": "loss (nats a pair)", "beta/mean": "mean of β (1/nat)", "beta/cv": "cv of β (no unit)",
             "rewards/accuracies": "accuracy (share of pairs)", "margins": "margin (nats)"}  # fmt: skip
    for position, (ax, name) in enumerate(zip(np.atleast_1d(axes), present, strict=True)):
        for prefix, style, label in (("", "-", "training"), ("eval_", "o", "evaluation")):
            points = [(row["step"], row[prefix + name]) for row in rows if prefix + name in row and "step" in row]
            if points:
                colour = COLOURS[0 if not prefix else 1]
                ax.plot(*zip(*points, strict=True), style, color=colour, markersize=4, label=label)
        ax.set(xlabel="optimiser step", ylabel=units.get(name, name))
        if position == 0:
            ax.legend(frameon=False)
    return figure


def plot_margins(margins: Any, *, label: str = "held-out pairs") -> Figure:
    """Histogram of margins, with the share of negative ones (the policy prefers the rejected answer) and of ties."""
    h = np.asarray(torch.as_tensor(margins, dtype=torch.float64))
    if h.size == 0 or not np.isfinite(h).all():
        raise DataError("margins must be finite and at least one")
    figure, ax = new_figure()
    low, high = np.quantile(h, [0.002, 0.998])
    pad = 0.05 * (high - low) or 1.0
    ax.hist(h.clip(low, high), bins=np.linspace(low - pad, high + pad, 61), color=COLOURS[0], alpha=0.7, label=label)
    ax.axvline(0, color=COLOURS[6], linewidth=1)
    ties = (h == 0).mean()
    ax.set(
        xlabel="margin h: log-ratio of the chosen minus the rejected answer (nats)",
        ylabel="pairs",
        title=f"{(h > 0).mean():.1%} above 0, {(h < 0).mean():.1%} below, {ties:.1%} ties",
    )
    ax.legend(frameon=False)
    return figure


def plot_calibration(laws: Mapping[str, Any], margins: Any, *, preferred: Any = None, bins: int = 10) -> Figure:
    r"""Reliability: how often the answer with the higher margin was preferred, against :math:`E[\sigma(\beta|h|)]`.

    :param laws: distributions of beta or strength models by label.
    :param margins: (pairs,) nats.
    :param bins: of equal counts; the bars are 95 % intervals.
    """
    figure, ax = new_figure(5.0, 4.6)
    ax.plot([0.5, 1], [0.5, 1], color=GREY, linewidth=1, label="perfect")
    for number, (label, law) in enumerate(laws.items()):
        table = calibration_table(law, margins, preferred, bins=bins)
        colour = COLOURS[number % len(COLOURS)]
        ax.errorbar(table["predicted"], table["observed"], yerr=1.96 * table["standard_error"], color=colour,
                    marker="osD^v"[number % 5], linestyle=_STYLES[number % 4], linewidth=1, markersize=4,
                    capsize=2, label=label)  # fmt: skip
    ax.set(
        xlabel="predicted probability E[σ(β|h|)]",
        ylabel="observed share of choices",
        title="Calibration of choice probabilities",
    )
    ax.legend(frameon=False)
    return figure


def plot_chains(posterior: PosteriorDraws, names: Sequence[str] | None = None, *, bins: int = 20) -> Figure:
    """Trace (left) and rank histogram (right) of each quantity.

    Chains that explore the same posterior have flat rank histograms: A. Vehtari et al., arXiv:1903.08008.

    :param names: quantities, by default the parameters; of a vector the first eight components.
    """
    series: dict[str, np.ndarray] = {}
    for name in names or posterior.names:
        values = posterior.draws(name)
        if values.ndim == 2:
            series[name] = values
        else:  # a vector, such as the shares of classes
            flat = values.reshape(*values.shape[:2], -1)
            series.update({f"{name}[{k}]": flat[..., k] for k in range(min(flat.shape[-1], _MOST_COMPONENTS))})
    from scipy.stats import rankdata

    figure, _ = new_figure(8.0, 2.4 * len(series), 1)
    figure.clear()
    axes = figure.subplots(len(series), 2, squeeze=False)
    for (trace, rank), (name, values) in zip(axes, series.items(), strict=True):
        ranks = rankdata(values).reshape(values.shape)
        edges = np.linspace(0, values.size + 1, bins + 1)
        for chain in range(values.shape[0]):
            colour, style = COLOURS[chain % len(COLOURS)], _STYLES[chain % 4]
            trace.plot(values[chain], color=colour, linewidth=0.6, alpha=0.8, label=f"chain {chain}")
            heights, _ = np.histogram(ranks[chain], bins=edges)
            rank.stairs(heights, edges, color=colour, linestyle=style)
        rank.axhline(values.shape[1] / bins, color=GREY, linewidth=1)
        trace.set(xlabel="draw after warm-up", ylabel=name)
        rank.set(xlabel="rank among all draws", ylabel="draws")
        for ax in (trace, rank):
            ax.spines[["top", "right"]].set_visible(False)
    axes[0, 0].legend(frameon=False, ncols=4, fontsize="small")
    return figure
