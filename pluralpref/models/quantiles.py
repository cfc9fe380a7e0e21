"""Quantiles of a one-dimensional distribution, whatever it offers."""

from __future__ import annotations

import torch
from pyro.distributions import Delta
from torch import Tensor
from torch.distributions import Distribution, Gamma

from pluralpref.distributions.generators import generators_kept
from pluralpref.distributions.mixture import is_nonnegative
from pluralpref.distributions.structure import parts_of, point_masses
from pluralpref.errors import ConfigError

#: Draws used when a distribution has neither quantile function nor cdf.
SAMPLE_SIZE = 100_000
_BISECTIONS = 80


def quantile(law: Distribution, q: float | Tensor) -> Tensor:
    r"""The value below which :math:`\beta` falls with probability ``q``; no gradient.

    By the distribution's ``icdf`` where it has one, SciPy's inverse incomplete gamma function for Gamma, by bisection
    where there is a ``cdf``, and otherwise from 100,000 draws made with a seed of their own, which leaves the global
    generator as it was.

    :param law: distribution with event shape ``()``.
    :param q: level(s) in (0, 1), broadcast against the batch shape.
    :raises ConfigError: if a level is outside (0, 1).
    """
    device = _device(law)
    # Apple's GPUs have no float64.
    dtype = torch.float32 if device.type == "mps" else torch.float64
    level = torch.as_tensor(q, dtype=dtype, device=device)
    if not ((level > 0) & (level < 1)).all():
        raise ConfigError(f"quantile level {q}: must lie strictly between 0 and 1")
    with torch.no_grad():
        if isinstance(law, Gamma):
            from scipy.special import gammaincinv

            values = gammaincinv(law.concentration.cpu().double().numpy(), level.cpu().double().numpy())
            return torch.as_tensor(values).to(level) / law.rate.to(dtype)
        try:
            return law.icdf(level).to(dtype)
        except NotImplementedError:
            pass
        try:
            return _by_bisection(law, level)
        except NotImplementedError:
            pass
        with generators_kept(0):
            draws = law.sample(torch.Size([SAMPLE_SIZE])).to(dtype)
        return torch.quantile(draws, level, dim=0)


def _device(law: Distribution) -> torch.device:
    try:
        return law.mean.device
    except NotImplementedError:
        with generators_kept(0):
            return law.sample().device


def _by_bisection(law: Distribution, level: Tensor) -> Tensor:
    """The smallest value at which the distribution function reaches the level.

    A mixture's quantile lies between those of its components; other laws' between -1 and 1 times powers of two.
    """
    shape = torch.broadcast_shapes(level.shape, law.batch_shape)
    if (parts := parts_of(law)) is not None:
        ends = torch.stack([_component_quantile(c, level).expand(shape) for c in parts[1]])
        low, high = ends.amin(0), ends.amax(0)
        # The bracket is open on the left: the quantile may be the lower end itself.
        low = low - 1e-12 * (1 + low.abs())
    else:
        high = torch.ones(shape, dtype=level.dtype, device=level.device)
        largest = 1e300 if level.dtype == torch.float64 else 1e36
        while bool((law.cdf(high) < level).any()) and bool((high < largest).all()):
            high = torch.where(law.cdf(high) < level, 16 * high, high)
        low = torch.zeros_like(high) if is_nonnegative(law) else -high
        while not is_nonnegative(law) and bool((law.cdf(low) >= level).any()) and bool((low > -largest).all()):
            low = torch.where(law.cdf(low) >= level, 16 * low, low)
    for _ in range(_BISECTIONS):
        middle = low + (high - low) / 2
        reached = law.cdf(middle) >= level
        low, high = torch.where(reached, low, middle), torch.where(reached, middle, high)
    # Where the distribution function jumps, the quantile is the atom itself.
    for value in point_masses(law):
        atom = value.to(level.dtype).expand(shape)
        high = torch.where((law.cdf(atom) >= level) & (atom <= high), atom, high)
    return high


def _component_quantile(law: Distribution, level: Tensor) -> Tensor:
    return law.v.to(level.dtype) if isinstance(law, Delta) else quantile(law, level)
