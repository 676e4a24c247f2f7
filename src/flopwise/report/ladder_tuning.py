"""What the report says of the search that came before a ladder: curves over the rates, and the choice."""

from __future__ import annotations

from typing import Any

import numpy as np

from flopwise.report.runs import MISSHAPEN, Runs, misshapen, number


def collect_tuning(runs: Runs) -> list[dict[str, Any]]:
    """The `tuning` part of the results: one entry per search (keys: see `collect`)."""
    out = []
    for step in runs.find("fit"):
        content = runs.json(step, "tuning.json")
        if not isinstance(content, dict):
            continue
        try:
            out.append({"id": step.id, "name": step.name} | _search(content))
        except MISSHAPEN as e:
            out.append({"id": step.id, "name": step.name, "curves": []} | misshapen("The search of rates", e))
    return out


def _search(content: dict[str, Any]) -> dict[str, Any]:
    curves = content.get("curves") or []
    if isinstance(curves, dict):
        curves = [
            {"label": name, **c} if isinstance(c, dict) else {"label": name, "points": c}
            for name, c in curves.items()
        ]
    words = content.get("words") or []
    interval = content.get("interval") or (content.get("intervals") or {})
    if isinstance(interval, dict):
        interval = interval.get("rate_factor") or []
    low, high = (
        (number(v) for v in interval) if isinstance(interval, list) and len(interval) == 2 else (None, None)
    )
    return {
        "rate_factor": number(content.get("rate_factor")), "low": low, "high": high,
        "batch_size": number(content.get("batch_size")),
        "curves": [c for c in (_curve(c) for c in curves if isinstance(c, dict)) if c["points"]],
        "words": [str(w) for w in (words if isinstance(words, list) else [words])], "missing": [],
    }  # fmt: skip


def _curve(given: dict[str, Any]) -> dict[str, Any]:
    """One size's losses over the factor, with the parabola in its logarithm and the interval of its minimum."""
    points = _points(given)
    width = number(given.get("width"))
    label = str(given.get("label") or (f"width {width:g}" if width else "search"))
    batch = number(given.get("batch_size"))
    label += f", batch {batch:g}" if batch and "batch" not in label else ""
    interval = (
        given.get("interval")
        if isinstance(given.get("interval"), list)
        else [given.get("low"), given.get("high")]
    )
    best = next((v for k in ("best", "at", "optimum") if (v := number(given.get(k)))), None)
    low, high = (number(v) for v in interval) if interval and len(interval) == 2 else (None, None)
    line: list[tuple[float, float]] = []
    xs, ys = np.log([p["x"] for p in points]), np.array([p["loss"] for p in points])
    if len(set(xs.tolist())) >= 3:
        at = np.linspace(xs.min(), xs.max(), 40)
        line = list(zip(np.exp(at), np.polyval(np.polyfit(xs, ys, 2), at), strict=True))
    return {
        "width": width, "label": label, "short": f"w {width:g}" if width else label[:8], "points": points,
        "curve": line, "best": best, "low": low, "high": high,
        "lowest": float(ys.min()) if len(ys) else None, "warning": str(given.get("warning") or ""),
    }  # fmt: skip


def _points(given: dict[str, Any]) -> list[dict[str, float]]:
    """Losses by factor: a list of rows, or two lists side by side."""
    rows = given.get("points")
    pairs: list[tuple[Any, Any]] = []
    if isinstance(rows, list):
        for row in rows:
            if isinstance(row, dict):
                pairs.append(
                    (row.get("rate_factor", row.get("rate", row.get("x"))), row.get("loss", row.get("y")))
                )
            elif isinstance(row, list) and len(row) >= 2:
                pairs.append((row[0], row[1]))
    else:
        factors = given.get("rate_factors") or given.get("rates") or given.get("x") or []
        pairs = list(
            zip(factors, given.get("losses") or given.get("loss") or given.get("y") or [], strict=False)
        )
    kept = [(number(x), number(y)) for x, y in pairs]
    found = [{"x": x, "loss": y} for x, y in kept if x is not None and x > 0 and y is not None and y > 0]
    return sorted(found, key=lambda p: p["x"])
