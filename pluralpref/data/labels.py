"""Labels of people and groups: where one is missing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd

from pluralpref.errors import DataError


def is_blank(value: Any) -> bool:
    """Whether a label is missing: ``None``, nan, pandas' ``NA``, or text of white space only, as CSV files have for it."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or value is pd.NA or bool(value != value)


def refuse_blank_labels(name: str, values: Iterable[Any]) -> None:
    """Refuse a column with missing labels, which would make one person of everybody unknown.

    :param name: the column's, for the message.
    :raises DataError: naming how many there are and the first one's row.
    """
    blank = [row for row, value in enumerate(values) if is_blank(value)]
    if blank:
        raise DataError(
            f"row {blank[0]}: column {name!r} is empty ({len(blank)} rows); give every pair its {name}, leave these rows out, or "
            "drop the column"
        )
