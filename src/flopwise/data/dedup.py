"""Near-duplicate removal: MinHash signatures in bands (Broder 1997; Leskovec et al., Mining of Massive Datasets, ch. 3)."""

from __future__ import annotations

import re
import zlib

import numpy as np

_PRIME = np.uint64((1 << 31) - 1)


def signature(text: str, n_hashes: int = 32, shingle: int = 5, seed: int = 0) -> np.ndarray:
    """MinHash signature [n_hashes] uint64 over word shingles; equal entries estimate Jaccard similarity."""
    words = re.findall(r"\w+", text.lower())
    grams = {" ".join(words[i : i + shingle]) for i in range(max(1, len(words) - shingle + 1))}
    hashes = np.fromiter((zlib.crc32(g.encode()) for g in grams), dtype=np.uint64, count=len(grams))
    rng = np.random.default_rng(seed)
    a, b = (rng.integers(1, int(_PRIME), n_hashes, dtype=np.uint64) for _ in range(2))
    # 31-bit hashes times 31-bit factors stay inside 64 bits; the remainder by a prime is what shuffles them.
    return ((hashes[:, None] % _PRIME * a + b) % _PRIME).min(axis=0)


def near_duplicates(texts: list[str], threshold: float = 0.8, n_hashes: int = 32, bands: int = 8) -> list[int]:
    """Indices of the texts to keep: of a group more alike than `threshold`, the first stays.

    Candidates share all hashes of one of `bands` bands; they are dropped when the estimated Jaccard
    similarity to a kept text reaches the threshold.

    >>> near_duplicates(["the cat sat on the mat today", "a wholly different line of text here",
    ...                  "the cat sat on the mat today"])
    [0, 1]
    """
    rows = n_hashes // bands
    kept: list[int] = []
    buckets: dict[tuple[int, bytes], list[int]] = {}
    signatures: list[np.ndarray] = []
    for i, text in enumerate(texts):
        s = signature(text, n_hashes)
        signatures.append(s)
        keys = [(band, s[band * rows : (band + 1) * rows].tobytes()) for band in range(bands)]
        near = {j for key in keys for j in buckets.get(key, ())}
        if any((signatures[j] == s).mean() >= threshold for j in near):
            continue
        kept.append(i)
        for key in keys:
            buckets.setdefault(key, []).append(i)
    return kept
