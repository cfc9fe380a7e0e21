r"""The integration engine: the trapezoidal rule in u = log beta, centred on the integrand's peak.

For an integrand that is analytic in a strip and decays at both ends the trapezoidal rule converges geometrically
(Trefethen and Weideman, "The exponentially convergent trapezoidal rule", SIAM Review 56, 2014). The logistic functions
of e^u have their poles at Im u = ±pi/2, so that the error is about exp(-pi^2/step); a peak of curvature 1/s^2 adds
exp(-2 (pi s/step)^2). The step follows from the two, the range from the level sets that
:mod:`~pluralpref.inference.marginal.log_families` gives in closed form. Nodes are constants in the backward pass: the
integral doesn't depend on them.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pluralpref.errors import NumericsWarning
from pluralpref.inference.marginal.dispatch import Quadrature
from pluralpref.inference.marginal.log_families import LogFamily, NodeMoments, Peak

# Arrays of this many elements stay in a CPU's cache through a dozen elementwise passes, and are large enough for the
# overhead of an operation not to matter.
_CACHE_ELEMENTS = 2**17
# Exponentials of a panel's choices are kept for the derivatives up to this number, else computed again.
_KEEP_ELEMENTS = 2**20
# -d²/du² of -log(1 + exp(-e^u h)) is at most 0.27; the reserve is for its growth off the real axis.
_LOGISTIC_CURVATURE = 0.44
# The climb to a panel's mode ends with a step below this, which is well inside the basin of the next digits.
_CLIMB_STEPS, _CLIMB_END = 40, 0.1
# A panel's range is examined on a coarse grid if it would need more nodes than this.
_TRIM_ABOVE = 80
_TRIM_NODES = 24
_MOST_TRIM_CELLS = 1000


@dataclass(frozen=True)
class Likelihood:
    r"""exp(-H e^u) prod_j (1 + exp(-e^u |h_j|))^(-w_j), for every row.

    :param magnitude: |h|, shape (pairs,).
    :param losing: H, shape (rows,); for single losing pairs the same tensor as ``magnitude``.
    :param index: the row of each pair, or None if pair i is row i, with weight 1, and H = |h|.
    :param weight: w, shape (pairs,), or None for ones.
    """

    magnitude: Tensor
    losing: Tensor
    index: Tensor | None
    weight: Tensor | None

    def sum_pairs(self, values: Tensor) -> Tensor:
        """Sums per row of values (pairs, ...), without the weights."""
        if self.index is None:
            return values
        return values.new_zeros((self.losing.shape[0], *values.shape[1:])).index_add_(0, self.index, values)

    def weighted(self, values: Tensor) -> Tensor:
        """Values (pairs, ...) times the weights."""
        if self.weight is None:
            return values
        return values * self.weight.reshape(-1, *(1,) * (values.dim() - 1))

    def per_pair(self, rows: Tensor) -> Tensor:
        """Values (rows, ...) for each pair."""
        return rows if self.index is None else rows.index_select(0, self.index)


@dataclass(frozen=True)
class Grid:
    """Nodes u = peak.location + left + step k, k = 0..count-1; ``left``, ``step``, ``count`` have shape (rows,).

    ``digits`` is -log of the discretisation error aimed at.
    """

    peak: Peak
    left: Tensor
    right: Tensor
    count: Tensor
    digits: float

    def offsets(self, count: int, rows: Any = slice(None)) -> tuple[Tensor, Tensor]:
        """(d of shape (rows, count), step of shape (rows,))."""
        left = self.left[rows]
        step = (self.right[rows] - left) / (count - 1)
        k = torch.arange(count, dtype=left.dtype, device=left.device)
        return torch.addcmul(left.unsqueeze(-1), step.unsqueeze(-1), k), step


@dataclass
class Result:
    """The log-integral (rows,) and, if asked for, its error estimate and derivatives."""

    value: Tensor
    error: Tensor | None
    d_magnitude: Tensor | None = None
    d_losing: Tensor | None = None
    moments: NodeMoments | None = None


def _digits(method: Quadrature, dtype: torch.dtype) -> float:
    """-log of the discretisation error aimed at: the tolerance with a reserve of 1e-4, at best near rounding."""
    finest = 37.5 if dtype == torch.float64 else 18.0
    return min(max(9.5 - math.log(method.tolerance), 8.0), finest)


def level_edges(depth: Tensor, quadratic: Tensor, exponential: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds -l <= d <= r of the set where A d²/2 + B (e^d - 1 - d) <= depth; returns (l, r), both positive.

    Start values from e^d - 1 - d >= d²/2 on the right and e^-l - 1 + l >= l²/(2 + l) on the left; then Newton, which
    on a convex function approaches the edge from outside, so that the set is always covered.
    """
    q = depth / exponential
    left = torch.minimum(torch.sqrt(2 * depth / quadratic), 0.5 * (q + torch.sqrt(q * q + 8 * q)))
    for _ in range(2):
        shrunk = torch.expm1(-left)
        excess = 0.5 * quadratic * left * left + exponential * (shrunk + left) - depth
        left = left - (excess / (quadratic * left - exponential * shrunk)).clamp_min(0)
    return left, _right_edge(depth, quadratic, exponential)


def _right_edge(depth: Tensor, quadratic: Tensor, exponential: Tensor) -> Tensor:
    """The second part of :func:`level_edges`."""
    q = depth / exponential
    right = torch.minimum(torch.sqrt(2 * depth / (quadratic + exponential)), torch.log1p(q + torch.sqrt(2 * q)))
    for _ in range(2):
        grown = torch.expm1(right)
        excess = 0.5 * quadratic * right * right + exponential * (grown - right) - depth
        right = right - (excess / (quadratic * right + exponential * grown)).clamp_min(0)
    return right


def make_grid(family: LogFamily, params: tuple[Tensor, ...], likelihood: Likelihood, method: Quadrature) -> Grid:
    """The nodes for every row. No gradients."""
    digits = _digits(method, likelihood.losing.dtype)
    level = digits + 3
    peak = family.peak(params, likelihood.losing)
    scaled = likelihood.magnitude * likelihood.per_pair(torch.exp(peak.location))
    if likelihood.index is None:
        slope = scaled
        mode = torch.zeros_like(peak.location)
        depth = level + torch.log1p(torch.exp(-scaled))
        curvature = peak.quadratic + peak.exponential + _LOGISTIC_CURVATURE
        left, right = level_edges(depth, peak.quadratic, peak.exponential)
        left = -left
    else:
        weight = likelihood.weighted(torch.ones_like(scaled))
        weight_sum = likelihood.sum_pairs(weight)
        slope = likelihood.sum_pairs(scaled * weight)
        mode, drop = _climb(peak, likelihood, scaled, weight_sum)
        depth = level + drop
        left, right = level_edges(depth, peak.quadratic, peak.exponential)
        left = -left
        # A factor whose argument v is small is nearly linear in v: it bends little.
        bend = (1.2 * scaled * likelihood.per_pair(torch.exp(mode))).clamp_max(_LOGISTIC_CURVATURE)
        bend = likelihood.sum_pairs(likelihood.weighted(bend))
        curvature = peak.quadratic + peak.exponential * torch.exp(mode) + bend
    # Where the margins are tiny the derivatives are averages of e^u up to the point where the sigmoid saturates, and
    # their integrand has more mass on the right than the probability's own.
    saturation = math.log(level) - torch.log(slope)
    extended = saturation > right
    if bool(extended.any()):
        rows = torch.nonzero(extended).squeeze(-1)
        narrow, row_depth, quadratic, exponential = (
            column.index_select(0, rows) for column in (right, depth, peak.quadratic, peak.exponential)
        )
        wider = narrow
        for _ in range(3):
            wider = _right_edge(row_depth + wider, quadratic, exponential)
        wider = torch.minimum(wider, saturation.index_select(0, rows))
        right = right.index_copy(0, rows, torch.maximum(narrow, wider))
    if family.tail_exponent(params) is not None:
        cut = -digits - 2 - torch.log(peak.exponential + 0.5 * slope)
        left = torch.maximum(left, cut.clamp_max(-1.0))
        left = torch.minimum(left, right - 1e-3)
    density = torch.sqrt(curvature * (digits / (2 * math.pi**2)) + (digits / math.pi**2) ** 2)
    needed = (right - left) * density + 1
    if likelihood.index is not None and needed.numel() and float(needed.max()) > _TRIM_ABOVE:
        left, trimmed = _trim(peak, likelihood, scaled, weight_sum, drop, level, left, right)
        right = torch.where(extended, right, trimmed)
        needed = (right - left) * density + 1
    needed = torch.where(torch.isfinite(needed), needed, torch.full_like(needed, 16.0)).clamp(16, 1e9)
    unit = torch.exp2(torch.floor(torch.log2(needed)) - 2).clamp_min(16)
    count = torch.ceil(needed / unit) * unit
    return Grid(peak, left, right, count.clamp_max(method.max_nodes).to(torch.int64), digits)


def bound_fall(peak: Peak, offset: Tensor) -> Tensor:
    """A d²/2 + B (e^d - 1 - d), for offset (rows,) or (rows, nodes)."""
    quadratic, exponential = peak.quadratic, peak.exponential
    if offset.dim() == 2:
        quadratic, exponential = quadratic.unsqueeze(-1), exponential.unsqueeze(-1)
    return 0.5 * quadratic * offset * offset + exponential * (torch.expm1(offset) - offset)


def _climb(peak: Peak, likelihood: Likelihood, scaled: Tensor, weight_sum: Tensor) -> tuple[Tensor, Tensor]:
    """A point near the integrand's mode, and how far the integrand there lies below U.

    Damped Newton steps from û; the best point seen is kept, so that the level set drawn from it is never too small.
    """
    offset = torch.zeros_like(peak.location)
    best, best_drop = offset, torch.full_like(offset, math.inf)
    for iteration in range(_CLIMB_STEPS + 1):
        v = scaled * likelihood.per_pair(torch.exp(offset))
        e = torch.exp(-v)
        s = e / (1 + e)
        drop = bound_fall(peak, offset) + likelihood.sum_pairs(likelihood.weighted(torch.log1p(e)))
        better = drop < best_drop
        best = torch.where(better, offset, best)
        best_drop = torch.where(better, drop, best_drop)
        if iteration == _CLIMB_STEPS:
            break
        push = v * s
        gradient = (
            likelihood.sum_pairs(likelihood.weighted(push))
            - peak.quadratic * offset
            - peak.exponential * torch.expm1(offset)
        )
        bend = likelihood.sum_pairs(likelihood.weighted(push * (v * (1 - s) - 1)))
        ceiling = peak.quadratic + peak.exponential * torch.exp(offset) + 0.3 * weight_sum
        curvature = (peak.quadratic + peak.exponential * torch.exp(offset) + bend).maximum(0.1 * ceiling)
        move = (gradient / curvature.clamp_min(1e-300)).clamp(-2.0, 2.0)
        offset = offset + move
        if not bool((move.abs() >= _CLIMB_END).any()):
            break
    return best, best_drop


def _trim(
    peak: Peak,
    likelihood: Likelihood,
    scaled: Tensor,
    weight_sum: Tensor,
    drop: Tensor,
    level: float,
    left: Tensor,
    right: Tensor,
) -> tuple[Tensor, Tensor]:
    """Narrow the range where many winning choices have moved the integrand far below its bound.

    On a coarse grid a cell is given up if even the largest curvature could not lift the integrand inside it above the
    level; what remains is kept, from the first cell to the last.
    """
    lowest = drop
    for _ in range(3):
        # Cells so wide that their bound exceeds the level could never be given up.
        cells = (right - left) * torch.sqrt(0.3 * weight_sum / (8 * level))
        count = _TRIM_NODES + min(int(cells.max()), _MOST_TRIM_CELLS)
        k = torch.arange(count, dtype=left.dtype, device=left.device)
        step = (right - left) / (count - 1)
        offset = left.unsqueeze(-1) + step.unsqueeze(-1) * k
        below = bound_fall(peak, offset) + _log_product(likelihood, scaled, torch.exp(offset))
        lowest = torch.minimum(lowest, below.amin(-1))
        # -g'' <= A + B e^d + 0.27 W, the middle term largest at the right end of the cell.
        bound = (
            peak.quadratic.unsqueeze(-1)
            + peak.exponential.unsqueeze(-1) * torch.exp(offset[:, 1:])
            + 0.3 * weight_sum.unsqueeze(-1)
        )
        cell = torch.minimum(below[:, 1:], below[:, :-1]) - bound * (step.unsqueeze(-1) ** 2 / 8)
        keep = cell <= (lowest + level).unsqueeze(-1)
        first = keep.to(torch.int8).argmax(-1)
        last = count - 2 - keep.flip(-1).to(torch.int8).argmax(-1)
        any_kept = keep.any(-1)
        new_left = torch.where(any_kept, left + step * first, left)
        new_right = torch.where(any_kept, left + step * (last + 1), right)
        shrink = float(((new_right - new_left) / (right - left)).min())
        left, right = new_left, new_right
        if shrink > 0.6:
            break
    return left, right


def _blocks(total: int, size: int) -> list[tuple[int, int]]:
    return [(start, min(start + size, total)) for start in range(0, total, max(size, 1))]


def _block_elements(tensor: Tensor) -> int:
    return _CACHE_ELEMENTS if tensor.device.type == "cpu" else 2**22


def _log_product(likelihood: Likelihood, scaled: Tensor, growth: Tensor, keep: list[Tensor] | None = None) -> Tensor:
    """sum_j w_j log(1 + exp(-e^u |h_j|)) at growth = e^d (rows, nodes); scaled = e^û |h| (pairs,).

    The exponentials are appended to ``keep``, block by block, if it is a list.
    """
    count = growth.shape[-1]
    total = torch.zeros_like(growth)
    assert likelihood.index is not None
    buffers = _Buffers(1, max(_block_elements(scaled), count), scaled)
    for lo, hi in _blocks(scaled.shape[0], buffers.size // count):
        index = likelihood.index[lo:hi]
        e, spare = buffers.take(hi - lo, count)[0], buffers.spare(hi - lo, count)
        if keep is not None:
            e = torch.empty_like(e)
            keep.append(e)
        torch.index_select(growth, 0, index, out=e).mul_(-scaled[lo:hi].unsqueeze(-1)).exp_()
        torch.log1p(e, out=spare)
        if likelihood.weight is not None:
            spare.mul_(likelihood.weight[lo:hi].unsqueeze(-1))
        total.index_add_(0, index, spare)
    return total


def integrate(
    family: LogFamily,
    params: tuple[Tensor, ...],
    likelihood: Likelihood,
    grid: Grid,
    *,
    derivatives: bool,
    with_error: bool,
) -> Result:
    """The log-integral of every row, its error estimate and derivatives. No gradients."""
    if likelihood.index is None:
        return _integrate_single(family, params, likelihood, grid, derivatives, with_error)
    return _integrate_panel(family, params, likelihood, grid, derivatives, with_error)


def _error_estimate(full: Tensor, half: Tensor, edges: Tensor, value: Tensor, digits: float) -> Tensor:
    """The error of a log-integral, from the sums over all nodes and over every second one, and the terms at the edges.

    Halving the step squares the error of a geometrically convergent rule: the error of the rule with every second node
    is the difference of the two, and that of the full rule about its square. To that the mass beyond the edges and
    rounding are added.
    """
    difference = torch.abs(half / full - 1)
    discretisation = torch.minimum(difference, 10 * difference * difference)
    rounding = 8 * torch.finfo(value.dtype).eps * (1 + torch.abs(value))
    return discretisation + 4 * edges / full + math.exp(-digits - 2) + rounding


class TailSum:
    """The nodes left of the first one, where the integrand is exactly geometric in the node's number."""

    def __init__(self, exponent: Tensor, step: Tensor) -> None:
        self.ratio = torch.exp(-exponent * step)
        self.complement = -torch.expm1(-exponent * step)
        self.step = step

    def mass(self, first: Tensor) -> Tensor:
        """The sum of the integrand over them, given its value at the first node."""
        return first * self.ratio / self.complement

    def offset(self, first: Tensor, offset: Tensor) -> Tensor:
        """The sum of the integrand times d, given d at the first node."""
        return first * self.ratio / self.complement * (offset - self.step / self.complement)


def _integrate_single(
    family: LogFamily,
    params: tuple[Tensor, ...],
    likelihood: Likelihood,
    grid: Grid,
    derivatives: bool,
    with_error: bool,
) -> Result:
    peak = grid.peak
    rows = peak.location.shape[0]
    scale = torch.exp(peak.location)
    scaled = likelihood.magnitude * scale
    exponent = family.tail_exponent(params)
    # Rows with the same number of nodes are processed together.
    mixed = rows > 0 and int(grid.count.min()) != int(grid.count.max())
    counts, order = torch.sort(grid.count) if mixed else (grid.count, None)
    needed = [grid.left, grid.right, -0.5 * peak.quadratic, peak.exponential, scaled]
    if exponent is not None:
        needed.append(exponent.expand(rows))
    if order is not None:
        needed = [column.index_select(0, order) for column in needed]
    left, right, quadratic, exponential, argument = (column.unsqueeze(-1) for column in needed[:5])
    out = torch.empty((7, rows), dtype=scaled.dtype, device=scaled.device)
    groups, sizes = torch.unique_consecutive(counts, return_counts=True)
    buffers = _Buffers(4, max(_block_elements(scaled), int(counts[-1]) if rows else 0), scaled)
    # expm1 costs twice as much as exp, and matters only where B multiplies its rounding.
    careful = rows > 0 and float(peak.exponential.max()) > 64
    end = 0
    for count, size in zip(groups.tolist(), sizes.tolist(), strict=True):
        begin, end = end, end + size
        k = torch.arange(count, dtype=scaled.dtype, device=scaled.device)
        for lo, hi in _blocks(size, buffers.size // count):
            part = slice(begin + lo, begin + hi)
            d, growth, weight, won = buffers.take(hi - lo, count)
            step = (right[part] - left[part]) / (count - 1)
            torch.mul(step, k, out=d).add_(left[part])
            if careful:
                torch.expm1(d, out=growth)
                torch.sub(d, growth, out=weight).mul_(exponential[part])
                torch.mul(d, d, out=won)
                weight.addcmul_(won, quadratic[part])
                growth.add_(1)
            else:
                torch.exp(d, out=growth)
                torch.mul(d, quadratic[part], out=weight).add_(exponential[part]).mul_(d)
                weight.addcmul_(growth, exponential[part], value=-1).add_(exponential[part])
            torch.mul(growth, argument[part], out=won).sigmoid_()
            weight.exp_().mul_(won)
            first, step = weight[:, 0], step.squeeze(-1)
            mass = weight.sum(-1)
            if exponent is not None:
                tail = TailSum(needed[5][part], step)
                mass = mass + tail.mass(first)
            out[0, part], out[2, part] = mass, step
            if with_error:
                half, edges = weight[:, ::2].sum(-1), weight[:, -1]
                if exponent is not None:
                    half = half + TailSum(needed[5][part], 2 * step).mass(first)
                else:
                    edges = edges + first
                out[1, part], out[6, part] = 2 * half, edges
            if derivatives:
                if exponent is not None:
                    corner = tail.offset(first, d[:, 0])
                    out[3, part] = torch.mul(weight, d, out=buffers.spare(hi - lo, count)).sum(-1) + corner
                torch.sum(weight.mul_(growth).mul_(won), -1, out=out[4, part])
                torch.sum(weight.mul_(d), -1, out=out[5, part])
    if order is not None:
        out = torch.empty_like(out).index_copy_(1, order, out)
    value = peak.height + torch.log(out[0] * out[2])
    result = Result(value, _error_estimate(out[0], out[1], out[6], value, grid.digits) if with_error else None)
    if derivatives:
        if exponent is None:
            out[3] = 0
        offset, pull, offset_pull = out[3:6] / out[0]
        result.d_magnitude = -scale * pull
        result.moments = NodeMoments(offset=offset, slope=-scaled * pull, offset_slope=-scaled * offset_pull)
    return result


class _Buffers:
    """Arrays that are used again by every block: fresh ones would cost as much as the arithmetic on them."""

    def __init__(self, number: int, size: int, like: Tensor) -> None:
        self.size = size
        self._arrays = torch.empty((number + 1, size), dtype=like.dtype, device=like.device)

    def take(self, rows: int, count: int) -> list[Tensor]:
        return [array[: rows * count].view(rows, count) for array in self._arrays[:-1]]

    def spare(self, rows: int, count: int) -> Tensor:
        return self._arrays[-1, : rows * count].view(rows, count)


def _integrate_panel(
    family: LogFamily,
    params: tuple[Tensor, ...],
    likelihood: Likelihood,
    grid: Grid,
    derivatives: bool,
    with_error: bool,
) -> Result:
    assert likelihood.index is not None
    peak = grid.peak
    rows, pairs = peak.location.shape[0], likelihood.magnitude.shape[0]
    if rows == 0:
        empty = peak.location
        nothing = likelihood.magnitude
        return Result(empty, empty, nothing, empty, NodeMoments(empty, empty, empty))
    scale = torch.exp(peak.location)
    pair_scale = likelihood.per_pair(scale)
    scaled = likelihood.magnitude * pair_scale
    count = int(grid.count.max())
    d, step = grid.offsets(count)
    growth = torch.exp(d)
    kept: list[Tensor] | None = [] if derivatives and pairs * count <= _KEEP_ELEMENTS else None
    fall = bound_fall(peak, d) + _log_product(likelihood, scaled, growth, kept)
    lowest = fall.amin(-1)
    weight = torch.exp(lowest.unsqueeze(-1) - fall)
    mass = weight.sum(-1)
    exponent = family.tail_exponent(params)
    if exponent is not None:
        tail = TailSum(exponent, step)
        first = weight[:, 0].clone()
        mass = mass + tail.mass(first)
    value = peak.height - lowest + torch.log(mass * step)
    error = None
    if with_error:
        half, edges = weight[:, ::2].sum(-1), weight[:, -1]
        if exponent is not None:
            half = half + TailSum(exponent, 2 * step).mass(first)
        else:
            edges = edges + weight[:, 0]
        error = _error_estimate(mass, 2 * half, edges, value, grid.digits)
    result = Result(value, error)
    if not derivatives:
        return result
    offset = torch.zeros_like(mass)
    if exponent is not None:
        offset = ((weight * d).sum(-1) + tail.offset(first, d[:, 0])) / mass
    grown = weight.mul_(growth).div_(mass.unsqueeze(-1))
    grown_offset = grown * d
    pull = torch.empty((2, pairs), dtype=scaled.dtype, device=scaled.device)
    buffers = _Buffers(1, max(_block_elements(scaled), count), scaled)
    for number, (lo, hi) in enumerate(_blocks(pairs, buffers.size // count)):
        index = likelihood.index[lo:hi]
        work, spare = buffers.take(hi - lo, count)[0], buffers.spare(hi - lo, count)
        if kept:
            e = kept[number]
        else:
            e = torch.index_select(growth, 0, index, out=work).mul_(-scaled[lo:hi].unsqueeze(-1)).exp_()
        # sigmoid(-v): the factor that a winning choice still has to gain.
        lost = e.div_(torch.add(e, 1, out=spare))
        torch.sum(torch.index_select(grown, 0, index, out=spare).mul_(lost), -1, out=pull[0, lo:hi])
        torch.sum(torch.index_select(grown_offset, 0, index, out=spare).mul_(lost), -1, out=pull[1, lo:hi])
    pull = likelihood.weighted(pull.T).T
    result.d_magnitude = pull[0] * pair_scale
    result.d_losing = -scale * grown.sum(-1)
    slope = likelihood.losing * result.d_losing + likelihood.sum_pairs(scaled * pull[0])
    offset_slope = likelihood.sum_pairs(scaled * pull[1]) - likelihood.losing * scale * grown_offset.sum(-1)
    result.moments = NodeMoments(offset=offset, slope=slope, offset_slope=offset_slope)
    return result


def replay(family: LogFamily, params: tuple[Tensor, ...], likelihood: Likelihood, grid: Grid) -> Tensor:
    """The same log-integral by plain tensor operations on fixed nodes, up to a constant: for second derivatives."""
    count = int(grid.count.max()) if grid.count.numel() else 16
    d, step = grid.offsets(count)
    with torch.no_grad():
        nodes = family.standardise(tuple(p.detach() for p in params), grid.peak, d)
    log_density, u = family.replay(params, nodes)
    growth = torch.exp(u)
    if likelihood.index is None:
        log_weight = log_density + logsigmoid(-growth * likelihood.magnitude.unsqueeze(-1))
    else:
        v = likelihood.per_pair(growth) * likelihood.magnitude.unsqueeze(-1)
        product = likelihood.sum_pairs(likelihood.weighted(logsigmoid(v)))
        log_weight = log_density - growth * likelihood.losing.unsqueeze(-1) + product
    exponent = family.tail_exponent(params)
    if exponent is not None:
        closing = -torch.log(-torch.expm1(-exponent * step))
        log_weight = torch.cat([(log_weight[:, 0] + closing).unsqueeze(-1), log_weight[:, 1:]], -1)
    return torch.logsumexp(log_weight, -1)


class _LogIntegral(torch.autograd.Function):
    """First derivatives come out of the forward pass; second ones from :func:`replay`."""

    @staticmethod
    def forward(ctx: Any, setup: _Setup, magnitude: Tensor, losing: Tensor | None, *params: Tensor) -> tuple[Any, ...]:
        """(log-integral, error estimate), both (rows,); ``losing`` is None for single losing pairs."""
        family, method = setup.family, setup.method
        likelihood = Likelihood(magnitude, magnitude if losing is None else losing, setup.index, setup.weight)
        grid = make_grid(family, params, likelihood, method)
        derivatives = any(ctx.needs_input_grad)
        if setup.index is not None:
            # A panel's curvature is read off near one mode, and there may be another, so its result is checked.
            grid, result = _integrate_checked(family, params, likelihood, grid, method, derivatives=derivatives)
        else:
            check = setup.with_error or bool((grid.count >= method.max_nodes).any())
            result = integrate(family, params, likelihood, grid, derivatives=derivatives, with_error=check)
            if check:
                _warn_if_inaccurate(grid, result, method)
        if derivatives:
            assert result.moments is not None
            scores = family.scores(params, likelihood.losing, grid.peak, result.moments)
            ctx.save_for_backward(magnitude, losing, *params)
            ctx.setup, ctx.grid = setup, grid
            ctx.first = (result.d_magnitude, result.d_losing, scores)
        error = result.error if result.error is not None else result.value.new_zeros(0)
        ctx.mark_non_differentiable(error)
        return result.value, error

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Products with the derivatives of the forward pass."""
        grad_value = grad_outputs[0]
        setup: _Setup = ctx.setup
        needed = ctx.needs_input_grad[1:]
        saved = ctx.saved_tensors
        if torch.is_grad_enabled():
            # Fresh views: one argument may be a function of another (loc of scale), and must not count twice.
            magnitude = saved[0].view_as(saved[0])
            losing = None if saved[1] is None else saved[1].view_as(saved[1])
            params = tuple(p.view_as(p) for p in saved[2:])
            likelihood = Likelihood(magnitude, magnitude if losing is None else losing, setup.index, setup.weight)
            value = replay(setup.family, params, likelihood, ctx.grid)
            wanted = [x for x, need in zip((magnitude, losing, *params), needed, strict=True) if need and x is not None]
            grads = iter(torch.autograd.grad(value, wanted, grad_value, create_graph=True))
            return (None, *(next(grads) if need else None for need in needed))
        d_magnitude, d_losing, scores = ctx.first
        per_pair = grad_value if setup.index is None else grad_value.index_select(0, setup.index)
        return (
            None,
            per_pair * d_magnitude if needed[0] else None,
            grad_value * d_losing if needed[1] else None,
            *(
                (grad_value * score).sum_to_size(p.shape) if need else None
                for score, p, need in zip(scores, saved[2:], needed[2:], strict=True)
            ),
        )


@dataclass(frozen=True)
class _Setup:
    """The arguments of the integral that have no gradient."""

    family: LogFamily
    method: Quadrature
    index: Tensor | None
    weight: Tensor | None
    with_error: bool


def _integrate_checked(
    family: LogFamily,
    params: tuple[Tensor, ...],
    likelihood: Likelihood,
    grid: Grid,
    method: Quadrature,
    *,
    derivatives: bool,
) -> tuple[Grid, Result]:
    """The integral on ``grid``, or on the first finer one whose estimated error is within the tolerance."""
    result = integrate(family, params, likelihood, grid, derivatives=derivatives, with_error=True)
    while (finer := _finer(grid, result, method)) is not None:
        grid = finer
        result = integrate(family, params, likelihood, grid, derivatives=derivatives, with_error=True)
    _warn_if_inaccurate(grid, result, method)
    return grid, result


def _excess(result: Result, method: Quadrature) -> Tensor:
    """Where the estimated error is above the tolerance, and above what rounding alone makes of a large value."""
    assert result.error is not None
    eps = torch.finfo(result.value.dtype).eps
    floor = torch.clamp(64 * eps * (1 + result.value.abs()), min=method.tolerance)
    return result.error > floor


def _finer(grid: Grid, result: Result, method: Quadrature) -> Grid | None:
    """The grid with twice the nodes, or None if it is good enough or at its limit."""
    count = int(grid.count.max()) if grid.count.numel() else 0
    if not count or count >= method.max_nodes or not bool(_excess(result, method).any()):
        return None
    doubled = torch.full_like(grid.count, min(2 * count, method.max_nodes))
    return replace(grid, count=doubled)


def _warn_if_inaccurate(grid: Grid, result: Result, method: Quadrature) -> None:
    excess = _excess(result, method) & (grid.count >= method.max_nodes)
    if not bool(excess.any()):
        return
    assert result.error is not None
    worst = result.error.masked_fill(~excess, 0)
    row = int(worst.argmax())
    warnings.warn(
        f"Quadrature stopped at max_nodes={method.max_nodes} with {int(excess.sum())} of {excess.shape[0]} integrals "
        f"above the tolerance {method.tolerance:.1e}; the largest estimated error is {float(worst.max()):.1e} "
        f"(integral {row}). Raise max_nodes, or look at the law's parameters.",
        NumericsWarning,
        stacklevel=4,
    )


def log_integral(
    family: LogFamily,
    params: tuple[Tensor, ...],
    magnitude: Tensor,
    losing: Tensor | None,
    method: Quadrature,
    *,
    index: Tensor | None = None,
    weight: Tensor | None = None,
    with_error: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""The log of the integral of p_u(u) exp(-H e^u) prod_j (1 + exp(-e^u |h_j|))^(-w_j) du for every row.

    :param family: see :mod:`~pluralpref.inference.marginal.log_families`.
    :param params: the law's parameters, each (rows,) or (1,).
    :param magnitude: |h|, (pairs,).
    :param losing: H, (rows,); None for single losing pairs, where it is |h|.
    :param index: the row of each pair; None for single pairs.
    :param weight: (pairs,), without gradient; None for ones.
    :param with_error: estimate the error.
    :returns: the log-integral and, with ``with_error``, an estimate of its absolute error (else an empty tensor),
        both (rows,), nats. The first is twice differentiable in ``params``, ``magnitude`` and ``losing``.
    """
    setup = _Setup(family, method, index, weight, with_error)
    value, error = _LogIntegral.apply(setup, magnitude, losing, *params)
    return value, error


def integrate_nodes(
    family: LogFamily, params: tuple[Tensor, ...], likelihood: Likelihood, method: Quadrature
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The integrand itself, for panels: (first node, step, log-values, mass left of the first node in units of it).

    The log-values (rows, nodes) are those of the density of u, without a common constant. No gradients.
    """
    grid = make_grid(family, params, likelihood, method)
    if likelihood.index is not None and grid.count.numel():
        grid, _ = _integrate_checked(family, params, likelihood, grid, method, derivatives=False)
    peak = grid.peak
    count = max(32, int(grid.count.max())) if grid.count.numel() else 32
    d, step = grid.offsets(count)
    scaled = likelihood.magnitude * likelihood.per_pair(torch.exp(peak.location))
    log_value = -bound_fall(peak, d) - _log_product(likelihood, scaled, torch.exp(d))
    exponent = family.tail_exponent(params)
    one = torch.ones_like(step)
    tail = torch.zeros_like(step) if exponent is None else TailSum(exponent, step).mass(one)
    return peak.location + grid.left, step, log_value, tail
