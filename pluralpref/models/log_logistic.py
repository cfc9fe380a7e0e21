"""Log-logistically distributed strength."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import Distribution
from torch import Tensor
from torch.distributions import constraints

from pluralpref.distributions import LogLogistic
from pluralpref.models.inversion import invert
from pluralpref.models.serialization import register_family
from pluralpref.models.strength import StrengthModel

_SERIES_BELOW = 0.1
_SERIES_TERMS = 9


@register_family
class LogLogisticStrength(StrengthModel):
    r""":math:`\log\beta` follows a logistic law: like the log-normal, with a heavier tail on both sides.

    Give either ``mean`` and ``cv`` or ``scale`` and ``concentration``; the pair that is given is the pair that is
    learned. With :math:`x = \pi/k`,

    .. math:: E[\beta] = \alpha \frac{x}{\sin x}, \qquad 1 + \mathrm{cv}^2 = \frac{\tan x}{x} .

    :param mean: :math:`E[\beta] > 0`, default 0.1. A number is learned, a Pyro distribution is a prior.
    :param cv: :math:`\mathrm{sd}(\beta)/E[\beta] > 0`, default 0.5. Likewise.
    :param scale: :math:`\alpha > 0`, the median.
    :param concentration: k > 0; at 2 or below the variance, at 1 or below the mean is infinite.
    :raises ConfigError: if both pairs or half a pair is given, or a value is out of range.

    Reference: N. L. Johnson, S. Kotz and N. Balakrishnan, *Continuous Univariate Distributions*, vol. 2, 1995, ch. 23.
    """

    beta_mean: Tensor
    beta_cv: Tensor

    def __init__(self, mean: Any = None, cv: Any = None, *, scale: Any = None, concentration: Any = None) -> None:
        super().__init__()
        own = {"scale": (scale, constraints.positive), "concentration": (concentration, constraints.positive)}
        self.by_moments = self._declare_moments_or_own(mean, cv, own)

    def forward(self, context: Any = None) -> Distribution:
        """:class:`~pluralpref.distributions.LogLogistic` with batch shape ``()``."""
        if not self.by_moments:
            return LogLogistic(self.scale, self.concentration)
        squared = self.beta_cv**2
        start = 0.5 * torch.log(3 * squared) + torch.log1p(squared.sqrt() * math.pi / 2 / math.sqrt(3))
        x = torch.atan(invert(_log_spread, squared.log(), start).exp())
        return LogLogistic(self.beta_mean * torch.sin(x) / x, math.pi / x)


def _log_spread(u: Tensor) -> tuple[Tensor, Tensor]:
    """Log cv² for tan(pi/k) = exp(u), near 2u on the left and u on the right, and its derivative."""
    t = torch.exp(u)
    small = t < _SERIES_BELOW
    near, far = torch.where(small, t, _SERIES_BELOW), torch.where(small, _SERIES_BELOW, t)
    # t - atan(t) = t^3/3 - t^5/5 + ...; the difference would cancel. So would that of its derivative, t - t/(1 + t²).
    n = torch.arange(1, 1 + _SERIES_TERMS, dtype=t.dtype, device=t.device)
    terms = -((-1.0) ** n) / (2 * n + 1) * near.unsqueeze(-1) ** (2 * n + 1)
    excess = torch.where(small, terms.sum(-1), far - torch.atan(far))
    x = torch.atan(t)
    return torch.log(excess) - torch.log(x), t**3 / (1 + t * t) / excess - t / ((1 + t * t) * x)
