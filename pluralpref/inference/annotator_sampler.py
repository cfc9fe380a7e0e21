"""The order in which a panel's pairs are trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler


class AnnotatorSampler(Sampler[int]):
    """Annotators in random order, the pairs of each one together, in random order as well.

    Micro-batches are consecutive pairs, so that an annotator's pairs are in one of them but for those who are cut by its end.
    The order is that of the epoch and the seed alone, in every process and after a resumption.

    :param annotators: who chose, for each pair.
    :param seed: any integer >= 0.
    """

    def __init__(self, annotators: Sequence[Any], seed: int = 0) -> None:
        pairs: dict[Any, list[int]] = {}
        for pair, name in enumerate(annotators):
            pairs.setdefault(name, []).append(pair)
        self._pairs = list(pairs.values())
        self._count = len(annotators)
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
        for person in torch.randperm(len(self._pairs), generator=generator).tolist():
            own = self._pairs[person]
            for i in torch.randperm(len(own), generator=generator).tolist():
                yield own[i]
