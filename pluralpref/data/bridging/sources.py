"""Ratings from preference pairs, and from tables of ratings."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from datasets import Dataset

from pluralpref.data.bridging.ratings import Item, Rating, Ratings, collect_ratings
from pluralpref.data.hh import is_transcript
from pluralpref.data.load import check_columns, read_source
from pluralpref.data.normalize import check_field, normalize_row
from pluralpref.data.report import RowReport
from pluralpref.errors import ConfigError, DataError

_FIELDS = ("prompt", "chosen", "rejected")
_ANSWERS = ("answer", "completion")
#: Columns of a CSV file of ratings that are text whatever they look like.
_TEXT_COLUMNS = ("prompt", *_ANSWERS, "annotator")


def ratings_from_preferences(pairs: Dataset, *, hh_format: str = "text") -> tuple[Ratings, RowReport]:
    """Ratings of answers from comparisons: the chosen answer gets 1 and the rejected one 0 from that annotator.

    An item is a prompt with an answer, the same where both texts are the same. A soft label ``preferred`` = p gives p
    and 1 - p. ``weight`` is the weight of both ratings. Several comparisons of the same person and item give
    their weighted mean, with the sum of their weights.

    :param pairs: see :func:`~pluralpref.data.load_preferences`, with a column ``annotator``. Text without a prompt is
        skipped, unless it is an HH transcript: what both answers start with would depend on the comparison.
    :param hh_format: ``"text"`` or ``"chat"``, see :func:`~pluralpref.data.tokenize_preferences`.
    :returns: the ratings, and which rows were used.
    :raises DataError: if there is no annotator, a row lacks one, or no row can be used.
    :raises ConfigError: for an unknown ``hh_format`` or one without effect.
    """
    if hh_format not in ("text", "chat"):
        raise ConfigError(f"hh_format={hh_format!r}: choose 'text' or 'chat'")
    _check_annotators(pairs)
    check_columns(pairs)
    reader = _Comparisons(pairs, hh_format)
    ratings = list(reader)
    reader.report.check(strict=False)
    if hh_format == "chat" and not reader.transcripts:
        raise ConfigError(
            "hh_format='chat' has no effect: no row is a pair of HH transcripts without a prompt of its own"
        )
    return collect_ratings(ratings), reader.report


def ratings_from_table(table: Dataset) -> tuple[Ratings, RowReport]:
    """Ratings that people gave to single answers.

    :param table: columns annotator, prompt, answer (or completion), rating in [0, 1], and perhaps weight.
        Several ratings of the same person and item give their weighted mean.
    :returns: as :func:`ratings_from_preferences`; every row is used.
    :raises DataError: for missing columns and bad values; the message names row and column.
    """
    _check_annotators(table)
    answers = [name for name in _ANSWERS if name in table.column_names]
    if len(answers) > 1:
        raise DataError("there is a column 'answer' and a column 'completion': leave one out")
    for name in ("prompt", *(answers or _ANSWERS[:1]), "rating"):
        if name not in table.column_names:
            raise DataError(f"no column {name!r} in the ratings: there are {', '.join(table.column_names)}")
    if not len(table):
        raise DataError("the ratings have no rows")
    answer, ratings = answers[0], []
    for number, row in enumerate(table):
        for name in ("prompt", answer):
            check_field(name, row[name], number)
        if row["prompt"] is None or not row[answer]:
            empty = "prompt" if row["prompt"] is None else answer
            raise DataError(f"row {number}: column {empty!r} is empty; leave the row out")
        value = _number(row["rating"], "rating", 1.0, number)
        weight = _number(row["weight"], "weight", math.inf, number) if "weight" in row else 1.0
        ratings.append(Rating(str(row["annotator"]), Item(row["prompt"], row[answer]), value, weight))
    return collect_ratings(ratings), RowReport(total=len(table))


def load_ratings(source: Any, *, split: str | None = None, name: str | None = None) -> Dataset:
    """A table of ratings, its columns unchecked; sources as in :func:`~pluralpref.data.load_preferences`."""
    return read_source(source, split, name, _TEXT_COLUMNS)


class _Comparisons:
    """Both ratings of every row, counting the rows that give none."""

    def __init__(self, pairs: Dataset, hh_format: str) -> None:
        columns = [*_FIELDS, "annotator", "preferred", "weight"]
        self.rows = pairs.select_columns([name for name in columns if name in pairs.column_names])
        self.hh_format = hh_format
        self.report = RowReport(total=len(pairs))
        self.transcripts = 0

    def __iter__(self) -> Iterator[Rating]:
        for number, row in enumerate(self.rows):
            implicit = row.get("prompt") is None
            transcript = implicit and is_transcript(row["chosen"])
            self.transcripts += transcript
            fields, reason = normalize_row(row, number, self.hh_format)
            if reason is None and implicit and isinstance(row["chosen"], str) and not transcript:
                reason = "no_prompt"
            if reason is not None:
                self.report.skip(reason, number)
                continue
            p, weight = float(row.get("preferred", 1.0)), float(row.get("weight", 1.0))
            for side, value in (("chosen", p), ("rejected", 1.0 - p)):
                yield Rating(str(row["annotator"]), Item(fields["prompt"], fields[side]), value, weight)


def _check_annotators(table: Dataset) -> None:
    if "annotator" not in table.column_names:
        raise DataError(
            "no column 'annotator': bridging needs to know who rated or chose; there are "
            f"{', '.join(table.column_names)}"
        )
    for row, value in enumerate(table["annotator"]):
        if value is None or value == "" or value != value:
            raise DataError(f"row {row}: column 'annotator' is empty; leave the row out")


def _number(value: Any, column: str, top: float, row: int) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value) or not 0 <= value <= top:
        wanted = "a number in [0, 1]" if column == "rating" else "a finite number of at least 0"
        raise DataError(f"row {row}: column {column!r} is {value!r}; expected {wanted}")
    return float(value)
