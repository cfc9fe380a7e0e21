"""Which laws and tables of margins ``pluralpref evaluate`` is about: one run or several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pluralpref.cli.margins_options import TableOptions, read_choices
from pluralpref.cli.options import need
from pluralpref.errors import ConfigError
from pluralpref.evaluation import PairScores, pair_scores
from pluralpref.evaluation.labels import table_column
from pluralpref.models import StrengthModel


@dataclass
class InputOptions:
    """The choices, and by which law."""

    run_dir: list[str] | None = field(
        default=None,
        metadata={
            "help": "Folder of a run: its strength, and its margins.parquet unless --margins is given. Several folders are "
            "compared with the first."
        },
    )
    margins: list[str] | None = field(
        default=None,
        metadata={
            "help": "A table with a column margin (Parquet or CSV) instead of the run's. Several tables of the same held-out "
            "pairs are compared with the first."
        },
    )
    strength: list[str] | None = field(
        default=None,
        metadata={"help": "Folder of a saved strength model, instead of a run's; one for all tables, or one for each."},
    )
    group_columns: list[str] | None = field(
        default=None,
        metadata={
            "help": "Columns of the table, such as a demographic: metrics of each value, their macro mean and the worst. "
            "Pairs without a value are the value 'missing'."
        },
    )
    cluster_column: str | None = field(
        default=None,
        metadata={
            "help": "Column of what the intervals resample, such as a conversation. Default: annotators, or pairs where "
            "they aren't known."
        },
    )
    key_column: str | None = field(
        default=None,
        metadata={
            "help": "Column that tells which pair a row is, to match the pairs of several runs. Default: the column row, "
            "which train and margins write; without it the order."
        },
    )
    single_choices: bool = field(
        default=False, metadata={"help": "Take every pair as a person of its own although annotators are known."}
    )


@dataclass(frozen=True)
class Run:
    """One law and one table, scored."""

    strength: StrengthModel
    scores: PairScores


def read_runs(options: InputOptions) -> dict[str, Run]:
    """Load and score what the options name, by run.

    :raises ConfigError: for options that are missing, have no effect or don't fit together.
    :raises DataError: for tables that can't be used.
    """
    folders, tables = _paths(options)
    names = _names(options, folders, tables)
    if options.key_column is not None and len(names) == 1:
        raise ConfigError("--key_column has no effect on a single run: it matches the pairs of several")
    return {name: _read(folder, table, options) for name, folder, table in zip(names, folders, tables, strict=True)}


def _paths(options: InputOptions) -> tuple[list[str], list[str]]:
    runs = options.run_dir or []
    if runs and options.strength and options.margins:
        raise ConfigError("--run_dir has no effect beside --strength and --margins: leave it out")
    folders = options.strength or [str(Path(run) / "strength") for run in runs]
    tables = options.margins or [str(Path(run) / "margins.parquet") for run in runs]
    need(folders or None, "strength (or --run_dir)")
    need(tables or None, "margins (or --run_dir)")
    size = max(len(folders), len(tables))
    if len(folders) not in (1, size) or len(tables) not in (1, size):
        raise ConfigError(
            f"{len(folders)} laws and {len(tables)} tables of margins: give one of either, or as many of both"
        )
    return (folders * size)[:size], (tables * size)[:size]


def _names(options: InputOptions, folders: Sequence[str], tables: Sequence[str]) -> list[str]:
    """The paths that tell the runs apart."""
    for flag, given in (("run_dir", options.run_dir), ("margins", options.margins), ("strength", options.strength)):
        if given and len(given) == len(folders):
            twice = [path for i, path in enumerate(given) if path in given[:i]]
            if not twice:
                return list(given)
            if len(set(zip(folders, tables, strict=True))) < len(folders):
                raise ConfigError(f"--{flag} {twice[0]} is given twice")
    return [f"{table} under {folder}" for folder, table in zip(folders, tables, strict=True)]


def _read(folder: str, path: str, options: InputOptions) -> Run:
    table, columns = read_choices(TableOptions(path, options.single_choices, options.group_columns))
    for flag, name in (("cluster_column", options.cluster_column), ("key_column", options.key_column)):
        if name is not None:
            table_column(table, name, f"--{flag}")
    strength = StrengthModel.from_pretrained(folder)
    scores = pair_scores(
        strength,
        replace(table, annotator=columns["annotator"]),
        groups=options.group_columns or [],
        cluster=options.cluster_column,
        key=options.key_column,
    )
    return Run(strength, scores)
