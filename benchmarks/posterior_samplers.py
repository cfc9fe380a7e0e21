"""Effective draws per second of the posterior of a log-normal strength: Laplace with importance weights against NUTS.

    python benchmarks/posterior_samplers.py [--pairs 20000] [--large 100000] [--rounds 3] [--output table.md]

Three samplers draw from the same posterior of ``beta_mean`` ~ LogNormal(log 0.3, 2) and ``beta_cv`` ~ HalfNormal(1.5):

- ``fit_posterior(method="laplace")``, with its default number of draws;
- ``fit_posterior(method="nuts")``;
- NumPyro's NUTS with a dense mass matrix, on the same collapsed likelihood written in JAX: a fixed Gauss-Hermite rule in
  log beta, float64, jitted.

Each round draws new seeds and runs each sampler once on the same choices, in a fresh random order, so that slow moments of
the machine hit all alike. Effective draws are bulk ESS of ``beta_cv`` for NUTS, and 1 / sum of squared weights for Laplace.
The time is of the whole call: warm-up counts, and so does the preparation of the choices; JAX's compilation doesn't, it
is done once and shown by itself. Beside the wall clock stands processor time, which other processes on the machine disturb
less. The table holds medians over rounds; a ratio is taken within a round, with its smallest and largest value in brackets.
NUTS runs briefly, so warm-up is a larger part of its time than in a long run.

The posterior's means and standard deviations, averaged over rounds, must agree between every two samplers within Monte
Carlo error, or the script ends with an error. Last, Laplace runs alone on the large number of pairs.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import platform
import random
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pluralpref.errors import PluralPrefWarning
from pluralpref.inference import fit_posterior
from pluralpref.inference.arviz_data import convergence, mcse_mean
from pluralpref.models import LogNormalStrength

PRIOR_MEDIAN, PRIOR_LOG_SCALE, PRIOR_CV_SCALE = 0.3, 2.0, 1.5
NAMES = ("beta_mean", "beta_cv")
LAPLACE, NUTS, PEER = "laplace", "nuts", "NumPyro NUTS"
#: Monte Carlo standard errors by which two samplers may differ; there are two dozen comparisons.
MOST_ERRORS = 4.0


@dataclass(frozen=True)
class Run:
    """One call of one sampler."""

    seconds: float
    processor: float
    ess: float
    draws: Mapping[str, np.ndarray]
    compilation: tuple[float, float] | None = None
    weighted: bool = False

    @property
    def rate(self) -> float:
        """Effective draws per second of wall clock."""
        return self.ess / self.seconds

    @property
    def processor_rate(self) -> float:
        """Effective draws per second of processor time."""
        return self.ess / self.processor

    def moments(self, name: str) -> dict[str, tuple[float, float]]:
        """The mean and the standard deviation of a parameter, each with its Monte Carlo standard error."""
        values = self.draws[name]
        mean, sd = float(values.mean()), float(values.std())
        squares = (values - mean) ** 2

        def error(x: np.ndarray) -> float:
            return float(x.std()) / math.sqrt(self.ess) if self.weighted else mcse_mean(x)

        return {"mean": (mean, error(values)), "sd": (sd, error(squares) / (2 * sd))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20_000, help="pairs on which all samplers run")
    parser.add_argument("--large", type=int, default=100_000, help="pairs on which Laplace runs alone")
    parser.add_argument("--each", type=int, default=10, help="pairs of each annotator, where these are known")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--chains", type=int, default=2, help="of NUTS")
    parser.add_argument("--warmup", type=int, default=200, help="steps of each chain before its draws")
    parser.add_argument("--draws", type=int, default=200, help="of each chain of NUTS")
    parser.add_argument("--nodes", type=int, default=64, help="of the quadrature in JAX")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="a file for the table, beside stdout")
    arguments = parser.parse_args()
    least = {"each": 1, "rounds": 1, "chains": 1, "warmup": 1, "draws": 4, "nodes": 2, "threads": 1, "seed": 0}
    for name, value in {"pairs": arguments.each, "large": arguments.each, **least}.items():
        if getattr(arguments, name) < value:
            parser.error(f"--{name} is at least {value}")
    use_threads(arguments.threads)
    load_before = os.getloadavg()[0]
    library(*simulate(100, 1, arguments.seed), LAPLACE)(0)  # the first call imports
    lines = [
        "| choices | sampler | seconds | compilation | ESS | ESS/s | laplace's ESS/s, × | by processor time, × |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    agreement = [
        "| choices | quantity | laplace | nuts | NumPyro NUTS | largest difference, standard errors |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    worst = 0.0
    for each in dict.fromkeys((arguments.each, 1)):
        margins, annotator = simulate(arguments.pairs // each, each, arguments.seed)
        label = describe(len(margins), each)
        runs = measure(samplers(margins, annotator, each, arguments), arguments.rounds, arguments.seed)
        lines += [row(label, name, runs) for name in runs]
        for name, moment in itertools.product(NAMES, ("mean", "sd")):
            pooled = {sampler: pool(values, name, moment) for sampler, values in runs.items()}
            errors = max(abs(a - b) / math.hypot(s, t) for (a, s), (b, t) in itertools.combinations(pooled.values(), 2))
            worst = max(worst, errors)
            cells = " | ".join(f"{value:.4f} ({error:.4f})" for value, error in pooled.values())
            agreement.append(f"| {label} | {moment} of {name} | {cells} | {errors:.1f} |")
    large = ["| choices | seconds | processor s | ESS | mean of beta_cv |", "| --- | --- | --- | --- | --- |"]
    for each in dict.fromkeys((arguments.each, 1)):
        margins, annotator = simulate(arguments.large // each, each, arguments.seed)
        alone = measure({LAPLACE: library(margins, annotator, LAPLACE)}, arguments.rounds, arguments.seed)[LAPLACE]
        seconds = [run.seconds for run in alone]
        large.append(
            f"| {describe(len(margins), each)} | {statistics.median(seconds):.1f} [{min(seconds):.1f}, "
            f"{max(seconds):.1f}] | {median(alone, 'processor'):.1f} | {median(alone, 'ess'):.0f} | "
            f"{statistics.fmean(run.draws['beta_cv'].mean() for run in alone):.3f} |"
        )
    text = "\n".join(
        [
            hardware(arguments.threads, load_before),
            "",
            f"{arguments.rounds} interleaved rounds, medians; NUTS: {arguments.chains} chains of {arguments.warmup} "
            f"warm-up steps, which count in the time, and {arguments.draws} draws; {arguments.nodes} nodes in JAX. "
            "In round brackets processor time, in square ones the smallest and the largest ratio.",
            "",
            *lines,
            "",
            "Agreement, in brackets the Monte Carlo standard error:",
            "",
            *agreement,
            "",
            "Laplace alone, smallest and largest time in brackets:",
            "",
            *large,
            "",
        ]
    )
    print(text)
    if arguments.output:
        arguments.output.write_text(text, encoding="utf-8")
    if not worst <= MOST_ERRORS:
        raise SystemExit(f"the samplers disagree: {worst:.1f} Monte Carlo standard errors, more than {MOST_ERRORS}")


def use_threads(count: int) -> None:
    """For torch and JAX, which reads its setting when it is imported."""
    torch.set_num_threads(count)
    os.environ["NPROC"] = str(count)
    eigen = "true" if count > 1 else "false"
    flags = f"--xla_cpu_multi_thread_eigen={eigen} intra_op_parallelism_threads={count}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()


def hardware(threads: int, load_before: float) -> str:
    """What the figures were measured on, in one line."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        found = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = found[0] if found else model
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "pyro-ppl", "jax", "numpyro"))
    return (
        f"{model}, {os.cpu_count()} cores, {threads} thread(s) used; load average {load_before:.1f} before and "
        f"{os.getloadavg()[0]:.1f} after; {packages}."
    )


def describe(pairs: int, each: int) -> str:
    return f"{pairs:,} single pairs" if each == 1 else f"{pairs:,} pairs, {pairs // each:,} annotators × {each}"


def simulate(people: int, each: int, seed: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Margins of the preferred over the other answer, with choices by people whose beta has mean 0.3 and cv 0.8."""
    generator = np.random.default_rng(seed)
    variance = math.log1p(0.8**2)
    beta = 0.3 * np.exp(math.sqrt(variance) * generator.normal(size=(people, 1)) - variance / 2)
    margins = 6 * generator.normal(size=(people, each))
    first = generator.random((people, each)) < 1 / (1 + np.exp(-beta * margins))
    margins = np.where(first, margins, -margins).reshape(-1)
    return margins, None if each == 1 else np.repeat(np.arange(people), each)


def samplers(
    margins: np.ndarray, annotator: np.ndarray | None, each: int, arguments: argparse.Namespace
) -> dict[str, Callable[[int], Run]]:
    """Functions of a seed."""
    length = {"num_chains": arguments.chains, "num_warmup": arguments.warmup, "num_samples": arguments.draws}
    return {
        LAPLACE: library(margins, annotator, LAPLACE),
        NUTS: library(margins, annotator, NUTS, **length),
        PEER: peer(margins.reshape(-1, each), arguments.nodes, **length),
    }


def library(margins: np.ndarray, annotator: np.ndarray | None, method: str, **settings: int) -> Callable[[int], Run]:
    """``fit_posterior`` as a function of a seed."""

    def run(seed: int) -> Run:
        strength = LogNormalStrength(PRIOR_MEDIAN, 0.5)  # the prior's median is the mean; the 0.5 plays no part
        started, processor = time.perf_counter(), time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PluralPrefWarning)  # a short run of NUTS has few effective draws
            posterior = fit_posterior(
                strength, margins, annotator=annotator, method=method, seed=seed, progress_bar=False, **settings
            )
        seconds, processor = time.perf_counter() - started, time.process_time() - processor
        draws = {name: posterior.draws(name) for name in NAMES}
        weighted = method == LAPLACE
        ess = posterior.attrs["importance_ess"] if weighted else convergence(draws)["ess_bulk"]["beta_cv"]
        return Run(seconds, processor, float(ess), draws, weighted=weighted)

    return run


def peer(margins: np.ndarray, nodes: int, num_chains: int, num_warmup: int, num_samples: int) -> Callable[[int], Run]:
    """NumPyro's NUTS as a function of a seed. The margins are (people, pairs of each)."""
    import jax
    import jax.numpy as jnp
    import numpyro
    from jax.scipy.special import logsumexp
    from numpyro.distributions import HalfNormal, LogNormal
    from numpyro.infer import NUTS, init_to_median

    jax.config.update("jax_enable_x64", True)
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    points, weights = jnp.asarray(points), jnp.asarray(weights / weights.sum())
    single = margins.shape[1] == 1

    def model(h: Any) -> None:
        mean = numpyro.sample("beta_mean", LogNormal(math.log(PRIOR_MEDIAN), PRIOR_LOG_SCALE))
        variance = jnp.log1p(numpyro.sample("beta_cv", HalfNormal(PRIOR_CV_SCALE)) ** 2)
        beta = mean * jnp.exp(jnp.sqrt(variance) * points - variance / 2)
        if single:  # a product of one factor doesn't underflow: the logarithm may wait
            terms = jnp.log(jax.nn.sigmoid(h * beta) @ weights)
        else:
            terms = logsumexp(jnp.log(weights) + jax.nn.log_sigmoid(h[:, :, None] * beta).sum(1), 1)
        numpyro.factor("choices", terms.sum())

    data = jnp.asarray(margins, dtype=jnp.float64)
    kernel = NUTS(model, dense_mass=True, init_strategy=init_to_median)

    def begin(key: Any) -> Any:
        return kernel.init(key, num_warmup, init_params=None, model_args=(data,), model_kwargs={})

    def draw(state: Any, h: Any) -> Any:
        """One chain, as NumPyro's MCMC runs it, but as a function that can be compiled ahead of its first use."""

        def step(state: Any, _: None) -> tuple[Any, Any]:
            state = kernel.sample(state, (h,), {})
            return state, state.z

        state, _ = jax.lax.scan(lambda state, _: (step(state, None)[0], None), state, length=num_warmup)
        _, draws = jax.lax.scan(step, state, length=num_samples)
        return jax.vmap(kernel.postprocess_fn((h,), {}))(draws)

    started, processor = time.perf_counter(), time.process_time()
    compiled = jax.jit(draw).lower(begin(jax.random.PRNGKey(0)), data).compile()
    compilation = time.perf_counter() - started, time.process_time() - processor

    def run(seed: int) -> Run:
        started, processor = time.perf_counter(), time.process_time()
        chains = [compiled(begin(key), data) for key in jax.random.split(jax.random.PRNGKey(seed), num_chains)]
        draws = {name: np.stack([np.asarray(chain[name]) for chain in chains]) for name in NAMES}
        seconds, processor = time.perf_counter() - started, time.process_time() - processor
        return Run(seconds, processor, convergence(draws)["ess_bulk"]["beta_cv"], draws, compilation)

    return run


def measure(functions: Mapping[str, Callable[[int], Run]], rounds: int, seed: int) -> dict[str, list[Run]]:
    """The runs of each round, by sampler."""
    runs: dict[str, list[Run]] = {name: [] for name in functions}
    for round_ in range(rounds):
        for name in random.Random(seed + round_).sample(list(functions), len(functions)):
            runs[name].append(functions[name](1 + seed + round_))
            latest = runs[name][-1]
            print(
                f"round {round_ + 1}, {name}: {latest.seconds:.1f} s, {latest.processor:.1f} s of the processor, "
                f"ESS {latest.ess:.0f}",
                file=sys.stderr,
            )
    return runs


def median(runs: list[Run], field: str) -> float:
    return statistics.median(getattr(run, field) for run in runs)


def row(label: str, name: str, runs: Mapping[str, list[Run]]) -> str:
    """A line of the table."""
    own = runs[name]
    compilation = "{:.0f} ({:.0f})".format(*own[0].compilation) if own[0].compilation else "–"
    ratios = [ratio(runs[LAPLACE], own, field) if name != LAPLACE else "1" for field in ("rate", "processor_rate")]
    return (
        f"| {label} | {name} | {median(own, 'seconds'):.1f} ({median(own, 'processor'):.1f}) | {compilation} | "
        f"{median(own, 'ess'):.0f} | {short(median(own, 'rate'))} ({short(median(own, 'processor_rate'))}) | "
        f"{' | '.join(ratios)} |"
    )


def short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def ratio(runs: list[Run], base: list[Run], field: str) -> str:
    """Median, smallest and largest ratio within rounds."""
    ratios = [getattr(run, field) / getattr(other, field) for run, other in zip(runs, base, strict=True)]
    return f"{statistics.median(ratios):.0f} [{min(ratios):.0f}, {max(ratios):.0f}]"


def pool(runs: list[Run], name: str, moment: str) -> tuple[float, float]:
    """The average over rounds and its standard error."""
    values, errors = zip(*(run.moments(name)[moment] for run in runs), strict=True)
    return statistics.fmean(values), math.sqrt(math.fsum(error**2 for error in errors)) / len(errors)


if __name__ == "__main__":
    main()
