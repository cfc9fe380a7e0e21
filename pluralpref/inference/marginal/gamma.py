r"""Gamma preference strength in closed form.

For beta ~ Gamma(a, rate b) and z = |h|/b the geometric series of the sigmoid gives

.. math:: E[\sigma(-\beta |h|)] = \sum_{k \ge 1} (-1)^{k-1} (1 + k z)^{-a},

a value of the Lerch transcendent. The terms (1 + k z)^{-a} are the moments of a positive measure on [0, 1], which is
the hypothesis under which the acceleration of alternating series by Cohen, Rodriguez Villegas and Zagier ("Convergence
acceleration of alternating series", Experimental Mathematics 9:1, 2000, algorithm 1) has a *relative* error below
2 * 5.828^-n, whatever a and z are. So one sum of n weighted terms serves everywhere, without branches and seams.
"""

from __future__ import annotations

import functools
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Exponential, Gamma

from pluralpref.inference.marginal.dispatch import ClosedForm, register_marginal
from pluralpref.inference.marginal.quadrature import flat_parameter
from pluralpref.inference.marginal.safe_math import absolute, log1mexp, promote, working_dtype

# The value needs 22 terms in float64 and 10 in float32; the derivative in the shape, whose terms are the moments of
# a signed measure, needs a few more. Beyond that rounding grows.
_NUM_TERMS = {torch.float64: 24, torch.float32: 12}
# Above this, 1 + z and z are the same number, and the logarithm is taken of the quotient's parts.
_HUGE = 1e18
# Arrays of (pairs, terms) with this many elements stay in a CPU's cache.
_BLOCK_ELEMENTS = 2**17


@functools.lru_cache(maxsize=32)
def alternating_weights(num_terms: int) -> tuple[float, ...]:
    """Weights w_k with sum_k w_k m_k ~ sum_k (-1)^k m_k for every moment sequence m of a positive measure on [0, 1].

    w_k = (-1)^k c_k / d_n with d_n = T_n(3), T_n the Chebyshev polynomial, and c_k the partial sums of its
    coefficients, in exact integer arithmetic; rounded once.

    :param num_terms: n; the relative error of the sum is below 2 * 5.828^-n.
    """
    n = num_terms
    # d = ((3 + sqrt 8)^n + (3 - sqrt 8)^n) / 2, an integer by its recurrence.
    d_before, d = 1, 3
    for _ in range(n - 1):
        d_before, d = d, 6 * d - d_before
    weights = []
    b, c = Fraction(-1), Fraction(-d)
    for k in range(n):
        c = b - c
        weights.append(float(c / d))
        b = b * (k + n) * (k - n) / ((Fraction(2 * k + 1, 2)) * (k + 1))
    return tuple(weights)


@functools.lru_cache(maxsize=32)
def _weight_tensor(num_terms: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    # Made outside inference mode, so that a cached tensor can take part in a later backward pass.
    with torch.inference_mode(False):
        return torch.tensor(alternating_weights(num_terms), dtype=dtype, device=device)


def gamma_log_losing(shape: Tensor, rate: Tensor, magnitude: Tensor) -> Tensor:
    r"""The losing side, log E[sigmoid(-beta |h|)] for beta ~ Gamma(shape, rate), by plain tensor operations.

    With z = |h|/rate and z' = z/(1+z):
    ``-shape * log1p(z) + log sum_k w_k exp(-shape * log1p(k z'))``, w_k the weights of
    :func:`alternating_weights`.

    :param shape: a > 0, broadcastable.
    :param rate: b > 0, broadcastable.
    :param magnitude: |h| >= 0, finite.
    :returns: nats, <= -log 2, the dtype of the arguments (float32 or float64).
    """
    shape, rate, magnitude = torch.broadcast_tensors(shape, rate, magnitude)
    dtype = magnitude.dtype
    weights = _weight_tensor(_NUM_TERMS.get(dtype, 24), dtype, magnitude.device)
    with torch.no_grad():
        huge = magnitude / rate > _HUGE
        any_huge = bool(huge.any())
    if any_huge:
        # Each branch sees an argument of its own range only; the other's infinities never meet the gradient.
        one, zero = torch.ones_like(rate), torch.zeros_like(magnitude)
        z = torch.where(huge, zero, magnitude) / torch.where(huge, one, rate)
        log_z = torch.log(torch.where(huge, magnitude, one)) - torch.log(torch.where(huge, rate, one))
        log1p_z = torch.where(huge, log_z, torch.log1p(z))
        fraction = torch.where(huge, one, z / (1 + z))
    else:
        z = magnitude / rate
        log1p_z = torch.log1p(z)
        fraction = z / (1 + z)
    k = torch.arange(weights.shape[0], dtype=dtype, device=magnitude.device)
    # Derivatives are sums of exp(...), exact in relative terms however small; those of expm1 would go through 1.
    terms = torch.exp(-shape.unsqueeze(-1) * torch.log1p(fraction.unsqueeze(-1) * k))
    # A sum for each row, not a product of matrices, whose rounding depends on the other rows of the batch.
    return torch.log((terms * weights).sum(-1)) - shape * log1p_z


def _log_choice(shape: Tensor, rate: Tensor, margins: Tensor) -> Tensor:
    """Log E[sigmoid(beta h)] by plain tensor operations: for second derivatives."""
    log_losing = gamma_log_losing(shape, rate, absolute(margins))
    return torch.where(margins >= 0, log1mexp(log_losing), log_losing)


class _GammaChoice(torch.autograd.Function):
    """First derivatives come out of the sums of the forward pass; second ones from :func:`_log_choice`.

    Backward through the plain formula would make half a dozen arrays of (pairs, terms), too large for a cache.
    """

    @staticmethod
    def forward(ctx: Any, shape: Tensor, rate: Tensor, margins: Tensor) -> Tensor:
        """Margins (pairs,); shape and rate (pairs,) or (1,)."""
        derivatives = any(ctx.needs_input_grad)
        out = torch.empty((4 if derivatives else 1, *margins.shape), dtype=margins.dtype, device=margins.device)
        size = max(1, _BLOCK_ELEMENTS // _NUM_TERMS.get(margins.dtype, 24))
        for start in range(0, margins.shape[0], size):
            part = slice(start, start + size)
            a, b = (p if p.shape[0] == 1 else p[part] for p in (shape, rate))
            _fill_block(a, b, margins[part], out[:, part])
        if derivatives:
            ctx.save_for_backward(shape, rate, margins)
            ctx.first = out[1:]
        return out[0]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Products with the derivatives of the forward pass."""
        (grad_value,) = grad_outputs
        needed = ctx.needs_input_grad
        if torch.is_grad_enabled():
            # Fresh views: the rate may be a function of the shape, and must not count twice.
            arguments = [x.view_as(x) for x in ctx.saved_tensors]
            wanted = [x for x, need in zip(arguments, needed, strict=True) if need]
            grads = iter(torch.autograd.grad(_log_choice(*arguments), wanted, grad_value, create_graph=True))
            return tuple(next(grads) if need else None for need in needed)
        return tuple(
            (grad_value * first).sum_to_size(x.shape) if need else None
            for first, x, need in zip(ctx.first, ctx.saved_tensors, needed, strict=True)
        )


def _fill_block(shape: Tensor, rate: Tensor, margins: Tensor, out: Tensor) -> None:
    """Log E[sigmoid(beta h)] into ``out[0]`` and, if there are more rows, its derivatives in shape, rate and h."""
    wins = margins >= 0
    magnitude = torch.where(wins, margins, -margins)
    dtype = magnitude.dtype
    weights = _weight_tensor(_NUM_TERMS.get(dtype, 24), dtype, magnitude.device)[1:]
    # The weights sum to 1/2. Summing the terms less 1 makes the value at h = 0 exactly that; the term k = 0 drops out.
    k = torch.arange(1, weights.shape[0] + 1, dtype=dtype, device=magnitude.device)
    log1p_z, fraction, complement, huge = _ratio(rate, magnitude)
    logs = (fraction.unsqueeze(-1) * k).log1p_()
    terms = torch.mul(logs, -shape.unsqueeze(-1)).expm1_()
    total = 0.5 + (terms * weights).sum(-1)
    log_losing = torch.log(total) - shape * log1p_z
    out[0] = torch.where(wins, log1mexp(log_losing), log_losing)
    if out.shape[0] == 1:
        return
    terms.add_(1).mul_(weights)
    d_shape = -log1p_z - logs.mul_(terms).sum(-1) / total
    # k / (1 + k z') = 1 / (1/k + z').
    pull = terms.div_(torch.add(fraction.unsqueeze(-1), 1 / k, out=logs)).sum(-1) / total
    # The derivatives in z and in log z are this over 1 + z and times z'.
    slope = -shape * (1 + pull * complement)
    d_log_z = slope * fraction
    d_magnitude = slope * complement / rate
    if huge is not None:
        d_magnitude = torch.where(huge, d_log_z / magnitude, d_magnitude)
    # d log(1 - Q) = -Q/(1 - Q) d log Q, and |h| falls where h < 0 rises.
    factor = torch.where(wins, -1 / torch.expm1(-log_losing), 1.0)
    out[1] = d_shape * factor
    out[2] = -d_log_z / rate * factor
    out[3] = d_magnitude * torch.where(wins, factor, -1.0)


def _ratio(rate: Tensor, magnitude: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """log1p(z), z/(1+z), 1/(1+z), and where z is above :data:`_HUGE` (None for nowhere); z = magnitude/rate."""
    z = magnitude / rate
    huge = z > _HUGE
    complement = 1 / (1 + z)
    if not bool(huge.any()):
        return torch.log1p(z), z * complement, complement, None
    log_z = torch.log(magnitude) - torch.log(rate)
    fraction = torch.where(huge, 1.0, z * complement)
    return torch.where(huge, log_z, torch.log1p(z)), fraction, complement, huge


def _gamma_marginal(shape: Tensor, rate: Tensor, margins: Tensor) -> Tensor:
    dtype = promote(shape.dtype, margins.dtype)
    work = working_dtype(margins.device)
    size = torch.broadcast_shapes(shape.shape, rate.shape, margins.shape)
    flat = (flat_parameter(p, work, size) for p in (shape, rate))
    return _GammaChoice.apply(*flat, margins.to(work).expand(size).reshape(-1)).reshape(size).to(dtype)


@register_marginal(Gamma, ClosedForm)
def _gamma(law: Gamma, margins: Tensor, method: ClosedForm) -> Tensor:
    """Gamma and its subclasses (Chi2)."""
    return _gamma_marginal(law.concentration, law.rate, margins)


@register_marginal(Exponential, ClosedForm)
def _exponential(law: Exponential, margins: Tensor, method: ClosedForm) -> Tensor:
    """An Exponential is a Gamma of shape 1."""
    return _gamma_marginal(torch.ones_like(law.rate), law.rate, margins)
