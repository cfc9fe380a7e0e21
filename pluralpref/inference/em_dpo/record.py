"""What a run of EM-DPO keeps in files: its settings, its iterations, its responsibilities."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from pluralpref.atomic import written_aside
from pluralpref.errors import ConfigError, DataError

RECORD_NAME = "em.json"
RESPONSIBILITIES_NAME = "responsibilities.csv"
#: The reference's mean log-probabilities may differ by so much between machines.
_REFERENCE_TOLERANCE = 1e-2


@dataclass(frozen=True)
class Iteration:
    """What one iteration ended with.

    :param eta: (classes,) shares of the classes.
    :param log_likelihood: of all choices, nats, under these shares and the iteration's policies.
    :param trained_pairs: (classes,) pairs in each class's M-step.
    :param skipped_pairs: (classes,) pairs left out of it since they weigh nothing in the class.
    :param held_out: metrics of the held-out pairs, if there are any.
    """

    eta: list[float]
    log_likelihood: float
    trained_pairs: list[int]
    skipped_pairs: list[int]
    held_out: dict[str, float] = field(default_factory=dict)


@dataclass
class RunRecord:
    """The file ``em.json``: an iteration is complete when it stands here.

    :param settings: what a run has to have in common with the one that it goes on with.
    :param iterations: complete ones, in order.
    """

    settings: dict[str, Any]
    iterations: list[Iteration] = field(default_factory=list)

    @classmethod
    def read(cls, output_dir: str | os.PathLike[str]) -> RunRecord:
        """Read what :meth:`write` wrote.

        :raises DataError: if it isn't there or damaged.
        """
        path = Path(output_dir) / RECORD_NAME
        try:
            found = json.loads(path.read_text())
            return cls(found["settings"], [Iteration(**each) for each in found["iterations"]])
        except FileNotFoundError:
            raise DataError(f"{path}: no such file; the folder holds no run of EM-DPO") from None
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is damaged ({error}): start again in another output_dir") from error

    def write(self, output_dir: str | os.PathLike[str]) -> None:
        """Write the file, whole or not at all; makes the folder."""
        with written_aside(Path(output_dir) / RECORD_NAME) as partial:
            partial.write_text(json.dumps(asdict(self), indent=2, allow_nan=False) + "\n")

    def agree(self, settings: dict[str, Any]) -> None:
        """Take settings down, or refuse those that differ from the ones that the run began with.

        :raises ConfigError: naming what differs.
        """
        for name, value in settings.items():
            before = self.settings.setdefault(name, value)
            if name == "reference":
                if max(abs(a - b) for a, b in zip(before, value, strict=True)) > _REFERENCE_TOLERANCE:
                    raise ConfigError(
                        "the reference isn't the one that the run in output_dir began with: give that one"
                    )
            elif before != value:
                raise ConfigError(
                    f"the run in output_dir began with {name}={before!r}, not {value!r}: go on with the same, or choose another "
                    "output_dir"
                )


def iteration_folder(output_dir: str | os.PathLike[str], iteration: int) -> Path:
    """Where an iteration's files are.

    :param iteration: 1, 2, …
    """
    return Path(output_dir) / f"iteration-{iteration}"


def class_folder(output_dir: str | os.PathLike[str], iteration: int, number: int) -> Path:
    """Where the policy of a class is, and its margins.

    :param iteration: 1, 2, …
    :param number: of the class, 0, 1, …; folders and columns are named from 1.
    """
    return iteration_folder(output_dir, iteration) / f"class-{number + 1}"


def write_responsibilities(folder: Path, annotators: Sequence[str], gamma: Tensor) -> None:
    """Write the responsibilities to a folder, one line for each annotator."""
    columns = {f"class_{k + 1}": gamma[:, k].numpy() for k in range(gamma.shape[1])}
    with written_aside(folder / RESPONSIBILITIES_NAME) as partial:
        pd.DataFrame({"annotator": list(annotators), **columns}).to_csv(partial, index=False)


def read_responsibilities(folder: Path) -> tuple[tuple[str, ...], Tensor]:
    """Annotators, and their responsibilities (annotators, classes), as they were to the last bit.

    :raises DataError: if the file is missing or damaged.
    """
    path = folder / RESPONSIBILITIES_NAME
    try:
        table = pd.read_csv(path, dtype={"annotator": str}, keep_default_na=False, float_precision="round_trip")
        return tuple(table.pop("annotator")), torch.from_numpy(table.to_numpy(dtype=float).copy())
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path} can't be read ({error}): start again in another output_dir") from error
