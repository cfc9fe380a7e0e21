"""``pluralpref posterior``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pluralpref.atomic import written_aside
from pluralpref.cli.margins_options import TableOptions, read_choices
from pluralpref.cli.options import parse, show_progress
from pluralpref.errors import ConfigError
from pluralpref.inference.posterior import fit_posterior
from pluralpref.models import FAMILIES, GroupStrength, make_strength


@dataclass
class PosteriorOptions:
    """What is fitted."""

    family: str = field(default="lognormal", metadata={"help": f"Family of beta: {', '.join(FAMILIES)}."})
    beta: float = field(default=0.1, metadata={"help": "Centre of the wide default prior of the mean of beta."})
    method: str = field(
        default="auto", metadata={"help": "auto (laplace, else nuts; says which and why), laplace, nuts or svi."}
    )
    output: str = field(default="posterior.nc", metadata={"help": "ArviZ data, NetCDF."})
    people: str | None = field(
        default=None,
        metadata={
            "help": "Also write a table of each annotator's strength given their choices to this file (CSV or Parquet): mean, "
            "interval, probability of being less sensitive than the median, and of being opposed."
        },
    )
    num_samples: int = field(default=1000, metadata={"help": "Draws in each chain."})
    num_warmup: int | None = field(default=None, metadata={"help": "nuts: steps of warm-up in each chain (500)."})
    num_chains: int = field(default=4, metadata={"help": "Chains."})
    seed: int = field(default=0, metadata={"help": "Seed; the draws depend on nothing else."})
    overwrite: bool = field(default=False, metadata={"help": "Replace an existing file."})


def main(argv: Sequence[str]) -> int:
    """Draw from the posterior of the distribution of beta given margins, and write it as ArviZ data."""
    of_table, options = parse("posterior", (TableOptions, PosteriorOptions), argv, main.__doc__ or "")
    for flag, path in (("output", options.output), ("people", options.people)):
        if path and Path(path).exists() and not options.overwrite:
            raise ConfigError(f"--{flag} {path} exists: choose another name or give --overwrite")
    if options.people and Path(options.people).suffix not in (".csv", ".parquet"):
        raise ConfigError(f"--people {options.people}: the name must end in .csv or .parquet")
    table, columns = read_choices(of_table)
    if options.people and columns["annotator"] is None:
        raise ConfigError("--people has no effect without annotators: the table needs a column 'annotator'")
    strength = make_strength(options.family, options.beta)
    if columns["groups"]:
        strength = GroupStrength({name: sorted(set(labels)) for name, labels in columns["groups"].items()}, strength)
    posterior = fit_posterior(
        strength,
        **columns,
        method=options.method,
        num_samples=options.num_samples,
        num_warmup=options.num_warmup,
        num_chains=options.num_chains,
        seed=options.seed,
        progress_bar=show_progress(),
    )
    posterior.save(options.output)
    print(posterior.summary().to_string())
    print(f"method: {posterior.attrs['method']} ({posterior.attrs['method_reason']})")
    for line in posterior.identification:
        print(f"note: {line}")
    print(f"posterior of {len(table)} margins: {options.output}")
    if options.people:
        people = posterior.beta_given_choices().table()
        with written_aside(Path(options.people)) as partial:
            (people.to_csv if options.people.endswith(".csv") else people.to_parquet)(partial)
        print(f"strengths of {len(people)} people: {options.people}")
    return 0
