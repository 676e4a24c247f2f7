"""Sound: samples by mu-law, or short frames named by learned codebooks.

mu-law of ITU-T G.711 in its continuous form, with mu = levels - 1:

    F(x) = sign(x) ln(1 + mu |x|) / ln(1 + mu),    code = round((F(x) + 1) / 2 * mu)

(G.711 itself approximates F by eight straight pieces per sign.) Codes of frames: residual vector
quantisation, each stage a codebook for what those before it left over, one token per stage; after Juang and
Gray 1982, in sound models Zeghidour et al. 2021 (arXiv 2107.03312). Ids: samples, or the codes of each stage;
then classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from flopwise.data.modalities import quantise
from flopwise.data.modalities.base import Item, LabelOptions, Recorded, checked_ids, label_ids
from flopwise.data.modalities.sound import resampled
from flopwise.errors import FlopwiseError, one_line

SAMPLE_BYTES = 2
"""Raw sound is counted as 16-bit samples at the chosen rate."""


class AudioOptions(LabelOptions):
    """Options of the modality."""

    tokens: Literal["mulaw", "codes"] = "mulaw"
    rate: Annotated[int, Field(ge=100, le=192_000)] = 8000
    """Samples per second; files at other rates are resampled."""
    levels: Annotated[int, Field(ge=4, le=256)] = 256
    """Of a sample, for `mulaw`."""
    seconds: Annotated[float, Field(gt=0)] | None = None
    """Length of a document; none: one per file. A rest of half the length is one, too."""
    frame: Annotated[int, Field(ge=1, le=4096)] = 8
    """Samples of a frame, for `codes`."""
    stages: Annotated[int, Field(ge=1, le=8)] = 2
    codes: Annotated[int, Field(ge=2, le=16_384)] = 256
    """Of each stage."""
    codebooks: list[list[list[float]]] | None = Field(default=None, repr=False)
    """Learned, [stages, codes, frame]."""

    @cached_property
    def books(self) -> np.ndarray:
        """Codebooks [stages, codes, frame]."""
        return quantise.as_books(self.codebooks, (self.stages, self.codes, self.frame))

    @property
    def n_values(self) -> int:
        """Ids that stand for sound; classes come after them."""
        return self.levels if self.tokens == "mulaw" else self.codes * self.stages


class Audio(Recorded[AudioOptions]):
    """Sound as tokens."""

    name = "audio"
    kind = AudioOptions

    def vocab_size(self, options: dict[str, Any], corpus: str | None = None) -> int:
        """Levels or codes, and classes."""
        return _vocab_size(self.parse(options, corpus))

    def prepare(self, item: Item, options: AudioOptions) -> list[Item]:
        """The recording at the chosen rate, cut into documents."""
        sound = resampled(item.data, item.rate, options.rate)
        shortest = options.frame if options.tokens == "codes" else 1
        if len(sound) < shortest:
            raise FlopwiseError(
                f"modality audio: {one_line(item.id, 200)} has {len(sound)} samples, must have {shortest}"
            )
        sound = sound[: len(sound) // shortest * shortest]  # whole frames
        if options.seconds is None:
            return [replace(item, data=sound)]
        length = max(1, round(options.seconds * options.rate / shortest)) * shortest
        starts = range(0, max(1, len(sound) - (length + 1) // 2 + 1), length)
        return [
            replace(
                item, id=f"{item.id}#{i}", data=sound[at : at + length], group=item.group or item.id, place=i
            )
            for i, at in enumerate(starts)
        ]

    def fit(self, pieces: Sequence[Item], options: AudioOptions, seed: int) -> AudioOptions:
        """Codebooks, for codes."""
        if options.tokens == "mulaw" or options.codebooks is not None:
            return options
        frames = np.concatenate([_frames(piece.data, options.frame) for piece in pieces])
        books = quantise.residual_codebooks(frames, options.codes, options.stages, seed, digits=6)
        return options.model_copy(update={"codebooks": books.tolist()})

    def encode(self, piece: Item, options: AudioOptions) -> np.ndarray:
        """Class, then a token per sample, or `stages` tokens per frame."""
        if options.tokens == "mulaw":
            values = mulaw(piece.data, options.levels)
        else:
            codes = quantise.residual_encode(_frames(piece.data, options.frame), options.books)
            values = (codes + options.codes * np.arange(options.stages)).reshape(-1)
        return np.concatenate([label_ids(piece, options, options.n_values), values])

    def decode(self, ids: np.ndarray, options: dict[str, Any]) -> np.ndarray:
        """Samples float32 [n] in [-1, 1], `rate` per second; of codes, whole frames."""
        o = self.parse(options)
        values = checked_ids(ids, _vocab_size(o), self.name)
        values = values[values < o.n_values]
        if o.tokens == "mulaw":
            return from_mulaw(values, o.levels)
        codes = values[: len(values) // o.stages * o.stages].reshape(-1, o.stages) % o.codes
        sound = quantise.residual_decode(codes, o.books).reshape(-1)
        return np.clip(sound, -1, 1).astype(np.float32)

    def raw_bytes(self, piece: Item) -> int:
        """16 bits per sample."""
        return SAMPLE_BYTES * len(piece.data)


def mulaw(sound: np.ndarray, levels: int = 256) -> np.ndarray:
    """Codes int64 [n] in [0, levels) of samples in [-1, 1].

    >>> mulaw(np.array([-1.0, 0.0, 0.01, 1.0])).tolist()
    [0, 128, 157, 255]
    """
    mu = levels - 1
    x = np.clip(np.asarray(sound, dtype=np.float64), -1, 1)
    companded = np.sign(x) * np.log1p(mu * np.abs(x)) / np.log1p(mu)
    return np.rint((companded + 1) / 2 * mu).astype(np.int64)


def from_mulaw(codes: np.ndarray, levels: int = 256) -> np.ndarray:
    """Samples float32 [n] of codes: |x| = ((1 + mu)^|F| - 1) / mu.

    A round trip is off by at most (1 / mu + |x|) ((1 + mu)^(1 / mu) - 1): with 256 levels 2.2% of the sample
    and .0001 of full scale.
    """
    mu = levels - 1
    companded = 2 * np.asarray(codes, dtype=np.float64) / mu - 1
    return (np.sign(companded) * np.expm1(np.abs(companded) * np.log1p(mu)) / mu).astype(np.float32)


def _frames(sound: np.ndarray, frame: int) -> np.ndarray:
    """Frames [n, frame] of samples."""
    return sound.reshape(-1, frame).astype(np.float64)


def _vocab_size(options: AudioOptions) -> int:
    return options.n_values + options.classes * options.label


MODALITY = Audio()
