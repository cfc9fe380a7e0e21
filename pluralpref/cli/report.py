"""``pluralpref report``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pluralpref.cli.options import need, parse
from pluralpref.data import read_margins
from pluralpref.diagnostics import predictive_checks, write_report
from pluralpref.errors import ConfigError, DataError, UnsupportedError
from pluralpref.evaluation import held_out_metrics
from pluralpref.inference.posterior_draws import load_posterior
from pluralpref.models import StrengthModel


@dataclass
class ReportOptions:
    """What is reported."""

    run_dir: str | None = field(default=None, metadata={"help": "Folder of a run, as train writes it."})
    posterior: str | None = field(
        default=None, metadata={"help": "ArviZ data of the posterior; default: posterior.nc in the folder, if there."}
    )
    margins: str | None = field(
        default=None, metadata={"help": "Held-out margins; default: margins.parquet in the folder, if there."}
    )
    comparison: str | None = field(
        default=None,
        metadata={"help": "What compare --output wrote; default: comparison.json in the folder, if there."},
    )
    output: str | None = field(default=None, metadata={"help": "The HTML file; default: report.html in the folder."})


def main(argv: Sequence[str]) -> int:
    """Write one self-contained HTML file about a run: data, training law, posterior, people, and what identifies them.

    Without a run, --posterior and --output make a report of the posterior alone.
    """
    (options,) = parse("report", (ReportOptions,), argv, main.__doc__ or "")
    run = None
    if options.run_dir is None:
        need(options.posterior, "posterior (or --run_dir)")
        need(options.output, "output (or --run_dir)")
    else:
        run = Path(options.run_dir)
        if not (run / "config.yaml").is_file():
            raise DataError(f"--run_dir {run}: no config.yaml, so not the folder of a run")
    law = StrengthModel.from_pretrained(run / "strength") if run and (run / "strength").is_dir() else None
    margins_path = _existing(options.margins, run, "margins.parquet", "margins")
    table = None if margins_path is None else read_margins(margins_path)
    posterior_path = _existing(options.posterior, run, "posterior.nc", "posterior")
    comparison_path = _existing(options.comparison, run, "comparison.json", "comparison")
    notices = []
    posterior = people = checks = None
    if posterior_path is None:
        notices.append("No posterior yet: run pluralpref posterior on the held-out margins.")
    else:
        posterior = load_posterior(posterior_path)
        if law is not None and not posterior.has_data and type(law).__name__ == posterior.family:
            posterior = load_posterior(posterior_path, law)
        try:
            people = posterior.beta_given_choices() if posterior.has_data and posterior.is_panel else None
        except UnsupportedError as error:
            notices.append(f"No table of people: {error}")
        try:
            checks = predictive_checks(posterior) if posterior.has_data else None
        except UnsupportedError as error:
            notices.append(f"No predictive checks: {error}")
    metrics = None
    if table is not None and law is not None:
        metrics = held_out_metrics(
            law, table.margins, weight=table.weight, annotator=table.annotator, preferred=table.preferred
        )
    path = write_report(
        options.output or Path(options.run_dir or ".") / "report.html",
        title=f"Preference strength: {run.name if run else Path(str(posterior_path)).stem}",
        config=yaml.safe_load((run / "config.yaml").read_text()) if run else None,
        rows=_rows(run / "rows.json") if run else None,
        training=_training(run / "metrics.jsonl") if run else (),
        training_law=law,
        posterior=posterior,
        margins=None if table is None else table.margins,
        preferred=None if table is None else table.preferred,
        metrics=metrics,
        people=people,
        checks=checks,
        comparison=None if comparison_path is None else json.loads(comparison_path.read_text()),
        notices=notices,
        reproduce=f"pluralpref train --config {run / 'config.yaml'}" if run else None,
    )
    print(path)
    return 0


def _existing(given: str | None, run: Path | None, default: str, flag: str) -> Path | None:
    if given is not None and not Path(given).is_file():
        raise ConfigError(f"--{flag} {given}: no such file")
    path = Path(given) if given is not None else run / default if run is not None else None
    return path if path is not None and path.is_file() else None


def _rows(path: Path) -> dict[str, int] | None:
    if not path.is_file():
        return None
    counts: dict[str, int] = {}
    for key, report in json.loads(path.read_text()).items():
        counts[f"{key}: read"] = report["total"]
        counts[f"{key}: used"] = report["kept"]
        counts.update({f"{key}: skipped/{reason}": n for reason, n in report["skipped"].items()})
    return counts


def _training(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
