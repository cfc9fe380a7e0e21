"""``pluralpref posterior``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

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
    num_samples: int = field(default=1000, metadata={"help": "Draws in each chain."})
    num_warmup: int | None = field(default=None, metadata={"help": "nuts: steps of warm-up in each chain (500)."})
    num_chains: int = field(default=4, metadata={"help": "Chains."})
    seed: int = field(default=0, metadata={"help": "Seed; the draws depend on nothing else."})
    overwrite: bool = field(default=False, metadata={"help": "Replace an existing file."})


def main(argv: Sequence[str]) -> int:
    """Draw from the posterior of the distribution of beta given margins, and write it as ArviZ data."""
    of_table, options = parse("posterior", (TableOptions, PosteriorOptions), argv, main.__doc__ or "")
    if Path(options.output).exists() and not options.overwrite:
        raise ConfigError(f"--output {options.output} exists: choose another name or give --overwrite")
    table, columns = read_choices(of_table)
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
    return 0
