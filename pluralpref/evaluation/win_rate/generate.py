"""Answers from a policy: batched, seeded prompt by prompt, resumable."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from pluralpref.data import padding_token
from pluralpref.errors import ConfigError, DataError
from pluralpref.evaluation.win_rate.answers import Answer, as_record
from pluralpref.evaluation.win_rate.encode import CHAT_TEMPLATE, encode_prompt
from pluralpref.evaluation.win_rate.journal import Journal
from pluralpref.evaluation.win_rate.prompts import Prompt, prompts_hash
from pluralpref.evaluation.win_rate.sampling import SeededSampling, row_uniforms
from pluralpref.likelihood.batches import device_of
from pluralpref.likelihood.causal_lm import evaluation_flags
from pluralpref.likelihood.reference_key import reference_key


@dataclass(frozen=True)
class GenerationOptions:
    """How answers are generated, in transformers' names.

    :param max_new_tokens: the longest answer; a longer one is cut there and counted.
    :param do_sample: sample instead of taking the most probable token.
    :param temperature: sampling only; 1 where ``None``.
    :param top_k: sampling only; all tokens where ``None``.
    :param top_p: sampling only; all tokens where ``None``.
    :param seed: sampling only.
    :param max_prompt_length: longer prompts aren't answered and counted; ``None`` for what the model has room for.
    :param chat_template: see :func:`~pluralpref.evaluation.win_rate.encode.as_chat`.
    :raises ConfigError: for values out of range and options without effect.
    """

    max_new_tokens: int = 256
    do_sample: bool = False
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    max_prompt_length: int | None = None
    chat_template: str = "auto"

    def __post_init__(self) -> None:
        for name in ("temperature", "top_k", "top_p"):
            if getattr(self, name) is not None and not self.do_sample:
                raise ConfigError(f"{name} has no effect without do_sample")
        good = {
            "max_new_tokens": self.max_new_tokens >= 1,
            "temperature": self.temperature is None or 0 < self.temperature < float("inf"),
            "top_k": self.top_k is None or self.top_k >= 1,
            "top_p": self.top_p is None or 0 < self.top_p <= 1,
            "seed": self.seed >= 0,
            "max_prompt_length": self.max_prompt_length is None or self.max_prompt_length >= 1,
            "chat_template": self.chat_template in CHAT_TEMPLATE,
        }
        for name, is_good in good.items():
            if not is_good:
                raise ConfigError(f"{name}={getattr(self, name)!r} is out of range")

    def warpers(self) -> list[LogitsProcessor]:
        """What changes next-token probabilities, in transformers' order."""
        made: list[LogitsProcessor] = []
        if self.temperature is not None and self.temperature != 1:
            made.append(TemperatureLogitsWarper(float(self.temperature)))
        if self.top_k is not None:
            made.append(TopKLogitsWarper(self.top_k))
        if self.top_p is not None and self.top_p < 1:
            made.append(TopPLogitsWarper(self.top_p))
        return made


def generate_answers(
    model: Any,
    tokenizer: Any,
    prompts: list[Prompt],
    path: str | os.PathLike[str],
    options: GenerationOptions,
    *,
    batch_size: int = 8,
    stream: int = 0,
    name: str = "",
    keep_token_ids: bool = False,
    progress: bool = True,
) -> list[Answer]:
    """Answer every prompt that the file at ``path`` doesn't hold an answer to.

    Prompts are padded on the left and answered in batches of similar length, the longest first. What is guaranteed:
    the random numbers of an answer depend on seed, stream and prompt row alone
    (:class:`~pluralpref.evaluation.win_rate.sampling.SeededSampling`), so batch size, order, batch mates and an
    interruption change its logits by rounding only; greedy answers likewise. Where two tokens are within rounding the
    answers may part from there on.

    Of the model's own generation settings only the end tokens are used, beside the tokenizer's.

    :param model: a causal language model; left as it is.
    :param tokenizer: its tokenizer.
    :param path: the file of answers, JSON Lines; each batch is written as it is made.
    :param batch_size: prompts in a batch.
    :param stream: tells apart policies that are compared, so that their samples are independent with the same seed.
    :param name: of the model, for the file's first line.
    :param keep_token_ids: keep the tokens beside the text, which may stand for others.
    :param progress: show a progress bar.
    :returns: one answer for each prompt, in their order.
    :raises DataError: for a prompt without tokens, and a broken file.
    :raises ConfigError: for a file made with other weights, prompts or options, and lengths that the model has no room for.
    :raises InferenceError: for logits that aren't finite.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size={batch_size}: must be at least 1")
    limit = _room(model, options)
    ids = {p.prompt_id: encode_prompt(p, tokenizer, options.chat_template) for p in prompts}
    for number, row in ids.items():
        if not row:
            raise DataError(f"row {number}: the tokenizer makes no token of the prompt")
    tokens: dict[str, Any] = {"prompt_ids": list(ids.values()), "chosen_ids": [], "rejected_ids": []}
    chosen = asdict(options)
    if not options.do_sample:
        del chosen["seed"]
    settings = {
        "prompts": prompts_hash(prompts),
        "generation": chosen,
        "stream": stream,
        "weights_tokens_versions": reference_key(model, tokens, "generate", nullcontext),
    }
    if keep_token_ids:
        settings["token_ids"] = True
    by_id = {p.prompt_id: p for p in prompts}
    with Journal(path, "answers", settings, lambda record: record["prompt_id"], {"model": name}) as journal:
        todo = [number for number in ids if number not in journal.records]
        for number in [n for n in todo if limit is not None and len(ids[n]) > limit]:
            journal.append(as_record(Answer(number, None, "prompt_too_long", None), by_id[number]))
            todo.remove(number)
        todo.sort(key=lambda n: (-len(ids[n]), n))
        config = _config(model, tokenizer, options)
        done = len(ids) - len(todo)
        with (
            _generating(model, config),
            torch.no_grad(),
            tqdm(total=len(ids), initial=done, desc="Answers", unit="prompt", disable=not progress) as bar,
        ):
            for start in range(0, len(todo), batch_size):
                batch = todo[start : start + batch_size]
                for answer in _answer(model, tokenizer, config, options, stream, batch, [ids[n] for n in batch]):
                    if not keep_token_ids:
                        answer = replace(answer, token_ids=None)
                    journal.append(as_record(answer, by_id[answer.prompt_id]))
                bar.update(len(batch))
        return [Answer.from_record(journal.records[p.prompt_id]) for p in prompts]


def _room(model: Any, options: GenerationOptions) -> int | None:
    """The longest prompt in tokens, ``None`` if nothing limits it."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    room = None if context is None else context - options.max_new_tokens
    if room is not None and room < (options.max_prompt_length or 1):
        raise ConfigError(
            f"max_new_tokens={options.max_new_tokens} and max_prompt_length={options.max_prompt_length} together are more than "
            f"the {context} tokens that the model has room for"
        )
    return room if options.max_prompt_length is None else options.max_prompt_length


def _config(model: Any, tokenizer: Any, options: GenerationOptions) -> GenerationConfig:
    own = model.generation_config.eos_token_id
    ends = {*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id} - {None}
    return GenerationConfig(
        max_new_tokens=options.max_new_tokens,
        do_sample=False,  # the draw is made by SeededSampling
        eos_token_id=sorted(ends) or None,
        pad_token_id=padding_token(tokenizer),
    )


@contextmanager
def _generating(model: Any, config: GenerationConfig) -> Iterator[None]:
    """Without dropout, and without the model's own settings, which would fill in what ``config`` leaves open."""
    own = model.generation_config
    model.generation_config = config
    try:
        with evaluation_flags(model):
            yield
    finally:
        model.generation_config = own


def _answer(
    model: Any,
    tokenizer: Any,
    config: GenerationConfig,
    options: GenerationOptions,
    stream: int,
    prompt_ids: list[int],
    ids: list[list[int]],
) -> Iterator[Answer]:
    width = max(map(len, ids))
    padded = torch.full((len(ids), width), int(config.pad_token_id))
    mask = torch.zeros_like(padded)
    for row, tokens in enumerate(ids):
        padded[row, width - len(tokens) :] = torch.tensor(tokens)
        mask[row, width - len(tokens) :] = 1
    uniforms = row_uniforms(options.seed, stream, prompt_ids, options.max_new_tokens) if options.do_sample else None
    device = device_of(model)
    generated = model.generate(
        input_ids=padded.to(device),
        attention_mask=mask.to(device),
        generation_config=config,
        logits_processor=LogitsProcessorList([SeededSampling(uniforms, width, options.warpers())]),
    )
    ends = set(config.eos_token_id or [])
    for number, row in zip(prompt_ids, generated[:, width:].tolist(), strict=True):
        length = next((i for i, token in enumerate(row) if token in ends), None)
        text = tokenizer.decode(row if length is None else row[:length], skip_special_tokens=True)
        if length is None:
            yield Answer(number, text, "length", len(row), row)
        else:
            yield Answer(number, text, "stop", length, row[: length + 1])
