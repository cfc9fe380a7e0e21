"""Which checkpoints of a run are complete, and what the log keeps when one of them is gone back to."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from pathlib import Path

from pluralpref.atomic import written_aside
from pluralpref.errors import ConfigError, DataError

logger = logging.getLogger(__name__)


def last_complete_checkpoint(output_dir: str | os.PathLike[str], *, remove: bool = True) -> str | None:
    """The newest complete checkpoint of a run, or ``None``; incomplete ones are removed, and a warning names them.

    ``trainer_state.json`` is the last file of a checkpoint to be written, so a checkpoint is complete if it parses. Only folders
    named ``checkpoint-STEP`` are looked at: others are somebody's own.

    :param remove: ``False`` leaves incomplete ones where they are.
    :raises OSError: if a state can't be read for another reason than that it isn't there.
    """
    complete: list[tuple[int, Path]] = []
    for folder in sorted(Path(output_dir).glob("checkpoint-*")):
        if re.fullmatch(r"checkpoint-[0-9]+", folder.name) is None or not folder.is_dir():
            continue
        try:
            state = json.loads((folder / "trainer_state.json").read_text())
        except (FileNotFoundError, ValueError) as error:
            if remove:
                logger.warning("%s is removed: its writing was cut off (%s)", folder, error)
                shutil.rmtree(folder)
            continue
        if isinstance(state, dict) and "global_step" in state:
            complete.append((int(state["global_step"]), folder))
    return str(max(complete)[1]) if complete else None


def step_of(checkpoint: Path) -> int:
    """The optimiser's steps at a checkpoint.

    :raises ConfigError: if there is no such folder.
    :raises DataError: if it is no complete checkpoint.
    """
    if not checkpoint.is_dir():
        raise ConfigError(f"resume_from_checkpoint={str(checkpoint)!r}: there is no such folder")
    try:
        return int(json.loads((checkpoint / "trainer_state.json").read_text())["global_step"])
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{checkpoint} is no complete checkpoint: its trainer_state.json, which is written last, can't be read ({error}). "
            "Resume from another one, or from the newest complete one with resume_from_checkpoint=True"
        ) from error


def forget_steps_after(path: Path, step: int) -> None:
    """Drop log lines of steps that will run again, so that each step stands in the file once."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line).get("step", 0) <= step:
                kept.append(line)
        except ValueError:  # a line cut off by a kill
            continue
    with written_aside(path) as partial:
        partial.write_text("".join(line + "\n" for line in kept))
