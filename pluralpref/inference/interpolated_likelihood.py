r"""The likelihood of many single choices from few margins.

With one law for everybody, :math:`f(h) = \log E[\sigma(\beta h)]` is one function of the margin. In
:math:`t = \operatorname{asinh}(h/s)` it is analytic in a strip around the real axis whose width doesn't depend on how
many pairs there are, so local Lagrange interpolation on an equidistant grid in t converges geometrically. The
interpolation weights are constants: summed over the pairs they turn :math:`\sum_i w_i f(h_i)` into
:math:`\sum_k c_k f(x_k)` with some two hundred nodes, whatever the number of pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pluralpref.inference.choices import Choices

#: Distance of the nodes in t, and the number of nodes that each value is interpolated from.
_STEP = 0.25
_POINTS = 12
#: The scale s below which the grid is linear in h, relative to the median of |h|.
_LINEAR_BELOW = 0.001


@dataclass(frozen=True)
class InterpolatedChoices:
    """Nodes and coefficients, so that the log-likelihood is ``(coefficients * f(nodes)).sum()``.

    :param nodes: (nodes,) margins, nats.
    :param coefficients: (nodes,), of either sign; they add up to the sum of the weights.
    """

    nodes: Tensor
    coefficients: Tensor


def interpolate_choices(choices: Choices) -> InterpolatedChoices | None:
    """The reduced form of single choices, or ``None`` where it would not be smaller.

    :param choices: without regard to annotators.
    """
    weight = torch.ones_like(choices.margins) if choices.weight is None else choices.weight
    # A choice for the rejected answer is one for the chosen answer at the opposite margin.
    h = torch.cat([choices.margins, -choices.margins])
    w = torch.cat([weight * choices.preferred, weight * (1 - choices.preferred)])
    h, w = h[w > 0], w[w > 0]
    magnitude = h.abs()
    if not bool((magnitude > 0).any()):
        return None
    scale = _LINEAR_BELOW * magnitude[magnitude > 0].median()
    t = torch.asinh(h / scale)
    first = torch.floor(t.min() / _STEP) - _POINTS // 2
    last = torch.ceil(t.max() / _STEP) + _POINTS // 2
    count = int(last - first) + 1
    if 2 * count > h.shape[0]:
        return None
    position = t / _STEP - first
    base = position.floor().long() - (_POINTS // 2 - 1)
    weights = _lagrange(position - base)
    coefficients = torch.zeros(count, dtype=torch.float64)
    coefficients.index_add_(0, (base[:, None] + torch.arange(_POINTS)).reshape(-1), (weights * w[:, None]).reshape(-1))
    nodes = scale * torch.sinh((first + torch.arange(count)) * _STEP)
    used = coefficients != 0
    return InterpolatedChoices(nodes[used], coefficients[used])


def _lagrange(x: Tensor) -> Tensor:
    """The weights of the values at 0, 1, …, p - 1 for interpolation at x (n,); (n, p)."""
    offsets = x[:, None] - torch.arange(_POINTS, dtype=torch.float64)
    columns = []
    for k in range(_POINTS):
        others = [j for j in range(_POINTS) if j != k]
        scale = 1.0
        for j in others:
            scale *= k - j
        columns.append(offsets[:, others].prod(1) / scale)
    return torch.stack(columns, 1)
