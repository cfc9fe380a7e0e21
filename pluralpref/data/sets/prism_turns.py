"""The turns of a PRISM conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pluralpref.errors import DataError

#: What PRISM writes for a text that is empty.
EMPTY = "EMPTY STRING"


@dataclass(frozen=True)
class Turn:
    """What a person asked, and the answers that were shown.

    :param number: 0 for the opening turn.
    :param prompt: ``""`` if there is none.
    :param answers: in the order of within_turn_id, which is random; ``""`` for an empty one.
    :param scores: 1 to 100, or ``None``.
    :param chosen: position of the chosen answer, ``None`` if it isn't one.
    """

    number: int
    prompt: str
    answers: Sequence[str]
    scores: Sequence[float | None]
    chosen: int | None


def turns_of(history: Sequence[Mapping[str, Any]] | None, row: int) -> list[Turn]:
    """The turns of a ``conversation_history``, in order.

    :raises DataError: for a speaker that is neither ``user`` nor ``model``.
    """
    items: dict[int, list[Mapping[str, Any]]] = {}
    for item in history or ():
        if item.get("role") not in ("user", "model"):
            raise DataError(
                f"row {row}: conversation_history has the role {item.get('role')!r}; PRISM's are 'user' and 'model'"
            )
        if item.get("turn") is None:
            raise DataError(f"row {row}: an entry of conversation_history has no turn")
        items.setdefault(int(item["turn"]), []).append(item)
    return [_turn(number, items[number]) for number in sorted(items)]


def _turn(number: int, items: Sequence[Mapping[str, Any]]) -> Turn:
    prompts = [_content(item) for item in items if item["role"] == "user"]
    replies = sorted(
        (item for item in items if item["role"] == "model"), key=lambda item: item.get("within_turn_id") or 0
    )
    answers = [_content(reply) for reply in replies]
    chosen = [i for i, reply in enumerate(replies) if reply.get("if_chosen")]
    # After the opening turn if_chosen is computed by text, so it's true of both where the texts are the same.
    same = len({answers[i] for i in chosen}) == 1
    scores = [None if reply.get("score") is None else float(reply["score"]) for reply in replies]
    return Turn(number, prompts[0] if prompts else "", answers, scores, chosen[0] if same else None)


def _content(item: Mapping[str, Any]) -> str:
    content = str(item.get("content") or "")
    return "" if content.strip() in ("", EMPTY) else content
