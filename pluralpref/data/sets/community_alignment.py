"""Community Alignment: people choose one of four answers a turn, in five languages (arXiv 2507.09650)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args

from datasets import Dataset, Value

from pluralpref.data.sets.build import build_pairs, pair_features
from pluralpref.data.sets.pair_report import PairReport
from pluralpref.data.sets.pairs import Outcome, chosen_against_others, keep
from pluralpref.data.sets.source import Hub, read_table
from pluralpref.data.sets.values import check_choice, label, said, text

Turns = Literal["all", "first"]

HUB = Hub("facebook/community-alignment-dataset")
#: Group columns and what they are called in the source.
GROUPS = {
    "language": "assigned_lang",
    "age": "annotator_age",
    "gender": "annotator_gender",
    "education": "annotator_education_level",
    "political": "annotator_political",
    "ethnicity": "annotator_ethnicity",
    "country": "annotator_country",
    "is_pregenerated_first_prompt": "is_pregenerated_first_prompt",
    "in_balanced_subset": "in_balanced_subset",
}
_TURNS = ("first", "second", "third", "fourth")
_LETTERS = "abcd"
_END = "<|end_of_text|>"


def _turn_columns(turn: str) -> list[str]:
    answers = [f"{turn}_turn_response_{letter}" for letter in _LETTERS]
    return [f"{turn}_turn_prompt", *answers, f"{turn}_turn_preferred_response"]


def read_community_alignment(
    source: Any = None, *, split: str | None = None, turns: Turns = "all"
) -> tuple[Dataset, PairReport]:
    """Community Alignment as pairs: the preferred answer against each of the other three, at most 12 a row.

    A choice, and the unit of weight, is one turn. The prompt is what was said until then, with the answers that the
    person preferred. Turns that a conversation doesn't have are no loss and aren't counted; half a turn is. The token
    ``<|end_of_text|>`` that is left in some texts is taken out.

    :param source: ``None`` for the hub, a file (``community_alignment.csv``), a folder, or a data set.
    :param split: ``"train"`` on the hub today; older copies have ``"full"`` and ``"filtered"``.
    :param turns: ``"first"`` for first turns only.
    :returns: prompt, chosen, rejected (messages), weight, annotator (annotator_id), conversation, the columns of
        :data:`~pluralpref.data.sets.community_alignment.GROUPS`, and turn (0-based); and the accounting.
    :raises DataError: if columns are missing or no pair is left.
    :raises ConfigError: for a bad option.
    """
    check_choice("turns", turns, get_args(Turns))
    read = _TURNS[:1] if turns == "first" else _TURNS
    columns = ["conversation_id", "annotator_id", *GROUPS.values()]
    columns += [column for turn in read for column in _turn_columns(turn)]
    rows = read_table(source, HUB, columns, split)
    features = pair_features(("annotator", "conversation", *GROUPS))
    features["turn"] = Value("int64")
    report = PairReport()
    dataset = build_pairs(rows, columns, _Expand(read), features, report, "Reading Community Alignment")
    report.check(strict=False)
    return dataset, report


class _Expand:
    """The pairs of one conversation."""

    def __init__(self, turns: tuple[str, ...]) -> None:
        self.turns = turns

    def __call__(self, row: dict[str, Any], number: int, report: PairReport) -> Iterator[dict[str, Any]]:
        if row["annotator_id"] in (None, ""):
            report.unusable("no_annotator", number)
            return
        columns = {"annotator": str(row["annotator_id"]), "conversation": label(row["conversation_id"])}
        columns |= {name: label(row[column]) for name, column in GROUPS.items()}
        history: list[dict[str, str]] | None = []
        before = report.total
        for position, turn in enumerate(self.turns):
            prompt, *answers, preferred = (self._text(row, column, number, report) for column in _turn_columns(turn))
            if not (prompt or preferred or any(answers)):
                if any(text(row, f"{later}_turn_prompt", number) for later in self.turns[position + 1 :]):
                    history = None
                continue
            if history is None:
                report.unusable("history", number)
                continue
            if not prompt:
                report.unusable("no_prompt", number)
                history = None
                continue
            asked = [*history, *said("user", prompt)]
            letter = preferred.removeprefix("response_")
            best = _LETTERS.index(letter) if letter in tuple(_LETTERS) else None
            outcomes = [Outcome(0, 0, "no_choice")] if best is None else chosen_against_others(answers, best)
            for chosen, rejected, weight in keep(outcomes, number, report):
                yield {
                    "prompt": asked,
                    "chosen": said("assistant", answers[chosen]),
                    "rejected": said("assistant", answers[rejected]),
                    "weight": weight,
                    "turn": position,
                    **columns,
                }
            history = None if best is None or not answers[best] else [*asked, *said("assistant", answers[best])]
        if report.total == before:  # not one turn
            report.unusable("no_prompt", number)

    @staticmethod
    def _text(row: dict[str, Any], column: str, number: int, report: PairReport) -> str:
        content = text(row, column, number)
        if _END in content:
            report.notes["end_of_text"] += 1
            content = content.replace(_END, "").rstrip()
        return content if content.strip() else ""
