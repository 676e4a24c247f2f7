"""Write docs/results/pretraining_NAME.md and its figures from a finished ladder.

    python docs/ladder_results.py RUNS NAME [COMMAND]

RUNS is the folder of runs, or the results.json that `flopwise report` left beside its page. COMMAND is what
made the runs, if it was not `flopwise run pretraining-NAME`. All sentences are made from the numbers.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ladder_figures

from flopwise.report.format import count, flop, general, percent, plain, seconds, with_error
from flopwise.report.ladder_headline import off, told

DOCS = Path(__file__).parent


def main(runs: str, name: str, command: str = "") -> None:
    """Write the page and its figures."""
    from flopwise.report.collect import collect

    path = Path(runs)
    results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else collect(path)
    files = ladder_figures.draw(results, DOCS / "img", name)
    out = DOCS / "results" / f"pretraining_{name}.md"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page(results, name, command, files), encoding="utf-8")
    print(f"{out.relative_to(DOCS.parent)} and {len(files)} figures")


def page(results: dict[str, Any], name: str, command: str, files: dict[str, str]) -> str:
    """The page in Markdown."""
    parts = [
        _top(results, name, command), _run(results), _data(results), _predictions(results),
        *(_law(entry, files) for entry in results["ladders"]), _variants(files), _isoflop(results, files),
        _corpora(files), _search(results, files), _experts(results), _rungs(results), _kinds(),
        _caveats(results),
    ]  # fmt: skip
    return "\n".join(part.strip("\n") + "\n" for part in parts if part).replace("\u00a0", " ")


def table(head: Sequence[str], rows: Sequence[Sequence[Any]], numbers: bool = True) -> str:
    """A Markdown table; columns of numbers, all but the first, are set to the right."""
    marks = ["---", *("---:" if numbers else "---" for _ in head[1:])]
    safe = [[" ".join(str(cell).replace("|", "\\|").split()) for cell in row] for row in (head, marks, *rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in safe) + "\n"


def image(files: dict[str, str], key: str, alt: str) -> str:
    """A figure, if it was drawn."""
    return f"\n![{alt}](../img/{files[key]})\n" if key in files else ""


def _top(results: dict[str, Any], name: str, command: str) -> str:
    head = results["headline"]
    text = f"# Ladder: {name}\n\n"
    if head["answer"]:
        text += f"**{head['answer']}.** {head['expects'] or ''}\n\n"
    made = command or f"flopwise run pretraining-{name} --out {results['folder']}"
    text += f"    {made}\n    python docs/ladder_results.py {results['folder']} {name}\n"
    return text


def _run(results: dict[str, Any]) -> str:
    o, v, rungs = results["overview"], results["savings"], results["rungs"]
    ladder = [q for q in rungs["points"] if not q["held_out"] and not q["tuning"]]
    if not ladder:
        return ""
    sizes, tokens = sorted({q["N"] for q in ladder}), sorted({q["D"] for q in ladder})
    when = results["made"][:10]
    text = (
        f"## What was run\n\n{len(ladder)} measured runs of {len(sizes)} sizes ({_range(sizes)} "
        f"non-embedding parameters) on {_range(tokens)} tokens"
    )
    names = rungs["variants"]
    text += f", in {len(names)} variants ({', '.join(names)}).\n" if len(names) > 1 else ".\n"
    versions = ", ".join(f"{k} {n}" for k, n in o["versions"].items())
    text += f"Machine: {', '.join(o['devices']) or 'not recorded'}. {seconds(o['span_seconds'])} from first "
    text += f"start to last end, {seconds(o['worker_seconds'])} of work, {flop(o['total_flops'])} in all. "
    text += f"Page made on {when}; {versions}.\n"
    if o["failed"] or o["unfinished"]:
        text += f"{o['failed']} runs failed, {o['unfinished']} are unfinished.\n"
    if v["spent"] is not None:
        rows = [
            [
                row.get("variant") or "together", row["trunks"], row["branches"], flop(row["spent"]),
                f"{flop(row['separate'])} ({percent(row['ratio'], None, 0)})",
                f"{flop(row['grid'])} ({percent(row['grid_ratio'], None, 0)})" if row["grid"] else "",
            ]
            for row in [*v["by_variant"], *([v] if len(v["by_variant"]) > 1 else [])]
        ]  # fmt: skip
        head = [
            "variant", "trunks", "branches", "FLOPs spent", "as separate runs (share spent)",
            "as a plain grid (share spent)",
        ]  # fmt: skip
        text += "\n" + table(head, rows)
        text += (
            "\nSeparate runs and the grid were not made; their FLOPs are those of each branch with its whole "
            "lineage. The grid repeats every size as often as the most repeated. Held-out runs took "
            f"{flop(v['held_out'])} more"
        )
        text += f", the search of rates {flop(v['tuning'])}.\n" if v["tuning"] else ".\n"
    noise = rungs["noise"]
    if noise is not None:
        n = len(rungs["seed_noise"])
        text += f"\nNoise between seeds: {percent(noise, None, 2)} of the loss (root mean square over {n} "
        text += "rungs that were repeated).\n"
    return text


def _range(values: Sequence[float]) -> str:
    return count(values[0]) if values[0] == values[-1] else f"{count(values[0])} to {count(values[-1])}"


def _data(results: dict[str, Any]) -> str:
    sources = results["data"].get("sources") or []
    if not sources:
        return ""
    head = [
        "source", "modality", "documents", "tokens", "held-out tokens", "bytes per token",
        "near-duplicates removed", "licence",
    ]  # fmt: skip
    rows = [
        [
            s["name"], s["modality"], count(s["documents"]), count(s["tokens"]), count(s["heldout_tokens"]),
            general(s["bytes_per_token"]), count(s["duplicates"]), s["license"] or "",
        ]
        for s in sources
    ]  # fmt: skip
    return "## Data\n\n" + table(head, rows)


def _predictions(results: dict[str, Any]) -> str:
    tested = [(e, t) for e in results["ladders"] for t in e["verification"] if t.get("measured") is not None]
    if not tested:
        return ""
    rows = [
        [
            e["name"], t.get("run") or t.get("name"), plain(t["predicted"], 4), _ends(t, "low90", "high90"),
            _ends(t, "low", "high"), with_error(t["measured"], t.get("se"), 4), off(t),
            f"{t['C_ratio']:.2f}" if t.get("C_ratio") else "", _inside(t), _before(t),
        ]
        for e, t in tested
    ]  # fmt: skip
    head = [
        "law", "run", "predicted", "90% interval", "95% interval", "measured", "off by",
        "compute over the largest fitted", "inside 90%", "written before the start",
    ]  # fmt: skip
    text = "## Prediction against measurement\n\n" + table(head, rows)
    return text + "\n" + "\n".join(f"- {e['name']}: {told(e, t)}" for e, t in tested) + "\n"


def _ends(t: dict[str, Any], low: str, high: str) -> str:
    return f"{plain(t[low], 4)} to {plain(t[high], 4)}" if t.get(low) is not None else ""


def _inside(t: dict[str, Any]) -> str:
    return {True: "yes", False: "no"}.get(t.get("inside90"), "not told")


def _before(t: dict[str, Any]) -> str:
    before = t.get("before_start_s")
    return "not told" if before is None else seconds(before) if before >= 0 else "no: after it"


def _law(entry: dict[str, Any], files: dict[str, str]) -> str:
    text = f"## Law `{entry['name']}`\n"
    if entry["missing"]:
        text += "\n" + " ".join(entry["missing"]) + "\n"
    fit = entry["fit"]
    if fit:
        text += f"\nFitted: `{fit['formula']}` ({entry['law']}), target `{entry['target']}`; {fit['n']} "
        text += f"points of {fit['n_clusters']} independent runs; {fit['status'].replace('_', ' ')}.\n"
        text += image(files, f"law_{entry['name']}", f"The law {entry['name']} with its runs")
        rows = [[name, general(v), _interval(fit, name)] for name, v in fit["params"].items()]
        text += "\n" + table(["parameter", "value", "95% interval"], rows)
    if entry["candidates"]:
        head = ["form", "parameters", "back-test error (rms)", "inside", "scatter", "chosen"]
        rows = [
            [
                c["law"], c["parameters"], percent(c["backtest_rms"], None, 2),
                f"{c['backtest_inside']} of {c['backtest_points']}", percent(c["scatter"], None, 2),
                "yes" if c["chosen"] else "",
            ]
            for c in entry["candidates"]
        ]  # fmt: skip
        text += "\nForms compete at predicting the largest size from the smaller ones:\n\n"
        text += table(head, rows)
    if entry["comparison"]:
        head = [
            "variant", "against", "factor of compute saved", "95% interval", "loss at equal size and tokens",
        ]  # fmt: skip
        rows = [
            [
                c["variant"], c["against"], plain(c["factor"], 2),
                f"{plain(c['low'], 2)} to {plain(c['high'], 2)}", _matched(c),
            ]
            for c in entry["comparison"]
        ]  # fmt: skip
        text += "\n" + table(head, rows)
    if entry["optima"]:
        rows = [
            [count(o["N"]), count(o["D"]), _relative(o, "lr"), _relative(o, "batch"), plain(o["loss"], 4)]
            for o in entry["optima"]
        ]
        head = ["N", "D", "best rate (relative error)", "best batch, tokens (relative error)", "loss there"]
        text += "\nBest settings of each size and budget:\n\n" + table(head, rows)
    # What the fit itself warns of stands at the end of the page.
    notes = [note for note in entry["notes"] if note not in ((fit or {}).get("warnings") or [])]
    if notes:
        text += "\n" + "\n".join(f"- {note}" for note in notes) + "\n"
    return text


def _relative(row: dict[str, Any], name: str) -> str:
    if row[name] is None:
        return ""
    return f"{general(row[name])} (± {percent(row[f'{name}_se'], None, 0)})"


def _matched(c: dict[str, Any]) -> str:
    if c["matched_mean"] is None:
        return ""
    return f"{percent(c['matched_mean'], c['matched_se'], 2)} ({count(c['matched'])} pairs)"


def _interval(fit: dict[str, Any], name: str) -> str:
    ends = fit["intervals"].get(name)
    return f"{general(ends[0])} to {general(ends[1])}" if ends else "held"


def _variants(files: dict[str, str]) -> str:
    found = image(files, "variants", "Every variant against the compute it took")
    return "## Variants\n" + found if found else ""


def _isoflop(results: dict[str, Any], files: dict[str, str]) -> str:
    if not results["isoflop"]:
        return ""
    rows = []
    for curve in results["isoflop"]:
        found = [curve["exponents"].get(t) for t in ("N", "D")]
        cells = [
            f"{plain(e['value'], 2)} ({plain(e['low'], 2)} to {plain(e['high'], 2)})" if e else ""
            for e in found
        ]
        minima = f"{sum(b['N'] is not None for b in curve['budgets'])} of {len(curve['budgets'])}"
        rows.append([curve["variant"], curve["counted"] or "non-embedding, as executed", *cells, minima])
    head = [
        "variant", "counted", "exponent of N* in C (95%)", "exponent of D* in C (95%)",
        "budgets with a minimum",
    ]  # fmt: skip
    words = "Loss against size at equal compute"
    figures = [image(files, key, words) for key in files if key.startswith("isoflop")]
    warnings = {w for curve in results["isoflop"] for w in (*curve["warnings"], *curve["missing"])}
    notes = "".join(f"\n- {w}" for w in sorted(warnings))
    return "## Equal compute\n\n" + table(head, rows) + "".join(figures) + notes + "\n"


def _corpora(files: dict[str, str]) -> str:
    found = image(files, "corpora", "Held-out loss by corpus")
    return "## Corpus by corpus\n" + found if found else ""


def _search(results: dict[str, Any], files: dict[str, str]) -> str:
    if not results["tuning"]:
        return ""
    words = "\n".join(f"- {line}" for search in results["tuning"] for line in search["words"])
    figure = image(files, "tuning", "Loss against learning rate")
    return f"## The search before the ladder\n{figure}\n{words}\n"


def _experts(results: dict[str, Any]) -> str:
    best: dict[str, dict[str, Any]] = {}
    for e in results["experts"]:
        best.setdefault(e["variant"], e)
    if not best:
        return ""
    rows = [
        [
            name, e["width"], i, len(layer["shares"]), plain(layer["highest"], 2), plain(layer["lowest"], 2),
            layer["idle"],
        ]
        for name, e in best.items()
        for i, layer in enumerate(e["layers"], 1)
    ]  # fmt: skip
    head = [
        "variant", "width", "layer", "experts", "busiest, times an even share", "least used",
        "idle (below .1)",
    ]  # fmt: skip
    return "## Load of the experts\n\nOf each variant the run with the most compute.\n\n" + table(head, rows)


def _rungs(results: dict[str, Any]) -> str:
    points = results["rungs"]["points"]
    many = len(results["rungs"]["variants"]) > 1
    names = ["variant"] if many else []
    head = ["run", *names, "width", "N", "N total", "D", "D / N", "FLOPs", "6ND", "loss", "part"]
    rows = [
        [
            f"`{q['name']}`", *([q["variant"]] if many else []), q["width"], count(q["N"]),
            count(q["N_total"]), count(q["D"]), f"{q['D'] / q['N']:.3g}" if q["N"] else "", flop(q["C"]),
            flop(q["six_nd"]), with_error(q["loss"], q["se"], 4), _part(q),
        ]
        for q in points
    ]  # fmt: skip
    note = "N: non-embedding parameters. FLOPs: counted, of the whole lineage. "
    note += "Loss ± standard error over documents."
    return f"## Every rung\n\n{note}\n\n" + table(head, rows)


def _part(q: dict[str, Any]) -> str:
    """What a run was for."""
    for key, words in (("held_out", "held out"), ("tuning", "search"), ("fitted", "fitted")):
        if q[key]:
            return words
    return "not fitted"


def _kinds() -> str:
    rows = [
        ["losses, FLOPs, seconds", "measured", "FLOPs counted from executed shapes, on the machine named"],
        [
            "parameters, exponents, factors, predictions, intervals", "fitted",
            "from these runs alone; branches of one trunk are one cluster",
        ],
        ["FLOPs of separate runs and of the grid", "worked out", "nobody made those runs"],
        [
            "forms of laws, rules for rates", "published",
            "sources: `flopwise laws`; no published coefficient enters a fit",
        ],
        ["sizes, budgets, mixture, base rates", "assumed", "written in the recipe"],
    ]  # fmt: skip
    return "## What the numbers are\n\n" + table(["number", "is", "how"], rows, numbers=False)


def _caveats(results: dict[str, Any]) -> str:
    lines = []
    tests = [t for e in results["ladders"] for t in e["verification"]]
    runs = {t.get("run") or t.get("name") for t in tests}
    if len(runs) == 1:
        lines.append(
            "One held-out run, with one seed: it can refute a prediction, but one hit is weak evidence that "
            "intervals cover."
        )
    outside = [t for t in tests if t.get("inside90") is False]
    if outside:
        lines.append(
            f"{len(outside)} of {len(tests)} measurements lie outside their 90% interval: there the law is "
            "wrong at this scale."
        )
    late = [t for t in tests if (t.get("before_start_s") or 0) < 0]
    if late:
        lines.append(f"{len(late)} predictions were written after their run had begun; they prove nothing.")
    if results["rungs"]["noise"] is None:
        lines.append("No rung was repeated with another seed: the noise between seeds is not known here.")
    for e in results["ladders"]:
        lines += [f"Law `{e['name']}`: {w}." for w in (e["fit"] or {}).get("warnings") or []]
    lines += results["problems"]
    if len(results["rungs"]["variants"]) > 1 and not any(e["comparison"] for e in results["ladders"]):
        lines.append(
            "Variants were not compared by a fitted factor; read the figure with the noise between seeds in "
            "mind."
        )
    sizes = [q["N"] for q in results["rungs"]["points"]]
    if sizes:
        lines.append(
            f"The largest model here has {count(max(sizes))} non-embedding parameters; nothing is claimed "
            "beyond the held-out runs."
        )
    return "## What to doubt\n\n" + "".join(f"- {line}\n" for line in dict.fromkeys(lines))


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    main(*sys.argv[1:])
