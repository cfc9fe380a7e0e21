"""A reward model as judge."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from pluralpref.data import padding_token
from pluralpref.data.hh import is_transcript
from pluralpref.errors import ConfigError
from pluralpref.evaluation.win_rate.encode import as_chat
from pluralpref.evaluation.win_rate.judge import Comparison, Verdict
from pluralpref.evaluation.win_rate.prompts import Prompt, transcript_turns
from pluralpref.likelihood.batches import device_of
from pluralpref.likelihood.causal_lm import evaluation_flags
from pluralpref.likelihood.reference_key import reference_key


class RewardModelJudge:
    """Scores each answer by itself; the higher score wins.

    With rewards r_A, r_B the verdict is A if r_A − r_B > t, B if r_B − r_A > t, TIE otherwise. An answer is scored once,
    whichever place it stands in, so this judge has no position bias. It reads prompt and answer as one text, through its
    own chat template where it has one (HH transcripts as the conversations that they are). An answer that is too long
    for it isn't cut: its comparisons are invalid, and so are those with a reward that isn't finite.

    :param model: a sequence classifier with one output; left as it is, but that its config gets a missing ``pad_token_id``.
    :param tokenizer: its tokenizer.
    :param tie_threshold: t ≥ 0, in units of the reward.
    :param batch_size: answers in a batch.
    :param max_length: longest prompt plus answer in tokens; ``None`` for what the model has room for.
    :param chat_template: see :func:`~pluralpref.evaluation.win_rate.encode.as_chat`.
    :raises ConfigError: for a model with several outputs, and numbers out of range.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        tie_threshold: float = 0.0,
        batch_size: int = 8,
        max_length: int | None = None,
        chat_template: str = "auto",
    ) -> None:
        if model.config.num_labels != 1:
            raise ConfigError(
                f"the reward model has {model.config.num_labels} outputs; a reward is one number (num_labels=1)"
            )
        if not 0 <= tie_threshold < math.inf:
            raise ConfigError(f"tie_threshold={tie_threshold}: must be a finite number of at least 0")
        if batch_size < 1 or (max_length is not None and max_length < 1):
            raise ConfigError(f"batch_size={batch_size} and max_length={max_length} must be at least 1")
        self.model, self.tokenizer = model, tokenizer
        self.tie_threshold, self.batch_size, self.chat_template = tie_threshold, batch_size, chat_template
        context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.max_length = context if max_length is None else max_length
        if context is not None and self.max_length > context:
            raise ConfigError(f"max_length={max_length}: the reward model has room for {context} tokens")
        if model.config.pad_token_id is None:
            model.config.pad_token_id = padding_token(tokenizer)

    @property
    def settings(self) -> dict[str, Any]:
        """Weights, by their hash, and options."""
        nothing: dict[str, Any] = {"prompt_ids": [], "chosen_ids": [], "rejected_ids": []}
        return {
            "kind": "reward_model",
            "tie_threshold": self.tie_threshold,
            "max_length": self.max_length,
            "chat_template": self.chat_template,
            "weights_versions": reference_key(self.model, nothing, "reward", nullcontext),
        }

    def judge(self, comparisons: Sequence[Comparison]) -> Iterator[Verdict]:
        """Batch by batch; both orders of a prompt come from the same two scores."""
        by_prompt: dict[int, list[Comparison]] = {}
        for c in comparisons:
            by_prompt.setdefault(c.prompt_id, []).append(c)
        groups = list(by_prompt.values())
        size = max(1, self.batch_size // 2)
        for start in range(0, len(groups), size):
            batch = groups[start : start + size]
            sides = [(group[0], answer) for group in batch for answer in sorted({group[0].first, group[0].second})]
            found = self._scores([self._encode(c, answer) for c, answer in sides])
            scores = {(c.prompt_id, answer): score for (c, answer), score in zip(sides, found, strict=True)}
            for group in batch:
                for c in group:
                    yield self._verdict(c, scores[c.prompt_id, c.first], scores[c.prompt_id, c.second])

    def _verdict(self, c: Comparison, first: float | str, second: float | str) -> Verdict:
        raw = {"score_first": first, "score_second": second}
        if isinstance(first, str) or isinstance(second, str):
            return Verdict(c.prompt_id, c.order, "INVALID", raw)
        difference = first - second
        verdict = "TIE" if abs(difference) <= self.tie_threshold else "A" if difference > 0 else "B"
        return Verdict(c.prompt_id, c.order, verdict, raw)

    def _encode(self, c: Comparison, answer: str) -> list[int]:
        prompt = c.prompt
        if is_transcript(prompt) and self.tokenizer.chat_template and self.chat_template != "no":
            # A policy may have been trained on transcripts as text; its judge was on conversations.
            prompt, answer = transcript_turns(str(prompt)) or prompt, answer.strip()
        chat = as_chat(Prompt(c.prompt_id, prompt), self.tokenizer, self.chat_template)
        if chat is None:
            return self.tokenizer(str(prompt) + answer)["input_ids"]
        text = self.tokenizer.apply_chat_template([*chat, {"role": "assistant", "content": answer}], tokenize=False)
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    @torch.no_grad()
    def _scores(self, ids: list[list[int]]) -> list[float | str]:
        """A reward for each, or why there is none."""
        limit = self.max_length
        scores: list[float | str] = [f"{len(row)} tokens are more than {limit}" for row in ids]
        rows = [i for i, row in enumerate(ids) if row and (limit is None or len(row) <= limit)]
        if rows:
            width = max(len(ids[i]) for i in rows)
            tokens = torch.full((len(rows), width), self.model.config.pad_token_id)
            mask = torch.zeros_like(tokens)
            for k, i in enumerate(rows):
                tokens[k, : len(ids[i])] = torch.tensor(ids[i])
                mask[k, : len(ids[i])] = 1
            device = device_of(self.model)
            with evaluation_flags(self.model):
                logits = self.model(input_ids=tokens.to(device), attention_mask=mask.to(device)).logits
            for i, value in zip(rows, logits.float().flatten().tolist(), strict=True):
                scores[i] = value if math.isfinite(value) else f"the reward is {value}"
        return [score if ids[i] else "no tokens" for i, score in enumerate(scores)]
