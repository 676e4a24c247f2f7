"""Write docs/results/posttraining_NAME.md and its figure from a finished post-training experiment.

    python docs/posttraining_results.py RUNS NAME [COMMAND]

RUNS is the folder of runs, or the results.json beside its report. COMMAND is what made the runs, if it was not
`flopwise run posttraining-NAME`. All sentences are made from the numbers.
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
    Mark,
    Note,
    Panel,
    Points,
    Rule,
    axis,
)
from flopwise.report.format import flop, percent, points, seconds, with_error
from flopwise.report.posttraining_headline import finding

DOCS = Path(__file__).parent
COLOURS = {"sft": BLUE, "rl": VERMILLION, "distill": GREEN, "preference": PURPLE, "rejection": "#B8860B"}
MEASURES = {"greedy": "greedy", "pass_at_1": "pass@1", "pass_at_16": "pass@16"}


def main(runs: str, name: str, command: str = "") -> None:
    """Write the page and its figure."""
    from flopwise.report.collect import collect

    path = Path(runs)
    results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else collect(path)
    out = DOCS / "results" / f"posttraining_{name}.md"
    out.parent.mkdir(parents=True, exist_ok=True)
    picture = DOCS / "img" / f"posttraining_{name}.png"
    figure = gains(results["methods"])
    if figure is not None:
        with_matplotlib.draw(figure).savefig(picture, dpi=110, metadata={"Software": None})
    out.write_text(page(results, name, command, picture.name if figure else None), encoding="utf-8")
    print(f"{out.relative_to(DOCS.parent)}{' and a figure' if figure else ''}")


def page(results: dict[str, Any], name: str, command: str, picture: str | None) -> str:
    """The page in Markdown."""
    o, s = results["overview"], results["methods"]
    versions = ", ".join(f"{k} {v}" for k, v in o["versions"].items())
    parts = [
        f"# Post-training: {name}\n",
        f"**{results['headline']['answer']}.** {results['headline']['expects']}\n" if results["headline"]["answer"] else "",
        f"    {command or f'flopwise run posttraining-{name} --out posttraining-{name}'}\n"
        f"    python docs/posttraining_results.py posttraining-{name} {name}\n",
        f"Machine: {', '.join(o['devices'])}. {seconds(o['span_seconds'])} from first start to last end, "
        f"{seconds(o['worker_seconds'])} of work, {flop(o['total_flops'])} in all; {o['done']} runs"
        f"{', ' + str(o['failed']) + ' failed' if o['failed'] else ''}. Page made on {results['made'][:10]}; {versions}.\n",
        f"![Change of greedy accuracy against FLOPs](../img/{picture})\n" if picture else "",
        _methods(s), _findings(s), _laws(s), _overoptimised(s), _others(s), _settings(s), KINDS,
    ]  # fmt: skip
    return "\n".join(part for part in parts if part).replace("\u00a0", " ")


def _methods(s: dict[str, Any]) -> str:
    rows = []
    for e in s["entries"]:
        cells = [f"{e['name']} ({e['method']})", e["start"] or "", len(e["seeds"])]
        for measure in MEASURES:
            change = e["change"].get(measure)
            cells.append(percent(e[measure]["value"], e[measure]["se"]))
            cells.append(_bold(change) if change else "")
        versus = e["versus"].get("greedy")
        cells += [_bold(versus) if versus else "", flop(e["beyond_flops"]), flop(e["spend"]["total_flops"])]
        rows.append(cells)
    head = ["run", "from", "seeds"]
    for words in MEASURES.values():
        head += [words, "change"]
    head += ["greedy against control", "FLOPs beyond the start", "of these its own"]
    return (
        "## Methods\n\n" + table(head, rows) + "\nChanges in points, paired by problem and seed, ± one standard "
        "error (other problems and other seeds together); bold from two standard errors. `control` runs spend "
        "what they are matched to on more of the same demonstrations.\n"
    )


def _bold(change: dict[str, Any]) -> str:
    text = points(change["value"], change["se"])
    return f"**{text}**" if change["clear"] else text


def _findings(s: dict[str, Any]) -> str:
    lines = [f"- **{e['name']}**: {finding(e)['text']}" for e in s["entries"] if e["change"]]
    return "## In words\n\n" + "\n".join(lines) + "\n" if lines else ""


def _laws(s: dict[str, Any]) -> str:
    lines = [f"- **{law['name']}** ({law['status']}): {law['text']}" for law in s["laws"]]
    return "## Laws\n\n" + "\n".join(lines) + "\n" if lines else ""


def _overoptimised(s: dict[str, Any]) -> str:
    """The turn-over of each learned reward, best of n and reinforcement."""
    parts = []
    for o in s["overoptimised"]:
        best = o["best_of_n"]
        rows = [
            [q["n"], f"{q['d']:.2f}", percent(q["gold"], q["gold_se"]), with_error(q["proxy"], q["proxy_se"], 2),
             percent(q["oracle"])]
            for q in best["curve"]
        ]  # fmt: skip
        turn, fit = best["turn_over"], best["fit"]
        parts.append(
            f"### {o['name']}: best of n\n\n"
            + table(["n", "sqrt KL", "right", "learned reward", "right if the checker chose"], rows)
            + f"\nFrom 1 to {' or '.join(str(n) for n in dict.fromkeys(turn['best_n']))} answers (the best number by "
            f"one half of the problems, judged on the other) the share that is right rises by "
            f"{points(turn['rise']['value'], turn['rise']['se'], '')} points; up to {best['curve'][-1]['n']} it falls by "
            f"{points(turn['fall']['value'], turn['fall']['se'], '')}. The law R0 + d (alpha - beta d) has alpha "
            f"{_with_interval(fit['alpha'])} and beta {_with_interval(fit['beta'])}, and its top at d = {fit['peak_d']:.2f} "
            f"({fit['peak_d_low']:.2f} to {fit['peak_d_high']:.2f}, 95%).\n"
        )
        for run in (o.get("rl") or {}).values():
            parts.append(_reinforced(o["name"], run))
    return "## Over-optimisation\n\n" + "\n".join(parts) if parts else ""


def _with_interval(p: dict[str, Any]) -> str:
    return f"{p['value']:.3f} ({p['low']:.3f} to {p['high']:.3f})"


def _reinforced(name: str, run: dict[str, Any]) -> str:
    curve, fit = run["curve"], run["fit"]
    size = max(1, len(curve) // 10)
    rows = []
    for i in range(0, len(curve), size):
        part = curve[i : i + size]
        mean = {key: float(np.mean([q[key] for q in part])) for key in ("gold", "proxy", "kl")}
        rows.append([f"{part[0]['step']:.0f} to {part[-1]['step']:.0f}", percent(mean["gold"]),
                     f"{mean['proxy']:.2f}", f"{mean['kl']:.2f}"])  # fmt: skip
    told = (
        f"Fitted to R0 + d (alpha - beta log d): alpha {_with_interval(fit['alpha'])}, beta {_with_interval(fit['beta'])}; "
        f"{fit['share_of_draws_that_turn']:.0%} of its draws turn over."
    )
    head = ["roll-outs", "right", "learned reward", "KL, nats"]
    return f"### {name}: reinforcement on it\n\n{table(head, rows)}\n{told}\n"


def _others(s: dict[str, Any]) -> str:
    rows = [
        [f"{o['name']} ({o['method']})", len(o["seeds"]),
         ", ".join(f"{k} {with_error(v['value'], v['se'])}" for k, v in o["metrics"].items()),
         flop(o["spend"]["total_flops"])]
        for o in s["others"]
    ]  # fmt: skip
    return "## Scorers and data\n\n" + table(["run", "seeds", "measured", "FLOPs"], rows, False) if rows else ""


def _settings(s: dict[str, Any]) -> str:
    left = ("rates", "val_problems")
    rows = [
        [e["name"], ", ".join(f"{k} {v}" for k, v in e["settings"].items() if k not in left)] for e in s["entries"]
    ]  # fmt: skip
    return "## Settings\n\n" + table(["run", "settings"], rows, False) if rows else ""


KINDS = """## What the numbers are

Accuracies are measured on held-out problems by an exact verifier; pass@k is the exact expectation over subsets
of the samples. FLOPs are counted from what was executed: training, sampling, scoring, reference, teacher and
judge passes; judging a model on held-out problems is no part of them. Laws are fitted to these runs alone.
"""


def gains(section: dict[str, Any]) -> Figure | None:
    """Change of greedy accuracy against FLOPs beyond the start."""
    rows = [e for e in section["entries"] if e["change"].get("greedy") and e["beyond_flops"] > 0]
    if not rows:
        return None
    marks: list[Mark] = [Rule(0.0)]
    ys = [0.0]
    for e in rows:
        c, x = e["change"]["greedy"], e["beyond_flops"]
        colour = INK if e["is_control"] else COLOURS.get(e["kind"], INK)
        y, low, high = (np.array([100 * (c["value"] + s * c["se"])]) for s in (0, -2, 2))
        ys += [float(low[0]), float(high[0])]
        marks.append(Bars(np.array([x]), y, low, high, colour))
        marks.append(Points(np.array([x]), y, colour, hollow=e["is_control"]))
        marks.append(Note(x * 1.04, float(y[0]), e["name"], colour))
    panel = Panel(
        axis(np.array([e["beyond_flops"] for e in rows]), "FLOPs beyond the start", log=True),
        axis(np.array(ys), "change of greedy accuracy, points", log=False), marks,
    )  # fmt: skip
    note = "Means over seeds, with two standard errors over problems and seeds; hollow: controls."
    return Figure("What each method gained for what it cost", note, [panel])


if __name__ == "__main__":
    main(*sys.argv[1:])
