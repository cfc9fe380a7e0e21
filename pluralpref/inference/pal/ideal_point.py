"""PAL-A: everybody has an ideal point among the embeddings, a mixture of prototypes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pluralpref.inference.pal.data import PalPairs
from pluralpref.inference.pal.projector import Standardize, projector
from pluralpref.inference.pal.reward import PalReward


class IdealPoint(PalReward):
    r"""The ideal-point model: an answer is the better the nearer it is.

    .. math:: u_i(x) = -\lVert f(x) - f(a_i) \rVert^2, \qquad a_i = \sum_k w_{ik} p_k

    with prototypes :math:`p_k` in the space of embeddings and one map f for both. The prompt counts through the answer's
    embedding only. Prototypes are kept in standardised coordinates; weights sum to 1, so mixtures are the same.

    :param size: of the embeddings.
    :param num_prototypes: K.
    :param latent_dim: of f's values.
    :param hidden_layers: of f.

    Source: PAL-A of arXiv:2406.08469, with the ideal point ``f(Pw)`` as in the authors' code.
    """

    def __init__(self, size: int, num_prototypes: int, latent_dim: int, hidden_layers: int) -> None:
        super().__init__(size)
        self.standardize = Standardize(size)
        self.f = projector(size, latent_dim, hidden_layers)
        self.prototypes = nn.Parameter(torch.randn(num_prototypes, size))
        self.hidden_layers = hidden_layers

    @property
    def is_linear(self) -> bool:
        """With a linear f the squares of f(a_i) cancel."""
        return self.hidden_layers == 0

    def learn_scales(self, pairs: PalPairs) -> None:
        """Standardise by the answers."""
        self.standardize.learn(pairs.chosen, pairs.rejected)

    def represent(self, pairs: PalPairs) -> tuple[Tensor, Tensor]:
        """Difference and sum of f of both answers, each (pairs, latent)."""
        self.check(pairs)
        chosen, rejected = (self.f(self.standardize(side)) for side in (pairs.chosen, pairs.rejected))
        return chosen - rejected, chosen + rejected

    def per_pair(self, represented: tuple[Tensor, ...], weights: Tensor) -> Tensor:
        r""":math:`\lVert r - a \rVert^2 - \lVert c - a \rVert^2 = \langle c - r, 2a - (c + r) \rangle`, without cancellation."""
        difference, total = represented
        return (difference * (2 * self._anchors(weights) - total)).sum(-1)

    def per_person(self, represented: tuple[Tensor, ...], weights: Tensor) -> Tensor:
        """The same for all people and pairs."""
        difference, total = represented
        return 2 * self._anchors(weights) @ difference.T - (difference * total).sum(-1)

    def _anchors(self, weights: Tensor) -> Tensor:
        return self.f(weights @ self.prototypes)
