"""Documents between reading and encoding: on disk, so that a corpus may be larger than memory."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np


class Spool:
    """Texts appended once, then read by number. Eight bytes a document stay in memory."""

    def __init__(self, path: Path):
        self.path = path
        self._file = open(path, "w+b")  # noqa: SIM115
        self._ends = array("Q", [0])
        self._written = True

    def __len__(self) -> int:
        return len(self._ends) - 1

    @property
    def n_bytes(self) -> int:
        """Size of all texts."""
        return self._ends[-1]

    def append(self, content: bytes) -> None:
        """Add a document."""
        self._file.write(content)
        self._ends.append(self._ends[-1] + len(content))
        self._written = False

    def __getitem__(self, index: int) -> bytes:
        if not self._written:
            self._file.flush()
            self._written = True
        start = self._ends[index]
        return os.pread(self._file.fileno(), self._ends[index + 1] - start, start)

    def lengths(self) -> np.ndarray:
        """Bytes of each document [n] int64."""
        return np.diff(np.frombuffer(self._ends, dtype=np.uint64)).astype(np.int64)

    def texts(self, which: np.ndarray) -> Iterator[str]:
        """Documents whose place in `which` [n] bool is true, in order."""
        for index in np.flatnonzero(which).tolist():
            yield self[index].decode()

    def close(self) -> None:
        """Remove it from disk."""
        self._file.close()
        self.path.unlink(missing_ok=True)
