"""Which preference pairs a command reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset

from pluralpref.cli.options import need
from pluralpref.data import (
    RowReport,
    as_transcripts,
    disjoint_split,
    known_datasets,
    load_named,
    load_preferences,
    tokenize_preferences,
)
from pluralpref.data.tokenize import SOURCE_ROW
from pluralpref.errors import ConfigError

_DEFAULT_FRACTION = 0.2


@dataclass
class DataOptions:
    """Where the pairs come from."""

    dataset_name: str | None = field(
        default=None, metadata={"help": "A .jsonl, .json, .csv or .parquet file, a saved folder, or a hub name."}
    )
    dataset: str | None = field(
        default=None,
        metadata={
            "help": f"A public data set, read as it was published: {', '.join(known_datasets())}; from the hub, or from "
            "--dataset_name."
        },
    )
    dataset_options: list[str] | None = field(
        default=None,
        metadata={"help": "Options of --dataset as KEY=VALUE, such as turns=first; see docs/datasets.md."},
    )
    dataset_config: str | None = field(default=None, metadata={"help": "The configuration of a data set on a hub."})
    dataset_train_split: str | None = field(default=None, metadata={"help": "The split to use, if there are several."})
    transcripts: bool = field(
        default=False,
        metadata={"help": "Conversations as text (Human: … Assistant: …), for models without a chat template."},
    )
    hh_format: str = field(
        default="text", metadata={"help": "HH-RLHF transcripts as they are (text) or as chat messages (chat)."}
    )

    def source(self) -> str:
        """What the pairs are called in a run's files.

        :raises ConfigError: if no data set is named.
        """
        return self.dataset_name or self.dataset or need(self.dataset_name, "dataset_name")


@dataclass
class HeldOutOptions:
    """Which pairs are held out."""

    dataset_test_split: str | None = field(default=None, metadata={"help": "Split of held-out pairs."})
    eval_dataset_name: str | None = field(default=None, metadata={"help": "A data set of held-out pairs of its own."})
    held_out_by: str | None = field(
        default=None,
        metadata={"help": "Hold out a share of this column's values with all their pairs: annotator, conversation, …"},
    )
    held_out_fraction: float | None = field(
        default=None, metadata={"help": f"That share of the values ({_DEFAULT_FRACTION})."}
    )


def load_pairs(data: DataOptions, split: str | None, *, name: str | None = None) -> tuple[Dataset, str | None]:
    """The pairs, and what a person should know of how they were read.

    :param split: of the data set.
    :param name: another data set than ``--dataset_name``.
    :raises ConfigError: for options that contradict each other or have no effect.
    :raises DataError: if the pairs can't be read.
    """
    if data.dataset is None:
        if data.dataset_options:
            raise ConfigError("--dataset_options has no effect without --dataset")
        source = name or need(data.dataset_name, "dataset_name")
        pairs = load_preferences(source, split=split, name=None if name else data.dataset_config)
        return _as_asked(pairs, data), None
    if data.dataset_config is not None:
        raise ConfigError("--dataset_config has no effect with --dataset, which knows its configurations")
    options: dict[str, str] = {}
    for option in data.dataset_options or []:
        key, equals, value = option.partition("=")
        if not equals:
            raise ConfigError(f"--dataset_options {option}: expected KEY=VALUE")
        options[key] = value
    if split is not None:
        if "split" in options:
            raise ConfigError("--dataset_options split= has no effect beside --dataset_train_split: leave one out")
        options["split"] = split
    pairs, report = load_named(data.dataset, name or data.dataset_name, options)
    return _as_asked(pairs, data), f"{data.dataset}: {report.summary()}"


def _as_asked(pairs: Dataset, data: DataOptions) -> Dataset:
    return as_transcripts(pairs) if data.transcripts else pairs


def load_training_pairs(
    data: DataOptions, held_out: HeldOutOptions, seed: int
) -> tuple[Dataset, Dataset | None, list[str]]:
    """Pairs to train on, held-out ones if there are any, and what a person should know.

    :param seed: which values ``--held_out_by`` holds out.
    :raises ConfigError: as :func:`load_pairs`.
    :raises DataError: likewise.
    """
    if held_out.held_out_fraction is not None and held_out.held_out_by is None:
        raise ConfigError("--held_out_fraction has no effect without --held_out_by")
    elsewhere = held_out.eval_dataset_name is not None or held_out.dataset_test_split is not None
    if held_out.held_out_by is not None and elsewhere:
        raise ConfigError(
            "--held_out_by takes held-out pairs from the training split: leave out --eval_dataset_name and "
            "--dataset_test_split, or --held_out_by"
        )
    data.source()
    pairs, note = load_pairs(data, data.dataset_train_split)
    notes, others = [note], None
    if elsewhere:
        others, note = load_pairs(data, held_out.dataset_test_split, name=held_out.eval_dataset_name)
        notes.append(note)
    elif held_out.held_out_by is not None:
        fraction = _DEFAULT_FRACTION if held_out.held_out_fraction is None else held_out.held_out_fraction
        # Rows of a part keep their numbers: messages name them, and runs are compared pair by pair by them.
        if SOURCE_ROW not in pairs.column_names:
            pairs = pairs.add_column(SOURCE_ROW, list(range(len(pairs))))
        pairs, others = disjoint_split(pairs, held_out.held_out_by, fraction, seed)
        notes.append(
            f"{len(others)} pairs of other values of {held_out.held_out_by} held out, {len(pairs)} to train on"
        )
    return pairs, others, [note for note in notes if note is not None]


def tokenize_sets(
    sets: Mapping[str, Dataset | None], tokenizer: Any, data: DataOptions, config: Any, *, show: bool = True
) -> tuple[dict[str, Any], dict[str, RowReport]]:
    """(tokenised data sets, what became of their rows) by name, without those that aren't there.

    :param config: has ``max_length``, ``truncation_mode`` and ``strict``.
    :param show: print each one's account.
    """
    prepared, reports = {}, {}
    for key, pairs in sets.items():
        if pairs is None:
            continue
        prepared[key], reports[key] = tokenize_preferences(
            pairs,
            tokenizer,
            max_length=config.max_length,
            truncation_mode=config.truncation_mode,
            strict=config.strict,
            hh_format=data.hh_format,
            desc=f"Tokenizing {key} pairs",
        )
        if show:
            print(f"{key}: {reports[key].summary()}", flush=True)
    return prepared, reports
