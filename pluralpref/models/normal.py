"""Normally distributed strength: some people hold the opposite preference."""

from __future__ import annotations

from typing import Any

from pyro.distributions import Distribution, Normal
from torch import Tensor
from torch.distributions import constraints

from pluralpref.models.serialization import register_family
from pluralpref.models.strength import StrengthModel


@register_family
class NormalStrength(StrengthModel):
    r""":math:`\beta \sim \mathrm{Normal}(\mu, \sigma)`, of either sign.

    The share :math:`\Phi(-\mu/\sigma)` of the population prefers the answer that the policy's margins speak against.
    Give either ``mean`` and ``cv`` or ``loc`` and ``scale``; the pair that is given is the pair that is learned:
    :math:`\mu = E[\beta]`, :math:`\sigma = \mathrm{cv}\,E[\beta]`.

    With a free policy, (beta, h) and (-beta, -h) are the same model; a positive mean settles which is meant.

    :param mean: :math:`E[\beta] > 0`, default 0.1. A number is learned, a Pyro distribution is a prior.
    :param cv: :math:`\mathrm{sd}(\beta)/E[\beta] > 0`, default 0.5. Likewise.
    :param loc: :math:`\mu`, any sign.
    :param scale: :math:`\sigma > 0`.
    :raises ConfigError: if both pairs or half a pair is given, or a value is out of range.

    Reference: K. Train, *Discrete Choice Methods with Simulation*, 2nd ed., 2009, section 6.2.
    """

    beta_mean: Tensor
    beta_cv: Tensor

    def __init__(self, mean: Any = None, cv: Any = None, *, loc: Any = None, scale: Any = None) -> None:
        super().__init__()
        own = {"loc": (loc, constraints.real), "scale": (scale, constraints.positive)}
        self.by_moments = self._declare_moments_or_own(mean, cv, own)

    def forward(self, context: Any = None) -> Distribution:
        """:class:`~pyro.distributions.Normal` with batch shape ``()``."""
        if not self.by_moments:
            return Normal(self.loc, self.scale)
        return Normal(self.beta_mean, self.beta_cv * self.beta_mean)
