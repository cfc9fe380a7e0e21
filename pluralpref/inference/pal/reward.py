"""What both variants of PAL have in common: margins of pairs for people given by their weights."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from pluralpref.errors import DataError
from pluralpref.inference.pal.data import PalPairs


class PalReward(nn.Module, ABC):
    """Utilities u of answers for people whose weights w on K prototypes are given; margins are u_chosen - u_rejected.

    :param size: of the answers' embeddings.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    @property
    @abstractmethod
    def is_linear(self) -> bool:
        """Whether the margins are linear in w on the simplex."""

    @abstractmethod
    def learn_scales(self, pairs: PalPairs) -> None:
        """Standardise embeddings by these."""

    @abstractmethod
    def represent(self, pairs: PalPairs) -> tuple[Tensor, ...]:
        """What the margins need of the pairs, whoever chooses."""

    @abstractmethod
    def per_pair(self, represented: tuple[Tensor, ...], weights: Tensor) -> Tensor:
        """Margins (pairs,) where each pair has weights of its own, (pairs, K)."""

    @abstractmethod
    def per_person(self, represented: tuple[Tensor, ...], weights: Tensor) -> Tensor:
        """Margins (people, pairs) of every pair for every person, whose weights are (people, K)."""

    def shared_parameters(self) -> list[nn.Parameter]:
        """Parameters of f and g_k."""
        return [parameter for name, parameter in self.named_parameters() if name != "prototypes"]

    def check(self, pairs: PalPairs) -> None:
        """Refuse embeddings that don't fit.

        :raises DataError: saying both sizes.
        """
        if pairs.chosen.shape[1] != self.size:
            raise DataError(
                f"the answers' embeddings have {pairs.chosen.shape[1]} coordinates but PAL was fitted to {self.size}: embed them "
                "with the same model"
            )
