"""The figures of docs/results/pretraining_*.md, from the results of a finished ladder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from flopwise.laws.plotting import with_matplotlib
from flopwise.laws.plotting.figure import (
    BLUE,
    GREEN,
    INK,
    PURPLE,
    VERMILLION,
    Band,
    Bars,
    Figure,
    Line,
    Mark,
    Panel,
    Points,
    Rule,
    axis,
    in_columns,
    ramps,
    short,
)  # fmt: skip
from flopwise.report.figures_ladder import target_words
from flopwise.report.figures_rungs import lower_hull

DPI = 110
COLOURS = (BLUE, GREEN, PURPLE, "#B8860B", "#56B4E9", "#5f6670")
"""Of variants; vermillion is the held-out run's."""


def draw(results: dict[str, Any], folder: Path, name: str) -> dict[str, str]:
    """Write every figure that the results have something for; their file names by what they show."""
    made: dict[str, Figure | None] = {}
    for entry in results["ladders"]:
        if entry["curves"]:
            made[f"law_{entry['name']}"] = law(entry)
    made["variants"] = variants(results["rungs"])
    for i, curve in enumerate(results["isoflop"]):
        made[f"isoflop_{i}" if i else "isoflop"] = isoflop(curve)
    made["corpora"] = corpora(results["rungs"])
    for search in results["tuning"]:
        made["tuning"] = tuning(search)
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for key, figure in made.items():
        if figure is not None:
            files[key] = f"pretraining_{name}_{key}.png"
            with_matplotlib.draw(figure).savefig(folder / files[key], dpi=DPI, metadata={"Software": None})
    return files


def law(entry: dict[str, Any]) -> Figure | None:
    """Loss against compute and tokens with the fitted law, the held-out run, and the residuals below."""
    points = [q for q in entry["points"] if q.get("C") and q.get("D")]
    if not points:
        return None
    many = len(entry["variants"]) > 1
    keys = entry["variants"] if many else sorted({q["N"] for q in points})
    colours = dict(zip(keys, COLOURS * 4 if many else ramps(np.array(keys)), strict=False))
    line = entry["line"]
    if line and line["variable"] not in ("C", "D"):
        panels = [_over(entry, line, colours, many)]
    else:
        panels = [_against(entry, points, x, colours, many) for x in ("C", "D")]
    left = _residuals(entry, points, colours, many)
    note = f"{entry['law']}, fitted to {len(entry['points'])} runs."
    if not many:
        note += f" Dark to light: {short(min(keys), 3)} to {short(max(keys), 3)} parameters."
    if entry["verification"]:
        note += " Hollow: written down before the run; diamond: measured. Bands and bars: 95%."
    title = "The held-out run against its prediction" if entry["verification"] else "The law of the ladder"
    panels += [left] if left else []
    return Figure(title, note, panels, columns=len(panels))


def _over(entry: dict[str, Any], line: dict[str, Any], colours: dict[Any, str], many: bool) -> Panel:
    """A law of one variable, as accuracy of loss, over that variable."""
    x = line["variable"]
    points = [q for q in entry["points"] if q.get(x) is not None]
    tests = [t for t in entry["verification"] if t.get(x) and t.get("predicted")]
    at = np.array(line["x"])
    marks: list[Mark] = [
        Band(at, np.array(line["low"]), np.array(line["high"]), INK, opacity=0.14),
        Line(at, np.array(line["value"]), INK, width=1.4),
    ]
    marks += _measured(points, tests, x, colours, many)
    hard = [q["y"] for q in points] + [t[k] for t in tests for k in ("predicted", "measured")]
    soft = [t[k] for t in tests for k in ("low", "high") if t.get(k) is not None]
    percent = entry["target"].startswith(("accuracy", "error"))
    return Panel(
        axis([q[x] for q in points] + [t[x] for t in tests], target_words(x), False),
        axis(hard, target_words(entry["target"]), False, soft, percent=percent), marks,
    )  # fmt: skip


def _measured(
    points: list[dict[str, Any]], tests: list[dict[str, Any]], x: str, colours: dict[Any, str], many: bool
) -> list[Mark]:
    """Runs by variant or size, and held-out runs with what was predicted of them."""
    marks: list[Mark] = []
    for key, colour in colours.items():
        own = [q for q in points if (q["variant"] if many else q["N"]) == key]
        place = np.array([q[x] for q in own]), np.array([q["y"] for q in own])
        marks.append(Points(*place, colour, str(key) if many else ""))
    for t in tests:
        marks += _tested(t, x, t["predicted"], t["measured"], t.get("low"), t.get("high"))
    return marks


def _against(
    entry: dict[str, Any], points: list[dict[str, Any]], x: str, colours: dict[Any, str], many: bool
) -> Panel:
    tests = [t for t in entry["verification"] if t.get(x) and t.get("predicted")]
    marks: list[Mark] = []
    ys = [q["y"] for q in points] + [t[k] for t in tests for k in ("predicted", "measured")]
    soft = [t[k] for t in tests for k in ("low", "high") if t.get(k) is not None]
    xs = [q[x] for q in points] + [t[x] for t in tests]
    for c in entry["curves"]:
        if c[x] is None:
            continue
        values = {k: np.array(c[k]) for k in (x, "value", "low", "high", "mean_low", "mean_high")}
        kept = values["value"] <= max(ys) * 1.02
        colour = VERMILLION if c["held_out"] else colours.get(c["variant"] if many else c["N"], INK)
        low, high = ("low", "high") if c["held_out"] else ("mean_low", "mean_high")
        at = values[x][kept]
        if len(at) > 1:
            marks.append(Band(at, values[low][kept], values[high][kept], colour, opacity=0.14))
            marks.append(Line(at, values["value"][kept], colour, dashed=c["held_out"], width=1.4))
    marks += _measured(points, tests, x, colours, many)
    label = {"C": "training compute C (FLOP)", "D": "training tokens D"}[x]
    return Panel(axis(xs, label, True, n=4), axis(ys, target_words(entry["target"]), False, soft), marks)


def _tested(t: dict[str, Any], x: str, predicted: float, measured: float, low: Any, high: Any) -> list[Mark]:
    at = np.array([t[x]])
    marks: list[Mark] = []
    if low is not None and high is not None:
        marks.append(Bars(at, np.array([predicted]), np.array([low]), np.array([high]), VERMILLION))
    marks.append(Points(at, np.array([predicted]), VERMILLION, "predicted", hollow=True))
    marks.append(Points(at, np.array([measured]), VERMILLION, "held out, measured", "diamond"))
    return marks


def _residuals(
    entry: dict[str, Any], points: list[dict[str, Any]], colours: dict[Any, str], many: bool
) -> Panel | None:
    own = [q for q in points if q["residual"] is not None]
    if len(own) < 3:
        return None
    tests = [t for t in entry["verification"] if t.get("C") and t.get("predicted")]
    marks: list[Mark] = [Rule(0.0, dashed=False)]
    ys = [100 * q["residual"] for q in own]
    for q, y in zip(own, ys, strict=True):
        marks.append(Points(np.array([q["C"]]), np.array([y]), colours[q["variant"] if many else q["N"]]))
    for t in tests:
        ends = [100 * (t[k] / t["predicted"] - 1) for k in ("measured", "low", "high") if t.get(k)]
        marks += _tested(t, "C", 0.0, ends[0], *(ends[1:] if len(ends) == 3 else (None, None)))
        ys += ends
    measured = [100 * (t["measured"] / t["predicted"] - 1) for t in tests]
    near = max(map(abs, [100 * q["residual"] for q in own] + measured))
    reach = min(max(map(abs, ys)), 5 * near)
    return Panel(
        axis([q["C"] for q in own] + [t["C"] for t in tests], "training compute C (FLOP)", True),
        axis([-reach, reach], "measured over the law (%)", False), marks,
    )  # fmt: skip


def variants(rungs: dict[str, Any]) -> Figure | None:
    """Every variant at the compute it took."""
    what = rungs["measure"]
    points = [q for q in rungs["points"] if not q["tuning"] and q["C"]]
    if len(rungs["variants"]) < 2 or not points or what is None:
        return None
    marks: list[Mark] = []
    for name, colour in zip(rungs["variants"], COLOURS * 4, strict=False):
        own = [q for q in points if q["variant"] == name]
        edge = np.array(lower_hull([(q["C"], q[what]) for q in own]))
        marks.append(Line(edge[:, 0], edge[:, 1], colour))
        at = np.array([(q["C"], q[what]) for q in own])
        marks.append(Points(at[:, 0], at[:, 1], colour, name))
    x = axis([q["C"] for q in points], "training compute C (FLOP), as executed", True)
    y = axis([q[what] for q in points], target_words(what), False)
    return Figure(
        "Variants at the compute they took", "Line: the lower edge of a variant's runs.", [Panel(x, y, marks)]
    )


def isoflop(curve: dict[str, Any]) -> Figure | None:
    """Loss against size at equal compute."""
    budgets = [b for b in curve["budgets"] if b["points"]]
    if not budgets:
        return None
    marks: list[Mark] = []
    for b, colour in zip(budgets, ramps(np.arange(len(budgets))), strict=True):
        own = np.array([(q["N"], q["loss"]) for q in b["points"]])
        if b["curve"]:
            line = np.array(b["curve"])
            marks.append(Line(line[:, 0], line[:, 1], colour, width=1.3))
        marks.append(Points(own[:, 0], own[:, 1], colour, f"{short(b['C'], 3)} FLOP"))
        if b["N"] is not None:
            at = np.array([b["N"]]), np.array([b["loss"]])
            if b["low"] is not None:
                ends = np.array([b["low"]]), np.array([b["high"]])
                marks.append(Bars(*at, *ends, VERMILLION, sideways=True))
            marks.append(Points(*at, VERMILLION, "lowest", "diamond"))
    everything = [q for b in budgets for q in b["points"]]
    x = axis([q["N"] for q in everything], "parameters N", True)
    y = axis([q["loss"] for q in everything], "held-out loss (nats per token)", False)
    title = f"Equal compute, every size ({curve['counted'] or 'non-embedding parameters, FLOPs as executed'})"
    return Figure(title, "Parabolas in log N; bars: 95% interval of the best size.", [Panel(x, y, marks)])


def corpora(rungs: dict[str, Any]) -> Figure | None:
    """Loss on each corpus against compute."""
    names = rungs["corpora"]
    points = [q for q in rungs["points"] if not q["tuning"] and q["C"]]
    if len(names) < 2 or not points:
        return None
    panels = []
    for name in names:
        own = [q for q in points if name in q["corpora"]]
        marks: list[Mark] = []
        for variant, colour in zip(rungs["variants"], COLOURS * 4, strict=False):
            mine = [q for q in own if q["variant"] == variant]
            losses = np.array([q["corpora"][name]["loss"] for q in mine])
            label = variant if len(rungs["variants"]) > 1 else ""
            marks.append(Points(np.array([q["C"] for q in mine]), losses, colour, label))
        if own:
            y = axis([q["corpora"][name]["loss"] for q in own], "nats per token", False)
            panels.append(Panel(axis([q["C"] for q in own], "C (FLOP)", True, n=4), y, marks, title=name))
    panels = in_columns(panels, min(3, len(panels)))
    return Figure("Held-out loss by corpus", "Each point is one run.", panels, columns=min(3, len(panels)))


def tuning(search: dict[str, Any]) -> Figure | None:
    """Loss against the learning rate for each size of the search."""
    curves = [c for c in search["curves"] if len(c["points"]) > 1]
    if not curves:
        return None
    marks: list[Mark] = []
    ys: list[float] = []
    for c, colour in zip(curves, ramps(np.arange(len(curves))), strict=True):
        shown = [p for p in c["points"] if p["chosen"]] or c["points"]
        above = [100 * (p["loss"] / c["lowest"] - 1) for p in shown]
        ys += above
        if c["curve"]:
            line = np.array(c["curve"])
            marks.append(Line(line[:, 0], 100 * (line[:, 1] / c["lowest"] - 1), colour, width=1.3))
        xs = np.array([p["x"] for p in shown])
        marks.append(Points(xs, np.array(above), colour, f"width {c['width']}"))
    if search["rate_factor"]:
        marks.append(Rule(search["rate_factor"], upright=True, text=f"taken: {search['rate_factor']:.3g}"))
    x = axis([p["x"] for c in curves for p in c["points"]], "factor on all learning rates", True)
    y = axis(ys, "loss above the size's lowest (%)", False)
    return Figure("The search before the ladder", "One parabola per size in log rate.", [Panel(x, y, marks)])
