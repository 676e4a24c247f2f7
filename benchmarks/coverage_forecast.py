"""How well is pass@k forecast? `python -m benchmarks.coverage_forecast --out FILE`.

Draws 100 and 1,000 of the samples of each published problem without replacement, forecasts pass@k for all of
them from those alone, and compares. Two sets: 10,000 samples of seven Pythia models on MATH (Brown et al.
2024), and all checkpoints of another set (Schaeffer et al. 2025) with 5,000 samples or more of each problem.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from flopwise.laws.counts import Counts
from flopwise.laws.coverage import forecast
from flopwise.laws.coverage_forms import FORMS

DATA = Path(__file__).parents[2] / "shared" / "data"
SEEN = (100, 1000)
LARGEST = 10_000
CHECKPOINT = ("benchmark", "model", "D")
FEW = 3
"""Draws with fewer solved problems are left out: nothing can be forecast from them."""


def groups(path: Path, by: tuple[str, ...], least: int, solved: int = 1) -> dict[str, Counts]:
    """Counts by group, of groups with `least` samples of every problem and `solved` problems solved."""
    rows: dict[str, list[tuple[int, int]]] = defaultdict(list)
    with open(path, newline="") as f:
        for row in csv.DictReader(f):
            rows[", ".join(row[name] for name in by)].append((int(row["n"]), int(row["c"])))
    found = {name: Counts.of(*np.array(pairs).T) for name, pairs in rows.items()}
    return {g: c for g, c in found.items() if c.n.min() >= least and (c.c > 0).sum() >= solved}


def trial(counts: Counts, seen: int, draws: int, seed: int) -> dict[str, Any] | None:
    """Errors and intervals of the forecasts of one group from `seen` samples of each problem."""
    k = int(min(counts.n.min(), LARGEST))
    truth, rng = float(counts.pass_at(k).mean()), np.random.default_rng(seed)
    kept: list[dict[str, float]] = []
    for draw in range(draws):
        thin = counts.thinned(seen, rng)
        if (thin.c > 0).sum() < FEW:
            continue
        made = forecast(thin, k, seed=draw)
        best = max(made.held_out, key=lambda name: made.held_out[name])
        errors = {name: value - truth for name, value in made.forms.items()}
        kept.append({
            **errors, "forecast": made.value - truth, "best held out": errors[best],
            "mean of forms": sum(errors.values()) / len(errors),
            "inside": made.low <= truth <= made.high, "width": made.high - made.low,
            "power": errors["power"], "default": made.form == "power",
        })  # fmt: skip
    if not kept:
        return None
    return {"k": k, "truth": truth, "draws": kept}


def summary(tried: dict[str, dict[str, Any]], key: str, absolute: bool = True) -> float:
    """Mean over groups of the mean over draws."""
    each = [[abs(d[key]) if absolute else d[key] for d in t["draws"]] for t in tried.values()]
    return float(np.mean([np.mean(values) for values in each]))


def lines(title: str, tried: dict[int, dict[str, dict[str, Any]]], detail: bool) -> list[str]:
    """Tables of one data set."""
    out = [f"## {title}", ""]
    if detail:
        head = "".join(f" | from {n}: mean error | absolute | inside 95% | width" for n in tried)
        out += [f"| model | pass@{LARGEST}{head} |", "|---" * (2 + 4 * len(tried)) + "|"]
        for name in tried[SEEN[0]]:
            cells = [f"{tried[SEEN[0]][name]['truth']:.3f}"]
            for n in tried:
                only = {name: tried[n][name]}
                cells += [
                    f"{summary(only, 'forecast', False):+.3f}", f"{summary(only, 'forecast'):.3f}",
                    f"{summary(only, 'inside'):.0%}", f"{summary(only, 'width'):.2f}",
                ]  # fmt: skip
            out.append(f"| {name} | " + " | ".join(cells) + " |")
        out.append("")
    out += [
        "| mean over groups | " + " | ".join(f"from {n}" for n in tried) + " |",
        "|---" * (1 + len(tried)) + "|",
    ]

    def row(label: str, cells: list[str]) -> None:
        out.append(f"| {label} | " + " | ".join(cells) + " |")

    row("groups, draws", [f"{len(t)}, {sum(len(g['draws']) for g in t.values())}" for t in tried.values()])
    row("**absolute error of the forecast**", [f"**{summary(t, 'forecast'):.3f}**" for t in tried.values()])
    row("**95% interval holds the truth**", [f"**{summary(t, 'inside'):.0%}**" for t in tried.values()])
    row("width of the interval", [f"{summary(t, 'width'):.2f}" for t in tried.values()])
    row("the power form was kept", [f"{summary(t, 'default'):.0%}" for t in tried.values()])
    for name in FORMS:
        row(f"absolute error of {name} alone", [f"{summary(t, name):.3f}" for t in tried.values()])
    row(
        "of the form with the best held-out score",
        [f"{summary(t, 'best held out'):.3f}" for t in tried.values()],
    )
    row("of the mean of the five forms", [f"{summary(t, 'mean of forms'):.3f}" for t in tried.values()])
    return [*out, ""]


def page(data: Path, draws: int, seed: int) -> str:
    """The result page."""
    sets = {
        "Seven Pythia models on MATH (monkeys_math_pythia)": (
            groups(data / "monkeys_math_pythia" / "counts.csv", ("model",), LARGEST), draws, True,
        ),
        "Checkpoints on GSM8K and MATH (pythia_train_x_test), an independent check": (
            groups(data / "pythia_train_x_test" / "counts.csv", CHECKPOINT, LARGEST // 2, 20),
            max(draws // 10, 2), False,
        ),
    }  # fmt: skip
    text = [
        "# Forecasts of coverage",
        "",
        "pass@k of the same problems for all their samples (k = 10,000; in the second set 5,000 to 10,000),",
        "forecast from 100 or 1,000 of them, drawn without replacement, by `laws.coverage.forecast`.",
        f"Draws with fewer than {FEW} solved problems are left out. Made by",
        "",
        f"    python -m benchmarks.coverage_forecast --draws {draws} --seed {seed} --out FILE",
        "",
    ]
    for title, (counts, times, detail) in sets.items():
        tried: dict[int, dict[str, dict[str, Any]]] = {}
        for n in SEEN:
            done = {name: trial(c, n, times, seed + n) for name, c in counts.items()}
            tried[n] = {name: t for name, t in done.items() if t}
        text += lines(title, tried, detail)
    return "\n".join([*text, NOTES])


NOTES = """## What this says

- No form wins everywhere, and the samples do not tell which would: the form with the best held-out score does
  worse than the plain mean of the five, but for the second set from 1,000. That is why the power form, the
  published law, is kept unless held-out samples reject it, and why the interval holds all forms that are not
  rejected.
- On MATH from 100 samples the power form is the best. In most of the second set few problems are solved and
  pass@k still rises in proportion to k; there the power form promises too little, the forecast with it, and
  the mean of the forms would do better. The interval allows for that.
- The intervals are wider than the first set needs and about right for the second.
- No parameter, prior or constant was fitted to pass@10000. But the method was chosen with both sets in sight:
  the power form as the one to keep, and its likelihood over octaves of k (with that of the samples to
  the first success the error from 100 was .033 on the first set, 100 draws a model). So .029 flatters the
  method; the second set, which that choice does not favour, shows what else can happen.
"""


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "data", nargs="?", type=Path, default=DATA, help="folder with the two published tables"
    )
    parser.add_argument("--draws", type=int, default=40, help="draws per model in the first set")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="the page; standard output otherwise")
    args = parser.parse_args()
    for name in ("monkeys_math_pythia", "pythia_train_x_test"):
        if not (args.data / name / "counts.csv").is_file():
            sys.exit(
                f"coverage_forecast: {args.data / name / 'counts.csv'} does not exist; give the data's folder"
            )
    text = page(args.data, args.draws, args.seed)
    if args.out:
        args.out.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
