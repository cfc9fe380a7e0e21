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
from pluralpref.diagnostics import write_report
from pluralpref.errors import ConfigError, DataError
from pluralpref.evaluation import held_out_metrics
from pluralpref.inference.posterior_draws import PosteriorDraws, load_posterior
from pluralpref.models import FAMILIES, StrengthModel, make_strength


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
    output: str | None = field(default=None, metadata={"help": "The HTML file; default: report.html in the folder."})


def main(argv: Sequence[str]) -> int:
    """Write one self-contained HTML file about a run: data, training law, posterior, and what identifies them."""
    (options,) = parse("report", (ReportOptions,), argv, main.__doc__ or "")
    run = Path(need(options.run_dir, "run_dir"))
    if not (run / "config.yaml").is_file():
        raise DataError(f"--run_dir {run}: no config.yaml, so not the folder of a run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    law = StrengthModel.from_pretrained(run / "strength") if (run / "strength").is_dir() else None
    margins_path = _existing(options.margins, run / "margins.parquet", "margins")
    table = None if margins_path is None else read_margins(margins_path)
    posterior_path = _existing(options.posterior, run / "posterior.nc", "posterior")
    posterior = None
    if posterior_path is not None:
        posterior = load_posterior(posterior_path)
        model = _model_of(posterior, law)
        if model is not None:
            posterior = load_posterior(posterior_path, model)
    metrics = None
    if table is not None and law is not None:
        metrics = held_out_metrics(
            law, table.margins, weight=table.weight, annotator=table.annotator, preferred=table.preferred
        )
    notices = [] if posterior is not None else ["No posterior yet: run pluralpref posterior on the held-out margins."]
    path = write_report(
        options.output or run / "report.html",
        title=f"Preference strength: {run.name}",
        config=config,
        rows=_rows(run / "rows.json"),
        training=_training(run / "metrics.jsonl"),
        training_law=law,
        posterior=posterior,
        margins=None if table is None else table.margins,
        preferred=None if table is None else table.preferred,
        metrics=metrics,
        notices=notices,
        reproduce=f"pluralpref train --config {run / 'config.yaml'}",
    )
    print(path)
    return 0


def _model_of(posterior: PosteriorDraws, law: StrengthModel | None) -> StrengthModel | None:
    """A strength model with the posterior's family and parameters: the run's own, or a built-in by default arguments."""
    candidates = [make_strength(family) for family in FAMILIES]
    for model in ([law] if law is not None else []) + candidates:
        if type(model).__name__ == posterior.family and sorted(model.parameter_names()) == sorted(posterior.names):
            return model
    return None


def _existing(given: str | None, default: Path, flag: str) -> Path | None:
    if given is not None and not Path(given).is_file():
        raise ConfigError(f"--{flag} {given}: no such file")
    path = default if given is None else Path(given)
    return path if path.is_file() else None


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
