"""Splits that keep people, conversations or other groups whole."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from datasets import Dataset

from pluralpref.data.labels import is_blank
from pluralpref.errors import ConfigError, DataError

_BATCH = 10_000


def disjoint_split(
    dataset: Dataset, by: str = "annotator", fraction: float = 0.2, seed: int = 0
) -> tuple[Dataset, Dataset]:
    """Hold out a fraction of the people, or of another column's values, with all their rows.

    Values are ranked by a hash of seed and value, and the first round(fraction · number of values) held out. So the
    split depends on the seed and on which values there are, neither on the order of the rows nor on their number.

    :param by: the column: ``"annotator"``, ``"conversation"`` or any other one of text, numbers or truth values.
    :param fraction: share of the values that is held out, between 0 and 1.
    :param seed: another seed, another split.
    :returns: training and held-out rows, in their order. No value is on both sides.
    :raises DataError: if the column is missing, empty somewhere or not of plain values, or has too few values for both
        sides to get one.
    :raises ConfigError: if fraction isn't between 0 and 1.
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"fraction={fraction}: expected a number between 0 and 1, exclusive")
    if by not in dataset.column_names:
        raise DataError(f"no column {by!r} to split by: there are {', '.join(dataset.column_names)}")
    column = dataset.select_columns([by])
    values = _values(column, by)
    count = round(fraction * len(values))
    if not 0 < count < len(values):
        raise DataError(
            f"fraction={fraction} of {len(values)} values of {by!r} leaves one side empty: both sides need at least one"
        )
    held_out = set(sorted(values, key=lambda value: (_rank(seed, value), str(value)))[:count])
    mask = np.concatenate(
        [np.fromiter((value in held_out for value in batch[by]), bool) for batch in column.iter(batch_size=_BATCH)]
    )
    return dataset.select(np.flatnonzero(~mask)), dataset.select(np.flatnonzero(mask))


def _values(column: Dataset, by: str) -> set[Any]:
    values: set[Any] = set()
    for start, batch in enumerate(column.iter(batch_size=_BATCH)):
        for position, value in enumerate(batch[by]):
            blank = is_blank(value)
            if blank or not isinstance(value, str | int | float):
                row = start * _BATCH + position
                found = "empty" if blank else f"a {type(value).__name__}"
                raise DataError(f"row {row}: column {by!r} is {found}; to split by it every row needs text or a number")
            values.add(value)
    return values


def _rank(seed: int, value: Any) -> bytes:
    return hashlib.sha256(f"{seed}\0{value}".encode()).digest()
