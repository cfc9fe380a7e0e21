r"""What the quadrature knows about a family of positive laws, as a density of u = log beta.

The engine integrates :math:`p_u(u) e^{-H e^u} \prod_j (1 + e^{-e^u |h_j|})^{-w_j}`, where the last product lies
between 2^(-sum w) and 1. The first two factors have the same shape for every family here: around the point û where
they are largest,

.. math:: \log p_u(û + d) - H e^{û + d} = U - A d^2 / 2 - B (e^d - 1 - d), \qquad A, B \ge 0.

That gives a peak, a curvature and level sets in closed form, and no family needs a search or a grid of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.distributions import Distribution, Exponential, Gamma, LogNormal
from torch.nn.functional import softplus

_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True)
class Peak:
    """Location û, curvature coefficients A and B, and height U of log p_u(u) - H e^u; each of shape (rows,)."""

    location: Tensor
    quadratic: Tensor
    exponential: Tensor
    height: Tensor


@dataclass(frozen=True)
class NodeMoments:
    r"""Averages over the normalised integrand, each of shape (rows,); d = u - û and l' is the derivative in u of the
    log-likelihood (everything but p_u).
    """

    offset: Tensor
    slope: Tensor
    offset_slope: Tensor


class LogFamily(Protocol):
    """A family of laws on beta > 0. ``params`` are tensors of shape (rows,) or, the same for all rows, (1,)."""

    def parameters(self, law: Distribution) -> tuple[Tensor, ...]:
        """The law's parameters, each of a shape that broadcasts with ``law.batch_shape``."""

    def peak(self, params: tuple[Tensor, ...], losing: Tensor) -> Peak:
        """The decomposition above for H = ``losing`` >= 0."""

    def tail_exponent(self, params: tuple[Tensor, ...]) -> Tensor | None:
        """a, where log p_u(u) = a u + const as u -> -inf so slowly that the tail must be summed; else None."""

    def scores(
        self, params: tuple[Tensor, ...], losing: Tensor, peak: Peak, moments: NodeMoments
    ) -> tuple[Tensor, ...]:
        """The derivatives of the log-integral in the parameters."""

    def standardise(self, params: tuple[Tensor, ...], peak: Peak, offset: Tensor) -> Tensor:
        """The nodes û + d, offset of shape (rows, nodes), in a variable whose law is free of scale parameters."""

    def replay(self, params: tuple[Tensor, ...], nodes: Tensor) -> tuple[Tensor, Tensor]:
        """(log-density, u) at standardised nodes, differentiable in the parameters."""


class LogNormalFamily:
    """log beta ~ Normal(loc, scale): u = loc + scale x."""

    def parameters(self, law: Distribution) -> tuple[Tensor, ...]:
        """(loc, scale)."""
        return law.loc, law.scale  # type: ignore[attr-defined]

    def peak(self, params: tuple[Tensor, ...], losing: Tensor) -> Peak:
        """û = loc - y with y exp(y) = scale^2 H exp(loc), the Lambert W function.

        Winitzki's approximation (1 % everywhere), then Newton in t = log y on exp(t) + t = log(scale^2 H) + loc.
        """
        loc, scale = params
        variance = scale * scale
        tiny = torch.finfo(losing.dtype).tiny
        target = torch.log(losing.clamp_min(tiny)) + (torch.log(variance) + loc)
        grown = softplus(target)
        start = grown * (1 - torch.log1p(grown) / (2 + grown))
        t = torch.where(target < -10, target, torch.log(start.clamp_min(tiny)))
        for _ in range(3):
            y = torch.exp(t)
            t = t - (y + t - target) / (y + 1)
        y = torch.exp(t)
        quadratic = 1 / variance
        exponential = y * quadratic
        height = -(0.5 * y * y + y) * quadratic - torch.log(scale) - _LOG_SQRT_2PI
        return Peak(loc - y, quadratic.expand_as(y), exponential, height)

    def tail_exponent(self, params: tuple[Tensor, ...]) -> Tensor | None:
        """None: the tail is Gaussian."""
        return None

    def scores(
        self, params: tuple[Tensor, ...], losing: Tensor, peak: Peak, moments: NodeMoments
    ) -> tuple[Tensor, ...]:
        """Pathwise: d/dloc = E[l'], d/dscale = E[x l'].

        The other form, E[x]/scale, would be the difference of two averages that cancel for small margins.
        """
        scale = params[1]
        shift = peak.exponential / peak.quadratic
        return moments.slope, (moments.offset_slope - shift * moments.slope) / scale

    def standardise(self, params: tuple[Tensor, ...], peak: Peak, offset: Tensor) -> Tensor:
        """X = (u - loc)/scale."""
        shift = peak.exponential / peak.quadratic
        return (offset - shift.unsqueeze(-1)) / params[1].unsqueeze(-1)

    def replay(self, params: tuple[Tensor, ...], nodes: Tensor) -> tuple[Tensor, Tensor]:
        """A standard normal x and u = loc + scale x."""
        loc, scale = params
        return -0.5 * nodes * nodes, loc.unsqueeze(-1) + scale.unsqueeze(-1) * nodes


class GammaFamily:
    """beta ~ Gamma(a, rate b): log p_u(u) = a u - b e^u + const."""

    def parameters(self, law: Distribution) -> tuple[Tensor, ...]:
        """(shape, rate)."""
        return law.concentration, law.rate  # type: ignore[attr-defined]

    def peak(self, params: tuple[Tensor, ...], losing: Tensor) -> Peak:
        """û = log(a/(b + H)), A = 0, B = a."""
        shape, rate = params
        height = -shape * torch.log1p(losing / rate) + _log_gamma_peak(shape)
        location = torch.log(shape) - torch.log(rate + losing)
        return Peak(location, torch.zeros_like(location), shape.expand_as(location), height)

    def tail_exponent(self, params: tuple[Tensor, ...]) -> Tensor | None:
        """The shape: p_u falls like exp(a u), which for small a is no tail to cut off."""
        return params[0]

    def scores(
        self, params: tuple[Tensor, ...], losing: Tensor, peak: Peak, moments: NodeMoments
    ) -> tuple[Tensor, ...]:
        """d/dshape = E[u] - E_prior[u]; d/drate pathwise, -E[l']/b."""
        shape, rate = params
        centre = torch.log(shape) - torch.digamma(shape) - torch.log1p(losing / rate)
        return moments.offset + centre, -moments.slope / rate

    def standardise(self, params: tuple[Tensor, ...], peak: Peak, offset: Tensor) -> Tensor:
        """log(b beta)."""
        return offset + (peak.location + torch.log(params[1])).unsqueeze(-1)

    def replay(self, params: tuple[Tensor, ...], nodes: Tensor) -> tuple[Tensor, Tensor]:
        """The log of a Gamma variable of rate 1, and u = node - log b."""
        shape, rate = params
        log_density = shape.unsqueeze(-1) * nodes - torch.exp(nodes) - torch.lgamma(shape).unsqueeze(-1)
        return log_density, nodes - torch.log(rate).unsqueeze(-1)


class ExponentialFamily(GammaFamily):
    """beta ~ Exponential(rate), a Gamma of shape 1."""

    def parameters(self, law: Distribution) -> tuple[Tensor, ...]:
        """(1, rate)."""
        return torch.ones_like(law.rate), law.rate  # type: ignore[attr-defined]


def _log_gamma_peak(shape: Tensor) -> Tensor:
    """A log a - a - lgamma(a); by Stirling's series for large a, where its three terms would cancel."""
    large = shape > 32
    a = torch.where(large, shape, torch.full_like(shape, 32.0))
    inverse = 1 / a
    square = inverse * inverse
    series = inverse * (1 / 12 - square * (1 / 360 - square * (1 / 1260 - square * (1 / 1680 - square / 1188))))
    stirling = 0.5 * torch.log(a) - _LOG_SQRT_2PI - series
    return torch.where(large, stirling, shape * torch.log(shape) - shape - torch.lgamma(shape))


LOG_FAMILIES: dict[type[Distribution], LogFamily] = {
    LogNormal: LogNormalFamily(),
    Gamma: GammaFamily(),
    Exponential: ExponentialFamily(),
}
