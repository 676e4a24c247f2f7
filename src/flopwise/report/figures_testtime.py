"""Figures of a comparison of strategies: accuracy against FLOPs and against the tokens of thinking."""

from __future__ import annotations

from typing import Any

from flopwise.report.figures import SERIES, share_text
from flopwise.report.format import flop, percent_range, tick
from flopwise.report.svg import Plot, linear_axis, log_axis
from flopwise.report.testtime import cost


def against_cost(entry: dict[str, Any], narrow: bool) -> Plot | None:
    """Accuracy of every strategy against what a question costs, with 95% bands where there is room; the
    frontier is drawn through its larger marks."""
    strategies = [s for s in entry["strategies"] if s["points"]]
    if not strategies:
        return None
    unit = entry["unit"]
    points = [q for s in strategies for q in s["points"]]
    spread = [q[end] for q in points for end in ("low", "high") if q.get(end) is not None and not narrow]
    plot = Plot(
        log_axis([cost(q) for q in points], f"{unit} of a question (log)", tick, 3 if narrow else 6),
        linear_axis([q["value"] for q in points] + spread, "accuracy", share_text),
        *((358, 420) if narrow else (880, 500)),
        right=20 if narrow else 210,
        title=f"Accuracy of the strategies of {entry['name']} against the {unit} of a question",
    )
    for i, s in enumerate(strategies):
        colour = f"s{i % SERIES}"
        rows = sorted(s["points"], key=cost)
        if not narrow:
            plot.band([(cost(q), q["low"], q["high"]) for q in rows if q.get("low") is not None], colour)
        plot.line([(cost(q), q["value"]) for q in rows], colour, "dash" if s["acts"] else "")
        for q in rows:
            shape = "diamond" if s["acts"] else "circle"
            plot.dot(cost(q), q["value"], colour, _tip(s, q, unit), shape, 5 if q.get("frontier") else 3)
        if not narrow:
            plot.end_label(cost(rows[-1]), rows[-1]["value"], s["name"], colour)
    front = sorted((q for q in points if q.get("frontier")), key=cost)
    plot.line([(cost(q), q["value"]) for q in front], "ink", "thin faint")
    greedy = entry.get("greedy")
    if greedy:
        plot.dot(cost(greedy), greedy["value"], "ink", _tip({"name": "greedy"}, greedy, unit), r=5)
    return plot


def thinking(entry: dict[str, Any]) -> Plot | None:
    """Accuracy against the tokens of one trace, cut short or forced on."""
    budgets = [s for s in entry["strategies"] if s["name"].startswith("budget")]
    points = [q for s in budgets for q in s["points"]]
    if len(points) < 2:
        return None
    low = [q["low"] for q in points if q.get("low") is not None]
    high = [q["high"] for q in points if q.get("high") is not None]
    plot = Plot(
        log_axis([q["tokens"] for q in points], "tokens of a question (log)", tick, 5),
        linear_axis([q["value"] for q in points] + low + high, "accuracy", share_text),
        430, 320, right=18, title=f"Accuracy of {entry['name']} against tokens of thinking",
    )  # fmt: skip
    for i, s in enumerate(budgets):
        colour = f"s{i % SERIES}"
        rows = sorted(s["points"], key=lambda q: q["tokens"])
        plot.line([(q["tokens"], q["value"]) for q in rows], colour)
        for q in rows:
            if q.get("low") is not None:
                plot.error(q["tokens"], q["low"], q["high"], colour)
            plot.dot(q["tokens"], q["value"], colour, _tip(s, q, entry["unit"]), r=4)
    return plot


def _tip(s: dict[str, Any], q: dict[str, Any], unit: str) -> str:
    spent = flop(cost(q)) if unit == "FLOPs" else f"{cost(q):.3g} {unit}"
    share = percent_range(q["value"], q.get("low"), q.get("high"))
    return f"{s['name']}, n = {q['n']}\n{share}\n{spent}, {q['tokens']:.3g} tokens"
