"""TL;DR comparisons: workers choose between two summaries of a post (Stiennon et al. 2020, arXiv 2009.01325)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

from datasets import Dataset

from pluralpref.data.sets.build import build_pairs, pair_features
from pluralpref.data.sets.pair_report import PairReport
from pluralpref.data.sets.pairs import Outcome, chosen_against_others, keep
from pluralpref.data.sets.source import Hub, read_table
from pluralpref.data.sets.values import check_choice, label, said, text, whole_number
from pluralpref.errors import DataError

Format = Literal["text", "messages"]

# The repository itself holds a loading script, which datasets doesn't run any more; this branch holds Parquet files.
HUB = Hub("openai/summarize_from_feedback", data_dir="comparisons", revision="refs/convert/parquet")
_COLUMNS = ("info", "summaries", "choice", "worker")
_SCHEMA = (*_COLUMNS, "info.id", "summaries.text")


def read_summarize_from_feedback(
    source: Any = None, *, split: str | None = None, format: Format = "text"
) -> tuple[Dataset, PairReport]:
    r"""The configuration ``comparisons`` as pairs: each row is the choice of one worker, of weight 1.

    The prompt is the paper's: ``SUBREDDIT: r/…``, ``TITLE: …``, ``POST: …`` and ``TL;DR:`` with empty lines between.
    Rows of the validation split may be about a news article (CNN/DM), which has ``info.article`` in the place of
    ``info.post``: ``Article: …``, ``TL;DR:``.

    :param source: ``None`` for the hub, a file, a folder, or a data set.
    :param split: ``"train"`` or ``"validation"``; on the hub ``"train"`` unless another one is named.
    :param format: ``"text"``, an answer being a space and the summary; or ``"messages"``.
    :returns: prompt, chosen, rejected, weight, annotator (worker), conversation (info.id), kind (post or article),
        subreddit; and the accounting.
    :raises DataError: if columns are missing or no pair is left.
    :raises ConfigError: for a bad option.
    """
    check_choice("format", format, get_args(Format))
    rows = read_table(source, HUB, _SCHEMA, split)
    features = pair_features(("annotator", "conversation", "kind", "subreddit"), text=format == "text")
    report = PairReport()
    dataset = build_pairs(rows, _COLUMNS, _Expand(format == "text"), features, report, "Reading TL;DR")
    report.check(strict=False)
    return dataset, report


class _Expand:
    """The pair of one row."""

    def __init__(self, plain: bool) -> None:
        self.plain = plain

    def __call__(self, row: dict[str, Any], number: int, report: PairReport) -> Iterator[dict[str, Any]]:
        if row["worker"] in (None, ""):
            report.unusable("no_annotator", number)
            return
        info = row["info"] or {}
        kind, prompt = _prompt(info, number)
        if not prompt:
            report.unusable("no_prompt", number)
            return
        answers = [text(summary, "text", number).strip() for summary in row["summaries"] or ()]
        if len(answers) > 2:
            raise DataError(f"row {number}: column 'summaries' has {len(answers)} entries; expected 2")
        choice = whole_number(row["choice"])
        if len(answers) < 2:
            outcomes = [Outcome(0, 0, "single_answer")]
        elif choice not in (0, 1):
            outcomes = [Outcome(0, 0, "no_choice")]
        else:
            outcomes = chosen_against_others(answers, choice)
        for chosen, rejected, weight in keep(outcomes, number, report):
            yield {
                "prompt": prompt if self.plain else said("user", prompt),
                "chosen": self._answer(answers[chosen]),
                "rejected": self._answer(answers[rejected]),
                "weight": weight,
                "annotator": str(row["worker"]),
                "conversation": label(info.get("id")),
                "kind": kind,
                "subreddit": label(info.get("subreddit")),
            }

    def _answer(self, summary: str) -> Any:
        return " " + summary if self.plain else said("assistant", summary)


def _prompt(info: Mapping[str, Any], number: int) -> tuple[str, str]:
    """Kind and prompt; ``""`` if there is nothing to summarise."""
    post, article = (text(info, name, number).strip() for name in ("post", "article"))
    if post:
        lines = [
            *([f"SUBREDDIT: r/{info['subreddit']}"] if info.get("subreddit") else []),
            *([f"TITLE: {info['title']}"] if info.get("title") else []),
            f"POST: {post}",
        ]
        return "post", "\n\n".join([*lines, "TL;DR:"])
    return "article", f"Article: {article}\n\nTL;DR:" if article else ""
