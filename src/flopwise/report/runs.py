"""A folder of runs as the report reads it: tolerant of what is damaged, failed, unfinished or absent."""

from __future__ import annotations

import json
import zipfile
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.flops.ledger import TOTALS
from flopwise.flops.spend import Spend
from flopwise.records.folder import RECORD_FILE, SPEC_FILE, RunFolder
from flopwise.records.record import RunRecord
from flopwise.records.store import RunStore

MISSHAPEN = (TypeError, KeyError, ValueError, AttributeError, IndexError, ArithmeticError)
"""What reading a file of unexpected shape raises: its section says so, and the others stand."""
MAX_JSON_BYTES = 50_000_000
"""No file of ours comes near this; a larger one is damage, and is not read into memory."""


class Runs:
    """Records under one folder, by what they are and never by their names.

    `done` maps ids to finished records, `failed` to failed ones; `unfinished` are folders without a record.
    `problems` collects, one line each, what could not be read.

    Raises:
        FlopwiseError: there is no such folder, or no run in it.
    """

    def __init__(self, root: Path):
        self.root = root
        store = RunStore(root)
        records = store.records()
        self.problems: list[str] = list(store.problems)
        damaged = [r for r in records if not _whole(r.spend) or not _whole(r.lineage_spend)]
        self.problems += [f"{r.id}/{RECORD_FILE}: its spend is not in numbers" for r in damaged]
        records = [r for r in records if r not in damaged]
        self.done: dict[str, RunRecord] = {r.id: r for r in records if r.status == "done"}
        self.failed: dict[str, RunRecord] = {r.id: r for r in records if r.status == "failed"}
        self.unfinished: list[RunFolder] = []
        for path in sorted(root.iterdir()):
            if (path / SPEC_FILE).is_file() and not (path / RECORD_FILE).is_file():
                try:
                    self.unfinished.append(RunFolder(path))
                except FlopwiseError as e:
                    self.problems.append(str(e))
        self.unfinished += [RunFolder(root / r.id) for r in records if r.status == "running"]
        if not (records or self.unfinished or self.problems):
            raise FlopwiseError(
                f"no runs in {root}: it holds no run's folder; make some with `flopwise demo`"
            )

    def find(self, kind: str, method: str | None = None) -> list[RunRecord]:
        """Finished runs of a kind, oldest first."""
        return [r for r in self.done.values() if r.kind == kind and method in (None, r.method)]

    def folder(self, record: RunRecord) -> Path:
        """Where a record's files lie."""
        return self.root / record.id

    def spec(self, record: RunRecord) -> dict[str, Any]:
        """All the run was asked to do; empty if that cannot be read."""
        try:
            spec = RunFolder(self.folder(record)).spec
        except FlopwiseError:
            return {}
        return spec if isinstance(spec, dict) else {}

    def json(self, record: RunRecord, name: str) -> Any:
        """A JSON file of a run, or None; a damaged one is noted."""
        path = self.folder(record) / name
        try:
            if path.stat().st_size > MAX_JSON_BYTES:
                raise ValueError(f"larger than {MAX_JSON_BYTES:,} bytes")
            return json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as e:
            self._note(path, e)
            return None

    def arrays(self, record: RunRecord, name: str = "samples.npz") -> dict[str, np.ndarray]:
        """Arrays of an .npz of a run; empty if it is absent or damaged. Pickles are refused."""
        path = self.folder(record) / name
        try:
            with np.load(path, allow_pickle=False) as file:
                return {key: file[key] for key in file.files}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as e:
            self._note(path, e)
            return {}

    def curve(self, record: RunRecord, *names: str) -> list[dict[str, Any]]:
        """Rows of a run's log that have all of `names`."""
        try:
            return RunFolder(self.folder(record)).curve(*names)
        except (FlopwiseError, OSError):
            return []

    def ancestors(self, record: RunRecord) -> list[RunRecord]:
        """Distinct finished ancestors."""
        found: dict[str, RunRecord] = {}
        todo = list(record.parents)
        while todo:
            run = todo.pop()
            if run in self.done and run not in found:
                found[run] = self.done[run]
                todo += self.done[run].parents
        return list(found.values())

    @cached_property
    def samples(self) -> dict[str, RunRecord]:
        """The sample run of each model, by the model's id: the one with most samples if there are several."""
        found: dict[str, tuple[int, RunRecord]] = {}
        for r in self.find("sample"):
            model = r.roles.get("model")
            size = int(self.spec(r).get("n") or 0)
            if model and size >= found.get(model, (-1, r))[0]:
                found[model] = (size, r)
        return {model: r for model, (_, r) in found.items()}

    def why(self, kind: str, what: str, method: str | None = None) -> str:
        """One plain sentence: why `what`, which a run of this kind would give, is missing."""
        for r in self.failed.values():
            if r.kind == kind and method in (None, r.method):
                return (
                    f"{what} is missing: step {r.name or r.id} failed ({r.reason or 'no reason recorded'})."
                )
        for f in self.unfinished:
            if f.kind == kind and method in (None, f.method):
                return f"{what} is missing: step {f.name or f.id} was started and has not finished."
        wanted = kind if method is None else f"{kind} ({method})"
        return f"{what} is missing: this folder holds no {wanted} run."

    def _note(self, path: Path, error: Exception) -> None:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        line = f"{path.parent.name}/{path.name}: {reason}"
        if line not in self.problems:
            self.problems.append(line)


def _whole(spend: Spend) -> bool:
    """Whether a spend has numbers where it must."""
    values = {f.name: getattr(spend, f.name) for f in fields(spend)}
    values = {name: value for name, value in values.items() if name not in ("device", "by", "unknown")}
    needed = all(number(values[name]) is not None for name in TOTALS)
    return needed and all(value is None or number(value) is not None for value in values.values())


def misshapen(what: str, error: Exception) -> dict[str, Any]:
    """A section that cannot be told, and why."""
    reason = (str(error).splitlines() or [""])[0][:200]
    text = (
        f"{what} cannot be told: a file it reads has an unexpected shape ({type(error).__name__}: {reason})."
    )
    return {"missing": [text]}


def number(value: Any) -> float | None:
    """A finite number, or None.

    >>> number("3"), number(float("nan")), number(2)
    (None, None, 2.0)
    """
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        return None
    return float(value) if np.isfinite(value) else None


def clean(value: Any) -> Any:
    """The same with plain Python types and None for numbers that JSON has no word for."""
    if isinstance(value, dict):
        return {str(k): clean(v) for k, v in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [clean(v) for v in value]
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value
