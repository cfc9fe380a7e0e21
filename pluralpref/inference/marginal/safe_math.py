"""Elementary functions whose values and gradients stay finite where the textbook formula breaks down."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_LOG_HALF = -math.log(2.0)


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x <= 0, accurate at both ends.

    Near 0 the form ``log(-expm1(x))`` is used, far from it ``log1p(-exp(x))`` (Mächler 2012, "Accurately
    computing log(1 - exp(-|a|))"). Both branches see only arguments for which they are smooth, so that neither
    sends a NaN through the backward pass of the other.

    :param x: any shape; a probability in logs (nats), x <= 0. An argument above 0, which only rounding can
        produce, is taken as 0.
    :returns: the same shape; -inf at x = 0 (where the gradient, which is infinite, is given as 0), 0 at -inf.
        NaN stays NaN.
    """
    at_zero = x >= 0
    near = x > _LOG_HALF
    x_near = torch.where(near & ~at_zero, x, torch.full_like(x, _LOG_HALF))
    x_far = torch.where(near, torch.full_like(x, _LOG_HALF), x)
    value = torch.where(near, torch.log(-torch.expm1(x_near)), torch.log1p(-torch.exp(x_far)))
    return torch.where(at_zero, torch.full_like(x, -math.inf), value)


def complete(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Logs of two probabilities that add up to 1, with the larger taken from the smaller.

    A probability computed near 1 doesn't tell how far from 1 it is; the other one does.

    :param one: any shape, nats, each exact in relative terms where it's the smaller.
    :param other: the same for the other probability.
    :returns: (one, other), each exact in relative terms.
    """
    smaller = one < other
    complement = log1mexp(torch.where(smaller, one, other))
    return torch.where(smaller, one, complement), torch.where(smaller, complement, other)


def absolute(x: Tensor) -> Tensor:
    """|x| whose derivative at 0 is 1 instead of 0.

    ``torch.abs`` has derivative 0 at 0. As a function of the margin, log P is smooth there with slope E[beta]/2;
    written through |h| it keeps that slope only if the kink takes one side.
    """
    return torch.where(x >= 0, x, -x)


def log_mean_exp(x: Tensor, dim: int) -> Tensor:
    """Log of the mean of exp(x) along ``dim``."""
    return torch.logsumexp(x, dim) - math.log(x.shape[dim])


def promote(*dtypes: torch.dtype) -> torch.dtype:
    """The dtype of a result that depends on tensors of these dtypes: their promotion, at least float32."""
    dtype = torch.float32
    for other in dtypes:
        if other.is_floating_point:
            dtype = torch.promote_types(dtype, other)
    return dtype


def working_dtype(device: torch.device) -> torch.dtype:
    """The dtype in which marginals are computed on ``device``: float64 wherever the device has it.

    The tensors are small (one number a pair), while a log-probability of -80 computed in float32 carries an
    absolute error of 1e-5 that becomes a relative error of the rare event's probability.
    """
    return torch.float32 if device.type == "mps" else torch.float64
