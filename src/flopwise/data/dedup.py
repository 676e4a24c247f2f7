"""Near-duplicate removal: MinHash in bands finds candidates, exact Jaccard similarity decides.

Broder, On the resemblance and containment of documents, 1997; bands as in Leskovec, Rajaraman and Ullman,
Mining of Massive Datasets, section 3.4.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np

N_HASHES, BANDS = 64, 16
"""16 bands of 4: two texts of similarity .8 become candidates with a chance of 1 - (1 - .8^4)^16 = .9998."""

THRESHOLD, SHINGLE = 0.8, 5
"""Likeness from which a text is a near-duplicate, and the words of a shingle."""
_BLOCK = 1024
_REMEMBERED = 1024
"""Sets of shingles kept at hand: texts that are alike often stand close to each other."""
_CROWD = 32
"""Where many texts share a key and yet differ (lists, forms), only the first so many are compared with."""

_NO_WORD = re.compile(r"\W+")
_BASE = 0x9E3779B97F4A7C15
_MULTIPLIER = np.uint64(_BASE)
_SEGMENT = 1 << 20
_IN_WORD = np.zeros(256, dtype=bool)
_IN_WORD[[*b"abcdefghijklmnopqrstuvwxyz0123456789_", *range(0x80, 0x100)]] = True


@lru_cache(maxsize=2)
def _powers(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Powers 0 to n - 1 of the base and of its inverse, modulo 2^64."""
    out = []
    for base in (_BASE, pow(_BASE, -1, 1 << 64)):
        factors = np.full(n, base, dtype=np.uint64)
        factors[0] = 1
        out.append(np.cumprod(factors))
    return out[0], out[1]


def _words(text: str) -> np.ndarray:
    """64-bit hashes [words] uint64 of lower-cased words, the same in every process.

    A word's hash is the polynomial of its bytes, taken from running sums over the whole text (Karp and Rabin,
    1987), then mixed: all words of a text at once, several times faster than one by one.
    """
    text = text.lower()
    if not text.isascii():
        text = _NO_WORD.sub(" ", text)  # what is left above 127 are letters
    content = np.frombuffer(text.encode(errors="replace"), dtype=np.uint8)
    inside = _IN_WORD[content]
    parts = []
    start = 0
    while start < len(content):
        end = start + _SEGMENT
        if end < len(content):  # cut behind the last word that is whole
            gaps = np.flatnonzero(~inside[start:end])
            end = start + int(gaps[-1]) + 1 if len(gaps) else len(content)
        parts.append(_hashed(content[start:end], inside[start:end]))
        start = end
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint64)


def _hashed(content: np.ndarray, inside: np.ndarray) -> np.ndarray:
    edges = np.flatnonzero(np.diff(inside, prepend=False, append=False))
    starts, ends = edges[::2], edges[1::2]
    up, down = _powers(max(_SEGMENT, len(content)))
    sums = np.zeros(len(content) + 1, dtype=np.uint64)
    np.cumsum(content * up[: len(content)], out=sums[1:])
    values = (sums[ends] - sums[starts]) * down[starts]
    values ^= values >> np.uint64(32)
    values *= _MULTIPLIER
    return values ^ (values >> np.uint64(29))


def shingle_hashes(text: str, n: int) -> np.ndarray:
    """Hashes [k] uint64 of a text's runs of n words, in order and with repeats; case and punctuation do not
    count. A text of fewer than n words is one shingle."""
    words = _words(text)
    width = max(1, min(n, len(words)))
    total = np.zeros(max(1, len(words) - width + 1), dtype=np.uint64)
    for k in range(min(width, len(words))):
        # Wraps around at 64 bits, which is what a polynomial hash wants.
        total = total * _MULTIPLIER + words[k : k + len(total)]
    return total


def shingles(texts: Iterable[str], n: int) -> Iterator[np.ndarray]:
    """For each text the sorted distinct hashes (uint64) of its runs of n words."""
    for text in texts:
        yield np.unique(shingle_hashes(text, n))


@lru_cache(maxsize=4)
def _hashing(n_hashes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    factors = rng.integers(1, 1 << 63, n_hashes, dtype=np.uint64) | np.uint64(1)
    return factors[:, None], rng.integers(0, 1 << 63, n_hashes, dtype=np.uint64)[:, None]


def signature(hashes: np.ndarray, n_hashes: int = N_HASHES) -> np.ndarray:
    """MinHash signature [n_hashes] uint64 of a set of hashes [k] uint64 (repeats change nothing).

    Two signatures agree at a position with a probability near the Jaccard similarity of their sets. Each
    position is the minimum under its own multiply-shift hash (Dietzfelbinger et al., 1997).
    """
    factors, offsets = _hashing(n_hashes)
    # High bits first: products leave the low bits of similar inputs alike.
    mixed = hashes ^ (hashes >> np.uint64(33))
    out = np.full(n_hashes, np.iinfo(np.uint64).max)
    for start in range(0, len(mixed), _BLOCK):  # what fits the cache
        values = mixed[None, start : start + _BLOCK] * factors
        values += offsets
        np.minimum(out, values.min(axis=1), out=out)
    return out >> np.uint64(20)


def band_keys(hashes: np.ndarray) -> np.ndarray:
    """Keys [BANDS] uint64 of a set of hashes: texts that agree in one of them are candidates."""
    rows = signature(hashes).reshape(BANDS, -1)
    keys = np.zeros(BANDS, dtype=np.uint64)
    for column in rows.T:
        keys = (keys ^ column) * _MULTIPLIER
    return keys


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Shared part of two sorted sets of hashes."""
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / max(1, len(a) + len(b) - shared)


def near_duplicates(texts: Sequence[str], threshold: float = THRESHOLD, shingle: int = SHINGLE) -> list[int]:
    """Indices of the texts to keep: of texts as alike as `threshold`, the first stays.

    Likeness is the Jaccard similarity of their sets of runs of `shingle` words; case and punctuation do not
    count.

    >>> near_duplicates(["the cat sat on the mat today", "a wholly different line of text here",
    ...                  "The cat sat on the mat, today!"])
    [0, 1]
    """
    sets = list(shingles(texts, shingle))
    keys = np.array([band_keys(s) for s in sets], dtype=np.uint64).reshape(-1, BANDS)
    return np.flatnonzero(first_of_alike(keys, sets.__getitem__, threshold)).tolist()


def first_of_alike(
    keys: np.ndarray, shingles_of: Callable[[int], np.ndarray], threshold: float = THRESHOLD
) -> np.ndarray:
    """Which of n texts to keep [n] bool, given their `band_keys` [n, BANDS] (a memory map will do).

    Candidates are compared exactly, by the shingles that `shingles_of` looks up. Takes about 25 bytes of
    memory a text, and more for texts that have candidates.
    """
    kept = np.ones(len(keys), dtype=bool)
    texts, groups = _candidates(keys)
    buckets: dict[int, list[int]] = {}
    look_up = lru_cache(maxsize=_REMEMBERED)(shingles_of)
    edges = np.flatnonzero(np.diff(texts, prepend=-1, append=-1))
    for start, end in pairwise(edges.tolist()):
        text, mine = int(texts[start]), groups[start:end].tolist()
        others = {other for group in mine for other in buckets.get(group, ())}
        if others and any(jaccard(look_up(other), look_up(text)) >= threshold for other in sorted(others)):
            kept[text] = False
            continue
        for group in mine:
            if len(bucket := buckets.setdefault(group, [])) < _CROWD:
                bucket.append(text)
    return kept


def _candidates(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Texts [m] that share a key with another, in order, and the number of that key [m]."""
    found_texts, found_groups, n_groups = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], 0
    for band in range(keys.shape[1]):
        column = np.array(keys[:, band])
        order = np.argsort(column, kind="stable")
        new = np.diff(column[order], prepend=column[order[:1]] ^ np.uint64(1)) != 0
        group = np.cumsum(new)
        many = np.bincount(group)[group] > 1
        found_texts.append(order[many])
        found_groups.append(group[many] + n_groups)
        n_groups += len(column) + 1
    texts, groups = np.concatenate(found_texts), np.concatenate(found_groups)
    order = np.argsort(texts, kind="stable")
    return texts[order], groups[order]
