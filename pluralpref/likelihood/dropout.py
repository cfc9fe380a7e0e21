"""Dropout of every kind off, without touching the model's config or its gradient checkpointing.

Why not simply ``model.eval()``: transformers checkpoints a layer only while ``layer.training`` is true, and its
``Trainer`` calls ``model.train()`` before every step. Why not simply ``p = 0`` in the ``nn.Dropout`` modules:
attention dropout is a plain float of the attention module in Llama and its kin, read by a functional dropout, and some
modules read the config instead. Why not a context around the forward: under gradient checkpointing the backward pass
runs the layers again, after such a context has closed.

So the switch is a lasting state of the modules, made of two parts: every dropout probability that a module holds is
zero, and ``model.train()`` leaves all modules in evaluation mode except the root and those that need the flag to
checkpoint. Each part alone covers nearly every model; together they leave only modules that checkpoint *and* read a
probability from the config, which are refused by name. The config is never written, so ``config.json`` keeps its
values.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from pluralpref.errors import UnsupportedError

_PROBABILITY_NAME = re.compile(r"drop|jitter")
_CONFIG_READ = re.compile(r"self\.config\.(\w*(?:drop|jitter)\w*)")


def _probabilities(module: nn.Module) -> list[str]:
    """Names of the attributes of ``module`` that hold a positive dropout probability."""
    is_dropout = isinstance(module, nn.modules.dropout._DropoutNd)
    return [
        name
        for name, value in vars(module).items()
        if isinstance(value, float) and value > 0 and ((is_dropout and name == "p") or _PROBABILITY_NAME.search(name))
    ]


def _checkpoints(module: nn.Module) -> bool:
    return bool(getattr(module, "gradient_checkpointing", False))


def _refuse_config_reads(module: nn.Module) -> None:
    """Refuse a module that stays in training mode and reads a positive dropout probability from its config."""
    config = getattr(module, "config", None)
    if config is None:
        return
    try:
        source = inspect.getsource(type(module).forward)
    except (OSError, TypeError):
        return
    for name in sorted(set(_CONFIG_READ.findall(source))):
        value = getattr(config, name, 0)
        if isinstance(value, float) and value > 0:
            raise UnsupportedError(
                f"{type(module).__name__} reads {name}={value} from the model's config while it checkpoints, so dropout "
                f"can't be switched off around it; build the model with {name}=0.0, or switch gradient checkpointing off"
            )


class _TrainWithoutDropout:
    """Stands in for ``model.train``. A class, not a closure, so that the model can still be copied and pickled."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, mode: bool = True) -> nn.Module:
        model = self.model
        if mode and model.training and all(m.training == _checkpoints(m) for m in model.modules() if m is not model):
            # transformers asks for it before every step, and setting a flag is slow.
            return model
        type(model).train(model, mode)
        if mode:
            for module in model.modules():
                if module is model:
                    continue
                if _checkpoints(module):
                    _refuse_config_reads(module)
                else:
                    module.training = False
        return model


class DropoutSwitch:
    """What :func:`disable_dropout` did to a model, so that it can be undone.

    :param model: the model whose dropout is off from here on.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._probabilities: list[tuple[nn.Module, str, float]] = []
        self._flags = [(module, module.training) for module in model.modules()]
        for module in model.modules():
            for name in _probabilities(module):
                self._probabilities.append((module, name, getattr(module, name)))
                setattr(module, name, 0.0)
        vars(model)["train"] = _TrainWithoutDropout(model)
        model.train(model.training)

    def restore(self) -> None:
        """Give every module its dropout probability and its mode back; safe to call twice."""
        vars(self._model).pop("train", None)
        for module, name, value in self._probabilities:
            setattr(module, name, value)
        for module, training in self._flags:
            module.training = training
        self._probabilities, self._flags = [], []


def dropout_is_disabled(model: nn.Module) -> bool:
    """Whether :func:`disable_dropout` is in force for ``model``."""
    return isinstance(vars(model).get("train"), _TrainWithoutDropout)


def disable_dropout(model: nn.Module) -> DropoutSwitch:
    """Switch dropout of every kind off for good: modules, functional attention dropout, layer drop, PEFT's dropout.

    It holds through later calls of ``model.train()`` and ``model.eval()``, with gradient checkpointing (also when
    that is switched on afterwards) and in its recomputation. The config keeps its values. Calling it again covers
    modules added since.

    :param model: any module; changed in place.
    :returns: a :class:`DropoutSwitch` whose ``restore()`` undoes it.
    :raises UnsupportedError: when a checkpointing module reads its dropout from the config (at ``model.train()``).
    """
    return DropoutSwitch(model)


@contextmanager
def no_dropout(model: nn.Module) -> Iterator[nn.Module]:
    """Switch dropout off within a ``with`` block and restore everything at its end.

    With gradient checkpointing the backward pass must run inside the block as well, for it runs the layers again;
    for training use :func:`disable_dropout`.

    :param model: any module.
    """
    if dropout_is_disabled(model):
        yield model
        return
    switch = DropoutSwitch(model)
    try:
        yield model
    finally:
        switch.restore()
