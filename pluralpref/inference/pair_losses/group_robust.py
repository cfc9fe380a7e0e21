"""DPO for the group that is served worst."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pluralpref.errors import ConfigError, DataError
from pluralpref.inference.pair_losses.base import PairLoss, cross_entropy


class GroupRobustLoss(PairLoss):
    r"""GR-DPO: :math:`\max_{\alpha \in \Delta} \sum_g \alpha_g L_g`, with :math:`L_g` the mean DPO loss of group g.

    Before every optimiser step the groups' weights move by exponentiated gradient,
    :math:`\alpha_g \leftarrow \alpha_g e^{\eta L_g} / Z`, with the losses of all the step's pairs; the step then goes down
    :math:`\sum_g \alpha_g L_g`. Groups without a pair in the step are left out of both: their weights stay as they are.

    The paper scales both by N/N_g, the share of the group in the data, and its authors' code by the group's pairs in the batch,
    as here: the same where every batch has the data's shares.

    :param beta: > 0.
    :param groups: the groups' names.
    :param step_size: :math:`\eta` > 0, per nat.
    :raises ConfigError: for a step size that isn't positive, or fewer than two groups.

    Reference: S. S. Ramesh et al., "Group Robust Preference Optimization in Reward-free RLHF", arXiv:2405.20304, algorithm 1.
    """

    looks_ahead = True
    needs_groups = True
    log_alpha: Tensor

    def __init__(self, beta: float, groups: Sequence[str], step_size: float) -> None:
        super().__init__(beta)
        if not step_size > 0:
            raise ConfigError(f"gr_dpo_step_size={step_size}: must be positive")
        self.groups = tuple(sorted(set(groups)))
        if len(self.groups) < 2:
            raise ConfigError(f"gr_dpo needs at least two groups: there is {', '.join(self.groups) or 'none'}")
        self.step_size = step_size
        start = torch.full((len(self.groups),), -math.log(len(self.groups)), dtype=torch.float64)
        self.register_buffer("log_alpha", start)

    def forward(self, margins: Tensor, preferred: Tensor) -> Tensor:
        """See :meth:`PairLoss.forward`; nats."""
        return cross_entropy(self.beta * margins, preferred)

    @torch.no_grad()
    def begin_step(
        self, margins: Tensor, preferred: Tensor, weight: Tensor, groups: Sequence[str] | None = None
    ) -> Tensor:
        r"""Move the groups' weights; a pair counts :math:`\alpha_g W / W_g`."""
        code, mass = self._masses(weight, groups)
        total = mass.new_zeros(len(mass)).index_add(0, code, weight * self(margins, preferred).to(weight))
        here = mass > 0
        loss = torch.where(here, total / mass.clamp_min(torch.finfo(mass.dtype).tiny), 0.0).to(self.log_alpha)
        # Among the groups that are here, so that the others keep their share.
        share = self.log_alpha[here].logsumexp(0)
        moved = self.log_alpha[here] + self.step_size * loss[here]
        self.log_alpha[here] = moved - moved.logsumexp(0) + share
        return self._multipliers(code, mass, weight)

    def eval_weight(
        self, margins: Tensor, preferred: Tensor, weight: Tensor, groups: Sequence[str] | None = None
    ) -> Tensor:
        """As in a step, with the groups' weights as they stand."""
        return self._multipliers(*self._masses(weight, groups), weight)

    def metrics(self) -> dict[str, float]:
        """``gr_dpo/weight/<group>``."""
        alpha = self.log_alpha.exp().tolist()
        return {f"gr_dpo/weight/{name}": value for name, value in zip(self.groups, alpha, strict=True)}

    def _masses(self, weight: Tensor, groups: Sequence[str] | None) -> tuple[Tensor, Tensor]:
        if groups is None:
            raise DataError("gr_dpo needs each pair's group")
        codes = {name: i for i, name in enumerate(self.groups)}
        unknown = sorted(set(groups) - codes.keys())
        if unknown:
            raise DataError(
                f"group {unknown[0]!r} isn't among those of the training pairs ({', '.join(self.groups)}), so it has no weight"
            )
        code = torch.tensor([codes[name] for name in groups], device=weight.device)
        return code, weight.new_zeros(len(codes)).index_add(0, code, weight)

    def _multipliers(self, code: Tensor, mass: Tensor, weight: Tensor) -> Tensor:
        alpha: Any = self.log_alpha.exp().to(weight)
        alpha = torch.where(mass > 0, alpha, 0.0)
        return (alpha / alpha.sum() * weight.sum() / mass.clamp_min(torch.finfo(mass.dtype).tiny))[code]
