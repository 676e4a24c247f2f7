"""Write docs/results/testtime_NAME.md and its figures from a finished comparison of strategies.

    python docs/testtime_results.py RUNS NAME [COMMAND]

RUNS is the folder of runs, or the results.json beside its report. COMMAND is what made the runs, if it was
not `flopwise run testtime-NAME`. All sentences are made from the numbers.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from ladder_results import table

from flopwise.laws.plotting import with_matplotlib
from flopwise.laws.plotting.figure import (
    BLUE,
    GREEN,
    INK,
    PURPLE,
    VERMILLION,
    Bars,
    Figure,
    Line,
    Mark,
    Note,
    Panel,
    Points,
    axis,
)
from flopwise.report.format import count, flop, percent, percent_range, points, seconds, with_error
from flopwise.report.testtime import cost

DOCS = Path(__file__).parent
COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, "#B8860B", "#56B4E9", "#8B4513", INK)
MOST_BUDGETS = 8


def main(runs: str, name: str, command: str = "") -> None:
    """Write the page and its figures."""
    from flopwise.report.collect import collect

    path = Path(runs)
    results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else collect(path)
    out = DOCS / "results" / f"testtime_{name}.md"
    out.parent.mkdir(parents=True, exist_ok=True)
    pictures: dict[str, list[str]] = {}
    for e in results["comparisons"]["entries"]:
        for kind, figure in (("", against_cost(e)), ("_thinking", thinking(e))):
            if figure is not None:
                picture = DOCS / "img" / f"testtime_{name}_{e['name']}{kind}.png"
                with_matplotlib.draw(figure).savefig(picture, dpi=110, metadata={"Software": None})
                pictures.setdefault(e["name"], []).append(picture.name)
    out.write_text(page(results, name, command, pictures), encoding="utf-8")
    print(f"{out.relative_to(DOCS.parent)} and {sum(map(len, pictures.values()))} figures")


def page(results: dict[str, Any], name: str, command: str, pictures: dict[str, list[str]]) -> str:
    """The page in Markdown."""
    o, s = results["overview"], results["comparisons"]
    versions = ", ".join(f"{k} {v}" for k, v in o["versions"].items())
    parts = [
        f"# Test time: {name}\n",
        f"    {command or f'flopwise run testtime-{name} --out testtime-{name}'}\n"
        f"    python docs/testtime_results.py testtime-{name} {name}\n",
        f"Machine: {', '.join(o['devices'])}. {seconds(o['span_seconds'])} from first start to last end, "
        f"{seconds(o['worker_seconds'])} of work, {flop(o['total_flops'])} in all; {o['done']} runs"
        f"{', ' + str(o['failed']) + ' failed' if o['failed'] else ''}. Page made on {results['made'][:10]}; "
        f"{versions}.\n",
        _bullets("What the comparisons say", s["findings"]),
        _bullets("Laws", [f"**{law['name']}** ({law['status']}): {law['text']}" for law in s["laws"]]),
        *(_entry(e, pictures.get(e["name"], [])) for e in s["entries"]),
        _models(results), KINDS,
    ]  # fmt: skip
    return "\n".join(part for part in parts if part).replace("\u00a0", " ")


def _bullets(title: str, lines: list[str]) -> str:
    return f"## {title}\n\n" + "\n".join(f"- {line}" for line in lines) + "\n" if lines else ""


def _entry(e: dict[str, Any], pictures: list[str]) -> str:
    size = f", {count(e['n_params'])} parameters without the tables" if e["n_params"] else ""
    greedy = e["greedy"]
    parts = [
        f"## {e['name']}\n",
        f"{e['model']}{size}: {e['problems']} problems of `{e['task']}`, asked {e['style']}; greedy "
        f"{percent_range(greedy['value'], greedy['low'], greedy['high'])}.\n",
        *(f"![Accuracy of {e['name']}](../img/{picture})\n" for picture in pictures),
        _accuracies(e), _costs(e), _searches(e), _savings(e), _example(e),
    ]  # fmt: skip
    return "\n".join(part for part in parts if part)


def _budgets(e: dict[str, Any]) -> list[int]:
    return sorted({q["n"] for s in e["strategies"] for q in s["points"]})[-MOST_BUDGETS:]


def _accuracies(e: dict[str, Any]) -> str:
    budgets = _budgets(e)
    rows = []
    for s in e["strategies"]:
        by = {q["n"]: q for q in s["points"]}
        cells = [f"`{s['name']}`"]
        for n in budgets:
            q = by.get(n)
            text = percent_range(q["value"], q.get("low"), q.get("high")) if q else ""
            cells.append(f"**{text}**" if q and q.get("frontier") else text)
        rows.append(cells)
    return (
        table(["accuracy [95%]", *(f"n = {n}" for n in budgets)], rows)
        + "\nIntervals are over problems. Bold: nothing cheaper is as accurate.\n"
    )


def _costs(e: dict[str, Any]) -> str:
    budgets = _budgets(e)
    rows = []
    for s in e["strategies"]:
        by = {q["n"]: q for q in s["points"]}
        told = [flop(cost(by[n])) if n in by else "" for n in budgets]
        rows.append([f"`{s['name']}`", *told])
    return table([f"{e['unit']} of a question", *(f"n = {n}" for n in budgets)], rows)


def _searches(e: dict[str, Any]) -> str:
    rows = []
    for q in e["searches"]:
        difference = points(q["difference"], q["se"])
        rows.append(
            [f"`{q['name']}`", q["n"], flop(q["cost"]), percent(q["value"]), f"`{q['rival']}`",
             percent(q["rival_value"]), f"**{difference}**" if q["clear"] else difference]
        )  # fmt: skip
    if not rows:
        return ""
    head = ["search", "n", "FLOPs", "accuracy", "best-of-n for the same FLOPs", "accuracy", "difference"]
    return (
        f"### Search against best-of-n\n\n{table(head, rows)}\nDifferences in points, paired by problem, ± "
        "one standard error; bold from two. The rival is the best-of-n by any judge but the verifier that is "
        "best for these FLOPs, its judge's included; between budgets it is taken on the line between them.\n"
    )


def _savings(e: dict[str, Any]) -> str:
    rows = [
        [f"`{q['name']}`", f"`{q['even']}`", q["n"], percent(q["value"]), percent(q["share"])]
        for q in e["savings"] if q["share"] is not None and q["share"] < 1
    ]  # fmt: skip
    head = ["strategy", "is as accurate as", "n", "accuracy", "for this share of its FLOPs"]
    return "### As accurate for less\n\n" + table(head, rows) if rows else ""


def _example(e: dict[str, Any]) -> str:
    shown = next((x for x in e["examples"] if x["steps"] and x["correct"]), None)
    if shown is None:
        return ""
    steps = [[f"`{s['text']}`", "holds" if s["ok"] else "wrong", s["why"]] for s in shown["steps"][:24]]
    return (
        f"### One trace, step by step\n\n`{shown['strategy']}`, n = {shown['n']}, to `{shown['prompt']}`:\n\n"
        + table(["step", "verdict", "remark"], steps, False)
    )


def _models(results: dict[str, Any]) -> str:
    rows = [
        [e["name"], e["method"], e["start"] or "", percent(e["greedy"]["value"], e["greedy"]["se"]),
         percent(e["pass_at_1"]["value"], e["pass_at_1"]["se"]), flop(e["spend"]["total_flops"])]
        for e in results["methods"]["entries"]
    ] + [
        [o["name"], o["method"], "", "",
         ", ".join(f"{k} {with_error(v['value'], v['se'])}" for k, v in o["metrics"].items()),
         flop(o["spend"]["total_flops"])]
        for o in results["methods"]["others"]
    ]  # fmt: skip
    head = ["run", "method", "from", "greedy", "pass@1, or what was measured", "its own FLOPs"]
    return "## Models and judges\n\n" + table(head, rows, False) if rows else ""


KINDS = """## What the numbers are

Accuracies are measured on held-out problems by an exact verifier. Strategies that choose among samples replay
from one set of them, exactly over all subsets where there is a formula; strategies that act are run once for
each budget. n is the budget in samples. FLOPs are counted: reading the prompt once, writing, and every
judge's pass; the verifier is a few lines of arithmetic and counts as nothing.
"""


def against_cost(e: dict[str, Any]) -> Figure | None:
    """Accuracy of every strategy against what a question costs."""
    rows = [(cost(q), q["value"]) for s in e["strategies"] for q in s["points"]]
    if not rows:
        return None
    marks: list[Mark] = []
    for i, s in enumerate(e["strategies"]):
        colour = COLOURS[i % len(COLOURS)]
        line = sorted((cost(q), 100 * q["value"]) for q in s["points"])
        x, y = (np.array(column) for column in zip(*line, strict=True))
        if len(line) > 1:
            marks.append(Line(x, y, colour, dashed=s["acts"]))
        marks.append(Points(x, y, colour, hollow=s["acts"]))
        marks.append(Note(float(x[-1]) * 1.04, float(y[-1]), s["name"], colour))
    panel = Panel(
        axis(np.array([x for x, _ in rows]), f"{e['unit']} of a question", log=True),
        axis(np.array([100 * y for _, y in rows]), "accuracy, %", log=False), marks,
    )  # fmt: skip
    note = "Solid: chosen among the same samples; dashed, hollow: strategies that act. With judges' FLOPs."
    return Figure(f"What each strategy makes of its FLOPs: {e['name']}", note, [panel])


def thinking(e: dict[str, Any]) -> Figure | None:
    """Accuracy against the tokens of one trace, cut short or forced on."""
    found = [q for s in e["strategies"] if s["name"].startswith("budget") for q in s["points"]]
    if len(found) < 2:
        return None
    found = sorted(found, key=lambda q: q["tokens"])
    x = np.array([q["tokens"] for q in found])
    y, low, high = (np.array([100 * q[key] for q in found]) for key in ("value", "low", "high"))
    marks: list[Mark] = [Bars(x, y, low, high, BLUE), Points(x, y, BLUE)]
    panel = Panel(
        axis(x, "tokens of a question", log=True),
        axis(np.concatenate([low, high]), "accuracy, %", log=False), marks,
    )  # fmt: skip
    note = "One trace; 95% intervals over problems."
    return Figure(f"Accuracy by tokens of thinking: {e['name']}", note, [panel])


if __name__ == "__main__":
    main(*sys.argv[1:])
