"""Embeddings on disk, so that a killed or repeated run doesn't compute them again."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pluralpref.atomic import written_aside

logger = logging.getLogger(__name__)

#: Least seconds between two writings of an unfinished pass, and how many times the time that a writing takes.
_INTERVAL = 60.0
_TIMES_WRITING = 20.0


class EmbeddingCache:
    """The embeddings of one data set under one model, with which of them are known.

    :param folder: made when something is written.
    :param key: of :func:`~pluralpref.likelihood.reference_cache.reference_key`.
    :param count: the number of pairs.
    """

    def __init__(self, folder: str | os.PathLike[str], key: str, count: int) -> None:
        self.path = Path(folder) / f"embeddings-{key[:32]}.safetensors"
        self.values: Tensor | None = None
        self.known = torch.zeros(count, dtype=torch.bool)
        self._changed = False
        self._written = time.monotonic()
        self._took = 0.0
        self._load(count)

    def _load(self, count: int) -> None:
        if not self.path.is_file():
            return
        try:
            state = load_file(self.path)
            values, known = state["values"], state["known"]
        except (SafetensorError, OSError, KeyError) as error:
            logger.warning("%s can't be read (%s): the model runs again.", self.path, error)
            return
        if values.dim() == 3 and values.shape[:2] == (3, count) and known.shape == (count,):
            self.values, self.known = values, known

    def put(self, values: Tensor, rows: list[int]) -> None:
        """Note which rows of ``values`` are new, and now and then write what is known.

        :param values: (3, pairs, hidden) of all pairs, known or not.
        """
        self.values, self._changed = values, True
        self.known[rows] = True
        if time.monotonic() - self._written > max(_INTERVAL, _TIMES_WRITING * self._took):
            self._write()

    def finish(self) -> None:
        """Write what hasn't been written."""
        if self._changed:
            self._write()

    def _write(self) -> None:
        assert self.values is not None
        start = time.monotonic()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with written_aside(self.path) as partial:
            save_file({"values": self.values, "known": self.known}, partial)
        self._written, self._changed = time.monotonic(), False
        self._took = self._written - start
