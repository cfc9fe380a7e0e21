"""Values of a row as the pairs take them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pluralpref.errors import ConfigError, DataError

#: Value of a group column where nothing is known.
UNKNOWN = "unknown"


def text(row: Mapping[str, Any], column: str, number: int) -> str:
    """The text in ``column``; ``""`` if it's missing.

    :raises DataError: if it's anything but text or a number.
    """
    value = row.get(column)
    if value is None:
        return ""
    if isinstance(value, str | int | float):
        return str(value)
    raise DataError(f"row {number}: column {column!r} is a {type(value).__name__}; expected text")


def label(value: Any) -> str:
    """A group's name: text as it is, truth values in lower case, ``"unknown"`` if missing or empty."""
    if value is None or str(value).strip() == "":
        return UNKNOWN
    plain = str(value)
    return plain.lower() if plain.lower() in ("true", "false") else plain


def whole_number(value: Any) -> int | None:
    """An integer that may come as text, as in CSV files; ``None`` if it isn't one."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return int(number) if number.is_integer() else None


def said(role: str, content: str) -> list[dict[str, str]]:
    """One message as a list of messages."""
    return [{"role": role, "content": content}]


def check_choice(option: str, value: Any, allowed: Sequence[Any]) -> None:
    """Refuse a value that isn't among the allowed ones.

    :raises ConfigError: naming option and values.
    """
    if value not in allowed:
        raise ConfigError(f"{option}={value!r}: choose {', '.join(map(repr, allowed))}")


def check_tie_threshold(tie_threshold: float | None) -> None:
    """Refuse a difference of scores that can't be one.

    :raises ConfigError: unless it is ``None`` or finite and at least 0.
    """
    if tie_threshold is not None and not 0 <= tie_threshold < float("inf"):
        raise ConfigError(f"tie_threshold={tie_threshold}: expected a finite number of at least 0")
