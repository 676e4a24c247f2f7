"""What the report says of the search before a ladder: loss over the rates, by size, and the choice."""

from __future__ import annotations

from typing import Any

import numpy as np

from flopwise.report.runs import MISSHAPEN, Runs, misshapen, number


def collect_tuning(runs: Runs) -> list[dict[str, Any]]:
    """The `tuning` part of the results: one entry per search (keys: see `collect`)."""
    out = []
    for step in runs.find("fit", "tuning"):
        content = runs.json(step, "tuning.json")
        try:
            found = _search(content) | {"missing": []}
        except MISSHAPEN as e:
            found = _search({}) | misshapen("The search of rates", e)
        out.append({"id": step.id, "name": step.name} | found)
    return out


def _search(content: dict[str, Any]) -> dict[str, Any]:
    low, high = (number(v) for v in content.get("interval") or (None, None))
    rungs = {int(r["width"]): r for r in content.get("rungs") or []}
    rows = [r for r in content.get("runs") or [] if (number(r["rate_factor"]) or 0) > 0 and number(r["loss"])]
    chosen = number(content.get("batch_size"))
    by_width = {w: [r for r in rows if int(r["width"]) == w] for w in sorted({int(r["width"]) for r in rows})}
    return {
        "rate_factor": number(content.get("rate_factor")), "low": low, "high": high, "batch_size": chosen,
        "transfer": content.get("transfer"), "words": [str(w) for w in content.get("words") or []],
        "curves": [_curve(w, own, rungs.get(w, {}), chosen) for w, own in by_width.items()],
    }  # fmt: skip


def _curve(
    width: int, rows: list[dict[str, Any]], rung: dict[str, Any], batch: float | None
) -> dict[str, Any]:
    """One size's losses over the factor on all rates, with the fitted parabola at the chosen batch.

    `low`, `high`: interval of the best factor, None where it is open.
    """
    points: list[dict[str, Any]] = [
        {
            "x": float(r["rate_factor"]), "loss": float(r["loss"]), "batch": r.get("batch_size"),
            "seed": r.get("seed"), "chosen": batch is None or r.get("batch_size") == batch,
        }
        for r in rows
    ]  # fmt: skip
    inside = rung.get("where") == "inside"
    lowest = min((p["loss"] for p in points if p["chosen"]), default=min(p["loss"] for p in points))
    line: list[tuple[float, float]] = []
    if inside:
        lowest = float(rung["loss"])
        at = np.geomspace(min(p["x"] for p in points), max(p["x"] for p in points), 50)
        rise = np.exp(float(rung["curvature"]) * np.log(at / float(rung["rate_factor"])) ** 2)
        line = list(zip(at.tolist(), (lowest * rise).tolist(), strict=True))
    low = number(rung.get("low"))
    return {
        "width": width, "points": sorted(points, key=lambda p: p["x"]), "curve": line, "lowest": lowest,
        "where": rung.get("where"), "best": number(rung.get("rate_factor")) if inside else None,
        "low": low if low else None, "high": number(rung.get("high")),
    }  # fmt: skip
