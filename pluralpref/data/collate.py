"""Rows of tokenised pairs as one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pluralpref.data.labels import is_blank
from pluralpref.errors import ConfigError, DataError

#: Number of a pair in what is evaluated, as the trainer counts; a data set's own ``row`` may occur twice or not at all.
POSITION = "_position"


class PreferenceCollator:
    """Pad a list of pairs to a batch: all chosen rows first, then all rejected rows in the same order.

    Padding is on the right, whatever side the tokenizer prefers.

    :param pad_token_id: what fills the padding; the attention mask hides it.
    :param annotators: code of each annotator name; ``None`` leaves annotators out.
    :param panel: pass on who chose, as text under ``"annotator_names"``.
    :param group_columns: columns whose values are passed on as text under ``"groups"``.
    :param context_columns: columns whose values are passed on as they are under ``"context_columns"``.
    """

    def __init__(
        self,
        pad_token_id: int,
        annotators: Mapping[Any, int] | None = None,
        group_columns: Sequence[str] = (),
        context_columns: Sequence[str] = (),
        panel: bool = False,
    ) -> None:
        self.pad_token_id = pad_token_id
        self.annotators = annotators
        self.panel = panel
        self.group_columns = tuple(group_columns)
        self.context_columns = tuple(context_columns)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The batch.

        :param rows: with ``prompt_ids``, ``chosen_ids``, ``rejected_ids`` and perhaps weight, preferred, annotator,
            ``ref_chosen_logps``, ``ref_rejected_logps``.
        :returns: ``input_ids``, ``attention_mask``, ``completion_mask`` (2 pairs, length), int64; ``pair_lengths``
            (pairs, 3), the numbers of tokens of prompt, chosen and rejected answer; ``weight``,
            ``preferred`` (pairs,), float64; ``annotator``, ``row``, ``_position`` (pairs,), int64; reference columns (pairs,),
            float64; ``groups``, a dict of lists of text; ``context_columns``, a dict of lists; ``annotator_names``, a list
            of text.
        :raises DataError: for an annotator that has no code or no name.
        """
        sides = [(row["prompt_ids"], row[side]) for side in ("chosen_ids", "rejected_ids") for row in rows]
        width = max(len(prompt) + len(answer) for prompt, answer in sides)
        padded = [
            [*prompt, *answer, *[self.pad_token_id] * (width - len(prompt) - len(answer))] for prompt, answer in sides
        ]
        start = torch.tensor([[len(prompt)] for prompt, _ in sides])
        end = torch.tensor([[len(prompt) + len(answer)] for prompt, answer in sides])
        position = torch.arange(width)
        batch: dict[str, Any] = {
            "input_ids": torch.tensor(padded, dtype=torch.int64),
            "attention_mask": (position < end).long(),
            "completion_mask": ((position >= start) & (position < end)).long(),
            "pair_lengths": torch.tensor(
                [[len(row[name]) for name in ("prompt_ids", "chosen_ids", "rejected_ids")] for row in rows]
            ),
        }
        batch["weight"] = self._column(rows, "weight", 1.0)
        batch["preferred"] = self._column(rows, "preferred", 1.0)
        for name in ("ref_chosen_logps", "ref_rejected_logps"):
            if name in rows[0]:
                batch[name] = self._column(rows, name)
        if self.annotators is not None:
            batch["annotator"] = torch.tensor([self._code(row) for row in rows])
        if self.panel:
            batch["annotator_names"] = [self._name(row) for row in rows]
        for name in ("row", POSITION):
            if name in rows[0]:
                batch[name] = torch.tensor([int(row[name]) for row in rows])
        if self.group_columns:
            batch["groups"] = {name: [str(row[name]) for row in rows] for name in self.group_columns}
        if self.context_columns:
            batch["context_columns"] = {name: [row[name] for row in rows] for name in self.context_columns}
        return batch

    @staticmethod
    def _name(row: Mapping[str, Any]) -> str:
        name = row.get("annotator")
        if is_blank(name):
            raise DataError(
                f"row {row.get('row', '?')} has no annotator: with panel=True every pair needs one, since a person's choices "
                "share their strength"
            )
        return str(name)

    def _code(self, row: Mapping[str, Any]) -> int:
        annotators = self.annotators or {}
        name = row.get("annotator")
        if name not in annotators:
            raise DataError(
                f"annotator {name!r} is not among the {len(annotators)} known ones: give codes for the annotators of "
                "every data set that is used"
            )
        return annotators[name]

    @staticmethod
    def _column(rows: Sequence[Mapping[str, Any]], name: str, default: float | None = None) -> Tensor:
        return torch.tensor([float(row.get(name, default)) for row in rows], dtype=torch.float64)


def padding_token(tokenizer: Any) -> int:
    """The id to pad with: the tokenizer's pad token, or its EOS, which the attention mask makes harmless.

    :raises ConfigError: if it has neither.
    """
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise ConfigError("the tokenizer has neither a pad nor an EOS token: set tokenizer.pad_token")
