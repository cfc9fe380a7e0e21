"""A JSON Lines file that grows line by line, survives being killed, and is gone on with."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Hashable
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from pluralpref.errors import ConfigError, DataError

_VERSION = 1


class Journal:
    """Records in a file, each written and flushed as it is made.

    The first line says what the file holds and with which settings it was made; it is refused under other settings.
    The last line may have been cut by a kill or a full disk: it is taken off and its record is made again. A cut
    anywhere else is an error, since nothing here leaves one. While it is open, no other process can open it.

    :param path: made if it isn't there, its folder too.
    :param kind: what the records are, ``"answers"`` or ``"verdicts"``.
    :param settings: plain values on which the records depend.
    :param key: tells records apart; each may be there once.
    :param info: further plain values for the first line, for a reader; they may change.
    :raises DataError: for a file of something else, a broken line, or a record that is there twice.
    :raises ConfigError: for a file made with other settings, and one that is open already.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        kind: str,
        settings: dict[str, Any],
        key: Callable[[dict[str, Any]], Hashable],
        info: dict[str, Any] | None = None,
    ) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.path.with_name(f".{self.path.name}.lock"), timeout=0)
        try:
            self._lock.acquire()
        except Timeout:
            raise ConfigError(
                f"{self.path} is being written by another run: wait until it has ended, or choose another folder"
            ) from None
        try:
            self._open(kind, settings, key, info)
        except BaseException:
            self._lock.release()
            raise

    def _open(
        self,
        kind: str,
        settings: dict[str, Any],
        key: Callable[[dict[str, Any]], Hashable],
        info: dict[str, Any] | None,
    ) -> None:
        self._key = key
        header = json.loads(_line({"file": kind, "version": _VERSION, "settings": settings, **(info or {})}))
        self.records: dict[Hashable, dict[str, Any]] = {}
        content = self.path.read_bytes() if self.path.exists() else b""
        whole, tail = _split(content, _line(header), self.path)
        if whole:
            _check_header(read_records(whole[:1], self.path)[0], header, self.path)
        for number, record in enumerate(read_records(whole[1:], self.path, first=2), start=2):
            name = key(record)
            if name in self.records:
                raise DataError(f"{self.path}, line {number}: {name} is there twice: remove one of the lines")
            self.records[name] = record
        self._file = open(self.path, "r+b" if content else "wb")  # noqa: SIM115 (closed by close)
        self._file.seek(sum(len(line) + 1 for line in whole))
        if tail:
            self._file.truncate()
        if not whole:
            self._write(header)
        elif content and not content.endswith(b"\n") and not tail:  # the last record lacks its line feed only
            self._file.seek(0, os.SEEK_END)
            self._file.write(b"\n")
            self._file.flush()

    def append(self, record: dict[str, Any]) -> None:
        """Write a record; it is in the file when this returns."""
        self.records[self._key(record)] = record
        self._write(record)

    def _write(self, record: dict[str, Any]) -> None:
        self._file.write(_line(record) + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        self._lock.release()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def read_header(path: str | os.PathLike[str], kind: str) -> dict[str, Any] | None:
    """The first line of a journal of this kind; ``None`` if the file is something else."""
    with open(path, "rb") as file:
        record = _parse(file.readline().rstrip(b"\n"))
    return record if record is not None and record.get("file") == kind and "settings" in record else None


def read_records(lines: list[bytes], path: Path, first: int = 1) -> list[dict[str, Any]]:
    """Parse lines, each an object.

    :raises DataError: naming the line.
    """
    records = []
    for number, line in enumerate(lines, start=first):
        record = _parse(line)
        if record is None:
            raise DataError(f"{path}, line {number}: not a JSON object: repair or remove it, and it is made again")
        records.append(record)
    return records


def _split(content: bytes, header: bytes, path: Path) -> tuple[list[bytes], bytes]:
    """Whole lines without their line feeds, and what follows them of a line that was cut."""
    *whole, tail = content.split(b"\n")
    if not tail:
        return whole, b""
    if _parse(tail) is not None:
        return [*whole, tail], b""
    # Only what this file's own first line begins with may be overwritten.
    if not whole and not header.startswith(tail):
        raise DataError(f"{path} is no file of this command: choose another name or remove it")
    return whole, tail


def _check_header(found: dict[str, Any], header: dict[str, Any], path: Path) -> None:
    if found.get("file") != header["file"] or "settings" not in found:
        raise DataError(f"{path} is no file of {header['file']}: choose another name or remove it")
    if found.get("version") != header["version"]:
        raise DataError(f"{path} was written by another version of the package: choose another name or remove it")
    different = [
        f"{name} was {old}, is {new}" for name, old, new in _differences(found["settings"], header["settings"])
    ]
    if different:
        raise ConfigError(
            f"{path} was made with other settings ({'; '.join(different)}): give the same ones to go on, or another folder"
        )


def _differences(old: Any, new: Any, name: str = "") -> list[tuple[str, str, str]]:
    if isinstance(old, dict) and isinstance(new, dict):
        names = [*old, *(n for n in new if n not in old)]
        return [d for n in names for d in _differences(old.get(n), new.get(n), f"{name}.{n}" if name else n)]
    return [] if old == new else [(name, _short(old), _short(new))]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:  # UnicodeDecodeError is one
        return None
    return record if isinstance(record, dict) else None


def _line(record: dict[str, Any]) -> bytes:
    try:
        return json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which an endpoint's JSON may hold
        return json.dumps(record).encode()
