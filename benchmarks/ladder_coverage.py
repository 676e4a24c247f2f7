"""Do a ladder's prediction intervals hold runs at four times its compute? And are mistuned rungs named?

    python -m benchmarks.ladder_coverage [--draws 200] [--out docs/results/ladder_coverage.md]

Each draw is a ladder of five widths by three budgets around a known Chinchilla law: one trunk per width,
whose noise its three branches share, and noise of each branch's own; the two smallest widths are repeated
with two more seeds. The law is fitted as a ladder recipe fits it, and asked for a new run at four times the
largest compute, whose own noise counts. A stopped run goes on from benchmarks/results/ladder_coverage.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flopwise.flops.count import count_params
from flopwise.laws import choose, fit
from flopwise.models.config import ModelConfig
from flopwise.pretrain.mistuned import shifts
from flopwise.pretrain.noise import carry, seed_noise

WIDTHS, BUDGETS = (32, 48, 64, 96, 128), (1e6, 2e6, 4e6)
BEYOND = 192
TRUTH = {"E": 1.6, "A": 16.0, "alpha": 0.28, "B": 600.0, "beta": 0.45}
"""Losses from 3.7 to 2.7, as small ladders of text have them."""
LEVELS = (0.90, 0.95)
NOISE = {
    "shared": (0.004, 0.002, 0.0), "falls with width": (0.004, 0.002, -1.0),
    "each its own": (0.0, 0.0045, 0.0), "grows with width": (0.004, 0.002, 0.5),
}  # fmt: skip
"""Standard deviation between trunks, between branches, and the exponent of both in width (from width 64)."""
N = {w: float(count_params(ModelConfig.from_width(w, 2, 512, 128)).non_embedding) for w in (*WIDTHS, BEYOND)}
Table = dict[str, np.ndarray]


def loss(n: float, d: float) -> float:
    """The law."""
    return TRUTH["E"] + TRUTH["A"] / n ** TRUTH["alpha"] + TRUTH["B"] / d ** TRUTH["beta"]


def ladder(
    rng: np.random.Generator, noise: tuple[float, float, float], repeats: Mapping[int, int],
    bad: tuple[int, float] | None = None,
) -> Table:  # fmt: skip
    """A ladder's table; `bad`: a width and how much its loss is raised."""
    rows = []
    for w in WIDTHS:
        trunk, branch = (s * (w / 64) ** noise[2] for s in noise[:2])
        for seed in range(repeats.get(w, 1)):
            shared = rng.normal(0, 1) * trunk + (bad[1] if bad and bad[0] == w else 0.0)
            for d in BUDGETS:
                y = loss(N[w], d) * np.exp(shared + rng.normal(0, 1) * branch)
                rows.append((w, N[w], d, y, f"w{w}-s{seed}", seed))
    names = ("width", "N", "D", "loss", "run", "seed")
    return {name: np.array(values) for name, values in zip(names, zip(*rows, strict=True), strict=True)}


def new_run(rng: np.random.Generator, noise: tuple[float, float, float]) -> tuple[dict[str, float], float]:
    """A run of four times the ladder's largest compute, and its loss."""
    at = {"N": N[BEYOND], "D": 4 * N[WIDTHS[-1]] * BUDGETS[-1] / N[BEYOND]}
    sd = np.hypot(*noise[:2]) * (BEYOND / 64) ** noise[2]
    return at, loss(at["N"], at["D"]) * float(np.exp(rng.normal(0, 1) * sd))


def cover(noise: str, draws: int, chosen: int) -> Iterator[dict[str, Any]]:
    """Rows: how the law was fitted, share of runs inside, and half of the interval's width, relative."""
    repeats = {32: 3, 48: 3}
    ways = {"rows taken as independent": 0, "no repeats, clusters": 0, "repeats, clusters": 0,
            "repeats, clusters, noise carried": 0, "the same, form chosen by back-test": 0}  # fmt: skip
    hits: dict[tuple[str, float], list[bool]] = {}
    halves: dict[tuple[str, float], list[float]] = {}
    for i in range(draws):
        rng = np.random.default_rng((7, i))
        table = ladder(rng, NOISE[noise], repeats)
        at, y = new_run(rng, NOISE[noise])
        first = table["seed"] == 0
        once = {name: values[first] for name, values in table.items()}
        fits = {
            "rows taken as independent": fit("chinchilla", table, intervals="delta"),
            "no repeats, clusters": fit("chinchilla", once, cluster="run", intervals="delta"),
            "repeats, clusters": fit("chinchilla", table, cluster="run", intervals="delta"),
        }
        seen = seed_noise(table)
        assert seen is not None
        fits["repeats, clusters, noise carried"] = carry(fits["repeats, clusters"], seen)
        if i < chosen:
            best = choose(table, ["chinchilla", "coupled", "broken"], cluster="run")
            fits["the same, form chosen by back-test"] = carry(best.fit, seen)
        for way, made in fits.items():
            ways[way] += 1
            for level in LEVELS:
                p = made.predict(level=level, **at)
                hits.setdefault((way, level), []).append(p.low <= y <= p.high)
                halves.setdefault((way, level), []).append((p.high - p.low) / 2 / p.value)
    for way, n in ways.items():
        yield {
            "noise": noise, "fit": way, "draws": n,
            **{f"inside_{level}": float(np.mean(hits[way, level])) for level in LEVELS},
            **{f"half_{level}": float(np.median(halves[way, level])) for level in LEVELS},
        }  # fmt: skip


def named(bad: tuple[int, float] | None, draws: int) -> dict[str, Any]:
    """How often the raised rung is named, and any other."""
    right = other = 0
    for i in range(draws):
        table = ladder(np.random.default_rng((11, i)), NOISE["shared"], {32: 3, 48: 3}, bad)
        found = shifts(table, fit("chinchilla", table, cluster="run", intervals="delta"))
        right += bad is not None and bad[0] in found
        other += any(bad is None or w != bad[0] for w in found)
    width, raised = bad or (0, 0.0)
    return {"width": width, "raised": raised, "draws": draws, "named": right / draws, "others": other / draws}


def page(found: dict[str, list[dict[str, Any]]]) -> str:
    """Both tables in Markdown."""
    lines = [
        "# A ladder's intervals at four times its compute, and mistuned rungs\n",
        "Made by `python -m benchmarks.ladder_coverage`: five widths by three budgets of branched trunks "
        "around a known law, the two smallest widths three times. Each cell: share of new runs at four times "
        "the largest compute inside the 90% / 95% interval, and half of the median 90% interval relative to "
        "the loss.\n",
        "| noise | fit | draws | inside 90% / 95% | half width, 90% |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for r in found["coverage"]:
        lines.append(
            f"| {r['noise']} | {r['fit']} | {r['draws']} | {r['inside_0.9']:.1%} / {r['inside_0.95']:.1%} "
            f"| {r['half_0.9']:.2%} |"
        )
    lines += [
        "\nNoise: `shared` .4% between trunks and .2% between branches; `each its own` .45% between "
        "all runs; falls as 1/width or grows as its root, from the first at width 64.\n",
        "One rung's loss raised (noise `shared`): how often that rung is named, and any other.\n",
        "| raised rung | by | draws | named | others named |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for r in found["mistuned"]:
        lines.append(
            f"| {r['width'] or 'none'} | {r['raised']:.0%} | {r['draws']} | {r['named']:.1%} "
            f"| {r['others']:.1%} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run what is missing, write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ladder_coverage", description=__doc__)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--chosen", type=int, default=20, help="draws in which the form is chosen, too")
    parser.add_argument("--most", type=int, default=99, help="cases in this call")
    parser.add_argument("--out", type=Path, default=Path("docs/results/ladder_coverage.md"))
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/ladder_coverage.json"))
    a = parser.parse_args()
    found = json.loads(a.json.read_text()) if a.json.is_file() else {"coverage": [], "mistuned": []}

    cases = [None, *((w, 0.03) for w in WIDTHS), *((w, 0.05) for w in (WIDTHS[0], WIDTHS[-1]))]
    left = a.most
    todo: list[tuple[str, Any]] = [("coverage", noise) for noise in NOISE]
    todo += [("mistuned", bad) for bad in cases]
    for what, case in todo:
        if left and what == "coverage" and not any(r["noise"] == case for r in found[what]):
            found[what] += list(cover(case, a.draws, a.chosen))
        elif (
            left
            and what == "mistuned"
            and not any((r["width"], r["raised"]) == (case or (0, 0.0)) for r in found[what])
        ):
            found[what].append(named(case, a.draws))
        else:
            continue
        left -= 1
        a.json.write_text(json.dumps(found, indent=1) + "\n")
        print(found[what][-1], f"{time.process_time():.0f} s", file=sys.stderr, flush=True)
    a.out.write_text(page(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
