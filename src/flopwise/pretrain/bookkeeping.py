"""The same runs counted two ways: why Kaplan's and Chinchilla's exponents differ.

Kaplan et al. (arXiv 2001.08361) counted non-embedding parameters and 6ND FLOPs, Hoffmann et al. (2203.15556)
all of both. At small scale the tables and the head are most of a model, so the local slope of the
compute-optimal size is higher in the first count: Pearce and Song (2406.12907) and Porian et al. (2406.19146)
explain most of .73 against .50 by it, and the rest by warm-up, decay and untuned rates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.pretrain.observations import columns
from flopwise.records.record import Metric

if TYPE_CHECKING:
    from flopwise.pretrain.tuning import Tuning

COUNTS = {
    "all parameters, FLOPs as executed": ("N_total", "C"),
    "non-embedding parameters, 6ND (Kaplan's)": ("N", "C_6nd"),
    "non-embedding parameters, FLOPs as executed": ("N", "C"),
}
"""Columns of size and compute of each way of counting."""


def answer(
    rows: list[dict[str, Any]], spec: dict[str, Any], seed: int, tuned: Tuning | None = None
) -> tuple[dict[str, Any], dict[str, Metric]]:
    """isoflop.json: by variant and way of counting the exponent of N*(C), from minima at equal C."""
    out: dict[str, Any] = {}
    notes: list[str] = []
    metrics: dict[str, Metric] = {}
    for variant in sorted({row["variant"] for row in rows}):
        mine = [row for row in rows if row["variant"] == variant]
        for i, (words, (size, compute)) in enumerate(COUNTS.items()):
            try:
                found = exponent(mine, size, compute, spec["target"], seed)
            except FlopwiseError as e:
                notes.append(f"{variant}, {words}: {e}")
                continue
            out.setdefault(variant, {})[words] = found
            notes.append(
                f"{variant}, {words}: N* ~ C^{found['a']:.2f} (95% interval {found['low']:.2f} to "
                f"{found['high']:.2f}, {found['minima']} minima)"
            )
            metrics[f"exponent_{variant}_{i}"] = Metric(value=found["a"], se=found["se"], n=found["minima"])
    if not out:
        raise FlopwiseError(f"law {spec['name']}: no way of counting gives minima; first {notes[0]}")
    return {"isoflop.json": out, "notes.json": notes}, metrics


def exponent(
    rows: list[dict[str, Any]], size: str, compute: str, target: str = "loss", seed: int = 0
) -> dict[str, Any]:
    """Exponent of the compute-optimal size in one way of counting.

    Runs were made at equal FLOPs as executed. Counted otherwise those of one budget no longer cost the same,
    so losses are first brought to equal compute: along each width, log loss is interpolated over log compute.
    """
    from flopwise.laws.isoflop import isoflop

    table = columns(rows)
    given = {"N": table[size], "C": table[compute], "loss": table[target]}
    if compute != "C":
        given = equalised(table[size], table[compute], table[target])
    found = isoflop(given, bias=False, seed=seed)
    law = found.law("N")
    low, high = law.interval("C")
    return {
        "a": law.exponents["C"], "low": low, "high": high, "se": (high - low) / 2 / 1.96,
        "minima": sum(b.usable for b in found.budgets), "warnings": found.warnings,
        "curves": {k: np.asarray(v).tolist() for k, v in given.items()},
        "budgets": [
            {"C": b.C, "N": b.N if b.usable else None, "loss": b.loss if b.usable else None}
            for b in found.budgets
        ],
    }  # fmt: skip


def equalised(N: np.ndarray, C: np.ndarray, loss: np.ndarray) -> dict[str, np.ndarray]:
    """Losses at common budgets, which are those that at least four sizes reach without extrapolation."""
    sizes = np.unique(N)
    spans = {n: (C[n == N].min(), C[n == N].max()) for n in sizes}
    low, high = np.log(C.min()), np.log(C.max())
    points = []
    for budget in np.exp(np.linspace(low, high, 2 * len(np.unique(C)) // max(1, len(sizes)) + 3)):
        inside = [n for n in sizes if spans[n][0] <= budget <= spans[n][1]]
        if len(inside) >= 4:
            for n in inside:
                of = np.flatnonzero(n == N)
                order = of[np.argsort(C[of])]
                value = np.interp(np.log(budget), np.log(C[order]), np.log(loss[order]))
                points.append((n, budget, float(np.exp(value))))
    if not points:
        raise FlopwiseError("no budget is reached by four sizes; give more budgets, closer together")
    n, c, y = (np.array(v) for v in zip(*points, strict=True))
    return {"N": n, "C": c, "loss": y}
