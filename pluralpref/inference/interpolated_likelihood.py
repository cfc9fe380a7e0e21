r"""The likelihood of many single choices from few margins.

With one law for everybody, :math:`f(h) = \log E[\sigma(\beta h)]` is one function of the margin. In
:math:`t = \operatorname{asinh}(h/s)` it is analytic in a strip around the real axis whose width doesn't depend on how
many pairs there are, so local Lagrange interpolation on an equidistant grid in t converges geometrically. The
interpolation weights are constants: summed over the pairs they turn :math:`\sum_i w_i f(h_i)` into
:math:`\sum_k c_k f(x_k)` with some two hundred nodes, whatever the number of pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from pluralpref.inference.choices import Choices

#: Distance of the nodes in t, and the number of nodes that each value is interpolated from.
_STEP = 0.25
POINTS = 12
#: The scale s below which the grid is linear in h, relative to the median of |h|.
_LINEAR_BELOW = 0.001


@dataclass(frozen=True)
class InterpolatedChoices:
    """Nodes and coefficients, so that the log-likelihood is ``(coefficients * f(nodes)).sum()``.

    :param nodes: (nodes,) margins, nats.
    :param coefficients: (nodes,), of either sign; they add up to the sum of the weights.
    :param cell: (nodes,), the set of pairs with one law that each node stands for, where there are several laws.
    """

    nodes: Tensor
    coefficients: Tensor
    cell: Tensor


def interpolate_choices(choices: Choices, cell: Tensor | None = None) -> InterpolatedChoices | None:
    """The reduced form of single choices, or ``None`` where it would not be smaller.

    :param choices: without regard to annotators.
    :param cell: (pairs,) codes 0, 1, … of sets of pairs with one law each; ``None``: one law for all.
    """
    if cell is None:
        return _interpolate(choices)
    nodes, coefficients, cells = [], [], []
    helped = False
    for code in range(int(cell.max()) + 1):
        rows = (cell == code).nonzero()[:, 0]
        part = Choices(
            choices.margins[rows], choices.preferred[rows], None if choices.weight is None else choices.weight[rows]
        )
        reduced = _interpolate(part)
        helped = helped or reduced is not None
        h, w = both_sides(part) if reduced is None else (reduced.nodes, reduced.coefficients)
        nodes.append(h)
        coefficients.append(w)
        cells.append(torch.full((h.shape[0],), code))
    if not helped:
        return None
    return InterpolatedChoices(torch.cat(nodes), torch.cat(coefficients), torch.cat(cells))


def both_sides(choices: Choices) -> tuple[Tensor, Tensor]:
    """(margins, weights) of choices that were all made for the answer at the margin.

    A choice for the rejected answer is one for the chosen answer at the opposite margin.
    """
    weight = torch.ones_like(choices.margins) if choices.weight is None else choices.weight
    h = torch.cat([choices.margins, -choices.margins])
    w = torch.cat([weight * choices.preferred, weight * (1 - choices.preferred)])
    return h[w > 0], w[w > 0]


def _interpolate(choices: Choices) -> InterpolatedChoices | None:
    h, w = both_sides(choices)
    magnitude = h.abs()
    if not bool((magnitude > 0).any()):
        return None
    scale = _LINEAR_BELOW * magnitude[magnitude > 0].median()
    t = torch.asinh(h / scale)
    first = torch.floor(t.min() / _STEP) - POINTS // 2
    last = torch.ceil(t.max() / _STEP) + POINTS // 2
    count = int(last - first) + 1
    if 2 * count > h.shape[0]:
        return None
    position = t / _STEP - first
    base = position.floor().long() - (POINTS // 2 - 1)
    weights = lagrange_weights(position - base)
    coefficients = torch.zeros(count, dtype=torch.float64)
    coefficients.index_add_(0, (base[:, None] + torch.arange(POINTS)).reshape(-1), (weights * w[:, None]).reshape(-1))
    nodes = scale * torch.sinh((first + torch.arange(count)) * _STEP)
    used = coefficients != 0
    return InterpolatedChoices(nodes[used], coefficients[used], torch.zeros(int(used.sum()), dtype=torch.int64))


def lagrange_weights(x: Tensor) -> Tensor:
    """The weights of the values at 0, 1, …, 11 for interpolation at x (n,), best near the middle; (n, 12)."""
    centred = x - (POINTS - 1) / 2
    powers = torch.ones(x.shape[0], POINTS, dtype=torch.float64)
    torch.cumprod(centred[:, None].expand(-1, POINTS - 1), 1, out=powers[:, 1:])
    return powers @ _COEFFICIENTS


def _lagrange_coefficients() -> Tensor:
    """Row m, column k: the coefficient of x^m in the polynomial that is 1 at node k and 0 at the others."""
    nodes = [Fraction(2 * k - POINTS + 1, 2) for k in range(POINTS)]
    columns = []
    for k, node in enumerate(nodes):
        polynomial = [Fraction(1)]
        for j, other in enumerate(nodes):
            if j != k:
                shifted = [Fraction(0), *polynomial]
                scaled = [c * other for c in polynomial] + [Fraction(0)]
                polynomial = [(a - b) / (node - other) for a, b in zip(shifted, scaled, strict=True)]
        columns.append([float(c) for c in polynomial])
    return torch.tensor(columns, dtype=torch.float64).T.contiguous()


_COEFFICIENTS = _lagrange_coefficients()
