"""``pluralpref demo``."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pluralpref.cli.options import parse
from pluralpref.demo.picture import Panel, plot_populations
from pluralpref.demo.runs import START_CV, START_MEAN, DemoSize, run_population
from pluralpref.diagnostics import Table, plot_strength, plot_training, write_report
from pluralpref.errors import ConfigError
from pluralpref.inference.posterior_draws import load_posterior
from pluralpref.models import LogNormalStrength, StrengthModel

TRUE_CVS = (1.5, 0.0)
HEADERS = (
    "true cv", "objective", "cv, end of training", "cv, posterior", "95% interval", "log-loss", "accuracy",
    "micro margin", "macro margin", "time a step",
)  # fmt: skip


@dataclass
class DemoOptions:
    """Where and how much."""

    output_dir: str = field(default="demo-run", metadata={"help": "Folder of the results."})
    seed: int = field(default=0, metadata={"help": "Seed of the populations, the models and the draws."})
    quick: bool = field(default=False, metadata={"help": "A tenth of the training: a look at the machinery only."})
    overwrite: bool = field(default=False, metadata={"help": "Replace an earlier demo in the folder."})


def main(argv: Sequence[str]) -> int:
    """Train a small policy on a heterogeneous and a homogeneous population of simulated annotators, and compare.

    Each population is used with a constant beta (plain DPO), one learned beta, a log-normal (K=16) and a gamma
    distribution of beta. Prints one table and writes report.html.
    """
    (options,) = parse("demo", (DemoOptions,), argv, main.__doc__ or "")
    folder = Path(options.output_dir)
    if (folder / "results.json").exists() and not options.overwrite:
        raise ConfigError(f"--output_dir {folder} holds a demo already: give --overwrite True or another folder")
    folder.mkdir(parents=True, exist_ok=True)
    size = DemoSize(240, 100, 1.0, 50, 100, 100) if options.quick else DemoSize()
    started = time.perf_counter()
    print("Training on two simulated populations, one process each …", flush=True)
    with ProcessPoolExecutor(len(TRUE_CVS), mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(run_population, cv, str(folder), size, options.seed) for cv in TRUE_CVS]
        populations = [future.result() for future in futures]
    rows = [row for population in populations for row in population]
    cells = [_cells(row, population[0]["seconds"]) for population in populations for row in population]
    (folder / "results.json").write_text(json.dumps(rows, indent=2) + "\n")
    path = _report(folder, rows, cells, size, options)
    print("\n" + _markdown(cells) + "\n")
    print(
        "log-loss in nats a pair, margins in nats, on held-out annotators (all with as many choices, so that micro and "
        "macro\nmargins agree); time: median step relative to Fixed, constant, the reference computed beforehand."
    )
    print(f"{time.perf_counter() - started:.0f} s; report: {path}")
    return 0


def _cells(row: dict[str, Any], baseline: float) -> list[str]:
    fixed = row["objective"].startswith("Fixed")
    return [
        f"{row['true_cv']:g}",
        row["objective"],
        "–" if fixed else f"{row['training_cv']:.2f}",
        f"{row['posterior_cv']:.2f}",
        f"{row['low']:.2f} to {row['high']:.2f}",
        f"{row['log_loss']:.4f}",
        f"{row['accuracy']:.3f}",
        f"{row['micro']:.2f}",
        f"{row['macro']:.2f}",
        f"{row['seconds'] / baseline:.2f}",
    ]


def _markdown(cells: list[list[str]]) -> str:
    table = [list(HEADERS), *cells]
    widths = [max(len(line[i]) for line in table) for i in range(len(HEADERS))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in table]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def _report(folder: Path, rows: list[dict[str, Any]], cells: list[list[str]], size: DemoSize, options: Any) -> Path:
    figures, panels = [], []
    for row in rows:
        if not row["objective"].startswith("LogNormal"):
            continue
        run = Path(row["folder"])
        posterior = load_posterior(run / "posterior.nc", LogNormalStrength(START_MEAN, START_CV))
        law = StrengthModel.from_pretrained(run / "strength")
        panels.append(Panel(row["true_cv"], row["training_cv"], posterior.draws("beta_cv").ravel()))
        figures.append(
            (plot_strength(posterior, law), f"True cv {row['true_cv']:g}: the training law and the posterior of beta.")
        )
        figures.append((plot_training(row["history"]), f"True cv {row['true_cv']:g}: training with LogNormal, K=16."))
    picture = plot_populations(panels)
    picture.savefig(folder / "strength.png", dpi=110)
    figures.insert(
        0, (picture, "The distribution of beta relative to its mean: what was simulated, and what was found.")
    )
    caption = (
        "Held-out annotators; log-loss in nats a pair, margins in nats; time relative to Fixed, constant. The cv at the "
        "end of training is where the optimiser stopped; the posterior, a log-normal panel model of the held-out "
        "margins, is the diagnosis, also for policies trained with plain DPO."
    )
    return write_report(
        folder / "report.html",
        title="pluralpref demo",
        subtitle="Two simulated populations, four objectives",
        tables=[Table(list(HEADERS), cells, caption)],
        figures=figures,
        config={**vars(size), "seed": options.seed, "beta at the start: mean": START_MEAN, "cv": START_CV},
        notices=["--quick: far too little training to read anything into the numbers."] if options.quick else [],
        reproduce=f"pluralpref demo --seed {options.seed}" + (" --quick True" if options.quick else ""),
    )
