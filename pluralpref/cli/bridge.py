"""``pluralpref bridge``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pluralpref.cli.data_options import DataOptions, load_pairs
from pluralpref.cli.options import parse
from pluralpref.data.bridging import (
    BridgingPairs,
    Factorization,
    HeldOutError,
    Ratings,
    annotator_rows,
    bridging_pairs,
    factorize,
    held_out_error,
    intercept_bounds,
    item_rows,
    load_ratings,
    ratings_from_preferences,
    ratings_from_table,
    with_enough_ratings,
    write_rows,
)
from pluralpref.data.bridging.factorization import LAMBDA_FACTOR, LAMBDA_INTERCEPT
from pluralpref.data.bridging.ratings import REASONS
from pluralpref.data.bridging.tables import SUFFIXES
from pluralpref.errors import ConfigError

_EXAMPLE = (
    "Example: pluralpref bridge --dataset multipref --output bridging.jsonl --items items.parquet, then "
    "pluralpref train --dataset_name bridging.jsonl --model_name_or_path MODEL --output_dir run."
)


@dataclass
class BridgeOptions:
    """What is fitted and where it goes."""

    ratings: str | None = field(
        default=None,
        metadata={
            "help": "In the place of preferences, a table of ratings (file, saved folder or hub name) with columns "
            "annotator, prompt, answer or completion, rating in [0, 1], and perhaps weight."
        },
    )
    output: str = field(default="bridging.jsonl", metadata={"help": "The pairs to write: .jsonl or .parquet."})
    items: str | None = field(
        default=None, metadata={"help": "Also write each answer's intercept, factor and ratings: .jsonl or .parquet."}
    )
    people: str | None = field(
        default=None, metadata={"help": "Also write each annotator's intercept and factor: .jsonl or .parquet."}
    )
    num_factors: int = field(default=1, metadata={"help": "Dimensions of a viewpoint."})
    lambda_intercept: float = field(default=LAMBDA_INTERCEPT, metadata={"help": "Penalty of the intercepts."})
    lambda_factor: float = field(default=LAMBDA_FACTOR, metadata={"help": "Penalty of the factors."})
    min_ratings_per_item: int = field(default=2, metadata={"help": "Fewest people who rated an answer."})
    min_ratings_per_annotator: int = field(default=2, metadata={"help": "Fewest answers that a person rated."})
    tie_threshold: float = field(
        default=1e-6,
        metadata={"help": "Answers whose intercepts differ by at most this give no pair; the default is rounding."},
    )
    num_starts: int = field(default=5, metadata={"help": "Random starts, of which the best is kept."})
    seed: int = field(default=0, metadata={"help": "Of the starts and of the held-out ratings."})
    overwrite: bool = field(default=False, metadata={"help": "Replace existing files."})


def main(argv: Sequence[str]) -> int:
    """Pairs by bridging: matrix factorisation of who chose what, as Community Notes does it.

    Of two answers to a prompt the one is chosen that people of opposite viewpoints agree on more.
    """
    data, options = parse("bridge", (DataOptions, BridgeOptions), argv, f"{main.__doc__} {_EXAMPLE}")
    _check(data, options)
    ratings = _read(data, options)
    fitted = {
        "num_factors": options.num_factors,
        "lambda_intercept": options.lambda_intercept,
        "lambda_factor": options.lambda_factor,
        "num_starts": options.num_starts,
        "seed": options.seed,
    }
    fit = factorize(ratings, **fitted)
    bounds = intercept_bounds(fit)
    _show_fit(fit, held_out_error(ratings, **fitted))
    # Before the pairs, of which there may be none: these tables show why.
    if options.items:
        write_rows(options.items, item_rows(fit, bounds))
        print(f"answers: {options.items}")
    if options.people:
        write_rows(options.people, annotator_rows(fit))
        print(f"annotators: {options.people}")
    pairs = bridging_pairs(fit, tie_threshold=options.tie_threshold, bounds=bounds)
    _show_pairs(pairs)
    write_rows(options.output, pairs.rows)
    print(f"pairs: {options.output}")
    return 0


def _check(data: DataOptions, options: BridgeOptions) -> None:
    paths: dict[Path, str] = {}
    for flag in ("output", "items", "people"):
        path = getattr(options, flag)
        if path is None:
            continue
        if Path(path) in paths:
            raise ConfigError(f"--{flag} {path}: is the file of --{paths[Path(path)]} too; choose another name")
        paths[Path(path)] = flag
        if Path(path).suffix not in SUFFIXES:
            raise ConfigError(f"--{flag} {path}: the name must end in {' or '.join(SUFFIXES)}")
        if Path(path).exists() and not options.overwrite:
            raise ConfigError(f"--{flag} {path} exists: choose another name or give --overwrite")
    if options.num_factors < 1:
        raise ConfigError(f"--num_factors {options.num_factors}: must be at least 1, or there are no viewpoints")
    if options.ratings is None:
        data.source()
        return
    # What says how preferences are read; the split and the configuration are the table's as well.
    for flag, default in (
        ("dataset_name", None),
        ("dataset", None),
        ("dataset_options", None),
        ("transcripts", False),
        ("hh_format", "text"),
    ):
        if getattr(data, flag) != default:
            raise ConfigError(f"--{flag} has no effect with --ratings: leave one out")


def _read(data: DataOptions, options: BridgeOptions) -> Ratings:
    if options.ratings is not None:
        table = load_ratings(options.ratings, split=data.dataset_train_split, name=data.dataset_config)
        ratings, report = ratings_from_table(table)
    else:
        pairs, note = load_pairs(data, data.dataset_train_split)
        if note is not None:
            print(note, flush=True)
        ratings, report = ratings_from_preferences(pairs, hh_format=data.hh_format)
    print(report.summary())
    kept = with_enough_ratings(
        ratings,
        min_ratings_per_item=options.min_ratings_per_item,
        min_ratings_per_annotator=options.min_ratings_per_annotator,
    )
    left_out = "".join(f"; {count} ratings {REASONS[reason]}, left out" for reason, count in kept.dropped.items())
    print(f"{len(kept)} ratings of {len(kept.items)} answers by {len(kept.annotators)} people{left_out}")
    per_item = kept.per_item()
    print(f"people who rated an answer: {per_item.min()} to {per_item.max()}, mean {per_item.mean():.3g}", flush=True)
    return kept


def _show_fit(fit: Factorization, held_out: HeldOutError | None) -> None:
    alone = fit.without_factors()
    print(
        f"objective {fit.objective:.6g} after {len(fit.history)} sweeps, reached by {fit.starts_at_best} of "
        f"{len(fit.starts)} starts"
    )
    if fit.starts_at_best == 1 < len(fit.starts):
        print(
            "note: no other start reached that value, so there may be a lower one: raise --num_starts or the penalties"
        )
    print(
        f"variance explained: {fit.explained():.1%}, of which the factor {fit.explained() - alone.explained():.1%} "
        "(on the ratings that were fitted; few ratings of an answer are explained even where people choose at random)"
    )
    if held_out is None:
        print("held-out ratings: none could be predicted")
    else:
        print(
            f"mean squared error of {held_out.ratings} held-out ratings: {held_out.with_factors:.4g} with the factor, "
            f"{held_out.without_factors:.4g} without"
        )
        if held_out.with_factors > held_out.without_factors:
            print(
                "note: the factor fits noise, as it predicts worse than the intercepts alone: raise --lambda_intercept "
                "and --lambda_factor together, or ask for more ratings of an answer"
            )


def _show_pairs(pairs: BridgingPairs) -> None:
    n = len(pairs.rows)
    print(pairs.summary())
    print(
        f"the intercepts' order is not that of the plain means in {pairs.reversed} pairs ({pairs.reversed / n:.1%}); "
        f"the means are equal in {pairs.equal_means}"
    )
    print(
        f"the ranges to which one more extreme rating could move the intercepts don't overlap in {pairs.separated} pairs "
        f"({pairs.separated / n:.1%})"
    )
