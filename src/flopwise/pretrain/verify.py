"""The test of a ladder: what was written down before the held-out run, beside what the run measured."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any

from flopwise.pretrain.observations import observation

if TYPE_CHECKING:
    from flopwise.records.folder import RunFolder
    from flopwise.records.record import RunRecord


def run_step(folder: RunFolder, parents: dict[str, RunFolder], progress: Callable[[float], None]) -> None:
    """Write verification.json: one row for each prediction of each law."""
    from flopwise.flops.spend import Stopwatch
    from flopwise.records.folder import atomic_write
    from flopwise.records.record import Metric

    watch = Stopwatch()
    runs = {name: parents[role].record() for name, role in folder.spec["runs"].items()}
    checks = [
        check(law, made, runs[made["run"]])
        for law, role in folder.spec["laws"].items()
        for made in _predictions(parents[role])
        if made["run"] in runs
    ]
    atomic_write(folder.path / "verification.json", json.dumps(checks, indent=1))
    metrics: dict[str, Metric] = {}
    for row in checks:
        key = row["name"] if len(folder.spec["runs"]) == 1 else f"{row['name']}_{row['run']}"
        metrics |= {
            f"relative_error_{key}": Metric(value=row["relative_error"], se=row["se_relative"], n=1),
            f"inside90_{key}": Metric(value=float(row["inside90"]), n=1),
        }
    folder.finish(metrics=metrics, spend=watch.spend(tokens=0))


def _predictions(law: RunFolder) -> list[dict[str, Any]]:
    path = law.path / "prediction.json"
    if not path.exists():
        return []
    first = json.loads(path.read_bytes())
    return [first, *first.pop("others", [])]


def check(law: str, made: dict[str, Any], run: RunRecord) -> dict[str, Any]:
    """A prediction (pretrain.law) against the record of its run.

    `written_before_s`: seconds from the prediction to the end of the held-out run.
    """
    # An error is one less the accuracy, and as uncertain.
    metric = run.metrics["accuracy" if made["target"] == "error" else made["target"]]
    found = observation(run).get(made["target"])
    measured = math.nan if found is None else float(found)
    ended = datetime.fromisoformat(run.created).timestamp() if run.created else math.nan
    return {
        "name": law, "law": made["law"], "run": made["run"], "variant": made["variant"],
        "target": made["target"], "predicted": made["value"], "low": made["low"], "high": made["high"],
        "level": made["level"], "low90": made["low90"], "high90": made["high90"], "measured": measured,
        "se": metric.se, "se_relative": None if metric.se is None else metric.se / measured,
        "inside": made["low"] <= measured <= made["high"],
        "inside90": made["low90"] <= measured <= made["high90"],
        "relative_error": made["value"] / measured - 1, "C_ratio": made["C_ratio"],
        "extrapolation": made["extrapolation"], "written_before_s": ended - made["made_at"],
    }  # fmt: skip
