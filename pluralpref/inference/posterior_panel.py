"""Each annotator's own strength, given their choices and a draw of the parameters."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pyro.distributions import Delta
from torch import Tensor
from torch.distributions import Distribution
from torch.nn.functional import logsigmoid

from pluralpref.distributions.absorb import absorbed
from pluralpref.inference.contexts import base_and_factor
from pluralpref.inference.marginal import PanelGrid, panel_posterior
from pluralpref.inference.marginal.dispatch import unwrap_law
from pluralpref.inference.marginal.quadrature import has_log_family
from pluralpref.inference.posterior_problem import PosteriorProblem, laws_of_draws

#: Candidates for each annotator and draw where a family has no quadrature.
_CANDIDATES = 256
_BLOCK_ELEMENTS = 4_000_000
_NODES = 128
#: Log-densities this far below the maximum count as nothing; keeps padding (-inf) out of the arithmetic.
_LOWEST = -300.0
_BISECTIONS = 20


@torch.no_grad()
def conditional_strengths(problem: PosteriorProblem, draws: Mapping[str, Tensor]) -> Tensor:
    r"""One draw from :math:`p(\beta_a \mid y_a, \theta)` for each annotator and each draw of the parameters.

    By inversion on the quadrature grid; a point mass is its own conditional law; and for families that the
    engine has no grid for, by sampling importance resampling from 256 draws of the law. Uses the global generator.

    Where the law depends on columns that change between a person's choices, the strength is the one at effect 0.

    :param draws: (S, ...) by parameter name.
    :returns: (S, annotators) float64.
    """
    data = problem.choices
    assert data.annotator is not None
    tables = [] if problem.is_independent else problem.cells
    if tables and has_log_family(absorbed(unwrap_law(problem.twin.law(tables[0].context)))):
        out = torch.empty(next(iter(draws.values())).shape[0], data.num_annotators, dtype=torch.float64)
        for cell in tables:
            for row, _, law in laws_of_draws(problem.twin, draws, 1, cell.context, 1):
                out[row, cell.people] = draw_from_grid(cell.table.posterior(absorbed(unwrap_law(law))))
        return out
    if problem.contexts is not None:
        count = next(iter(draws.values())).shape[0]
        return torch.cat(
            [_with_contexts(problem, {name: value[row] for name, value in draws.items()}) for row in range(count)]
        )
    size = max(1, _BLOCK_ELEMENTS // max(1, data.num_annotators * _NODES))
    return torch.cat(
        [
            _conditional(problem, law, data.margins, stop - start)
            for start, stop, law in laws_of_draws(problem.twin, draws, size)
        ]
    )


def _with_contexts(problem: PosteriorProblem, values: Mapping[str, Tensor]) -> Tensor:
    """(1, annotators), for one draw: b where a person's contexts vary, else c b."""
    data = problem.choices
    assert data.annotator is not None
    law, factor_of_pair = problem.law_of_units(values)
    margins, scale = data.margins, torch.ones(())
    if factor_of_pair is not None:
        margins = margins * factor_of_pair
    elif (split := base_and_factor(law)) is not None:
        law, scale = split
        margins = margins * scale[data.annotator]
    law = law.expand(torch.Size((1, law.batch_shape.numel())))
    return _conditional(problem, law, margins, 1) * scale


def _conditional(problem: PosteriorProblem, law: Distribution, margins: Tensor, rows: int) -> Tensor:
    data = problem.choices
    assert data.annotator is not None
    shape = torch.Size((rows, data.num_annotators))
    if isinstance(unwrap_law(law), Delta):
        return law.mean.expand(shape).double()
    if not has_log_family(unwrap_law(law)):
        return _resample(problem, law, margins, shape)
    grid = panel_posterior(
        law, margins, data.annotator, data.num_annotators, weight=data.weight, preferred=data.preferred
    )
    return draw_from_grid(grid)


def draw_from_grid(grid: PanelGrid) -> Tensor:
    """One draw of beta from each density of the grid, by inversion; shape ``grid.batch_shape``, float64.

    A cell is drawn by its mass (Simpson's rule, with the log-density at the middle from a cubic), then a point in it by
    the parabola through the same three values. ``PanelGrid.sample`` works on a grid 16 times finer, which costs 20
    times as much: too much for one draw from each of a million densities. The error of the distribution function is
    about 2e-4.
    """
    log_density = grid.log_weights.clone()
    log_density[..., 0] -= torch.log1p(grid.tail)
    log_density = (log_density - log_density.amax(-1, keepdim=True)).clamp_min(_LOWEST)
    inner = (9 * (log_density[..., 1:-2] + log_density[..., 2:-1]) - log_density[..., :-3] - log_density[..., 3:]) / 16
    ends = (log_density[..., :-1] + log_density[..., 1:]) / 2
    middle = torch.cat([ends[..., :1], inner, ends[..., -1:]], -1).exp()
    density = log_density.exp()
    left, right = density[..., :-1], density[..., 1:]
    mass = torch.cat([(grid.tail * density[..., 0]).unsqueeze(-1), (left + 4 * middle + right) / 6], -1)
    cumulative = mass.cumsum(-1)
    wanted = torch.rand_like(cumulative[..., :1]) * cumulative[..., -1:]
    slot = torch.searchsorted(cumulative, wanted).clamp(1, mass.shape[-1] - 1)
    cell = slot - 1
    # A draw in the left tail has nothing left to find in its cell: it stays at the first node.
    rest = ((wanted - cumulative.gather(-1, cell)) / mass.gather(-1, slot).clamp_min(1e-300)).clamp(0, 1).squeeze(-1)
    a, b, c = (x.gather(-1, cell).squeeze(-1) for x in (left, middle, right))
    fraction = _invert_parabola(a, b, c, rest)
    return torch.exp(grid.start + grid.step * (cell.squeeze(-1) + fraction)).double()


def _invert_parabola(left: Tensor, middle: Tensor, right: Tensor, level: Tensor) -> Tensor:
    """X in [0, 1] below which lies the share ``level`` of the area under the parabola through three values."""
    bend = 2 * (left - 2 * middle + right)
    slope = -3 * left + 4 * middle - right
    area = left + slope / 2 + bend / 3
    low, high = torch.zeros_like(level), torch.ones_like(level)
    for _ in range(_BISECTIONS):
        x = (low + high) / 2
        below = x * (left + x * (slope / 2 + x * bend / 3)) < level * area
        low, high = torch.where(below, x, low), torch.where(below, high, x)
    return (low + high) / 2


def _resample(problem: PosteriorProblem, law: Distribution, margins: Tensor, shape: torch.Size) -> Tensor:
    data = problem.choices
    assert data.annotator is not None
    out = torch.empty(shape, dtype=torch.float64)
    for row in range(shape[0]):
        candidates = law.expand(shape).sample(torch.Size([_CANDIDATES]))[:, row].double()
        logits = candidates[:, data.annotator] * margins
        terms = data.preferred * logsigmoid(logits) + (1 - data.preferred) * logsigmoid(-logits)
        terms = terms if data.weight is None else terms * data.weight
        total = torch.zeros_like(candidates).index_add_(1, data.annotator, terms)
        picked = torch.distributions.Categorical(logits=total.T).sample()
        out[row] = candidates.gather(0, picked[None])[0]
    return out
