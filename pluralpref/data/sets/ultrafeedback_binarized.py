"""UltraFeedback, binarised: the best of four answers against another one, by GPT-4's scores (Tunstall et al. 2023)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from datasets import Dataset

from pluralpref.data.normalize import normalize_row
from pluralpref.data.sets.build import build_pairs, pair_features
from pluralpref.data.sets.pair_report import PairReport
from pluralpref.data.sets.pairs import Outcome, keep
from pluralpref.data.sets.source import Hub, read_table
from pluralpref.data.sets.values import check_tie_threshold, label, text

HUB = Hub("HuggingFaceH4/ultrafeedback_binarized", split="train_prefs")
_COLUMNS = ("prompt", "prompt_id", "chosen", "rejected", "score_chosen", "score_rejected")
_SCHEMA = (*_COLUMNS, "chosen.role", "chosen.content", "rejected.role", "rejected.content")


def read_ultrafeedback_binarized(
    source: Any = None, *, split: str | None = None, tie_threshold: float | None = None
) -> tuple[Dataset, PairReport]:
    """The preference splits as pairs. A model judged, so there is no annotator.

    ``chosen`` and ``rejected`` of the source repeat the user's turn; it becomes the prompt. A row is one choice of
    weight 1.

    :param source: ``None`` for the hub, a file, a folder, or a data set.
    :param split: ``"train_prefs"`` (on the hub, unless another one is named) or ``"test_prefs"``.
    :param tie_threshold: skip rows with score_chosen − score_rejected at most this, 0 for equal scores; ``None`` takes
        the order of the source for granted.
    :returns: prompt, chosen, rejected (messages), weight, conversation (prompt_id); and the accounting.
    :raises DataError: if columns are missing or no pair is left.
    :raises ConfigError: for a bad option.
    """
    check_tie_threshold(tie_threshold)
    rows = read_table(source, HUB, _SCHEMA, split)
    report = PairReport()
    dataset = build_pairs(
        rows, _COLUMNS, _Expand(tie_threshold), pair_features(("conversation",)), report, "Reading UltraFeedback"
    )
    report.check(strict=False)
    return dataset, report


class _Expand:
    """The pair of one row."""

    def __init__(self, tie_threshold: float | None) -> None:
        self.tie_threshold = tie_threshold

    def __call__(self, row: dict[str, Any], number: int, report: PairReport) -> Iterator[dict[str, Any]]:
        asked = text(row, "prompt", number)
        fields, reason = normalize_row({**row, "prompt": asked}, number, "text")
        if not asked.strip():
            reason = "no_prompt"
        elif reason is None and self.tie_threshold is not None:
            scores = (row["score_chosen"], row["score_rejected"])
            if None in scores:
                reason = "no_score"
            elif float(scores[0]) - float(scores[1]) <= self.tie_threshold:
                reason = "score_tie"
        for _, _, weight in keep([Outcome(0, 1, reason)], number, report):
            yield {**fields, "weight": weight, "conversation": label(row["prompt_id"])}
