"""Tables of results, as Markdown to read and CSV to compute with."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Estimate:
    """A number with its standard error, if there is one."""

    value: float
    error: float | None = None
    digits: int = 3

    def __str__(self) -> str:
        error = "–" if self.error is None else f"{self.error:.{self.digits}f}"
        return f"{self.value:.{self.digits}f} ({error})"

    def cells(self, name: str) -> dict[str, Any]:
        """As columns of a CSV file."""
        return {name: self.value, f"{name} s.e.": self.error}


@dataclass(frozen=True)
class Interval:
    """A posterior mean and a 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} ({self.low:.3f} to {self.high:.3f})"

    def cells(self, name: str) -> dict[str, Any]:
        """As columns of a CSV file."""
        return {name: self.mean, f"{name} 2.5 %": self.low, f"{name} 97.5 %": self.high}


@dataclass(frozen=True)
class Named:
    """Several estimates in one cell."""

    values: Mapping[str, Estimate]

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self.values.items()) or "–"

    def cells(self, name: str) -> dict[str, Any]:
        """As columns of a CSV file."""
        return {k: v for part, value in self.values.items() for k, v in value.cells(f"{name} {part}").items()}


@dataclass
class Table:
    """Rows with the same columns.

    :param name: the CSV file's, without suffix.
    :param title: the heading in Markdown.
    :param columns: a format for each column's plain numbers, such as ``".3f"``; an empty one is for all else.
    :param notes: lines below the table.
    """

    name: str
    title: str
    columns: Mapping[str, str]
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, values: Mapping[str, Any]) -> None:
        """A row; a column without a value stays empty.

        :raises KeyError: for a column that the table doesn't have.
        """
        unknown = set(values) - set(self.columns)
        if unknown:
            raise KeyError(f"{self.name} has no column {', '.join(sorted(unknown))}")
        self.rows.append(dict(values))

    def markdown(self) -> str:
        """Heading, table, notes."""
        lines = [list(self.columns), ["---"] * len(self.columns)]
        lines += [[_shown(row.get(name), spec) for name, spec in self.columns.items()] for row in self.rows]
        text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return f"## {self.title}\n\n{text}\n" + "".join(f"\n{note}\n" for note in self.notes)

    def write_csv(self, folder: Path) -> None:
        """``<name>.csv``, numbers in full."""
        rows = []
        for row in self.rows:
            flat: dict[str, Any] = {}
            for name in self.columns:
                value = row.get(name)
                flat |= value.cells(name) if hasattr(value, "cells") else {name: value}
            rows.append(flat)
        names = list(dict.fromkeys(name for row in rows for name in row))
        with (folder / f"{self.name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)


def write_markdown(path: Path, head: str, tables: Sequence[Table]) -> None:
    """All tables in one file."""
    path.write_text("\n".join([head, *(table.markdown() for table in tables)]), encoding="utf-8")


def _shown(value: Any, spec: str) -> str:
    if value is None:
        return "–"
    # A bar, as in |β|, would end the cell.
    return (format(value, spec) if spec else str(value)).replace("|", "\\|")
