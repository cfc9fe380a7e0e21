"""Public data sets by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from datasets import Dataset

from pluralpref.data.sets.community_alignment import read_community_alignment
from pluralpref.data.sets.hh_rlhf import read_hh_rlhf
from pluralpref.data.sets.multipref import read_multipref
from pluralpref.data.sets.pair_report import PairReport
from pluralpref.data.sets.personal import read_personal_llm_dpo, read_psoups, read_ultrafeedback_personalized
from pluralpref.data.sets.prism import read_prism
from pluralpref.data.sets.shp import read_shp
from pluralpref.data.sets.summarize_from_feedback import read_summarize_from_feedback
from pluralpref.data.sets.ultrafeedback_binarized import read_ultrafeedback_binarized
from pluralpref.errors import ConfigError

READERS: dict[str, Callable[..., tuple[Dataset, PairReport]]] = {
    "prism": read_prism,
    "community_alignment": read_community_alignment,
    "multipref": read_multipref,
    "summarize_from_feedback": read_summarize_from_feedback,
    "hh_rlhf": read_hh_rlhf,
    "shp": read_shp,
    "ultrafeedback_binarized": read_ultrafeedback_binarized,
    "psoups": read_psoups,
    "personal_llm_dpo": read_personal_llm_dpo,
    "ultrafeedback_personalized": read_ultrafeedback_personalized,
}


def known_datasets() -> list[str]:
    """Names that :func:`read_dataset` takes."""
    return sorted(READERS)


def read_dataset(name: str, source: Any = None, **options: Any) -> tuple[Dataset, PairReport]:
    """Read a public data set as preference pairs.

    :param name: see :func:`known_datasets`.
    :param source: ``None`` for its place on the Hugging Face hub; another hub name; a file or folder with its columns;
        a ``Dataset`` or ``DatasetDict``.
    :param options: the reader's own: see the functions of :data:`READERS`.
    :returns: pairs with prompt, chosen, rejected, weight, perhaps annotator and conversation, and group columns of
        text; and what was left out, by reason.
    :raises ConfigError: for an unknown name, or an option that this data set doesn't have.
    :raises DataError: if the source can't be read, isn't of the published form, or has no usable pair.
    """
    _check_options(name, options)
    return READERS[name](source, **options)


def load_named(name: str, source: str | None, options: Mapping[str, str]) -> tuple[Dataset, PairReport]:
    """:func:`read_dataset` for command lines: options are text, ``{"turns": "first", "standardize": "true"}``.

    :param source: file, folder or hub name; ``None`` or ``""`` for the data set's place on the hub.
    :param options: truth values are ``true`` or ``false``.
    :raises ConfigError: also for text that isn't of the option's type.
    :raises DataError: as :func:`read_dataset`.
    """
    _check_options(name, options)
    types = get_type_hints(READERS[name])
    return read_dataset(name, source or None, **{key: _parse(key, value, types[key]) for key, value in options.items()})


def _check_options(name: str, options: Mapping[str, Any]) -> None:
    if name not in READERS:
        raise ConfigError(f"unknown data set {name!r}: choose {', '.join(known_datasets())}")
    known = [option for option in inspect.signature(READERS[name]).parameters if option != "source"]
    for option in options:
        if option not in known:
            raise ConfigError(f"{name} has no option {option!r}: its options are {', '.join(known)}")


def _parse(option: str, value: str, kind: Any) -> Any:
    """The text as the option's type; the reader checks which values are allowed."""
    if get_origin(kind) in (Union, UnionType):
        kind = next(part for part in get_args(kind) if part is not type(None))
    if get_origin(kind) is Literal or kind is str:
        return value
    if kind is bool:
        if value.lower() not in ("true", "false"):
            raise ConfigError(f"{option}={value!r}: expected true or false")
        return value.lower() == "true"
    try:
        return kind(value)
    except ValueError:
        raise ConfigError(f"{option}={value!r}: expected a number") from None
