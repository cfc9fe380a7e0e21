"""PAL-B: everybody maps prompts to what they like, by a mixture of prototypical maps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pluralpref.errors import DataError
from pluralpref.inference.pal.data import PalPairs
from pluralpref.inference.pal.projector import Standardize, projector
from pluralpref.inference.pal.reward import PalReward


class PreferenceMapping(PalReward):
    r"""The preference-mapping model: what is liked depends on the prompt.

    .. math:: u_i(x) = \langle f(x), z_i(q) \rangle, \qquad z_i(q) = \sum_k w_{ik} g_k(q)

    with q the prompt's embedding and K maps :math:`g_k`, the prototypes. Margins are :math:`\sum_k w_{ik} s_k` with scores
    :math:`s_k = \langle f(c) - f(r), g_k(q) \rangle`, linear in the weights; with K = 1 this is one reward model for all.

    :param size: of the answers' embeddings.
    :param prompt_size: of the prompts' embeddings.
    :param num_prototypes: K.
    :param latent_dim: of the values of f and g_k.
    :param hidden_layers: of f and g_k.

    Source: PAL-B of arXiv:2406.08469.
    """

    def __init__(self, size: int, prompt_size: int, num_prototypes: int, latent_dim: int, hidden_layers: int) -> None:
        super().__init__(size)
        self.prompt_size = prompt_size
        self.standardize = Standardize(size)
        self.standardize_prompt = Standardize(prompt_size)
        self.f = projector(size, latent_dim, hidden_layers)
        self.g = nn.ModuleList(projector(prompt_size, latent_dim, hidden_layers) for _ in range(num_prototypes))

    @property
    def is_linear(self) -> bool:
        """Always."""
        return True

    def learn_scales(self, pairs: PalPairs) -> None:
        """Standardise answers by answers and prompts by prompts."""
        self.standardize.learn(pairs.chosen, pairs.rejected)
        self.standardize_prompt.learn(self._prompt(pairs))

    def represent(self, pairs: PalPairs) -> tuple[Tensor]:
        """The scores s_k, (pairs, K)."""
        self.check(pairs)
        difference = self.f(self.standardize(pairs.chosen)) - self.f(self.standardize(pairs.rejected))
        prompt = self.standardize_prompt(self._prompt(pairs))
        return (torch.stack([(difference * g(prompt)).sum(-1) for g in self.g], dim=-1),)

    def per_pair(self, represented: tuple[Tensor, ...], weights: Tensor) -> Tensor:
        """The scores' mixture by each pair's weights."""
        return (represented[0] * weights).sum(-1)

    def per_person(self, represented: tuple[Tensor, ...], weights: Tensor) -> Tensor:
        """The scores' mixture by each person's weights."""
        return weights @ represented[0].T

    def _prompt(self, pairs: PalPairs) -> Tensor:
        if pairs.prompt is None:
            raise DataError("PAL-B needs embeddings 'prompt': its preferences depend on them (PAL-A can do without)")
        if pairs.prompt.shape[1] != self.prompt_size:
            raise DataError(
                f"the prompts' embeddings have {pairs.prompt.shape[1]} coordinates but PAL was fitted to {self.prompt_size}: "
                "embed them with the same model"
            )
        return pairs.prompt
