"""Inverse-gamma-distributed strength."""

from __future__ import annotations

from typing import Any

from pyro.distributions import Distribution, InverseGamma
from torch import Tensor
from torch.distributions import constraints

from pluralpref.models.serialization import register_family
from pluralpref.models.strength import StrengthModel


@register_family
class InverseGammaStrength(StrengthModel):
    r""":math:`1/\beta \sim \mathrm{Gamma}(a, \lambda)`: few people near indifference, a tail like a power on the right.

    Give either ``mean`` and ``cv`` or ``concentration`` and ``rate``; the pair that is given is the pair that is
    learned:

    .. math:: a = 2 + 1/\mathrm{cv}^2, \qquad \lambda = (a - 1)\,E[\beta] .

    :param mean: :math:`E[\beta] > 0`, default 0.1. A number is learned, a Pyro distribution is a prior.
    :param cv: :math:`\mathrm{sd}(\beta)/E[\beta] > 0`, default 0.5. Likewise.
    :param concentration: a > 0; at 2 or below the variance, at 1 or below the mean is infinite.
    :param rate: :math:`\lambda > 0`.
    :raises ConfigError: if both pairs or half a pair is given, or a value is out of range.

    Reference: N. L. Johnson, S. Kotz and N. Balakrishnan, *Continuous Univariate Distributions*, vol. 1, 1994, ch. 17.
    """

    beta_mean: Tensor
    beta_cv: Tensor

    def __init__(self, mean: Any = None, cv: Any = None, *, concentration: Any = None, rate: Any = None) -> None:
        super().__init__()
        own = {"concentration": (concentration, constraints.positive), "rate": (rate, constraints.positive)}
        self.by_moments = self._declare_moments_or_own(mean, cv, own)

    def forward(self, context: Any = None) -> Distribution:
        """:class:`~pyro.distributions.InverseGamma` with batch shape ``()``."""
        if not self.by_moments:
            return InverseGamma(self.concentration, self.rate)
        concentration = 2 + self.beta_cv**-2
        return InverseGamma(concentration, (concentration - 1) * self.beta_mean)
