"""Metrics from sums over clusters: the same lines give the data's own metrics and those of every resample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import csr_array, vstack

from pluralpref.evaluation.scores import PairScores

#: What is averaged over annotators and groups as well as over pairs.
LEVELLED = ("log_loss", "accuracy", "margins")


def pair_values(scores: PairScores) -> dict[str, np.ndarray]:
    """Each measure of each pair, by the name of its mean."""
    values = {"log_loss": scores.log_loss, "accuracy": scores.win, "ties": scores.tie, "margins": scores.margin}
    values["brier"] = scores.brier(scores.probability)
    if scores.has_plug_in:
        values["log_loss/plug_in"] = scores.plug_in_log_loss
        values["brier/plug_in"] = scores.brier(scores.plug_in)
    return values


@dataclass(frozen=True)
class _Level:
    """Sums of a partition of the pairs into units (all of them, a person, a group).

    :param sums: (1 + measures) * units rows, one column for each cluster: first the units' mass, then each measure's sums.
    :param clusters: in how many clusters each unit has mass, (units,).
    """

    names: tuple[str, ...]
    sums: csr_array
    clusters: np.ndarray

    def means(self, counts: np.ndarray) -> np.ndarray:
        """(measures, units, resamples), NaN where a unit has no mass."""
        found = (self.sums @ counts).reshape(1 + len(self.names), -1, counts.shape[1])
        mass = np.where(found[0] > 0, found[0], np.nan)
        return found[1:] / mass


class ClusterSums:
    """Everything that the metrics of a resample of clusters depend on.

    :param scores: the pairs.
    :param cluster: (pairs,) codes of 0 to ``count - 1``; -1 for a pair that belongs to none, of weight 0.
    :param count: the number of clusters.
    """

    def __init__(self, scores: PairScores, cluster: np.ndarray, count: int) -> None:
        rows = np.flatnonzero(cluster >= 0)
        scores, self._cluster, self._count = scores.take(rows), cluster[rows], count
        self._mean_beta = scores.mean_beta if scores.has_plug_in else None
        values = pair_values(scores)
        levelled = {name: values[name] for name in LEVELLED}
        weight = scores.weight
        self._pairs = self._level(values, weight, np.zeros(scores.num_pairs, dtype=np.int64), 1)
        self._annotators: _Level | None = None
        if scores.annotator is not None:
            self._annotators = self._people(levelled, weight, scores.annotator, len(scores.annotator_names))
        self._groups: dict[str, tuple[np.ndarray, _Level]] = {}
        for column, labels in scores.groups.items():
            names, codes = np.unique(labels, return_inverse=True)
            self._groups[column] = (names, self._level(levelled, weight, codes, len(names)))

    def metrics(self, counts: np.ndarray) -> dict[str, np.ndarray]:
        """Every metric by name, (resamples,), NaN where none of its pairs was drawn.

        :param counts: (clusters, resamples), how often each cluster was drawn; all 1 for the data as they are.
        """
        result = dict(zip(self._pairs.names, self._pairs.means(counts)[:, 0], strict=True))
        if self._mean_beta is not None:
            result["rewards/margins"] = self._mean_beta * result["margins"]
        if self._annotators is not None:
            means = _mean_of_known(self._annotators.means(counts))
            result.update({f"{name}/macro": row for name, row in zip(self._annotators.names, means, strict=True)})
        for column, (labels, level) in self._groups.items():
            means = level.means(counts)
            for name, row in zip(level.names, _mean_of_known(means), strict=True):
                result[f"{name}/macro/{column}"] = row
            for unit, label in enumerate(labels):
                for name, row in zip(level.names, means[:, unit], strict=True):
                    result[f"group/{column}={label}/{name}"] = row
        return result

    def clusters(self) -> dict[str, int]:
        """How many clusters each metric rests on."""
        everything = int(self._pairs.clusters[0])
        result = dict.fromkeys([*self._pairs.names, "rewards/margins"], everything)
        if self._annotators is not None:
            result.update(dict.fromkeys((f"{name}/macro" for name in self._annotators.names), everything))
        for column, (labels, level) in self._groups.items():
            result.update(dict.fromkeys((f"{name}/macro/{column}" for name in level.names), everything))
            for label, number in zip(labels, level.clusters, strict=True):
                result.update({f"group/{column}={label}/{name}": int(number) for name in level.names})
        return result

    def _level(self, values: dict[str, np.ndarray], weight: np.ndarray, unit: np.ndarray, units: int) -> _Level:
        def sums(x: np.ndarray) -> csr_array:  # duplicates are added up
            return csr_array((x, (unit, self._cluster)), shape=(units, self._count))

        mass = sums(weight)
        stacked = vstack([mass, *(sums(weight * x) for x in values.values())], format="csr")
        return _Level(tuple(values), stacked, _positive(mass))

    def _people(self, values: dict[str, np.ndarray], weight: np.ndarray, code: np.ndarray, people: int) -> _Level:
        """A person who is drawn twice counts as two people, where each lies in one cluster."""
        known = np.flatnonzero(weight > 0)
        home = np.full(people, -1, dtype=np.int64)
        home[code[known]] = self._cluster[known]
        if (home[code[known]] != self._cluster[known]).any():
            return self._level(values, weight, code, people)
        mass = np.bincount(code, weight, people)
        there = mass > 0
        rows: list[Any] = [np.bincount(home[there], minlength=self._count).astype(np.float64)]
        for x in values.values():
            means = np.bincount(code, weight * x, people)[there] / mass[there]
            rows.append(np.bincount(home[there], means, self._count))
        return _Level(tuple(values), csr_array(np.array(rows)), np.array([(rows[0] > 0).sum()]))


def _positive(mass: csr_array) -> np.ndarray:
    return np.asarray((mass > 0).sum(axis=1)).ravel()


def _mean_of_known(means: np.ndarray) -> np.ndarray:
    """The mean over units that are there, (measures, resamples)."""
    known = ~np.isnan(means)
    number = known.sum(1)
    total = np.where(known, means, 0.0).sum(1)
    return total / np.where(number > 0, number, np.nan)
