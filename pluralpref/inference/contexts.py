"""The columns that a strength's law depends on, as contexts of pairs, people, and sets of equal rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from pluralpref.distributions import Scaled
from pluralpref.errors import DataError
from pluralpref.inference.choices import Choices
from pluralpref.models import StrengthModel


class Contexts:
    """The context of every pair, and which pairs and people have the same: made once for a posterior.

    :param strength: a model with context columns.
    :param choices: with these columns among their groups or covariates.
    :raises DataError: if a column is missing, or holds something that the strength can't read.
    """

    def __init__(self, strength: StrengthModel, choices: Choices) -> None:
        columns: dict[str, Any] = {**choices.groups, **choices.covariates}
        missing = [name for name in strength.context_columns if name not in columns]
        if missing:
            raise DataError(
                f"{type(strength).__name__} reads the column {missing[0]!r}, which isn't among the data: pass it as "
                f"groups={{{missing[0]!r}: labels}} or covariates={{{missing[0]!r}: numbers}}"
            )
        self._names = strength.context_columns
        self.columns = {name: columns[name] for name in self._names}
        #: One row for each pair.
        self.of_pairs = strength.make_context(self.columns)
        rows = torch.cat(_matrices(self.of_pairs), 1)
        distinct, self.cell_of_pair = torch.unique(rows, dim=0, return_inverse=True)
        self.num_cells = distinct.shape[0]
        first = torch.full((self.num_cells,), choices.num_pairs, dtype=torch.int64)
        self._pair_of_cell = first.scatter_reduce(0, self.cell_of_pair, torch.arange(choices.num_pairs), "amin")
        self._annotator_names = choices.annotator_names
        #: Whether some person's choices have different contexts.
        self.varies = False
        self.cell_of_person = self.cell_of_pair
        if choices.annotator is not None:
            size, cell = choices.num_annotators, self.cell_of_pair
            ends = [
                torch.zeros(size, dtype=torch.int64).scatter_reduce(0, choices.annotator, cell, how, include_self=False)
                for how in ("amin", "amax")
            ]
            self.cell_of_person = ends[0]
            self._changing = (ends[0] != ends[1]).nonzero()[:, 0]
            self.varies = bool(len(self._changing))

    def rows(self, cells: Tensor) -> Any:
        """The contexts of some cells, one row each."""
        return take(self.of_pairs, self._pair_of_cell[cells])

    def take_pairs(self, pairs: Any) -> Any:
        """The contexts of some pairs."""
        return take(self.of_pairs, pairs)

    def take_people(self, people: Tensor | None) -> Any:
        """The contexts of some people, or of all; only where no person has several."""
        return self.rows(self.cell_of_person if people is None else self.cell_of_person[people])

    def labels(self) -> list[str]:
        """What each cell is: its values of the columns."""
        rows = self._pair_of_cell.tolist()
        return [", ".join(f"{name}={self.columns[name][row]}" for name in self._names) for row in rows]

    def describe_varying(self) -> str:
        """Who has several contexts, for a message."""
        return (
            f"the columns {', '.join(self._names)} change between the choices of {len(self._changing)} annotators, such as "
            f"{self._annotator_names[int(self._changing[0])]!r}"
        )


def people_by_context(contexts: Contexts | None, count: int) -> Iterator[tuple[Tensor, Any]]:
    """(units, their context with one row) for each set of units with one law; without contexts all of them.

    :param count: the number of units.
    """
    if contexts is None:
        yield torch.arange(count), None
        return
    for cell in range(contexts.num_cells):
        yield (contexts.cell_of_person == cell).nonzero()[:, 0], contexts.rows(torch.tensor([cell]))


def _matrices(context: Any) -> list[Tensor]:
    if context is None:
        return []
    if isinstance(context, tuple):
        return [matrix for part in context for matrix in _matrices(part)]
    return [context.reshape(context.shape[0], -1).double()]


def take(context: Any, rows: Any) -> Any:
    """Some rows of a context, which is a tensor, ``None`` or a tuple of such."""
    if context is None:
        return None
    return tuple(take(part, rows) for part in context) if isinstance(context, tuple) else context[rows]


def base_and_factor(law: Distribution) -> tuple[Distribution, Tensor] | None:
    """(the one law of X, the factor of each row) where the law is that of c X; ``None`` for other laws."""
    factor: Any = None
    while isinstance(law, Scaled):
        own = torch.as_tensor(law.factor)
        factor = own if factor is None else factor * own
        law = law.unscaled
    if factor is None or law.batch_shape.numel() != 1:
        return None
    return law, factor
