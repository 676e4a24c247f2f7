"""Packed token shards with stateless random access: the batch of a step depends on the step and the seed alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from flopwise.errors import FlopwiseError


def write(documents: Sequence[Sequence[int]], path: Path, eos_id: int) -> int:
    """Write documents, each closed by `eos_id`, as one packed uint16 shard; returns the number of tokens."""
    from flopwise.records.folder import atomic_write

    starts, ids = [], []
    for doc in documents:
        starts.append(len(ids))
        ids.extend(doc)
        ids.append(eos_id)
    if ids and max(ids) >= 1 << 16:
        raise FlopwiseError(f"shards: token id {max(ids)} does not fit 16 bits; use a vocabulary of at most 65,535")
    atomic_write(path.with_suffix(".bin"), np.array(ids, dtype="<u2").tobytes())
    atomic_write(path.with_suffix(".json"), json.dumps({"tokens": len(ids), "starts": starts}))
    return len(ids)


class Shards:
    """A packed shard, memory-mapped."""

    def __init__(self, path: Path):
        try:
            header = json.loads(path.with_suffix(".json").read_text())
            self.tokens = np.memmap(path.with_suffix(".bin"), dtype="<u2", mode="r")
            self.starts = np.array(header["starts"])
            whole = len(self.tokens) == header["tokens"]
        except (OSError, ValueError, KeyError) as e:
            raise FlopwiseError(f"shard {path} cannot be read ({type(e).__name__}); delete its run and start again") from e
        if not whole:
            raise FlopwiseError(f"shard {path} holds {len(self.tokens)} of {header['tokens']} tokens; delete its run")

    def __len__(self) -> int:
        return len(self.tokens)

    def n_windows(self, seq_len: int) -> int:
        """Non-overlapping windows of seq_len + 1 tokens, neighbours sharing the token between them."""
        return (len(self.tokens) - 1) // seq_len

    def window(self, index: int, seq_len: int) -> np.ndarray:
        """Window [seq_len + 1] int64."""
        return self.tokens[index * seq_len : index * seq_len + seq_len + 1].astype(np.int64)

    def document_windows(self, seq_len: int, n_tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """Windows [n, seq_len + 1] and their documents [n], about `n_tokens` in all: the yardstick of evaluation.

        Windows lie within documents, spread evenly over them in order, so that the standard error can be
        taken over documents.
        """
        ends = np.append(self.starts[1:], len(self.tokens))
        each = [(int(s), d) for d, (a, b) in enumerate(zip(self.starts, ends, strict=True)) for s in range(a, b - seq_len, seq_len)]
        if not each:
            raise FlopwiseError(f"shards: no document is as long as {seq_len + 1} tokens; shorten the sequence")
        want = min(len(each), max(1, n_tokens // seq_len))
        chosen = [each[i] for i in np.linspace(0, len(each) - 1, want).round().astype(int)]
        rows = np.stack([self.tokens[s : s + seq_len + 1].astype(np.int64) for s, _ in chosen])
        return rows, np.array([d for _, d in chosen])


class Source:
    """Several shards read as one, in an order that is new each epoch."""

    def __init__(self, shards: Sequence[Shards], name: str):
        self.shards, self.name = list(shards), name

    def index(self, seq_len: int) -> np.ndarray:
        """All windows as (shard, window) pairs [n, 2]."""
        return np.concatenate(
            [np.stack([np.full(n, i), np.arange(n)], 1) for i, s in enumerate(self.shards) if (n := s.n_windows(seq_len))]
        )

    @property
    def n_tokens(self) -> int:
        """Tokens in all shards."""
        return sum(len(s) for s in self.shards)


class Mixture:
    """Batches with a fixed number of rows from each source.

    Every batch holds the same share of each source (rounded to rows, the largest source takes the rest), so
    that no step is richer in one than another.
    """

    def __init__(self, sources: Sequence[Source], weights: Sequence[float]):
        self.sources = list(sources)
        self.weights = np.array(weights) / sum(weights)
        self._orders: dict[tuple[int, int, int, int], np.ndarray] = {}
        self._index: dict[tuple[int, int], np.ndarray] = {}

    @property
    def tokens_unique(self) -> int:
        """Distinct tokens that the mixture can show."""
        return sum(s.n_tokens for s in self.sources)

    def rows(self, batch_size: int) -> list[int]:
        """Rows of a batch from each source."""
        rows = np.floor(self.weights * batch_size + 0.5).astype(int)
        rows[int(self.weights.argmax())] += batch_size - rows.sum()
        return rows.tolist()

    def batch(self, step: int, batch_size: int, seq_len: int, seed: int) -> np.ndarray:
        """Rows [batch_size, seq_len + 1] int64 of a step."""
        out = []
        for s, (source, n_rows) in enumerate(zip(self.sources, self.rows(batch_size), strict=True)):
            if (s, seq_len) not in self._index:
                self._index[s, seq_len] = source.index(seq_len)
            index = self._index[s, seq_len]
            for i in range(n_rows):
                epoch, slot = divmod(step * n_rows + i, len(index))
                shard, window = index[self._order(s, epoch, seed, len(index))[slot]]
                out.append(source.shards[shard].window(window, seq_len))
        return np.stack(out)

    def _order(self, source: int, epoch: int, seed: int, n: int) -> np.ndarray:
        key = (source, epoch, seed, n)
        if key not in self._orders:
            self._orders[key] = np.random.default_rng((seed, source, epoch)).permutation(n)
        return self._orders[key]
