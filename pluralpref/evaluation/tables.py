"""Metrics of each annotator and of each group, as tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from pluralpref.errors import DataError
from pluralpref.evaluation.cluster_sums import LEVELLED, pair_values
from pluralpref.evaluation.labels import MISSING
from pluralpref.evaluation.scores import PairScores

_MEASURES = ("margins", "accuracy", "log_loss", "ties")


def per_annotator_table(scores: PairScores) -> Any:
    """Metrics of each annotator's pairs.

    :returns: a pandas ``DataFrame`` with the annotators as index, in order of first appearance: ``pairs``; weighted means
        ``margins`` (nats), ``accuracy``, ``log_loss`` (nats a pair), ``ties``, which are NaN where all weights are 0;
        ``single_pair``, whether there is one pair only, so that nothing is known of how much the means vary.
    :raises DataError: where annotators aren't known.
    """
    if scores.annotator is None:
        raise DataError("a table of annotators needs annotators: give a column 'annotator'")
    return _table(scores, scores.annotator, pd.Index(scores.annotator_names, name="annotator"))


def group_table(scores: PairScores, column: str, intervals: Any = None) -> Any:
    """Metrics of the pairs of each value of a group column.

    :param intervals: what :func:`bootstrap_intervals` found for the same scores.
    :returns: a pandas ``DataFrame`` with the values as index: the columns of :func:`per_annotator_table`, and
        ``annotators``, the number of different people, where they are known. Pairs without a value are the last row,
        ``missing``. With intervals also ``margins_low``, ``margins_high`` and so on.
    :raises DataError: for a column that isn't there, naming those there are.
    """
    if column not in scores.groups:
        raise DataError(f"there is no group column {column!r}; there are {', '.join(scores.groups) or 'none'}")
    names, codes = np.unique(scores.groups[column], return_inverse=True)
    table = _table(scores, codes, pd.Index(names, name=column))
    if scores.annotator is not None:
        people = pd.Series(scores.annotator).groupby(codes).nunique()
        table.insert(1, "annotators", people.to_numpy())
    if intervals is not None:
        for measure in LEVELLED:
            ends = intervals.reindex([f"group/{column}={name}/{measure}" for name in names])
            for place, end in enumerate(("low", "high"), table.columns.get_loc(measure) + 1):
                table.insert(place, f"{measure}_{end}", ends[end].to_numpy())
    return table.iloc[np.argsort(names == MISSING, kind="stable")]


def worst_groups(scores: PairScores) -> Any:
    """Which value of each group column has the lowest margin, the lowest accuracy and the highest log-loss.

    Of equals the first by name. Every value counts, ``missing`` and those with one pair too: look at ``pairs``.

    :returns: a pandas ``DataFrame`` with index (column, metric): ``group``, the value's name; ``value``, its metric;
        ``pairs``; ``single_pair``.
    """
    rows, index = [], []
    for column in scores.groups:
        table = group_table(scores, column).sort_index()
        for measure in LEVELLED:
            # Some group has weight, or the choices would have been refused.
            name = table[measure].idxmax() if measure == "log_loss" else table[measure].idxmin()
            row = table.loc[name]
            rows.append((str(name), float(row[measure]), int(row["pairs"]), bool(row["single_pair"])))
            index.append((column, measure))
    return pd.DataFrame(
        rows,
        columns=["group", "value", "pairs", "single_pair"],
        index=pd.MultiIndex.from_tuples(index, names=["column", "metric"]) if index else None,
    )


def _table(scores: PairScores, codes: np.ndarray, index: pd.Index) -> pd.DataFrame:
    values = pair_values(scores)
    count = len(index)
    pairs = np.bincount(codes, minlength=count)
    mass = np.bincount(codes, scores.weight, count)
    mass = np.where(mass > 0, mass, np.nan)
    table = pd.DataFrame({"pairs": pairs}, index=index)
    for name in _MEASURES:
        table[name] = np.bincount(codes, scores.weight * values[name], count) / mass
    return table.assign(single_pair=pairs == 1)
