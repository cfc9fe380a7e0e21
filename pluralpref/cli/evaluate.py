"""``pluralpref evaluate``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pluralpref.atomic import written_aside
from pluralpref.cli.margins_options import TableOptions, read_choices
from pluralpref.cli.options import need, parse
from pluralpref.errors import ConfigError
from pluralpref.evaluation import calibration_table, held_out_metrics
from pluralpref.models import StrengthModel


@dataclass
class EvaluateOptions:
    """By which law."""

    run_dir: str | None = field(
        default=None,
        metadata={"help": "Folder of a run: its strength, and its margins.parquet unless --margins is given."},
    )
    strength: str | None = field(
        default=None, metadata={"help": "Folder of a saved strength model, instead of a run's."}
    )
    bins: int = field(default=10, metadata={"help": "Of the calibration table; 0 leaves it out."})
    output: str | None = field(default=None, metadata={"help": "Also write everything as JSON to this file."})
    overwrite: bool = field(default=False, metadata={"help": "Replace an existing file."})


def main(argv: Sequence[str]) -> int:
    """Metrics of held-out margins under a law of strength: log-loss, accuracy, micro and macro margins, calibration."""
    of_table, options = parse("evaluate", (TableOptions, EvaluateOptions), argv, main.__doc__ or "")
    if options.output and Path(options.output).exists() and not options.overwrite:
        raise ConfigError(f"--output {options.output} exists: choose another name or give --overwrite")
    if options.bins < 0:
        raise ConfigError(f"--bins {options.bins}: must be at least 0")
    if options.run_dir is not None and options.strength is not None and of_table.margins is not None:
        raise ConfigError("--run_dir has no effect beside --strength and --margins: leave it out")
    if options.run_dir is not None and of_table.margins is None:
        of_table.margins = str(Path(options.run_dir) / "margins.parquet")
    folder = options.strength
    if folder is None:
        folder = str(Path(need(options.run_dir, "strength (or --run_dir)")) / "strength")
    strength = StrengthModel.from_pretrained(folder)
    table, columns = read_choices(of_table)
    metrics = held_out_metrics(strength, **columns)
    record: dict[str, Any] = {"metrics": metrics}
    print(f"{len(table)} margins under {strength!r}")
    width = max(map(len, metrics))
    for name, value in metrics.items():
        print(f"{name:<{width}}  {value:.6g}")
    if options.bins:
        calibration = calibration_table(strength, table.margins, table.preferred, bins=options.bins)
        record["calibration"] = {name: [float(v) for v in values] for name, values in calibration.items()}
        print("\ncalibration: how often the answer with the higher margin was preferred")
        names = list(calibration)
        print("  ".join(f"{name:>14}" for name in names))
        for row in zip(*(calibration[name] for name in names), strict=True):
            print("  ".join(f"{float(value):>14.4g}" for value in row))
    if options.output:
        with written_aside(Path(options.output)) as partial:
            partial.write_text(json.dumps(record, indent=2))
        print(f"\nmetrics: {options.output}")
    return 0
