"""The reference of a policy of which only a part is trained, such as adapters: the same weights but for that part."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pluralpref.errors import ConfigError

#: Above this share of trained parameters a whole copy costs little more memory, and no exchange at every step.
_MOST_TRAINED = 0.5


class FrozenParts:
    """The policy as it was handed over, made of its own frozen weights and copies of those that are trained.

    It is the trained part that is kept, whatever it is: adapters that are fresh, so that the reference is the base model, or
    adapters that were trained before, which then belong to the reference; layers that aren't frozen; copies of whole modules
    beside adapters. The first margins are exactly 0.

    :param policy: plain or with PEFT adapters, not wrapped for distributed training.
    :raises ConfigError: when it is wrapped.
    """

    def __init__(self, policy: nn.Module) -> None:
        if isinstance(getattr(policy, "module", None), nn.Module):
            raise ConfigError(
                f"{type(policy).__name__} wraps the policy for distributed training; make the reference before it is wrapped"
            )
        self._policy = policy
        self._kept: list[tuple[nn.Parameter, Tensor]] = [
            (parameter, parameter.detach().clone()) for parameter in policy.parameters() if parameter.requires_grad
        ]

    @contextmanager
    def active(self) -> Iterator[nn.Module]:
        """The reference, within a ``with`` block in which nothing may be trained or differentiated."""
        self._exchange()
        try:
            yield self._policy
        finally:
            self._exchange()

    def _exchange(self) -> None:
        for i, (parameter, other) in enumerate(self._kept):
            own = parameter.data
            # The values of the parameter object change places; a graph that holds it gets its own back before it is used.
            parameter.data = other.to(own.device, own.dtype)
            self._kept[i] = (parameter, own)
        # Autocast keeps the 16-bit copies of parameters by the object: the policy would run with the reference's.
        torch.clear_autocast_cache()

    def parameters(self) -> Iterator[nn.Parameter]:
        """Those of the policy."""
        return self._policy.parameters()

    def num_bytes(self) -> int:
        """What the copies take."""
        return sum(other.nbytes for _, other in self._kept)


def trains_a_part(model: nn.Module) -> bool:
    """Whether less than half of the model's parameters, and at least one, are trained."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return 0 < trained < _MOST_TRAINED * sum(p.numel() for p in model.parameters())
