"""A source of known entropy, so that the floor E of a fitted law can be graded.

Token t is drawn from a mixture over what came before (a, b the last two tokens; V ids):

    p(c | a, b) = w1 unigram(c) + w2 bigram(c | b) + w3 trigram(c | a, b)

unigram(c) is proportional to 1 / (c + 1) (Zipf); bigram and trigram give weights proportional to 1 / rank to
K candidates, which are drawn from the unigram distribution for each context. There is nothing to learn about
a trigram context but itself: to predict it, a model has to remember it, and contexts are as rare as Zipf's
law makes them. That is why loss falls smoothly with size and with data.

The entropy rate is exact: H = sum over (a, b) of pi(a, b) H(p(. | a, b)), with pi the stationary distribution
of pairs, found by iteration to machine precision.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import Field

from flopwise.data.modalities.base import Modality, Stream, TokenDocument, checked_ids
from flopwise.errors import FlopwiseError
from flopwise.launch.basics import Count, Section

BATCH_BYTES = 2**26
"""Random choices that are drawn ahead, for many documents at once."""


class CalibrationOptions(Section):
    """Options of the source."""

    vocab: Annotated[int, Field(ge=2, le=256)] = 256
    candidates: Annotated[int, Field(ge=1, le=255)] = 16
    weights: tuple[float, float, float] = (0.15, 0.35, 0.5)
    """Of unigram, bigram and trigram; they are scaled to sum to 1."""
    tokens: Count = 8_388_608
    """In all documents; the last one is whole."""
    document_tokens: Annotated[int, Field(ge=16, le=2**24)] = 65_536
    """Long, because what a model cannot know of a document's first two tokens and of its end is not in H."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Of the tables and the draws."""


class Tables(NamedTuple):
    """The distributions: `unigram` [V], `rank` [K], and candidates `bigram` [V, K], `trigram` [V, V, K]."""

    unigram: np.ndarray
    rank: np.ndarray
    bigram: np.ndarray
    trigram: np.ndarray
    weights: np.ndarray


class Entropy(NamedTuple):
    """Exact, in nats: of a token given all before it, given one before it, and given nothing."""

    rate: float
    second: float
    first: float

    def window(self, seq_len: int) -> float:
        """Mean loss of a perfect model over a window of `seq_len` + 1 tokens within a document: the first
        target has one token before it, the others have all that matters.

        >>> Entropy(2.0, 3.0, 4.0).window(10)
        2.1
        """
        return (self.second + (seq_len - 1) * self.rate) / seq_len


@lru_cache(maxsize=2)
def tables(options: CalibrationOptions) -> Tables:
    """The distributions of a seed."""
    v, k = options.vocab, options.candidates
    weights = np.array(options.weights)
    if min(options.weights) < 0 or weights[0] <= 0:
        raise FlopwiseError(
            f"calibration: options.weights is {list(options.weights)}, must be at least 0, the first above"
        )
    rng = np.random.default_rng((options.seed, 0))
    unigram, rank = 1 / np.arange(1.0, v + 1), 1 / np.arange(1.0, k + 1)
    unigram /= unigram.sum()
    bigram, trigram = (rng.choice(v, size=shape, p=unigram) for shape in ((v, k), (v, v, k)))
    return Tables(unigram, rank / rank.sum(), bigram, trigram, weights / weights.sum())


@lru_cache(maxsize=2)
def entropy(options: CalibrationOptions) -> Entropy:
    """The exact entropy of the source, in nats per token."""
    t, v = tables(options), options.vocab
    p = _conditional(t, v)
    pairs = np.full((v, v), 1 / v**2)
    for _ in range(1000):
        # pi(b, c) = sum over a of pi(a, b) p(c | a, b)
        following = np.einsum("ab,abc->bc", pairs, p)
        moved = np.abs(following - pairs).sum()
        pairs = following
        if moved < 1e-14:
            break
    single = pairs.sum(axis=1)
    given_two = np.array([-(row * np.log(row)).sum(axis=1) for row in p])
    return Entropy(
        float((pairs * given_two).sum()),
        float(-(pairs * np.log(pairs / single[:, None])).sum()),
        float(-(single * np.log(single)).sum()),
    )


def _conditional(t: Tables, v: int) -> np.ndarray:
    """p(c | a, b) as [a, b, c]."""
    p, second = np.zeros((v, v, v)), np.zeros((v, v))
    cells = np.arange(v)
    for j, chance in enumerate(t.rank):
        second[cells, t.bigram[:, j]] += t.weights[1] * chance
        p[cells[:, None], cells, t.trigram[..., j]] += t.weights[2] * chance
    return p + second + t.weights[0] * t.unigram


class Calibration(Modality[CalibrationOptions]):
    """The source as a modality: its documents are tokens from the start."""

    name = "calibration"
    kind = CalibrationOptions

    def vocab_size(self, options: dict[str, Any], corpus: str | None = None) -> int:
        """Ids of the source."""
        return self.parse(options).vocab

    def open(self, source: dict[str, Any], cache: Path | None = None) -> Stream:
        """Documents drawn from the source, and its entropy in `extra`; the last documents are held out."""
        options = self.parse(source.get("options"))
        limit = min(options.tokens, source.get("max_bytes") or options.tokens)
        n = -(-limit // options.document_tokens)
        if n < 4:
            raise FlopwiseError(
                f"calibration: {limit:,} tokens are {n} documents of {options.document_tokens:,}, at least 4 "
                "are needed; lower options.document_tokens"
            )
        n_held = min(n - 2, max(2, round(n * float(source.get("heldout_fraction") or 0.04))))
        exact = entropy(options)
        extra = {
            "entropy": exact.rate, "entropy_second": exact.second, "entropy_first": exact.first,
            "entropy_unit": "nats per token, exact",
        }  # fmt: skip
        return Stream(
            _drawn(options, n, n_held),
            options.model_dump(mode="json"),
            "made, none needed",
            "made by flopwise",
            extra,
        )

    def decode(self, ids: np.ndarray, options: dict[str, Any]) -> np.ndarray:
        """The ids themselves."""
        return checked_ids(ids, self.parse(options).vocab, self.name)


def _drawn(options: CalibrationOptions, n: int, n_held: int) -> Iterator[TokenDocument]:
    t, length = tables(options), options.document_tokens
    block = max(1, BATCH_BYTES // length)
    for first in range(0, n, block):
        numbers = range(first, min(n, first + block))
        rows = _draw(t, [np.random.default_rng((options.seed, 1, i)) for i in numbers], length)
        for i, row in zip(numbers, rows, strict=True):
            yield TokenDocument(f"calibration/{i:06d}", row, length, i >= n - n_held)


def _draw(t: Tables, rngs: list[np.random.Generator], length: int) -> np.ndarray:
    """Tokens [documents, length] int64. All choices are drawn ahead, only look-ups have to be in sequence."""
    n = len(rngs)
    part = np.empty((length, n), dtype=np.uint8)
    free = np.empty((length, n), dtype=np.int16)
    rank = np.empty((length, n), dtype=np.uint8)
    for i, rng in enumerate(rngs):
        part[:, i] = np.searchsorted(np.cumsum(t.weights)[:-1], rng.random(length), side="right")
        free[:, i] = np.searchsorted(np.cumsum(t.unigram)[:-1], rng.random(length), side="right")
        rank[:, i] = np.searchsorted(np.cumsum(t.rank)[:-1], rng.random(length), side="right")
    out = np.empty((length, n), dtype=np.int64)
    # What comes before a document is two tokens of the unigram distribution: forgotten after a few steps.
    a, b = free[0].astype(np.int64), free[1].astype(np.int64)
    for i in range(length):
        k = rank[i]
        c = np.where(part[i] == 0, free[i], np.where(part[i] == 1, t.bigram[b, k], t.trigram[a, b, k]))
        out[i] = c
        a, b = b, c
    return out.T


MODALITY = Calibration()
