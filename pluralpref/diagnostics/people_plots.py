"""Figures of people, groups, and of models side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pluralpref.diagnostics.plots import COLOURS, GREY, new_figure
from pluralpref.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pluralpref.inference.conditional import ConditionalStrengths
    from pluralpref.inference.posterior_draws import PosteriorDraws

#: More people than this are drawn as a band.
_MOST_BARS = 400


def plot_people(people: ConditionalStrengths, *, prob: float = 0.9) -> Figure:
    r"""Each person's strength given their choices, ordered by its mean, with its equal-tailed interval.

    :param people: made by ``posterior.beta_given_choices()``.
    :param prob: the mass of the intervals.
    :raises ConfigError: if ``prob`` is outside (0, 1).
    """
    low, high = people.interval(prob)
    order = np.argsort(people.mean, kind="stable")
    place = np.arange(len(people))
    figure, ax = new_figure()
    shown = f"{prob:.0%} interval"
    if len(people) <= _MOST_BARS:
        ax.vlines(place, low[order], high[order], color=COLOURS[0], alpha=0.35, linewidth=1.2, label=shown)
    else:
        ax.fill_between(place, low[order], high[order], color=COLOURS[0], alpha=0.25, linewidth=0, label=shown)
    ax.plot(place, people.mean[order], ".", color=COLOURS[1], markersize=3, label="mean given the choices")
    average = float(people.mean.mean())
    ax.axhline(average, color=GREY, linestyle="--", linewidth=1, label="average person")
    if (low < 0).any():
        ax.axhline(0, color=COLOURS[6], linewidth=0.6)
    ax.set(xlabel="people, ordered", ylabel="preference strength β (1/nat)", title="Strength of each person")
    ax.legend(frameon=False, loc="upper left")
    return figure


def plot_groups(posterior: PosteriorDraws, *, prob: float = 0.95) -> Figure:
    r"""The mean of :math:`\beta` for each set of people with the same columns, with its interval.

    :param posterior: of a model that reads columns (groups or covariates).
    :param prob: the mass of the equal-tailed intervals.
    :raises ConfigError: if the posterior has no ``beta_mean_context``: its law doesn't depend on columns, or on more than 64
        sets of values.
    """
    labels, values = group_means(posterior)
    middle = np.median(values, axis=0)
    low, high = np.quantile(values, [(1 - prob) / 2, (1 + prob) / 2], axis=0)
    order = np.argsort(middle)
    place = np.arange(len(labels))
    figure, ax = new_figure(6.4, max(2.4, 1.2 + 0.28 * len(labels)))
    ax.hlines(place, low[order], high[order], color=COLOURS[0], linewidth=2.2, alpha=0.6, label=f"{prob:.0%} interval")
    ax.plot(middle[order], place, "o", color=COLOURS[1], markersize=4, label="median")
    ax.set_yticks(place, [labels[i] for i in order])
    ax.set(xlabel="mean of β (1/nat)", title="Preference strength by group")
    ax.set_ylim(-0.6, len(labels) - 0.4)
    ax.legend(frameon=False, loc="lower right", fontsize="small")
    return figure


def group_means(posterior: PosteriorDraws) -> tuple[list[str], np.ndarray]:
    """(labels, draws of the mean of beta (draws, contexts)) for each set of people with the same columns.

    :raises ConfigError: if there are none.
    """
    if "beta_mean_context" not in posterior.quantities:
        raise ConfigError(
            f"the posterior of {posterior.family} has no beta_mean_context: its law doesn't depend on columns, or they have "
            "too many different values"
        )
    values = posterior.draws("beta_mean_context")
    contexts = posterior.problem.contexts
    assert contexts is not None
    return contexts.labels(), values.reshape(-1, values.shape[-1])


def plot_comparison(table: Any, *, level: str = "") -> Figure:
    """Differences of the expected log predictive density to the best model, with two standard errors.

    :param table: one of :attr:`Comparison.tables`.
    :param level: what was left out, for the title.
    """
    names = [str(name) for name in table.index]
    difference, error = table["elpd_diff"].to_numpy(float), table["dse"].to_numpy(float)
    place = np.arange(len(names))[::-1]
    figure, ax = new_figure(6.4, max(2.4, 1.2 + 0.34 * len(names)))
    ax.axvline(0, color=GREY, linewidth=1, linestyle="--")
    ax.hlines(place, -difference - 2 * error, -difference + 2 * error, color=COLOURS[0], linewidth=2.2, alpha=0.6,
              label="± 2 standard errors")  # fmt: skip
    ax.plot(-difference, place, "o", color=COLOURS[1], markersize=4, label="difference to the best")
    ax.set_yticks(place, names)
    of_what = f" of a left-out {level}" if level else ""
    ax.set(xlabel="expected log predictive density minus the best one's (nats)", title=f"Prediction{of_what}")
    ax.set_ylim(-0.6, len(names) - 0.4)
    ax.legend(frameon=False, loc="upper left", fontsize="small")
    return figure
