"""Files and folders that appear complete or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_aside(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a name beside ``path`` to write to; it is renamed to ``path`` at the end, or removed after an error.

    A reader sees the old file or the new one, also when the writer is killed.

    :param path: its folder is made if it isn't there.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def folder_written_aside(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a folder beside ``path`` to write to; it is renamed to ``path`` at the end, or removed after an error.

    A folder that is there is complete, also when the writer is killed.

    :param path: replaced if it is there.
    """
    target = Path(path)
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a writer that was killed
    partial.mkdir(parents=True)
    try:
        yield partial
        if target.exists():
            shutil.rmtree(target)
        os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
