"""The normal distribution cut off at 0."""

from __future__ import annotations

import functools
import math
from typing import Any, ClassVar

import numpy as np
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all
from torch.special import erfcx, log_ndtr, ndtri

_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
_SQRT_2 = math.sqrt(2.0)
# Left of this everything comes from sums of positive terms; formulas with phi/Phi cancel there, and each derivative loses
# a factor of r² more.
_FAR = -5.0
_NODES = 32


class PositiveNormal(TorchDistribution):
    r"""Normal(loc, scale) given that the value is positive.

    .. math::
        p(\beta) = \frac{\phi((\beta - \mu)/\sigma)}{\sigma \, \Phi(\mu/\sigma)}, \quad \beta > 0, \qquad
        E[\beta] = \mu + \sigma\lambda, \quad
        \mathrm{Var}[\beta] = \sigma^2 (1 - \lambda(\lambda + \mu/\sigma)), \quad
        \lambda = \frac{\phi(\mu/\sigma)}{\Phi(\mu/\sigma)} .

    Everything stays accurate however far below 0 the location is (where the law becomes an exponential one), with first
    and second derivatives.

    :param loc: :math:`\mu`, real: the mode where positive.
    :param scale: :math:`\sigma > 0`.

    Reference: N. L. Johnson, S. Kotz and N. Balakrishnan, *Continuous Univariate Distributions*, vol. 1, 1994, ch. 13.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"loc": constraints.real, "scale": constraints.positive}
    support = constraints.positive
    has_rsample = True

    def __init__(self, loc: Any, scale: Any, *, validate_args: bool | None = None) -> None:
        self.loc, self.scale = broadcast_all(loc, scale)
        super().__init__(self.loc.shape, torch.Size(), validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> PositiveNormal:
        """The same law with a larger batch shape."""
        shape = torch.Size(batch_shape)
        return PositiveNormal(self.loc.expand(shape), self.scale.expand(shape), validate_args=False)

    @property
    def mean(self) -> Tensor:
        """E[beta]."""
        return self.scale * mean_of_ratio(self.loc / self.scale)

    @property
    def variance(self) -> Tensor:
        """Var[beta]."""
        return self.scale**2 * variance_of_ratio(self.loc / self.scale)

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-density."""
        if self._validate_args:
            self._validate_sample(value)
        z = (value - self.loc) / self.scale
        far, near, left = _sides(self.loc / self.scale)
        # Far below 0, phi(z) and Phi are both as good as 0, and only their ratio has digits.
        x = value / self.scale
        ratio = torch.log(_mills_and_mean(-left)[0]) - x * (0.5 * x - left)
        return torch.where(far, ratio, -0.5 * z * z - _LOG_SQRT_2PI - log_ndtr(near)) - self.scale.log()

    def cdf(self, value: Tensor) -> Tensor:
        """P(beta <= value)."""
        x, ratio = value / self.scale, self.loc / self.scale
        return -torch.expm1(_log_survival(x, ratio, inverse_mills(ratio - x)))

    def icdf(self, value: Tensor) -> Tensor:
        r"""The quantile function: the root x of log P(beta > x) = log(1 - q), by Newton's method."""
        ratio, target = self.loc / self.scale, torch.log1p(-value)
        with torch.no_grad():
            # The normal's own quantile; far below 0 that of exp(r x - x²/2), which is all that's left of it.
            upper = (target + log_ndtr(ratio)).clamp_min(-600.0)
            x = ratio - ndtri(torch.exp(upper))
            x = torch.where(ratio > -1, x, -2 * target / (torch.sqrt(ratio**2 - 2 * target) - ratio))
            for _ in range(4):
                x = (x + _newton_step(x, ratio, target)).clamp_min(0.0)
        # Two more steps with their graph make first and second derivatives right as well.
        for _ in range(2):
            x = x + _newton_step(x, ratio, target)
        return self.scale * x

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Draws by inversion, differentiable in loc and scale."""
        shape = self._extended_shape(torch.Size(sample_shape))
        eps = torch.finfo(self.loc.dtype).eps
        levels = torch.rand(shape, dtype=self.loc.dtype, device=self.loc.device).clamp(eps / 4, 1 - eps)
        return self.icdf(levels).clamp_min(torch.finfo(self.loc.dtype).tiny)


def _log_survival(x: Tensor, ratio: Tensor, hazard: Tensor) -> Tensor:
    """Log P(beta > scale x) = log Phi(r - x) - log Phi(r), without the difference of two large numbers for r < 0.

    :param hazard: ``inverse_mills(ratio - x)``.
    """
    below = ratio < 0
    r = torch.where(below, ratio, torch.zeros_like(ratio))
    tail = torch.log(inverse_mills(r) / torch.where(below, hazard, torch.ones_like(hazard))) - x * (0.5 * x - r)
    return torch.where(below, tail, log_ndtr(ratio - x) - log_ndtr(ratio))


def _newton_step(x: Tensor, ratio: Tensor, target: Tensor) -> Tensor:
    hazard = inverse_mills(ratio - x)
    return (_log_survival(x, ratio, hazard) - target) / hazard


def inverse_mills(r: Tensor) -> Tensor:
    """Phi's logarithmic derivative, phi(r)/Phi(r)."""
    far, near, tail = _sides(r)
    below = near < 0
    left, right = torch.where(below, near, torch.zeros_like(near)), torch.where(below, torch.zeros_like(near), near)
    middle = math.sqrt(2 / math.pi) / erfcx(-left / _SQRT_2)
    value = torch.where(below, middle, torch.exp(-0.5 * right * right - _LOG_SQRT_2PI - log_ndtr(right)))
    return torch.where(far, _mills_and_mean(-tail)[0], value)


def _sides(r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(whether r is far, r where it isn't, r where it is)."""
    far = r < _FAR
    return far, torch.where(far, torch.zeros_like(r), r), torch.where(far, r, torch.full_like(r, _FAR))


@functools.cache
def _hermite() -> tuple[np.ndarray, np.ndarray]:
    """(z² of the positive nodes of Gauss's rule for a standard normal Z, its weights times z^0, z^2, z^4, z^6)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    squares = nodes[nodes > 0] ** 2
    return squares, 2 * (weights[nodes > 0] / weights.sum())[:, None] * squares[:, None] ** np.arange(4)


def _tail_sums(y: Tensor) -> tuple[Tensor, ...]:
    """A_k = E[Z^2k / (y² + Z²)], k = 0 .. 3, for y >= 5.

    y A_0 is Mills' ratio Phi(-y)/phi(y), and y² A_k = E[Z^2k] - A_(k+1), which is how differences are taken by hand below.
    """
    return _tail_sums_and_slopes(y)[0]


def _tail_sums_and_slopes(y: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The A_k and their derivatives in y."""
    squares, weights = (torch.as_tensor(a, dtype=y.dtype, device=y.device) for a in _hermite())
    terms = torch.reciprocal(y.square().unsqueeze(-1) + squares)
    return (terms @ weights).unbind(-1), (-2 * y.unsqueeze(-1) * (terms.square() @ weights)).unbind(-1)


def _mills_and_mean(y: Tensor) -> tuple[Tensor, Tensor]:
    """Phi(r)'s logarithmic derivative and the mean for r = -y, which differ by y."""
    a0, a1, *_ = _tail_sums(y)
    mills = torch.reciprocal(y * a0)
    return mills, a1 * mills


def mean_of_ratio(r: Tensor) -> Tensor:
    """E[beta]/scale for loc/scale = r."""
    far, near, left = _sides(r)
    return torch.where(far, _mills_and_mean(-left)[1], near + inverse_mills(near))


def variance_of_ratio(r: Tensor) -> Tensor:
    """Var[beta]/scale² for loc/scale = r, which is the derivative of the mean."""
    far, near, left = _sides(r)
    a0, a1, a2, _ = _tail_sums(-left)
    tail = (a0 * (a2 - a1) - a1**2) / (left * a0) ** 2
    mills = inverse_mills(near)
    return torch.where(far, tail, 1 - mills * (mills + near))


def excess_of_ratio(r: Tensor) -> Tensor:
    """(E[beta]² - Var[beta])/scale² for loc/scale = r: 0 for an exponential law."""
    far, near, left = _sides(r)
    a0, a1, a2, a3 = _tail_sums(-left)
    tail = (2 * a1 - 5 * a2 + a3 + 2 * a2**2 + a1 * a2 - a1 * a3) / (left**3 * a0) ** 2
    mills = inverse_mills(near)
    mean = near + mills
    return torch.where(far, tail, mean**2 - 1 + mills * mean)


def logit_of_ratio(r: Tensor) -> tuple[Tensor, Tensor]:
    """The logit of cv² for loc/scale = r, log(variance/excess), and its derivative."""
    far, near, left = _sides(r)
    (a0, a1, a2, a3), (b0, b1, b2, b3) = _tail_sums_and_slopes(-left)
    # Variance and excess as above, less what they have in common.
    above = a0 * (a2 - a1) - a1**2
    below = 2 * a1 - 5 * a2 + a3 + 2 * a2**2 + a1 * a2 - a1 * a3
    above_slope = b0 * (a2 - a1) + a0 * (b2 - b1) - 2 * a1 * b1
    below_slope = 2 * b1 - 5 * b2 + b3 + 4 * a2 * b2 + b1 * (a2 - a3) + a1 * (b2 - b3)
    tail = torch.log(left**4 * above / below), 4 / left - above_slope / above + below_slope / below
    mills = inverse_mills(near)
    mean = near + mills
    variance, excess = 1 - mills * mean, mean**2 - 1 + mills * mean
    # The variance is the mean's derivative.
    bend = mean - (2 * mean - near) * variance
    middle = torch.log(variance / excess), bend / variance - (2 * mean * variance - bend) / excess
    return torch.where(far, tail[0], middle[0]), torch.where(far, tail[1], middle[1])
