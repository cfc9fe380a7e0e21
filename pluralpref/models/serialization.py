"""Saving a strength model as two small files that need no pickle."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyro.distributions
import torch
from safetensors.torch import load_file, save_file

from pluralpref._version import __version__
from pluralpref.atomic import written_aside
from pluralpref.errors import ConfigError, DataError

WEIGHTS_NAME = "strength.safetensors"
CONFIG_NAME = "strength.json"

# Families that from_pretrained can build from their name alone; filled by `register_family`.
_FAMILIES: dict[str, type] = {}


def describe_arguments(prior: torch.distributions.Distribution) -> str:
    """A distribution as a person would write it, ``LogNormal(loc=0, scale=1)``."""
    try:
        spec = _encode("prior", prior)
    except ConfigError:  # not one of the distributions that can be written as a line
        return repr(prior)
    values = ", ".join(f"{name}={_short(value)}" for name, value in spec["arguments"].items())
    return f"{spec['distribution']}({values})"


def _short(value: Any) -> str:
    if not isinstance(value, list):
        return f"{value:.4g}"
    shown = value if len(value) <= 6 else [*value[:3], None, *value[-2:]]
    return "[" + ", ".join("…" if item is None else _short(item) for item in shown) + "]"


class PretrainedStrength(torch.nn.Module):
    """``save_pretrained`` and ``from_pretrained`` for strength models, named and used as in transformers."""

    # The arguments of construction, recorded so that a saved model can be built again.
    _arguments: tuple[tuple[Any, ...], dict[str, Any]]

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Write ``strength.safetensors`` (parameters) and ``strength.json`` (class and constructor arguments).

        Each file is written aside and renamed, so that a reader never sees half of one.

        :param directory: created if needed.
        :raises ConfigError: if a constructor argument can't be written as JSON.
        """
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        config = {**self.configuration(), "pluralpref_version": __version__}
        state = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        with written_aside(folder / WEIGHTS_NAME) as partial:
            save_file(state, partial)
        with written_aside(folder / CONFIG_NAME) as partial:
            partial.write_text(json.dumps(config, indent=2) + "\n")

    def configuration(self) -> dict[str, Any]:
        """Class name and constructor arguments, as JSON knows them.

        :raises ConfigError: if an argument can't be written as JSON.
        """
        args, kwargs = self._arguments
        return {
            "class": type(self).__name__,
            "module": type(self).__module__,
            "args": [_encode(f"argument {i}", value) for i, value in enumerate(args)],
            "kwargs": {name: _encode(name, value) for name, value in kwargs.items()},
        }

    @classmethod
    def from_pretrained(cls, directory: str | os.PathLike[str]) -> Self:
        """Build the model that :meth:`save_pretrained` wrote.

        Called on :class:`~pluralpref.models.StrengthModel` it finds built-in families by name; a family of your
        own is loaded through its own class (``WeibullStrength.from_pretrained(...)``), since no code is imported
        on the word of a file.

        :raises DataError: if the folder holds no saved strength model, or a damaged one.
        :raises ConfigError: if the saved class is neither built in nor ``cls``.
        """
        folder = Path(directory)
        try:
            config = json.loads((folder / CONFIG_NAME).read_text())
        except FileNotFoundError:
            raise DataError(f"{folder} holds no {CONFIG_NAME}: not a saved strength model") from None
        except json.JSONDecodeError as error:
            raise DataError(f"{folder / CONFIG_NAME} is damaged: {error}") from None
        if not isinstance(config, dict) or not {"class", "args", "kwargs"} <= set(config):
            raise DataError(f"{folder / CONFIG_NAME} is damaged: it must hold class, args and kwargs")
        try:
            model = cls.from_configuration(config)
        except ConfigError as error:
            raise ConfigError(f"{folder}: {error}") from None
        model.load_strength(folder)
        return model

    @classmethod
    def from_configuration(cls, config: Mapping[str, Any]) -> Self:
        """Build a model, with its parameters where its arguments put them, from what :meth:`configuration` gave.

        Called on :class:`~pluralpref.models.StrengthModel` it finds built-in and registered families by name.

        :raises ConfigError: if the class is neither known nor ``cls``.
        """
        name = config["class"]
        registered = _registered(config)
        family = cls if cls.__name__ == name else registered
        if family is None or not issubclass(family, cls):
            raise ConfigError(
                f"a {name} was saved, which is not "
                + (f"a {cls.__name__}" if registered is not None else "built in")
                + f": load it with {name}.from_pretrained(...)"
            )
        model: Self = _build(family, config)
        return model

    def load_strength(self, directory: str | os.PathLike[str]) -> None:
        """Load parameters saved by :meth:`save_pretrained` into this model.

        :raises DataError: if the file is missing, damaged, or of a model with other parameters.
        """
        path = Path(directory) / WEIGHTS_NAME
        try:
            state = load_file(path)
        except FileNotFoundError:
            raise DataError(f"{path} is missing: not a saved strength model") from None
        except Exception as error:  # safetensors has an exception of its own for each kind of damage
            raise DataError(f"{path} can't be read: {error}") from None
        expected = self.state_dict()
        if set(state) != set(expected) or any(state[k].shape != expected[k].shape for k in state):
            raise DataError(
                f"{path} holds {sorted(state)} but {type(self).__name__} needs {sorted(expected)}: "
                "it was saved by another family or parameterisation"
            )
        self.load_state_dict(state)


def register_family(family: type) -> type:
    """Let ``StrengthModel.from_pretrained`` find ``family`` by its class name (a decorator)."""
    _FAMILIES[family.__name__] = family
    return family


def _registered(config: Mapping[str, Any]) -> type | None:
    """The family of that name, unless another module's class of the same name was saved."""
    family = _FAMILIES.get(config["class"])
    return family if family is not None and config.get("module", family.__module__) == family.__module__ else None


def _build(family: type, config: Mapping[str, Any]) -> Any:
    args = [_decode(value) for value in config["args"]]
    return family(*args, **{key: _decode(value) for key, value in config["kwargs"].items()})


def _encode(name: str, value: Any) -> Any:
    if isinstance(value, np.generic):  # some of which are Python numbers too
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return value.item()
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if hasattr(value, "tolist"):  # NumPy's arrays and numbers, columns of pandas
        return _encode(name, value.tolist())
    if isinstance(value, list | tuple):
        return [_encode(name, item) for item in value]
    if isinstance(value, PretrainedStrength):
        return {"strength": value.configuration()}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {"mapping": {key: _encode(f"{name}[{key!r}]", item) for key, item in value.items()}}
    if isinstance(value, torch.distributions.Distribution) and (spec := _encode_distribution(value)) is not None:
        return spec
    raise ConfigError(
        f"{name}={value!r} can't be saved as JSON: construct the strength model from numbers, strings, "
        "Pyro distributions of numbers or of independent ones, or other strength models"
    )


def _encode_distribution(value: torch.distributions.Distribution) -> dict[str, Any] | None:
    """Class and arguments; ``None`` if they don't say it all."""
    event_dims, law = 0, value
    while isinstance(law, torch.distributions.Independent):
        event_dims, law = event_dims + law.reinterpreted_batch_ndims, law.base_dist
    arguments = {key: torch.as_tensor(getattr(law, key)) for key in law.arg_constraints if hasattr(law, key)}
    single = all(argument.numel() == 1 for argument in arguments.values())
    vector = bool(law.event_shape)
    # Laws over vectors by themselves may have several names for one argument, as a covariance matrix has; not so where
    # none can be left out.
    if vector and not _all_required(type(law), arguments):
        return None
    if not arguments or (not single and event_dims == 0 and not vector):
        return None
    spec: dict[str, Any] = {
        "distribution": type(law).__name__,
        "arguments": {key: a.tolist() if event_dims or vector else a.item() for key, a in arguments.items()},
    }
    return {**spec, "event_dims": event_dims} if event_dims else spec


def _all_required(kind: type, names: Iterable[str]) -> bool:
    """Whether all of the constructor's arguments are these, and none has a default."""
    declared: Any = inspect.signature(kind).parameters
    required = {name for name, parameter in declared.items() if parameter.default is inspect.Parameter.empty}
    return required == set(names) and set(declared) <= {*required, "validate_args"}


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if isinstance(value, dict) and "mapping" in value:
        return {key: _decode(item) for key, item in value["mapping"].items()}
    if isinstance(value, dict) and "strength" in value:
        part = value["strength"]
        family = _registered(part)
        if family is None:
            raise ConfigError(
                f"the saved strength model is made of a {part['class']}, which is not built in: decorate that class with "
                "@register_family before loading"
            )
        return _build(family, part)
    if isinstance(value, dict):
        kind: Any = getattr(pyro.distributions, value["distribution"], None)
        if not (isinstance(kind, type) and issubclass(kind, torch.distributions.Distribution)):
            raise DataError(f"{value['distribution']!r} is no Pyro distribution")
        build: Any = kind
        law = build(**{key: torch.tensor(v, dtype=torch.float64) for key, v in value["arguments"].items()})
        return law.to_event(value["event_dims"]) if "event_dims" in value else law
    return value
