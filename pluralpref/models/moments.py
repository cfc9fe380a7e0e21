"""Which pair of parameters a family was given: its moments, or its own."""

from __future__ import annotations

from typing import Any

from pluralpref.errors import ConfigError


def choose_parameters(family: str, mean: Any, cv: Any, **own: Any) -> bool:
    """Whether the family is made from ``mean`` and ``cv`` (also when nothing is given) or from its own parameters.

    :param family: the family's name, for the message.
    :param own: the family's own parameters by name; ``None`` means not given.
    :returns: ``True`` for moments.
    :raises ConfigError: if the two kinds are mixed, only some of the family's own are given, or the cv is 0.
    """
    given = [name for name, value in own.items() if value is not None]
    if given and (mean is not None or cv is not None):
        raise ConfigError(f"{family}: give mean and cv, or {' and '.join(own)}, not a mixture of both")
    if given and len(given) < len(own):
        missing = ", ".join(name for name in own if name not in given)
        raise ConfigError(f"{family}: {given[0]} was given without {missing}")
    if isinstance(cv, int | float) and cv == 0:
        raise ConfigError(f"{family}: cv=0 is a point mass; use FixedStrength")
    return not given
