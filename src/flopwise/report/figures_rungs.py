"""The figures of a ladder's runs: variants, equal compute, corpora, experts, the search of rates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from flopwise.report.figures import SERIES, both, loss_text, one
from flopwise.report.figures_ladder import NARROW, WIDE, ramp, size_name, target_words, tip, variant_colours
from flopwise.report.format import count, flop, percent, plain, tick, with_error
from flopwise.report.runs import number
from flopwise.report.svg import Plot, linear_axis, log_axis

__all__ = ["both", "corpus", "expert_load", "isoflop", "lower_hull", "one", "tuning", "variants"]


def isoflop(section: dict[str, Any], narrow: bool) -> Plot | None:
    """Loss against size, a parabola per compute budget, its minimum with the interval of N*."""
    budgets = [b for b in section["budgets"] if b["points"]]
    if not budgets:
        return None
    by = ramp([b["C"] for b in budgets])
    ys = [q["loss"] for b in budgets for q in b["points"]] + [y for b in budgets for _, y in b["curve"]]
    plot = Plot(
        log_axis(
            [q["N"] for b in budgets for q in b["points"]],
            "parameters N (log)",
            tick,
            3 if narrow else 7,
        ),
        linear_axis(ys, "held-out loss, nats per token", loss_text, 7),
        *((NARROW, 380) if narrow else (WIDE, 420)),
        right=70 if narrow else 140,
        title="Held-out loss against size at equal compute",
    )
    for b in budgets:
        colour = by[b["C"]]
        plot.line(b["curve"], colour, "thin")
        for q in b["points"]:
            if q["se"] is not None:
                plot.error(q["N"], q["loss"] - q["se"], q["loss"] + q["se"], f"{colour} faint")
            plot.dot(q["N"], q["loss"], colour, tip(q | {"C": b["C"]}, q["loss"]), r=3.6)
        if b["N"] is not None:
            if b["low"] is not None:
                ends = [min(max(e, plot.x.low), plot.x.high) for e in (b["low"], b["high"])]
                plot.line([(ends[0], b["loss"]), (ends[1], b["loss"])], "held", "thin")
            said = f"lowest at {count(b['N'])} parameters"
            said += f"\n95%: {count(b['low'])} to {count(b['high'])}" if b["low"] is not None else ""
            plot.dot(b["N"], b["loss"], "held", said, "diamond", 4.5)
        last = max(b["points"], key=lambda q: q["N"])
        plot.end_label(last["N"], last["loss"], flop(b["C"]), colour)
    return plot


def lower_hull(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The runs that no mixture of others beats: the convex lower edge in both logarithms, as far as it falls.

    >>> lower_hull([(1.0, 4.0), (2.0, 3.9), (4.0, 2.0), (4.0, 3.0), (8.0, 2.5)])
    [(1.0, 4.0), (4.0, 2.0)]
    """
    hull: list[tuple[float, float]] = []
    for p in sorted(points):
        if hull and p[1] >= hull[-1][1]:
            continue
        while hull and hull[-1][0] == p[0]:
            hull.pop()
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-2], p):
            hull.pop()
        hull.append(p)
    return hull


def _slope(a: tuple[float, float], b: tuple[float, float]) -> float:
    return math.log(b[1] / a[1]) / math.log(b[0] / a[0])


def variants(rungs: dict[str, Any], narrow: bool) -> Plot | None:
    """Every variant at the compute it took: points, and the lower edge of each."""
    what = rungs["measure"]
    points = [q for q in rungs["points"] if not q["tuning"] and q["C"]]
    if not 2 <= len(rungs["variants"]) <= SERIES or not points or what is None:
        return None
    by = variant_colours(rungs["variants"])
    plot = Plot(
        log_axis([q["C"] for q in points], "training compute C, FLOP (log)", tick, 3 if narrow else 6),
        linear_axis([q[what] for q in points], target_words(what), loss_text, 7),
        *((NARROW, 360) if narrow else (WIDE, 420)),
        right=22 if narrow else 150,
        title="Held-out loss of every variant against training compute",
    )
    for name in rungs["variants"]:
        mine = sorted((q for q in points if q["variant"] == name), key=lambda q: q["C"])
        best = lower_hull([(q["C"], q[what]) for q in mine])
        plot.line(best, by[name])
        for q in mine:
            shape = "diamond" if q["held_out"] else "circle"
            r = 4.2 if q["held_out"] else 3.4
            plot.dot(q["C"], q[what], by[name], tip(q, q[what], q["name"]), shape, r, "light")
        if best and not narrow:
            plot.end_label(*best[-1], name, by[name])
    return plot


def corpus(rungs: dict[str, Any], name: str) -> Plot | None:
    """Loss on one corpus against compute, by variant, or by size where there is one variant."""
    points = [q for q in rungs["points"] if not q["tuning"] and name in q["corpora"] and q["C"]]
    points = [q for q in points if q["corpora"][name]["loss"] is not None]
    if len(points) < 2:
        return None
    many = 2 <= len(rungs["variants"]) <= SERIES
    by = variant_colours(rungs["variants"]) if many else ramp([q["N"] for q in points])
    plot = Plot(
        log_axis([q["C"] for q in points], "C, FLOP (log)", tick, 3),
        linear_axis([q["corpora"][name]["loss"] for q in points], "nats per token", loss_text, 5),
        NARROW, 260, right=18, title=f"Held-out loss on {name} against training compute",
    )  # fmt: skip
    series: dict[Any, list[dict[str, Any]]] = {}
    for q in points:
        series.setdefault((q["variant"], q["width"], q["seed"], q["held_out"]), []).append(q)
    for mine in series.values():
        mine.sort(key=lambda q: q["C"])
        q = mine[0]
        colour = by.get(q["variant"] if many else q["N"], "ink") if many or not q["held_out"] else "held"
        plot.line([(q["C"], q["corpora"][name]["loss"]) for q in mine], colour, "thin faint")
        for q in mine:
            at = q["corpora"][name]
            bits = f"\n{plain(at['bpb'])} bits per byte" if at["bpb"] is not None else ""
            words = f"{q['name']}\n{with_error(at['loss'], at['se'])}{bits}\n{flop(q['C'])}"
            plot.dot(q["C"], at["loss"], colour, words, "diamond" if q["held_out"] else "circle", 3.2)
    return plot


def general(value: float) -> str:
    """A tick without digits that say nothing."""
    return f"{value:g}"


def expert_load(layer: dict[str, Any], number_of: int) -> Plot | None:
    """Tokens of each expert of a layer, against an even share."""
    shares = sorted(layer["shares"], reverse=True)
    n = len(shares)
    top = max(2.0, 1.1 * shares[0] * n)
    plot = Plot(
        linear_axis([0.0, n], f"experts of layer {number_of}, busiest first", general, 4, low=0.0, high=n),
        linear_axis([0.0, top], "times an even share", general, 4, low=0.0, high=top),
        NARROW, 190, right=10, title=f"Load of the experts of layer {number_of}",
    )  # fmt: skip
    for i, share in enumerate(shares):
        gap = 0.12 if n <= 64 else 0.0
        plot.column(i + gap, i + 1 - gap, share * n, "s0", f"{percent(share)} of the tokens")
    plot.line([(0.0, 1.0), (float(n), 1.0)], "ink", "dash thin")
    return plot


def tuning(search: dict[str, Any], narrow: bool) -> Plot | None:
    """Loss against the factor on all rates, a curve per size; at the foot the intervals of the best."""
    curves = [c for c in search["curves"] if len(c["points"]) > 1]
    if not curves:
        return None
    by = ramp([c["width"] for c in curves])
    chosen = number(search["rate_factor"])

    def above(c: dict[str, Any], loss: float) -> float:
        # Losses of different sizes lie far apart: each is shown by its distance from its own lowest.
        return 100 * (loss / c["lowest"] - 1)

    ys = [above(c, p["loss"]) for c in curves for p in c["points"]]
    room = 0.06 * len(curves) * max(1e-3, max(ys) - min(ys))
    xs = [p["x"] for c in curves for p in c["points"]]
    plot = Plot(
        log_axis([*xs, chosen or xs[0]], "factor on all learning rates (log)", general, 4 if narrow else 7),
        linear_axis([min(ys) - room, max(ys)], "loss above the size's lowest, %", general, 5),
        *((NARROW, 320) if narrow else (WIDE, 360)),
        right=60 if narrow else 120,
        title="Loss against learning rate for each size of the search",
    )
    if chosen:
        plot.vertical(chosen, f"taken: {chosen:.3g}")
    for i, c in enumerate(curves):
        colour = by[c["width"]]
        line = [(x, above(c, y)) for x, y in c["curve"]]
        plot.line([q for q in line if plot.y.low <= q[1] <= plot.y.high], colour, "thin")
        for p in c["points"]:
            words = f"width {c['width']}, factor {p['x']:g}\nbatch {p['batch']}\nloss {plain(p['loss'])}"
            plot.dot(p["x"], above(c, p["loss"]), colour, words, r=3.6, style="" if p["chosen"] else "hollow")
        last = max((p for p in c["points"] if p["chosen"]), key=lambda p: p["x"], default=c["points"][-1])
        plot.end_label(last["x"], above(c, last["loss"]), size_name(c, narrow), colour)
        if c["best"]:
            foot = plot.y.low + room * (i + 0.6) / (len(curves) + 0.6)
            ends = [min(max(e, plot.x.low), plot.x.high) for e in (c["low"] or 0.0, c["high"] or plot.x.high)]
            plot.line([(ends[0], foot), (ends[1], foot)], colour)
            said = f"width {c['width']}: best at {c['best']:.3g}"
            said += f"\n95%: {c['low']:.3g} to {c['high']:.3g}" if c["low"] and c["high"] else ""
            plot.dot(c["best"], foot, colour, said, "diamond", 3.6)
    return plot
