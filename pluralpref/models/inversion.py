"""Parameters of a family from a moment that has no inverse in closed form."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_STEPS = 25
_LONGEST_STEP = 2.0
#: A last step this short leaves an error that the two steps with their graph make smaller than rounding.
_CLOSE = 1e-5


def invert(function: Callable[[Tensor], tuple[Tensor, Tensor]], target: Tensor, start: Tensor) -> Tensor:
    """X with ``function(x)[0] = target``, twice differentiable in ``target``; Newton's method, elementwise.

    :param function: gives a value and its derivative; strictly monotone and near a straight line in the coordinates that
        are used, so that no step needs a safeguard but a bound on its length.
    :param target: values of the function.
    :param start: where to begin, the shape of ``target``.
    """
    with torch.no_grad():
        x = start.detach()
        for _ in range(_STEPS):
            step = _newton(function, x, target)
            x = x - step.clamp(-_LONGEST_STEP, _LONGEST_STEP)
            if bool((step.abs() <= _CLOSE * (1 + x.abs())).all()):
                break
    # From the root on, each step with its graph doubles the number of derivatives that are right, and adds one.
    for _ in range(2):
        x = x - _newton(function, x, target)
    return x


def _newton(function: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor, target: Tensor) -> Tensor:
    value, slope = function(x)
    return (value - target) / slope
