r"""Strengths and weights that stand for many laws of beta at once: averages are sums over the same nodes.

A density on positive numbers gets equidistant nodes in log beta, one on negative numbers their mirror image, one on the
whole line both. The step is halved until every law's mass is right; a law too narrow for that stands for its mean. Point
masses are nodes of their own law only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import Delta
from torch import Tensor
from torch.distributions import Distribution

from pluralpref.distributions import negate
from pluralpref.distributions.absorb import absorbed
from pluralpref.distributions.generators import generators_kept
from pluralpref.distributions.mixture import is_nonnegative, log_density
from pluralpref.distributions.structure import parts_of
from pluralpref.inference.marginal.dispatch import unwrap_law
from pluralpref.inference.tabulated_laws import is_negated

#: Log beta is looked at so far to the left and right of the log of the laws' means.
_LEFT, _RIGHT = 40.0, 20.0
#: So far to the right where a law has no mean: its tail falls like a power, maybe a low one.
_HEAVY_RIGHT = 100.0
#: Draws that say where a law without a mean is.
_DRAWS, _SEED = 501, 0
_FIRST_STEP = 0.1
_HALVINGS = 6
#: A mass of the first node that is no end.
_OPEN = 1e-9
#: How well the mass must be right, and with every second node.
_MASS, _HALF_MASS = 1e-3, 3e-3
#: -log of the density, relative to its maximum, that still counts.
_DEPTH = 35.0


@dataclass(frozen=True)
class StrengthGrid:
    """Nodes that serve S laws.

    :param strength: beta, (K,), increasing.
    :param weight: the mass of each node under each law, (S, K); rows add up to 1.
    """

    strength: Tensor
    weight: Tensor

    def share_below_median(self) -> Tensor:
        """The share of each node's mass that lies below the median of the law's strength, |beta|; (S, K)."""
        order = torch.argsort(self.strength.abs())
        weight = self.weight[:, order]
        before = weight.cumsum(1) - weight
        share = ((0.5 - before) / weight.clamp_min(1e-300)).clamp(0, 1)
        return torch.empty_like(share).index_copy_(1, order, share)


@torch.no_grad()
def make_grid(law: Distribution) -> StrengthGrid:
    """The nodes of many laws.

    :param law: batch shape (S, 1).
    :raises NotImplementedError: for a law without a density.
    """
    count = law.batch_shape[0]
    columns = _columns(unwrap_law(law), torch.zeros(count, dtype=torch.float64))
    strength = torch.cat([c[0] for c in columns])
    weight = torch.cat([c[1] for c in columns], 1)
    used = (weight > 0).any(0)
    order = torch.argsort(strength[used])
    weight = weight[:, used][:, order]
    return StrengthGrid(strength[used][order], weight / weight.sum(1, keepdim=True))


_Columns = list[tuple[Tensor, Tensor]]


def _columns(law: Distribution, log_share: Tensor) -> _Columns:
    """(strengths, weights (S, nodes)) of every part of a law."""
    law = absorbed(unwrap_law(law))
    count = log_share.shape[0]
    if isinstance(law, Delta):
        return [_points(law.v.reshape(count).double(), log_share)]
    if (parts := parts_of(law)) is not None:
        found: _Columns = []
        for share, part in zip(*parts, strict=True):
            found += _columns(part, log_share + share.reshape(count).double())
        return found
    if is_negated(law):
        base: Any = law
        return [(-b, w) for b, w in _columns(base.base_dist, log_share)]
    if is_nonnegative(law):
        return _half_line(law, log_share, whole=True)
    right = _half_line(law, log_share, whole=False)
    left = _half_line(negate(law), log_share, whole=False)
    return right + [(-b, w) for b, w in left]


def _points(values: Tensor, log_share: Tensor) -> tuple[Tensor, Tensor]:
    return values, torch.diag(log_share.exp())


def _centres(law: Distribution) -> tuple[Tensor, Tensor, float]:
    """(means, their sizes, how far to the right of these to look); medians of beta and of its size where there is no mean."""
    mean = law.mean.reshape(-1).double()
    known = torch.isfinite(mean)
    if bool(known.all()):
        return mean, mean.abs(), _RIGHT
    with generators_kept(_SEED):
        drawn = law.sample(torch.Size([_DRAWS])).reshape(_DRAWS, -1).double()
    size = torch.where(known, mean.abs(), drawn.abs().median(0).values)
    limits = torch.finfo(torch.float32)
    return torch.where(known, mean, drawn.median(0).values), size.clamp(limits.tiny, limits.max), _HEAVY_RIGHT


def _half_line(law: Distribution, log_share: Tensor, *, whole: bool) -> _Columns:
    """Of beta > 0; ``whole``: all of the mass is there."""
    mean, size, right = _centres(law)
    centre = torch.log(size.clamp_min(1e-300))
    low, high = float(centre.min()) - _LEFT, float(centre.max()) + right
    step, narrow, rest = _FIRST_STEP, torch.zeros(len(mean), dtype=torch.bool), torch.zeros(len(mean))
    for halving in range(_HALVINGS + 1):
        u = torch.arange(low, high + 2 * step, step, dtype=torch.float64)
        density = torch.nan_to_num((log_density(law, u.exp()) + u).double(), nan=-math.inf)
        mass = density.exp() * step
        total, half = mass.sum(1), 2 * mass[:, ::2].sum(1)
        narrow = (total - half).abs() > _HALF_MASS
        if whole:
            # Where the density goes on to the left of all nodes, the mass there belongs to strengths that are 0.
            rest = torch.where(mass[:, 0] > _OPEN, (1 - total).clamp_min(0), 0.0)
            narrow = narrow | ((total + rest - 1).abs() > _MASS)
        if not bool(narrow.any()) or halving == _HALVINGS:
            break
        # Where some law has its mass, or its mean, which a coarse grid may miss.
        near = (density >= density.amax(1, keepdim=True) - _DEPTH).any(0).nonzero()[:, 0]
        low = min(float(u[near[0]]), float(centre.min())) - step
        high = max(float(u[near[-1]]), float(centre.max())) + step
        step /= 2
    columns: _Columns = []
    if bool((~narrow).any()):
        share = torch.where(narrow, -math.inf, log_share).exp().unsqueeze(1)
        weight = mass
        if whole:
            weight = torch.cat([mass[:, :1] + rest.unsqueeze(1), mass[:, 1:]], 1)
            weight = weight / weight.sum(1, keepdim=True).clamp_min(1e-300)
        columns.append((u.exp(), torch.nan_to_num(weight * share)))
    if bool(narrow.any()):
        columns.append(_points(mean, torch.where(narrow, log_share, -math.inf)))
    return columns
