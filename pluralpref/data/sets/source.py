"""Tables of public data sets, from a hub, files or memory, with their columns checked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
from datasets import Dataset, DatasetDict, Features, Json, List, Value, load_dataset

from pluralpref.data.load import BUILDERS, read_source
from pluralpref.errors import ConfigError, DataError

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
#: Rows that are looked at where the types of a JSON column don't say which fields it has.
_LOOKED_AT = 100


@dataclass(frozen=True)
class Hub:
    """Where a table is on the Hugging Face hub.

    :param repo: ``owner/name``.
    :param config: the configuration.
    :param data_dir: the folder inside the repository.
    :param split: the split that is read unless another one is named.
    :param revision: branch or commit.
    """

    repo: str
    config: str | None = None
    data_dir: str | None = None
    split: str = "train"
    revision: str | None = None


def read_table(source: Any, hub: Hub, required: Sequence[str], split: str | None = None) -> Dataset:
    """Read one table and check its columns.

    :param source: ``None`` for the hub's own; another hub name, for a copy laid out alike; a JSON Lines, JSON, CSV or
        Parquet file, or a folder, see :func:`~pluralpref.data.load_preferences`; a ``Dataset`` or ``DatasetDict``.
        Columns of a CSV file are text.
    :param required: columns that have to be there; ``"a.b"`` is the field b of column a, or of a's entries.
    :param split: which split.
    :raises DataError: if the source can't be read or a column is missing, naming the columns that there are.
    :raises ConfigError: if the split is missing or ambiguous.
    """
    if source is None or is_hub_name(source):
        dataset = _from_hub(hub if source in (None, hub.repo) else replace(hub, repo=source, revision=None), split)
    elif (file := _only_csv(source)) is not None:
        dataset = _from_csv(file, split)
    else:
        dataset = read_source(source, split, None)
    check_schema(dataset, required, hub.repo)
    return dataset


def is_hub_name(source: Any) -> bool:
    """Whether ``source`` can only be the name of a data set on a hub."""
    if not isinstance(source, str) or not _HUB_NAME.fullmatch(source) or Path(source).exists():
        return False
    return not any(suffix in BUILDERS for suffix in Path(source).suffixes)


def refuse_off_hub(option: str, value: Any, source: Any) -> None:
    """Refuse an option that only says where something is on a hub.

    :raises ConfigError: if ``source`` isn't one.
    """
    if source is not None and not is_hub_name(source):
        raise ConfigError(f"{option}={value!r} has no effect on files and data sets in memory: leave it out")


def check_schema(dataset: Dataset, required: Sequence[str], name: str) -> None:
    """Check that the columns and fields are those of the published data set.

    :raises DataError: naming what is missing and what there is.
    """
    missing = [column for column in required if not _has(dataset, column)]
    if missing:
        raise DataError(
            f"these are not the columns of {name}: missing {', '.join(map(repr, missing))}; "
            f"there are {', '.join(dataset.column_names)}"
        )


def _from_hub(hub: Hub, split: str | None) -> Dataset:
    try:
        return load_dataset(
            hub.repo, hub.config, data_dir=hub.data_dir, split=split or hub.split, revision=hub.revision
        )
    except Exception as error:
        raise DataError(
            f"data set {hub.repo!r} can't be loaded from the hub: {error}. Give its files as the source instead"
        ) from error


def _only_csv(source: Any) -> Path | None:
    """The CSV file that ``source`` is, or that is alone in the folder ``source``."""
    if isinstance(source, Dataset | DatasetDict | Mapping):
        return None
    path = Path(source)
    if path.is_dir():
        files = [file for file in path.iterdir() if any(suffix in BUILDERS for suffix in file.suffixes)]
        path = files[0] if len(files) == 1 else path
    return path if path.is_file() and ".csv" in path.suffixes else None


def _from_csv(path: Path, split: str | None) -> Dataset:
    if split is not None and split.split("[")[0] != "train":
        raise ConfigError(f"split={split!r}: {path} is a single file, which has no split but 'train'")
    # Left to guess, readers of CSV turn the answers "NA" and "None" into missing values and the annotator "007" into 7.
    try:
        features = Features(dict.fromkeys(pd.read_csv(path, nrows=0).columns, Value("string")))
        return load_dataset(
            "csv", data_files=str(path), split=split or "train", features=features, keep_default_na=False
        )
    except Exception as error:
        raise DataError(f"{path} can't be read as csv: {error.__cause__ or error}") from error


def _has(dataset: Dataset, dotted: str) -> bool:
    column, *fields = dotted.split(".")
    if column not in dataset.column_names:
        return False
    declared = _declares(dataset.features[column], fields)
    if declared is None:
        rows = islice(dataset.select_columns([column]), _LOOKED_AT)
        return any(_reaches(row[column], fields) for row in rows)
    return declared


def _declares(feature: Any, fields: Sequence[str]) -> bool | None:
    """Whether the type has the field; ``None`` if it says nothing about fields, as JSON does."""
    if not fields:
        return True
    if isinstance(feature, List):
        return _declares(feature.feature, fields)
    if isinstance(feature, Json):
        return None
    return isinstance(feature, dict) and fields[0] in feature and _declares(feature[fields[0]], fields[1:])


def _reaches(value: Any, fields: Sequence[str]) -> bool:
    if not fields:
        return True
    if isinstance(value, list):
        return any(_reaches(entry, fields) for entry in value)
    return isinstance(value, dict) and fields[0] in value and _reaches(value[fields[0]], fields[1:])
