"""Images: rasters of rounded pixels, or patches named by learned codebooks.

A document is one image, row by row. Ids: values (levels, or codes of each part), the row marker if there is
one, classes if there are any.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from flopwise.data.modalities import pixels
from flopwise.data.modalities.base import Item, Recorded, checked_ids, label_ids


class ImageOptions(pixels.PixelOptions):
    """Options of the modality."""

    row_marker: bool = False
    """A token after each row of pixels or patches."""

    @property
    def first_class(self) -> int:
        """The first id that is a class."""
        return self.n_values + self.row_marker


class Image(Recorded[ImageOptions]):
    """Images as tokens."""

    name = "image"
    kind = ImageOptions

    def vocab_size(self, options: dict[str, Any], corpus: str | None = None) -> int:
        """Values, the row marker, classes."""
        return _vocab_size(self.parse(options, corpus))

    def settle(self, first: Item, options: ImageOptions) -> ImageOptions:
        """All images get the size of the first, if none is asked for."""
        return options.model_copy(update=pixels.settled(first.data, options))

    def prepare(self, item: Item, options: ImageOptions) -> list[Item]:
        """The image in its channels and size."""
        return [replace(item, data=pixels.prepared(item.data[None], options)[0])]

    def fit(self, pieces: Sequence[Item], options: ImageOptions, seed: int) -> ImageOptions:
        """Codebooks, for patches."""
        return options.model_copy(update=pixels.learned([p.data for p in pieces], options, seed))

    def encode(self, piece: Item, options: ImageOptions) -> np.ndarray:
        """Class, then values row by row."""
        values = pixels.encode(piece.data[None], options)[0]
        if options.row_marker:
            rows = values.reshape(-1, options.row_tokens)
            ends = np.full((len(rows), 1), options.n_values, dtype=np.int64)
            values = np.concatenate([rows, ends], axis=1).reshape(-1)
        return np.concatenate([label_ids(piece, options, options.first_class), values])

    def decode(self, ids: np.ndarray, options: dict[str, Any]) -> np.ndarray:
        """Image uint8 [height, width], or [height, width, 3] in colour."""
        o = self.parse(options)
        values = checked_ids(ids, _vocab_size(o), self.name)
        frame = pixels.decode(values[values < o.n_values][: o.frame_tokens], o)[0]
        return frame[..., 0] if o.depth == 1 else frame


def _vocab_size(options: ImageOptions) -> int:
    return options.first_class + options.classes * options.label


MODALITY = Image()
