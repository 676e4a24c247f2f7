"""Tables behind a URL: fetched to a temporary file, with a limit on size and on time."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, url2pathname, urlopen

from flopwise.errors import FlopwiseError, one_line
from flopwise.records.files import KINDS, suffix

LIMIT = 1_000_000_000
"""Bytes that are fetched at most."""
_SILENCE, _WHOLE = 30, 900  # seconds without a byte, and for all of them
_KINDS = {
    "text/csv": ".csv", "text/tab-separated-values": ".tsv", "application/json": ".json",
    "application/x-ndjson": ".jsonl", "application/jsonl": ".jsonl",
    "application/vnd.apache.parquet": ".parquet", "application/x-parquet": ".parquet",
}  # fmt: skip
_PACKAGES = {
    "s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub", "az": "adlfs", "abfs": "adlfs",
    "abfss": "adlfs", "sftp": "paramiko", "ssh": "paramiko", "hdfs": "pyarrow",
}  # fmt: skip


def is_url(source: str | Path) -> bool:
    """Whether this is a URL; a path that a URL was turned into (one slash lost) too, a drive letter not."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(source)) is not None


def shown(source: str | Path) -> str:
    """A URL without what may be secret in it: passwords, signatures."""
    if not is_url(source):
        return one_line(source)
    try:
        parts = urlsplit(_whole(source))
    except ValueError as e:
        raise FlopwiseError(f"table {one_line(source, 100)!r} is no address: {e}") from e
    host = parts.netloc.rpartition("@")[2]
    return one_line(f"{parts.scheme}://{host}{parts.path}")


@contextmanager
def fetched(source: str | Path) -> Iterator[Path]:
    """The table behind a URL as a local file, for as long as the block runs.

    Raises:
        FlopwiseError: it cannot be reached, is too large or too slow, or its kind cannot be told.
    """
    url, who = _whole(source), f"table {shown(source)}"
    scheme = urlsplit(url).scheme.lower()
    if scheme == "file":
        yield Path(url2pathname(urlsplit(url).path))
        return
    with tempfile.TemporaryDirectory() as folder:
        try:
            get = _http if scheme in ("http", "https") else _stored
            opened, size, kind = get(url, scheme, who)
            name = PurePosixPath(unquote(urlsplit(url).path)).name
            packed = name.lower().endswith((".gz", ".zst"))
            path = Path(folder) / f"table{kind or suffix(name)}{PurePosixPath(name).suffix if packed else ''}"
            with opened, open(path, "wb") as out:
                _copy(opened, size, out, who)
        except FlopwiseError:
            raise
        except HTTPError as e:
            raise FlopwiseError(f"{who} cannot be fetched: HTTP {e.code} {one_line(e.reason, 120)}") from e
        except URLError as e:
            raise FlopwiseError(f"{who} cannot be fetched: {one_line(e.reason, 200)}") from e
        except Exception as e:  # each of the file systems has errors of its own
            why = one_line(f"{type(e).__name__} {e}", 200).replace(url, shown(url))
            raise FlopwiseError(f"{who} cannot be fetched: {why}") from e
        yield path


def _whole(source: str | Path) -> str:
    """With the two slashes that a path has made one of."""
    return re.sub(r"^([A-Za-z][A-Za-z0-9+.-]+):/+", r"\1://" + ("/" if _local(source) else ""), str(source))


def _local(source: str | Path) -> bool:
    return str(source).lower().startswith("file:/")


def _http(url: str, scheme: str, who: str) -> tuple[IO[bytes], int | None, str]:
    """The open answer, how long it says it is, and what it is where the address does not tell."""
    answer = urlopen(Request(url, headers={"User-Agent": "flopwise"}), timeout=_SILENCE)
    size, kind = answer.headers.get("Content-Length", ""), answer.headers.get_content_type()
    if kind == "text/html":
        answer.close()
        raise FlopwiseError(f"{who} is a web page, not a table; give the address of the raw file")
    known = suffix(urlsplit(url).path) in KINDS
    return answer, int(size) if size.isdigit() else None, "" if known else _KINDS.get(kind, "")


def _stored(url: str, scheme: str, who: str) -> tuple[IO[bytes], int | None, str]:
    """A file of object storage and the like, through fsspec."""
    try:
        import fsspec

        opened: Any = fsspec.open(url, "rb").open()
    except ImportError as e:
        packages = " ".join(dict.fromkeys(["fsspec", _PACKAGES.get(scheme, "fsspec")]))
        raise FlopwiseError(f"{who}: {scheme}:// needs more packages: pip install {packages}") from e
    except ValueError as e:
        raise FlopwiseError(f"{who}: {scheme}:// is no known kind of address; {one_line(e, 100)}") from e
    size = getattr(opened, "size", None)
    return opened, size if isinstance(size, int) else None, ""


def _copy(opened: IO[bytes], size: int | None, out: IO[bytes], who: str) -> None:
    _within(size or 0, who)
    done, until = 0, time.monotonic() + _WHOLE
    while chunk := opened.read(1 << 20):
        done += len(chunk)
        _within(done, who)
        if time.monotonic() > until:
            raise FlopwiseError(f"{who} took more than {_WHOLE} s to come; fetch it, then give the file")
        out.write(chunk)
    if size is not None and done < size:
        raise FlopwiseError(f"{who} broke off after {done} of {size} bytes; try again")


def _within(size: int, who: str) -> None:
    if size > LIMIT:
        raise FlopwiseError(
            f"{who} is larger than {LIMIT / 1e9:g} GB, the limit for a URL; fetch it, then give the file"
        )
