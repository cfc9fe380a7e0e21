"""Gamma-distributed strength."""

from __future__ import annotations

from typing import Any

from pyro.distributions import Distribution, Gamma
from torch import Tensor
from torch.distributions import constraints

from pluralpref.models.serialization import register_family
from pluralpref.models.strength import StrengthModel


@register_family
class GammaStrength(StrengthModel):
    r""":math:`\beta \sim \mathrm{Gamma}(a, \lambda)`, the family whose choice probability has a closed form.

    Give either ``mean`` and ``cv`` or ``concentration`` and ``rate``; the pair that is given is the pair that is
    learned:

    .. math:: a = 1/\mathrm{cv}^2, \qquad \lambda = a / E[\beta] .

    A cv above 1 means :math:`a < 1`: a density without bound at 0, a large share of annotators near
    indifference.

    :param mean: :math:`E[\beta] > 0`, default 0.1. A number is learned, a Pyro distribution is a prior.
    :param cv: :math:`\mathrm{sd}(\beta)/E[\beta] > 0`, default 0.5. Likewise.
    :param concentration: the shape :math:`a > 0`.
    :param rate: :math:`\lambda > 0`.
    :raises ConfigError: if both pairs or half a pair is given, or a value is out of range (a cv of exactly 0
        is :class:`~pluralpref.models.FixedStrength`).

    Reference: MixDPO, arXiv:2601.06180 (the Gamma variant and its Lerch transcendent).
    """

    beta_mean: Tensor
    beta_cv: Tensor

    def __init__(self, mean: Any = None, cv: Any = None, *, concentration: Any = None, rate: Any = None) -> None:
        super().__init__()
        own = {"concentration": (concentration, constraints.positive), "rate": (rate, constraints.positive)}
        self.by_moments = self._declare_moments_or_own(mean, cv, own)

    def forward(self, context: Any = None) -> Distribution:
        """:class:`~pyro.distributions.Gamma` with batch shape ``()``."""
        if not self.by_moments:
            return Gamma(self.concentration, self.rate)
        concentration = self.beta_cv**-2
        return Gamma(concentration, concentration / self.beta_mean)
