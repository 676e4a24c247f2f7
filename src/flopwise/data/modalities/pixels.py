"""Frames of pixels to codes and back: what images and video share."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from flopwise.data.modalities import quantise
from flopwise.data.modalities.base import LabelOptions, filled
from flopwise.errors import FlopwiseError

LUMA = np.array([0.299, 0.587, 0.114])
"""Red, green and blue in a grey value: ITU-R BT.601-7, section 2.5.1."""
PATCHES = 80_000
"""A codebook is learned from a sample of about so many patches."""
SIDE = 4096
"""Pixels of a side, at most."""
Side = Annotated[int, Field(ge=1, le=SIDE)]


class PixelOptions(LabelOptions):
    """How a frame becomes codes: one per pixel and channel, or a few per patch from learned codebooks."""

    tokens: Literal["raster", "patches"] = "raster"
    levels: Annotated[int, Field(ge=2, le=256)] = 16
    """Of a pixel's value, for `raster`."""
    channels: Literal["grey", "rgb"] = "grey"
    size: tuple[Side, Side] | None = None
    """Height and width that frames are scaled to; none: as they are, if all are alike."""
    patch: Annotated[int, Field(ge=1, le=64)] = 4
    codes: Annotated[int, Field(ge=2, le=16_384)] = 256
    """Of each codebook, for `patches`."""
    parts: Annotated[int, Field(ge=1, le=64)] = 1
    """Tokens per patch: its vector is cut into so many parts with a codebook each."""
    codebooks: list[list[list[float]]] | None = Field(default=None, repr=False)
    """Learned, [parts, codes, values]."""

    @model_validator(mode="after")
    def _patches_fit(self) -> PixelOptions:
        if self.tokens == "patches":
            if self.patch**2 * self.depth % self.parts:
                raise ValueError(
                    f"parts is {self.parts}, must divide the {self.patch**2 * self.depth} values of a patch"
                )
            if self.size is not None and (self.size[0] % self.patch or self.size[1] % self.patch):
                raise ValueError(f"size is {list(self.size)}, both must be multiples of patch {self.patch}")
        return self

    @property
    def depth(self) -> int:
        """Channels of a frame."""
        return 3 if self.channels == "rgb" else 1

    @property
    def n_values(self) -> int:
        """Ids that stand for pixels or patches; markers and classes come after them."""
        return self.levels if self.tokens == "raster" else self.codes * self.parts

    @property
    def frame_size(self) -> tuple[int, int]:
        """Height and width of a frame.

        Raises:
            FlopwiseError: not known before data were read.
        """
        if self.size is None:
            raise FlopwiseError("options have no size yet: decode with the options that `open` returned")
        return self.size

    @property
    def frame_tokens(self) -> int:
        """Values of a frame."""
        height, width = self.frame_size
        if self.tokens == "raster":
            return height * width * self.depth
        return (height // self.patch) * (width // self.patch) * self.parts

    @property
    def row_tokens(self) -> int:
        """Values of a row of pixels or patches."""
        height, _ = self.frame_size
        return self.frame_tokens // (height if self.tokens == "raster" else height // self.patch)

    @cached_property
    def books(self) -> np.ndarray:
        """Codebooks [parts, codes, values of a part]."""
        values = self.patch**2 * self.depth // self.parts
        return quantise.as_books(self.codebooks, (self.parts, self.codes, values))


def settled(frame: np.ndarray, options: PixelOptions) -> dict[str, Any]:
    """The size that all frames shall have: the first one's, if none is asked for."""
    if options.size is not None:
        return {}
    height, width = frame.shape[:2]
    if options.tokens == "patches":
        # Patches tile the frame: a size that they do not divide is rounded to the nearest that they do.
        height, width = (max(1, round(n / options.patch)) * options.patch for n in (height, width))
    return {"size": (height, width)}


def prepared(frames: np.ndarray, options: PixelOptions) -> np.ndarray:
    """Frames uint8 [n, height, width, 1 or 3] in the wanted channels and size, uint8."""
    x: np.ndarray = frames
    if options.channels == "grey" and x.shape[-1] == 3:
        x = np.rint(x @ LUMA)[..., None]
    elif options.channels == "rgb" and x.shape[-1] == 1:
        x = np.repeat(x, 3, axis=-1)
    if x.shape[1:3] != options.frame_size:
        x = np.rint(resize(x, *options.frame_size))
    return x.astype(np.uint8)


def resize(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Frames [n, h, w, c] as floats [n, height, width, c]: a new pixel is the mean of the area it covers."""
    down, across = _areas(frames.shape[1], height), _areas(frames.shape[2], width)
    channels_first = frames.transpose(0, 3, 1, 2).astype(np.float64)
    return (down @ channels_first @ across.T).transpose(0, 2, 3, 1)


@lru_cache(maxsize=8)
def _areas(old: int, new: int) -> np.ndarray:
    """Weights [new, old]: how much of each old cell lies in a new one; rows sum to 1."""
    edges = np.arange(new + 1) * old / new
    cells = np.arange(old)
    shared = np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells)
    weights = np.maximum(shared, 0.0)
    return weights / weights.sum(axis=1, keepdims=True)


def learned(frames: Sequence[np.ndarray], options: PixelOptions, seed: int) -> dict[str, Any]:
    """Codebooks of the patches of frames uint8 [height, width, channels], if any are needed and not there."""
    if options.tokens == "raster" or options.codebooks is not None:
        return {}
    per_frame = options.frame_tokens // options.parts
    want = -(-PATCHES // per_frame)
    picks = np.random.default_rng(seed).permutation(len(frames))[:want]
    vectors = _vectors(np.stack([frames[i] for i in np.sort(picks)]), options.patch)
    books = quantise.product_codebooks(vectors, options.codes, options.parts, seed, digits=2)
    return {"codebooks": books.tolist()}


def _vectors(frames: np.ndarray, patch: int) -> np.ndarray:
    """Patches [n * patches, patch * patch * channels] of frames [n, ...], frame by frame and row by row."""
    n, height, width, depth = frames.shape
    tiles = frames.reshape(n, height // patch, patch, width // patch, patch, depth).transpose(
        0, 1, 3, 2, 4, 5
    )
    return tiles.reshape(-1, patch * patch * depth).astype(np.float64)


def encode(frames: np.ndarray, options: PixelOptions) -> np.ndarray:
    """Values [n, frame_tokens] int64 of frames uint8 [n, height, width, channels]."""
    if options.tokens == "raster":
        values = quantise.to_levels(frames / 255.0, options.levels)
    else:
        codes = quantise.product_encode(_vectors(frames, options.patch), options.books)
        values = codes + options.codes * np.arange(options.parts)
    return values.reshape(len(frames), -1)


def decode(values: np.ndarray, options: PixelOptions) -> np.ndarray:
    """Frames uint8 [n, height, width, channels] of values [n * frame_tokens], at least one."""
    (height, width), depth = options.frame_size, options.depth
    n = max(1, -(-len(values) // options.frame_tokens))
    values = filled(values, n * options.frame_tokens)
    if options.tokens == "raster":
        pixels = quantise.from_levels(values, options.levels) * 255.0
    else:
        codes = values.reshape(-1, options.parts) % options.codes
        rows, columns, side = height // options.patch, width // options.patch, options.patch
        tiles = quantise.product_decode(codes, options.books).reshape(n, rows, columns, side, side, depth)
        pixels = tiles.transpose(0, 1, 3, 2, 4, 5)
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8).reshape(n, height, width, depth)
