r"""Conversations as plain text, for models that have no chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset

from pluralpref.data.hh import ASSISTANT, HUMAN
from pluralpref.errors import ConfigError, DataError

_SPEAKERS = {"user": HUMAN, "assistant": ASSISTANT}
_COLUMNS = ("prompt", "chosen", "rejected")


def as_transcripts(dataset: Dataset) -> Dataset:
    r"""Messages as the text of HH-RLHF's transcripts, ``"\n\nHuman: …\n\nAssistant: …"``.

    The prompt ends with ``"\n\nAssistant:"``, an answer starts with a space. A system message comes first, as it is.

    :param dataset: with prompt, chosen and rejected, lists of messages.
    :returns: the same rows with these columns as text.
    :raises ConfigError: if they are text already.
    :raises DataError: for another role, or an answer that isn't one message of the assistant.
    """
    missing = [name for name in _COLUMNS if name not in dataset.column_names]
    if missing:
        raise DataError(
            f"no column {missing[0]!r} to write as a transcript: there are {', '.join(dataset.column_names)}"
        )
    if len(dataset) and all(isinstance(dataset[0][name], str) for name in _COLUMNS):
        raise ConfigError("the data set is text already, so writing conversations as text has no effect: leave it out")
    return dataset.map(_write, with_indices=True, remove_columns=list(_COLUMNS), desc="Writing transcripts")


def _write(row: Mapping[str, Any], number: int) -> dict[str, str]:
    prompt = "".join(_turn(message, number) for message in row["prompt"]).lstrip(" ")
    return {"prompt": prompt + ASSISTANT, **{side: _answer(row[side], number, side) for side in ("chosen", "rejected")}}


def _turn(message: Mapping[str, Any], number: int) -> str:
    if message["role"] == "system":
        return str(message["content"])
    if message["role"] not in _SPEAKERS:
        raise DataError(f"row {number}: a transcript has no place for the role {message['role']!r}")
    return f"{_SPEAKERS[message['role']]} {message['content']}"


def _answer(messages: Sequence[Mapping[str, Any]], number: int, side: str) -> str:
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        raise DataError(f"row {number}: column {side!r} isn't one message of the assistant")
    return f" {messages[0]['content']}"
