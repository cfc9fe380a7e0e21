"""Which rows were used, and why the others weren't."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from pluralpref.errors import DataError

#: Reasons for which a row is skipped, and what to do about each.
REASONS = {
    "empty_answer": "chosen or rejected is missing or empty",
    "tie": "chosen and rejected are the same: nobody won",
    "different_prompts": "chosen and rejected don't answer the same prompt",
    "empty_prompt": "the prompt is empty and the tokenizer has no token to start with",
    "prompt_too_long": "the prompt alone fills max_length: raise max_length, or truncation_mode='keep_end'",
    "answer_too_long": "prompt and answer together are longer than max_length: raise max_length",
    "template": "the chat template doesn't separate the answer from the prompt",
    "transcript": "the transcript has no assistant turn that differs, or its turns don't alternate",
    "no_prompt": "the prompt is missing or empty",
    "no_annotator": "it isn't said who chose",
    "no_choice": "it isn't said which one answer was preferred",
    "no_score": "an answer has no score",
    "called_tie": "the annotator called it a tie",
    "score_tie": "the scores differ by no more than tie_threshold",
    "duplicate_answer": "the answer has the text of an earlier one, which is used",
    "single_answer": "there are no two different answers to compare",
    "history": "an earlier turn has no prompt or no chosen answer, so what was said before is unknown",
}
#: Row numbers kept for each reason.
MAX_EXAMPLES = 5


@dataclass
class RowReport:
    """Row accounting of one data set.

    :param total: rows read.
    :param skipped: number of rows by reason, see :data:`REASONS`.
    :param examples: the first rows (0-based) of each reason.
    :param cut_prompts: prompts that lost their oldest tokens (``truncation_mode="keep_end"``).
    """

    total: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[int]] = field(default_factory=dict)
    cut_prompts: int = 0

    def skip(self, reason: str, row: int) -> None:
        """Count one skipped row."""
        self.skipped[reason] += 1
        rows = self.examples.setdefault(reason, [])
        if len(rows) < MAX_EXAMPLES:
            rows.append(row)

    @property
    def kept(self) -> int:
        """Rows that are used."""
        return self.total - sum(self.skipped.values())

    def summary(self) -> str:
        """A sentence for a person."""
        parts = [f"{self.kept} of {self.total} rows used"]
        parts += [
            f"{count} skipped: {REASONS[reason]} (rows {', '.join(map(str, self.examples[reason]))}"
            + (", …)" if count > len(self.examples[reason]) else ")")
            for reason, count in sorted(self.skipped.items())
        ]
        if self.cut_prompts:
            parts.append(f"{self.cut_prompts} prompts cut to fit max_length")
        return "; ".join(parts)

    def as_metrics(self) -> dict[str, float]:
        """``skipped/<reason>`` counts, for logs."""
        return {f"skipped/{reason}": float(count) for reason, count in sorted(self.skipped.items())}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "total": self.total,
            "kept": self.kept,
            "skipped": dict(sorted(self.skipped.items())),
            "examples": self.examples,
            "cut_prompts": self.cut_prompts,
        }

    def check(self, strict: bool) -> None:
        """Refuse a data set of which nothing is left, or, if ``strict``, one with any skipped row.

        :raises DataError: with the counts by reason.
        """
        if self.kept == 0:
            raise DataError(f"no row can be used: {self.summary()}" if self.total else "the data set has no rows")
        if strict and self.skipped:
            raise DataError(f"strict mode: {self.summary()}")
