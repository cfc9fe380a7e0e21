"""HH-RLHF: whole transcripts of a person with an assistant, two last answers (Bai et al. 2022, arXiv 2204.05862)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

from datasets import Dataset, concatenate_datasets

from pluralpref.data.hh import is_transcript
from pluralpref.data.normalize import normalize_row
from pluralpref.data.sets.build import build_pairs, pair_features
from pluralpref.data.sets.pair_report import PairReport
from pluralpref.data.sets.pairs import Outcome, keep
from pluralpref.data.sets.source import Hub, is_hub_name, read_table
from pluralpref.data.sets.values import check_choice, text
from pluralpref.errors import ConfigError

Subset = Literal["harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled"]
Format = Literal["messages", "text"]

HUB = Hub("Anthropic/hh-rlhf")
_COLUMNS = ("chosen", "rejected")


def read_hh_rlhf(
    source: Any = None, *, split: str | None = None, subset: Subset | None = None, format: Format = "messages"
) -> tuple[Dataset, PairReport]:
    r"""HH-RLHF's transcripts as pairs. It says nothing of who chose. A row is one choice of weight 1.

    The prompt is what both transcripts share, up to the last assistant's turn; a few published rows differ earlier.

    :param source: ``None`` for the hub; a folder that holds the subsets' folders; a file, another folder or a data
        set, which is one table without a column ``subset``.
    :param split: ``"train"`` or ``"test"``; on the hub ``"train"`` unless another one is named.
    :param subset: one of the four folders, which is the group column ``subset``; ``None`` for all that are there.
    :param format: ``"messages"``; or ``"text"``, the transcript as it is, the prompt ending in ``"\n\nAssistant:"``.
        With ``"messages"`` rows are skipped whose transcripts differ before the last turn.
    :returns: prompt, chosen, rejected, weight and, if known, subset; and the accounting, where rows are numbered
        through from subset to subset.
    :raises DataError: if columns are missing or no pair is left.
    :raises ConfigError: for a bad option, or one without effect.
    """
    check_choice("subset", subset, (None, *get_args(Subset)))
    check_choice("format", format, get_args(Format))
    report = PairReport()
    parts = []
    for name, part, hub in _parts(source, subset):
        rows = read_table(part, hub, _COLUMNS, split)
        features = pair_features(() if name is None else ("subset",), text=format == "text")
        expand = _Expand("text" if format == "text" else "chat", name)
        parts.append(build_pairs(rows, _COLUMNS, expand, features, report, "Reading HH-RLHF"))
    report.check(strict=False)
    return concatenate_datasets(parts), report


def _parts(source: Any, subset: str | None) -> list[tuple[str | None, Any, Hub]]:
    """Name, source and place on the hub of each subset that is read."""
    names = get_args(Subset)
    if source is None or is_hub_name(source):
        return [(name, source, replace(HUB, data_dir=name)) for name in names if subset in (None, name)]
    folder = Path(source) if isinstance(source, str | Path) else None
    there = [name for name in names if folder is not None and (folder / name).is_dir()]
    if folder is not None and there:
        if subset is not None and subset not in there:
            raise ConfigError(f"subset={subset!r} isn't in {folder}: there are {', '.join(there)}")
        return [(name, folder / name, HUB) for name in there if subset in (None, name)]
    if subset is not None:
        raise ConfigError(f"subset={subset!r} has no effect on a source without the subsets' folders: leave it out")
    return [(None, source, HUB)]


class _Expand:
    """The pair of one row."""

    def __init__(self, hh_format: str, subset: str | None) -> None:
        self.hh_format = hh_format
        self.columns = {} if subset is None else {"subset": subset}

    def __call__(self, row: dict[str, Any], number: int, report: PairReport) -> Iterator[dict[str, Any]]:
        transcripts = {column: text(row, column, number) for column in _COLUMNS}
        if all(transcripts.values()) and not all(map(is_transcript, transcripts.values())):
            report.unusable("transcript", number)
            return
        fields, reason = normalize_row(transcripts, number, self.hh_format)
        for _, _, weight in keep([Outcome(0, 1, reason)], number, report):
            yield {**fields, "weight": weight, **self.columns}
