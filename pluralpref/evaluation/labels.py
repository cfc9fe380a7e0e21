"""Labels of groups and clusters: what is missing has a name, and what isn't there is refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pluralpref.data.labels import is_blank
from pluralpref.errors import ConfigError, DataError

#: The name of a label that isn't there: a value of its own, shown beside the others.
MISSING = "missing"


def is_missing(values: Any) -> np.ndarray:
    """Which labels are ``None``, NaN, or text without a letter; (rows,) bool."""
    return np.fromiter(map(is_blank, values), dtype=bool)


def group_labels(values: Any) -> np.ndarray:
    """Labels as strings, those that aren't there as :data:`MISSING`; (rows,)."""
    values = values.tolist() if hasattr(values, "tolist") else list(values)
    return np.array(
        [MISSING if gone else str(value) for value, gone in zip(values, is_missing(values), strict=True)], dtype=str
    )


def group_columns(margins: Any, groups: Mapping[str, Any] | Sequence[str] | None) -> Mapping[str, np.ndarray]:
    """Columns of group labels by name.

    :param margins: margins, or a table with ``groups``.
    :param groups: columns by name, or names of the table's columns.
    :raises DataError: for a name that the table doesn't have.
    """
    if groups is None:
        return {}
    if isinstance(groups, str):
        raise ConfigError(f"groups={groups!r}: give columns by name, or a list of names such as [{groups!r}]")
    if not isinstance(groups, Mapping):
        groups = {name: table_column(margins, name, "groups") for name in groups}
    return {name: group_labels(values) for name, values in groups.items()}


def table_column(margins: Any, name: str, option: str) -> Any:
    """A further column of a table.

    :raises DataError: if there is none of that name; the message names those there are.
    """
    there = getattr(margins, "groups", None) or {}
    if name == "annotator" and getattr(margins, "annotator", None) is not None:
        return margins.annotator
    if name not in there:
        raise DataError(f"{option}: the table has no column {name!r}; its groups are {', '.join(there) or 'none'}")
    return there[name]


def complete_labels(values: Any, name: str, pairs: int) -> np.ndarray:
    """Labels that must all be there, (pairs,) objects.

    :raises DataError: for a wrong length, and for labels that are missing, naming the first row.
    """
    values = values.tolist() if hasattr(values, "tolist") else list(values)
    if len(values) != pairs:
        raise DataError(f"{name} has {len(values)} entries but there are {pairs} margins: one for each pair is needed")
    gone = np.flatnonzero(is_missing(values))
    if len(gone):
        raise DataError(
            f"{name}: {len(gone)} of {pairs} labels are missing, the first in row {gone[0]}; name them or leave these "
            "rows out"
        )
    out = np.empty(pairs, dtype=object)
    out[:] = values
    return out


def ranks(labels: Iterable[Any]) -> dict[Any, int]:
    """A number for each distinct label, in an order that depends on no row."""
    try:
        distinct = set(labels)
    except TypeError as error:
        raise DataError(f"labels must be hashable, such as strings or integers ({error})") from error
    return {label: i for i, label in enumerate(sorted(distinct, key=lambda label: (str(label), type(label).__name__)))}
