"""One vocabulary for all of a recipe's data, known before any of it is read; needs no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from flopwise.data.documents import label
from flopwise.data.tokenizer import LARGEST, SMALLEST, hub_tokenizer
from flopwise.errors import FlopwiseError

SPECIAL = 2
"""Ids 0 and 1 end a document and pad, unless a tokenizer from elsewhere has its own."""


FIXED = ("raster", "mulaw")
"""Kinds of tokens that mean the same in every corpus."""


@dataclass(frozen=True)
class Range:
    """Ids of some sources: `offset` to `offset` + `size` - 1."""

    modality: str
    sources: tuple[str, ...]
    offset: int
    size: int


@dataclass(frozen=True)
class Vocabulary:
    """All ids: text first (its tokenizer's, with its special tokens), then a range per modality.

    All texts share their ids; so do sources of one modality with the same options, unless they have classes
    or learned codes.
    """

    ranges: tuple[Range, ...]
    eos_id: int = 0
    pad_id: int = 1

    @property
    def size(self) -> int:
        """Rows of the embedding table."""
        return max(SPECIAL, *(r.offset + r.size for r in self.ranges))

    def of(self, source: str) -> Range:
        """The range of a source."""
        return next(r for r in self.ranges if source in r.sources)

    def about(self) -> list[dict[str, Any]]:
        """For about.json."""
        return [asdict(r) for r in self.ranges]


def modality_of(source: Mapping[str, Any]) -> str:
    """What a source holds: as it says, else what its corpus is known for, else text."""
    if given := source.get("modality"):
        return str(given)
    if corpus := source.get("corpus"):
        from flopwise.data.media import MEDIA

        if str(corpus) in MEDIA:
            return MEDIA[str(corpus)].modality
    return "text"


def text_size(tokenizer: Mapping[str, Any]) -> tuple[int, int, int]:
    """Size of a tokenizer's vocabulary (an upper bound), its end-of-text and its padding id.

    Raises:
        FlopwiseError: unknown kind, size out of its limits, or a tokenizer that cannot be had.
    """
    kind, size = tokenizer.get("kind") or "bpe", int(tokenizer.get("vocab_size") or 512)
    if kind == "byte":
        return SMALLEST, 0, 1
    if kind == "hub":
        found = hub_tokenizer(str(tokenizer.get("path") or ""))
        return found.vocab_size, found.eos_id, found.pad_id
    if kind != "bpe":
        raise FlopwiseError(f"tokenizer kind is {kind!r:.40}, must be one of byte, bpe, hub")
    if not SMALLEST <= size <= LARGEST:
        raise FlopwiseError(f"tokenizer: vocab_size is {size:,}, must be {SMALLEST} to {LARGEST:,}")
    return size, 0, 1


def vocabulary(section: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary of a recipe's `data` section.

    Raises:
        FlopwiseError: unknown corpus, modality or tokenizer, or options out of their limits.
    """
    texts: list[str] = []
    others: dict[str, tuple[str, int, list[str]]] = {}
    for source in section["sources"]:
        kind = modality_of(source)
        if kind == "text":
            texts.append(label(source))
            continue
        from flopwise.data.modalities import modality

        found = modality(kind)
        given = {k: v for k, v in (source.get("options") or {}).items() if v is not None}
        size = found.vocab_size(given, source.get("corpus"))
        options = found.parse(given, source.get("corpus")).model_dump(mode="json")
        # Pixels of two corpora are the same thing; their classes and learned codes have nothing in common.
        alone = options.get("label") or options.get("tokens", FIXED[0]) not in FIXED
        key = json.dumps([kind, size, options, label(source) if alone else ""], sort_keys=True)
        others.setdefault(key, (kind, size, []))[2].append(label(source))
    ranges: list[Range] = []
    size, eos, pad = text_size(section.get("tokenizer") or {}) if texts else (0, 0, 1)
    if texts:
        ranges.append(Range("text", tuple(texts), 0, size))
    at = size or SPECIAL
    for kind, size, names in others.values():
        ranges.append(Range(kind, tuple(names), at, size))
        at += size
    return Vocabulary(tuple(ranges), eos, pad)
