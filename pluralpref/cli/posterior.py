"""``pluralpref posterior``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pluralpref.cli.options import need, parse, show_progress
from pluralpref.data import read_margins
from pluralpref.errors import ConfigError
from pluralpref.inference.posterior import fit_posterior
from pluralpref.models import FAMILIES, make_strength


@dataclass
class PosteriorOptions:
    """What is fitted."""

    margins: str | None = field(default=None, metadata={"help": "A table with a column margin (Parquet or CSV)."})
    family: str = field(default="lognormal", metadata={"help": f"Family of beta: {', '.join(FAMILIES)}."})
    beta: float = field(default=0.1, metadata={"help": "Centre of the wide default prior of the mean of beta."})
    single_choices: bool = field(
        default=False, metadata={"help": "Take every pair as a person of its own although annotators are known."}
    )
    output: str = field(default="posterior.nc", metadata={"help": "ArviZ data, NetCDF."})
    num_samples: int = field(default=1000, metadata={"help": "Draws in each chain."})
    num_warmup: int = field(default=500, metadata={"help": "Steps of warm-up in each chain."})
    num_chains: int = field(default=4, metadata={"help": "Chains."})
    seed: int = field(default=0, metadata={"help": "Seed; the draws depend on nothing else."})
    overwrite: bool = field(default=False, metadata={"help": "Replace an existing file."})


def main(argv: Sequence[str]) -> int:
    """Draw from the posterior of the distribution of beta given margins, and write it as ArviZ data."""
    (options,) = parse("posterior", (PosteriorOptions,), argv, main.__doc__ or "")
    if Path(options.output).exists() and not options.overwrite:
        raise ConfigError(f"--output {options.output} exists: choose another name or give --overwrite")
    table = read_margins(need(options.margins, "margins"))
    if options.single_choices and table.annotator is None:
        raise ConfigError("--single_choices has no effect: the table has no column 'annotator'")
    posterior = fit_posterior(
        make_strength(options.family, options.beta),
        table.margins,
        annotator=None if options.single_choices else table.annotator,
        weight=table.weight,
        preferred=table.preferred,
        num_samples=options.num_samples,
        num_warmup=options.num_warmup,
        num_chains=options.num_chains,
        seed=options.seed,
        progress_bar=show_progress(),
    )
    posterior.save(options.output)
    print(posterior.summary().to_string())
    for line in posterior.identification:
        print(f"note: {line}")
    print(f"posterior of {len(table)} margins: {options.output}")
    return 0
