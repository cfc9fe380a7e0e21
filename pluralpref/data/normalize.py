"""One row of any of the accepted forms as prompt, chosen and rejected."""

from __future__ import annotations

from os.path import commonprefix
from typing import Any

from pluralpref.data import hh
from pluralpref.errors import DataError

#: Roles that ask; they have no place in an answer.
_ASKING = ("system", "developer", "user")


def normalize_row(row: dict[str, Any], number: int, hh_format: str) -> tuple[dict[str, Any], str | None]:
    """Prompt, chosen and rejected of ``row``, all strings or all lists of messages.

    An implicit prompt is what both answers start with: the shared leading messages, the HH transcript up to its last
    shared assistant turn, or the longest common prefix of two texts, cut back to where neither answer is empty.

    :param row: the columns chosen, rejected and perhaps prompt.
    :param number: the row's number, for messages.
    :param hh_format: ``"text"`` or ``"chat"``.
    :returns: the three fields, and the reason to skip the row or ``None``.
    :raises DataError: if the kinds of the fields differ, or aren't text or messages.
    """
    chosen, rejected, prompt = row["chosen"], row["rejected"], row.get("prompt")
    for name, value in (("chosen", chosen), ("rejected", rejected), ("prompt", prompt)):
        check_field(name, value, number)
    blank = {"prompt": "", "chosen": "", "rejected": ""}
    if not chosen or not rejected:
        return blank, "empty_answer"
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise DataError(
            f"row {number}: chosen is {_kind(chosen)} but rejected is {_kind(rejected)}. Formatted differently the two "
            "give the label away; bring both to one form"
        )
    if isinstance(chosen, str):
        fields, reason = _standard(prompt, chosen, rejected, hh_format)
    else:
        fields, reason = _conversational(prompt, chosen, rejected)
    if reason is None and (not _content(fields["chosen"]) or not _content(fields["rejected"])):
        reason = "empty_answer"
    if fields["chosen"] == fields["rejected"] and reason in (None, "transcript", "different_prompts"):
        reason = "tie"
    return (blank if reason else fields), reason


def check_field(name: str, value: Any, number: int) -> None:
    """Refuse what is neither text, nor messages, nor missing.

    :raises DataError: naming row and column.
    """
    if value is None or isinstance(value, str):
        return
    is_messages = isinstance(value, list) and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in value
    )
    if not is_messages:
        raise DataError(
            f"row {number}: column {name!r} is {_kind(value)}; expected text, or a list of messages "
            '{"role": ..., "content": ...}'
        )


def _standard(prompt: Any, chosen: str, rejected: str, hh_format: str) -> tuple[dict[str, Any], str | None]:
    if prompt is not None and not isinstance(prompt, str):
        prompt = [dict(m) for m in prompt]
        answers = [[{"role": "assistant", "content": text}] for text in (chosen, rejected)]
        return {"prompt": prompt, "chosen": answers[0], "rejected": answers[1]}, None
    if prompt is not None:
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}, None
    if hh.is_transcript(chosen) and hh.is_transcript(rejected):
        split = hh.to_chat(chosen, rejected) if hh_format == "chat" else hh.split_transcripts(chosen, rejected)
        if split is None:
            return {"prompt": "", "chosen": chosen, "rejected": rejected}, "transcript"
        return dict(zip(("prompt", "chosen", "rejected"), split, strict=True)), None
    if chosen == rejected:
        return {"prompt": "", "chosen": chosen, "rejected": rejected}, None
    end = len(commonprefix([chosen, rejected]))
    if end == min(len(chosen), len(rejected)):  # one is the start of the other: leave it its last word
        end = max(chosen[:end].rstrip().rfind(" "), 0)
    return {"prompt": chosen[:end], "chosen": chosen[end:], "rejected": rejected[end:]}, None


def _conversational(prompt: Any, chosen: list[Any], rejected: list[Any]) -> tuple[dict[str, Any], str | None]:
    chosen, rejected = _plain(chosen), _plain(rejected)
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    if isinstance(prompt, str) and prompt and chosen[0]["role"] in _ASKING:
        # The prompt as text, and again in the messages that both answers start with, perhaps after a system message.
        asked = any(m["role"] == "user" and m["content"].strip() == prompt.strip() for m in chosen[:shared])
        prompt = chosen[:shared] if asked else [{"role": "user", "content": prompt}]
    elif isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}] if prompt else None
    # An implicit prompt is all that both share; an explicit one may be repeated inside both answers.
    prompt = _plain(prompt) if prompt else chosen[:shared]
    n = len(prompt)
    if chosen[:n] == prompt and rejected[:n] == prompt and min(len(chosen), len(rejected)) > n:
        chosen, rejected = chosen[n:], rejected[n:]
    # What a person or the system says is never scored: a user's turn among the answers means two different prompts.
    strange = any(m["role"] in _ASKING for m in (*chosen, *rejected))
    fields = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    return fields, "different_prompts" if strange else None


def _plain(messages: list[Any]) -> list[dict[str, str]]:
    return [{"role": m["role"], "content": m["content"]} for m in messages]


def _content(answer: Any) -> bool:
    return bool(answer.strip()) if isinstance(answer, str) else any(m["content"].strip() for m in answer)


def _kind(value: Any) -> str:
    return "text" if isinstance(value, str) else f"a {type(value).__name__}"
