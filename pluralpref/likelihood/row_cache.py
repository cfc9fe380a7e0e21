"""What a pass over a data set finds for each row, on disk so that a killed or repeated run doesn't compute it again."""

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


class RowCache:
    """The numbers of all rows of a data set, with which of them are known.

    :param count: the number of rows.
    :param kinds: how many numbers, or vectors, there are for each.
    :param path: a safetensors file that is read if it is there and fits; its folder is made when something is written. ``None``:
        in memory only.
    """

    def __init__(self, count: int, kinds: int, path: str | os.PathLike[str] | None = None) -> None:
        self.path = None if path is None else Path(path)
        #: (kinds, rows, ...), 0 where not known; ``None`` before anything is.
        self.values: Tensor | None = None
        self.known = torch.zeros(count, dtype=torch.bool)
        self._changed = False
        self._written, self._took = time.monotonic(), 0.0
        self._load((kinds, count))

    def _load(self, shape: tuple[int, int]) -> None:
        if self.path is None or not self.path.is_file():
            return
        try:
            state = load_file(self.path)
            values, known = state["values"], state["known"]
        except (SafetensorError, OSError, KeyError) as error:
            logger.warning("%s can't be read (%s): the model runs again.", self.path, error)
            return
        if values.shape[:2] == shape and known.shape == shape[1:]:
            self.values, self.known = values, known

    def has(self, rows: list[int]) -> bool:
        """Whether all of some rows are known."""
        return bool(self.known[rows].all())

    def put(self, rows: list[int], values: Tensor) -> None:
        """Keep a batch, and now and then write what is known.

        :param values: (kinds, len(rows), ...).
        """
        values = values.detach().cpu()
        if self.values is None:
            self.values = values.new_zeros(values.shape[0], len(self.known), *values.shape[2:])
        self.values[:, rows] = values
        self.known[rows] = True
        self._changed = True
        if time.monotonic() - self._written > max(_INTERVAL, _TIMES_WRITING * self._took):
            self._write()

    def finish(self) -> None:
        """Write what hasn't been written."""
        if self._changed:
            self._write()

    def _write(self) -> None:
        """The file is the old one or the new one at any time."""
        if self.path is None or self.values is None:
            return
        start = time.monotonic()
        with written_aside(self.path) as partial:
            save_file({"values": self.values, "known": self.known}, partial)
        self._written, self._changed = time.monotonic(), False
        self._took = self._written - start
