"""Predictions for new people from some of their choices, and from none for comparison."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from pluralpref.errors import ConfigError, DataError
from pluralpref.inference.pal.data import PalPairs, rows_by_person
from pluralpref.inference.pal.model import Pal
from pluralpref.inference.pal.person import fit_person
from pluralpref.inference.pal.predict import ChoiceLogProbs, predict_unknown, predict_with


@dataclass(frozen=True)
class FewShot:
    """What a few choices of new people tell of their others.

    :param pairs: the choices that no weights were fitted to.
    :param few_shot: predictions for these with each person's own weights.
    :param zero_shot: predictions for the same from nothing.
    :param weights: (people, K) float64.
    :param names: whose.
    :param left_out: people with too few choices for one to be predicted.
    """

    pairs: PalPairs
    few_shot: ChoiceLogProbs
    zero_shot: ChoiceLogProbs
    weights: Tensor
    names: tuple[str, ...]
    left_out: tuple[str, ...]


def split_people(pal: Pal, pairs: PalPairs) -> tuple[PalPairs | None, PalPairs | None]:
    """Pairs of training people and pairs of others; ``None`` where there are none.

    :raises DataError: without annotators.
    """
    if pairs.annotator is None:
        raise DataError("the pairs have no annotators, so nobody can be told from training people")
    known = set(pal.annotators)
    is_known = torch.tensor([name in known for name in pairs.names])[pairs.annotator]
    sides = (is_known.nonzero().flatten(), (~is_known).nonzero().flatten())
    old, new = (pairs.take(rows) if len(rows) else None for rows in sides)
    return old, new


def predict_few_shot(
    pal: Pal, pairs: PalPairs, shots: int, *, prior_strength: float = 0.0, seed: int = 0, progress: bool = True
) -> FewShot:
    """Fit each person's weights to some choices and predict the others.

    :param pal: fitted to other people; left as it is.
    :param pairs: with annotators.
    :param shots: choices of each person that weights are fitted to, drawn without replacement. Who has no more than these is
        left out, and named.
    :param prior_strength: see :func:`~pluralpref.inference.pal.fit_person`.
    :param seed: which choices; the global generators are left alone.
    :param progress: show a progress bar.
    :raises ConfigError: for fewer than one shot.
    :raises DataError: without annotators, or if nobody has more choices than ``shots``.
    """
    if shots < 1:
        raise ConfigError(f"shots={shots}: must be at least 1 (predict_unknown predicts from none)")
    if pairs.annotator is None:
        raise DataError("few-shot weights need to know who chose: give every pair an annotator")
    generator = np.random.default_rng(seed)
    used, rest, left_out = [], [], []
    for code, own in sorted(rows_by_person(pairs).items(), key=lambda item: pairs.names[item[0]]):
        rows = generator.permutation(own)
        if len(rows) <= shots:
            left_out.append(pairs.names[code])
            continue
        used.append((pairs.names[code], rows[:shots]))
        rest.append(np.sort(rows[shots:]))
    if not used:
        raise DataError(
            f"none of the {len(left_out)} new people has more than {shots} choices: lower the number of shots, or give people "
            "with more choices"
        )
    weights = torch.stack(
        [
            fit_person(pal, pairs.take(rows), prior_strength=prior_strength)
            for _, rows in tqdm(used, desc="New people", unit="person", disable=not progress)
        ]
    )
    left = pairs.take(np.concatenate(rest))
    each = weights.repeat_interleave(torch.tensor([len(rows) for rows in rest]), dim=0)
    return FewShot(
        left,
        predict_with(pal, left, each),
        predict_unknown(pal, left),
        weights,
        tuple(name for name, _ in used),
        tuple(left_out),
    )
