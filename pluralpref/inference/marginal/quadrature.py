"""One pair by quadrature: families of positive laws without a closed form, and a check on those that have one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from pluralpref.errors import UnsupportedError
from pluralpref.inference.marginal.dispatch import (
    Quadrature,
    register_marginal,
)
from pluralpref.inference.marginal.log_families import LOG_FAMILIES, LogFamily
from pluralpref.inference.marginal.safe_math import absolute, log1mexp, promote, working_dtype
from pluralpref.inference.marginal.trapezoid import log_integral


def log_family(law: Distribution) -> LogFamily:
    """The entry of the law's class, or of the nearest base class.

    :raises UnsupportedError: if there is none.
    """
    for cls in type(law).__mro__:
        if cls in LOG_FAMILIES:
            return LOG_FAMILIES[cls]
    names = ", ".join(cls.__name__ for cls in LOG_FAMILIES)
    raise UnsupportedError(
        f"{type(law).__name__} has no quadrature of its own; the families that have one are {names}. Use "
        "MonteCarlo(num_samples=...)."
    )


def has_log_family(law: Distribution) -> bool:
    """Whether the law's class, or one of its bases, is one of those that the engine knows."""
    return any(cls in LOG_FAMILIES for cls in type(law).__mro__)


def flat_parameter(parameter: Tensor, dtype: torch.dtype, shape: torch.Size) -> Tensor:
    """One parameter as the engine wants it: (1,) if it is the same for all rows, else (rows,)."""
    parameter = parameter.to(dtype)
    return parameter.reshape(1) if parameter.numel() == 1 else parameter.expand(shape).reshape(-1)


class _Choice(torch.autograd.Function):
    """log(1 - exp(x)) where the choice wins, else x; its first derivative costs one exp and one expm1."""

    @staticmethod
    def forward(ctx: Any, losing: Tensor, wins: Tensor) -> Tensor:
        """Both of one shape; ``losing`` <= 0."""
        ctx.save_for_backward(losing, wins)
        return torch.where(wins, log1mexp(losing), losing)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        """The product with exp(x)/(exp(x) - 1), or with 1; differentiable."""
        losing, wins = ctx.saved_tensors
        # At x = 0, which only rounding makes, the slope is infinite and taken as 0, as in log1mexp.
        known = wins & (losing < 0)
        # Not -1/(exp(-x) - 1), which overflows below x = -709: its derivative is then 0 times infinity.
        x = torch.where(known, losing, -1.0)
        slope = torch.exp(x) / torch.expm1(x)
        return grad_outputs[0] * torch.where(known, slope, torch.where(wins, 0.0, 1.0)), None


def _quadrature(law: Distribution, margins: Tensor, method: Quadrature, *, with_error: bool) -> tuple[Tensor, Tensor]:
    family = log_family(law)
    params = family.parameters(law)
    shape = torch.broadcast_shapes(law.batch_shape, margins.shape)
    dtype = promote(margins.dtype, *(p.dtype for p in params))
    work = working_dtype(margins.device)
    h = margins.to(work)
    flat = tuple(flat_parameter(p, work, shape) for p in params)
    # The losing side is integrated, which keeps its relative accuracy however small it is.
    losing, error = log_integral(
        family, flat, absolute(h).expand(shape).reshape(-1), None, method, with_error=with_error
    )
    losing = losing.reshape(shape)
    wins = (h >= 0).expand(shape)
    value = _Choice.apply(losing, wins).to(dtype)
    if not with_error:
        return value, error
    with torch.no_grad():
        error = error.reshape(shape)
        error = torch.where(wins, error / torch.expm1(-losing), error)
        # The result is rounded to its dtype.
        return value, error.to(dtype) + torch.finfo(dtype).eps * torch.abs(value)


def _log_marginal_quadrature(law: Distribution, margins: Tensor, method: Quadrature) -> Tensor:
    return _quadrature(law, margins, method, with_error=False)[0]


for _family in LOG_FAMILIES:
    register_marginal(_family, Quadrature)(_log_marginal_quadrature)


def quadrature_with_error(law: Distribution, margins: Tensor, method: Quadrature) -> tuple[Tensor, Tensor]:
    """The value and an estimate of its absolute error, both of shape ``broadcast(law.batch_shape, margins.shape)``.

    The error of the rule with every second node is seen by comparison; the error of the full rule is about its
    square, which is what is reported, times 10 and with a few roundings added.

    :raises UnsupportedError: for a family without quadrature.
    """
    return _quadrature(law, margins, method, with_error=True)
