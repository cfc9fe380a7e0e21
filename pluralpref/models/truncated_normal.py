"""Normally distributed strength, cut off at 0."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import Distribution
from torch import Tensor
from torch.distributions import constraints

from pluralpref.distributions import PositiveNormal
from pluralpref.distributions.truncated_normal import logit_of_ratio, mean_of_ratio
from pluralpref.errors import ConfigError
from pluralpref.models.inversion import invert
from pluralpref.models.moments import choose_parameters
from pluralpref.models.serialization import register_family
from pluralpref.models.strength import StrengthModel


@register_family
class TruncatedNormalStrength(StrengthModel):
    r""":math:`\beta \sim \mathrm{Normal}(\mu, \sigma)` given :math:`\beta > 0`: light tails, from a bell to exponential.

    Give either ``mean`` and ``cv`` or ``loc`` and ``scale``; the pair that is given is the pair that is learned. The cv
    of such a law is below 1, that of its limit, the exponential law.

    :param mean: :math:`E[\beta] > 0`, default 0.1. A number is learned, a Pyro distribution is a prior.
    :param cv: :math:`\mathrm{sd}(\beta)/E[\beta]` in (0, 1), default 0.5. Likewise.
    :param loc: :math:`\mu`, the mode where positive.
    :param scale: :math:`\sigma > 0`.
    :raises ConfigError: if both pairs or half a pair is given, or a value is out of range.

    Reference: N. L. Johnson, S. Kotz and N. Balakrishnan, *Continuous Univariate Distributions*, vol. 1, 1994, ch. 13.
    """

    beta_mean: Tensor
    beta_cv: Tensor

    def __init__(self, mean: Any = None, cv: Any = None, *, loc: Any = None, scale: Any = None) -> None:
        super().__init__()
        self.by_moments = choose_parameters(type(self).__name__, mean, cv, loc=loc, scale=scale)
        if self.by_moments:
            if isinstance(cv, int | float | Tensor) and not 0 < float(cv) < 1:
                raise ConfigError(
                    f"{type(self).__name__}: cv={cv} is out of reach, this family's cv lies between 0 and 1"
                )
            self._declare("beta_mean", 0.1 if mean is None else mean)
            self._declare("beta_cv", 0.5 if cv is None else cv, constraints.unit_interval)
        else:
            self._declare("loc", loc, constraints.real)
            self._declare("scale", scale)

    def forward(self, context: Any = None) -> Distribution:
        """:class:`~pluralpref.distributions.PositiveNormal` with batch shape ``()``."""
        if not self.by_moments:
            return PositiveNormal(self.loc, self.scale)
        target = 2 * self.beta_cv.log() - torch.log1p(-(self.beta_cv**2))
        ratio = 2 * torch.sinh(invert(_logit_spread, target, -0.5 * target))
        scale = self.beta_mean / mean_of_ratio(ratio)
        return PositiveNormal(ratio * scale, scale)


def _logit_spread(u: Tensor) -> tuple[Tensor, Tensor]:
    """The logit of cv² for loc/scale = 2 sinh(u), near -2u on both sides, and its derivative."""
    value, slope = logit_of_ratio(2 * torch.sinh(u))
    return value, 2 * torch.cosh(u) * slope
