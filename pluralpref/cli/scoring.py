"""Score tokenised pairs and write the table of margins; shared by ``train`` and ``margins``."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from pluralpref.cli.options import show_progress
from pluralpref.data import MarginsTable, write_margins
from pluralpref.errors import DataError
from pluralpref.likelihood import NO_REFERENCE, score_margins
from pluralpref.likelihood.head_logps import LOGITS_BUDGET_BYTES

#: Columns of a tokenised data set that aren't passed on as they are.
_OWN_COLUMNS = {"prompt_ids", "chosen_ids", "rejected_ids", "length", "annotator", "weight", "preferred"}
#: Columns that a table of margins has for itself, beside a reference's numbers, which a data set may bring along.
_SCORES = ("margin", "margins", "chosen_logps", "rejected_logps", "chosen_rewards", "rejected_rewards")


def refuse_columns_of_scores(dataset: Any) -> None:
    """Refuse pairs with a column that the table of margins has for itself, before anything is computed.

    :raises DataError: naming it.
    """
    for name in _SCORES:
        if name in dataset.column_names:
            raise DataError(
                f"the pairs have a column {name!r}, as the table of margins that is to be written has: rename or remove it"
            )


def write_scored(
    path: str | os.PathLike[str],
    policy: Any,
    reference: Any,
    dataset: Any,
    collator: Any,
    batch_size: int,
    metadata: dict[str, Any],
    attn_layout: str = "auto",
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    logits_budget_bytes: int = LOGITS_BUDGET_BYTES,
) -> MarginsTable:
    """Margins of all pairs of a tokenised data set, with every further simple column of the source, as Parquet.

    :param autocast: the training's, where the reference's numbers were computed in training: policy and reference of
        different precision would give margins where there are none.
    :raises DataError: see :func:`refuse_columns_of_scores`.
    """
    refuse_columns_of_scores(dataset)
    scores = score_margins(
        policy,
        reference,
        dataset,
        collator,
        batch_size=batch_size,
        progress=show_progress(),
        attn_layout=attn_layout,
        autocast=autocast,
        logits_budget_bytes=logits_budget_bytes,
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
