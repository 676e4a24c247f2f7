"""A folder of runs: prepare, find, list, ask in SQL."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from flopwise.errors import FlopwiseError, one_line
from flopwise.records.folder import CURVE_FILE, RECORD_FILE, SPEC_FILE, RunFolder, atomic_write, read_curve
from flopwise.records.record import RunRecord, read_record

CARRIED_OUT = "train"
"""Key of a spec that says how, not what."""


def run_id(
    kind: str,
    method: str,
    spec: dict[str, Any],
    seed: int,
    parents: dict[str, str],
    references: dict[str, str],
) -> str:
    """16 hexadecimal digits that depend on everything a run was asked to do, its ancestors included.

    The spec's `train` (processes, precision, compiling: how a run is carried out) is left out: a stopped run
    may go on with other numbers of processes, and its results are the same up to rounding.

    >>> run_id("sft", "demos", {"steps": 1}, 0, {}, {}) == run_id("sft", "demos", {"steps": 2}, 0, {}, {})
    False
    """
    whole = {
        "kind": kind,
        "method": method,
        "spec": {name: value for name, value in spec.items() if name != CARRIED_OUT},
        "seed": seed,
        "parents": parents,
        "references": references,
    }
    return hashlib.sha256(json.dumps(_plain(whole), sort_keys=True).encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    """As JSON gives it back: tuples are lists, keys are text."""
    return json.loads(json.dumps(value))


class RunStore:
    """Runs under one folder; `problems` lists what could not be read, one line each."""

    def __init__(self, root: str | Path):
        self.root = Path(root)
        self.problems: list[str] = []

    def prepare(
        self, kind: str, method: str, spec: dict[str, Any], parents: dict[str, str] | None = None,
        seed: int = 0, name: str | None = None, references: dict[str, str] | None = None,
    ) -> RunFolder:  # fmt: skip
        """The folder of this very run, made if new. `parents` maps roles to ids; so does `references`, for
        inputs that are not ancestors (a reward model that scores, a run whose spend is matched).

        A spec file that was damaged or edited is written anew: the folder's name says what it must hold.
        """
        import yaml

        parents, references = parents or {}, references or {}
        path = self.root / run_id(kind, method, spec, seed, parents, references)
        try:
            known = RunFolder(path)
            same = known.spec.get(CARRIED_OUT) == _plain(spec).get(CARRIED_OUT) or self.done(known.id)
            whole = run_id(known.kind, known.method, known.spec, known.seed, known.roles, known.references)
            if same and whole == known.id:
                return known
        except (FlopwiseError, TypeError):
            pass  # new, damaged or edited
        path.mkdir(parents=True, exist_ok=True)
        header = {
            "name": name, "kind": kind, "method": method, "seed": seed,
            "parents": parents, "references": references, "spec": _plain(spec),
        }  # fmt: skip
        atomic_write(path / SPEC_FILE, yaml.safe_dump(header, sort_keys=False))
        return RunFolder(path)

    def done(self, run: str) -> bool:
        """Whether the run with this id is finished."""
        try:
            return read_record(self.root / run / RECORD_FILE).status == "done"
        except (OSError, FlopwiseError):
            return False

    def folder(self, run: str) -> RunFolder:
        """The folder of a run by id, unambiguous start of an id, or name.

        Raises:
            FlopwiseError: there is none, or several.
        """
        if run.isalnum() and (self.root / run / SPEC_FILE).is_file():
            return RunFolder(self.root / run)
        records = self.records()
        found = [r for r in records if r.name == run] or [r for r in records if run and r.id.startswith(run)]
        if len(found) != 1:
            what = f"matches {len(found)} runs" if found else "matches no run"
            raise FlopwiseError(f"run {run!r:.80} {what} in {self.root}; see `flopwise runs {self.root}`")
        return RunFolder(self.root / found[0].id)

    def get(self, run: str) -> RunRecord:
        """The record of a run."""
        return self.folder(run).record()

    def records(self) -> list[RunRecord]:
        """All records, oldest first; damaged ones are left out and named in `problems`."""
        if not self.root.is_dir():
            raise FlopwiseError(
                f"no runs in {self.root}: there is no such folder; make some with `flopwise demo`"
            )
        self.problems = []
        out = []
        for name in sorted(os.listdir(self.root)):
            try:
                out.append(read_record(self.root / name / RECORD_FILE))
            except (FileNotFoundError, NotADirectoryError):
                continue  # no run, or one that has no record yet
            except (OSError, FlopwiseError) as e:
                self.problems.append(one_line(e))
        return sorted(out, key=lambda r: (r.created or "", r.id))

    def rows(self) -> list[dict[str, Any]]:
        """One flat row per record, metrics as columns of their own."""
        return [flat(r) for r in self.records()]

    def query(self, sql: str) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Run SQL over the tables `runs`, `metrics` (long), `ledger` (passes by purpose and model) and
        `curve` (every logged row).

        The database is in memory and closed to files and network; nothing can be changed by a query.

        Raises:
            FlopwiseError: the SQL is wrong; the message is the database's first line.
        """
        import duckdb

        records = self.records()
        metrics = [
            {"id": r.id, "run": r.name, "name": k, "value": m.value, "se": m.se, "n": m.n}
            for r in records for k, m in r.metrics.items()
        ]  # fmt: skip
        curve = [
            {**row, "id": r.id, "run": r.name}
            for r in records for row in read_curve(self.root / r.id / CURVE_FILE)
        ]  # fmt: skip
        ledger = [{**row, "id": r.id, "run": r.name} for r in records for row in r.spend.by]
        closed: dict[str, Any] = {"python_enable_replacements": False, "temp_directory": ""}
        db = duckdb.connect(":memory:", config=closed)
        try:
            tables = {"runs": map(flat, records), "metrics": metrics, "ledger": ledger, "curve": curve}
            for table, content in tables.items():
                _create(db, table, list(content))
            db.execute("SET enable_external_access = false")
            db.execute("SET lock_configuration = true")
            result = db.execute(sql)
            if result is None:
                raise FlopwiseError("query: there is no SQL in it; try SELECT * FROM runs")
            return [d[0] for d in result.description or []], result.fetchall()
        except duckdb.Error as e:
            said = str(e).splitlines()[0]
            raise FlopwiseError(f"query: {said}; tables are runs, metrics, ledger, curve") from e
        finally:
            db.close()


def flat(record: RunRecord) -> dict[str, Any]:
    """A record as one row: what was measured, what it cost, with plain column names."""
    model, data = record.model or {}, record.data or {}
    row: dict[str, Any] = {
        "id": record.id, "name": record.name, "kind": record.kind, "method": record.method,
        "status": record.status, "seed": record.seed, "created": record.created, "reason": record.reason,
        "parents": ",".join(record.parents),
        "n_params_total": model.get("n_params_total"), "n_params_active": model.get("n_params_active"),
        "n_params_non_embedding": model.get("n_params_non_embedding"),
        "corpus": data.get("corpus"), "tokens_seen": data.get("tokens_seen"),
        "tokens_unique": data.get("tokens_unique"),
    }  # fmt: skip
    own, lineage = record.spend, record.lineage_spend
    spent = own.to_dict()
    del spent["by"]
    row |= spent | {"total_flops": None if own.at_least and not own.total_flops else own.total_flops}
    row |= {f"lineage_{k}": v for k, v in lineage.to_dict().items() if k not in ("by", "device", "unknown")}
    row["lineage_flops"] = lineage.total_flops
    fields = set(row)
    for name, metric in record.metrics.items():
        column = f"metric_{name}" if name in fields else name
        row |= {column: metric.value, f"{column}_se": metric.se}
    return row


def _create(db: Any, table: str, rows: list[dict[str, Any]]) -> None:
    """Make a table of rows with the union of their columns; text, or double where every value is a number."""
    from flopwise.records.columns import quoted

    # Column names differ in more than case: the database takes `Loss` and `loss` for one.
    rows = [{name.casefold(): value for name, value in row.items()} for row in rows]
    names = list(dict.fromkeys(name for row in rows for name in row)) or ["id"]
    types = {}
    for name in names:
        values = [row.get(name) for row in rows if row.get(name) is not None]
        types[name] = "DOUBLE" if values and all(isinstance(v, int | float) for v in values) else "VARCHAR"
    db.execute(f"CREATE TABLE {table} ({', '.join(f'{quoted(n)} {types[n]}' for n in names)})")
    if rows:
        lists = ", ".join(f"unnest(?::{types[n]}[])" for n in names)
        db.execute(
            f"INSERT INTO {table} SELECT {lists}",
            [[_cell(row.get(n), types[n]) for row in rows] for n in names],
        )


def _cell(value: Any, kind: str) -> Any:
    return value if value is None else float(value) if kind == "DOUBLE" else str(value)
