"""What the report says of curves of equal compute: loss against size, minima, exponents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.report.runs import Runs, number

_FEWEST = 4
"""Sizes that a budget needs for a parabola with an error (`laws.isoflop.FEWEST`)."""
_ALIKE = 0.05
"""Relative distance in compute below which two runs have one budget."""


def collect_isoflop(runs: Runs, points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The `isoflop` part: curves as a law step counted them, else of runs that were made at equal compute."""
    out = []
    for step in runs.find("fit", "pretraining_law"):
        content = runs.json(step, "isoflop.json")
        for variant, counts in content.items() if isinstance(content, dict) else ():
            for words, found in counts.items() if isinstance(counts, dict) else ():
                columns = _columns(found.get("curves") if isinstance(found, dict) else None)
                if columns:
                    rows = [
                        dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
                    ]
                    out.append({"variant": str(variant), "counted": str(words), **_curves(rows)})
    if out:
        return out
    usable = [q for q in points if not (q["held_out"] or q["tuning"]) and q["N"] and q["C"] and q["D"]]
    for variant in dict.fromkeys(q["variant"] for q in usable):
        mine = [q for q in usable if q["variant"] == variant]
        if _equal_compute(mine):
            out.append({"variant": variant, "counted": None, **_curves(mine)})
    return out


def _columns(curves: Any) -> dict[str, list[float]]:
    """N, C and loss of a law step's curves; empty if they are not whole."""
    if not isinstance(curves, Mapping):
        return {}
    columns = {key: curves.get(key) for key in ("N", "C", "loss")}
    lists = {
        key: [number(v) or 0.0 for v in given] for key, given in columns.items() if isinstance(given, list)
    }
    whole = len(lists) == 3 and len({len(v) for v in lists.values()}) == 1
    return lists if whole and all(v > 0 for given in lists.values() for v in given) else {}


def _equal_compute(rungs: Sequence[dict[str, Any]]) -> bool:
    """Whether most runs lie in two or more budgets that several sizes share."""
    groups = _budgets(rungs)
    shared = [g for g in groups if len({q["N"] for q in g}) >= _FEWEST]
    return len(shared) >= 2 and sum(map(len, shared)) > 0.7 * len(rungs)


def _budgets(rows: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Runs of equal compute together, cheapest first."""
    groups: list[list[dict[str, Any]]] = []
    for q in sorted(rows, key=lambda q: q["C"]):
        if groups and q["C"] <= groups[-1][0]["C"] * (1 + _ALIKE):
            groups[-1].append(q)
        else:
            groups.append([q])
    return groups


def _curves(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Budgets with their parabolas and minima, and the exponents of N* and D* in C."""
    from flopwise.laws.isoflop import isoflop

    missing: list[str] = []
    exponents: dict[str, Any] = {}
    warnings: list[str] = []
    found: list[Any] = []
    table = {key: np.array([q[key] for q in rows]) for key in ("N", "C", "loss")}
    if all(q.get("D") for q in rows):
        table["D"] = np.array([q["D"] for q in rows])
    try:
        done = isoflop(table, tolerance=_ALIKE, bias=False)
        found, warnings = done.budgets, done.warnings
        for target in ("N", "D"):
            law = done.laws.get("weighted", done.laws.get("plain", {})).get(target)
            if law is not None:
                low, high = law.interval("C")
                exponents[target] = {"value": law.exponents["C"], "low": low, "high": high}
    except FlopwiseError as e:
        missing.append(f"No compute-optimal size: {e}.")
    budgets = [_budget(group, found) for group in _budgets(rows)]
    return {"budgets": budgets, "exponents": exponents, "warnings": warnings, "missing": missing}


def _budget(rows: list[dict[str, Any]], found: list[Any]) -> dict[str, Any]:
    """Runs of one budget, the parabola through their log losses, its minimum with a 95% interval of N."""
    C = float(np.exp(np.mean(np.log([q["C"] for q in rows]))))
    x, y = np.log([q["N"] for q in rows]), np.log([q["loss"] for q in rows])
    curve: list[tuple[float, float]] = []
    if len(set(x.tolist())) >= 3:
        at = np.linspace(x.min(), x.max(), 40)
        values = np.polyval(np.polyfit(x - x.mean(), y, 2), at - x.mean())
        curve = list(zip(np.exp(at).tolist(), np.exp(values).tolist(), strict=True))
    best = next((b for b in found if b.usable and abs(b.C / C - 1) < _ALIKE), None)
    half = np.exp(1.96 * best.se) if best is not None and best.se is not None else None
    return {
        "C": C, "curve": curve,
        "points": [{k: q.get(k) for k in ("id", "name", "N", "D", "loss", "se", "width")} for q in rows],
        "N": best.N if best else None, "D": best.D if best else None, "loss": best.loss if best else None,
        "low": best.N / half if best and half else None, "high": best.N * half if best and half else None,
    }  # fmt: skip
