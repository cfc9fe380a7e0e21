r"""Several choices that share one beta: the panel mixed logit.

For an annotator a with choices j, log E_beta[prod_j sigmoid(beta h_j)^{w_j}]: the product is inside the expectation.
A closed form exists for a point mass only; LogNormal, Gamma and Exponential laws are integrated by the engine of
:mod:`~pluralpref.inference.marginal.trapezoid`, every other law with a density by
:mod:`~pluralpref.inference.marginal.any_density`, and what has neither by Monte Carlo with K draws for each annotator.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution, Exponential, Gamma, LogNormal
from torch.nn.functional import logsigmoid

from pluralpref.errors import ConfigError, DataError, UnsupportedError
from pluralpref.inference.marginal.dispatch import (
    ClosedForm,
    Method,
    MonteCarlo,
    Quadrature,
    check_margins,
    register_panel_marginal,
    resolve_method,
    unwrap_law,
)
from pluralpref.inference.marginal.draws import draw_strengths
from pluralpref.inference.marginal.panel_grid import PanelGrid
from pluralpref.inference.marginal.quadrature import log_family
from pluralpref.inference.marginal.safe_math import absolute, log_mean_exp, promote, working_dtype
from pluralpref.inference.marginal.trapezoid import Likelihood, integrate_nodes, log_integral

_TYPICAL_NODES = 128


@dataclass(frozen=True)
class PanelProblem:
    """The choices, checked: what a function registered with ``register_panel_marginal`` receives.

    :param margins: h, (pairs,), finite, at least float32.
    :param panel: the panel of each pair, (pairs,), int64 in [0, num_panels).
    :param num_panels: the number of panels; one without choices has log-probability 0.
    :param weight: (pairs,), >= 0, the margins' dtype or wider; no gradient.
    :param preferred: (pairs,), in [0, 1]: the probability that the chosen answer is the preferred one; no gradient.
    :param batch_shape: the draws' dimensions of the result, ``batch_shape + (num_panels,)``.
    :param max_elements: no temporary array should have more elements.
    """

    margins: Tensor
    panel: Tensor
    num_panels: int
    weight: Tensor | None
    preferred: Tensor | None
    batch_shape: torch.Size
    max_elements: int

    @property
    def shape(self) -> torch.Size:
        """The shape of the result."""
        return torch.Size((*self.batch_shape, self.num_panels))

    def log_sigmoids(self, strength: Tensor) -> Tensor:
        """W [p logsigmoid(beta h) + (1-p) logsigmoid(-beta h)] for strength (..., pairs)."""
        logits = strength * self.margins
        value = logsigmoid(logits)
        if self.preferred is not None:
            # logsigmoid(-x) = logsigmoid(x) - x would cancel: both are evaluated.
            p = self.preferred.to(value)
            value = p * value + (1 - p) * logsigmoid(-logits)
        return value if self.weight is None else value * self.weight.to(value)

    def sum_panels(self, values: Tensor) -> Tensor:
        """(..., pairs) to sums (..., num_panels)."""
        zeros = values.new_zeros((*values.shape[:-1], self.num_panels))
        return zeros.index_add(-1, self.panel, values)


def _check(
    law: Distribution,
    margins: Tensor,
    panel: Tensor,
    num_panels: int,
    weight: Tensor | None,
    preferred: Tensor | None,
    max_elements: int,
) -> PanelProblem:
    margins = check_margins(margins)
    if margins.dim() != 1:
        raise DataError(f"Panel margins have one dimension, (pairs,), not shape {tuple(margins.shape)}.")
    if bool(torch.isinf(margins.detach()).any()):
        first = int(torch.isinf(margins.detach()).nonzero()[0])
        raise DataError(f"Margin {first} is infinite; in a panel every margin must be finite. Leave that pair out.")
    if max_elements < 1:
        raise ConfigError(f"max_elements={max_elements}: give a positive number.")
    panel = torch.as_tensor(panel, device=margins.device)
    if panel.is_floating_point() or panel.dtype == torch.bool:
        raise DataError(f"Panel codes are integers from 0 to num_panels - 1, not {panel.dtype}.")
    panel = panel.to(torch.int64)
    if panel.shape != margins.shape:
        raise DataError(
            f"There are {margins.shape[0]} margins and {tuple(panel.shape)} panel codes; give one for each."
        )
    if panel.numel():
        outside = (panel < 0) | (panel >= num_panels)
        if bool(outside.any()):
            first = int(outside.nonzero()[0])
            raise DataError(
                f"{int(outside.sum())} panel codes are outside 0..{num_panels - 1}, the first ({int(panel[first])}) at "
                f"index {first}. Code the annotators 0, 1, 2, ... and give their number as num_panels."
            )
    weight = _check_column("weight", weight, margins, 0.0, math.inf)
    preferred = _check_column("preferred", preferred, margins, 0.0, 1.0)
    shape = law.batch_shape
    if len(shape) == 0:
        batch_shape = torch.Size()
    elif shape[-1] in (1, num_panels):
        batch_shape = shape[:-1]
    else:
        raise ConfigError(
            f"A law of batch shape {tuple(shape)} doesn't fit {num_panels} panels: its last dimension must be 1 (one "
            "law for all) or the number of panels; dimensions before it are draws."
        )
    return PanelProblem(margins, panel, num_panels, weight, preferred, batch_shape, max_elements)


def _check_column(name: str, column: Tensor | None, margins: Tensor, low: float, high: float) -> Tensor | None:
    if column is None:
        return None
    column = torch.as_tensor(column, device=margins.device).detach()
    column = column.to(promote(column.dtype, margins.dtype))
    if column.dim() == 0:
        column = column.expand(margins.shape)
    if column.shape != margins.shape:
        raise DataError(f"{name} has shape {tuple(column.shape)} and there are {margins.shape[0]} margins.")
    bad = ~((column >= low) & (column <= high) & torch.isfinite(column))
    if bool(bad.any()):
        first = int(bad.nonzero()[0])
        allowed = "in [0, 1]" if high == 1.0 else "finite and >= 0"
        raise DataError(
            f"{int(bad.sum())} values of {name} are not {allowed}, the first ({float(column[first])}) at index {first}."
        )
    return column


def log_marginal_panel(
    law: Distribution,
    margins: Tensor,
    panel: Tensor,
    num_panels: int,
    weight: Tensor | None = None,
    preferred: Tensor | None = None,
    method: str | Method = "auto",
    *,
    max_elements: int = 2**24,
) -> Tensor:
    r"""The log-probability of a panel, log E_beta[prod_j sigmoid(beta h_j)^{w_j}]: one annotator's choices share beta.

    With a soft label p_j in ``preferred`` the factor is
    exp(w_j [p_j log sigmoid(beta h_j) + (1 - p_j) log sigmoid(-beta h_j)]).

    :param law: the distribution of beta; batch shape () or (1,) (one law for all panels), ``(num_panels,)``, or draws
        of its parameters in dimensions before the last: ``(S, 1)`` and ``(S, num_panels)``.
    :param margins: h, (pairs,), finite, nats.
    :param panel: the panel of each pair, (pairs,), integers from 0; the order of the rows is free.
    :param num_panels: the number of panels. A panel without pairs has value 0.
    :param weight: (pairs,), >= 0, or None for ones. An integer weight equals that many repeated rows. A constant: no
        gradient flows to it.
    :param preferred: (pairs,), in [0, 1], or None for ones. A constant as well.
    :param method: as in :func:`~pluralpref.inference.marginal.log_marginal`; ``"auto"`` is the exact value for a
        Delta, quadrature for laws with a density, else Monte Carlo with 16 draws for each panel.
    :param max_elements: a bound on the elements of temporary arrays.
    :returns: ``(num_panels,)``, or ``(S, num_panels)``; nats. Twice differentiable in margins and parameters.
    :raises DataError: for margins, codes, weights or labels out of range, naming the first row.
    :raises UnsupportedError: if the family has no such method.
    """
    law = unwrap_law(law)
    function, instance = resolve_method(law, method, panel=True)
    problem = _check(law, margins, panel, num_panels, weight, preferred, max_elements)
    return function(law, problem, instance)


@register_panel_marginal(dist.Delta, ClosedForm)
def _delta(law: dist.Delta, problem: PanelProblem, method: ClosedForm) -> Tensor:
    v = law.v.to(promote(law.v.dtype, problem.margins.dtype)).expand(problem.shape)
    return problem.sum_panels(problem.log_sigmoids(v.index_select(-1, problem.panel)))


@register_panel_marginal(Distribution, MonteCarlo)
def _monte_carlo(law: Distribution, problem: PanelProblem, method: MonteCarlo) -> Tensor:
    """K draws for each panel, shared by its choices; independent between panels and draws of parameters, or shared."""
    beta = draw_strengths(law.expand(problem.shape), method)
    beta = beta.to(promote(beta.dtype, problem.margins.dtype))
    # The draws that are processed together; their results are small.
    group = max(1, problem.max_elements // max(1, problem.margins.shape[0] * math.prod(problem.batch_shape)))
    parts = [
        problem.sum_panels(problem.log_sigmoids(part.index_select(-1, problem.panel))) for part in beta.split(group)
    ]
    return log_mean_exp(torch.cat(parts), 0)


@dataclass(frozen=True)
class _Chunk:
    """Some (draw, panel) rows, and the pairs that belong to them."""

    rows: slice
    pairs: Tensor
    index: Tensor


def _chunks(problem: PanelProblem) -> list[list[_Chunk]]:
    """Row ranges of every draw: whole panels, so that a chunk is complete in itself."""
    panels, pairs = problem.num_panels, problem.margins.shape[0]
    device = problem.panel.device
    limit = max(1, problem.max_elements // _TYPICAL_NODES)
    if panels <= limit:
        everything = torch.arange(pairs, device=device)
        return [[_Chunk(slice(0, panels), everything, problem.panel)]]
    order = torch.argsort(problem.panel, stable=True)
    ends = torch.cumsum(torch.bincount(problem.panel, minlength=panels), 0)
    chunks = []
    for start in range(0, panels, limit):
        stop = min(start + limit, panels)
        first = int(ends[start - 1]) if start else 0
        members = order[first : int(ends[stop - 1])]
        chunks.append(_Chunk(slice(start, stop), members, problem.panel[members] - start))
    return [chunks]


def losing_part(margins: Tensor, weight: Tensor | None, preferred: Tensor | None) -> Tensor:
    """W times the part of each margin that works against the choice: (1-p) h for h >= 0, -p h for h < 0."""
    if preferred is None:
        against = torch.where(margins >= 0, torch.zeros_like(margins), -margins)
    else:
        p = preferred.to(margins)
        against = torch.where(margins >= 0, (1 - p) * margins, -p * margins)
    return against if weight is None else against * weight.to(margins)


@dataclass(frozen=True)
class _Rows:
    """One call of the engine: (draws x panels) rows with their pairs, flat."""

    params: tuple[Tensor, ...]
    magnitude: Tensor
    losing: Tensor
    index: Tensor
    weight: Tensor | None
    shape: torch.Size


def _engine_calls(law: Distribution, problem: PanelProblem) -> tuple[list[list[_Rows]], torch.dtype]:
    """Calls by block of draws (outer list) and chunk of panels (inner list)."""
    family = log_family(law)
    params = family.parameters(law)
    dtype = promote(problem.margins.dtype, *(p.dtype for p in params))
    work = working_dtype(problem.margins.device)
    draws = math.prod(problem.batch_shape)
    flat = [
        p.to(work).reshape(1, 1) if p.numel() == 1 else p.to(work).expand(problem.shape).reshape(draws, -1)
        for p in params
    ]
    margins = problem.margins.to(work)
    magnitude, against = absolute(margins), losing_part(margins, problem.weight, problem.preferred)
    weight = None if problem.weight is None else problem.weight.to(work)
    (chunks,) = _chunks(problem)
    pairs = problem.margins.shape[0]
    per_draw = max(1, pairs, problem.num_panels * _TYPICAL_NODES)
    group = max(1, problem.max_elements // per_draw)
    calls = []
    for start in range(0, draws, group):
        stop = min(start + group, draws)
        inner = []
        for chunk in chunks:
            width = chunk.rows.stop - chunk.rows.start
            whole = len(chunks) == 1
            h = magnitude if whole else magnitude[chunk.pairs]
            losing = against.new_zeros(width).index_add(0, chunk.index, against if whole else against[chunk.pairs])
            w = weight if weight is None or whole else weight[chunk.pairs]
            index = chunk.index
            n = stop - start
            if n > 1:
                shift = torch.arange(n, device=index.device).unsqueeze(-1) * width
                index = (index + shift).reshape(-1)
                h, losing = h.repeat(n), losing.repeat(n)
                w = None if w is None else w.repeat(n)
            rows = tuple(p.reshape(1) if p.numel() == 1 else p[start:stop, chunk.rows].reshape(-1) for p in flat)
            inner.append(_Rows(rows, h, losing, index, w, torch.Size((n, width))))
        calls.append(inner)
    return calls, dtype


def _panel_quadrature(law: Distribution, problem: PanelProblem, method: Quadrature) -> Tensor:
    family = log_family(law)
    calls, dtype = _engine_calls(law, problem)
    values = []
    for inner in calls:
        row = []
        for c in inner:
            value, _ = log_integral(family, c.params, c.magnitude, c.losing, method, index=c.index, weight=c.weight)
            row.append(value.reshape(c.shape))
        values.append(torch.cat(row, -1))
    if not values:
        return problem.margins.new_zeros(problem.shape, dtype=dtype)
    return torch.cat(values).reshape(problem.shape).to(dtype)


for _family in (LogNormal, Gamma, Exponential):
    register_panel_marginal(_family, Quadrature)(_panel_quadrature)


def panel_posterior(
    law: Distribution,
    margins: Tensor,
    panel: Tensor,
    num_panels: int,
    weight: Tensor | None = None,
    preferred: Tensor | None = None,
    method: str | Quadrature = "quadrature",
    *,
    max_elements: int = 2**24,
) -> PanelGrid:
    """p(beta_a | the choices of annotator a) on a grid, for every panel.

    The arguments are those of :func:`log_marginal_panel`; a panel without pairs gets the law itself. No gradients.

    :param method: ``"quadrature"`` or an instance of :class:`Quadrature`.
    :returns: a :class:`~pluralpref.inference.marginal.panel_grid.PanelGrid` of batch shape ``(num_panels,)`` or
        ``(S, num_panels)``. Its arrays have about 100 nodes for each row; with many draws of the parameters, loop over
        blocks of them.
    :raises UnsupportedError: for families without quadrature.
    """
    law = unwrap_law(law)
    if isinstance(method, str):
        if method not in ("auto", "quadrature"):
            raise ConfigError(f"panel_posterior works by quadrature, not by {method!r}.")
        method = Quadrature()
    elif not isinstance(method, Quadrature):
        raise UnsupportedError(f"panel_posterior works by quadrature, not by {method!r}.")
    family = log_family(law)
    problem = _check(law, margins, panel, num_panels, weight, preferred, max_elements)
    with torch.no_grad():
        calls, _ = _engine_calls(law, problem)
        grids = []
        for inner in calls:
            pieces = []
            for c in inner:
                likelihood = Likelihood(c.magnitude, c.losing, c.index, c.weight)
                nodes = integrate_nodes(family, c.params, likelihood, method)
                pieces.append(PanelGrid(*(x.reshape(*c.shape, *x.shape[1:]) for x in nodes)))
            grids.append(PanelGrid.concatenate(pieces, -1))
        return PanelGrid.concatenate(grids, 0).reshape(problem.shape)
