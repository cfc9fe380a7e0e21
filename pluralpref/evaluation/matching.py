"""The pairs of several runs, put in one order; runs on different pairs are refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pluralpref.errors import DataError
from pluralpref.evaluation.scores import PairScores

_NAMED = 3


def matched(runs: Mapping[str, PairScores]) -> tuple[dict[str, PairScores], str]:
    """(scores with the rows in the first run's order, ``"key"`` or ``"order"``: what they were matched by).

    Pairs are matched by their keys where every run has keys, otherwise by the order of the rows. Either way labels,
    weights, annotators, groups and clusters must be the same, pair by pair.

    :raises DataError: naming the runs and the first pairs that differ.
    """
    first_name, first = next(iter(runs.items()))
    keyed = [name for name, scores in runs.items() if scores.key is not None]
    if keyed and len(keyed) < len(runs):
        lacking = next(name for name in runs if name not in keyed)
        raise DataError(
            f"run {keyed[0]!r} has keys of its pairs (column 'row') and run {lacking!r} has none: give both a column that "
            "names the pair, or leave it out of both to match them by order"
        )
    result = {}
    for name, scores in runs.items():
        if scores.num_pairs != first.num_pairs and not keyed:
            raise DataError(
                f"run {name!r} has {scores.num_pairs} pairs and run {first_name!r} has {first.num_pairs}: score both on "
                "the same held-out pairs"
            )
        rows = _rows_in_order(first_name, first, name, scores) if keyed else np.arange(first.num_pairs)
        result[name] = scores.take(rows)
        _require_same(first_name, first, name, result[name])
    return result, "key" if keyed else "order"


def _rows_in_order(first_name: str, first: PairScores, name: str, scores: PairScores) -> np.ndarray:
    wanted, there = _row_of(first_name, first), _row_of(name, scores)
    lacking = [key for key in wanted if key not in there]
    further = [key for key in there if key not in wanted]
    if lacking or further:
        parts = [
            f"{len(keys)} {what} ({_shown(keys)})"
            for keys, what in (
                (lacking, f"pairs of run {first_name!r} aren't in run {name!r}"),
                (further, f"of run {name!r} aren't in run {first_name!r}"),
            )
            if keys
        ]
        raise DataError(f"{'; '.join(parts)}: score both on the same held-out pairs, or leave these rows out of both")
    return np.array([there[key] for key in wanted])


def _row_of(name: str, scores: PairScores) -> dict[Any, int]:
    assert scores.key is not None
    rows: dict[Any, int] = {}
    for row, key in enumerate(scores.key):
        if rows.setdefault(key, row) != row:
            raise DataError(
                f"run {name!r}: rows {rows[key]} and {row} have the same key {key!r}: a key must name one pair"
            )
    return rows


def _require_same(first_name: str, first: PairScores, name: str, other: PairScores) -> None:
    columns, others = _columns(first), _columns(other)
    for column in [*columns, *(extra for extra in others if extra not in columns)]:
        if column not in columns or column not in others:
            has, lacks = (first_name, name) if column in columns else (name, first_name)
            raise DataError(f"run {has!r} has {column} and run {lacks!r} has not: give it to both or to neither")
        differ = np.flatnonzero(columns[column] != others[column])
        if len(differ):
            row = differ[0]
            pair = f"the pair of row {row} of run {first_name!r}"
            raise DataError(
                f"the runs {first_name!r} and {name!r} aren't on the same pairs: {column} differs in {len(differ)} of "
                f"{first.num_pairs}; for {pair} it is {columns[column][row]!r} and {others[column][row]!r}"
            )


def _columns(scores: PairScores) -> dict[str, np.ndarray]:
    columns = {"preferred": scores.preferred.astype(object), "weight": scores.weight.astype(object)}
    if scores.annotator is not None:
        names = np.empty(len(scores.annotator_names), dtype=object)
        names[:] = scores.annotator_names
        columns["annotator"] = names[scores.annotator]
    if scores.cluster is not None:
        columns[scores.cluster_name] = scores.cluster
    return columns | {name: labels.astype(object) for name, labels in scores.groups.items()}


def _shown(keys: list[Any]) -> str:
    return ", ".join(repr(key) for key in keys[:_NAMED]) + (", …" if len(keys) > _NAMED else "")
