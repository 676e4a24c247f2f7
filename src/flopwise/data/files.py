"""Texts from a person's own files, as a stream: what is broken is counted and named, never guessed at."""

from __future__ import annotations

import bz2
import csv
import glob
import gzip
import io
import json
import lzma
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from flopwise.data.sources import DOCUMENT_CHARS, Document
from flopwise.errors import FlopwiseError, one_line

WHOLE_CHARS = 60_000
"""A plain text up to this length is one document; a longer one is cut at empty lines into parts of about
`DOCUMENT_CHARS`, so that some can be held out."""
FIELD_BYTES = 1 << 28
"""A longer field of a CSV file is a quote that nobody closed."""
PATIENCE = 1000
"""Rows without one good text after which a source is given up."""
_CHUNK = 1 << 20
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_PACKED_ENDS = (".gz", ".bz2", ".xz", ".zst")
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_DAMAGE = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)


class Skipped:
    """What a stream left out: how many of each kind, and where the first was."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first: dict[str, str] = {}

    def add(self, reason: str, place: str) -> None:
        """Count one document; `place` as FILE:ROW."""
        self.counts[reason] += 1
        self.first.setdefault(reason, one_line(place, 200))

    def about(self) -> dict[str, dict[str, Any]]:
        """For about.json."""
        return {reason: {"documents": n, "first": self.first[reason]} for reason, n in self.counts.items()}


def find(pattern: str) -> list[Path]:
    """The files of a path: itself, those in a folder and below, or what a pattern with * ? [ matches; sorted.
    In folders, files of unknown kinds and dotted ones are passed over.

    Raises:
        FlopwiseError: nothing there.
    """
    path = Path(pattern).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        below = (Path(root) / name for root, _, names in os.walk(path) for name in names)
        found = sorted(f for f in below if kind(f) in READERS and not f.name.startswith("."))
    else:
        matched = (Path(name) for name in glob.glob(str(path), recursive=True))
        found = sorted(f for f in matched if f.is_file())
    if not found:
        what = (
            "a folder without such files" if path.is_dir() else "no file, folder or pattern that matches one"
        )
        raise FlopwiseError(
            f"data: {one_line(pattern, 120)} is {what}; give {', '.join(READERS)} (.gz, ... too)"
        )
    return found


def kind(path: Path) -> str:
    """What a file is by its name, as ".jsonl" of a.jsonl.gz."""
    parts = [s.lower() for s in path.suffixes]
    return parts[-2] if len(parts) > 1 and parts[-1] in _PACKED_ENDS else (parts or [""])[-1]


def read(
    paths: Iterable[Path], field: str, skipped: Skipped, progress: Callable[[int], None] = lambda _: None
) -> Iterator[Document]:
    """Documents of files in their order; `progress` is told bytes of files read so far.

    Texts that are empty, broken or absent are left out and counted in `skipped`.

    Raises:
        FlopwiseError: a file is of no known kind, damaged or unreadable, or no row holds a text.
    """
    n_rows = n_texts = 0
    for path, row, value in values(paths, field, progress):
        n_rows += 1
        if (text := accept(value, f"{path}:{row}", skipped)) is not None:
            n_texts += 1
            yield Document(f"{path.name}:{row}", text)
        elif n_rows == PATIENCE and not n_texts:
            raise _nothing(skipped, f"the first {PATIENCE:,} rows")
    if not n_texts:
        raise _nothing(skipped, f"{n_rows:,} rows") if n_rows else FlopwiseError("data: the files are empty")


def values(
    paths: Iterable[Path], field: str | None, progress: Callable[[int], None] = lambda _: None
) -> Iterator[tuple[Path, int, Any]]:
    """Path, number and value of each row of files: of its `field`, or for None of all fields by name (a text
    file has the one field `text`); a `Bad` where there is none. `progress` as in `read`.

    Raises:
        FlopwiseError: a file is of no known kind, damaged or unreadable.
    """
    before = n_rows = 0
    for path in paths:
        reader = READERS.get(kind(path))
        if reader is None:
            raise FlopwiseError(
                f"data: {path} ends in {one_line(kind(path), 20) or 'nothing'}, must be one of "
                f"{', '.join(READERS)}"
            )
        row = 0
        try:
            with open(path, "rb") as raw:
                for row, value in reader(path, raw, field):
                    n_rows += 1
                    yield path, row, value
                    if n_rows % 64 == 0:
                        progress(before + _at(raw))
            before += path.stat().st_size
        except _DAMAGE as e:
            raise FlopwiseError(
                f"data: {path} is damaged or cut after row {row} ({one_line(e, 80) or type(e).__name__}); "
                "fetch it again"
            ) from e
        except OSError as e:
            raise FlopwiseError(f"data: {path} cannot be read ({e.strerror or one_line(e, 80)})") from e
        progress(before)


def _at(raw: IO[bytes]) -> int:
    return 0 if raw.closed else raw.tell()


def _nothing(skipped: Skipped, rows: str) -> FlopwiseError:
    reason, count = skipped.counts.most_common(1)[0]
    return FlopwiseError(
        f"data: no text in {rows}: {count:,} times {reason}, first at {skipped.first[reason]}; "
        "check the field"
    )


class Bad:
    """In place of a text: why there is none."""

    def __init__(self, reason: str, detail: str = ""):
        self.reason, self.detail = reason, detail


def accept(value: Any, place: str, skipped: Skipped) -> str | None:
    """A value as text, or None and counted."""
    if isinstance(value, bytes | bytearray):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            value = Bad("broken UTF-8")
    if isinstance(value, str):
        if not value.strip():
            value = Bad("empty")
        else:
            try:
                value.encode()
                return value
            except UnicodeEncodeError:  # half a surrogate pair, or bytes that were no UTF-8
                value = Bad("broken UTF-8")
    elif not isinstance(value, Bad):
        value = Bad("empty") if value is None else Bad("no text", f"a {type(value).__name__}")
    skipped.add(value.reason, f"{place}, {value.detail}" if value.detail else place)
    return None


def of_row(row: Any, field: str | None) -> Any:
    """The field of a row (None: the row itself), or why it has none."""
    if not isinstance(row, dict):
        return Bad("no field", f"a {type(row).__name__}, no row of fields")
    if field is None:
        return row
    if field not in row:
        return Bad("no field", f"no {field!r} among {', '.join(map(str, list(row)[:8]))}")
    return row[field]


def unpacked(path: Path, raw: IO[bytes]) -> IO[bytes]:
    """A file's content, decompressed if need be, as its first bytes say.

    Raises:
        FlopwiseError: what decompresses it is not installed, or it is a zip archive or UTF-16.
    """
    head = raw.read(8)
    raw.seek(0)
    packing = next((name for magic, name in _PACKED.items() if head.startswith(magic)), "")
    if packing == "gzip":
        return gzip.GzipFile(fileobj=raw)  # type: ignore[return-value]
    if packing == "bzip2":
        return bz2.BZ2File(raw)
    if packing == "xz":
        return lzma.LZMAFile(raw)
    if packing == "zstd":
        return _zstd(path, raw)
    if head.startswith(b"PK\x03\x04"):
        raise FlopwiseError(f"data: {path} is a zip archive; unpack it and give the folder")
    if head.startswith(_UTF16):
        raise FlopwiseError(f"data: {path} is UTF-16 text; convert it: iconv -f UTF-16 -t UTF-8")
    return raw


def _zstd(path: Path, raw: IO[bytes]) -> IO[bytes]:
    try:
        from compression import zstd  # Python 3.14 has its own

        return zstd.ZstdFile(raw)  # type: ignore[no-any-return]
    except ModuleNotFoundError:
        pass
    try:
        import zstandard
    except ModuleNotFoundError:
        raise FlopwiseError(
            f"data: {path} needs zstandard, which is not installed: pip install zstandard"
        ) from None
    return _Zstd(raw, zstandard.ZstdDecompressor())  # type: ignore[return-value]


class _Zstd(io.RawIOBase):
    """Frames of zstd as a stream. A cut one raises EOFError, which the package's own reader does not."""

    def __init__(self, raw: IO[bytes], decompressor: Any):
        self.raw, self.decompressor = raw, decompressor
        self.frame: Any = None
        self.ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        import zstandard

        while not self.ready:
            left = self.frame.unused_data if self.frame is not None and self.frame.eof else b""
            if not (packed := left or self.raw.read(1 << 14)):
                if self.frame is not None and not self.frame.eof:
                    raise EOFError("the compressed data end too early")
                return 0
            if self.frame is None or self.frame.eof:
                self.frame = self.decompressor.decompressobj()
            try:
                self.ready = self.frame.decompress(packed)
            except zstandard.ZstdError as e:
                raise EOFError(str(e)) from e
        n = min(len(buffer), len(self.ready))
        buffer[:n], self.ready = self.ready[:n], self.ready[n:]
        return n


def _text(path: Path, raw: IO[bytes]) -> io.TextIOWrapper:
    # Bytes that are no UTF-8 pass as lone surrogates, which `accept` finds: one bad row is not a bad file.
    content = unpacked(path, raw)
    buffered = io.BufferedReader(content) if isinstance(content, io.RawIOBase) else content  # type: ignore[type-var]
    return io.TextIOWrapper(buffered, encoding="utf-8-sig", errors="surrogateescape", newline="")  # type: ignore[arg-type]


def _plain(path: Path, raw: IO[bytes], field: str | None) -> Iterator[tuple[int, Any]]:
    """A whole text, or parts of a long one."""
    for row, part in _parts(_text(path, raw)):
        yield row, {"text": part} if field is None else part


def _parts(text: IO[str]) -> Iterator[tuple[int, str]]:
    waiting, row = text.read(WHOLE_CHARS + 1), 0
    if len(waiting) <= WHOLE_CHARS:
        yield 1, waiting
        return
    while waiting:
        if len(waiting) < 2 * DOCUMENT_CHARS:
            waiting += text.read(_CHUNK)
        cut = len(waiting)
        if cut > DOCUMENT_CHARS:
            near = waiting.rfind("\n\n", DOCUMENT_CHARS // 2, DOCUMENT_CHARS)
            near = near if near > 0 else waiting.rfind("\n", DOCUMENT_CHARS // 2, DOCUMENT_CHARS)
            near = near if near > 0 else waiting.rfind(" ", DOCUMENT_CHARS // 2, DOCUMENT_CHARS)
            cut = near + 1 if near > 0 else DOCUMENT_CHARS
        row += 1
        yield row, waiting[:cut].strip()
        waiting = waiting[cut:]


def _json_lines(path: Path, raw: IO[bytes], field: str | None) -> Iterator[tuple[int, Any]]:
    for row, line in enumerate(_text(path, raw), 1):
        if not line.strip():
            continue
        try:
            yield row, of_row(json.loads(line), field)
        except (ValueError, RecursionError):
            yield row, Bad("broken JSON")


def _json(path: Path, raw: IO[bytes], field: str | None) -> Iterator[tuple[int, Any]]:
    """A list of rows, one row, or rows one after the other; only one row is in memory at a time."""
    text, decoder = _text(path, raw), json.JSONDecoder()
    waiting, at, row, ended = "", 0, 0, False
    size = _CHUNK
    while True:
        while at < len(waiting) and waiting[at] in " \t\r\n,[":
            at += 1
        if at < len(waiting) and waiting[at] != "]":
            try:
                found, at = decoder.raw_decode(waiting, at)
                row, size = row + 1, _CHUNK
                yield row, of_row(found, field)
                continue
            except (ValueError, RecursionError):
                if ended:
                    raise FlopwiseError(f"data: {path} is no JSON after row {row}; mend it there") from None
        elif at < len(waiting):
            at += 1
            continue
        if ended:
            return
        more = text.read(size)
        ended, size = len(more) < size, 2 * size
        waiting, at = waiting[at:] + more, 0


def _csv(path: Path, raw: IO[bytes], field: str | None) -> Iterator[tuple[int, Any]]:
    lines = _text(path, raw)
    first = lines.readline()
    sign = "\t" if kind(path) == ".tsv" else max(",;\t|", key=first.count)
    names = next(csv.reader([first], delimiter=sign), [])
    if field is not None and field not in names:
        shown = one_line(", ".join(names), 200)
        raise FlopwiseError(f"data: {path} has no column {field!r:.60}; it has {shown}; set field")
    place = None if field is None else names.index(field)
    before = csv.field_size_limit(FIELD_BYTES)
    rows = csv.reader(lines, delimiter=sign)
    try:
        for row in rows:
            if row:
                short = Bad("no field", f"{len(row)} fields, {len(names)} columns")
                if place is None:
                    value: Any = dict(zip(names, row, strict=True)) if len(row) == len(names) else short
                else:
                    value = row[place] if place < len(row) else short
                yield rows.line_num + 1, value
    except csv.Error as e:
        raise FlopwiseError(
            f"data: {path} cannot be read after line {rows.line_num + 1} ({e}); mend it there"
        ) from e
    finally:
        csv.field_size_limit(before)


def _parquet(path: Path, raw: IO[bytes], field: str | None) -> Iterator[tuple[int, Any]]:
    import duckdb

    from flopwise.records.columns import quoted
    from flopwise.records.files import as_literal

    db = duckdb.connect(config={"threads": 1})
    try:
        source = "read_parquet(?, hive_partitioning = false)"
        columns = {
            name: str(kind)
            for name, kind, *_ in db.execute(f"DESCRIBE FROM {source}", [as_literal(path)]).fetchall()
        }
        if field is not None and field not in columns:
            shown = one_line(", ".join(columns), 200)
            raise FlopwiseError(f"data: {path} has no column {field!r:.60}; it has {shown}; set field")
        if field is not None and columns[field] not in ("VARCHAR", "BLOB", "JSON"):
            raise FlopwiseError(f"data: {path}: column {field} is {columns[field]}, must be text; set field")
        wanted = "*" if field is None else quoted(field)
        found = db.execute(f"SELECT {wanted} FROM {source}", [as_literal(path)])
        row = 0
        while rows := found.fetchmany(512):
            for cells in rows:
                row += 1
                yield row, dict(zip(columns, cells, strict=True)) if field is None else cells[0]
    except duckdb.Error as e:
        raise FlopwiseError(
            f"data: {path} cannot be read as Parquet ({one_line(e, 120)}); fetch it again"
        ) from e
    finally:
        db.close()


READERS: dict[str, Callable[[Path, IO[bytes], str | None], Iterator[tuple[int, Any]]]] = {
    ".txt": _plain, ".md": _plain, ".jsonl": _json_lines, ".ndjson": _json_lines, ".json": _json,
    ".csv": _csv, ".tsv": _csv, ".parquet": _parquet,
}  # fmt: skip
