"""Weibull-distributed strength."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import Distribution, Weibull
from torch import Tensor
from torch.distributions import constraints
from torch.special import zeta

from pluralpref.models.inversion import invert
from pluralpref.models.serialization import register_family
from pluralpref.models.strength import StrengthModel

_SERIES_BELOW = 0.05
_SERIES_TERMS = 16


@register_family
class WeibullStrength(StrengthModel):
    r""":math:`\beta \sim \mathrm{Weibull}(\lambda, k)`: from heavy-tailed (k < 1) over exponential to near symmetric.

    Give either ``mean`` and ``cv`` or ``concentration`` and ``scale``; the pair that is given is the pair that is
    learned:

    .. math:: E[\beta] = \lambda\,\Gamma(1 + 1/k), \qquad
              1 + \mathrm{cv}^2 = \frac{\Gamma(1 + 2/k)}{\Gamma(1 + 1/k)^2} .

    :param mean: :math:`E[\beta] > 0`, default 0.1. A number is learned, a Pyro distribution is a prior.
    :param cv: :math:`\mathrm{sd}(\beta)/E[\beta] > 0`, default 0.5. Likewise.
    :param concentration: :math:`k > 0`.
    :param scale: :math:`\lambda > 0`.
    :raises ConfigError: if both pairs or half a pair is given, or a value is out of range.

    Reference: N. L. Johnson, S. Kotz and N. Balakrishnan, *Continuous Univariate Distributions*, vol. 1, 1994, ch. 21.
    """

    beta_mean: Tensor
    beta_cv: Tensor

    def __init__(self, mean: Any = None, cv: Any = None, *, concentration: Any = None, scale: Any = None) -> None:
        super().__init__()
        own = {"concentration": (concentration, constraints.positive), "scale": (scale, constraints.positive)}
        self.by_moments = self._declare_moments_or_own(mean, cv, own)

    def forward(self, context: Any = None) -> Distribution:
        """:class:`~pyro.distributions.Weibull` with batch shape ``()``."""
        if not self.by_moments:
            return Weibull(self.scale, self.concentration)
        log_variance = (self.beta_cv**2).log1p().log()
        start = 0.5 * log_variance + 0.5 * math.log(6 / math.pi**2)
        inverse = invert(_log_log_spread, log_variance, start).exp()
        return Weibull(self.beta_mean * torch.exp(-torch.lgamma(1 + inverse)), 1 / inverse)


def _log_log_spread(u: Tensor) -> tuple[Tensor, Tensor]:
    """Log log(1 + cv²) for 1/k = exp(u), near 2u on the left and u on the right, and its derivative."""
    x = torch.exp(u)
    small = x < _SERIES_BELOW
    near, far = torch.where(small, x, _SERIES_BELOW), torch.where(small, _SERIES_BELOW, x)
    # log Gamma(1+2x) - 2 log Gamma(1+x) = sum_n (-1)^n zeta(n) (2^n - 2) x^n / n; the difference would cancel.
    n = torch.arange(2, 2 + _SERIES_TERMS, dtype=x.dtype, device=x.device)
    terms = (-1.0) ** n * zeta(n, torch.ones_like(n)) * (2**n - 2) / n * near.unsqueeze(-1) ** n
    plain = torch.lgamma(1 + 2 * far) - 2 * torch.lgamma(1 + far)
    plain_slope = 2 * far * (torch.digamma(1 + 2 * far) - torch.digamma(1 + far))
    value = torch.where(small, terms.sum(-1), plain)
    return torch.log(value), torch.where(small, (n * terms).sum(-1), plain_slope) / value
