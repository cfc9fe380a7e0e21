r"""HH-RLHF transcripts: ``"\n\nHuman: …\n\nAssistant: …"``, whole dialogues that differ in the last answer."""

from __future__ import annotations

import re
from os.path import commonprefix

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
_TURN = re.compile(r"\n\n(Human|Assistant):")

Messages = list[dict[str, str]]


def is_transcript(text: object) -> bool:
    """Whether ``text`` is an HH transcript."""
    return isinstance(text, str) and text.startswith(HUMAN) and ASSISTANT in text


def split_transcripts(chosen: str, rejected: str) -> tuple[str, str, str] | None:
    r"""Prompt and both answers of a pair of transcripts.

    The prompt ends with the last ``"\n\nAssistant:"`` up to which both agree. A few published rows differ earlier
    than in their last turn; there the answers are what follows the last turn that is shared.

    :returns: prompt, chosen, rejected; ``None`` if no assistant turn is shared or an answer is empty.
    """
    shared = commonprefix([chosen, rejected])
    end = shared.rfind(ASSISTANT)
    if end < 0:
        return None
    end += len(ASSISTANT)
    return chosen[:end], chosen[end:], rejected[end:]


def to_messages(transcript: str) -> Messages | None:
    """A transcript as chat messages; ``None`` if its turns don't alternate, starting with the human."""
    pieces = _TURN.split(transcript)
    if pieces[0].strip():
        return None
    speakers, texts = pieces[1::2], pieces[2::2]
    if any(speaker != ("Human", "Assistant")[i % 2] for i, speaker in enumerate(speakers)):
        return None
    roles = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[s], "content": text.strip()} for s, text in zip(speakers, texts, strict=True)]


def to_chat(chosen: str, rejected: str) -> tuple[Messages, Messages, Messages] | None:
    """A pair of transcripts as conversational prompt, chosen and rejected; ``None`` where that isn't possible."""
    a, b = to_messages(chosen), to_messages(rejected)
    if a is None or b is None:
        return None
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    if n and n == len(a) == len(b):  # equal transcripts: a tie, counted as such further on
        n -= 1
    if n == 0 or any(len(side) != n + 1 or side[n]["role"] != "assistant" for side in (a, b)):
        return None
    return a[:n], a[n:], b[n:]
