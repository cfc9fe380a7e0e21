"""A prompt as a model reads it."""

from __future__ import annotations

from typing import Any

from pluralpref.data.hh import is_transcript
from pluralpref.data.tokenize import leading_bos
from pluralpref.errors import ConfigError
from pluralpref.evaluation.win_rate.prompts import Messages, Prompt

CHAT_TEMPLATE = ("auto", "yes", "no")


def as_chat(prompt: Prompt, tokenizer: Any, chat_template: str = "auto") -> Messages | None:
    """The messages to render by the tokenizer's chat template, or ``None`` for a text that is read as it stands.

    :param prompt: text counts as one turn of the user.
    :param chat_template: ``"auto"``: where the tokenizer has a template; ``"yes"``, ``"no"``: as it says.
    :raises ConfigError: for messages without a template, an HH transcript that would become one turn, or an unknown choice.
    """
    if chat_template not in CHAT_TEMPLATE:
        raise ConfigError(f"chat_template={chat_template!r}: choose one of {', '.join(CHAT_TEMPLATE)}")
    there = bool(getattr(tokenizer, "chat_template", None))
    content = prompt.prompt
    if chat_template == "yes" and not there:
        raise ConfigError("chat_template='yes': the tokenizer has no chat template")
    if isinstance(content, list):
        if not there or chat_template == "no":
            why = "chat_template='no'" if there else "the tokenizer has no chat template"
            raise ConfigError(f"row {prompt.prompt_id}: the prompt is a conversation, but {why}: give it as text")
        return content
    if not there or chat_template == "no":
        return None
    if is_transcript(content):
        raise ConfigError(
            f"row {prompt.prompt_id}: an HH transcript would be rendered as one turn of the user: give hh_format='chat', or "
            "chat_template='no' for a model that was trained on transcripts as text"
        )
    return [{"role": "user", "content": content}]


def encode_prompt(prompt: Prompt, tokenizer: Any, chat_template: str = "auto") -> list[int]:
    """Token ids, those that :func:`~pluralpref.data.tokenize_preferences` gives the same prompt.

    :raises ConfigError: see :func:`as_chat`.
    """
    chat = as_chat(prompt, tokenizer, chat_template)
    if chat is not None:
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        return tokenizer(text, add_special_tokens=False)["input_ids"]
    start = leading_bos(tokenizer)
    ids = tokenizer(prompt.prompt, add_special_tokens=False)["input_ids"]
    return ids if ids[:1] == start else start + ids  # the text may spell BOS out
