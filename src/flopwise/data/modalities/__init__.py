"""Streams of tokens that are no text: images, sound, video, sensors, and a source of known entropy.

>>> from flopwise.data.modalities import modality
>>> modality("image").vocab_size({"levels": 16, "row_marker": True})
17
"""

from __future__ import annotations

from flopwise.data.modalities.base import Item, Modality, Stream, TokenDocument
from flopwise.errors import FlopwiseError

NAMES = ("image", "audio", "video", "sensor", "calibration")

__all__ = ["NAMES", "Item", "Modality", "Stream", "TokenDocument", "modality"]


def modality(name: str) -> Modality:
    """The modality of this name.

    Raises:
        FlopwiseError: there is none (text has a tokenizer instead).
    """
    if name not in NAMES:
        raise FlopwiseError(f"modality {name!r:.60} is unknown; there are {', '.join(NAMES)}")
    from importlib import import_module

    found: Modality = import_module(f"flopwise.data.modalities.{name}").MODALITY
    return found
