"""Probabilities of choices under a PAL model, for people known, unknown, or known by a few choices."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pluralpref.errors import DataError
from pluralpref.inference.marginal import log_marginal
from pluralpref.inference.pal.data import PalPairs
from pluralpref.inference.pal.model import Pal

#: Margins that are integrated at once.
_MOST_MARGINS = 2**18


@dataclass(frozen=True)
class ChoiceLogProbs:
    """Log-probabilities of both outcomes of each pair, nats.

    :param chosen: (pairs,) float64, that the answer called chosen is preferred.
    :param rejected: (pairs,) float64, that the other is.
    """

    chosen: Tensor
    rejected: Tensor

    @property
    def log_odds(self) -> Tensor:
        """``chosen - rejected``, (pairs,): the margin whose logistic function is the probability."""
        return self.chosen - self.rejected

    def log_loss(self, preferred: Tensor) -> Tensor:
        """Minus the log-probability of each label in [0, 1], (pairs,) nats."""
        return -(preferred * self.chosen + (1 - preferred) * self.rejected)


def predict_known(pal: Pal, pairs: PalPairs) -> ChoiceLogProbs:
    """For training people, each with their own weights.

    :raises DataError: without annotators or for one who isn't known, naming the row.
    """
    return predict_with(pal, pairs, pal.weights[pal.codes(pairs)])


@torch.no_grad()
def predict_with(pal: Pal, pairs: PalPairs, weights: Tensor) -> ChoiceLogProbs:
    """For people with given weights, such as :func:`~pluralpref.inference.pal.fit_person` finds.

    :param weights: (K,) for one person, or (pairs, K) for each pair's.
    :raises DataError: for weights of another shape or that aren't on the simplex, and embeddings of another model.
    """
    weights = torch.as_tensor(weights)
    if weights.shape not in ((pal.num_prototypes,), (pairs.num_pairs, pal.num_prototypes)):
        raise DataError(
            f"weights have shape {tuple(weights.shape)}; expected ({pal.num_prototypes},) or "
            f"({pairs.num_pairs}, {pal.num_prototypes})"
        )
    if not bool(((weights >= 0) & ((weights.sum(-1, keepdim=True) - 1).abs() < 1e-4)).all()):
        raise DataError("weights must be at least 0 and have sum 1, for each person")
    weights = weights.to(pal.logits.dtype).expand(pairs.num_pairs, -1)
    parts = []
    for start in range(0, pairs.num_pairs, _MOST_MARGINS):
        rows = slice(start, start + _MOST_MARGINS)
        represented = pal.reward.represent(pairs.take(rows))
        parts.append(_both(pal, pal.reward.per_pair(represented, weights[rows])))
    return ChoiceLogProbs(*(torch.cat(side) for side in zip(*parts, strict=True)))


@torch.no_grad()
def predict_unknown(pal: Pal, pairs: PalPairs) -> ChoiceLogProbs:
    r"""For people of whom nothing is known: the mean of the probability over the training people's weights.

    .. math:: P = \frac{1}{n} \sum_i E_\beta[\sigma(\beta h_i)]

    Every training person counts the same, whatever the number of choices. Annotators of ``pairs`` aren't looked at.

    :raises DataError: for embeddings of another model.
    """
    people = len(pal.annotators)
    block = max(1, _MOST_MARGINS // people)
    parts = []
    for start in range(0, pairs.num_pairs, block):
        represented = pal.reward.represent(pairs.take(slice(start, start + block)))
        every = _both(pal, pal.reward.per_person(represented, pal.weights))
        parts.append(tuple(side.logsumexp(0) - math.log(people) for side in every))
    return ChoiceLogProbs(*(torch.cat(side) for side in zip(*parts, strict=True)))


def _both(pal: Pal, margins: Tensor) -> tuple[Tensor, Tensor]:
    law, margins = pal.strength.law(), margins.double()
    return log_marginal(law, margins), log_marginal(law, -margins)
