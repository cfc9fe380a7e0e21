"""Who rated which answer, and how."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from pluralpref.errors import DataError

#: Reasons for which ratings are left out.
REASONS = {
    "zero_weight": "have weight 0",
    "few_annotators": "are of answers that too few people rated",
    "few_answers": "are by people who rated too few answers",
}


class Item(NamedTuple):
    """An answer to a prompt; both are text or lists of messages."""

    prompt: Any
    answer: Any


class Rating(NamedTuple):
    """What one comparison, or one row of a table, says of one answer."""

    annotator: str
    item: Item
    value: float
    weight: float


@dataclass(frozen=True)
class Ratings:
    """One rating for each annotator and item that met, ordered by item, then annotator.

    :param rater: (ratings,), positions in ``annotators``.
    :param item: (ratings,), positions in ``items``.
    :param value: (ratings,), in [0, 1].
    :param weight: (ratings,), greater than 0.
    :param annotators: names, sorted.
    :param items: sorted by their texts.
    :param dropped: how many ratings were left out on the way here, by reason, see :data:`REASONS`.
    """

    rater: np.ndarray
    item: np.ndarray
    value: np.ndarray
    weight: np.ndarray
    annotators: tuple[str, ...]
    items: tuple[Item, ...]
    dropped: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.value)

    def per_item(self) -> np.ndarray:
        """How many people rated each item, (items,)."""
        return np.bincount(self.item, minlength=len(self.items))

    def per_annotator(self) -> np.ndarray:
        """How many items each person rated, (annotators,)."""
        return np.bincount(self.rater, minlength=len(self.annotators))

    def item_means(self) -> np.ndarray:
        """The weighted mean rating of each item, (items,)."""
        n = len(self.items)
        return np.bincount(self.item, self.weight * self.value, n) / np.bincount(self.item, self.weight, n)

    def prompt_of_item(self) -> np.ndarray:
        """A number for the prompt of each item, (items,), in the order in which prompts come first."""
        numbers: dict[str, int] = {}
        keys = (json.dumps(item.prompt, sort_keys=True) for item in self.items)
        return np.array([numbers.setdefault(key, len(numbers)) for key in keys])

    def take(self, rows: np.ndarray) -> Ratings:
        """Some of the ratings, with those people and items alone that they are about.

        :param rows: a mask or increasing positions, (ratings,).
        """
        raters, rater = np.unique(self.rater[rows], return_inverse=True)
        items, item = np.unique(self.item[rows], return_inverse=True)
        return Ratings(
            rater,
            item,
            self.value[rows],
            self.weight[rows],
            tuple(self.annotators[i] for i in raters),
            tuple(self.items[i] for i in items),
            self.dropped,
        )

    def components(self) -> tuple[int, np.ndarray, np.ndarray]:
        """The connected components of the graph of people and items: how many, of each person, of each item.

        Two people are connected if both rated an item, or others connect them.
        """
        n = len(self.annotators)
        size = n + len(self.items)
        graph = csr_array((np.ones(len(self)), (self.rater, n + self.item)), shape=(size, size))
        count, label = connected_components(graph, directed=False)
        return int(count), label[:n], label[n:]


def item_key(item: Item) -> str:
    """A text that two items share only if they are the same."""
    return json.dumps(item, ensure_ascii=False, sort_keys=True)


def collect_ratings(ratings: Iterable[Rating]) -> Ratings:
    r"""Join what each person said of each item: the weighted mean, with the sum of the weights.

    That leaves :math:`\sum w (r - \hat{r})^2` as it is but for a constant. The result doesn't depend on the order.

    :param ratings: of weight at least 0; those of weight 0 are left out and counted.
    :raises DataError: if none is left.
    """
    items: dict[str, tuple[int, Item]] = {}
    people: dict[str, int] = {}
    columns: list[tuple[int, int, float, float]] = []
    without_weight = 0
    for annotator, item, value, weight in ratings:
        if weight == 0:
            without_weight += 1
            continue
        number, _ = items.setdefault(item_key(item), (len(items), item))
        columns.append((people.setdefault(annotator, len(people)), number, value, weight))
    if not columns:
        raise DataError("no rating has a weight greater than 0")
    annotators, keys = sorted(people), sorted(items)
    # From the order in which names and texts came to the order of their spelling.
    rater_place = np.argsort(np.array([people[name] for name in annotators]))
    item_place = np.argsort(np.array([items[key][0] for key in keys]))
    seen_rater, seen_item, values, weights = (np.array(column) for column in zip(*columns, strict=True))
    cell = item_place[seen_item] * len(annotators) + rater_place[seen_rater]
    order = np.lexsort((weights, values, cell))  # sums of floats depend on the order
    cells, position = np.unique(cell[order], return_inverse=True)
    total = np.bincount(position, weights[order])
    mean = np.bincount(position, (weights * values)[order]) / total
    return Ratings(
        rater=cells % len(annotators),
        item=cells // len(annotators),
        value=np.clip(mean, 0.0, 1.0),
        weight=total,
        annotators=tuple(annotators),
        items=tuple(items[key][1] for key in keys),
        dropped={"zero_weight": without_weight} if without_weight else {},
    )
