"""Comparisons of strategies at test time as the report tells them: at equal FLOPs, paired by problem."""

from __future__ import annotations

from typing import Any

import numpy as np

from flopwise.records.record import RunRecord
from flopwise.report.runs import Runs, number

COMPARISON_FILE, EXAMPLES_FILE, LAW_FILE = "comparison.json", "examples.json", "law.json"
LAWS = ("thinking", "crossover")
"""Methods of laws that comparisons are asked; see `posttrain.testtime_laws`."""
CLEAR = 2.0
"""Standard errors from which on a difference is called one."""
SHOWN = 6
"""Examples of an entry."""


def collect_comparisons(runs: Runs) -> dict[str, Any]:
    """The `comparisons` part of the results: `entries`, `findings` in words, `laws`, what is `missing`."""
    found = [_entry(runs, r) for r in runs.find("evaluate", "compare")]
    laws = [
        law
        for r in runs.find("fit", "posttraining_law")
        if isinstance(law := runs.json(r, LAW_FILE), dict) and law.get("method") in LAWS
    ]
    missing = [
        f"{r.name or r.id} failed: {r.reason or 'no reason recorded'}."
        for r in runs.failed.values()
        if r.method == "compare"
    ]
    entries = [e for e in found if e["strategies"]]
    return {"entries": entries, "findings": findings(entries), "laws": laws, "missing": missing}


def _entry(runs: Runs, record: RunRecord) -> dict[str, Any]:
    content = runs.json(record, COMPARISON_FILE)
    content = content if isinstance(content, dict) else {}
    arrays = runs.arrays(record)
    model = runs.done.get(record.roles.get("model", ""))
    strategies = [_strategy(s) for s in content.get("strategies", [])]
    strategies = [s for s in strategies if s["points"]]
    values = {s["name"]: v for s in strategies if (v := arrays.get(f"curve_{s['name']}")) is not None}
    examples = runs.json(record, EXAMPLES_FILE)
    examples = examples if isinstance(examples, list) else []
    return {
        "name": (record.name or record.id).removeprefix("compare-"),
        "model": (model.name if model else None) or record.roles.get("model"),
        "n_params": number((record.model or {}).get("n_params_non_embedding")),
        "task": content.get("task"), "style": content.get("style"), "unit": content.get("unit", "FLOPs"),
        "n": content.get("n"), "problems": content.get("n_problems"), "greedy": content.get("greedy"),
        "total_flops": record.spend.total_flops, "seconds": record.spend.wall_s, "strategies": strategies,
        "frontier": content.get("frontier", []),
        "searches": _searches(strategies, values), "savings": _savings(strategies),
        "examples": [e for e in examples if isinstance(e, dict)][:SHOWN],
    }  # fmt: skip


def _strategy(content: dict[str, Any]) -> dict[str, Any]:
    needed = ("n", "value", "tokens")
    points = [q for q in content["points"] if all(number(q.get(key)) is not None for key in needed)]
    return {
        "name": str(content["name"]), "by": content.get("by"), "acts": bool(content.get("acts")),
        "points": points,
    }  # fmt: skip


def cost(point: dict[str, Any]) -> float:
    """FLOPs of a question, or tokens where nobody knows the model."""
    flops = number(point.get("flops"))
    return float(point["tokens"]) if flops is None else flops


def is_judged(s: dict[str, Any]) -> bool:
    """Whether a strategy chooses among whole samples by anything but the exact verifier."""
    return not s["acts"] and s["by"] != "verifier" and len(s["points"]) > 1


def is_search(s: dict[str, Any]) -> bool:
    """Whether it writes on from steps that a learned judge values: what has to beat best-of-n."""
    return bool(s["acts"] and s["by"] and str(s["by"]).partition("_")[0] in ("process", "reward", "probe"))


def _searches(strategies: list[dict[str, Any]], values: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Each budget of each search against best-of-n for the same FLOPs, its judge's included.

    The rival is, at each cost, the better of all that choose among samples by a judge that is no verifier;
    between two budgets it is credited with the line between them in log FLOPs, problem by problem, and beyond
    its largest with what that reached: a rival need not spend all it could.
    """
    rows = []
    rivals = [s for s in strategies if is_judged(s) and s["name"].startswith("best_of_n")]
    for s in filter(is_search, strategies):
        for i, point in enumerate(s["points"]):
            offers = [(r["name"], _between(r, values.get(r["name"]), cost(point))) for r in rivals]
            found = [(name, row) for name, row in offers if row is not None]
            if not found or s["name"] not in values:
                continue
            name, row = max(found, key=lambda f: f[1].mean())
            d = values[s["name"]][i] - row
            se = float(d.std(ddof=1) / np.sqrt(len(d)))
            rows.append({
                "name": s["name"], "n": point["n"], "cost": cost(point), "value": point["value"],
                "rival": name, "rival_value": float(row.mean()), "difference": float(d.mean()), "se": se,
                "clear": abs(float(d.mean())) >= CLEAR * se > 0,
            })  # fmt: skip
    return rows


def _between(s: dict[str, Any], values: np.ndarray | None, at: float) -> np.ndarray | None:
    """A strategy's chances [P] for at most a cost; None below its least budget."""
    costs = np.array([cost(q) for q in s["points"]])
    if values is None or at < costs[0]:
        return None
    if at >= costs[-1]:
        return np.asarray(values[-1])
    i = min(int(np.searchsorted(costs, at, side="right")), len(costs) - 1)
    share = np.log(at / costs[i - 1]) / np.log(costs[i] / costs[i - 1])
    return np.asarray((1 - share) * values[i - 1] + share * values[i])


def _savings(strategies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What share of its FLOPs those that act need to be as accurate as one that samples evenly is at its
    best, where more than one sample helped it; None where they never are."""
    rows = []
    for s in strategies:
        if not s["acts"]:
            continue
        for even in (e for e in strategies if not e["acts"] and len(e["points"]) > 1):
            last = max(even["points"], key=lambda q: (q["value"], -q["n"]))
            if last["n"] == 1:
                continue
            reached = _reaches(s["points"], last["value"])
            rows.append({
                "name": s["name"], "even": even["name"], "n": last["n"], "value": last["value"],
                "cost": cost(last), "reached": reached,
                "share": None if reached is None else reached / cost(last),
            })  # fmt: skip
    return rows


def _reaches(points: list[dict[str, Any]], value: float) -> float | None:
    """The least cost at which one is as accurate, in a line between budgets by log cost."""
    before = None
    for q in sorted(points, key=cost):
        if q["value"] >= value:
            if before is None or q["value"] == before["value"]:
                return cost(q)
            share = (value - before["value"]) / (q["value"] - before["value"])
            return float(np.exp((1 - share) * np.log(cost(before)) + share * np.log(cost(q))))
        before = q
    return None


def findings(entries: list[dict[str, Any]]) -> list[str]:
    """One sentence per comparison, from its numbers: the best, and whether search paid."""
    from flopwise.report.format import points

    out = []
    for e in entries:
        told = []
        rows = [r for r in e["searches"] if r["n"] > 1]
        if rows:
            wins = [r for r in rows if r["clear"] and r["difference"] > 0]
            losses = [r for r in rows if r["clear"] and r["difference"] < 0]
            best = max(rows, key=lambda r: r["difference"])
            told.append(
                f"search with a learned judge against best-of-n by the best of such judges, at equal FLOPs: "
                f"clearly better at {len(wins)} and clearly worse at {len(losses)} of {len(rows)} budgets; "
                f"most at {best['name']}, n = {best['n']}: {points(best['difference'], best['se'])} points "
                f"over {best['rival']}"
            )
        halves = [r for r in e["savings"] if r["share"] is not None and r["share"] <= 0.5]
        for r in sorted(halves, key=lambda r: r["share"])[:3]:
            told.append(
                f"{r['name']} is as accurate as {r['even']} with {r['n']} samples for {r['share']:.0%} of "
                "its FLOPs"
            )
        if told:
            out.append(f"{e['name']}: {'; '.join(told)}.")
    return out
