"""A table of margins with the columns that commands read from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pluralpref.cli.options import need
from pluralpref.data import MarginsTable, read_margins
from pluralpref.errors import ConfigError, DataError


@dataclass
class TableOptions:
    """The choices."""

    margins: str | None = field(default=None, metadata={"help": "A table with a column margin (Parquet or CSV)."})
    single_choices: bool = field(
        default=False, metadata={"help": "Take every pair as a person of its own although annotators are known."}
    )
    group_columns: list[str] | None = field(
        default=None, metadata={"help": "Columns of groups whose level of strength may differ (partial pooling)."}
    )


def read_choices(options: TableOptions) -> tuple[MarginsTable, dict[str, Any]]:
    """(the table, arguments for ``fit_posterior`` and ``compare``).

    :raises ConfigError: for an option without effect.
    :raises DataError: for a column that isn't there.
    """
    table = read_margins(need(options.margins, "margins"))
    if options.single_choices and table.annotator is None:
        raise ConfigError("--single_choices has no effect: the table has no column 'annotator'")
    columns = {}
    for name in options.group_columns or []:
        if name not in table.groups:
            raise DataError(
                f"--group_columns: the table has no column {name!r}; its groups are {', '.join(table.groups) or 'none'}"
            )
        columns[name] = np.asarray([str(value) for value in table.groups[name]])
    return table, {
        "margins": table.margins,
        "annotator": None if options.single_choices else table.annotator,
        "weight": table.weight,
        "preferred": table.preferred,
        "groups": columns or None,
    }
