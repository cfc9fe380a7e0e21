"""Choices between embedded answers, checked row by row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pluralpref.errors import DataError
from pluralpref.inference.choices import annotator_names, as_choices


@dataclass(frozen=True)
class PalPairs:
    """Pairs of embedded answers with who chose. Made by :func:`pal_pairs`.

    :param chosen: (pairs, hidden) float32.
    :param rejected: (pairs, hidden) float32.
    :param prompt: (pairs, hidden of prompts) float32, or ``None``, which PAL-A can do without.
    :param preferred: (pairs,) float64 in [0, 1]; 1 where the answer called chosen was preferred.
    :param weight: (pairs,) float64, at least 0.
    :param annotator: (pairs,) int64 codes 0, 1, …, or ``None``.
    :param names: the annotator of each code, as text.
    """

    chosen: Tensor
    rejected: Tensor
    prompt: Tensor | None
    preferred: Tensor
    weight: Tensor
    annotator: Tensor | None
    names: tuple[str, ...]

    @property
    def num_pairs(self) -> int:
        """The number of pairs."""
        return len(self.chosen)

    def take(self, rows: Any) -> PalPairs:
        """Some of the pairs, in this order. Codes and names stay as they are.

        :param rows: their numbers, or a slice.
        """
        if not isinstance(rows, slice):
            rows = torch.as_tensor(rows)
        return PalPairs(
            self.chosen[rows],
            self.rejected[rows],
            None if self.prompt is None else self.prompt[rows],
            self.preferred[rows],
            self.weight[rows],
            None if self.annotator is None else self.annotator[rows],
            self.names,
        )


def pal_pairs(
    embeddings: Mapping[str, Tensor],
    *,
    annotator: Any = None,
    weight: Any = None,
    preferred: Any = None,
) -> PalPairs:
    """Check embedded pairs and their columns.

    :param embeddings: ``chosen`` and ``rejected``, (pairs, hidden), and perhaps ``prompt``, (pairs, any size): what
        :func:`~pluralpref.likelihood.embeddings.answer_embeddings` gives.
    :param annotator: a name for each pair, of any kind; used as text.
    :param weight: (pairs,) finite numbers >= 0, default 1.
    :param preferred: (pairs,) numbers in [0, 1], default 1.
    :raises DataError: for embeddings of different sizes or that aren't finite, names that are missing, and columns of wrong
        length or values, naming column and row.
    """
    missing = [name for name in ("chosen", "rejected") if name not in embeddings]
    if missing:
        raise DataError(f"the embeddings have no {missing[0]!r}: there are {', '.join(embeddings) or 'none'}")
    chosen, rejected = (_matrix(name, embeddings[name]) for name in ("chosen", "rejected"))
    if chosen.shape != rejected.shape:
        raise DataError(
            f"embeddings 'chosen' have shape {tuple(chosen.shape)} and 'rejected' {tuple(rejected.shape)}: embed both with "
            "the same model"
        )
    pairs = len(chosen)
    prompt = None
    if embeddings.get("prompt") is not None:
        prompt = _matrix("prompt", embeddings["prompt"])
        if len(prompt) != pairs:
            raise DataError(f"embeddings 'prompt' have {len(prompt)} rows but there are {pairs} pairs")
    names = None if annotator is None else annotator_names(annotator, "PAL")
    choices = as_choices(torch.zeros(pairs), annotator=names, weight=weight, preferred=preferred)
    ones = torch.ones(pairs, dtype=torch.float64)
    return PalPairs(
        chosen,
        rejected,
        prompt,
        choices.preferred,
        ones if choices.weight is None else choices.weight,
        choices.annotator,
        choices.annotator_names,
    )


def hold_out_choices(pairs: PalPairs, fraction: float, seed: int) -> tuple[PalPairs, PalPairs]:
    """Hold out a share of each person's choices; everybody keeps at least one.

    :param fraction: of a person's n choices, ``min(round(fraction n), n - 1)`` are held out.
    :param seed: which ones; the global generators are left alone.
    :returns: the pairs that are left and those that are held out.
    :raises DataError: without annotators, or if nobody has enough choices for one to be held out.
    """
    if pairs.annotator is None:
        raise DataError("choices can't be held out of each person's: give the pairs annotators")
    generator = np.random.default_rng(seed)
    out = []
    for rows in rows_by_person(pairs).values():
        count = min(round(fraction * len(rows)), len(rows) - 1)
        out.append(generator.permutation(rows)[:count])
    held_out = np.sort(np.concatenate(out))
    if not len(held_out):
        raise DataError(
            f"nobody has enough choices to hold out a share of {fraction:g}: give a larger share, or people with more choices"
        )
    kept = np.setdiff1d(np.arange(pairs.num_pairs), held_out)
    return pairs.take(kept), pairs.take(held_out)


def rows_by_person(pairs: PalPairs) -> dict[int, np.ndarray]:
    """The rows of each person's pairs, by code, for those who have any."""
    assert pairs.annotator is not None
    codes = pairs.annotator.numpy()
    order = np.argsort(codes, kind="stable")
    found, starts = np.unique(codes[order], return_index=True)
    return dict(zip(found.tolist(), np.split(order, starts[1:]), strict=True))


def _matrix(name: str, values: Any) -> Tensor:
    matrix = torch.as_tensor(values).detach().to("cpu", torch.float32)
    if matrix.dim() != 2 or not matrix.numel():
        raise DataError(f"embeddings {name!r} must have shape (pairs, hidden), got {tuple(matrix.shape)}")
    bad = (~torch.isfinite(matrix).all(1)).nonzero().flatten().tolist()
    if bad:
        raise DataError(
            f"embeddings {name!r}: {len(bad)} of {len(matrix)} rows hold values that aren't finite, the first is row {bad[0]}; "
            "embed these pairs again or leave them out"
        )
    return matrix
