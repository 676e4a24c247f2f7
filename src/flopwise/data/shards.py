"""Packed token shards on disk: written as a stream, memory-mapped, checked by their SHA-256 when opened.

Documents stand one after the other, each closed by the end-of-text token, in files of bounded size that no
document crosses.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from flopwise.data.checksums import matches
from flopwise.errors import FlopwiseError

FILE_TOKENS = 1 << 28
"""Tokens after which a new file is begun: half a gigabyte of 16-bit ids."""
NARROW = 1 << 16
"""Vocabularies up to this size are stored as 16-bit ids, larger ones as 32-bit."""


class Writer:
    """Writes one shard: `NAME-00000.bin` and so on (little-endian ids), `NAME.starts` (int64, where documents
    begin), and last `NAME.json`, without which there is no shard.
    """

    def __init__(self, path: Path, eos_id: int, vocab_size: int = NARROW, file_tokens: int = FILE_TOKENS):
        self.path, self.eos_id, self.vocab_size, self.file_tokens = path, eos_id, vocab_size, file_tokens
        self.dtype = np.dtype("<u2" if vocab_size <= NARROW else "<u4")
        self.tokens, self.documents = 0, 0
        self._files: list[dict[str, object]] = []
        self._out: IO[bytes] | None = None
        self._digest, self._in_file = hashlib.sha256(), 0
        self._starts = open(_temporary(_beside(path, ".starts")), "wb")  # noqa: SIM115
        self._starts_digest = hashlib.sha256()

    def add(self, ids: Sequence[int] | np.ndarray) -> None:
        """Append one document; the end-of-text token is added.

        Raises:
            FlopwiseError: an id is outside of the vocabulary.
        """
        whole = np.empty(len(ids) + 1, dtype=np.int64)
        whole[:-1], whole[-1] = ids, self.eos_id
        if whole.min() < 0 or whole.max() >= self.vocab_size:
            bad = whole.min() if whole.min() < 0 else whole.max()
            raise FlopwiseError(
                f"shard {self.path.name}: token id {bad} of document {self.documents} is outside of the "
                f"vocabulary of {self.vocab_size:,}; use the tokenizer that the vocabulary is of"
            )
        if self._out is None:
            self._out = open(_temporary(self._name()), "wb")  # noqa: SIM115
            self._digest, self._in_file = hashlib.sha256(), 0
        content = whole.astype(self.dtype).tobytes()
        self._out.write(content)
        self._digest.update(content)
        start = np.array([self.tokens], dtype="<i8").tobytes()
        self._starts.write(start)
        self._starts_digest.update(start)
        self.tokens += len(whole)
        self._in_file += len(whole)
        self.documents += 1
        if self._in_file >= self.file_tokens:
            self._end_file()

    def finish(self) -> int:
        """Make the shard exist; returns its tokens.

        Raises:
            FlopwiseError: it has no document.
        """
        from flopwise.records.folder import atomic_write

        if not self.documents:
            self.discard()
            raise FlopwiseError(f"shard {self.path.name} would have no documents; give more data")
        self._end_file()
        _close(self._starts)
        os.replace(_temporary(_beside(self.path, ".starts")), _beside(self.path, ".starts"))
        header = {
            "tokens": self.tokens, "documents": self.documents, "dtype": self.dtype.name,
            "files": self._files, "starts_sha256": self._starts_digest.hexdigest(),
        }  # fmt: skip
        atomic_write(_beside(self.path, ".json"), json.dumps(header, indent=1) + "\n")
        return self.tokens

    def discard(self) -> None:
        """Remove what was written."""
        self._starts.close()
        if self._out is not None:
            self._out.close()
        for path in (_temporary(_beside(self.path, ".starts")), _temporary(self._name())):
            path.unlink(missing_ok=True)
        for entry in self._files:
            self.path.with_name(str(entry["name"])).unlink(missing_ok=True)

    def _name(self) -> Path:
        return _beside(self.path, f"-{len(self._files):05d}.bin")

    def _end_file(self) -> None:
        if self._out is None:
            return
        _close(self._out)
        path = self._name()
        os.replace(_temporary(path), path)
        self._files.append({"name": path.name, "tokens": self._in_file, "sha256": self._digest.hexdigest()})
        self._out = None


def write(
    documents: Iterable[Sequence[int] | np.ndarray], path: Path, eos_id: int, vocab_size: int = NARROW,
    file_tokens: int = FILE_TOKENS,
) -> int:  # fmt: skip
    """Write documents as one shard; returns the number of tokens.

    Raises:
        FlopwiseError: an id is outside of the vocabulary, or there is no document; nothing is left behind.
    """
    writer = Writer(path, eos_id, vocab_size, file_tokens)
    try:
        for ids in documents:
            writer.add(ids)
    except BaseException:
        writer.discard()
        raise
    return writer.finish()


class Shards:
    """A shard, memory-mapped; opening it checks lengths and SHA-256 (`checksums.matches`)."""

    def __init__(self, path: Path):
        self.path = path
        try:
            header = json.loads(_beside(path, ".json").read_bytes())
            dtype = np.dtype(header["dtype"]).newbyteorder("<")
            files = [(path.with_name(f["name"]), int(f["tokens"]), f["sha256"]) for f in header["files"]]
            starts = _beside(path, ".starts")
            self.parts: list[np.ndarray] = [
                np.asarray(np.memmap(file, dtype=dtype, mode="r")) for file, _, _ in files
            ]
            """Ids of each file."""
            self.starts: np.ndarray = np.memmap(starts, dtype="<i8", mode="r")
            """Where documents begin, counted over all files."""
            whole = len(self.starts) == header["documents"] and matches(starts, header["starts_sha256"])
            for part, (file, tokens, digest) in zip(self.parts, files, strict=True):
                whole = whole and len(part) == tokens and matches(file, digest)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            raise FlopwiseError(
                f"shard {path} cannot be read ({type(e).__name__}); prepare the data again"
            ) from e
        if not whole or not files:
            raise FlopwiseError(
                f"shard {path} is damaged: its bytes are not those that were written; prepare the data again"
            )
        self._bounds = np.cumsum([0, *(len(part) for part in self.parts)])
        self._views: dict[int, list[np.ndarray]] = {}

    def __len__(self) -> int:
        return int(self._bounds[-1])

    @property
    def n_documents(self) -> int:
        """Documents packed in this shard."""
        return len(self.starts)

    def n_windows(self, seq_len: int) -> int:
        """Non-overlapping windows; neighbours share one token, so that each token is a target once. None
        crosses two files."""
        return sum((len(part) - 1) // seq_len for part in self.parts)

    def windows(self, index: np.ndarray, seq_len: int) -> np.ndarray:
        """Windows [n, seq_len + 1] int64 of numbers `index` [n]: inputs and, one further on, targets."""
        views = self._views.get(seq_len) or self._viewed(seq_len)
        if len(views) == 1:
            return views[0][index].astype(np.int64)
        ends = np.cumsum([len(view) for view in views])
        which = np.searchsorted(ends, index, side="right")
        out = np.empty((len(index), seq_len + 1), dtype=np.int64)
        for i in np.unique(which).tolist():
            mine = which == i
            out[mine] = views[i][index[mine] - (ends[i] - len(views[i]))]
        return out

    def _viewed(self, seq_len: int) -> list[np.ndarray]:
        """Each file as windows [n, seq_len + 1] that overlap by one token. Rows of such a view are copied
        whole, several times faster than by an index for every token."""
        views = []
        for part in self.parts:
            shape, size = ((len(part) - 1) // seq_len, seq_len + 1), part.itemsize
            views.append(
                np.lib.stride_tricks.as_strided(part, shape, (seq_len * size, size), writeable=False)
            )
        self._views = {seq_len: views}
        return views

    def document_windows(self, seq_len: int, n_tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """Windows [n, seq_len + 1] int64 and their documents [n], about `n_tokens`: the yardstick of
        evaluation.

        Windows lie within documents, spread evenly over them, so that the standard error can be taken over
        documents. Documents shorter than a window have none.

        Raises:
            FlopwiseError: all documents are shorter.
        """
        starts = np.asarray(self.starts)
        lengths = np.diff(np.append(starts, len(self)))
        ends = np.cumsum(np.maximum(0, -(-(lengths - seq_len) // seq_len)))
        if not ends[-1]:
            raise FlopwiseError(
                f"held-out data {self.path.name}: the longest document has {lengths.max():,} tokens, a "
                f"window needs {seq_len + 1:,}; lower seq_len"
            )
        want = min(int(ends[-1]), max(1, n_tokens // seq_len))
        chosen = np.linspace(0, int(ends[-1]) - 1, want).round().astype(np.int64)
        documents = np.searchsorted(ends, chosen, side="right")
        before = np.where(documents > 0, ends[documents - 1], 0)
        places = starts[documents] + (chosen - before) * seq_len
        files = np.searchsorted(self._bounds, places, side="right") - 1
        rows = np.empty((want, seq_len + 1), dtype=np.int64)
        for i, (file, place) in enumerate(zip(files.tolist(), places.tolist(), strict=True)):
            first = place - int(self._bounds[file])
            rows[i] = self.parts[file][first : first + seq_len + 1]
        return rows, documents


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(f"{path.name}{ending}")


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _close(out: IO[bytes]) -> None:
    out.flush()
    os.fsync(out.fileno())
    out.close()
