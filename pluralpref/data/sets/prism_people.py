"""What PRISM knows about each person: the survey's demographics, and how the person scores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from pluralpref.data.sets.prism_turns import turns_of
from pluralpref.data.sets.values import label
from pluralpref.errors import DataError

#: Group columns and where they are in the survey.
GROUPS: dict[str, str] = {
    "age": "age",
    "gender": "gender",
    "education": "education",
    "employment_status": "employment_status",
    "marital_status": "marital_status",
    "english_proficiency": "english_proficiency",
    "religion": "religion.simplified",
    "ethnicity": "ethnicity.simplified",
    "birth_country": "location.birth_country",
    "birth_region": "location.birth_region",
    "reside_country": "location.reside_country",
    "reside_region": "location.reside_region",
    "study_locale": "study_locale",
    "lm_familiarity": "lm_familiarity",
}


def demographics_of(survey: Dataset) -> dict[str, dict[str, str]]:
    """Group columns of each person; ``"unknown"`` where the survey is empty.

    :raises DataError: for a person with two rows.
    """
    people: dict[str, dict[str, str]] = {}
    columns = sorted({"user_id", *(path.split(".")[0] for path in GROUPS.values())})
    for number, row in enumerate(survey.select_columns(columns)):
        person = str(row["user_id"])
        if person in people:
            raise DataError(f"survey row {number}: {person!r} is there already; every person has one survey")
        people[person] = {name: label(_at(row, path)) for name, path in GROUPS.items()}
    return people


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation (n − 1) of a person's scores."""

    mean: float
    sd: float

    def apply(self, score: float | None) -> float | None:
        """(score − mean) / sd, 0 if the sd is 0."""
        if score is None:
            return None
        return (score - self.mean) / self.sd if self.sd else 0.0


def score_scales(conversations: Dataset, *, first_turn: bool) -> dict[str, Scale]:
    """Each person's scale, over opening turns or over all."""
    sums: dict[str, tuple[int, float, float]] = {}
    for number, row in enumerate(conversations.select_columns(["user_id", "conversation_history"])):
        turns = turns_of(row["conversation_history"], number)
        count, total, squares = sums.get(str(row["user_id"]), (0, 0.0, 0.0))
        for turn in turns[:1] if first_turn else turns:
            scores = [score for score in turn.scores if score is not None]
            count += len(scores)
            total += sum(scores)
            squares += sum(score * score for score in scores)
        sums[str(row["user_id"])] = (count, total, squares)
    return {person: _scale(*moments) for person, moments in sums.items()}


def _scale(count: int, total: float, squares: float) -> Scale:
    if count < 2:
        return Scale(total / max(count, 1), 0.0)
    # Scores are integers up to 100, so the sums are exact and equal scores give exactly 0.
    return Scale(total / count, math.sqrt(max(count * squares - total * total, 0.0) / (count * (count - 1))))


def _at(row: Mapping[str, Any], path: str) -> Any:
    value: Any = row
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value
