"""The strength model that a command line describes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from pluralpref.errors import ConfigError, DataError
from pluralpref.models import FAMILIES, CovariateStrength, GroupStrength, StrengthModel, make_strength

#: Families that read columns of the data set, and what they are made of.
_BY_COLUMNS = ("covariate", "group")
#: More groups than this are rather annotators, whose strengths a family describes without naming them.
_MOST_GROUPS = 1000


@dataclass
class StrengthOptions:
    """The distribution of beta."""

    strength: str = field(
        default="lognormal", metadata={"help": f"Family of beta: {', '.join((*FAMILIES, *_BY_COLUMNS))}."}
    )
    beta: float = field(default=0.1, metadata={"help": "Mean of beta at the start (its value, where fixed)."})
    strength_cv: float | None = field(
        default=None, metadata={"help": "Coefficient of variation of beta at the start (0.5)."}
    )
    strength_columns: list[str] | None = field(
        default=None,
        metadata={
            "help": "covariate: numeric columns that beta depends on; group: the column or columns of the group."
        },
    )
    strength_of: str | None = field(
        default=None, metadata={"help": "covariate, group: the family within a group or at features 0 (lognormal)."}
    )
    strength_hidden: int | None = field(
        default=None, metadata={"help": "covariate: units of a small network (default: a linear function)."}
    )


def build_strength(options: StrengthOptions, datasets: Iterable[Any]) -> StrengthModel:
    """The strength model.

    :param options: as parsed.
    :param datasets: all pairs that will be seen; the groups' labels are looked up in them.
    :raises ConfigError: for options that contradict each other or have no effect, and a column given twice.
    :raises DataError: for a column that isn't there, or a group column without two labels.
    """
    family = options.strength
    if family not in _BY_COLUMNS:
        for name in ("strength_columns", "strength_of", "strength_hidden"):
            if getattr(options, name) is not None:
                raise ConfigError(
                    f"--{name} has no effect on --strength {family}: it's for {' and '.join(_BY_COLUMNS)}"
                )
        return make_strength(family, options.beta, options.strength_cv)
    if not options.strength_columns:
        raise ConfigError(f"--strength {family} needs --strength_columns")
    twice = [name for name in options.strength_columns if options.strength_columns.count(name) > 1]
    if twice:
        raise ConfigError(f"--strength_columns {twice[0]} is given twice: name each column once")
    base = make_strength(options.strength_of or "lognormal", options.beta, options.strength_cv)
    sets = list(datasets)
    for column in options.strength_columns:
        for dataset in sets:
            if column not in dataset.column_names:
                raise DataError(
                    f"--strength_columns {column}: no such column; there are {', '.join(dataset.column_names)}"
                )
    if family == "covariate":
        return CovariateStrength(options.strength_columns, base, hidden=options.strength_hidden)
    if options.strength_hidden is not None:
        raise ConfigError("--strength_hidden has no effect on --strength group: it's for covariate")
    labels = {column: _labels(column, sets) for column in options.strength_columns}
    if len(labels) > 1:
        return GroupStrength(labels, base)
    ((column, of_column),) = labels.items()
    return GroupStrength(of_column, base, column=column)


def _labels(column: str, datasets: Iterable[Any]) -> list[str]:
    labels = sorted({str(label) for dataset in datasets for label in dataset[column]})
    if not 2 <= len(labels) <= _MOST_GROUPS:
        raise DataError(
            f"--strength_columns {column}: {len(labels)} different labels; groups need 2 to {_MOST_GROUPS} (for single "
            "people, leave the group out: the family describes how they differ)"
        )
    return labels
