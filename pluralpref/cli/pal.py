"""``pluralpref pal``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from pluralpref.atomic import written_aside
from pluralpref.cli.data_options import DataOptions, HeldOutOptions, load_training_pairs, tokenize_sets
from pluralpref.cli.options import ModelOptions, load_model, load_tokenizer, need, parse, show_progress
from pluralpref.cli.pal_options import KNOWN_FRACTION, PalModelOptions, PalRunOptions
from pluralpref.data import PreferenceCollator, padding_token
from pluralpref.errors import ConfigError, DataError
from pluralpref.evaluation import metrics_of, pair_scores
from pluralpref.evaluation.summary import plain
from pluralpref.inference.global_state import child_seed
from pluralpref.inference.pal import (
    ChoiceLogProbs,
    FewShot,
    Pal,
    PalPairs,
    fit_pal,
    hold_out_choices,
    pal_pairs,
    predict_few_shot,
    predict_known,
    predict_unknown,
    save_pal,
    split_people,
)
from pluralpref.inference.pal.saving import CONFIG_NAME
from pluralpref.likelihood.embeddings import answer_embeddings
from pluralpref.models import FixedStrength, make_strength

_SHOWN = ("log_loss", "accuracy", "log_loss/macro", "pairs", "annotators")


def main(argv: Sequence[str]) -> int:
    """Fit PAL, reward models of people who are mixtures of prototypes, to embeddings of a frozen model (arXiv:2406.08469).

    Writes to ``--output_dir``: ``pal.safetensors``, ``pal.json`` and ``strength/``, the model; ``weights.csv``, the training
    people's weights; ``metrics.json``, metrics of held-out choices of training people (``known``) and of new people from
    nothing (``unknown``) and from a few choices (``few_shot``); ``few_shot_weights.csv``; ``embeddings/``.
    Example: pluralpref pal --model_name_or_path base-model --dataset_name pairs.jsonl --held_out_by annotator
    --num_prototypes 3 --few_shot 10 --output_dir pal
    """
    kinds = (DataOptions, HeldOutOptions, ModelOptions, PalModelOptions, PalRunOptions)
    data, held_out, model_options, model, run = parse("pal", kinds, argv, main.__doc__ or "")
    folder = Path(need(run.output_dir, "output_dir"))
    if (folder / CONFIG_NAME).exists() and not run.overwrite:
        raise ConfigError(f"--output_dir {folder} holds a model: choose another folder or give --overwrite")
    run.check()
    config = model.config()
    strength = make_strength(model.strength, model.beta, model.strength_cv)
    need(model_options.model_name_or_path, "model_name_or_path")
    data.source()
    train, others, notes = load_training_pairs(data, held_out, model.seed)
    for note in notes:
        print(note, flush=True)
    for name, pairs in (("training", train), ("held-out", others)):
        if pairs is not None and "annotator" not in pairs.column_names:
            raise DataError(
                f"the {name} pairs have no column 'annotator', which says who chose: there are {', '.join(pairs.column_names)}"
            )
    if run.few_shot is not None and (others is None or not set(_names(others)) - set(_names(train))):
        raise ConfigError(
            "--few_shot has no effect: no held-out pair is of a new person; hold people out with --held_out_by annotator"
        )
    embedded = _embed({"train": train, "held_out": others}, data, model_options, run, folder)
    fitted, known = _hold_out(embedded[0], embedded[1:], run.known_fraction, model.seed)
    pal = fit_pal(fitted, config, strength=strength, progress=show_progress())
    groups, shots = _predict(pal, known, embedded[1] if others is not None else None, run, model.seed)
    record: dict[str, Any] = {name: _metrics(pairs, found) for name, (pairs, found) in groups.items()}
    _show(record, shots)
    record["counts"] = {
        "pairs/fitted": fitted.num_pairs,
        "annotators/fitted": len(pal.annotators),
        "annotators/too_few_choices": 0 if shots is None else len(shots.left_out),
    }
    record["training"] = {"epochs": len(pal.history), **pal.history[-1]}
    record["options"] = {
        name: value for part in (data, held_out, model_options, model, run) for name, value in asdict(part).items()
    }
    _write(folder, pal, shots, record)
    return 0


def _names(pairs: Any) -> list[str]:
    return [str(name) for name in pairs["annotator"]]


def _embed(
    sets: Mapping[str, Any], data: DataOptions, model_options: ModelOptions, run: PalRunOptions, folder: Path
) -> list[PalPairs]:
    """Tokenise and embed each data set; embeddings are kept as they are made."""
    tokenizer = load_tokenizer(model_options)
    tokenized, _ = tokenize_sets(sets, tokenizer, data, run)
    language_model = load_model(model_options)
    cache = run.embeddings_dir or folder / "embeddings"
    collator = PreferenceCollator(padding_token(tokenizer))
    found = []
    for rows in tokenized.values():
        embeddings = answer_embeddings(
            language_model, rows, collator, batch_size=run.batch_size, progress=show_progress(), cache_dir=cache
        )
        columns = {name: rows[name][:] for name in ("weight", "preferred") if name in rows.column_names}
        found.append(pal_pairs(embeddings, annotator=rows["annotator"][:], **columns))
    return found


def _hold_out(
    train: PalPairs, others: Sequence[PalPairs], fraction: float | None, seed: int
) -> tuple[PalPairs, PalPairs | None]:
    """Hold out choices of training people, unless the held-out pairs have some."""
    if fraction is None:
        has_known = any(set(train.names) & set(pairs.names) for pairs in others)
        fraction = 0.0 if has_known else KNOWN_FRACTION
    if not fraction:
        return train, None
    return hold_out_choices(train, fraction, child_seed(seed, 2))


def _predict(
    pal: Pal, known: PalPairs | None, others: PalPairs | None, run: PalRunOptions, seed: int
) -> tuple[dict[str, tuple[PalPairs, ChoiceLogProbs]], FewShot | None]:
    """Predictions of each group of held-out choices, and what few choices tell of new people."""
    groups: dict[str, tuple[PalPairs, ChoiceLogProbs]] = {}
    old, new = (None, None) if others is None else split_people(pal, others)
    if old is not None:
        groups["known"] = old, predict_known(pal, old)
    if known is not None:
        groups["known" if old is None else "known/held_out_fraction"] = known, predict_known(pal, known)
    if new is not None:
        groups["unknown"] = new, predict_unknown(pal, new)
    if run.few_shot is None:
        return groups, None
    if new is None:
        raise DataError("--few_shot: none of the new people's pairs can be used, see the account of rows above")
    shots = predict_few_shot(
        pal,
        new,
        run.few_shot,
        prior_strength=run.few_shot_prior or 0.0,
        seed=child_seed(seed, 3),
        progress=show_progress(),
    )
    groups["few_shot"] = shots.pairs, shots.few_shot
    groups["few_shot/zero_shot"] = shots.pairs, shots.zero_shot
    return groups, shots


def _metrics(pairs: PalPairs, found: ChoiceLogProbs) -> dict[str, float]:
    """Metrics of the log-odds as margins: a strength of 1 turns them into PAL's probabilities."""
    assert pairs.annotator is not None
    scores = pair_scores(
        FixedStrength(1.0),
        found.log_odds,
        weight=pairs.weight,
        preferred=pairs.preferred,
        annotator=[pairs.names[code] for code in pairs.annotator.tolist()],
    )
    # What a law of beta would make of margins says nothing here.
    return {
        name: value
        for name, value in metrics_of(scores).items()
        if not name.startswith(("rewards/", "beta/")) and not name.endswith("/plug_in")
    }


def _show(record: dict[str, dict[str, float]], shots: FewShot | None) -> None:
    if not record:
        print("no choices are held out: there are no metrics")
        return
    table = pd.DataFrame({name: {key: found[key] for key in _SHOWN} for name, found in record.items()}).T
    print(table.to_string(float_format=lambda value: f"{value:.5g}"))
    if shots is not None and shots.left_out:
        print(f"few_shot: {len(shots.left_out)} new people have too few choices and are left out")


def _write(folder: Path, pal: Pal, shots: FewShot | None, record: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    _write_weights(folder / "weights.csv", pal.annotators, pal.weights)
    few = folder / "few_shot_weights.csv"
    if shots is not None:
        _write_weights(few, shots.names, shots.weights)
    else:
        few.unlink(missing_ok=True)  # of the model that is replaced
    with written_aside(folder / "metrics.json") as partial:
        partial.write_text(json.dumps(plain(record), indent=2, allow_nan=False))
    save_pal(pal, folder)  # last: a folder with pal.json is complete
    print(f"model, weights and metrics: {folder}")


def _write_weights(path: Path, names: Sequence[str], weights: Tensor) -> None:
    table = pd.DataFrame(weights.numpy(), columns=[f"w_{k + 1}" for k in range(weights.shape[1])])
    table.insert(0, "annotator", list(names))
    with written_aside(path) as partial:
        table.to_csv(partial, index=False)
