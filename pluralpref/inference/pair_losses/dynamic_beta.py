"""DPO with a beta that follows the margins of the batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pluralpref.errors import ConfigError
from pluralpref.inference.pair_losses.base import PairLoss, cross_entropy

#: What the authors' code doesn't go below.
_LEAST_BETA = 1e-3


class DynamicBetaLoss(PairLoss):
    r""":math:`\beta`-DPO: :math:`\beta = \beta_0 [1 + a (\bar h - M_0)]` in each optimiser step, and no outliers.

    :math:`M_0` and :math:`s` are moving averages of the mean and the standard deviation of the step's margins,
    :math:`M_0 \leftarrow m M_0 + (1-m) \bar h`, from 0. Of the step's pairs a share of :math:`1 - \rho` is drawn without
    replacement, with probabilities as :math:`e^{-(h - M_0)^2 / (2 s^2)}`; :math:`\bar h` in the formula for beta is their mean.
    Margins are beta-free, as in the authors' code (the paper writes the reward difference, which is beta times that). The
    gradient doesn't go through beta, which is at least 0.001.

    Moving averages and the draw are made once for an optimiser step, whatever its division into micro-batches and processes;
    in the authors' code once for a micro-batch.

    :param beta: :math:`\beta_0` > 0.
    :param scaling: a >= 0, per nat.
    :param filtered: :math:`\rho`, the share of pairs that are left out, in [0, 1).
    :param momentum: m in [0, 1).
    :param seed: of the draws.
    :raises ConfigError: for values out of range.

    Reference: J. Wu et al., ":math:`\beta`-DPO: Direct Preference Optimization with Dynamic :math:`\beta`", arXiv:2407.08639.
    """

    looks_ahead = True
    current: Tensor
    mean: Tensor
    std: Tensor
    steps: Tensor

    def __init__(
        self, beta: float, scaling: float = 0.6, filtered: float = 0.2, momentum: float = 0.9, seed: int = 0
    ) -> None:
        super().__init__(beta)
        if scaling < 0:
            raise ConfigError(f"beta_dpo_scaling={scaling}: must not be negative")
        for name, value in (("beta_dpo_filtered", filtered), ("beta_dpo_momentum", momentum)):
            if not 0 <= value < 1:
                raise ConfigError(f"{name}={value}: must be in [0, 1)")
        self.scaling, self.filtered, self.momentum, self.seed = scaling, filtered, momentum, seed
        for name, value in (("current", beta), ("mean", 0.0), ("std", 0.0)):
            self.register_buffer(name, torch.tensor(value, dtype=torch.float64))
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, margins: Tensor, preferred: Tensor) -> Tensor:
        """See :meth:`PairLoss.forward`; nats, at the beta of the step."""
        return cross_entropy(self.current.to(margins) * margins, preferred)

    @torch.no_grad()
    def begin_step(
        self, margins: Tensor, preferred: Tensor, weight: Tensor, groups: Sequence[str] | None = None
    ) -> Tensor:
        """Move the averages, draw the pairs, set beta; a pair that is left out counts 0, the others more accordingly."""
        h = margins.to(self.mean)
        keep = self.momentum
        self.mean.mul_(keep).add_((1 - keep) * h.mean())
        spread = h.std() if len(h) > 1 else torch.zeros_like(self.mean)
        self.std.mul_(keep).add_((1 - keep) * spread)
        drawn = self._draw(h)
        self.current.copy_((self.beta * (1 + self.scaling * (h[drawn].mean() - self.mean))).clamp_min(_LEAST_BETA))
        self.steps += 1
        counts = torch.zeros_like(weight)
        counts[drawn] = 1
        mass = (counts * weight).sum()
        return counts * weight.sum() / mass if mass > 0 else counts

    def _draw(self, h: Tensor) -> Tensor:
        """The numbers of the pairs that are kept."""
        number = max(1, int(len(h) * (1 - self.filtered)))
        if number == len(h):
            return torch.arange(len(h), device=h.device)
        # Equal margins, as at the first step of all: everybody is as likely.
        log_probability = -0.5 * ((h - self.mean) / self.std) ** 2 if self.std > 0 else torch.zeros_like(h)
        # Gumbel's trick: the largest of log-probabilities with noise are a draw without replacement, also of tiny ones. The
        # generator is the step's own, the same in all processes and after a resumption.
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + int(self.steps)) % 2**63)
        uniform = torch.rand(len(h), generator=generator, dtype=torch.float64).to(h.device)
        noise = -(-uniform.clamp_min(1e-300).log()).log()
        return (log_probability + noise).topk(number).indices

    def metrics(self) -> dict[str, float]:
        """``beta_dpo/beta``, ``beta_dpo/threshold``."""
        return {"beta_dpo/beta": float(self.current), "beta_dpo/threshold": float(self.mean)}
