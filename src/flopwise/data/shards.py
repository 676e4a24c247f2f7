"""Packed token shards with stateless random access: a batch depends on its step and the seed alone.

No iterator state has to be saved: a resumed run asks for step 1000 and gets what an unbroken one would have.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from flopwise.errors import FlopwiseError


def write(documents: Iterable[Sequence[int]], path: Path, eos_id: int) -> int:
    """Write documents, each closed by `eos_id`, as one packed shard; returns the number of tokens.

    `path`.bin holds little-endian uint16 ids, `path`.json the documents' starts and the SHA-256.

    Raises:
        FlopwiseError: an id does not fit 16 bits, or there is no document.
    """
    from flopwise.records.folder import atomic_write

    parts: list[np.ndarray] = []
    starts: list[int] = []
    total = 0
    for doc in documents:
        ids = np.array([*doc, eos_id], dtype=np.int64)
        if ids.min() < 0 or ids.max() > 0xFFFF:
            raise FlopwiseError(
                f"shards: token id {ids.max()} does not fit 16 bits; use a vocabulary of at most 65,535"
            )
        starts.append(total)
        parts.append(ids.astype("<u2"))
        total += len(ids)
    if not parts:
        raise FlopwiseError(f"shards: no documents for {path.name}; raise data.max_chars")
    content = np.concatenate(parts).tobytes()
    header = {"tokens": total, "sha256": hashlib.sha256(content).hexdigest(), "starts": starts}
    atomic_write(_file(path, "bin"), content)
    atomic_write(_file(path, "json"), json.dumps(header) + "\n")
    return total


def _file(path: Path, suffix: str) -> Path:
    return path.with_name(f"{path.name}.{suffix}")


@lru_cache(maxsize=32)
def _permutation(seed: int, stream: int, epoch: int, n: int) -> np.ndarray:
    return np.random.default_rng((seed, stream, epoch)).permutation(n)


class Shards:
    """A packed shard, memory-mapped; opening it checks length and SHA-256 (about a second per GB)."""

    def __init__(self, path: Path):
        try:
            header = json.loads(_file(path, "json").read_bytes())
            self.tokens: np.ndarray = np.memmap(_file(path, "bin"), dtype="<u2", mode="r")
            self.starts = np.array(header["starts"], dtype=np.int64)
            tokens, sha256 = header["tokens"], header["sha256"]
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise FlopwiseError(
                f"shard {path} cannot be read ({type(e).__name__}); prepare the data again"
            ) from e
        if len(self.tokens) != tokens or hashlib.sha256(self.tokens.data).hexdigest() != sha256:
            raise FlopwiseError(
                f"shard {path} is damaged: {len(self.tokens):,} tokens that are not the {tokens:,} written; "
                "prepare the data again"
            )

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def n_documents(self) -> int:
        """Documents packed in this shard."""
        return len(self.starts)

    def n_windows(self, seq_len: int) -> int:
        """Non-overlapping windows; neighbours share one token, so that each token is a target once."""
        return (len(self.tokens) - 1) // seq_len

    def window(self, index: int, seq_len: int) -> np.ndarray:
        """Window [seq_len + 1] int64: inputs and, one further on, targets."""
        return self.tokens[index * seq_len : index * seq_len + seq_len + 1].astype(np.int64)

    def batch(self, step: int, batch_size: int, seq_len: int, seed: int, stream: int = 0) -> np.ndarray:
        """Rows [batch_size, seq_len + 1] int64 of a step; each epoch is a new permutation of the windows."""
        return Source([self]).rows(step * batch_size, batch_size, seq_len, seed, stream)

    def document_windows(self, seq_len: int, n_tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """Windows [n, seq_len + 1] and their documents [n], about `n_tokens`: the yardstick of evaluation.

        Windows lie within documents, spread evenly over them, so that the standard error can be taken over
        documents. Documents shorter than a window have none.

        Raises:
            FlopwiseError: all documents are shorter.
        """
        ends = np.append(self.starts[1:], len(self.tokens))
        places = [
            (start, doc)
            for doc, (first, end) in enumerate(zip(self.starts.tolist(), ends.tolist(), strict=True))
            for start in range(first, end - seq_len, seq_len)
        ]
        if not places:
            raise FlopwiseError(f"shards: no document has {seq_len + 1} tokens; lower ladder.seq_len")
        want = min(len(places), max(1, n_tokens // seq_len))
        chosen = [places[i] for i in np.linspace(0, len(places) - 1, want).round().astype(int)]
        rows = np.stack([self.tokens[s : s + seq_len + 1] for s, _ in chosen]).astype(np.int64)
        return rows, np.array([doc for _, doc in chosen])


class Source:
    """Several shards read as one."""

    def __init__(self, shards: Sequence[Shards], name: str = "text"):
        self.shards, self.name = list(shards), name

    @property
    def n_tokens(self) -> int:
        """Tokens in all shards."""
        return sum(len(s) for s in self.shards)

    def n_windows(self, seq_len: int) -> int:
        """Windows in all shards: the length of an epoch in rows."""
        return sum(s.n_windows(seq_len) for s in self.shards)

    def rows(self, first: int, n: int, seq_len: int, seed: int, stream: int = 0) -> np.ndarray:
        """Rows [n, seq_len + 1] int64 number `first`, `first` + 1, ... of the endless shuffled sequence.

        Raises:
            FlopwiseError: the source is shorter than one row.
        """
        ends = np.cumsum([s.n_windows(seq_len) for s in self.shards])
        if not ends[-1]:
            raise FlopwiseError(
                f"source {self.name}: {self.n_tokens:,} tokens, a row needs {seq_len + 1}; lower seq_len"
            )
        out = np.empty((n, seq_len + 1), dtype=np.int64)
        for i in range(n):
            epoch, slot = divmod(first + i, int(ends[-1]))
            index = int(_permutation(seed, stream, epoch, int(ends[-1]))[slot])
            shard = int(np.searchsorted(ends, index, side="right"))
            before = int(ends[shard - 1]) if shard else 0
            out[i] = self.shards[shard].window(index - before, seq_len)
        return out


class Mixture:
    """Batches with the same number of rows from each source in every step.

    `sources` by name, and the share of each; shares are scaled to sum to 1.
    """

    def __init__(self, sources: Mapping[str, Sequence[Shards]], weights: Mapping[str, float]):
        if not weights or set(weights) != set(sources) or not all(w > 0 for w in weights.values()):
            raise FlopwiseError(f"mixture: weights must be above 0, one for each of {', '.join(sources)}")
        self.sources = [Source(shards, name) for name, shards in sources.items()]
        total = sum(weights.values())
        self.weights = {name: weights[name] / total for name in sources}

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

    def batch(self, step: int, batch_size: int, seq_len: int, seed: int) -> np.ndarray:
        """Rows [batch_size, seq_len + 1] int64 of a step, sources in their order."""
        counts = self.rows(batch_size)
        return np.concatenate(
            [
                s.rows(step * counts[s.name], counts[s.name], seq_len, seed, stream)
                for stream, s in enumerate(self.sources)
            ]
        )

    def tokens_seen(self, steps: int, batch_size: int, seq_len: int) -> dict[str, int]:
        """Target tokens shown from each source in so many steps."""
        return {name: steps * count * seq_len for name, count in self.rows(batch_size).items()}

    def epochs(self, steps: int, batch_size: int, seq_len: int) -> dict[str, float]:
        """How often each source has been read through after so many steps: above 1, data repeats."""
        counts = self.rows(batch_size)
        return {s.name: steps * counts[s.name] / s.n_windows(seq_len) for s in self.sources}
