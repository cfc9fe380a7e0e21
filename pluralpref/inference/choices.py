"""The choices that a posterior or a metric is computed from, checked row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pluralpref.data.labels import is_blank
from pluralpref.errors import DataError

#: How many offending rows a message names.
_NAMED_ROWS = 5


@dataclass(frozen=True)
class Choices:
    """Margins with what belongs to them. Made by :func:`as_choices`.

    :param margins: (pairs,) float64, nats, finite.
    :param preferred: (pairs,) float64 in [0, 1]; 1 where the answer called chosen was preferred.
    :param weight: (pairs,) float64, or ``None`` where all are 1.
    :param annotator: (pairs,) int64 codes 0, 1, …, or ``None``.
    :param annotator_names: the label of each code.
    :param groups: further labels of each pair by column name, as strings.
    :param covariates: numbers of each pair by column name, float64.
    """

    margins: Tensor
    preferred: Tensor
    weight: Tensor | None = None
    annotator: Tensor | None = None
    annotator_names: tuple[Any, ...] = ()
    groups: Mapping[str, np.ndarray] = field(default_factory=dict)
    covariates: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def num_pairs(self) -> int:
        """The number of pairs."""
        return self.margins.shape[0]

    @property
    def num_annotators(self) -> int:
        """The number of annotators, 0 where they are unknown."""
        return len(self.annotator_names)

    @property
    def repeated(self) -> bool:
        """Whether any annotator chose more than once, without which the spread shows in the link's shape only."""
        return self.annotator is not None and self.num_annotators < self.num_pairs


def as_choices(
    margins: Any,
    *,
    annotator: Any = None,
    weight: Any = None,
    preferred: Any = None,
    groups: Mapping[str, Any] | None = None,
    covariates: Mapping[str, Any] | None = None,
) -> Choices:
    """Check margins and their columns.

    :param margins: (pairs,) numbers in nats; or a table with attributes ``margins`` and, optionally,
        ``annotator`` (codes or labels), ``annotator_names``, ``weight``, ``preferred``, ``groups``, ``covariates``,
        which the arguments below override.
    :param annotator: a label of any hashable kind for each pair. Labels become codes in order of first appearance.
    :param weight: (pairs,) finite numbers >= 0.
    :param preferred: (pairs,) numbers in [0, 1], default 1.
    :param groups: columns of labels by name.
    :param covariates: columns of finite numbers by name.
    :raises DataError: if a value can't be used; the message names the column and the first rows.
    """
    names: Any = None
    overridden = any(x is not None for x in (annotator, weight, preferred, groups, covariates))
    if isinstance(margins, Choices) and not overridden:
        return margins
    if hasattr(margins, "margins"):
        table = margins
        margins = table.margins
        if annotator is None:
            annotator, names = getattr(table, "annotator", None), getattr(table, "annotator_names", None)
        weight = getattr(table, "weight", None) if weight is None else weight
        preferred = getattr(table, "preferred", None) if preferred is None else preferred
        groups = getattr(table, "groups", None) if groups is None else groups
        covariates = getattr(table, "covariates", None) if covariates is None else covariates
    h = _column("margins", margins)
    if h.numel() == 0:
        raise DataError("margins is empty: at least one pair is needed")
    _refuse("margins", h, ~torch.isfinite(h), "must be finite; score these rows again or leave them out")
    pairs = h.shape[0]
    y = torch.ones_like(h) if preferred is None else _column("preferred", preferred, pairs)
    _refuse("preferred", y, ~((y >= 0) & (y <= 1)), "must lie in [0, 1]: 1 where the chosen answer was preferred")
    w = None if weight is None else _column("weight", weight, pairs)
    if w is not None:
        _refuse("weight", w, ~((w >= 0) & torch.isfinite(w)), "must be finite and not negative")
        if not (w > 0).any():
            raise DataError("weight is 0 in every row: nothing is left to learn from")
        w = None if (w == 1).all() else w
    codes, labels = (None, ()) if annotator is None else _codes("annotator", annotator, pairs, names)
    columns = {name: _labels(name, values, pairs) for name, values in (groups or {}).items()}
    numbers = {}
    for name, values in (covariates or {}).items():
        if name in columns:
            raise DataError(f"the column {name!r} is given both as a group and as a covariate: leave one out")
        numbers[name] = _column(name, values, pairs)
        _refuse(name, numbers[name], ~torch.isfinite(numbers[name]), "must be finite")
    return Choices(h, y, w, codes, labels, columns, {name: column.numpy() for name, column in numbers.items()})


def annotator_names(values: Any, needed_by: str) -> list[str]:
    """Who chose in each pair, as text.

    :param values: (pairs,) names of any kind.
    :param needed_by: what can't do without them, for the message.
    :raises DataError: naming the first row whose name is missing or blank.
    """
    labels = values.tolist() if hasattr(values, "tolist") else list(values)
    for row, label in enumerate(labels):
        if is_blank(label):
            raise DataError(f"row {row}: column 'annotator' is empty; {needed_by} needs to know who made every choice")
    return [str(label) for label in labels]


def rows_among(code: Tensor, units: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(rows whose code is one of some units, the place of each row's unit among these).

    :param code: (rows,) of 0 to ``count - 1``.
    :param units: some of these codes, all different.
    """
    place = torch.full((count,), -1, dtype=torch.int64)
    place[units] = torch.arange(units.shape[0])
    rows = (place[code] >= 0).nonzero()[:, 0]
    return rows, place[code[rows]]


def _column(name: str, values: Any, length: int | None = None) -> Tensor:
    try:
        if isinstance(values, Tensor):
            column = values.detach().to("cpu", torch.float64)
        else:
            column = torch.as_tensor(np.array(values, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} must be numbers, one for each pair ({error})") from error
    if column.dim() != 1:
        raise DataError(f"{name} must have shape (pairs,), got {tuple(column.shape)}")
    _same_length(name, column.shape[0], length)
    return column


def _same_length(name: str, found: int, length: int | None) -> None:
    if length is not None and found != length:
        raise DataError(f"{name} has {found} entries but there are {length} margins: one entry for each pair is needed")


def _refuse(name: str, values: Tensor, bad: Tensor, rule: str) -> None:
    if bool(bad.any()):
        rows = bad.nonzero()[:, 0].tolist()
        shown = ", ".join(f"row {row}: {values[row].item():g}" for row in rows[:_NAMED_ROWS])
        more = ", …" if len(rows) > _NAMED_ROWS else ""
        raise DataError(f"{name}: {len(rows)} of {len(values)} values can't be used ({shown}{more}); each {rule}")


def _sequence(name: str, values: Any, pairs: int) -> Sequence[Any]:
    if hasattr(values, "to_pylist"):
        values = values.to_pylist()
    elif hasattr(values, "tolist"):
        values = values.tolist()
    if isinstance(values, str) or not hasattr(values, "__len__"):
        raise DataError(f"{name} must be a sequence with one label for each pair")
    _same_length(name, len(values), pairs)
    missing = [row for row, value in enumerate(values) if is_blank(value)]
    if missing:
        raise DataError(
            f"{name}: {len(missing)} of {pairs} labels are missing, the first in row {missing[0]}; name them or leave "
            "these rows out"
        )
    return values


def _codes(name: str, values: Any, pairs: int, names: Sequence[Any] | None) -> tuple[Tensor, tuple[Any, ...]]:
    labels = _sequence(name, values, pairs)
    if names is not None:
        outside = [row for row, code in enumerate(labels) if not 0 <= code < len(names)]
        if outside:
            raise DataError(
                f"{name}: code {labels[outside[0]]} in row {outside[0]} has no entry in {name}_names, which has "
                f"{len(names)}"
            )
        labels = [names[int(code)] for code in labels]
    code_of: dict[Any, int] = {}
    try:
        codes = [code_of.setdefault(label, len(code_of)) for label in labels]
    except TypeError as error:
        raise DataError(f"{name} labels must be hashable, such as strings or integers ({error})") from error
    return torch.tensor(codes, dtype=torch.int64), tuple(code_of)


def _labels(name: str, values: Any, pairs: int) -> np.ndarray:
    return np.array([str(value) for value in _sequence(name, values, pairs)])
