"""Preference pairs from files, hubs and data sets in memory."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from datasets import Dataset, DatasetDict, IterableDataset, ReadInstruction, load_dataset, load_from_disk

from pluralpref.data.labels import refuse_blank_labels
from pluralpref.errors import ConfigError, DataError

#: Kinds of files and the builders of ``datasets`` that read them.
BUILDERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
#: What ``save_to_disk`` leaves in a folder.
_SAVED = ("dataset_info.json", "dataset_dict.json", "state.json")
#: Columns of a CSV file that are text whatever they look like: an answer "42" or "NA", an annotator "007".
_TEXT_COLUMNS = ("prompt", "chosen", "rejected", "annotator")


def load_preferences(
    source: str | Path | Dataset | DatasetDict,
    *,
    split: str | None = None,
    name: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> Dataset:
    """Read preference pairs; the rows stay as they are, their columns are checked.

    :param source: a JSON Lines, JSON, CSV or Parquet file (``.gz`` too; conversations in CSV as JSON), a folder of
        such files or one written by ``save_to_disk``, the name of a data set on a hub, or a ``Dataset`` or
        ``DatasetDict``.
    :param split: which split, needed when there are several. A file is one split, ``"train"``, of which
        ``"train[:100]"`` takes a part.
    :param name: the configuration of a data set on a hub.
    :param columns: other names of standard columns, ``{"chosen": "better"}``.
    :returns: a data set with ``chosen``, ``rejected``, perhaps ``prompt``, and every further column of the source.
    :raises DataError: if the file or a needed column is missing, or annotator, weight or preferred hold bad values.
    :raises ConfigError: if the split is missing or ambiguous.
    """
    dataset = read_source(source, split, name, {*_TEXT_COLUMNS, *(columns or {}).values()} - {"weight", "preferred"})
    for standard, other in (columns or {}).items():
        if other not in dataset.column_names:
            raise DataError(f"no column {other!r} to use as {standard!r}: there are {', '.join(dataset.column_names)}")
        if standard in dataset.column_names:
            raise DataError(f"there already is a column {standard!r}, so {other!r} can't be used as it")
        dataset = dataset.rename_column(other, standard)
    check_columns(dataset)
    return dataset


def check_columns(dataset: Dataset) -> None:
    """Check that the needed columns are there, and the values of annotator, weight and preferred.

    :raises DataError: naming column and row.
    """
    missing = [column for column in ("chosen", "rejected") if column not in dataset.column_names]
    if missing:
        raise DataError(
            f"missing column {' and '.join(map(repr, missing))}: there are {', '.join(dataset.column_names)}. "
            'Name them with columns={"chosen": "...", "rejected": "..."}'
        )
    if "annotator" in dataset.column_names:
        refuse_blank_labels("annotator", dataset["annotator"])
    for column, top in (("weight", math.inf), ("preferred", 1.0)):
        if column not in dataset.column_names:
            continue
        for row, value in enumerate(dataset[column]):
            good = isinstance(value, int | float) and math.isfinite(value) and 0 <= value <= top
            if not good:
                wanted = "a number in [0, 1]" if column == "preferred" else "a finite number of at least 0"
                raise DataError(f"row {row}: column {column!r} is {value!r}; expected {wanted}")


def read_source(
    source: Any, split: str | None, name: str | None, text_columns: Collection[str] = _TEXT_COLUMNS
) -> Dataset:
    """One split of a file, folder, hub name or data set, its columns unchecked; see :func:`load_preferences`."""
    if isinstance(source, Dataset):
        if split is not None:
            raise ConfigError(f"split={split!r} has no effect on a Dataset, which is one split")
        return source
    if isinstance(source, IterableDataset):
        raise ConfigError("streaming data sets aren't supported: rows are counted and shuffled; load it into memory")
    if isinstance(source, DatasetDict | dict):
        return _choose(DatasetDict(source), split)
    path = Path(source)
    if path.is_dir():
        if any((path / file).is_file() for file in _SAVED):
            loaded = load_from_disk(str(path))
        else:
            try:
                loaded = load_dataset(str(path), name)
            except Exception as error:
                raise DataError(
                    f"{path}: neither written by save_to_disk nor a folder of .jsonl, .json, .csv or .parquet files: "
                    f"{error.__cause__ or error}"
                ) from error
        return _choose(loaded, split) if isinstance(loaded, DatasetDict) else read_source(loaded, split, None)
    suffixes = [s for s in path.suffixes if s != ".gz"]
    kind = BUILDERS.get(suffixes[-1]) if suffixes else None
    if path.is_file():
        if kind is None:
            raise DataError(f"{path}: unknown kind of file; use .jsonl, .json, .csv or .parquet")
        # Ignoring the split would hand out the training pairs again where held-out ones were asked for.
        if split is not None and split.split("[")[0] != "train":
            raise ConfigError(f"split={split!r}: {path} is a single file, which has no split but 'train'")
        try:
            if kind == "csv":
                return _part(_read_csv(path, text_columns), split)
            return load_dataset(kind, data_files=str(path), split=split or "train")
        except Exception as error:
            raise DataError(f"{path} can't be read as {kind}: {error.__cause__ or error}") from error
    text = str(source)
    if kind is not None or text.startswith((".", "/", "~")) or text.count("/") > 1:
        raise DataError(f"{source}: no such file")
    try:
        loaded = load_dataset(text, name, split=split)
    except Exception as error:
        raise DataError(f"data set {text!r} can't be loaded: {error}") from error
    return _choose(loaded, split) if isinstance(loaded, DatasetDict) else loaded


def _read_csv(path: Path, text_columns: Collection[str]) -> Dataset:
    # Left to guess, readers of CSV turn the answers "NA" and "None" into missing values and the annotator "007" into 7.
    table = pd.read_csv(path, dtype=dict.fromkeys(text_columns, str), keep_default_na=False, low_memory=False)
    dataset = Dataset.from_pandas(table, preserve_index=False)
    for column in text_columns:
        if column in dataset.column_names:
            conversations = _conversations(dataset[column][:])
            if conversations is not None:
                dataset = dataset.remove_columns(column).add_column(column, conversations)
    return dataset


def _conversations(cells: Collection[str]) -> list[list[dict[str, Any]]] | None:
    """Parse cells that are all JSON lists of messages; None if any isn't, empty ones aside."""
    if not any(cells) or not all(cell.lstrip().startswith("[{") for cell in cells if cell):
        return None
    try:
        parsed = [json.loads(cell) if cell else [] for cell in cells]
    except json.JSONDecodeError:
        return None
    return parsed if all("role" in message for messages in parsed for message in messages) else None


def _part(dataset: Dataset, split: str | None) -> Dataset:
    """Take the rows that a split such as ``train[10:20]`` or ``train[:50%]`` names."""
    if split in (None, "train"):
        return dataset
    instruction = ReadInstruction.from_spec(split).to_absolute({"train": len(dataset)})
    return dataset.select([i for part in instruction for i in range(part.from_, part.to)])


def _choose(splits: DatasetDict, split: str | None) -> Dataset:
    names = ", ".join(splits)
    if split is None and len(splits) > 1:
        raise ConfigError(f"several splits ({names}): choose one with split=")
    if split is not None and split not in splits:
        raise ConfigError(f"no split {split!r}: there are {names}")
    return splits[split if split is not None else next(iter(splits))]
