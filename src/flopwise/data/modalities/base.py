"""What all modalities share: recordings are read, split, and only then learned from and encoded."""

from __future__ import annotations

import difflib
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from pydantic import Field, ValidationError

from flopwise.errors import FlopwiseError, one_line
from flopwise.launch.basics import Count, Section

MEMORY_BYTES = 4 * 2**30
"""Raw data of one source are held in memory; more than this must be asked for in part, by `max_bytes`."""


@dataclass(frozen=True)
class TokenDocument:
    """One document as tokens.

    `ids` are int64 in [0, vocab_size); `n_bytes` is the size of the raw data they stand for; `heldout` says
    on which side of the split the document lies.
    """

    id: str
    ids: np.ndarray
    n_bytes: int
    heldout: bool = False


@dataclass(frozen=True)
class Item:
    """One recording, image or clip before it becomes tokens.

    `data` is uint8 [height, width, channels] for an image, uint8 [frames, height, width, channels] for a
    clip, float32 [samples] in [-1, 1] for sound, float64 [steps, channels] for sensors. Items of one `group`
    lie on the same side of the split; `place` orders the pieces of a recording in time.
    """

    id: str
    data: np.ndarray
    label: str | None = None
    group: str = ""
    rate: int = 0
    place: int = 0


@dataclass(frozen=True)
class Entry:
    """An item that can be read: what is not needed is not read."""

    id: str
    read: Callable[[], list[Item]]


@dataclass(frozen=True)
class Stream:
    """A source, read and split: its documents, and what must be kept to turn tokens back into data."""

    documents: Iterator[TokenDocument]
    options: dict[str, Any]
    license: str
    source: str
    extra: dict[str, Any] = field(default_factory=dict)


class LabelOptions(Section):
    """Options of modalities whose documents can begin with a token for their class."""

    label: bool = False
    classes: Count = 10
    """At most so many classes: they are part of the vocabulary, which has to be known before the data are."""
    labels: list[str] | None = Field(default=None, max_length=65_536)
    """Learned: the classes by number."""


O = TypeVar("O", bound=Section)


class Modality(ABC, Generic[O]):
    """From somebody's data to tokens and back.

    A modality has no state: what it learns of the training part goes into the options that `open` returns.
    """

    name: ClassVar[str]
    kind: type[O]

    @abstractmethod
    def vocab_size(self, options: dict[str, Any], corpus: str | None = None) -> int:
        """Number of ids. Needs no data; `corpus` gives defaults, as the number of its channels."""

    @abstractmethod
    def open(self, source: dict[str, Any], cache: Path | None = None) -> Stream:
        """Read a source, hold a part out, and learn what must be learned of the rest.

        Args:
            source: `corpus` or `path`; `options`; `max_bytes` (raw bytes, in whole documents);
                `heldout_fraction` (default .04) and `seed` (default 0) of the split.
            cache: folder of fetched carriers; default `carriers.cache_folder()`.

        Raises:
            FlopwiseError: unreadable or unfit files, too few documents, options out of their limits.
        """

    @abstractmethod
    def decode(self, ids: np.ndarray, options: dict[str, Any]) -> np.ndarray:
        """Token ids [n] back to data, given the options that `open` returned.

        Tokens of a model may stand in the wrong place: markers and labels are skipped, what is missing at the
        end is filled up with code 0, and what is too much is cut off.

        Raises:
            FlopwiseError: an id outside the vocabulary, or options that nothing was learned for.
        """

    def documents(self, source: dict[str, Any], cache: Path | None = None) -> Iterator[TokenDocument]:
        """Documents of a source; see `open`."""
        return self.open(source, cache).documents

    def parse(self, options: dict[str, Any] | None, corpus: str | None = None) -> O:
        """Options, checked; those a corpus implies are filled in.

        Raises:
            FlopwiseError: unknown, or out of their limits.
        """
        from flopwise.data.media import MEDIA

        implied = MEDIA[corpus].options if corpus in MEDIA else {}
        try:
            return self.kind.model_validate({**implied, **(options or {})})
        except ValidationError as e:
            raise FlopwiseError(f"modality {self.name}: {_explain(e, self.kind)}") from e


class Recorded(Modality[O]):
    """A modality of recordings: read, cut into pieces, split by recording, learned from, encoded."""

    @abstractmethod
    def prepare(self, item: Item, options: O) -> list[Item]:
        """The item's pieces, one per document, before anything is rounded to tokens."""

    @abstractmethod
    def encode(self, piece: Item, options: O) -> np.ndarray:
        """Token ids [n] int64 of a piece."""

    def settle(self, first: Item, options: O) -> O:
        """Options with what the first item says of all, as their size."""
        return options

    def fit(self, pieces: Sequence[Item], options: O, seed: int) -> O:
        """Options with what is learned of the training part: scales, codebooks."""
        return options

    def made(self, options: O) -> dict[str, int]:
        """What a corpus that is made, not recorded, must be told."""
        return {}

    def open(self, source: dict[str, Any], cache: Path | None = None) -> Stream:
        """See `Modality.open`."""
        from flopwise.data.modalities.reading import entries

        options = self.parse(source.get("options"), source.get("corpus"))
        found, license, origin = entries(self.name, source, cache, self.made(options))
        options, pieces = self._read(found, options, source.get("max_bytes"))
        seed = int(source.get("seed") or 0)
        held = split(pieces, float(source.get("heldout_fraction") or 0.04), seed)
        train = [piece for piece, out in zip(pieces, held, strict=True) if not out]
        options = self.fit(train, self._with_labels(pieces, options), seed)
        documents = (
            TokenDocument(piece.id, self.encode(piece, options), self.raw_bytes(piece), out)
            for piece, out in zip(pieces, held, strict=True)
        )
        return Stream(documents, options.model_dump(mode="json"), license, origin)

    def raw_bytes(self, piece: Item) -> int:
        """Size of the data that a piece stands for; one byte per pixel and channel."""
        return int(piece.data.size)

    def _read(self, entries: list[Entry], options: O, limit: int | None) -> tuple[O, list[Item]]:
        """Pieces in the order of a hash of the entries' names, so that any prefix is a sample of all."""
        pieces: list[Item] = []
        total = memory = 0
        for i, entry in enumerate(sorted(entries, key=lambda e: hashlib.sha256(e.id.encode()).digest())):
            for item in entry.read():
                options = options if i else self.settle(item, options)
                for piece in self.prepare(item, options):
                    pieces.append(piece)
                    total += self.raw_bytes(piece)
                    memory += piece.data.nbytes
            if limit is not None and total >= limit:
                break
            if memory > MEMORY_BYTES:
                raise FlopwiseError(
                    f"modality {self.name}: the source has more than {MEMORY_BYTES / 2**30:.0f} GiB; "
                    "set max_bytes"
                )
        return options, pieces

    def _with_labels(self, pieces: Sequence[Item], options: O) -> O:
        if not (isinstance(options, LabelOptions) and options.label) or options.labels is not None:
            return options
        found = {piece.label for piece in pieces}
        if None in found:
            nameless = next(piece.id for piece in pieces if piece.label is None)
            raise FlopwiseError(
                f"modality {self.name}: options.label is true, but {one_line(nameless, 120)} has no class; "
                "put each class into a folder of its own, or leave label out"
            )
        labels = sorted(
            (str(name) for name in found), key=lambda s: (not s.isdigit(), len(s) * s.isdigit(), s)
        )
        if len(labels) > options.classes:
            raise FlopwiseError(
                f"modality {self.name}: {len(labels)} classes, options.classes is {options.classes}; raise it"
            )
        return options.model_copy(update={"labels": labels})  # type: ignore[return-value]


def split(pieces: Sequence[Item], fraction: float, seed: int) -> list[bool]:
    """Which pieces are held out: whole groups, at least two; of fewer than four groups, the end of each.

    Raises:
        FlopwiseError: too few pieces to hold some out.
    """
    groups = list(dict.fromkeys(piece.group or piece.id for piece in pieces))
    if len(groups) >= 4:
        n_held = min(len(groups) - 2, max(2, round(len(groups) * fraction)))
        order = np.random.default_rng((seed, len(groups))).permutation(len(groups))
        held = {groups[i] for i in order[:n_held]}
        return [(piece.group or piece.id) in held for piece in pieces]
    late: set[tuple[str, int]] = set()
    for group in groups:
        places = sorted(piece.place for piece in pieces if (piece.group or piece.id) == group)
        n_held = max(-(-2 // len(groups)), round(len(places) * fraction))
        if len(places) < n_held + 1:
            raise FlopwiseError(
                f"data: {len(pieces)} documents from {len(groups)} recordings are too few to hold some out; "
                "give more files, or cut them into shorter documents by the modality's options"
            )
        late |= {(group, place) for place in places[-n_held:]}
    return [(piece.group or piece.id, piece.place) in late for piece in pieces]


def checked_ids(ids: np.ndarray, vocab_size: int, who: str) -> np.ndarray:
    """Ids [n] as int64, all of them in the vocabulary."""
    ids = np.asarray(ids)
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise FlopwiseError(f"modality {who}: ids must be integers [n], got {ids.dtype} {list(ids.shape)}")
    if ids.size and not (ids.min() >= 0 and ids.max() < vocab_size):
        wrong = ids.min() if ids.min() < 0 else ids.max()
        raise FlopwiseError(f"modality {who}: id {wrong} is outside the vocabulary of {vocab_size}")
    return ids.astype(np.int64)


def filled(values: np.ndarray, n: int) -> np.ndarray:
    """The first n values, zeros where there are fewer."""
    return np.concatenate([values[:n], np.zeros(max(0, n - len(values)), dtype=values.dtype)])


def label_ids(piece: Item, options: LabelOptions, first: int) -> np.ndarray:
    """The leading token [1] of a labelled document, or nothing [0]; class c has id `first` + c."""
    if not options.label:
        return np.zeros(0, dtype=np.int64)
    if options.labels is None or piece.label not in options.labels:
        raise FlopwiseError(f"class {piece.label!r:.60} was not among those that were learned")
    return np.array([first + options.labels.index(piece.label)], dtype=np.int64)


def _explain(error: ValidationError, kind: type[Section]) -> str:
    first = error.errors()[0]
    place = ".".join(str(part) for part in ("options", *first["loc"]))
    if first["type"] == "extra_forbidden":
        known = list(kind.model_fields)
        close = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"
        return f"{one_line(place, 80)} is unknown; {hint}"
    given = one_line(first.get("input"), 60)
    return f"{place} is {given}: {one_line(first['msg'].removeprefix('Value error, '), 300)}"
