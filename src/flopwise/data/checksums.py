"""SHA-256 of files: checked before compute is spent, and not again while a file is the one checked."""

from __future__ import annotations

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path

LARGE = 1 << 28
"""Bytes (268 MB, a fifth of a second) from which a check is remembered beyond this process."""
REMEMBERED_S = 86_400.0
"""A disk may lose bits under an unchanged date: after a day a large file is read through again."""

_checked: dict[Path, tuple[int, ...]] = {}


def sha256(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def matches(path: Path, expected: str) -> bool:
    """Whether the file's SHA-256 is `expected`. It is read once per process and state (size, time of change,
    inode); large files once a day per machine, which the user's cache folder remembers.

    Raises:
        OSError: it cannot be read.
    """
    path = path.resolve()
    stat = path.stat()
    state = (stat.st_size, stat.st_mtime_ns, stat.st_ino, int(expected[:15] or "0", 16))
    if _checked.get(path) == state or (stat.st_size >= LARGE and _remembered(path, state)):
        _checked[path] = state
        return True
    if sha256(path) != expected:
        return False
    _checked[path] = state
    if stat.st_size >= LARGE:
        _remember(path, state)
    return True


def _note(path: Path) -> Path:
    from flopwise.data.corpora import cache_folder

    return cache_folder() / "checked" / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}.json"


def _remembered(path: Path, state: tuple[int, ...]) -> bool:
    try:
        note = json.loads(_note(path).read_bytes())
        return bool(note["state"] == list(state) and 0 <= time.time() - note["time"] < REMEMBERED_S)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _remember(path: Path, state: tuple[int, ...]) -> None:
    from flopwise.records.folder import atomic_write

    with suppress(OSError):  # a cache that cannot be written costs time, nothing else
        note = _note(path)
        note.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(note, json.dumps({"state": state, "time": time.time()}))
