r"""Several choices that share one beta: the panel mixed logit.

For an annotator a with choices j, log E_beta[prod_j sigmoid(beta h_j)^{w_j}]: the product is inside the expectation.
A closed form exists for a point mass only; LogNormal, Gamma and Exponential laws are integrated by the engine of
:mod:`~pluralpref.inference.marginal.trapezoid`, every other law with a density by
:mod:`~pluralpref.inference.marginal.any_density`, and what has neither by Monte Carlo with K draws for each annotator.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

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
from pluralpref.inference.marginal.monte_carlo import log_average
from pluralpref.inference.marginal.panel_grid import PanelGrid
from pluralpref.inference.marginal.quadrature import log_family
from pluralpref.inference.marginal.safe_math import absolute, promote, working_dtype
from pluralpref.inference.marginal.trapezoid import Likelihood, integrate_nodes, log_integral

_TYPICAL_NODES = 128
#: The engine has about so many arrays with a number for each choice.
_PAIR_ARRAYS = 16
#: A block of strengths has about so many arrays with a number for each strength and choice.
_BLOCK_ARRAYS = 4


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

    def log_likelihood(self, strength: Tensor) -> Tensor:
        """The log-likelihood of every panel at given strengths, block by block.

        No array of (strengths, choices) is kept for the backward pass, which makes them again.

        :param strength: beta, (..., num_panels) or, the same for all panels, (..., 1).
        :returns: (..., num_panels), nats.
        """
        flat = strength.reshape(-1, strength.shape[-1])
        columns = []
        for rows, piece in self.pieces(max(1, self.max_elements // _PAIR_ARRAYS)):
            of_piece = flat if flat.shape[-1] == 1 else flat[:, rows]
            columns.append(_LikelihoodInBlocks.apply(piece, piece.margins, of_piece))
        return torch.cat(columns, -1).reshape(*strength.shape[:-1], self.num_panels)

    def log_likelihood_at_once(self, strength: Tensor) -> Tensor:
        """As :meth:`log_likelihood`, by plain tensor operations on arrays of (strengths, choices)."""
        wide = strength if strength.shape[-1] == 1 else strength.index_select(-1, self.panel)
        return self.sum_panels(self.log_sigmoids(wide))

    def pieces(self, max_pairs: int, max_panels: int | None = None) -> Iterator[tuple[slice, PanelProblem]]:
        """Whole panels, so many that they have at most ``max_pairs`` pairs (one panel may have more) and ``max_panels``.

        One after the other, as views of the columns if these are ordered by panel: large problems are never copied
        as a whole.

        :returns: the panels' numbers, and a problem without the others; together they are all panels, in order.
        """
        pairs, panels = self.margins.shape[0], self.num_panels
        if pairs <= max_pairs and (max_panels is None or panels <= max_panels):
            yield slice(0, panels), self
            return
        columns: list[Tensor | None] = [self.margins, self.panel, self.weight, self.preferred]
        if bool((self.panel[1:] < self.panel[:-1]).any()):
            order = torch.argsort(self.panel, stable=True)
            columns = [None if column is None else column.index_select(0, order) for column in columns]
            del order
        ends = torch.cumsum(torch.bincount(self.panel, minlength=panels), 0)
        limits = [0]
        while limits[-1] < panels:
            start = limits[-1]
            reached = ends[start - 1 : start] if start else ends.new_zeros(1)
            stop = int(torch.searchsorted(ends, reached + max_pairs, right=True))
            stop = max(stop, start + 1)
            limits.append(min(stop, panels, panels if max_panels is None else start + max_panels))
        last = [0 if stop == 0 else int(ends[stop - 1]) for stop in limits]
        sizes = [stop - start for start, stop in pairwise(last)]
        # Split, not sliced: in the backward pass that is one concatenation instead of a full-size array for each piece.
        split = [[None] * len(sizes) if column is None else column.split(sizes) for column in columns]
        for (start, stop), (margins, panel, weight, preferred) in zip(
            pairwise(limits), zip(*split, strict=True), strict=True
        ):
            yield (
                slice(start, stop),
                replace(
                    self,
                    margins=margins,
                    panel=panel - start,
                    num_panels=stop - start,
                    weight=weight,
                    preferred=preferred,
                ),
            )


class _LikelihoodInBlocks(torch.autograd.Function):
    """Blocks of strengths, made again in the backward pass. (``torch.utils.checkpoint`` leaves its arrays in reference
    cycles, where they stay until the garbage collector comes.)
    """

    @staticmethod
    def forward(ctx: Any, problem: PanelProblem, margins: Tensor, strength: Tensor) -> Tensor:
        """Strength (strengths, panels or 1) to (strengths, panels)."""
        ctx.problem = problem
        ctx.save_for_backward(margins, strength)
        dtype = torch.promote_types(strength.dtype, margins.dtype)
        out = strength.new_empty((strength.shape[0], problem.num_panels), dtype=dtype)
        for part in _strength_blocks(problem, strength):
            out[part] = problem.log_likelihood_at_once(strength[part])
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Block by block; second derivatives keep the graph of all of them."""
        (grad_value,) = grad_outputs
        needed = ctx.needs_input_grad[1:]
        margins, strength = ctx.saved_tensors
        if torch.is_grad_enabled():
            arguments = [margins.view_as(margins), strength.view_as(strength)]
            value = replace(ctx.problem, margins=arguments[0]).log_likelihood_at_once(arguments[1])
            wanted = [x for x, need in zip(arguments, needed, strict=True) if need]
            grads = iter(torch.autograd.grad(value, wanted, grad_value, create_graph=True))
            return (None, *(next(grads) if need else None for need in needed))
        d_margins = torch.zeros_like(margins) if needed[0] else None
        d_strength = torch.empty_like(strength) if needed[1] else None
        for part in _strength_blocks(ctx.problem, strength):
            h, beta = margins.detach().requires_grad_(needed[0]), strength[part].detach().requires_grad_(needed[1])
            wanted = [x for x, need in ((h, needed[0]), (beta, needed[1])) if need]
            with torch.enable_grad():
                value = replace(ctx.problem, margins=h).log_likelihood_at_once(beta)
            grads = iter(torch.autograd.grad(value, wanted, grad_value[part]))
            if d_margins is not None:
                d_margins += next(grads)
            if d_strength is not None:
                d_strength[part] = next(grads)
        return None, d_margins, d_strength


def _strength_blocks(problem: PanelProblem, strength: Tensor) -> Iterator[slice]:
    size = max(1, problem.max_elements // (_BLOCK_ARRAYS * max(1, problem.margins.shape[0])))
    return (slice(start, start + size) for start in range(0, strength.shape[0], size))


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
    return log_average(problem.log_likelihood(beta.to(promote(beta.dtype, problem.margins.dtype))), method)


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


def _engine_calls(law: Distribution, problem: PanelProblem) -> tuple[Iterator[Iterator[_Rows]], torch.dtype]:
    """Calls by block of draws (outer) and piece of the panels (inner), made one by one."""
    family = log_family(law)
    params = family.parameters(law)
    dtype = promote(problem.margins.dtype, *(p.dtype for p in params))
    work = working_dtype(problem.margins.device)
    draws = math.prod(problem.batch_shape)
    flat = [
        p.to(work).reshape(1, 1) if p.numel() == 1 else p.to(work).expand(problem.shape).reshape(draws, -1)
        for p in params
    ]
    limit = problem.max_elements
    per_draw = max(1, problem.margins.shape[0], problem.num_panels * _TYPICAL_NODES)
    group = max(1, limit // per_draw)

    def inner(start: int, stop: int) -> Iterator[_Rows]:
        for rows, piece in problem.pieces(max(1, limit // _PAIR_ARRAYS), max(1, limit // _TYPICAL_NODES)):
            margins = piece.margins.to(work)
            h, against = absolute(margins), losing_part(margins, piece.weight, piece.preferred)
            losing = against.new_zeros(piece.num_panels).index_add(0, piece.panel, against)
            w = None if piece.weight is None else piece.weight.to(work)
            index = piece.panel
            n = stop - start
            if n > 1:
                shift = torch.arange(n, device=index.device).unsqueeze(-1) * piece.num_panels
                index = (index + shift).reshape(-1)
                h, losing = h.repeat(n), losing.repeat(n)
                w = None if w is None else w.repeat(n)
            of_rows = tuple(p.reshape(1) if p.numel() == 1 else p[start:stop, rows].reshape(-1) for p in flat)
            yield _Rows(of_rows, h, losing, index, w, torch.Size((n, piece.num_panels)))

    return (inner(start, min(start + group, draws)) for start in range(0, draws, group)), dtype


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
