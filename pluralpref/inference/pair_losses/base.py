"""What a loss of margins is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


class PairLoss(torch.nn.Module):
    """The loss of each pair as a function of its margin, in the place of MixDPO's.

    The loss of an optimiser step is the weighted mean of :meth:`forward` over its pairs, each times what :meth:`begin_step` gave
    it. State that goes on from step to step is in buffers, which are part of every checkpoint.

    :param beta: the strength, > 0, dimensionless (margins are in nats).
    """

    #: Whether :meth:`begin_step` needs the margins of all pairs of a step before the first gradient.
    looks_ahead = False
    #: Whether :meth:`begin_step` needs each pair's group.
    needs_groups = False

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = beta

    def forward(self, margins: Tensor, preferred: Tensor) -> Tensor:
        """The loss of each pair.

        :param margins: (pairs,) nats, chosen minus rejected answer.
        :param preferred: (pairs,) in [0, 1], the probability that the chosen answer is the preferred one.
        :returns: (pairs,).
        """
        raise NotImplementedError

    @torch.no_grad()
    def begin_step(
        self, margins: Tensor, preferred: Tensor, weight: Tensor, groups: Sequence[str] | None = None
    ) -> Tensor:
        """Look at all pairs of an optimiser step, of all processes, and say how much each counts.

        :returns: (pairs,), by default 1.
        """
        return torch.ones_like(weight)

    def eval_weight(
        self, margins: Tensor, preferred: Tensor, weight: Tensor, groups: Sequence[str] | None = None
    ) -> Tensor:
        """How much each pair counts when pairs are evaluated; changes no state.

        :returns: (pairs,), by default 1.
        """
        return torch.ones_like(weight)

    def metrics(self) -> dict[str, float]:
        """The state by name, for logs."""
        return {}


def cross_entropy(logits: Tensor, preferred: Tensor) -> Tensor:
    r"""Negative log-probability of a choice, :math:`-y \log \sigma(x) - (1 - y) \log \sigma(-x)`, nats."""
    # A term that doesn't count must not turn an infinite logarithm into nan.
    first = torch.where(preferred > 0, preferred * logsigmoid(logits), 0.0)
    second = torch.where(preferred < 1, (1 - preferred) * logsigmoid(-logits), 0.0)
    return -(first + second)
