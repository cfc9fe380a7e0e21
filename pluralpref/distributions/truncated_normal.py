"""The normal distribution cut off at 0."""

from __future__ import annotations

import functools
import math
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all
from torch.special import erfcx, log_ndtr, ndtri

_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
_SQRT_2 = math.sqrt(2.0)
# Left of this the moments are taken from their asymptotic series; the formulas with phi/Phi cancel there.
_FAR = -15.0
_SERIES_TERMS = 14


class PositiveNormal(TorchDistribution):
    r"""Normal(loc, scale) given that the value is positive.

    .. math::
        p(\beta) = \frac{\phi((\beta - \mu)/\sigma)}{\sigma \, \Phi(\mu/\sigma)}, \quad \beta > 0, \qquad
        E[\beta] = \mu + \sigma\lambda, \quad
        \mathrm{Var}[\beta] = \sigma^2 (1 - \lambda(\lambda + \mu/\sigma)), \quad
        \lambda = \frac{\phi(\mu/\sigma)}{\Phi(\mu/\sigma)} .

    Everything is computed from log Phi and stays accurate however far below 0 the location is (where the law becomes
    an exponential one).

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
        return -0.5 * z * z - _LOG_SQRT_2PI - self.scale.log() - log_ndtr(self.loc / self.scale)

    def cdf(self, value: Tensor) -> Tensor:
        """P(beta <= value)."""
        return -torch.expm1(_log_survival(value / self.scale, self.loc / self.scale))

    def icdf(self, value: Tensor) -> Tensor:
        r"""The quantile function: the root x of log P(beta > x) = log(1 - q), by Newton's method."""
        ratio = (self.loc / self.scale).expand(torch.broadcast_shapes(value.shape, self.batch_shape))
        target = torch.log1p(-value).expand(ratio.shape)
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


def _log_survival(x: Tensor, ratio: Tensor) -> Tensor:
    """Log P(beta > scale x) = log Phi(r - x) - log Phi(r), without the difference of two large numbers for r < 0."""
    x, ratio = torch.broadcast_tensors(x, ratio)
    below = ratio < 0
    r = torch.where(below, ratio, torch.zeros_like(ratio))
    far = torch.log(erfcx((x.clamp_min(0.0) - r) / _SQRT_2)) - torch.log(erfcx(-r / _SQRT_2)) - x * (0.5 * x - r)
    return torch.where(below, far, log_ndtr(ratio - x) - log_ndtr(ratio))


def _newton_step(x: Tensor, ratio: Tensor, target: Tensor) -> Tensor:
    return (_log_survival(x, ratio) - target) / inverse_mills(ratio - x)


def inverse_mills(r: Tensor) -> Tensor:
    """Phi's logarithmic derivative, phi(r)/Phi(r)."""
    below = r < 0
    left, right = torch.where(below, r, torch.zeros_like(r)), torch.where(below, torch.zeros_like(r), r)
    far = math.sqrt(2 / math.pi) / erfcx(-left / _SQRT_2)
    return torch.where(below, far, torch.exp(-0.5 * right * right - _LOG_SQRT_2PI - log_ndtr(right)))


@functools.cache
def _series() -> tuple[float, ...]:
    """a_n of r + phi/Phi = sum_n a_n r^-(2n+1) for r -> -inf.

    From the differential equation M' = 1 - (M - r) M of M = r + phi/Phi.
    """
    a = [-1.0]
    for k in range(_SERIES_TERMS - 1):
        a.append(-(2 * k + 1) * a[k] + sum(a[i] * a[k - i] for i in range(k + 1)))
    return tuple(a)


def _sides(r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(whether r is far, r where it isn't, r where it is)."""
    far = r < _FAR
    return far, torch.where(far, torch.zeros_like(r), r), torch.where(far, r, torch.full_like(r, _FAR))


def mean_of_ratio(r: Tensor) -> Tensor:
    """E[beta]/scale for loc/scale = r."""
    far, near, left = _sides(r)
    series = sum(a * left ** -(2 * n + 1) for n, a in enumerate(_series()))
    return torch.where(far, torch.as_tensor(series), near + inverse_mills(near))


def variance_of_ratio(r: Tensor) -> Tensor:
    """Var[beta]/scale² for loc/scale = r, which is the derivative of the mean."""
    far, near, left = _sides(r)
    series = sum(-(2 * n + 1) * a * left ** -(2 * n + 2) for n, a in enumerate(_series()))
    mills = inverse_mills(near)
    return torch.where(far, torch.as_tensor(series), 1 - mills * (mills + near))
