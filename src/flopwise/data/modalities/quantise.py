"""Numbers to codes and back: rounding to levels, and codebooks learned by k-means."""

from __future__ import annotations

import numpy as np

from flopwise.errors import FlopwiseError

SAMPLE = 20_000
"""Vectors that a codebook is learned from: more change it by less than another seed does."""
ITERATIONS = 20
DISTANCES = 2**20
"""Computed at once, so that they stay in the cache."""


def to_levels(values: np.ndarray, levels: int) -> np.ndarray:
    """Values in [0, 1] to codes 0..levels-1 by rounding; both ends are exact."""
    return np.rint(np.clip(values, 0.0, 1.0) * (levels - 1)).astype(np.int64)


def from_levels(codes: np.ndarray, levels: int) -> np.ndarray:
    """Codes back to values in [0, 1]; the error of a round trip is at most .5 / (levels - 1)."""
    return codes / (levels - 1)


def kmeans(vectors: np.ndarray, codes: int, seed: int, digits: int = 6) -> np.ndarray:
    """Codebook [codes, d] of vectors [n, d], rounded to `digits` decimals and sorted by mean.

    Starts are spread by distance (k-means++, Arthur and Vassilvitskii 2007), then Lloyd's iteration; a code
    that no vector is nearest to moves to the vector that is worst represented. Same seed, same codebook.

    Raises:
        FlopwiseError: fewer vectors than codes.
    """
    if len(vectors) < codes:
        raise FlopwiseError(
            f"a codebook of {codes} codes needs as many vectors, the training part has {len(vectors)}; lower "
            "options.codes or give more data"
        )
    rng = np.random.default_rng((seed, codes, vectors.shape[1]))
    x = np.ascontiguousarray(_sampled(vectors, SAMPLE, seed), dtype=np.float64)
    centres = _spread(x, codes, rng)
    for _ in range(ITERATIONS):
        code = nearest(x, centres)
        count = np.bincount(code, minlength=codes)
        sums = np.stack([np.bincount(code, column, minlength=codes) for column in x.T], axis=1)
        moved = np.where(count[:, None] > 0, sums / np.maximum(count, 1)[:, None], centres)
        unused = np.flatnonzero(count == 0)
        distance = ((x - centres[code]) ** 2).sum(axis=1)
        worst = np.argsort(-distance, kind="stable")[: len(unused)]
        moved[unused[: len(worst)]] = x[worst]
        if np.array_equal(moved, centres):
            break
        centres = moved
    centres = np.round(centres, digits)
    return centres[np.lexsort((*centres.T[::-1], centres.mean(axis=1)))]


def _sampled(vectors: np.ndarray, most: int, seed: int) -> np.ndarray:
    if len(vectors) <= most:
        return vectors
    chosen = np.random.default_rng((seed, len(vectors))).choice(len(vectors), most, replace=False)
    return vectors[np.sort(chosen)]


def _spread(x: np.ndarray, codes: int, rng: np.random.Generator) -> np.ndarray:
    chosen = np.empty((codes, x.shape[1]))
    chosen[0] = x[rng.integers(len(x))]
    squared = ((x - chosen[0]) ** 2).sum(axis=1)
    for i in range(1, codes):
        total = squared.sum()
        # All vectors are codes already: the rest of the codebook stays unused.
        at = rng.integers(len(x)) if total <= 0 else rng.choice(len(x), p=squared / total)
        chosen[i] = x[at]
        squared = np.minimum(squared, ((x - chosen[i]) ** 2).sum(axis=1))
    return chosen


def nearest(vectors: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """Code [n] nearest to each vector [n, d]."""
    # |x - c|^2 is smallest where |c|^2 / 2 - x c is.
    half = (codebook**2).sum(axis=1) / 2
    rows = max(1, DISTANCES // len(codebook))
    parts = [(half - vectors[i : i + rows] @ codebook.T).argmin(axis=1) for i in range(0, len(vectors), rows)]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def product_codebooks(vectors: np.ndarray, codes: int, parts: int, seed: int, digits: int) -> np.ndarray:
    """Codebooks [parts, codes, d / parts]: each part of a vector has its own (Jegou et al. 2011)."""
    pieces = np.split(vectors, parts, axis=1)
    return np.stack([kmeans(piece, codes, seed + i, digits) for i, piece in enumerate(pieces)])


def product_encode(vectors: np.ndarray, codebooks: np.ndarray) -> np.ndarray:
    """Codes [n, parts] of vectors [n, d]."""
    pieces = np.split(vectors, len(codebooks), axis=1)
    return np.stack([nearest(x, book) for x, book in zip(pieces, codebooks, strict=True)], axis=1)


def product_decode(codes: np.ndarray, codebooks: np.ndarray) -> np.ndarray:
    """Vectors [n, d] of codes [n, parts]."""
    return np.concatenate([book[codes[:, i]] for i, book in enumerate(codebooks)], axis=1)


def residual_codebooks(vectors: np.ndarray, codes: int, stages: int, seed: int, digits: int) -> np.ndarray:
    """Codebooks [stages, codes, d]: each learns what those before it left over (Juang and Gray 1982)."""
    books = []
    rest = _sampled(np.asarray(vectors, dtype=np.float64), 4 * SAMPLE, seed)
    for stage in range(stages):
        books.append(kmeans(rest, codes, seed + stage, digits))
        rest = rest - books[-1][nearest(rest, books[-1])]
    return np.stack(books)


def residual_encode(vectors: np.ndarray, codebooks: np.ndarray) -> np.ndarray:
    """Codes [n, stages] of vectors [n, d]."""
    rest = np.asarray(vectors, dtype=np.float64)
    out = np.empty((len(rest), len(codebooks)), dtype=np.int64)
    for stage, book in enumerate(codebooks):
        out[:, stage] = nearest(rest, book)
        rest = rest - book[out[:, stage]]
    return out


def residual_decode(codes: np.ndarray, codebooks: np.ndarray) -> np.ndarray:
    """Vectors [n, d] of codes [n, stages]."""
    return np.sum([book[codes[:, stage]] for stage, book in enumerate(codebooks)], axis=0)


def as_books(codebooks: list[list[list[float]]] | None, shape: tuple[int, int, int]) -> np.ndarray:
    """Codebooks out of options as an array of this shape.

    Raises:
        FlopwiseError: nothing was learned yet, or something else.
    """
    if codebooks is None:
        raise FlopwiseError("options have no codebooks yet: decode with the options that `open` returned")
    if any(len(rows) != shape[1] or any(len(row) != shape[2] for row in rows) for rows in codebooks):
        raise FlopwiseError(
            f"options.codebooks must be {shape[0]} lists of {shape[1]} codes of {shape[2]} values"
        )
    books = np.array(codebooks, dtype=np.float64)
    if books.shape != shape:
        raise FlopwiseError(f"options.codebooks is {list(books.shape)}, must be {list(shape)}")
    return books
