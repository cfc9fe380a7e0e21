"""The same strength for everybody: plain DPO."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import Delta, Distribution
from torch import Tensor
from torch.distributions import constraints

from pluralpref.errors import ConfigError
from pluralpref.models.serialization import register_family
from pluralpref.models.strength import StrengthModel, as_number


@register_family
class FixedStrength(StrengthModel):
    r""":math:`\beta` is one number, :math:`p(\beta) = \delta(\beta - b)`.

    Constant (the default) it is Direct Preference Optimization with ``beta=b``. Learned it is the control of
    every claim about heterogeneity: a learned scale alone already improves the fit of the link, so what a mixed
    model gains has to be measured against it.

    :param beta: the value, greater than 0; or a Pyro distribution, a prior of one common strength.
    :param learned: learn the value (on the log scale) instead of keeping it.
    :raises ConfigError: if ``beta`` isn't a finite number greater than 0, or if it is a prior and ``learned``
        was set, which would have no effect.

    Reference: R. Rafailov et al., *Direct Preference Optimization*, NeurIPS 2023, arXiv:2305.18290.
    """

    beta_mean: Tensor

    def __init__(self, beta: Any = 0.1, learned: bool = False) -> None:
        super().__init__()
        is_prior = isinstance(beta, torch.distributions.Distribution)
        if is_prior and learned:
            raise ConfigError("learned=True has no effect on a beta with a prior: leave it out")
        if learned or is_prior:
            self._declare("beta_mean", beta)
        else:
            # A buffer follows the module's device and is saved with it, but no optimiser sees it.
            self.register_buffer("beta_mean", as_number("beta", beta, constraints.positive))

    def forward(self, context: Any = None) -> Distribution:
        """The point mass :class:`~pyro.distributions.Delta` at the value, batch shape ``()``."""
        return Delta(self.beta_mean)

    def extra_repr(self) -> str:
        """The constant where nothing is learned."""
        return super().extra_repr() or f"beta={self.beta_mean.item():.4g}"
