"""Rows of other people's datasets, read as a stream: what is bad is named, and counted if it is left out."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from flopwise.data import files, hub
from flopwise.data.checksums import sha256
from flopwise.data.files import Bad, Skipped
from flopwise.data.instruct_layouts import LAYOUTS, READERS, Layout, Row
from flopwise.data.messages import BadRow, Reading
from flopwise.errors import FlopwiseError, one_line


class Rows:
    """A dataset's rows, read once and in order.

    Attributes:
        kind: one of `KINDS`, known once a row was read.
        reading: its notes say how the columns were read, where that is not plain.
        ignored: columns that nothing was made of.
        n_rows: rows read so far, bad ones included.
        skipped: bad rows that were left out (`drop`), by reason.
        digest: SHA-256 of the content of all rows.

    Args:
        path: file, folder, pattern, saved dataset or hub id.
        kind: how to read it; None tells it by the columns of the first row.
        options: split and config of a saved or hub dataset.
        drop: bad rows are left out and counted; else the first one ends the reading.
        progress: is told the share read, where that is known.
    """

    def __init__(
        self, path: str, kind: str | None = None, options: Mapping[str, Any] | None = None,
        drop: bool = False, progress: Callable[[float], None] = lambda _: None,
    ):  # fmt: skip
        self.path, self.drop = path, drop
        self.options, self.progress = dict(options or {}), progress
        self.kind: str = kind or ""
        self.reading = Reading()
        self.ignored: list[str] = []
        self.n_rows = 0
        self.skipped = Skipped()
        self._content = hashlib.sha256()
        self._layout: Layout | None = None

    @property
    def digest(self) -> str:
        """Of the rows read so far."""
        return self._content.hexdigest()

    def __iter__(self) -> Iterator[Row]:
        """Good rows.

        Raises:
            FlopwiseError: a bad row where none is to be dropped, no layout fits, no good row at all, or what
                reading raises.
        """
        n_good = 0
        for place, value in self._values():
            self.n_rows += 1
            try:
                row = self._read(place, value)
            except BadRow as e:
                self.reject(place, e)
                if self.n_rows == files.PATIENCE and not n_good:
                    break
                continue
            n_good += 1
            yield row
        if not n_good:
            what = "; ".join(f"{n:,} times {r}" for r, n in self.skipped.counts.most_common(3)) or "no rows"
            first = next(iter(self.skipped.first.values()), "")
            raise FlopwiseError(
                f"data: {one_line(self.path, 120)} has no good row in {self.n_rows:,}: {what}"
                f"{f', first {first}' if first else ''}; mend it"
            )

    def reject(self, place: str, bad: BadRow) -> None:
        """Count a bad row, or end with it.

        Raises:
            FlopwiseError: bad rows are not to be dropped.
        """
        if not self.drop:
            raise FlopwiseError(
                f"data: {place}: {bad.detail}; mend the row, or leave such rows out with bad_rows: drop"
            ) from bad
        self.skipped.add(bad.reason, f"{place}, {bad.detail}")

    def _values(self) -> Iterator[tuple[str, Any]]:
        """Place and content of each row."""
        if hub.is_saved(self.path) or hub.is_id(self.path):
            name = self.path.removeprefix(hub.PREFIX)
            for number, values in hub.rows(self.path, self.options):
                yield f"{name}:{number}", dict(values)
            return
        if self.options:
            raise FlopwiseError(
                f"data: options ({', '.join(self.options)}) are for datasets of the hub; {self.path} is files"
            )
        found = files.find(self.path)
        total = sum(f.stat().st_size for f in found) or 1
        for path, number, value in files.values(found, None, lambda done: self.progress(done / total)):
            self.reading.text_only = files.kind(path) in (".csv", ".tsv")
            yield f"{path}:{number}", value

    def _read(self, place: str, value: Any) -> Row:
        if isinstance(value, Bad):
            raise BadRow(
                value.reason, f"{value.reason}{f' ({value.detail})' if value.detail else ''}, must be a row"
            )
        self._content.update(json.dumps(value, sort_keys=True, default=str).encode("utf-8", "surrogatepass"))
        if self._layout is None:
            self._layout = self._choose(place, list(value))
        columns = self._layout.columns
        missing = [c for c in columns.values() if c not in value]
        if missing:
            raise BadRow(
                f"no {missing[0]}",
                f"has no column {missing[0]}, only {one_line(', '.join(map(str, value)), 100) or 'none'}; "
                f"{self._layout.kind} need {', '.join(columns.values())}",
            )
        named = {**columns, **self._layout.optional}
        known = {k: value[c] for k, c in named.items() if value.get(c) is not None}
        for key in columns:
            if key not in known:
                raise BadRow(f"no {columns[key]}", f"{columns[key]} is null, must hold a value")
        return READERS[self._layout.kind](place, known, self.reading)

    def _choose(self, place: str, names: list[str]) -> Layout:
        fitting = [x for x in LAYOUTS if x.fits(names) and self.kind in ("", x.kind)]
        if not fitting:
            wanted = [x for x in LAYOUTS if self.kind in ("", x.kind)]
            known = " | ".join(dict.fromkeys("+".join(x.columns.values()) for x in wanted))
            raise FlopwiseError(
                f"data: {place} has columns {one_line(', '.join(names), 120) or 'none'}, which are no layout"
                f"{f' of {self.kind}' if self.kind else ''}; rename them to one of: {known}"
            )
        found = fitting[0]
        self.kind = found.kind
        if note := found.note(names):
            self.reading.note(note)
        used = {*found.columns.values(), *found.optional.values()}
        self.ignored = [name for name in names if name not in used]
        return found


def source_files(path: str) -> list[dict[str, Any]]:
    """Name, bytes and SHA-256 of each file of a dataset on this machine; none for one on the hub.

    Raises:
        FlopwiseError: there is no such file, or it cannot be read.
    """
    if hub.is_id(path):
        return []
    if hub.is_saved(path):
        found = sorted(Path(root) / name for root, _, names in os.walk(path) for name in names)
    else:
        found = files.find(path)
    try:
        return [{"name": f.name, "bytes": f.stat().st_size, "sha256": sha256(f)} for f in found]
    except OSError as e:
        raise FlopwiseError(f"data: {one_line(path, 120)} cannot be read ({e.strerror})") from e


def source_sha256(path: str) -> str | None:
    """One hash for all files of a dataset; None for one on the hub, which only its rows can tell."""
    found = source_files(path)
    return hashlib.sha256("".join(f["sha256"] for f in found).encode()).hexdigest() if found else None
