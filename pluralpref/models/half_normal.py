"""Half-normally distributed strength."""

from __future__ import annotations

import math
from typing import Any

from pyro.distributions import Distribution, HalfNormal
from torch import Tensor

from pluralpref.errors import ConfigError
from pluralpref.models.serialization import register_family
from pluralpref.models.strength import StrengthModel


@register_family
class HalfNormalStrength(StrengthModel):
    r""":math:`\beta = |X|` with :math:`X \sim \mathrm{Normal}(0, \sigma)`: the mode is indifference, the cv is fixed.

    .. math:: E[\beta] = \sigma\sqrt{2/\pi}, \qquad \mathrm{cv} = \sqrt{\pi/2 - 1} \approx 0.756 .

    One parameter, so the heterogeneity isn't learned: a yardstick for families that learn it.

    :param mean: :math:`E[\beta] > 0`, default 0.1. A number is learned, a Pyro distribution is a prior.
    :param scale: :math:`\sigma > 0`, instead of the mean.
    :raises ConfigError: if both are given, or a value is out of range.

    Reference: N. L. Johnson, S. Kotz and N. Balakrishnan, *Continuous Univariate Distributions*, vol. 1, 1994, ch. 13.
    """

    beta_mean: Tensor

    def __init__(self, mean: Any = None, *, scale: Any = None) -> None:
        super().__init__()
        if mean is not None and scale is not None:
            raise ConfigError(f"{type(self).__name__}: give mean or scale, not both")
        self.by_moments = scale is None
        if self.by_moments:
            self._declare("beta_mean", 0.1 if mean is None else mean)
        else:
            self._declare("scale", scale)

    def forward(self, context: Any = None) -> Distribution:
        """:class:`~pyro.distributions.HalfNormal` with batch shape ``()``."""
        return HalfNormal(self.beta_mean * math.sqrt(math.pi / 2) if self.by_moments else self.scale)
