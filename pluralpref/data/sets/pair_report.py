"""Which pairs a public data set gave, and why the others aren't there."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from pluralpref.data.report import MAX_EXAMPLES, REASONS, RowReport

#: What was changed on the way in without leaving anything out.
NOTES = {
    "no_survey": "conversations of people without a survey: their groups are 'unknown'",
    "end_of_text": "texts lost the token <|end_of_text|>",
}


@dataclass
class PairReport(RowReport):
    """Accounting of one data set whose rows may hold several choices, and whose choices may give several pairs.

    What is counted is pairs. A row or turn that can't be used as a whole counts as one, so ``total`` is the number of
    pairs that are there plus the sum over ``skipped``.

    :param rows: rows of the source.
    :param choices: choices that gave at least one pair; each counts once in ``weight``.
    :param notes: number of changes by kind, see :data:`NOTES`.
    """

    rows: int = 0
    choices: int = 0
    notes: Counter[str] = field(default_factory=Counter)

    def unusable(self, reason: str, row: int) -> None:
        """Count a row or turn that gives no pair."""
        self.total += 1
        self.skip(reason, row)

    def summary(self) -> str:
        """A sentence for a person."""
        parts = [f"{self.kept} pairs of {self.choices} choices from {self.rows} rows"]
        for reason, count in sorted(self.skipped.items()):
            rows = ", ".join(map(str, self.examples[reason]))
            more = ", …" if count > MAX_EXAMPLES else ""
            parts.append(f"{count} skipped: {REASONS[reason]} (rows {rows}{more})")
        parts += [f"{count} {NOTES[note]}" for note, count in sorted(self.notes.items())]
        return "; ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        own = {"rows": self.rows, "choices": self.choices, "notes": dict(sorted(self.notes.items()))}
        return own | {key: value for key, value in super().to_dict().items() if key != "cut_prompts"}
