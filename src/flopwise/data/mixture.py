"""Which windows a step shows: a function of step and seed alone, over one source or several in fixed shares.

No iterator state has to be saved: a resumed run asks for step 1000 and gets what an unbroken one would have;
one of many processes asks for its rows of the same batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from flopwise.data.shards import Shards
from flopwise.errors import FlopwiseError

SUBSET_SEED = 20240117
"""Which windows a limited source shows: the same for all models, whatever their seeds."""
_MANY = 1 << 20


def _permuted(n: int, *seed: int) -> np.ndarray:
    order = np.arange(n, dtype=np.uint32 if n < 1 << 32 else np.int64)
    np.random.default_rng(seed).shuffle(order)
    return order


# Many models with seeds of their own may train in turns, each in an epoch or two; large ones take memory.
_small = lru_cache(maxsize=64)(_permuted)
_large = lru_cache(maxsize=4)(_permuted)


def permutation(n: int, *seed: int) -> np.ndarray:
    """A random order of n things, remembered."""
    return _large(n, *seed) if n > _MANY else _small(n, *seed)


class Source:
    """Several shards read as one; of them, `limit` tokens at most, in whole windows."""

    def __init__(self, shards: Sequence[Shards], name: str = "text", limit: int | None = None):
        self.shards, self.name, self.limit = list(shards), name, limit
        self._known: tuple[int, int, np.ndarray] | None = None

    @property
    def n_tokens(self) -> int:
        """Tokens that this source can show."""
        total = sum(len(s) for s in self.shards)
        return total if self.limit is None else min(total, self.limit)

    def n_windows(self, seq_len: int) -> int:
        """Windows: the length of an epoch in rows."""
        total, _ = self._ends(seq_len)
        return total if self.limit is None else min(total, self.limit // seq_len)

    def check(self, n_rows: int, seq_len: int) -> None:
        """Whether a batch can have `n_rows` of this source.

        Raises:
            FlopwiseError: it has no row, or fewer than a batch takes.
        """
        n = self.n_windows(seq_len)
        if not n:
            limited = " (unique_tokens)" if self.limit is not None and self.limit <= seq_len else ""
            raise FlopwiseError(
                f"source {self.name}: {self.n_tokens:,} tokens{limited}, a row needs {seq_len + 1}; "
                "lower seq_len"
            )
        if n_rows > n:
            raise FlopwiseError(
                f"source {self.name}: a batch takes {n_rows:,} rows of {seq_len:,} tokens, there are "
                f"{n:,}; lower batch_size or seq_len, or give more data"
            )

    def rows(
        self, first: int, n: int, seq_len: int, seed: int, stream: int = 0, part: slice = slice(None)
    ) -> np.ndarray:
        """Rows [n, seq_len + 1] int64 number `first`, `first` + 1, ... of the endless shuffled sequence; of
        these, `part`. Each epoch is a new permutation of the windows.

        Raises:
            FlopwiseError: the source is shorter than one row.
        """
        total, ends = self._ends(seq_len)
        n_windows = total if self.limit is None else min(total, self.limit // seq_len)
        if not n_windows:
            self.check(n, seq_len)
        places = np.arange(first, first + n)[part]
        epoch = first // n_windows
        if first + n <= (epoch + 1) * n_windows:
            index = permutation(n_windows, seed, stream, epoch)[places - epoch * n_windows]
        else:
            epochs, slots = np.divmod(places, n_windows)
            index = np.empty(len(slots), dtype=np.int64)
            for epoch in np.unique(epochs).tolist():
                now = epochs == epoch
                index[now] = permutation(n_windows, seed, stream, epoch)[slots[now]]
        if n_windows < total:
            index = permutation(total, SUBSET_SEED)[index]
        if len(self.shards) == 1:
            return self.shards[0].windows(index, seq_len)
        out = np.empty((len(index), seq_len + 1), dtype=np.int64)
        which = np.searchsorted(ends[1:], index, side="right")
        for i in np.unique(which).tolist():
            mine = which == i
            out[mine] = self.shards[i].windows(index[mine].astype(np.int64) - ends[i], seq_len)
        return out

    def _ends(self, seq_len: int) -> tuple[int, np.ndarray]:
        """All windows, and where each shard's begin and end."""
        if self._known is None or self._known[0] != seq_len:
            ends = np.cumsum([0, *(s.n_windows(seq_len) for s in self.shards)])
            self._known = seq_len, int(ends[-1]), ends
        return self._known[1:]


class Mixture:
    """Batches with the same number of rows from each source in every step.

    `sources` by name, and the share of each; shares are scaled to sum to 1. `unique_tokens` limits each
    source: only so many of its tokens are shown, again and again; which ones depends on the data alone, and
    fewer are a part of more.
    """

    def __init__(
        self, sources: Mapping[str, Sequence[Shards]], weights: Mapping[str, float],
        unique_tokens: int | None = None,
    ):  # fmt: skip
        if not weights or set(weights) != set(sources) or not all(w > 0 for w in weights.values()):
            raise FlopwiseError(f"mixture: weights must be above 0, one for each of {', '.join(sources)}")
        if unique_tokens is not None and unique_tokens < 1:
            raise FlopwiseError(f"mixture: unique_tokens is {unique_tokens}, must be at least 1")
        self.sources = [Source(shards, name, unique_tokens) for name, shards in sources.items()]
        total = sum(weights.values())
        self.weights = {name: weights[name] / total for name in sources}
        self._checked: dict[tuple[int, int], list[int]] = {}

    @property
    def tokens_unique(self) -> int:
        """Distinct tokens that the mixture can show."""
        return sum(s.n_tokens for s in self.sources)

    def rows(self, batch_size: int) -> dict[str, int]:
        """Rows of a batch from each source: whole numbers nearest to the weights, by largest remainder.

        Raises:
            FlopwiseError: a source would get no row.
        """
        exact = np.array([self.weights[s.name] * batch_size for s in self.sources])
        counts = np.floor(exact + 1e-9).astype(int)
        for i in np.argsort(counts - exact, kind="stable")[: batch_size - counts.sum()]:
            counts[i] += 1
        empty = [s.name for s, count in zip(self.sources, counts, strict=True) if not count]
        if empty:
            raise FlopwiseError(
                f"mixture: {self.weights[empty[0]]:.1%} of {empty[0]} is less than one row in a batch of "
                f"{batch_size}; raise the batch size or the share"
            )
        return {s.name: int(c) for s, c in zip(self.sources, counts, strict=True)}

    def check(self, batch_size: int, seq_len: int) -> None:
        """Whether batches of this shape can be made; `batch` asks too, this is for asking early.

        Raises:
            FlopwiseError: a source has no row in the batch, or fewer than the batch takes.
        """
        self._counts(batch_size, seq_len)

    def _counts(self, batch_size: int, seq_len: int) -> list[int]:
        """Rows of each source, checked once."""
        counts = self._checked.get((batch_size, seq_len))
        if counts is None:
            counts = list(self.rows(batch_size).values())
            for source, n in zip(self.sources, counts, strict=True):
                source.check(n, seq_len)
            self._checked[batch_size, seq_len] = counts
        return counts

    def batch(
        self, step: int, batch_size: int, seq_len: int, seed: int, rank: int = 0, ranks: int = 1
    ) -> np.ndarray:
        """Rows [batch_size, seq_len + 1] int64 of a step, sources in their order; of several processes each
        takes rows rank, rank + ranks, ... of the same batch.

        Raises:
            FlopwiseError: what `check` raises.
        """
        parts, before = [], 0
        counts = self._counts(batch_size, seq_len)
        for stream, (source, n) in enumerate(zip(self.sources, counts, strict=True)):
            mine = slice((rank - before) % ranks, None, ranks)
            parts.append(source.rows(step * n, n, seq_len, seed, stream, mine))
            before += n
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def tokens_seen(self, steps: int, batch_size: int, seq_len: int) -> dict[str, int]:
        """Target tokens shown from each source in so many steps."""
        return {name: steps * count * seq_len for name, count in self.rows(batch_size).items()}

    def epochs(self, steps: int, batch_size: int, seq_len: int) -> dict[str, float]:
        """How often each source has been read through after so many steps: above 1, data repeats."""
        counts = self.rows(batch_size)
        return {s.name: steps * counts[s.name] / s.n_windows(seq_len) for s in self.sources}
