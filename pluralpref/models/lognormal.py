"""Log-normally distributed strength."""

from __future__ import annotations

from typing import Any

from pyro.distributions import Distribution, LogNormal
from torch import Tensor
from torch.distributions import constraints

from pluralpref.models.serialization import register_family
from pluralpref.models.strength import StrengthModel


@register_family
class LogNormalStrength(StrengthModel):
    r""":math:`\log\beta \sim \mathrm{Normal}(\mu, \sigma)`, strictly positive and right-skewed.

    Give either ``mean`` and ``cv`` or ``loc`` and ``scale``; the pair that is given is the pair that is learned:

    .. math:: \sigma^2 = \log(1 + \mathrm{cv}^2), \qquad \mu = \log E[\beta] - \sigma^2/2 .

    :param mean: :math:`E[\beta] > 0`, default 0.1. A number is learned, a Pyro distribution is a prior.
    :param cv: :math:`\mathrm{sd}(\beta)/E[\beta] > 0`, default 0.5. Likewise.
    :param loc: :math:`\mu`, the mean of :math:`\log\beta`.
    :param scale: :math:`\sigma > 0`, the standard deviation of :math:`\log\beta`.
    :raises ConfigError: if both pairs or half a pair is given, or a value is out of range (a cv of exactly 0
        is :class:`~pluralpref.models.FixedStrength`).

    Reference: K. Train, *Discrete Choice Methods with Simulation*, 2nd ed., 2009, section 6.2.
    """

    beta_mean: Tensor
    beta_cv: Tensor

    def __init__(self, mean: Any = None, cv: Any = None, *, loc: Any = None, scale: Any = None) -> None:
        super().__init__()
        own = {"loc": (loc, constraints.real), "scale": (scale, constraints.positive)}
        self.by_moments = self._declare_moments_or_own(mean, cv, own)

    def forward(self, context: Any = None) -> Distribution:
        """:class:`~pyro.distributions.LogNormal` with batch shape ``()``."""
        if not self.by_moments:
            return LogNormal(self.loc, self.scale)
        variance: Tensor = (self.beta_cv**2).log1p()
        return LogNormal(self.beta_mean.log() - variance / 2, variance.sqrt())
