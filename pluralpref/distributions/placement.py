"""A distribution on another device."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Transform
from torch.distributions.constraints import Constraint


def on_device(value: Any, device: torch.device) -> Any:
    """``value`` with all tensors inside of it on ``device``; the same object where they are there already.

    Looked into are distributions, their transforms and constraints, and lists, tuples and dictionaries of those.

    :param value: a distribution.
    """
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, list | tuple):
        items = [on_device(item, device) for item in value]
        same = all(new is old for new, old in zip(items, value, strict=True))
        return value if same or type(value) not in (list, tuple) else type(value)(items)
    if isinstance(value, dict):
        moved = {key: on_device(item, device) for key, item in value.items()}
        return value if all(moved[key] is value[key] for key in value) else moved
    if not isinstance(value, Distribution | Transform | Constraint):
        return value
    inside = on_device(value.__dict__, device)
    if inside is value.__dict__:
        return value
    result = copy.copy(value)
    result.__dict__.update(inside)
    return result
