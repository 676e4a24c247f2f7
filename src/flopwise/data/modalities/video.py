"""Video: clips as frame after frame of rounded pixels or patch codes.

Each frame begins with a marker, so that a model sees where it is; by the order of tokens every frame is
conditional on those before. Ids: values, the frame marker if there is one, classes if there are any.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from flopwise.data.modalities import pixels
from flopwise.data.modalities.base import Item, Recorded, checked_ids, filled, label_ids
from flopwise.errors import FlopwiseError, one_line
from flopwise.launch.basics import Count


class VideoOptions(pixels.PixelOptions):
    """Options of the modality."""

    frames: Count = 8
    """Of a clip; longer recordings are cut into several."""
    stride: Count = 1
    """Every so many-th frame is taken."""
    frame_marker: bool = True
    clips: Count = 2000
    """How many of `moving-digits` or `moving-fashion` are made."""

    @property
    def first_class(self) -> int:
        """The first id that is a class."""
        return self.n_values + self.frame_marker


class Video(Recorded[VideoOptions]):
    """Clips as tokens."""

    name = "video"
    kind = VideoOptions

    def vocab_size(self, options: dict[str, Any], corpus: str | None = None) -> int:
        """Values, the frame marker, classes."""
        return _vocab_size(self.parse(options, corpus))

    def made(self, options: VideoOptions) -> dict[str, int]:
        """How many clips to make, and of how many frames."""
        return {"n": options.clips, "frames": options.frames * options.stride}

    def settle(self, first: Item, options: VideoOptions) -> VideoOptions:
        """All frames get the size of the first, if none is asked for."""
        return options.model_copy(update=pixels.settled(first.data[0], options))

    def prepare(self, item: Item, options: VideoOptions) -> list[Item]:
        """Clips of `frames` frames; what is left at the end is no clip."""
        frames = item.data[:: options.stride]
        n = len(frames) // options.frames
        if not n:
            raise FlopwiseError(
                f"modality video: {one_line(item.id, 99)} has {len(frames)} frames (1 in {options.stride}), "
                f"options.frames is {options.frames}; lower it"
            )
        frames = pixels.prepared(frames[: n * options.frames], options)
        clips = frames.reshape(n, options.frames, *frames.shape[1:])
        return [
            replace(
                item,
                id=item.id if n == 1 else f"{item.id}#{i}",
                data=clip,
                group=item.group or item.id,
                place=i,
            )
            for i, clip in enumerate(clips, item.place)
        ]

    def fit(self, pieces: Sequence[Item], options: VideoOptions, seed: int) -> VideoOptions:
        """Codebooks, for patches."""
        frames = [frame for piece in pieces for frame in piece.data]
        return options.model_copy(update=pixels.learned(frames, options, seed))

    def encode(self, piece: Item, options: VideoOptions) -> np.ndarray:
        """Class, then each frame behind its marker."""
        frames = pixels.encode(piece.data, options)
        if options.frame_marker:
            starts = np.full((len(frames), 1), options.n_values, dtype=np.int64)
            frames = np.concatenate([starts, frames], axis=1)
        return np.concatenate([label_ids(piece, options, options.first_class), frames.reshape(-1)])

    def decode(self, ids: np.ndarray, options: dict[str, Any]) -> np.ndarray:
        """Clip uint8 [frames, height, width], or [frames, height, width, 3] in colour."""
        o = self.parse(options)
        values = checked_ids(ids, _vocab_size(o), self.name)
        clip = pixels.decode(filled(values[values < o.n_values], o.frames * o.frame_tokens), o)
        return clip[..., 0] if o.depth == 1 else clip


def _vocab_size(options: VideoOptions) -> int:
    return options.first_class + options.classes * options.label


MODALITY = Video()
