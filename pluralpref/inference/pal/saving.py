"""Saving a PAL model as files that need no pickle."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pluralpref._version import __version__
from pluralpref.atomic import written_aside
from pluralpref.errors import ConfigError, DataError
from pluralpref.inference.global_state import borrowed_state
from pluralpref.inference.pal.config import PalConfig
from pluralpref.inference.pal.model import Pal
from pluralpref.models import StrengthModel

WEIGHTS_NAME = "pal.safetensors"
CONFIG_NAME = "pal.json"
_STRENGTH = "strength"


def save_pal(pal: Pal, directory: str | os.PathLike[str]) -> None:
    """Write ``pal.safetensors`` (f, prototypes, weights), ``pal.json`` (options, sizes, people) and ``strength/``.

    Each file is written aside and renamed, ``pal.json`` last: a folder that has it is complete.

    :param directory: created if needed.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    pal.strength.save_pretrained(folder / _STRENGTH)
    state = {
        name: value.detach().cpu().contiguous()
        for name, value in pal.state_dict().items()
        if not name.startswith(f"{_STRENGTH}.")
    }
    with written_aside(folder / WEIGHTS_NAME) as partial:
        save_file(state, partial)
    config = {
        "config": asdict(pal.config),
        "size": pal.reward.size,
        "prompt_size": pal.prompt_size,
        "annotators": list(pal.annotators),
        "history": pal.history,
        "pluralpref_version": __version__,
    }
    with written_aside(folder / CONFIG_NAME) as partial:
        partial.write_text(json.dumps(config, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def load_pal(directory: str | os.PathLike[str]) -> Pal:
    """Build the model that :func:`save_pal` wrote, in evaluation mode.

    :raises DataError: if the folder holds no saved PAL model, or a damaged one.
    """
    folder = Path(directory)
    try:
        config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{folder} holds no {CONFIG_NAME}: not a saved PAL model") from None
    except ValueError as error:
        raise DataError(f"{folder / CONFIG_NAME} is damaged: {error}") from None
    strength = StrengthModel.from_pretrained(folder / _STRENGTH)
    try:
        with borrowed_state(0):  # layers are born with random values
            options = PalConfig(**config["config"])
            pal = Pal(options, config["annotators"], config["size"], config["prompt_size"], strength)
        pal.history = config["history"]
    except (KeyError, TypeError, ConfigError) as error:
        raise DataError(f"{folder / CONFIG_NAME} is damaged: {error}") from None
    try:
        state = load_file(folder / WEIGHTS_NAME)
        own = {name: value for name, value in pal.state_dict().items() if name.startswith(f"{_STRENGTH}.")}
        pal.load_state_dict({**own, **state})
    except (OSError, SafetensorError, RuntimeError) as error:
        raise DataError(f"{folder / WEIGHTS_NAME} is missing or damaged: {str(error).splitlines()[0]}") from None
    return pal.eval()
