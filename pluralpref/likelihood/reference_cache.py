"""Reference log-probabilities on disk, so that a killed or repeated run doesn't compute them again."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pluralpref._version import __version__
from pluralpref.atomic import written_aside
from pluralpref.likelihood.batches import TOKEN_COLUMNS, device_of

logger = logging.getLogger(__name__)

#: Seconds between two writings of an unfinished pass.
_INTERVAL = 60.0


class ReferenceCache:
    """The log-probabilities of one data set under one model, with which of them are known.

    :param folder: made if it isn't there.
    :param key: of :func:`reference_key`.
    :param count: the number of pairs.
    """

    def __init__(self, folder: str | os.PathLike[str], key: str, count: int) -> None:
        self.path = Path(folder) / f"reference-{key[:32]}.safetensors"
        self.values = torch.zeros(2, count, dtype=torch.float64)
        self.known = torch.zeros(count, dtype=torch.bool)
        self._written = time.monotonic()
        self._load(count)

    def _load(self, count: int) -> None:
        if not self.path.is_file():
            return
        try:
            state = load_file(self.path)
            values, known = state["values"], state["known"]
        except (SafetensorError, OSError, KeyError) as error:
            logger.warning("%s can't be read (%s): the reference runs again.", self.path, error)
            return
        if values.shape == (2, count) and known.shape == (count,):
            self.values, self.known = values, known

    def put(self, rows: list[int], chosen: Tensor, rejected: Tensor) -> None:
        """Keep a batch, and now and then write what is known."""
        self.values[0, rows], self.values[1, rows] = chosen.double().cpu(), rejected.double().cpu()
        self.known[rows] = True
        if time.monotonic() - self._written > _INTERVAL:
            self.write()

    def write(self) -> None:
        """Write what is known; the file is the old one or the new one at any time."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with written_aside(self.path) as partial:
            save_file({"values": self.values, "known": self.known}, partial)
        self._written = time.monotonic()


@torch.no_grad()
def reference_key(
    model: nn.Module, dataset: Any, attn_layout: str, autocast: Callable[[], AbstractContextManager[Any]]
) -> str:
    """A hash of everything that changes the numbers: weights, configuration, tokens, precision, layout, versions.

    :param model: the reference.
    :param dataset: tokenised.
    :param attn_layout: see :func:`~pluralpref.likelihood.pair_logps`.
    :param autocast: the context in which the model runs.
    """
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        raw = tensor.detach().cpu().contiguous()
        found.update(raw.reshape(-1).view(torch.uint8).numpy().tobytes() if raw.numel() else b"")
    config: Any = getattr(model, "config", None)
    found.update((config.to_json_string() if hasattr(config, "to_json_string") else repr(config)).encode())
    for column in TOKEN_COLUMNS:
        for row in dataset[column]:
            found.update(len(row).to_bytes(8, "little"))
            found.update(torch.tensor(row, dtype=torch.int64).numpy().tobytes())
    kind = device_of(model).type
    with autocast():
        precision = str(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else "none"
    versions = [__version__, torch.__version__, transformers.__version__]
    found.update(json.dumps([kind, precision, attn_layout, *versions]).encode())
    return found.hexdigest()
