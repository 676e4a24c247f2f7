"""What there is to read: a shipped corpus, or somebody's own files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flopwise.data.modalities.base import Entry
from flopwise.errors import FlopwiseError


def entries(
    modality: str, source: Mapping[str, Any], cache: Path | None, made: Mapping[str, int]
) -> tuple[list[Entry], str, str]:
    """Entries of a source, their licence and origin; `made` goes to a corpus that is made of another one.

    Raises:
        FlopwiseError: no such corpus or files, or a corpus of another modality.
    """
    from flopwise.data import media
    from flopwise.data.modalities import files

    corpus, path = source.get("corpus"), source.get("path")
    if (corpus is None) == (path is None):
        raise FlopwiseError(
            f"modality {modality}: give either corpus (a shipped one) or path (your own files)"
        )
    if corpus is None:
        return files.entries(modality, str(path), source.get("options") or {}), "your own", str(path)
    about = media.named(corpus)
    if about.modality != modality:
        raise FlopwiseError(f"corpus {corpus} is of modality {about.modality}, not {modality}")
    items = media.load(corpus, cache, **made)
    found = [Entry(item.id, lambda item=item: [item]) for item in items]  # type: ignore[misc]
    return found, about.license, media.origin(corpus)
