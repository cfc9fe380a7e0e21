"""The order in which a panel's pairs are trained on."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler

from pluralpref.errors import ConfigError


class AnnotatorSampler(Sampler[int]):
    """Annotators in random order, the pairs of each one together, in random order as well, and in one batch where that can be.

    Batches are consecutive pairs. Where an annotator's pairs don't fit into what is left of a batch, those of a later one who
    fills it come first, or else of the next one whose pairs fit. So the end of a batch only cuts the pairs of annotators who
    have more than a batch holds, and those of one whom nobody who is left could take the place of.

    The order is that of the epoch and the seed alone, in every process and after a resumption.

    :param annotators: who chose, for each pair.
    :param batch_size: pairs in a batch of one process.
    :param seed: any integer >= 0.
    :raises ConfigError: for a batch size less than 1.
    """

    def __init__(self, annotators: Sequence[Any], batch_size: int, seed: int = 0) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size}: must be at least 1")
        pairs: dict[Any, list[int]] = {}
        for pair, name in enumerate(annotators):
            pairs.setdefault(name, []).append(pair)
        self._pairs = list(pairs.values())
        self._count = len(annotators)
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's order."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator()
        generator.manual_seed((self._seed * 1_000_003 + self._epoch) % 2**63)
        waiting: dict[int, deque[tuple[int, int]]] = {}  # (place in the random order, person) by number of pairs
        for place, person in enumerate(torch.randperm(len(self._pairs), generator=generator).tolist()):
            waiting.setdefault(len(self._pairs[person]), deque()).append((place, person))
        room = self._batch_size
        while waiting:
            size = self._next(waiting, room)
            own = self._pairs[waiting[size].popleft()[1]]
            if not waiting[size]:
                del waiting[size]
            for i in torch.randperm(size, generator=generator).tolist():
                yield own[i]
            room = (room - size) % self._batch_size or self._batch_size

    def _next(self, waiting: dict[int, deque[tuple[int, int]]], room: int) -> int:
        """The number of pairs that the next person has."""
        if room in waiting and room < self._batch_size:
            return room
        suitable = [size for size in waiting if size <= room or room == self._batch_size]
        # Somebody is cut: rather one whose pairs no batch holds.
        suitable = suitable or [size for size in waiting if size > self._batch_size] or list(waiting)
        return min(suitable, key=lambda size: waiting[size][0])
