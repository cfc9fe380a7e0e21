"""From the rows of a source to a data set of pairs, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from datasets import Dataset, Features, List, Value

from pluralpref.data.sets.pair_report import PairReport

#: Gives the pairs of one row (row, its number, report) and counts in the report what it leaves out.
Expand = Callable[[dict[str, Any], int, PairReport], Iterator[dict[str, Any]]]

_MESSAGES = List({"role": Value("string"), "content": Value("string")})


def pair_features(labels: Sequence[str], *, text: bool = False) -> Features:
    """Columns of the pairs: prompt, chosen, rejected, weight, and columns of text.

    :param labels: names of the text columns.
    :param text: prompt and answers are text, not messages.
    """
    kind = Value("string") if text else _MESSAGES
    columns: dict[str, Any] = dict.fromkeys(("prompt", "chosen", "rejected"), kind)
    columns |= {"weight": Value("float64")} | {name: Value("string") for name in labels}
    return Features(columns)


def build_pairs(
    dataset: Dataset, columns: Sequence[str], expand: Expand, features: Features, report: PairReport, desc: str
) -> Dataset:
    """Expand every row to its pairs.

    Memory holds one batch of rows at a time. The pairs of a source on disk are written to the cache folder of
    ``datasets``; those of a source in memory stay in memory.

    :param columns: what ``expand`` reads.
    :param report: is added to. Numbers of rows go on from those that it has.
    :param desc: title of the progress bar.
    """
    batches = _Batches(expand, list(features), report, report.rows)
    report.rows += len(dataset)
    if not len(dataset):  # map would keep the source's columns
        return Dataset.from_dict({name: [] for name in features}, features=features)
    rows = dataset.select_columns(list(columns))
    # Counting is done while the rows are read: pairs from the cache would come without their report.
    return rows.map(
        batches,
        batched=True,
        batch_size=200,
        with_indices=True,
        remove_columns=rows.column_names,
        features=features,
        load_from_cache_file=False,
        desc=desc,
    )


class _Batches:
    """Expands a batch; a class so that ``Dataset.map`` can pickle it."""

    def __init__(self, expand: Expand, names: list[str], report: PairReport, first_row: int) -> None:
        self.expand = expand
        self.names = names
        self.report = report
        self.first_row = first_row

    def __call__(self, batch: Any, indices: list[int]) -> dict[str, list[Any]]:
        columns = {name: batch[name] for name in batch}
        pairs: dict[str, list[Any]] = {name: [] for name in self.names}
        for position, index in enumerate(indices):
            row = {name: values[position] for name, values in columns.items()}
            for pair in self.expand(row, self.first_row + index, self.report):
                for name in self.names:
                    pairs[name].append(pair[name])
        return pairs
