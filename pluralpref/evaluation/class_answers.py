"""What each of several policies answers, and how probable each of them finds every answer."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from pluralpref.data import PreferenceCollator, padding_token
from pluralpref.errors import ConfigError, DataError
from pluralpref.evaluation.win_rate.answers import Answer, as_record
from pluralpref.evaluation.win_rate.encode import encode_prompt
from pluralpref.evaluation.win_rate.generate import GenerationOptions, generate_answers
from pluralpref.evaluation.win_rate.journal import Journal
from pluralpref.evaluation.win_rate.prompts import Prompt, prompts_hash
from pluralpref.likelihood.reference import REFERENCE_COLUMNS, precompute_reference


@dataclass(frozen=True)
class ClassAnswers:
    """Answers of K policies to the same prompts.

    :param prompts: all of them.
    :param answers: by policy, one to each prompt.
    :param used: numbers of the prompts, in ``prompts``, that every policy gave at least one token for.
    :param skipped: how many others there are, by reason: ``prompt_too_long``, ``no_token``.
    :param log_ratios: (used prompts, policies i, policies j) log pi_i / pi_ref of policy j's answer, float64, nats.
    """

    prompts: list[Prompt]
    answers: list[list[Answer]]
    used: list[int]
    skipped: dict[str, int]
    log_ratios: Tensor

    def drawn(self, weights: Tensor, seed: int = 0) -> list[int]:
        """Which policy of a mixture answers each of the ``prompts``: a draw for each by its row and the seed alone.

        :param weights: (policies,), add up to 1.
        """
        edges = np.cumsum(np.asarray(weights, dtype=float))
        uniform = [np.random.default_rng([seed, prompt.prompt_id]).random() * edges[-1] for prompt in self.prompts]
        # From the right, so that a policy of weight 0 is never drawn.
        return np.searchsorted(edges, uniform, side="right").clip(max=len(edges) - 1).tolist()

    def write_mixture(self, path: str | os.PathLike[str], weights: Tensor, seed: int = 0) -> None:
        """Write a mixture's answers, which ``pluralpref win-rate --answers_a`` reads; a file that is there is replaced."""
        Path(path).unlink(missing_ok=True)
        settings = {"prompts": prompts_hash(self.prompts), "weights": [float(w) for w in weights], "seed": seed}
        with Journal(path, "answers", settings, lambda record: record["prompt_id"]) as journal:
            for number, (prompt, k) in enumerate(zip(self.prompts, self.drawn(weights, seed), strict=True)):
                journal.append({**as_record(self.answers[k][number], prompt), "class": k + 1})


def class_answers(
    policies: Sequence[Callable[[], Any]],
    reference: Callable[[], Any],
    tokenizer: Any,
    prompts: list[Prompt],
    folder: str | os.PathLike[str],
    *,
    max_new_tokens: int = 256,
    max_prompt_length: int | None = None,
    chat_template: str = "auto",
    seed: int = 0,
    batch_size: int = 8,
    names: Sequence[str] | None = None,
    progress: bool = True,
) -> ClassAnswers:
    """Sample an answer of every policy to every prompt, and score all of them under all policies and the reference.

    Answers are drawn from the policies as they are (temperature 1, all tokens), since expectations under them are wanted, and are
    scored token for token as they were drawn. One model is in memory at a time. What is done stands in ``folder``
    (``answers-class-1.jsonl``, …, and log-probabilities), and a run that was ended goes on with the rest.

    :param policies: each returns a causal language model, whenever it is called the same.
    :param reference: likewise of the reference.
    :param tokenizer: of all of them.
    :param folder: made if it isn't there.
    :param max_new_tokens: the longest answer; a longer one is cut there, and scored as far.
    :param max_prompt_length: longer prompts are left out and counted; ``None`` for what the models have room for.
    :param chat_template: see :func:`~pluralpref.evaluation.win_rate.encode.as_chat`.
    :param seed: of all answers.
    :param batch_size: prompts at a time.
    :param names: of the policies, for the first lines of their files.
    :param progress: show progress bars.
    :raises ConfigError: for no policy, options out of range, and a folder of other models, prompts or options.
    :raises DataError: for no prompt that all policies answer, and a prompt without tokens.
    """
    if not policies:
        raise ConfigError("there is no policy to answer")
    options = GenerationOptions(
        max_new_tokens, do_sample=True, seed=seed, max_prompt_length=max_prompt_length, chat_template=chat_template
    )
    answers = []
    for k, load in enumerate(policies):
        answers.append(
            generate_answers(
                load(),
                tokenizer,
                prompts,
                Path(folder) / f"answers-class-{k + 1}.jsonl",
                options,
                batch_size=batch_size,
                stream=k,
                name="" if names is None else names[k],
                keep_token_ids=True,
                progress=progress,
            )
        )
    used, skipped = [], Counter[str]()
    for number in range(len(prompts)):
        own = [each[number] for each in answers]
        if any(answer.answer is None for answer in own):
            skipped["prompt_too_long"] += 1
        elif not all(answer.token_ids for answer in own):
            skipped["no_token"] += 1
        else:
            used.append(number)
    if not used:
        raise DataError(f"none of the {len(prompts)} prompts is answered by every policy: {dict(skipped)}")
    ids = [encode_prompt(prompts[number], tokenizer, chat_template) for number in used]
    pairs = _as_pairs(ids, [[each[number].token_ids for each in answers] for number in used])
    collator = PreferenceCollator(padding_token(tokenizer))

    def scored(load: Callable[[], Any]) -> Tensor:
        """(used prompts, answers)."""
        found = precompute_reference(
            load(), pairs, collator, batch_size=batch_size, progress=progress, cache_dir=Path(folder) / "scores"
        )
        both = torch.stack([torch.tensor(found[name][:], dtype=torch.float64) for name in REFERENCE_COLUMNS], 1)
        return both.reshape(len(used), -1)[:, : len(policies)]

    against = scored(reference)
    log_ratios = torch.stack([scored(load) - against for load in policies], 1)
    return ClassAnswers(prompts, answers, used, dict(skipped), log_ratios)


def _as_pairs(prompt_ids: list[list[int]], answers: list[list[Any]]) -> Dataset:
    """The answers to each prompt two by two, so that a prompt's tokens run once for both; an odd last one is its own mate."""
    rows = []
    for prompt, own in zip(prompt_ids, answers, strict=True):
        own = own + own[-1:] * (len(own) % 2)
        rows += [
            {"prompt_ids": prompt, "chosen_ids": one, "rejected_ids": other}
            for one, other in zip(own[::2], own[1::2], strict=True)
        ]
    return Dataset.from_list(rows)
