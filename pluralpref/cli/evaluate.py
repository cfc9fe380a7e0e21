"""``pluralpref evaluate``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from pluralpref.atomic import written_aside
from pluralpref.cli.evaluate_inputs import InputOptions, read_runs
from pluralpref.cli.options import parse
from pluralpref.errors import ConfigError
from pluralpref.evaluation import Evaluation, compare_runs, evaluate
from pluralpref.evaluation.summary import plain

_COUNTS = ("pairs", "annotators", "groups/")


@dataclass
class EvaluateOptions:
    """What is reported."""

    bins: int = field(default=10, metadata={"help": "Of the reliability curve; 0 leaves calibration out."})
    num_resamples: int = field(default=2000, metadata={"help": "Of the bootstrap; 0 leaves intervals out."})
    level: float = field(default=0.95, metadata={"help": "Of the intervals."})
    seed: int = field(default=0, metadata={"help": "Of the bootstrap; the result depends on nothing else."})
    output: str | None = field(default=None, metadata={"help": "Also write everything as JSON to this file."})
    people: str | None = field(
        default=None, metadata={"help": "Also write each annotator's metrics to this file (CSV or Parquet)."}
    )
    groups: str | None = field(
        default=None, metadata={"help": "Also write each group's metrics and intervals to this file (CSV or Parquet)."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace existing files."})


def main(argv: Sequence[str]) -> int:
    """Metrics of held-out margins under a law of strength: log-loss, accuracy, micro and macro margins, calibration.

    With intervals from a bootstrap of annotators; of several runs also their differences to the first.
    """
    inputs, options = parse("evaluate", (InputOptions, EvaluateOptions), argv, main.__doc__ or "")
    _check(inputs, options)
    runs = read_runs(inputs)
    if len(runs) > 1 and not options.num_resamples:
        raise ConfigError("--num_resamples 0: differences of several runs come with intervals; give at least 100")
    if options.people and any(run.scores.annotator is None for run in runs.values()):
        raise ConfigError("--people has no effect without annotators: the table needs a column 'annotator'")
    bootstrap = {"level": options.level, "num_resamples": options.num_resamples, "seed": options.seed}
    scores = {name: run.scores for name, run in runs.items()}
    # Before the rest, so that runs on different pairs are refused at once.
    differences = compare_runs(scores, **bootstrap) if len(runs) > 1 else None
    found = {name: evaluate(each, bins=options.bins, **bootstrap) for name, each in scores.items()}
    records: dict[str, Any] = {}
    for name, evaluation in found.items():
        records[name] = {"law": repr(runs[name].strength), **evaluation.record()}
        if len(runs) > 1:
            print(f"== {name}")
        print(f"{scores[name].num_pairs} margins under {runs[name].strength!r}")
        _show(evaluation)
        print()
    record = next(iter(records.values()))
    if differences is not None:
        _show_differences(differences)
        rows = differences.reset_index().to_dict("records")
        record = {"runs": records, "differences": plain(rows), "comparison": plain(differences.attrs)}
    if options.output:
        with written_aside(Path(options.output)) as partial:
            partial.write_text(json.dumps(record, indent=2, allow_nan=False))
        print(f"metrics: {options.output}")
    if options.people:
        _write(options.people, {name: each.people.reset_index() for name, each in found.items()})
        print(f"annotators: {options.people}")
    if options.groups:
        _write(options.groups, {name: _stacked(each.groups) for name, each in found.items()})
        print(f"groups: {options.groups}")
    return 0


def _check(inputs: InputOptions, options: EvaluateOptions) -> None:
    for flag, path in (("output", options.output), ("people", options.people), ("groups", options.groups)):
        if path and Path(path).exists() and not options.overwrite:
            raise ConfigError(f"--{flag} {path} exists: choose another name or give --overwrite")
        if path and flag != "output" and Path(path).suffix not in (".csv", ".parquet"):
            raise ConfigError(f"--{flag} {path}: the name must end in .csv or .parquet")
    if options.bins < 0:
        raise ConfigError(f"--bins {options.bins}: must be at least 0")
    if not options.num_resamples:
        for flag, without in (
            ("cluster_column", inputs.cluster_column is None),
            ("level", options.level == EvaluateOptions.level),
            ("seed", options.seed == EvaluateOptions.seed),
        ):
            if not without:
                raise ConfigError(f"--{flag} has no effect with --num_resamples 0: leave it out")
    if options.groups and not inputs.group_columns:
        raise ConfigError("--groups has no effect without --group_columns: name the columns")


def _show(evaluation: Evaluation) -> None:
    means = pd.DataFrame({"value": {name: evaluation.metrics[name] for name in evaluation.metrics if _is_mean(name)}})
    if evaluation.intervals is not None:
        means = means.join(evaluation.intervals[["low", "high", "standard_error"]])
        print(_how(evaluation.intervals.attrs))
    for note in evaluation.notes:
        print(f"note: {note}")
    print(_text(means))
    counts = {name: value for name, value in evaluation.metrics.items() if name.startswith(_COUNTS)}
    print("\n" + ", ".join(f"{name} {value:g}" for name, value in counts.items()))
    for column, frame in evaluation.groups.items():
        print(f"\nby {column}")
        print(_text(frame.rename_axis(None)))
    if evaluation.groups:
        print("\nworst groups")
        print(_text(evaluation.worst.reset_index().set_index("column").rename_axis(None)))
    if evaluation.reliability is not None:
        print("\ncalibration: E[sigma(beta h)] (mixed), sigma(E[beta] h) (plug_in)")
        print(_text(evaluation.calibration.rename_axis(None)))
        ties = evaluation.reliability.attrs["ties"]
        print(f"\nhow often the answer with the higher margin was preferred ({ties} ties left out)")
        print(evaluation.reliability.to_string(index=False, float_format=_short))


def _is_mean(name: str) -> bool:
    """Whether a metric belongs into the first table: groups have tables of their own."""
    return not name.startswith(("group/", *_COUNTS)) and "/worst/" not in name


def _show_differences(table: Any) -> None:
    by = {"key": "their keys", "order": "the order of the rows"}[table.attrs["matched_by"]]
    print(f"differences to {table.attrs['reference']}, pairs matched by {by}; {_how(table.attrs)}")
    columns = ["value", "difference", "low", "high", "standard_error"]
    for name, frame in table.groupby(level="run", sort=False):
        print(f"== {name}")
        print(_text(frame.droplevel("run")[columns].rename_axis(None)))


def _how(attrs: Mapping[str, Any]) -> str:
    return (
        f"intervals: {attrs['level']:.4g}, {attrs['interval']}, {attrs['num_resamples']} resamples of "
        f"{attrs['num_clusters']} clusters ({attrs['cluster']})"
    )


def _text(table: Any) -> str:
    return table.to_string(float_format=_short, na_rep="-")


def _short(value: float) -> str:
    return f"{value:.6g}"


def _stacked(groups: Mapping[str, Any]) -> Any:
    parts = [frame.reset_index(names="group").assign(column=column) for column, frame in groups.items()]
    table = pd.concat(parts, ignore_index=True)
    return table[["column", *(name for name in table.columns if name != "column")]]


def _write(path: str, tables: Mapping[str, Any]) -> None:
    """One table; of several runs with a column that names them."""
    if len(tables) > 1:
        tables = {name: table.assign(run=name) for name, table in tables.items()}
    table = pd.concat(list(tables.values()), ignore_index=True)
    with written_aside(Path(path)) as partial:
        if path.endswith(".csv"):
            table.to_csv(partial, index=False)
        else:
            table.to_parquet(partial, index=False)
