"""A law times a constant; with -1, that of people who hold the opposite preference."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import Delta, TransformedDistribution
from torch import Tensor
from torch.distributions import AffineTransform, Categorical, Distribution, constraints

from pluralpref.distributions.mixture import MixtureGeneral, is_nonnegative, share_below


class Scaled(TransformedDistribution):
    r""":math:`\beta = c X` with :math:`X` from ``base`` and a constant :math:`c \ne 0`.

    ``TransformedDistribution(base, AffineTransform(0, c))`` that knows its moments.

    :param base: a distribution, event shape ().
    :param factor: c, any sign.
    """

    def __init__(self, base: Distribution, factor: float | Tensor, *, validate_args: bool | None = None) -> None:
        self.factor = factor
        #: X as it was given. ``base_dist`` has the batch shape of c X: as many copies of one law as there are factors.
        self.unscaled = base
        super().__init__(base, [AffineTransform(0.0, factor)], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Scaled:
        """The same law with a larger batch shape."""
        return Scaled(self.base_dist.expand(torch.Size(batch_shape)), self.factor, validate_args=False)

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> Any:
        """A half line where the base has one and the factor one sign, else the real line."""
        factor = torch.as_tensor(self.factor)
        if is_nonnegative(self.base_dist):
            if bool((factor > 0).all()):
                return constraints.positive
            if bool((factor < 0).all()):
                return constraints.less_than(0.0)
        return constraints.real

    def cdf(self, value: Tensor) -> Tensor:
        """P(c X <= value), on either side of 0 (a law with point masses needs c > 0)."""
        below = share_below(self.base_dist, value / self.factor)
        return torch.where(torch.as_tensor(self.factor) > 0, below, 1 - below)

    @property
    def mean(self) -> Tensor:
        """C E[X]."""
        return self.base_dist.mean * self.factor

    @property
    def variance(self) -> Tensor:
        """c² Var[X]."""
        return self.base_dist.variance * self.factor**2


def negate(law: Distribution) -> Distribution:
    """The law of -X.

    A point mass stays one, a mixture a mixture of negated components.
    """
    if isinstance(law, Delta):
        return Delta(-law.v, law.log_density)
    if isinstance(law, MixtureGeneral):
        mixing: Categorical = law.mixing_distribution
        return MixtureGeneral(mixing, [negate(c) for c in law.component_distributions])
    return Scaled(law, -1.0)
