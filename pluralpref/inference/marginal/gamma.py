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

import torch
from torch import Tensor
from torch.distributions import Exponential, Gamma

from pluralpref.inference.marginal.dispatch import ClosedForm, register_marginal
from pluralpref.inference.marginal.safe_math import absolute, log1mexp, promote, working_dtype

# The value needs 22 terms in float64 and 10 in float32; the derivative in the shape, whose terms are the moments of
# a signed measure, needs a few more. Beyond that rounding grows.
_NUM_TERMS = {torch.float64: 24, torch.float32: 12}
# Above this, 1 + z and z are the same number, and the logarithm is taken of the quotient's parts.
_HUGE = 1e18


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
    r"""The losing side, log E[sigmoid(-beta |h|)] for beta ~ Gamma(shape, rate).

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
    # The weights sum to 1/2. Summing the terms less 1 makes the value at h = 0 exactly that.
    terms = torch.expm1(-shape.unsqueeze(-1) * torch.log1p(fraction.unsqueeze(-1) * k))
    # A sum for each row, not a product of matrices, whose rounding depends on the other rows of the batch.
    return -shape * log1p_z + torch.log(0.5 + (terms * weights).sum(-1))


def _gamma_marginal(shape: Tensor, rate: Tensor, margins: Tensor) -> Tensor:
    dtype = promote(shape.dtype, margins.dtype)
    work = working_dtype(margins.device)
    h = margins.to(work)
    log_losing = gamma_log_losing(shape.to(work), rate.to(work), absolute(h))
    h = h.expand(log_losing.shape)
    return torch.where(h >= 0, log1mexp(log_losing), log_losing).to(dtype)


@register_marginal(Gamma, ClosedForm)
def _gamma(law: Gamma, margins: Tensor, method: ClosedForm) -> Tensor:
    """Gamma and its subclasses (Chi2)."""
    return _gamma_marginal(law.concentration, law.rate, margins)


@register_marginal(Exponential, ClosedForm)
def _exponential(law: Exponential, margins: Tensor, method: ClosedForm) -> Tensor:
    """An Exponential is a Gamma of shape 1."""
    return _gamma_marginal(torch.ones_like(law.rate), law.rate, margins)
