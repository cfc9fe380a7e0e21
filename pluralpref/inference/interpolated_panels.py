r"""The likelihood of many panels from a table that is made once.

What a strength :math:`\beta = e^u` makes of an annotator's choices doesn't depend on the law of :math:`\beta`:

.. math:: \log \prod_j P(y_j \mid \beta) = -H_a e^u - S_a(u), \qquad S_a(u) = \sum_j w_j \log(1 + e^{-e^u |h_j|}).

H is known, and S is computed on one grid in u for all annotators. A sampler then pays, for each set of parameters, an
exponential for each annotator and node, in place of two for each choice and node. The grid's own nodes serve as those
of the trapezoidal rule where the law is wide. Where it is narrow, S is interpolated: it is analytic for
:math:`|\mathrm{Im}\, u| < \pi/2`, so that local Lagrange interpolation converges geometrically.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.nn.functional import embedding_bag

from pluralpref.errors import InferenceError
from pluralpref.inference.interpolated_likelihood import POINTS, lagrange_weights
from pluralpref.inference.marginal.dispatch import unwrap_law
from pluralpref.inference.marginal.log_families import LogFamily, NodeMoments, Peak
from pluralpref.inference.marginal.panel import losing_part
from pluralpref.inference.marginal.panel_grid import PanelGrid
from pluralpref.inference.marginal.quadrature import log_family
from pluralpref.inference.marginal.trapezoid import TailSum, bound_fall, level_edges

#: The table begins where e^u h is below this for every annotator, and ends where exp(-e^u |h|) is.
_NOTHING = 1e-10
#: The largest distance of its nodes: what interpolation from 12 of them can bridge with an error of 1e-9.
_LARGEST_STEP = 0.15
#: Units of u that it goes on at both ends, for laws that do.
_MARGIN = 6.0
#: Of the memory that is free, what the table may take.
_SHARE_OF_MEMORY = 0.5
#: Elements of the arrays it is built with.
_BUILD_ELEMENTS = 2**20
#: -log of the errors aimed at: of the rule, and of the mass beyond its ends.
_DIGITS = 24.0
#: -d²/du² of -log(1 + exp(-e^u h)) is at most 0.27 on the real axis and 0.44 near it; and a choice can raise the
#: exponential part of the curvature by 0.28, by moving the mode.
_LARGEST_CURVATURE = 0.72
#: The curvature up to which a law counts as wide: its log has a standard deviation of 0.4.
_WIDE = 6.0
#: From this number of nodes on, a look at every fourth of a unit at where the integrands are pays.
_TRIM_ABOVE, _TRIM_STEP = 400, 0.25
#: Reached by absurd parameters only, whose density is anything but large.
_MOST_NODES = 4096


@dataclass(frozen=True)
class _Nodes:
    """Nodes u = peak.location + offset, ``step`` apart; the log of the integrand there without the height of the law's
    peak, and the derivative of the log-likelihood, both (annotators, nodes).
    """

    peak: Peak
    offset: Tensor
    step: float
    log_weight: Tensor
    slope: Tensor
    tail: TailSum | None


class InterpolatedPanels:
    """The log-likelihood of every annotator, as a function of one law for all. Made by :func:`interpolate_panels`.

    :param table: S and its derivative, (2, annotators, nodes) float64.
    :param first: u of the first node.
    :param step: the distance of the nodes.
    :param losing: H, (annotators,).
    :param winning: what H is with every choice turned round, (annotators,).
    :param steepest: the largest sum of w |h|.
    :param heaviest: the largest sum of w.
    """

    def __init__(
        self,
        table: Tensor,
        first: float,
        step: float,
        losing: Tensor,
        winning: Tensor,
        steepest: float,
        heaviest: float,
    ) -> None:
        self._table = table
        self._first = first
        self._step = step
        self._growth = torch.exp(first + step * torch.arange(table.shape[2], dtype=torch.float64))
        self._losing = losing
        self._winning = winning
        self._steepest = steepest
        self._heaviest = heaviest

    @property
    def steepest(self) -> float:
        """The largest sum of w |h| over one person's choices."""
        return self._steepest

    @property
    def first(self) -> float:
        """U = log beta of the first node."""
        return self._first

    @property
    def step(self) -> float:
        """The distance of the nodes in u."""
        return self._step

    @property
    def num_nodes(self) -> int:
        """The number of nodes."""
        return self._table.shape[2]

    @property
    def num_people(self) -> int:
        """The number of people."""
        return self._table.shape[1]

    @property
    def depth(self) -> float:
        """How far below its maximum the log of a law's density still matters to someone, nats."""
        return _DIGITS + 3 + math.log(2) * self._heaviest

    def log_likelihood(self, u: Tensor, people: slice | Tensor) -> Tensor:
        """The log-likelihood of people at beta = e^u, (people, nodes), nats.

        :param u: (nodes,), within the table.
        :param people: their numbers.
        """
        position = (u - self._first) / self._step
        column = position.round().long()
        if bool(((position - column).abs() < 1e-9).all()):
            loss = self._table[0, people][:, column]
        else:
            loss, _ = self._interpolate(u, people)
        return torch.outer(self._losing[people], torch.exp(u)).add_(loss).neg_()

    def opposed(self) -> InterpolatedPanels:
        """The same people with every choice turned round: what -beta makes of their choices."""
        return InterpolatedPanels(
            self._table, self._first, self._step, self._winning, self._losing, self._steepest, self._heaviest
        )

    def typical(self, count: int) -> Tensor:
        """The numbers of people who stand for all: evenly spread in H, both extremes among them."""
        order = torch.argsort(self._losing)
        return order[torch.linspace(0, len(order) - 1, min(count, len(order))).round().long()].unique()

    def at(self, strength: Tensor, rows: Tensor | slice | None = None) -> tuple[Tensor, Tensor]:
        """The log-likelihood of people at strengths beta >= 0, and its derivative in beta.

        :param strength: (nodes,) float64.
        :param rows: the numbers of the people, by default all.
        :returns: both (nodes, people), nats.
        """
        rows = slice(None) if rows is None else rows
        # Below the table's first node nothing changes any more, and the derivative is that of the first node.
        u = torch.log(strength.clamp_min(math.exp(self._first)))
        loss, slope = self._interpolate(u, rows)
        pull = torch.outer(strength, self._losing[rows])
        return -pull - loss.T, -self._losing[rows] - slope.T / torch.exp(u).unsqueeze(-1)

    def log_marginal(self, law: Distribution) -> Tensor:
        """Log E_beta[prod_j P(y_j | beta)], nats, by the trapezoidal rule in u, to about 1e-8.

        :param law: of a family with quadrature, batch shape () or (1,).
        :returns: (annotators,), once differentiable in the law's parameters. NaN where those aren't finite.
        """
        family, params = _family_and_parameters(law)
        value, scores = self._integrate(family, tuple(p.detach() for p in params))
        # The derivatives are averages over the same nodes: cheaper, and exact where the law is narrow, which
        # differentiating the sum isn't.
        for param, score in zip(params, scores, strict=True):
            if param.requires_grad:
                value = value + score * (param - param.detach())
        return value

    @torch.no_grad()
    def posterior(self, law: Distribution) -> PanelGrid:
        """p(beta_a | the choices of annotator a) for one law, batch shape (annotators,)."""
        family, params = _family_and_parameters(law)
        nodes = self._evaluate(family, params)
        if nodes is None:
            raise InferenceError(f"the parameters of {law} aren't finite")
        tail = torch.zeros_like(self._losing)
        if nodes.tail is not None:
            tail = nodes.tail.mass(torch.ones_like(tail))
        start = torch.full_like(tail, float(nodes.peak.location + nodes.offset[0]))
        return PanelGrid(start, torch.full_like(tail, nodes.step), nodes.log_weight, tail)

    @torch.no_grad()
    def _integrate(self, family: LogFamily, params: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """(value, derivatives in the parameters), each (annotators,)."""
        nodes = self._evaluate(family, params)
        if nodes is None:
            # A sampler on its way out of the space of laws: it turns back at a density that isn't a number.
            undefined = torch.full_like(self._losing, math.nan)
            return undefined, (undefined,) * len(params)
        d = nodes.offset
        highest = nodes.log_weight.amax(1, keepdim=True)
        weight = nodes.log_weight.sub_(highest).exp_()
        mass, offset = weight.sum(1), weight @ d
        if nodes.tail is not None:
            mass = mass + nodes.tail.mass(weight[:, 0])
            offset = offset + nodes.tail.offset(weight[:, 0], d[0])
        value = nodes.peak.height + highest[:, 0] + torch.log(mass * nodes.step)
        pulled = nodes.slope.mul_(weight)
        moments = NodeMoments(offset / mass, pulled.sum(1) / mass, (pulled @ d) / mass)
        return value, family.scores(params, torch.zeros_like(mass[:1]), nodes.peak, moments)

    def _evaluate(self, family: LogFamily, params: tuple[Tensor, ...]) -> _Nodes | None:
        """The integrands on nodes that serve every annotator; ``None`` for parameters that aren't finite."""
        extremes = torch.stack([torch.zeros((), dtype=torch.float64), self._losing.max()])
        both = family.peak(params, extremes)
        if not bool(torch.isfinite(torch.stack([both.location, both.quadratic, both.exponential])).all()):
            return None
        peak = Peak(both.location[:1], both.quadratic[:1], both.exponential[:1], both.height[:1])
        exponent = family.tail_exponent(params)
        d, step, loss, slope, growth = self._at_nodes(both, peak, exponent is not None)
        pull = torch.outer(self._losing, growth)
        log_weight = (loss + bound_fall(peak, d)).add_(pull).neg_()
        # Left of the first node the integrand is geometric in the node's number.
        tail = None if exponent is None else TailSum(exponent, torch.tensor(step, dtype=torch.float64))
        return _Nodes(peak, d, step, log_weight, pull.add_(slope).neg_(), tail)

    def _range(self, both: Peak, has_tail: bool) -> tuple[float, float]:
        """The values of u that matter to any annotator.

        As H grows, the set where p_u(u) exp(-H e^u) is above any fixed share of its maximum moves to the left with both
        ends: the largest H gives its left end and H = 0 the right one. S moves neither by more than its range.
        """
        depth = torch.full_like(both.location, self.depth)
        left_width, right_width = level_edges(depth, both.quadratic, both.exponential)
        left = float(both.location[1] - left_width[1])
        right = float(both.location[0] + right_width[0])
        if has_tail:
            steep = both.exponential * torch.exp(-both.location) + 0.5 * self._steepest
            flat = -_DIGITS - 2 - math.log(float(steep.max()))
            left = max(left, min(flat, float(both.location[1]) - 1))
        return left, right

    def _at_nodes(self, both: Peak, peak: Peak, has_tail: bool) -> tuple[Tensor, float, Tensor, Tensor, Tensor]:
        """(u minus the law's peak, the distance of nodes, S, its derivative, e^u)."""
        left, right = self._range(both, has_tail)
        curvature = float((both.quadratic + both.exponential).max())
        density = _density(curvature, self._heaviest)
        if (right - left) * density > _TRIM_ABOVE:
            left, right = self._trim(peak, left, right, curvature)
        location = peak.location[0]
        nodes = self._table.shape[2]
        low = math.floor((left - self._first) / self._step)
        high = math.ceil((right - self._first) / self._step) + 1
        if density * self._step <= 1.001 and low >= 0 and high <= nodes:
            part = slice(low, high, max(1, math.floor(1 / (density * self._step))))
            growth = self._growth[part]
            d = self._first + self._step * torch.arange(low, high, part.step, dtype=torch.float64) - location
            return d, self._step * part.step, self._table[0, :, part], self._table[1, :, part], growth
        count = min(max(math.ceil((right - left) * density) + 1, 16), _MOST_NODES)
        d = torch.linspace(left - float(location), right - float(location), count, dtype=torch.float64)
        loss, slope = self._interpolate(location + d)
        return d, (right - left) / (count - 1), loss, slope, torch.exp(location + d)

    def _trim(self, peak: Peak, left: float, right: float, curvature: float) -> tuple[float, float]:
        """The part of a range drawn from the bounds of S where, on every n-th node, an integrand isn't negligible."""
        stride = max(1, math.floor(_TRIM_STEP / self._step))
        low = max(0, math.floor((left - self._first) / self._step))
        high = min(self._table.shape[2] - 1, math.ceil((right - self._first) / self._step))
        nodes = torch.arange(low, high + 1, stride)
        if nodes.numel() < 3:
            return left, right
        u = self._first + self._step * nodes.double()
        value = (
            -bound_fall(peak, u - peak.location)
            - torch.outer(self._losing, self._growth[nodes])
            - self._table[0][:, nodes]
        )
        # Between two nodes an integrand can rise above both by the last term.
        bend = (curvature + _LARGEST_CURVATURE * self._heaviest) * (stride * self._step) ** 2 / 8
        kept = (value >= value.amax(1, keepdim=True) - (_DIGITS + 3 + bend)).any(0).nonzero()[:, 0]
        if not kept.numel():
            return left, right
        first, last = int(kept[0]), int(kept[-1])
        # Beyond the table's ends the bounds are all that is known.
        return (
            left if first == 0 else max(left, float(u[first - 1])),
            right if last == nodes.numel() - 1 else min(right, float(u[last + 1])),
        )

    def _interpolate(self, u: Tensor, rows: Any = slice(None)) -> tuple[Tensor, Tensor]:
        """S and its derivative in u at u (nodes,), both (annotators, nodes)."""
        before = POINTS // 2 - 1
        position = ((u - self._first) / self._step).clamp(before, self._table.shape[2] - 1 - POINTS + before)
        base = position.floor().long() - before
        low, high = int(base.min()), int(base.max()) + POINTS
        weights = lagrange_weights(position - base)
        columns = (base - low)[:, None] + torch.arange(POINTS)
        dense = weights.new_zeros((u.shape[0], high - low)).scatter(1, columns, weights)
        return self._table[0, rows, low:high] @ dense.T, self._table[1, rows, low:high] @ dense.T


def _family_and_parameters(law: Distribution) -> tuple[LogFamily, tuple[Tensor, ...]]:
    law = unwrap_law(law)
    family = log_family(law)
    return family, tuple(p.reshape(1).to(torch.float64) for p in family.parameters(law))


def interpolate_panels(
    margins: Tensor,
    index: Tensor,
    count: int,
    weight: Tensor | None = None,
    preferred: Tensor | None = None,
) -> InterpolatedPanels | None:
    """The table, or ``None`` where it would be too large.

    :param margins: h, (pairs,) float64, nats.
    :param index: the annotator of each pair, (pairs,) int64.
    :param count: the number of annotators.
    :param weight: (pairs,), or ``None`` for ones.
    :param preferred: (pairs,) in [0, 1], or ``None`` for ones.
    """
    magnitude = margins.abs()
    weight = torch.ones_like(magnitude) if weight is None else weight
    zeros = torch.zeros(count, dtype=torch.float64)
    steepest = float(zeros.index_add(0, index, magnitude * weight).max())
    heaviest = float(zeros.index_add(0, index, weight).max())
    step = min(_LARGEST_STEP, 1 / _density(_WIDE, heaviest))
    seen = magnitude[(magnitude > 0) & (weight > 0)]
    start = math.log(_NOTHING / steepest) - _MARGIN if seen.numel() else -_MARGIN
    stop = math.log(-math.log(_NOTHING) / float(seen.min())) + _MARGIN if seen.numel() else _MARGIN
    nodes = math.ceil((stop - start) / step) + 1
    # Two doubles for each node; what is left of the memory is needed for products with the table.
    if 8 * 2 * count * nodes > _SHARE_OF_MEMORY * psutil.virtual_memory().available:
        return None
    growth = torch.exp(start + step * torch.arange(nodes, dtype=torch.float64))
    table = torch.zeros(2, count, nodes, dtype=torch.float64)
    order = torch.argsort(index, stable=True)
    size = max(1, _BUILD_ELEMENTS // nodes)
    for rows in order.split(size):
        v = magnitude[rows, None] * growth
        lost = torch.exp(-v)
        people = index[rows]
        for out, terms in ((table[0], torch.log1p(lost)), (table[1], -v * lost / (1 + lost))):
            _add_sums(out, terms, people, weight[rows])
    losing, winning = (zeros.index_add(0, index, losing_part(h, weight, preferred)) for h in (margins, -margins))
    return InterpolatedPanels(table, start, step, losing, winning, steepest, heaviest)


def _add_sums(out: Tensor, terms: Tensor, people: Tensor, weight: Tensor) -> None:
    """Add the weighted sums of rows that are ordered by person; thirty times as fast as ``index_add_``."""
    first, last = int(people[0]), int(people[-1])
    ends = torch.bincount(people - first).cumsum(0)
    begins = torch.cat([ends.new_zeros(1), ends[:-1]])
    out[first : last + 1] += embedding_bag(
        torch.arange(len(people)), terms, begins, mode="sum", per_sample_weights=weight
    )


def _density(curvature: float, heaviest: float) -> float:
    """The integration nodes for each unit of u, given the law's own curvature."""
    curvature += _LARGEST_CURVATURE * heaviest
    return math.sqrt(curvature * _DIGITS / (2 * math.pi**2) + (_DIGITS / math.pi**2) ** 2)
