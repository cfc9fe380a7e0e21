"""What a judge is asked and what it says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from pluralpref.evaluation.win_rate.prompts import Messages

#: Which policy's answer stands first, as A.
ORDERS = ("policy_first", "baseline_first")
#: The first answer is better, the second is, neither; or the judge said none of these.
VERDICTS = ("A", "B", "TIE", "INVALID")


@dataclass(frozen=True)
class Comparison:
    """Two answers to a prompt in one order.

    :param prompt_id: the prompt's.
    :param order: one of :data:`ORDERS`.
    :param prompt: text or messages.
    :param first: shown as A.
    :param second: shown as B.
    """

    prompt_id: int
    order: str
    prompt: str | Messages
    first: str
    second: str


@dataclass(frozen=True)
class Verdict:
    """What a judge said of one comparison.

    :param prompt_id: of the comparison.
    :param order: likewise.
    :param verdict: one of :data:`VERDICTS`.
    :param raw: what the judge gave, as plain values.
    :param attempts: how often it was asked.
    """

    prompt_id: int
    order: str
    verdict: str
    raw: Any
    attempts: int = 1

    @property
    def winner(self) -> str | None:
        """``"policy"``, ``"baseline"``, ``"tie"``, or ``None`` for an invalid verdict."""
        if self.verdict not in ("A", "B"):
            return "tie" if self.verdict == "TIE" else None
        return "policy" if (self.verdict == "A") == (self.order == "policy_first") else "baseline"

    def as_record(self) -> dict[str, Any]:
        """A line of a file of verdicts."""
        return {**asdict(self), "winner": self.winner}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Verdict:
        """From a line of a file of verdicts."""
        return cls(**{name: record[name] for name in ("prompt_id", "order", "verdict", "raw", "attempts")})


class Judge(Protocol):
    """Anything that compares answers."""

    @property
    def settings(self) -> dict[str, Any]:
        """Plain values on which verdicts depend; verdicts of other settings aren't mixed with these."""

    def judge(self, comparisons: Sequence[Comparison]) -> Iterator[Verdict]:
        """One verdict for each comparison, in any order, each as soon as it is there.

        :raises InferenceError: when it can't go on; verdicts that were there are given before.
        """
