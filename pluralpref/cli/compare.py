"""``pluralpref compare``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pluralpref.atomic import written_aside
from pluralpref.cli.margins_options import TableOptions, read_choices
from pluralpref.cli.options import parse, show_progress
from pluralpref.diagnostics import compare, default_models
from pluralpref.errors import ConfigError
from pluralpref.inference.choices import as_choices
from pluralpref.models import FAMILIES, make_strength

_NOISE = "label_noise"


@dataclass
class CompareOptions:
    """What is compared."""

    families: list[str] | None = field(
        default=None,
        metadata={
            "help": f"Models: {_NOISE}, {', '.join(name for name in FAMILIES if name != 'fixed')}. Default: one strength for "
            "all, label noise, log-normal, gamma, two classes, and a group model for each of --group_columns."
        },
    )
    beta: float | None = field(
        default=None, metadata={"help": "With --families: centre of the wide default prior of the mean of beta (0.1)."}
    )
    level: str | None = field(
        default=None,
        metadata={
            "help": "What is left out: annotator or pair. Default: both, where annotators are known; pairs take longer."
        },
    )
    method: str = field(default="auto", metadata={"help": "How each is fitted: auto, laplace, nuts or svi."})
    num_samples: int = field(default=1000, metadata={"help": "Draws in each of 4 chains."})
    seed: int = field(default=0, metadata={"help": "Seed; the result depends on nothing else."})
    drivers: int = field(default=0, metadata={"help": "Also list so many annotators (or pairs) that drive the result."})
    output: str | None = field(default=None, metadata={"help": "Also write everything as JSON to this file."})
    overwrite: bool = field(default=False, metadata={"help": "Replace an existing file."})


def main(argv: Sequence[str]) -> int:
    """Compare families of preference strength: who predicts a left-out person, and a left-out pair, best."""
    of_table, options = parse("compare", (TableOptions, CompareOptions), argv, main.__doc__ or "")
    if options.output and Path(options.output).exists() and not options.overwrite:
        raise ConfigError(f"--output {options.output} exists: choose another name or give --overwrite")
    if options.beta is not None and options.families is None:
        raise ConfigError("--beta has no effect without --families: leave it out, or name the families")
    table, columns = read_choices(of_table)
    models: dict[str, Any] = default_models(as_choices(**columns))
    if options.families is not None:
        if of_table.group_columns:
            raise ConfigError("--group_columns has no effect together with --families: leave one out")
        beta = 0.1 if options.beta is None else options.beta
        models = {name: models[_NOISE] if name == _NOISE else make_strength(name, beta) for name in options.families}
    found = compare(
        **columns,
        models=models,
        level=options.level,
        method=options.method,
        num_samples=options.num_samples,
        seed=options.seed,
        progress_bar=show_progress(),
    )
    drivers: dict[str, Any] = {}
    for level, frame in found.tables.items():
        print(f"leaving out one {level} at a time (nats)")
        print(frame.to_string(float_format=lambda value: f"{value:.4g}"))
        print()
    if options.drivers:
        ranking = [str(name) for name in next(iter(found.tables.values())).index]
        best = ranking[0]
        reference = "fixed" if "fixed" in ranking and best != "fixed" else ranking[-1]
        frame = found.drivers(best, reference).head(options.drivers)
        drivers = {"model": best, "reference": reference, "units": frame.reset_index(names="unit").to_dict("records")}
        print(f"what makes {best} better than {reference}: gain in nats, share of all gains")
        print(frame.to_string(float_format=lambda value: f"{value:.4g}"))
        print()
    for sentence in found.sentences:
        print(sentence)
    for name, posterior in found.posteriors.items():
        for line in posterior.identification:
            print(f"note ({name}): {line}")
    if options.output:
        record = {"num_pairs": len(table), **found.record(), "drivers": drivers}
        with written_aside(Path(options.output)) as partial:
            partial.write_text(json.dumps(record, indent=2))
        print(f"comparison of {len(models)} models on {len(table)} margins: {options.output}")
    return 0
