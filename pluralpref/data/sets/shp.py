"""SHP: two comments on one Reddit post, the one with more votes preferred (Ethayarajh et al. 2022, arXiv 2110.08420)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

from datasets import Dataset

from pluralpref.data.sets.build import build_pairs, pair_features
from pluralpref.data.sets.pair_report import PairReport
from pluralpref.data.sets.pairs import Outcome, chosen_against_others, keep
from pluralpref.data.sets.source import Hub, read_table
from pluralpref.data.sets.values import check_choice, label, said, text, whole_number

Unit = Literal["comparison", "post"]

HUB = Hub("stanfordnlp/SHP")
_COLUMNS = ("post_id", "domain", "history", "human_ref_A", "human_ref_B", "labels")
_SPLITS = ("_train", "_validation", "_test")


def read_shp(source: Any = None, *, split: str | None = None, unit: Unit = "comparison") -> tuple[Dataset, PairReport]:
    """SHP as pairs, the subreddit as group ``domain`` (without the split's name, which the source appends).

    ``labels`` is 1 where A is preferred and **0 where B is**. Votes are those of many people: there is no annotator.

    :param source: ``None`` for the hub, a file, a folder, or a data set.
    :param split: ``"train"``, ``"validation"`` or ``"test"``; on the hub ``"train"`` unless another one is named.
    :param unit: what counts once: a ``"comparison"`` (weight 1), or a ``"post"``, whose n pairs weigh 1/n each. A
        post may have many comparisons, which share comments.
    :returns: prompt, chosen, rejected (messages), weight, conversation (post_id), domain; and the accounting, where a
        choice is a comparison.
    :raises DataError: if columns are missing or no pair is left.
    :raises ConfigError: for a bad option.
    """
    check_choice("unit", unit, get_args(Unit))
    rows = read_table(source, HUB, _COLUMNS, split)
    report = PairReport()
    counts: Counter[str] | None = None
    if unit == "post":
        read = enumerate(rows.select_columns(list(_COLUMNS)))
        counts = Counter(post for number, row in read if (post := _usable_post(row, number)) is not None)
    features = pair_features(("conversation", "domain"))
    dataset = build_pairs(rows, _COLUMNS, _Expand(counts), features, report, "Reading SHP")
    report.check(strict=False)
    return dataset, report


class _Expand:
    """The pair of one row."""

    def __init__(self, pairs_of_post: Mapping[str, int] | None) -> None:
        self.pairs_of_post = pairs_of_post

    def __call__(self, row: dict[str, Any], number: int, report: PairReport) -> Iterator[dict[str, Any]]:
        prompt = text(row, "history", number)
        if not prompt.strip():
            report.unusable("no_prompt", number)
            return
        answers = _answers(row, number)
        post = label(row["post_id"])
        for chosen, rejected, weight in keep(_outcome(row, answers), number, report):
            yield {
                "prompt": said("user", prompt),
                "chosen": said("assistant", answers[chosen]),
                "rejected": said("assistant", answers[rejected]),
                "weight": weight if self.pairs_of_post is None else weight / self.pairs_of_post[post],
                "conversation": post,
                "domain": _domain(row["domain"]),
            }


def _answers(row: Mapping[str, Any], number: int) -> list[str]:
    return [text(row, "human_ref_A", number), text(row, "human_ref_B", number)]


def _outcome(row: Mapping[str, Any], answers: list[str]) -> list[Outcome]:
    preferred = {1: 0, 0: 1}.get(whole_number(row["labels"]))  # type: ignore[arg-type]
    return [Outcome(0, 0, "no_choice")] if preferred is None else chosen_against_others(answers, preferred)


def _usable_post(row: Mapping[str, Any], number: int) -> str | None:
    """The post of a row that gives a pair."""
    if not text(row, "history", number).strip():
        return None
    return label(row["post_id"]) if _outcome(row, _answers(row, number))[0].reason is None else None


def _domain(value: Any) -> str:
    name = label(value)
    for split in _SPLITS:
        name = name.removesuffix(split)
    return name
