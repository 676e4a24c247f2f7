"""The figures of a ladder's laws. Each takes a law's results and gives a plot, or None for nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from flopwise.report.figures import SERIES, both, loss_text, one, share_text
from flopwise.report.format import count, flop, plain, tick, with_error
from flopwise.report.runs import number
from flopwise.report.svg import Plot, linear_axis, log_axis

__all__ = [
    "NARROW",
    "WIDE",
    "both",
    "compute",
    "one",
    "one_variable",
    "ramp",
    "residuals",
    "size_name",
    "target_words",
    "tip",
    "tokens",
    "variant_colours",
]  # fmt: skip

WIDE, NARROW = 880.0, 358.0


def target_words(target: str) -> str:
    """The name of an axis for what a law predicts.

    >>> target_words("loss_kjv"), target_words("bpb")
    ('held-out loss on kjv, nats per token', 'bits per byte, held-out')
    """
    kind, _, corpus = target.partition("_")
    on = f" on {corpus}" if corpus else ""
    return {
        "loss": f"held-out loss{on}, nats per token", "bpb": f"bits per byte{on}, held-out",
        "accuracy": f"accuracy{on}", "error": f"error{on}",
    }.get(kind, target)  # fmt: skip


def variant_colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each variant."""
    return {name: f"s{i % SERIES}" for i, name in enumerate(names)}


def ramp(values: Sequence[Any]) -> dict[Any, str]:
    """A colour of the ordered ramp for each size or budget, light to dark."""
    ordered = sorted({v for v in values if v is not None})
    return {v: f"r{round(i * 6 / max(1, len(ordered) - 1))}" for i, v in enumerate(ordered)}


def size_name(q: dict[str, Any], narrow: bool = False) -> str:
    width = number(q.get("width"))
    if width is None:
        return f"{count(q.get('N'))} parameters" if q.get("N") else "held out"
    return f"w {width:g}" if narrow else f"width {width:g}"


def tip(q: dict[str, Any], value: float, what: str = "") -> str:
    lines = [what or f"{q.get('variant', '')} {size_name(q)}".strip(), with_error(value, q.get("se"))]
    lines.append(f"{count(q.get('N'))} parameters, {count(q.get('D'))} tokens")
    if q.get("C"):
        lines.append(flop(q["C"]))
    if q.get("residual") is not None:
        lines.append(f"{100 * q['residual']:+.2f}% from the law".replace("-", "−"))
    return "\n".join(lines)


def _tests(entry: dict[str, Any], x: str, variant: str | None = None) -> list[dict[str, Any]]:
    """Tested predictions, and those not tested yet, that have a place on axis `x`."""
    rows = [*entry["verification"], *(p for p in entry["predictions"] if not p.get("tested"))]
    kept = [t for t in rows if number(t.get(x)) and number(t.get("predicted", t.get("value"))) is not None]
    return [t for t in kept if variant is None or str(t.get("variant") or variant) == variant]


def _ends(t: dict[str, Any]) -> tuple[float, float] | None:
    low, high = number(t.get("low")), number(t.get("high"))
    return None if low is None or high is None else (low, high)


def _reach(values: list[float], tests: list[dict[str, Any]]) -> list[float]:
    """What an axis has to hold; the ends of wide intervals widen it by half at most."""
    found = [number(t.get(k)) for t in tests for k in ("predicted", "value", "measured")]
    hard = values + [v for v in found if v is not None]
    ends = [e for t in tests for e in _ends(t) or ()]
    room = 0.5 * (max(hard) - min(hard))
    if not ends or not room:
        return hard + ends
    return [*hard, max(min(ends), min(hard) - room), min(max(ends), max(hard) + room)]


def value_text(target: str) -> Callable[[float], str]:
    """How a value of this target stands at an axis."""
    return share_text if target.startswith(("accuracy", "error")) else loss_text


def _draw_tests(plot: Plot, entry: dict[str, Any], tests: list[dict[str, Any]], x: str, narrow: bool) -> None:
    """Prediction hollow with its interval, measurement filled."""
    for t in tests:
        value = number(t.get("predicted", t.get("value"))) or 0.0
        if ends := _ends(t):
            whole = plot.y.low <= ends[0] and ends[1] <= plot.y.high
            plot.error(t[x], *ends, "held", cap=6 if whole else 0)
        low, high = number(t.get("low90")), number(t.get("high90"))
        said = f"predicted {plain(value)}"
        if low is not None and high is not None:
            said += f"\n90%: {plain(low)} to {plain(high)}"
        if ends:
            said += f"\n{100 * (number(t.get('level')) or 0.95):.0f}%: {plain(ends[0])} to {plain(ends[1])}"
        plot.dot(t[x], value, "held", said, style="hollow")
        measured = number(t.get("measured"))
        if measured is not None:
            plot.dot(t[x], measured, "held", tip(t, measured, "held out, measured"), "diamond", 5)
        if not narrow:
            at = value if measured is None else measured
            name = t.get("variant") if len(entry["variants"]) > 1 else size_name(t)
            plot.end_label(t[x], at, f"{name}, held out", "held")


def compute(entry: dict[str, Any], narrow: bool) -> Plot | None:
    """Loss against compute: points, the law's curves with bands, the held-out run."""
    points = [q for q in entry["points"] if q.get("C")]
    if not points or _of_something_else(entry):
        return None
    tests = _tests(entry, "C")
    many = len(entry["variants"]) > 1
    by = variant_colours(entry["variants"]) if many else ramp([q.get("N") for q in points])
    curves = [c for c in entry["curves"] if c["C"] is not None]
    xs = [q["C"] for q in points] + [t["C"] for t in tests]
    shown = [v for c in curves if not c["held_out"] for v in c["value"]]
    ys = _reach([q["y"] for q in points] + shown, tests)
    plot = Plot(
        log_axis(xs, "training compute C, FLOP (log)", tick, 3 if narrow else 6, pad=0.06),
        linear_axis(ys, target_words(entry["target"]), value_text(entry["target"]), 7),
        *((NARROW, 380) if narrow else (WIDE, 440)),
        right=22 if narrow else 140,
        title="Held-out loss against training compute, with the fitted law",
    )  # fmt: skip
    low, high = plot.x.low, plot.x.high
    for c in curves:
        rows = [r for r in zip(c["C"], c["value"], *_band(c), strict=True) if low <= r[0] <= high]
        rows = [r for r in rows if plot.y.low <= r[1] <= plot.y.high]
        colour = "held" if c["held_out"] else by.get(c["variant"] if many else c["N"], "ink")
        if c["held_out"] or not many:
            plot.band([(x, a, b) for x, _, a, b in rows], colour)
        plot.line([(x, y) for x, y, _, _ in rows], colour, "dash" if c["held_out"] else "thin")
    _points(plot, points, "C", by, many)
    if not narrow:
        _name_last(plot, points, "C", by, many)
    _draw_tests(plot, entry, tests, "C", narrow)
    return plot


def _band(c: dict[str, Any]) -> tuple[Any, Any]:
    return (c["low"], c["high"]) if c["held_out"] else (c["mean_low"], c["mean_high"])


def _points(plot: Plot, points: list[dict[str, Any]], x: str, by: dict[Any, str], many: bool) -> None:
    for q in points:
        colour = by.get(q["variant"] if many else q.get("N"), "ink")
        if q["se"] is not None:
            plot.error(q[x], q["y"] - q["se"], q["y"] + q["se"], f"{colour} faint")
        plot.dot(q[x], q["y"], colour, tip(q, q["y"]), r=3.6, style="" if q["fitted"] else "hollow")


def _name_last(plot: Plot, points: list[dict[str, Any]], x: str, by: dict[Any, str], many: bool) -> None:
    """Name each size beside its last run; with several variants the legend names them instead."""
    if many:
        return
    last: dict[Any, dict[str, Any]] = {}
    for q in sorted(points, key=lambda q: q[x]):
        last[q.get("N")] = q
    for N, q in last.items():
        plot.end_label(q[x], q["y"], size_name(q), by.get(N, "ink"))


def tokens(entry: dict[str, Any], variant: str, narrow: bool) -> Plot | None:
    """Loss against tokens of one variant, a curve per size."""
    points = [q for q in entry["points"] if q.get("D") and q["variant"] == variant]
    if not points or _of_something_else(entry):
        return None
    tests = _tests(entry, "D", variant)
    curves = [c for c in entry["curves"] if c["variant"] == variant]
    by = ramp([q.get("N") for q in points])
    shown = [v for c in curves if not c["held_out"] for v in c["value"]]
    ys = _reach([q["y"] for q in points] + shown, tests)
    xs = [q["D"] for q in points] + [t["D"] for t in tests] + [d for c in curves for d in c["D"]]
    panel = len(entry["variants"]) > 1
    size = (NARROW, 360) if narrow or panel else (WIDE, 440)
    plot = Plot(
        log_axis(xs, "training tokens D (log)", tick, 4 if narrow or panel else 7, pad=0.0),
        linear_axis(ys, target_words(entry["target"]), value_text(entry["target"]), 7),
        *size,
        right=56 if narrow or panel else 170,
        title=f"Held-out loss against training tokens for each size, {variant}",
    )
    for c in curves:
        inside = [
            r for r in zip(c["D"], c["value"], *_band(c), strict=True) if plot.y.low <= r[1] <= plot.y.high
        ]
        colour = "held" if c["held_out"] else by.get(c["N"], "ink")
        plot.band([(x, a, b) for x, _, a, b in inside], colour)
        plot.line([(x, y) for x, y, _, _ in inside], colour, "dash" if c["held_out"] else "")
        if inside and (c["unique"] is None or not c["held_out"]):
            words = size_name(c, narrow or panel)
            tail = "" if narrow or panel else f" · {count(c['N'])}"
            tail += f", {count(c['unique'])} unique" if c["unique"] and not (narrow or panel) else ""
            plot.end_label(inside[-1][0], inside[-1][1], words + tail, colour)
    _points(plot, points, "D", by, False)
    _draw_tests(plot, entry, tests, "D", True)
    return plot


def _of_something_else(entry: dict[str, Any]) -> bool:
    """Whether the law is one of a single variable that is neither compute nor tokens, as accuracy of loss."""
    return bool(entry.get("line")) and entry["line"]["variable"] not in ("C", "D")


def one_variable(entry: dict[str, Any], narrow: bool) -> Plot | None:
    """A law of one variable: its target over that variable."""
    line = entry["line"]
    if not line or not _of_something_else(entry):
        return None
    points = [q for q in entry["points"] if q.get(line["variable"]) is not None]
    x, said = line["variable"], value_text(entry["target"])
    tests = _tests(entry, x)
    many = len(entry["variants"]) > 1
    by = variant_colours(entry["variants"]) if many else ramp([q.get("N") for q in points])
    xs = [q[x] for q in points] + [t[x] for t in tests]
    plot = Plot(
        linear_axis(xs, target_words(x), value_text(x), 4 if narrow else 7)
        if max(xs) < 5 * min(xs)
        else log_axis(xs, f"{target_words(x)} (log)", tick, 4 if narrow else 7),
        linear_axis(_reach([q["y"] for q in points], tests), target_words(entry["target"]), said, 6),
        *((NARROW, 320) if narrow else (WIDE, 360)),
        right=22 if narrow else 140,
        title=f"{target_words(entry['target'])} against {x}, with the fitted law",
    )
    plot.band(list(zip(line["x"], line["low"], line["high"], strict=True)), "ink")
    plot.line(list(zip(line["x"], line["value"], strict=True)), "ink", "thin")
    _points(plot, points, x, by, many)
    _draw_tests(plot, entry, tests, x, narrow)
    return plot


def residuals(entry: dict[str, Any], narrow: bool) -> Plot | None:
    """How far each run lies from the law, in percent, over compute; the held-out run from its prediction."""
    points = [q for q in entry["points"] if q["residual"] is not None and q.get("C")]
    if len(points) < 3:
        return None
    tests = [t for t in _tests(entry, "C") if number(t.get("measured")) is not None and t["predicted"]]
    ys = [100 * q["residual"] for q in points] + [100 * (t["measured"] / t["predicted"] - 1) for t in tests]
    limit = 1.15 * max(0.1, *(abs(y) for y in ys))
    ends = [abs(100 * (e / t["predicted"] - 1)) for t in tests for e in _ends(t) or ()]
    limit = max(limit, min(1.08 * max(ends, default=0.0), 5 * limit))
    many = len(entry["variants"]) > 1
    by = variant_colours(entry["variants"]) if many else ramp([q.get("N") for q in points])
    plot = Plot(
        log_axis(
            [q["C"] for q in points + tests], "training compute C, FLOP (log)", tick, 3 if narrow else 6
        ),
        linear_axis([-limit, limit], "measured over the law, %", signed, 6),
        *((NARROW, 280) if narrow else (WIDE, 260)),
        right=22 if narrow else 140,
        title="Residuals of the fit over compute",
    )
    plot.line([(plot.x.low, 0.0), (plot.x.high, 0.0)], "ink", "thin")
    for t in tests:
        if span := _ends(t):
            a, b = (100 * (e / t["predicted"] - 1) for e in span)
            plot.error(t["C"], max(a, -limit), min(b, limit), "held", cap=6)
    for q in points:
        colour = by.get(q["variant"] if many else q.get("N"), "ink")
        plot.dot(q["C"], 100 * q["residual"], colour, tip(q, q["y"]), r=3.6)
    for t in tests:
        y = 100 * (t["measured"] / t["predicted"] - 1)
        plot.dot(t["C"], y, "held", tip(t, t["measured"], "held out, measured"), "diamond", 5)
    return plot


def signed(value: float) -> str:
    return f"{value:+.3g}".replace("-", "−") if abs(value) > 1e-9 else "0"
