"""The posterior density of beta, one for each panel, as numbers on a grid of u = log beta."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pluralpref.errors import ConfigError

# The integration nodes lie about 0.7 standard deviations apart: enough for integrals, too far for a cumulative sum.
_REFINE = 16


class PanelGrid:
    r"""Densities of log beta on equidistant nodes, batch shape (..., num_panels).

    Integrals (:meth:`mean`, normalisation) use the trapezoidal rule on the nodes, which is accurate to about 1e-12.
    Quantiles and draws use the distribution function on a grid 16 times finer, where log-densities are interpolated by
    cubic polynomials; within a cell it is linear in log beta. Their error is about 1e-4 standard deviations.

    :param start: the first node u_0, shape (...,).
    :param step: the distance between nodes, shape (...,).
    :param log_density: log p(u_k), any constant added, shape (..., nodes).
    :param tail: the mass left of u_0 in units of p(u_0) * step (0 for Gaussian tails), shape (...,). It counts as
        lying at u_0, where beta is zero for every purpose.
    """

    def __init__(self, start: Tensor, step: Tensor, log_density: Tensor, tail: Tensor) -> None:
        self.start = start
        self.step = step
        self.tail = tail
        closing = torch.cat([torch.log1p(tail).unsqueeze(-1), torch.zeros_like(log_density[..., 1:])], -1)
        log_total = torch.logsumexp(log_density + closing, -1, keepdim=True)
        self.log_weights = log_density + closing - log_total
        self._log_density = log_density - log_total - torch.log(step).unsqueeze(-1)

    @staticmethod
    def concatenate(grids: list[PanelGrid], dim: int) -> PanelGrid:
        """Grids side by side along batch dimension ``dim``.

        Shorter ones get more nodes on the right, where the density is 0 for every purpose.
        """
        if len(grids) == 1:
            return grids[0]
        nodes = max(g._log_density.shape[-1] for g in grids)
        padded = [_extend(g._log_density, nodes) for g in grids]
        node_dim = dim if dim >= 0 else dim - 1
        return PanelGrid(
            torch.cat([g.start for g in grids], dim),
            torch.cat([g.step for g in grids], dim),
            torch.cat(padded, node_dim),
            torch.cat([g.tail for g in grids], dim),
        )

    def reshape(self, shape: torch.Size) -> PanelGrid:
        """The same grids in another batch shape."""
        return PanelGrid(
            self.start.reshape(shape),
            self.step.reshape(shape),
            self._log_density.reshape(*shape, -1) if self._log_density.numel() else self._log_density,
            self.tail.reshape(shape),
        )

    @property
    def batch_shape(self) -> torch.Size:
        """(..., num_panels)."""
        return self.start.shape

    @property
    def nodes(self) -> Tensor:
        """u, shape batch_shape + (nodes,)."""
        k = torch.arange(self._log_density.shape[-1], dtype=self.start.dtype, device=self.start.device)
        return self.start.unsqueeze(-1) + self.step.unsqueeze(-1) * k

    def mean(self) -> Tensor:
        """E[beta | choices], shape batch_shape."""
        return torch.exp(torch.logsumexp(self.log_weights + self.nodes, -1))

    def variance(self) -> Tensor:
        """Var[beta | choices], shape batch_shape."""
        mean = self.mean()
        return (torch.exp(self.log_weights) * (torch.exp(self.nodes) - mean.unsqueeze(-1)) ** 2).sum(-1)

    def log_mean(self) -> Tensor:
        """E[log beta | choices], shape batch_shape."""
        return (torch.exp(self.log_weights) * self.nodes).sum(-1)

    def log_prob(self, beta: Tensor) -> Tensor:
        """The log-density of beta (not of its logarithm).

        :param beta: > 0, broadcastable with batch_shape on the right; more dimensions may come before.
        :returns: nats; -inf outside the grid, where the density is below 1e-16 of its maximum.
        """
        u = torch.log(torch.as_tensor(beta, dtype=self.start.dtype, device=self.start.device))
        shape = torch.broadcast_shapes(u.shape, self.batch_shape)
        u = u.expand(shape)
        position = (u - self.start) / self.step
        count = self._log_density.shape[-1]
        inside = (position >= 0) & (position <= count - 1)
        cell = torch.nan_to_num(position).clamp(0, count - 1).floor().clamp_max(count - 2).to(torch.int64)
        fraction = position - cell
        base = (cell - 1).clamp(0, count - 4)
        table = self._log_density.expand(*shape, count)
        points = [torch.gather(table, -1, (base + j).unsqueeze(-1)).squeeze(-1) for j in range(4)]
        value = _cubic(points, fraction + (cell - base))
        return torch.where(inside, value - u, torch.full_like(u, -math.inf))

    def quantile(self, q: Tensor | float) -> Tensor:
        """The q-quantile of beta | choices.

        :param q: in [0, 1], any shape.
        :returns: shape q.shape + batch_shape.
        :raises ConfigError: if q is outside [0, 1].
        """
        q = torch.as_tensor(q, dtype=self.start.dtype, device=self.start.device)
        if bool(((q < 0) | (q > 1)).any()):
            raise ConfigError("A quantile's level lies between 0 and 1.")
        levels = q.reshape(-1, *(1,) * len(self.batch_shape)).expand(-1, *self.batch_shape)
        return self._invert(levels).reshape(*q.shape, *self.batch_shape)

    def sample(self, shape: torch.Size | tuple[int, ...] = (), generator: torch.Generator | None = None) -> Tensor:
        """Draws of beta | choices by inversion, independent between panels.

        :param shape: the sample shape.
        :param generator: torch's global generator if None.
        :returns: shape ``shape + batch_shape``.
        """
        shape = torch.Size(shape)
        levels = torch.rand(
            (math.prod(shape), *self.batch_shape),
            dtype=self.start.dtype,
            device=self.start.device,
            generator=generator,
        )
        return self._invert(levels).reshape(*shape, *self.batch_shape)

    def _invert(self, levels: Tensor) -> Tensor:
        """The values of beta at cumulative probabilities (count, *batch_shape)."""
        fine, density = self._fine()
        # The tail's mass is counted at the first node.
        cells = 0.5 * (density[..., 1:] + density[..., :-1])
        start = self.tail.unsqueeze(-1) * _REFINE * density[..., :1]
        cumulative = torch.cumsum(torch.cat([start, cells], -1), -1)
        cumulative = cumulative / cumulative[..., -1:]
        wanted = levels.movedim(0, -1).contiguous()
        upper = torch.searchsorted(cumulative.contiguous(), wanted).clamp(1, cumulative.shape[-1] - 1)
        low = torch.gather(cumulative, -1, upper - 1)
        high = torch.gather(cumulative, -1, upper)
        fraction = ((wanted - low) / (high - low).clamp_min(1e-300)).clamp(0, 1)
        u = self.start.unsqueeze(-1) + fine.unsqueeze(-1) * (upper - 1 + fraction)
        return torch.exp(u).movedim(-1, 0)

    def _fine(self) -> tuple[Tensor, Tensor]:
        """(step, density) on the finer grid."""
        table = self._log_density
        count = table.shape[-1]
        cell = torch.arange(count - 1, device=table.device)
        base = (cell - 1).clamp(0, count - 4)
        fraction = torch.arange(_REFINE, dtype=table.dtype, device=table.device) / _REFINE
        position = fraction + (cell - base).unsqueeze(-1)
        points = [table.index_select(-1, base + j).unsqueeze(-1) for j in range(4)]
        value = _cubic(points, position).flatten(-2)
        value = torch.cat([value, table[..., -1:]], -1)
        return self.step / _REFINE, torch.exp(value - value.amax(-1, keepdim=True))


def _extend(log_density: Tensor, nodes: int) -> Tensor:
    """More nodes on the right, on the straight line through the last two: finite numbers for the cubics to work with."""
    more = nodes - log_density.shape[-1]
    last = log_density[..., -1:]
    slope = (last - log_density[..., -2:-1]).clamp_max(-1.0)
    k = torch.arange(1, more + 1, dtype=log_density.dtype, device=log_density.device)
    return torch.cat([log_density, last + slope * k], -1)


def _cubic(points: list[Tensor], t: Tensor) -> Tensor:
    """Lagrange's cubic through values at 0, 1, 2, 3, at t."""
    a, b, c = t - 1, t - 2, t - 3
    return (
        -points[0] * (a * b * c) / 6
        + points[1] * (t * b * c) / 2
        - points[2] * (t * a * c) / 2
        + points[3] * (t * a * b) / 6
    )
