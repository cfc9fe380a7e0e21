"""A Python function as judge."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pluralpref.errors import InferenceError
from pluralpref.evaluation.win_rate.judge import Comparison, Verdict


class CallableJudge:
    """Asks ``function(prompt, first, second)``, which returns ``"A"``, ``"B"`` or ``"TIE"``; anything else is invalid.

    :param function: gets the prompt as it is in the data, text or messages, and two answers.
    :param name: how it is called in the file of verdicts.
    """

    def __init__(self, function: Callable[[Any, str, str], str], name: str | None = None) -> None:
        self.function = function
        self.name = name or f"{function.__module__}:{getattr(function, '__qualname__', type(function).__name__)}"

    @property
    def settings(self) -> dict[str, Any]:
        """Name and, where Python can read it, a hash of the function's source (not of what it calls)."""
        try:
            source = hashlib.sha256(inspect.getsource(self.function).encode()).hexdigest()
        except (OSError, TypeError):
            source = None
        return {"kind": "callable", "name": self.name, "source": source}

    def judge(self, comparisons: Sequence[Comparison]) -> Iterator[Verdict]:
        """One after another.

        :raises InferenceError: when the function raises.
        """
        for c in comparisons:
            try:
                said = self.function(c.prompt, c.first, c.second)
            except Exception as error:  # whatever a user's function may raise
                raise InferenceError(
                    f"the judge {self.name} failed on prompt_id {c.prompt_id} ({c.order}): {type(error).__name__}: {error}"
                ) from error
            good = isinstance(said, str) and said in ("A", "B", "TIE")
            yield Verdict(c.prompt_id, c.order, said if good else "INVALID", said if good else repr(said))
