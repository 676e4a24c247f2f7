"""A run's folder: its spec, its growing log, its record; nothing half-written ever counts."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from flopwise.errors import FlopwiseError, one_line
from flopwise.flops.spend import Spend
from flopwise.records.record import Metric, RunRecord, read_record

RECORD_FILE, SPEC_FILE, CURVE_FILE = "run.json", "spec.yaml", "metrics.jsonl"


def atomic_write(path: Path, content: bytes | str) -> None:
    """Write all of `content` or leave what was there: temporary file, flush to disk, rename.

    Raises:
        OSError: the disk is full or the folder cannot be written; the old file is untouched.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class RunFolder:
    """One run on disk. `path` is the folder, `spec` all it was asked to do."""

    def __init__(self, path: Path):
        import yaml

        self.path = path
        try:
            header = yaml.safe_load((path / SPEC_FILE).read_text(encoding="utf-8"))
            self.kind: str = header["kind"]
            self.method: str = header["method"]
            self.name: str | None = header.get("name")
            self.seed: int = header["seed"]
            self.spec: dict[str, Any] = header["spec"]
            self.roles: dict[str, str] = header["parents"]
            self.references: dict[str, str] = header.get("references", {})
        except (OSError, yaml.YAMLError, KeyError, TypeError, UnicodeDecodeError) as e:
            raise FlopwiseError(
                f"run folder {path} has no readable {SPEC_FILE} ({type(e).__name__}); delete the folder"
            ) from e

    @property
    def id(self) -> str:
        """Hash of spec and parents; the folder's name."""
        return self.path.name

    @property
    def parents(self) -> list[str]:
        """Ids of the runs this one was made from."""
        return list(dict.fromkeys(self.roles.values()))

    @property
    def done(self) -> bool:
        """Whether the run finished: its record exists and says so."""
        try:
            return self.record().status == "done"
        except FlopwiseError:
            return False

    def record(self) -> RunRecord:
        """The record.

        Raises:
            FlopwiseError: there is none yet, or it is damaged.
        """
        try:
            return read_record(self.path / RECORD_FILE)
        except FileNotFoundError:
            raise FlopwiseError(
                f"run {self.id} ({self.name or self.kind}) has no record yet; it has not finished"
            ) from None

    def log(self, **row: Any) -> None:
        """Append one row to the curve, on disk before this returns to the caller's next step."""
        with open(self.path / CURVE_FILE, "a", encoding="utf-8") as f:
            f.write(json.dumps(row, default=float) + "\n")

    def curve(self, *names: str) -> list[dict[str, Any]]:
        """Logged rows that have all of `names`; a last line cut by a kill is left out."""
        return [row for row in read_curve(self.path / CURVE_FILE) if all(name in row for name in names)]

    def rewind(self, step: int) -> None:
        """Drop rows logged after `step`: a resumed run will log them again."""
        path = self.path / CURVE_FILE
        if path.exists():
            kept = [row for row in read_curve(path) if row.get("step", 0) <= step]
            atomic_write(path, "".join(json.dumps(row) + "\n" for row in kept))

    def finish(
        self,
        metrics: dict[str, Metric],
        spend: Spend,
        model: dict[str, Any] | None = None,
        data: dict[str, Any] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> RunRecord:
        """Write the record, last and atomically: from then on the run is done and never paid for again."""
        return self._write(
            status="done", metrics=metrics, spend=spend,
            lineage_spend=spend + lineage_spend(self.path.parent, self.parents),
            model=model, data=data, extra=extra or {},
        )  # fmt: skip

    def fail(self, reason: str) -> RunRecord:
        """Record why the run failed, in one line; a later start tries again."""
        return self._write(status="failed", reason=one_line(reason))

    def sweep(self) -> None:
        """Remove what a killed process left half-written: in a run's folder, dotted files are temporary."""
        for path in self.path.rglob(".*"):
            if path.is_file() or path.is_symlink():
                path.unlink(missing_ok=True)

    def _write(self, **fields: Any) -> RunRecord:
        record = RunRecord(
            id=self.id, name=self.name, kind=self.kind, method=self.method, parents=self.parents,
            roles=self.roles, references=self.references, seed=self.seed, versions=versions(),
            created=datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds"), **fields,
        )  # fmt: skip
        atomic_write(self.path / RECORD_FILE, record.model_dump_json(indent=1) + "\n")
        return record


def read_curve(path: Path) -> list[dict[str, Any]]:
    """Rows of a curve's file; lines that are no row (cut by a kill) are left out, no file is no rows."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def lineage_spend(root: Path, runs: Iterable[str]) -> Spend:
    """What runs and all their ancestors under `root` spent together, each counted once.

    Raises:
        FlopwiseError: an ancestor's record is absent or damaged.
    """
    seen: set[str] = set()
    todo, total = list(runs), Spend()
    while todo:
        run = todo.pop()
        if run not in seen:
            seen.add(run)
            try:
                record = read_record(root / run / RECORD_FILE)
            except FileNotFoundError:
                raise FlopwiseError(
                    f"ancestor {run} has no record in {root}; start again to make it"
                ) from None
            total += record.spend
            todo += record.parents
    return total


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    out = {}
    for package in ("flopwise", "torch", "numpy", "scipy", "tokenizers"):
        try:
            out[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return out
