"""Near-duplicate removal: MinHash in bands finds candidates, exact Jaccard similarity decides.

Broder, On the resemblance and containment of documents, 1997; bands as in Leskovec, Rajaraman and Ullman,
Mining of Massive Datasets, section 3.4.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

N_HASHES, BANDS = 64, 16
"""16 bands of 4: two texts of similarity .8 become candidates with a chance of 1 - (1 - .8^4)^16 = .9998."""

_WORD = re.compile(r"\w+")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


class _WordHashes(dict[str, int]):
    """64-bit hash of a word, the same in every process (Python's own `hash` is not)."""

    def __missing__(self, word: str) -> int:
        value = int.from_bytes(
            hashlib.blake2b(word.encode(errors="replace"), digest_size=8).digest(), "little"
        )
        self[word] = value
        return value


def shingles(texts: Iterable[str], n: int) -> Iterator[np.ndarray]:
    """For each text the sorted distinct hashes (uint64) of its runs of n words, lower-cased.

    A text of fewer than n words is one shingle.
    """
    hashes = _WordHashes()
    for text in texts:
        words = _WORD.findall(text.lower())
        ids = np.fromiter(map(hashes.__getitem__, words), dtype=np.uint64, count=len(words))
        width = max(1, min(n, len(ids)))
        total = np.zeros(max(1, len(ids) - width + 1), dtype=np.uint64)
        for k in range(min(width, len(ids))):
            # Wraps around at 64 bits, which is what a polynomial hash wants.
            total = total * _MULTIPLIER + ids[k : k + len(total)]
        yield np.unique(total)


def signature(hashes: np.ndarray, n_hashes: int = N_HASHES) -> np.ndarray:
    """MinHash signature [n_hashes] uint64 of a set of hashes [k] uint64.

    Two signatures agree at a position with a probability near the Jaccard similarity of their sets. Each
    position is the minimum under its own multiply-shift hash (Dietzfelbinger et al., 1997).
    """
    rng = np.random.default_rng(0)
    factors = rng.integers(1, 1 << 63, n_hashes, dtype=np.uint64) | np.uint64(1)
    offsets = rng.integers(0, 1 << 63, n_hashes, dtype=np.uint64)
    # High bits first: products leave the low bits of similar inputs alike.
    mixed = hashes ^ (hashes >> np.uint64(33))
    return np.array(
        [int(((mixed * a + b) >> np.uint64(20)).min()) for a, b in zip(factors, offsets, strict=True)],
        np.uint64,
    )


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Shared part of two sorted sets of hashes."""
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / max(1, len(a) + len(b) - shared)


def near_duplicates(texts: Sequence[str], threshold: float = 0.8, shingle: int = 5) -> list[int]:
    """Indices of the texts to keep: of texts as alike as `threshold`, the first stays.

    Likeness is the Jaccard similarity of their sets of runs of `shingle` words; case and punctuation do not
    count.

    >>> near_duplicates(["the cat sat on the mat today", "a wholly different line of text here",
    ...                  "The cat sat on the mat, today!"])
    [0, 1]
    """
    rows = N_HASHES // BANDS
    kept: list[int] = []
    sets: dict[int, np.ndarray] = {}
    buckets: dict[tuple[int, bytes], list[int]] = {}
    for i, hashes in enumerate(shingles(texts, shingle)):
        mins = signature(hashes)
        keys = [(band, mins[band * rows : (band + 1) * rows].tobytes()) for band in range(BANDS)]
        candidates = {j for key in keys for j in buckets.get(key, ())}
        if any(jaccard(sets[j], hashes) >= threshold for j in candidates):
            continue
        kept.append(i)
        sets[i] = hashes
        for key in keys:
            buckets.setdefault(key, []).append(i)
    return kept
