"""Score tokenised pairs and write the table of margins; shared by ``train`` and ``margins``."""

from __future__ import annotations

import os
from typing import Any

from pluralpref.cli.options import show_progress
from pluralpref.data import MarginsTable, write_margins
from pluralpref.likelihood import NO_REFERENCE, score_margins

_OWN_COLUMNS = {"prompt_ids", "chosen_ids", "rejected_ids", "length", "annotator", "weight", "preferred"}


def write_scored(
    path: str | os.PathLike[str],
    policy: Any,
    reference: Any,
    dataset: Any,
    collator: Any,
    batch_size: int,
    metadata: dict[str, Any],
    attn_layout: str = "auto",
) -> MarginsTable:
    """Margins of all pairs of a tokenised data set, with every further simple column of the source, as Parquet."""
    scores = score_margins(
        policy,
        reference,
        dataset,
        collator,
        batch_size=batch_size,
        progress=show_progress(),
        attn_layout=attn_layout,
    )
    if reference is NO_REFERENCE:
        scores = {
            "margins": scores["margins"],
            "chosen_rewards": scores["chosen_logps"],
            "rejected_rewards": scores["rejected_logps"],
        }
    names = [name for name in dataset.column_names if name not in _OWN_COLUMNS and name not in scores]
    groups: dict[str, Any] = {name: list(dataset[name]) for name in names}
    groups.update({name: values.tolist() for name, values in scores.items() if name != "margins"})
    table = MarginsTable(
        margins=scores["margins"],
        annotator=list(dataset["annotator"]) if "annotator" in dataset.column_names else None,
        weight=_column(dataset, "weight"),
        preferred=_column(dataset, "preferred"),
        groups=groups,
        metadata=metadata,
    )
    write_margins(path, table)
    return table


def _column(dataset: Any, name: str) -> Any:
    return [float(value) for value in dataset[name]] if name in dataset.column_names else None
