"""The log-logistic distribution."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from pyro.distributions import Logistic, TransformedDistribution
from torch import Tensor
from torch.distributions import ExpTransform, constraints
from torch.distributions.utils import broadcast_all


class LogLogistic(TransformedDistribution):
    r""":math:`\log\beta \sim \mathrm{Logistic}(\log\alpha, 1/k)`: a positive law with tails that fall like a power.

    .. math::
        P(\beta \le x) = \frac{1}{1 + (x/\alpha)^{-k}}, \qquad
        E[\beta] = \alpha \frac{\pi/k}{\sin(\pi/k)} \ (k > 1), \qquad
        1 + \mathrm{cv}^2 = \frac{\tan(\pi/k)}{\pi/k} \ (k > 2).

    :param scale: :math:`\alpha > 0`, the median.
    :param concentration: :math:`k > 0`; the mean is infinite for k <= 1, the variance for k <= 2.

    Reference: N. L. Johnson, S. Kotz and N. Balakrishnan, *Continuous Univariate Distributions*, vol. 2, 1995, ch. 23.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "scale": constraints.positive,
        "concentration": constraints.positive,
    }

    def __init__(self, scale: Any, concentration: Any, *, validate_args: bool | None = None) -> None:
        self.scale, self.concentration = broadcast_all(scale, concentration)
        base = Logistic(self.scale.log(), self.concentration.reciprocal(), validate_args=validate_args)
        super().__init__(base, [ExpTransform()], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> LogLogistic:
        """The same law with a larger batch shape."""
        shape = torch.Size(batch_shape)
        return LogLogistic(self.scale.expand(shape), self.concentration.expand(shape), validate_args=False)

    @property
    def mean(self) -> Tensor:
        """E[beta], infinite for a concentration of 1 or less."""
        x = math.pi / self.concentration
        return torch.where(x < math.pi, self.scale * x / torch.sin(x), torch.inf)

    @property
    def variance(self) -> Tensor:
        """Var[beta], infinite for a concentration of 2 or less."""
        x = math.pi / self.concentration
        return torch.where(x < math.pi / 2, self.mean**2 * (torch.tan(x) - x) / x, torch.inf)
