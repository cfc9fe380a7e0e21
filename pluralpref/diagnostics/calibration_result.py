"""The ranks that simulation-based calibration gives, and what they say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pluralpref.diagnostics import rank_uniformity
from pluralpref.errors import ConfigError


@dataclass(frozen=True, repr=False)
class CalibrationResult:
    """What :func:`~pluralpref.diagnostics.simulation_based_calibration` gives back.

    :param ranks: (simulations,) integers from 0 to ``num_draws`` by quantity: how many draws are below the truth.
        Simulations whose fit failed aren't among them.
    :param num_draws: the number of posterior draws that each truth is ranked among.
    :param num_simulations: the number of data sets that were simulated, failed fits included.
    :param failures: how many fits failed, by reason (the error's class and message, numbers replaced by ``#``).
    :param warnings: how many fits gave a warning, by reason.
    :param family: the class name of the strength model.
    :param method: the method of inference.
    """

    ranks: Mapping[str, np.ndarray]
    num_draws: int
    num_simulations: int
    failures: Mapping[str, int] = field(default_factory=dict)
    warnings: Mapping[str, int] = field(default_factory=dict)
    family: str = ""
    method: str = ""

    @property
    def names(self) -> list[str]:
        """The quantities."""
        return list(self.ranks)

    @property
    def num_failed(self) -> int:
        """The number of simulations without ranks."""
        return sum(self.failures.values())

    @property
    def points(self) -> np.ndarray:
        """The scaled ranks at which the ECDF is evaluated, (num_draws,): i / (num_draws + 1)."""
        return rank_uniformity.points(self.num_draws)

    def ecdf_difference(self, name: str) -> np.ndarray:
        r"""The share of simulations with a scaled rank below each of ``points``, minus the expected one, (num_draws,).

        :raises ConfigError: for an unknown quantity.
        """
        return rank_uniformity.ecdf_difference(self._ranks(name), self.num_draws)

    def envelope(self, prob: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """The band that the whole :meth:`ecdf_difference` of one calibrated quantity keeps with probability ``prob``.

        Simultaneous over the points, by simulation of uniform ranks: see
        :mod:`pluralpref.diagnostics.rank_uniformity`.

        :returns: lower and upper limit, (num_draws,) each.
        :raises ConfigError: if ``prob`` is outside (0, 1), or nearer to 1 than the simulation can tell.
        """
        return rank_uniformity.envelope(self.num_simulations - self.num_failed, self.num_draws, prob)

    def p_value(self, name: str) -> float:
        r"""How often uniform ranks leave as wide a simultaneous band: the test that belongs to :meth:`envelope`.

        The statistic is the smallest two-sided binomial tail probability of the ECDF over ``points``; the p-value is
        the share of 10,000 samples of uniform ranks in which it is as small. Not adjusted for the number of
        quantities.

        :raises ConfigError: for an unknown quantity.

        Reference: Säilynoja, Bürkner and Vehtari, arXiv:2103.10522, section 2.
        """
        return rank_uniformity.p_value(self._ranks(name), self.num_draws)

    def uniform(self, prob: float = 0.99) -> bool:
        """Whether no quantity's ranks deviate from uniform.

        A calibrated method passes with probability ``prob`` at least: p-values are adjusted for the number of
        quantities by Holm's method, whose smallest is Bonferroni's.

        :raises ConfigError: if ``prob`` is outside (0, 1).
        """
        rank_uniformity.check_prob(prob)
        return bool(min(self._adjusted().values()) > 1 - prob)

    def summary(self, prob: float = 0.99) -> Any:
        """One row for each quantity.

        Columns: ``p_value``; ``p_adjusted`` by Holm's method over the quantities; ``mean_rank``, as a share of
        ``num_draws``, so that 0.5 is expected; ``verdict``: ``"uniform"``, or, where ``p_adjusted`` is at most
        ``1 - prob``, what the ranks say: the draws are too narrow, too wide, too low or too high, or of another shape.

        :returns: a pandas ``DataFrame`` with the quantities as index. Its ``attrs`` hold ``failures``, ``warnings``,
            ``num_simulations``.
        :raises ConfigError: if ``prob`` is outside (0, 1).
        """
        import pandas as pd

        rank_uniformity.check_prob(prob)
        rows = [
            {
                "p_value": self.p_value(name),
                "p_adjusted": adjusted,
                "mean_rank": self.ranks[name].mean() / self.num_draws,
                "verdict": (
                    "uniform"
                    if adjusted > 1 - prob
                    else rank_uniformity.describe_deviation(self.ranks[name], self.num_draws)
                ),
            }
            for name, adjusted in self._adjusted().items()
        ]
        table = pd.DataFrame(rows, index=pd.Index(self.names, name="quantity"))
        table.attrs = {
            "num_simulations": self.num_simulations,
            "failures": dict(self.failures),
            "warnings": dict(self.warnings),
        }
        return table

    def __repr__(self) -> str:
        table = self.summary()
        wrong = table[table["verdict"] != "uniform"]
        found = "; ".join(f"{name}: {row['verdict']} (p {row['p_value']:.2g})" for name, row in wrong.iterrows())
        if not found:
            found = f"all {len(table)} quantities uniform (smallest adjusted p {table['p_adjusted'].min():.2g})"
        parts = [f"{self.num_simulations} simulations"]
        if self.failures:
            parts.append(f"{self.num_failed} failed ({_counted(self.failures)})")
        if self.warnings:
            parts.append(f"warnings: {_counted(self.warnings)}")
        return f"CalibrationResult({self.family}, {self.method}, {', '.join(parts)}: {found})"

    def _ranks(self, name: str) -> np.ndarray:
        if name not in self.ranks:
            raise ConfigError(f"unknown quantity {name!r}: the ranks are of {', '.join(self.ranks)}")
        return self.ranks[name]

    def _adjusted(self) -> dict[str, float]:
        values = rank_uniformity.holm(np.array([self.p_value(name) for name in self.names]))
        return dict(zip(self.names, values.tolist(), strict=True))


def _counted(reasons: Mapping[str, int]) -> str:
    classes: dict[str, int] = {}
    for reason, count in reasons.items():
        kind = reason.partition(":")[0]
        classes[kind] = classes.get(kind, 0) + count
    return ", ".join(f"{count} {kind}" for kind, count in classes.items())
