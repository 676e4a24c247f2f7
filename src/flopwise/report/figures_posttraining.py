"""Figures of a post-training report: what methods gained for what they cost, and how they got there."""

from __future__ import annotations

from typing import Any

from flopwise.report.figures import SERIES, share_text
from flopwise.report.format import flop, percent, points, tick
from flopwise.report.svg import Plot, linear_axis, log_axis


def gains(section: dict[str, Any], narrow: bool) -> Plot | None:
    """Change of greedy accuracy from the start against FLOPs beyond it, two standard errors either way."""
    rows = [e for e in section["entries"] if e["change"].get("greedy") and e["beyond_flops"] > 0]
    if not rows:
        return None
    bars = {e["name"]: e["change"]["greedy"] for e in rows}
    ys = [0.0] + [c["value"] + s * 2 * c["se"] for c in bars.values() for s in (-1, 1)]
    plot = Plot(
        log_axis([e["beyond_flops"] for e in rows], "FLOPs spent beyond the start", tick, 3 if narrow else 6),
        linear_axis(ys, "change of greedy accuracy", share_text),
        *((358, 420) if narrow else (880, 480)),
        right=20 if narrow else 210,
        title="Change of greedy accuracy of every method against the FLOPs it spent",
    )
    plot.line([(plot.x.low, 0.0), (plot.x.high, 0.0)], "ink", "thin")
    for i, e in enumerate(rows):
        colour, change, x = f"s{i % SERIES}", bars[e["name"]], e["beyond_flops"]
        y = change["value"]
        plot.error(x, y - 2 * change["se"], y + 2 * change["se"], colour)
        tip = f"{e['name']} ({e['method']})\n{points(y, change['se'])} points\n"
        tip += f"{flop(x)}, {len(e['seeds'])} seeds"
        style = "hollow" if e["is_control"] else ""
        plot.dot(x, y, colour, tip, "diamond" if style else "circle", 4.5, style)
        if not narrow:
            plot.end_label(x, y, e["name"], colour)
    return plot


def along(entry: dict[str, Any]) -> Plot | None:
    """Validation accuracy along training, a line for each seed."""
    curves = [c for c in entry["curves"] if len(c["accuracy"]) > 1]
    if not curves:
        return None
    everything = [q for c in curves for q in c["accuracy"]]
    plot = Plot(
        linear_axis([q["flops"] for q in everything], "FLOPs spent", tick, 3, low=0.0),
        linear_axis([q["value"] for q in everything], "validation accuracy", share_text, 4),
        348, 220, right=18, title=f"Validation accuracy of {entry['name']} along training",
    )  # fmt: skip
    for i, curve in enumerate(curves):
        rows = curve["accuracy"]
        plot.line([(q["flops"], q["value"]) for q in rows], f"s{i % SERIES}")
        for q in rows:
            tip = f"seed {curve['seed']}\n{percent(q['value'])}\nafter {flop(q['flops'])}"
            plot.dot(q["flops"], q["value"], f"s{i % SERIES}", tip, "circle", 3.0)
    return plot


def proxy(entry: dict[str, Any]) -> Plot | None:
    """Reward, scaled to its range, and the share that is truly right, along reinforcement."""
    curves = [c for c in entry["curves"] if sum(q["gold"] is not None for q in c["reward"]) > 2]
    if not curves:
        return None
    rewards = [q["reward"] for c in curves for q in c["reward"] if q["reward"] is not None]
    low, high = min(rewards, default=0.0), max(rewards, default=1.0)
    scaled = high > 1.0 or low < 0.0
    top = max((q["gold"] or 0.0 for c in curves for q in c["reward"]), default=1.0)

    def shown(value: float) -> float:
        return (value - low) / (high - low) * max(top, 0.1) if scaled and high > low else value

    everything = [q for c in curves for q in c["reward"]]
    ys = [q["gold"] for q in everything if q["gold"] is not None]
    ys += [shown(q["reward"]) for q in everything if q["reward"] is not None]
    plot = Plot(
        linear_axis([q["step"] for q in everything], "step", tick, 3, low=0.0),
        linear_axis(ys, "right (dashed); reward", share_text, 4),
        348, 220, right=18, title=f"Reward and truth of {entry['name']}",
    )  # fmt: skip
    for i, curve in enumerate(curves):
        rows = [q for q in curve["reward"] if q["reward"] is not None and q["gold"] is not None]
        plot.line([(q["step"], shown(q["reward"])) for q in rows], f"s{i % SERIES}")
        plot.line([(q["step"], q["gold"]) for q in rows], f"s{i % SERIES}", "dash")
    return plot
