"""Exponentially distributed strength."""

from __future__ import annotations

from typing import Any

from pyro.distributions import Distribution, Exponential
from torch import Tensor

from pluralpref.errors import ConfigError
from pluralpref.models.serialization import register_family
from pluralpref.models.strength import StrengthModel


@register_family
class ExponentialStrength(StrengthModel):
    r""":math:`\beta \sim \mathrm{Exponential}(\lambda)`, a Gamma law of shape 1: its cv is 1 whatever the mean.

    .. math:: E[\beta] = 1/\lambda, \qquad \mathrm{cv} = 1 .

    One parameter, so the heterogeneity isn't learned: a yardstick for families that learn it.

    :param mean: :math:`E[\beta] > 0`, default 0.1. A number is learned, a Pyro distribution is a prior.
    :param rate: :math:`\lambda > 0`, instead of the mean.
    :raises ConfigError: if both are given, or a value is out of range.

    Reference: N. L. Johnson, S. Kotz and N. Balakrishnan, *Continuous Univariate Distributions*, vol. 1, 1994, ch. 19.
    """

    beta_mean: Tensor

    def __init__(self, mean: Any = None, *, rate: Any = None) -> None:
        super().__init__()
        if mean is not None and rate is not None:
            raise ConfigError(f"{type(self).__name__}: give mean or rate, not both")
        self.by_moments = rate is None
        if self.by_moments:
            self._declare("beta_mean", 0.1 if mean is None else mean)
        else:
            self._declare("rate", rate)

    def forward(self, context: Any = None) -> Distribution:
        """:class:`~pyro.distributions.Exponential` with batch shape ``()``."""
        return Exponential(1 / self.beta_mean if self.by_moments else self.rate)
