"""A table of margins: what is known about each pair once the language models are done."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import torch
from torch import Tensor

from pluralpref.atomic import written_aside
from pluralpref.data.labels import refuse_blank_labels
from pluralpref.errors import DataError

_METADATA = b"pluralpref"
#: Columns that have a meaning of their own.
OWN_COLUMNS = ("margin", "annotator", "weight", "preferred")


@dataclass
class MarginsTable:
    """Margins of pairs with what came along.

    :param margins: (pairs,), nats, float64.
    :param annotator: (pairs,) labels, or ``None``.
    :param weight: (pairs,), at least 0, or ``None``.
    :param preferred: (pairs,) in [0, 1], or ``None``.
    :param groups: further columns by name.
    :param metadata: facts about the table as a whole, e.g. the models' names.
    :raises DataError: if a column's length or a value doesn't fit; the message names column and row.
    """

    margins: Tensor
    annotator: Sequence[Any] | None = None
    weight: Tensor | None = None
    preferred: Tensor | None = None
    groups: dict[str, Sequence[Any]] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.margins = torch.as_tensor(self.margins, dtype=torch.float64)
        if self.margins.dim() != 1 or not len(self.margins):
            raise DataError(f"margins must be one column with at least one row, got shape {tuple(self.margins.shape)}")
        bad = (~torch.isfinite(self.margins)).nonzero().flatten()
        if len(bad):
            raise DataError(
                f"column 'margin' has {len(bad)} values that are NaN or infinite, first in row {int(bad[0])}: score these "
                "pairs again or leave them out"
            )
        for name, top in (("weight", float("inf")), ("preferred", 1.0)):
            values = getattr(self, name)
            if values is None:
                continue
            values = torch.as_tensor(values, dtype=torch.float64)
            self._check_length(name, values)
            outside = (~(torch.isfinite(values) & (values >= 0) & (values <= top))).nonzero().flatten()
            if len(outside):
                raise DataError(f"row {int(outside[0])}: column {name!r} is {values[outside[0]].item()}")
            setattr(self, name, values)
        if self.annotator is not None:
            self._check_length("annotator", self.annotator)
            refuse_blank_labels("annotator", self.annotator)
        for name, column in self.groups.items():
            if name in OWN_COLUMNS:
                raise DataError(f"groups has a column {name!r}, which is the table's own: rename it")
            self._check_length(name, column)

    def _check_length(self, name: str, column: Any) -> None:
        if len(column) != len(self.margins):
            raise DataError(f"column {name!r} has {len(column)} entries but there are {len(self.margins)} margins")

    def __len__(self) -> int:
        return len(self.margins)


def write_margins(path: str | os.PathLike[str], table: MarginsTable) -> None:
    """Write the table as Parquet: aside first, then renamed, so that no reader sees half of it."""
    columns: dict[str, Any] = {"margin": table.margins.numpy()}
    if table.annotator is not None:
        columns["annotator"] = list(table.annotator)
    for name in ("weight", "preferred"):
        if getattr(table, name) is not None:
            columns[name] = getattr(table, name).numpy()
    columns.update({name: np.asarray(v) if isinstance(v, Tensor) else list(v) for name, v in table.groups.items()})
    arrow = pa.table(columns).replace_schema_metadata({_METADATA: json.dumps(table.metadata).encode()})
    with written_aside(path) as partial:
        pyarrow.parquet.write_table(arrow, partial)


def read_margins(path: str | os.PathLike[str]) -> MarginsTable:
    """Read a table of margins, Parquet or CSV, made by any tool.

    :param path: with a column ``margin`` (nats); ``annotator``, ``weight`` and ``preferred`` are used, further columns
        become groups.
    :raises DataError: if the file is missing or damaged, there is no column ``margin``, or a value is bad.
    """
    source = Path(path)
    if not source.is_file():
        raise DataError(f"{source}: no such file")
    # Left to guess, the reader would make one person of the annotators "007" and "7".
    text = pyarrow.csv.ConvertOptions(column_types={"annotator": pa.string()})
    try:
        if source.suffix == ".csv":
            arrow = pyarrow.csv.read_csv(source, convert_options=text)
        else:
            arrow = pyarrow.parquet.read_table(source)
    except pa.ArrowException as error:
        raise DataError(
            f"{source} can't be read as {'CSV' if source.suffix == '.csv' else 'Parquet'}: {error}"
        ) from None
    if "margin" not in arrow.column_names:
        raise DataError(f"{source} has no column 'margin': there are {', '.join(arrow.column_names)}")
    facts = (arrow.schema.metadata or {}).get(_METADATA)
    columns: dict[str, list[Any]] = arrow.to_pydict()
    return MarginsTable(
        margins=_numbers(columns.pop("margin"), "margin"),
        annotator=columns.pop("annotator", None),
        weight=_optional(columns, "weight"),
        preferred=_optional(columns, "preferred"),
        groups=dict(columns),
        metadata=json.loads(facts) if facts else {},
    )


def _optional(columns: dict[str, list[Any]], name: str) -> Tensor | None:
    return _numbers(columns.pop(name), name) if name in columns else None


def _numbers(values: Sequence[Any], name: str) -> Tensor:
    for row, value in enumerate(values):
        if value is None:
            raise DataError(f"row {row}: column {name!r} is empty")
        if not isinstance(value, int | float):
            raise DataError(f"row {row}: column {name!r} is {value!r}; expected a number")
    return torch.tensor([float(value) for value in values], dtype=torch.float64)
