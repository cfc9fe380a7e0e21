"""The prompts that both policies answer."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from pluralpref.data.hh import is_transcript, to_messages
from pluralpref.data.load import read_source
from pluralpref.data.normalize import check_field, normalize_row
from pluralpref.data.report import RowReport
from pluralpref.errors import ConfigError, DataError

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    :param prompt_id: its row in the source, from 0.
    :param prompt: text, or messages.
    """

    prompt_id: int
    prompt: str | Messages


def load_prompts(
    source: Any, *, split: str | None = None, name: str | None = None, hh_format: str = "text"
) -> tuple[list[Prompt], RowReport]:
    """Read prompts from any data set with a column ``prompt``, or of pairs in which they are what both answers share.

    A prompt that is there in several rows is answered and judged for each; its rows are one cluster in intervals.

    :param source: see :func:`~pluralpref.data.load_preferences`.
    :param split: likewise; ``"train[:100]"`` takes a part of a file.
    :param name: the configuration of a data set on a hub.
    :param hh_format: ``"text"`` keeps HH transcripts as text, ``"chat"`` turns them into messages.
    :returns: the prompts in the source's order, and the account of its rows: one without a prompt is skipped.
    :raises DataError: for columns that are missing, values that are neither text nor messages, and if no row is left.
    :raises ConfigError: for an unknown format, and splits as in ``load_preferences``.
    """
    if hh_format not in ("text", "chat"):
        raise ConfigError(f"hh_format={hh_format!r}: choose 'text' or 'chat'")
    rows = read_source(source, split, name, {"prompt", "chosen", "rejected"})
    implicit = "prompt" not in rows.column_names
    if implicit and not {"chosen", "rejected"} <= set(rows.column_names):
        raise DataError(f"the prompts have no column 'prompt': there are {', '.join(rows.column_names)}")
    report, prompts, transcripts = RowReport(total=len(rows)), [], 0
    for number, row in enumerate(rows.select_columns(["chosen", "rejected"] if implicit else ["prompt"])):
        reason = None
        if implicit:
            transcripts += is_transcript(row["chosen"])
            fields, reason = normalize_row(row, number, hh_format)
            prompt = fields["prompt"]
        else:
            prompt = row["prompt"]
            check_field("prompt", prompt, number)
            transcripts += is_transcript(prompt)
            if hh_format == "chat" and is_transcript(prompt):
                prompt = transcript_turns(prompt)
                reason = None if prompt else "transcript"
        if isinstance(prompt, list):
            prompt = [{"role": m["role"], "content": m["content"]} for m in prompt]
        if reason is None and not (prompt.strip() if isinstance(prompt, str) else prompt):
            reason = "empty_prompt"
        if reason is None:
            prompts.append(Prompt(number, prompt))
        else:
            report.skip(reason, number)
    if hh_format == "chat" and not transcripts:
        raise ConfigError("hh_format='chat' has no effect: no prompt is an HH transcript")
    report.check(strict=False)
    return prompts, report


def transcript_turns(transcript: str) -> Messages:
    """An HH transcript's messages without the assistant's turn that is still to come; [] if they don't alternate."""
    messages = to_messages(transcript) or []
    if messages and messages[-1]["role"] == "assistant" and not messages[-1]["content"]:
        messages = messages[:-1]
    return messages if messages and messages[-1]["role"] == "user" else []


def prompts_hash(prompts: list[Prompt]) -> str:
    """SHA-256 of numbers and content."""
    return hashlib.sha256(json.dumps([[p.prompt_id, p.prompt] for p in prompts]).encode()).hexdigest()


def cluster_of(prompts: list[Prompt]) -> dict[int, int]:
    """For each prompt the number of the first one with the same content."""
    first: dict[str, int] = {}
    return {p.prompt_id: first.setdefault(json.dumps(p.prompt), p.prompt_id) for p in prompts}
