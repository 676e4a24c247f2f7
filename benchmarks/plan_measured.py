"""Is the plan right where it can be checked? The largest model held out, of published and of own records.

Schaeffer et al. 2025 (arXiv 2502.17578) sampled nine Pythia sizes at nine checkpoints on GSM8K and MATH;
there is no post-training in these data. A folder of runs of `flopwise demo` has some. The joint law is chosen
and fitted without the largest size; then, for many budgets and demands, the split that it prefers among all
that was measured, the largest size included, is compared with what was measured there and with simple rules
at the same budget.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flopwise.plan.joint_law import choose, coverage, observations
from flopwise.plan.response import Response

FILE = Path("pythia_train_x_test") / "counts.csv"
SAMPLES = 2.0 ** np.arange(8)
"""Numbers of samples: of every problem 128 or more were drawn."""
LEAST = {"GSM8K": 2e9, "MATH": 2e10}
"""Tokens from which on problems are solved at all."""
TOKENS = 400.0
"""Tokens of one answer; the prompt is counted as one more answer."""
QUERIES = tuple(10.0 ** np.arange(6, 11))
BUDGETS = tuple(10.0 ** np.arange(20.5, 23.01, 0.5))
LEVEL = 0.9


@dataclass(frozen=True)
class Cell:
    """One measured point."""

    N: float
    D: float
    k: float
    measured: float
    post: float = 0.0


def solved(n: np.ndarray, c: np.ndarray, k: float) -> float:
    """Mean of the unbiased pass@k (Chen et al. 2021, arXiv 2107.03374) over problems."""
    from scipy.special import gammaln

    rest = np.maximum(n - c, k)
    missed = np.exp(gammaln(rest + 1) - gammaln(rest - k + 1) - gammaln(n + 1) + gammaln(n - k + 1))
    return float(np.mean(1 - np.where(n - c >= k, missed, 0.0)))


def read(data: Path, benchmark: str) -> list[Cell]:
    """All cells of a benchmark from the least number of tokens on, with pass@k above 0."""
    groups: dict[tuple[float, float], list[tuple[float, float]]] = {}
    with open(data / FILE, newline="") as f:
        for row in csv.DictReader(f):
            if row["benchmark"] == benchmark and float(row["D"]) >= LEAST[benchmark]:
                key = (float(row["N"]), float(row["D"]))
                groups.setdefault(key, []).append((float(row["n"]), float(row["c"])))
    cells = []
    for (N, D), pairs in sorted(groups.items()):
        n, c = np.array(pairs).T
        cells += [Cell(N, D, k, value) for k in SAMPLES if (value := solved(n, c, k)) > 0]
    return cells


def table(cells: list[Cell]) -> dict[str, np.ndarray]:
    """As joint laws are fitted to it."""
    columns = {name: np.array([getattr(c, name) for c in cells]) for name in ("N", "D", "post", "k")}
    columns["coverage"] = np.array([c.measured for c in cells])
    return columns | {"run": np.array([f"{c.N:g}-{c.D:g}-{c.post:g}" for c in cells])}


def from_runs(folder: Path, methods: list[str]) -> list[Cell]:
    """Cells of all sampled models of a folder of runs."""
    t = observations(folder, methods)
    names = ("N", "D", "k", "coverage", "post")
    return [Cell(*map(float, row)) for row in zip(*(t[n] for n in names), strict=True) if row[3] > 0]


def cost(cell: Cell, queries: float, tokens: float = TOKENS) -> float:
    """FLOPs of training and of all answers."""
    return 6 * cell.N * (cell.D + cell.post) + 2 * cell.N * queries * tokens * (1 + cell.k)


def rules(
    cells: list[Cell], predicted: np.ndarray, budget: float, queries: float, tokens: float
) -> dict[str, int | None]:
    """Which cell each rule would take of those that are affordable.

    The plan and "even shares" take the best by the law, the latter of those with no more than an even share
    for each law; "all into pretraining" the best without post-training and with one sample; "all into
    post-training" and "all into test time" the cheapest pretraining, with all the post-training or samples
    there is money for.
    """
    money = np.array([cost(c, queries, tokens) for c in cells])
    N, D, post, k = (np.array([getattr(c, name) for c in cells]) for name in ("N", "D", "post", "k"))
    ok = money <= budget
    shares = 2 + (post.max() > 0)
    parts = np.stack([6 * N * D, 6 * N * post, money - 6 * N * (D + post)])
    even = ok & (parts <= budget / shares).all(axis=0)

    def best(keep: np.ndarray, by: np.ndarray = predicted) -> int | None:
        return int(np.argmax(np.where(keep, by, -np.inf))) if keep.any() else None

    cheap = ok & ((N * D)[ok].min() == N * D) if ok.any() else ok
    bare = cheap & (post == post[cheap].min()) if cheap.any() else cheap
    least = post[ok].min() if ok.any() else 0.0
    found = {
        "plan": best(ok), "all into pretraining": best(ok & (k == 1) & (post == least)),
        "all into post-training": best(cheap & (k == 1), post) if post.max() > 0 else None,
        "all into test time": best(bare, k), "even shares": best(even),
    }  # fmt: skip
    return found


def trial(
    cells: list[Cell], budgets: Sequence[float] = BUDGETS, queries: Sequence[float] = QUERIES,
    tokens: float = TOKENS, by: str = "N",
) -> dict[str, Any]:  # fmt: skip
    """Plans with the largest size held out, beside what was measured; the form is chosen by the next largest
    `by`."""
    largest = max(c.N for c in cells)
    chosen = choose(table([c for c in cells if largest > c.N]), by=by)
    response, law = Response(chosen.fit), chosen.fit.law
    columns = table(cells)
    at = {v: columns[v] for v in chosen.fit.form.variables}
    predicted = np.asarray(coverage(law, chosen.fit.predict(**at).value))
    big = columns["N"] == largest
    held = [c for c in cells if largest == c.N]
    rows, single = [], []
    for budget in budgets:
        for asked in queries:
            picks = rules(cells, predicted, budget, asked, tokens)
            if picks["plan"] is None:
                continue
            cell = cells[picks["plan"]]
            others = {n: cells[i].measured for n, i in picks.items() if n != "plan" and i is not None}
            reach = max(c.measured for c in cells if cost(c, asked, tokens) <= budget)
            rows.append(said(response, cell) | others | {"budget": budget, "queries": asked, "best": reach})
            inside = rules(held, predicted[big], budget, asked, tokens)["plan"]
            if inside is not None:
                single.append(said(response, held[inside]))
    return {
        "law": law, "reasons": chosen.reasons, "rows": distinct(rows), "all": rows, "held": distinct(single),
    }  # fmt: skip


def said(response: Response, cell: Cell) -> dict[str, Any]:
    """What was predicted of a cell, beside what was measured."""
    at = {"N": cell.N, "D": cell.D, "post": cell.post, "k": cell.k}
    made = response.predict(at, LEVEL)
    ends = np.sort(coverage(response.fit.law, np.array([made.low, made.high])))
    return {
        **at, "predicted": float(coverage(response.fit.law, made.value)), "low": float(ends[0]),
        "high": float(ends[1]), "measured": cell.measured,
        "inside": bool(ends[0] <= cell.measured <= ends[1]),
    }  # fmt: skip


def distinct(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each split."""
    return list({(r["N"], r["D"], r["post"], r["k"]): r for r in rows}.values())
