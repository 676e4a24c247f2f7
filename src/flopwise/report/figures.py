"""The figures of pretraining and post-training. Each takes a part of the results and gives a plot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from markupsafe import Markup

from flopwise.report.format import count, flop, percent, plain, tick, with_error
from flopwise.report.runs import number
from flopwise.report.svg import Plot, linear_axis, log_axis

SERIES = 8
"""Colours for things without an order."""


def both(draw: Callable[..., Plot | None], *args: Any) -> Markup:
    """A figure for laptops and one for phones; the style sheet shows the one that fits."""
    wide, narrow = draw(*args, False), draw(*args, True)
    if wide is None or narrow is None:
        return Markup("")
    return Markup(f'<div class="wide">{wide.render()}</div><div class="narrow">{narrow.render()}</div>')


def one(plot: Plot | None) -> Markup:
    """A figure small enough for both."""
    return Markup("" if plot is None else plot.render())


def share_text(value: float) -> str:
    """A tick of an accuracy axis."""
    return f"{100 * value:.3g}%"


def loss_text(value: float) -> str:
    """A tick of a loss axis.

    >>> loss_text(3.0), loss_text(3.25)
    ('3.0', '3.25')
    """
    return f"{value:.2f}".removesuffix("0")


def size_colours(section: dict[str, Any]) -> dict[float, str]:
    """A colour of the ordered ramp for each size N, light to dark; the held-out size has its own."""
    sizes = sorted({p["N"] for p in section["points"]})
    return {N: f"r{round(i * 6 / max(1, len(sizes) - 1))}" for i, N in enumerate(sizes)}


def _size_name(p: dict[str, Any]) -> str:
    return f"width {p['width']}" if p.get("width") else f"{count(p['N'])} parameters"


def _point_tip(p: dict[str, Any], extra: str = "") -> str:
    return (
        f"{p['name'] or p['id']}\nloss {with_error(p['loss'], p['se'])}\n"
        f"{count(p['N'])} parameters, {count(p['D'])} tokens\n"
        f"{flop(p['C'])}{extra}"
    )


def loss_tokens(section: dict[str, Any], narrow: bool) -> Plot | None:
    """Law 1: loss against tokens, one curve per size, the held-out run with its prediction."""
    points, curves, held, p = section["points"], section["curves"], section["held_out"], section["prediction"]
    if not points:
        return None
    everything = points + ([held] if held else [])
    xs = [q["D"] for q in everything] + [d for c in curves for d in c["D"]]
    ys = [q["loss"] for q in everything] + [
        v for c in curves for v in (c["low"] + c["high"] if c["held_out"] else c["mean_low"] + c["mean_high"])
    ]
    plot = Plot(
        log_axis(xs, "training tokens D (log)", tick, 4 if narrow else 7, pad=0.0),
        linear_axis(ys, "held-out loss, nats per token", loss_text, 7),
        *((358, 400) if narrow else (880, 460)),
        right=46 if narrow else 170,
        title="Held-out loss against training tokens for each model size",
    )
    colours = size_colours(section)
    for c in curves:
        colour = "held" if c["held_out"] else colours.get(c["N"], "ink")
        low, high = ("low", "high") if c["held_out"] else ("mean_low", "mean_high")
        plot.band(list(zip(c["D"], c[low], c[high], strict=True)), colour)
    for c in curves:
        colour = "held" if c["held_out"] else colours.get(c["N"], "ink")
        line = list(zip(c["D"], c["value"], strict=True))
        plot.line(line, colour, "dash" if c["held_out"] else "")
        words = f"w {c['width']}" if narrow and c["width"] else _size_name(c)
        tail = "" if narrow else f" · {count(c['N'])}" + (" held out" if c["held_out"] else "")
        plot.end_label(*line[-1], words + tail, colour)
    for q in points:
        colour = colours[q["N"]]
        if q["se"] is not None:
            plot.error(q["D"], q["loss"] - q["se"], q["loss"] + q["se"], colour)
        plot.dot(q["D"], q["loss"], colour, _point_tip(q))
    if p and number(p.get("low")) is not None and number(p.get("high")) is not None:
        plot.error(p["D"], p["low"], p["high"], "held", cap=6)
        tip = f"predicted before it was run\n{plain(p['value'])} [{plain(p['low'])}, {plain(p['high'])}]"
        plot.dot(p["D"], p["value"], "held", tip, r=4, style="hollow")
    if held:
        verdict = {
            True: "\ninside the predicted interval",
            False: "\noutside the predicted interval",
            None: "",
        }[held["inside"]]
        plot.dot(held["D"], held["loss"], "held", _point_tip(held, verdict), "diamond", 5)
    return plot


def loss_compute(section: dict[str, Any], narrow: bool) -> Plot | None:
    """Law 1: loss against measured training compute."""
    points, held, p = section["points"], section["held_out"], section["prediction"]
    if not points:
        return None
    everything = points + ([held] if held else [])
    interval = (
        [p["low"], p["high"]]
        if p and number(p.get("low")) is not None and number(p.get("high")) is not None
        else []
    )
    plot = Plot(
        log_axis(
            [q["C"] for q in everything] + ([p["C"]] if interval and number(p.get("C")) else []),
            "training compute C, FLOP (log)",
            tick,
            3 if narrow else 5,
        ),
        linear_axis([q["loss"] for q in everything] + interval, "held-out loss, nats per token", loss_text),
        *((358, 320) if narrow else (880, 340)),
        right=22 if narrow else 100,
        title="Held-out loss against training compute",
    )
    colours = size_colours(section)
    runs: dict[tuple[Any, Any], list[dict[str, Any]]] = {}
    for q in points:
        runs.setdefault((q["N"], q["seed"]), []).append(q)
    for (N, _), group in runs.items():
        plot.line([(q["C"], q["loss"]) for q in sorted(group, key=lambda q: q["C"])], colours[N], "thin")
    named: set[float] = set()
    for q in sorted(points, key=lambda q: -q["C"]):
        plot.dot(q["C"], q["loss"], colours[q["N"]], _point_tip(q))
        if q["N"] not in named and not narrow:
            named.add(q["N"])
            plot.text(q["C"], q["loss"], _size_name(q), colours[q["N"]], dx=9, dy=4)
    if interval and number(p.get("C")):
        plot.error(p["C"], p["low"], p["high"], "held", cap=6)
        plot.dot(
            p["C"],
            p["value"],
            "held",
            f"predicted {plain(p['value'])} [{plain(p['low'])}, {plain(p['high'])}]",
            style="hollow",
        )
    if held:
        plot.dot(held["C"], held["loss"], "held", _point_tip(held), "diamond", 5)
        if not narrow:
            plot.text(held["C"], held["loss"], f"{_size_name(held)} held out", "held", dx=11, dy=4)
    return plot


def method_colours(section: dict[str, Any]) -> dict[str, str]:
    """A colour for each method by id."""
    return {m["id"]: f"s{i % SERIES}" for i, m in enumerate(section["methods"])}


def methods(section: dict[str, Any], narrow: bool) -> Plot | None:
    """Law 2: test accuracy against the FLOPs a method spent; hollow: its equal-compute control."""
    rows = [m for m in section["methods"] if m["accuracy"] is not None and m["start"]["accuracy"] is not None]
    if not rows:
        return None
    colours = method_colours(section)
    ys = [
        v
        for m in rows
        for side in (m, m["start"], m["control"] or m)
        if side["accuracy"] is not None
        for v in (side["accuracy"] - (side["se"] or 0), side["accuracy"] + (side["se"] or 0))
    ]
    xs = (
        [0.0]
        + [m["spend"]["total_flops"] for m in rows]
        + [m["control"]["spend"]["total_flops"] for m in rows if m["control"]]
    )
    unit = linear_axis(xs, "FLOPs spent on the method", tick, 3 if narrow else 6, low=0.0)
    plot = Plot(
        unit,
        linear_axis(ys, "test accuracy, greedy", share_text),
        *((358, 400) if narrow else (880, 440)),
        right=20 if narrow else 250,
        title="Test accuracy against FLOPs spent, each method beside its equal-compute control",
    )
    for m in rows:
        colour, x, y = colours[m["id"]], m["spend"]["total_flops"], m["accuracy"]
        begin = (0.0, m["start"]["accuracy"])
        c = m["control"]
        if c and c["accuracy"] is not None:
            cx = c["spend"]["total_flops"]
            plot.line([begin, (cx, c["accuracy"])], colour, "dash thin")
            _measured(plot, cx, c, colour, f"control of {m['title']}: {c['title']}", "hollow")
        plot.line([begin, (x, y)], colour, "thin" if not c else "")
        _measured(plot, x, m, colour, m["title"])
        if not narrow:
            plot.end_label(x, y, f"{m['title']} of {m['start']['name'] or m['start']['id']}", colour)
    for start in {m["start"]["id"]: m["start"] for m in rows}.values():
        _measured(plot, 0.0, start, "ink", "start")
    return plot


def _measured(plot: Plot, x: float, side: dict[str, Any], colour: str, what: str, style: str = "") -> None:
    """A point with its standard error."""
    y, se = side["accuracy"], side["se"]
    if se is not None:
        plot.error(x, y - se, y + se, colour)
    tip = f"{what}\n{side['name'] or side['id']}\n{percent(y, se)} of {side['n']} problems"
    tip += f"\n{flop(x)}" if x else ""
    plot.dot(x, y, colour, tip, "circle" if not style else "diamond", 4.5 if not style else 4, style)


def validation(method: dict[str, Any], colour: str) -> Plot | None:
    """Law 2: validation accuracy along one method's training and its control's."""
    curve, control = method["curve"], (method["control"] or {}).get("curve") or []
    if len(curve) < 2:
        return None
    everything = curve + control
    ys = [q["accuracy"] + s * (q["se"] or 0) for q in everything for s in (-1, 1)]
    plot = Plot(
        linear_axis([q["flops"] for q in everything], "FLOPs spent", tick, 3, low=0.0),
        linear_axis(ys, "validation accuracy", share_text, 4),
        348,
        240,
        right=18,
        title=f"Validation accuracy of {method['title']} along training",
    )
    plot.line([(q["flops"], q["accuracy"]) for q in control], colour, "dash thin")
    plot.line([(q["flops"], q["accuracy"]) for q in curve], colour)
    for rows, style, what in ((control, "hollow", "control"), (curve, "", method["title"])):
        for q in rows:
            if q["se"] is not None:
                plot.error(q["flops"], q["accuracy"] - q["se"], q["accuracy"] + q["se"], f"{colour} faint")
            plot.dot(
                q["flops"],
                q["accuracy"],
                colour,
                f"{what}\n{percent(q['accuracy'], q['se'])}\nafter {flop(q['flops'])}",
                "diamond" if style else "circle",
                3.2,
                style,
            )
    return plot


def reinforcement(rl: dict[str, Any], narrow: bool) -> Plot | None:
    """Law 2: reward of each reinforcement step against FLOPs, the sigmoid through it."""
    points = [q for q in rl["points"] if q["flops"] > 0]
    if len(points) < 4:
        return None
    plot = Plot(
        log_axis(
            [q["flops"] for q in points], "FLOPs spent, training and sampling (log)", tick, 3 if narrow else 6
        ),
        linear_axis([q["reward"] for q in points], "mean reward", share_text),
        *((358, 300) if narrow else (880, 320)),
        right=20,
        title="Reward along reinforcement learning, and the sigmoid law",
    )
    for i, q in enumerate(points, 1):
        plot.dot(
            q["flops"],
            q["reward"],
            "s0",
            f"step {i}\nreward {percent(q['reward'])}\nafter {flop(q['flops'])}",
            r=2.6,
            style="light",
        )
    plot.line([(q["flops"], q["reward"]) for q in rl["line"]], "held", "" if rl["identified"] else "dash")
    return plot
