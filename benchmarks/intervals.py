"""Do intervals cover what they claim? Simulations of five laws under four kinds of noise.

    python -m benchmarks.intervals [--draws 500] [--only LAW] [--out docs/results/intervals.md]

Each draw makes a table from known parameters, fits it with the defaults of `flopwise.fit` (loss "log_huber"
for losses, squares for shares, the likelihood for counts; clusters are named where there are any), and asks
whether the profile interval holds the true parameter, and whether the interval of a prediction beyond the
data holds the true value of the law. A nominal 90% interval should cover 87 to 93%, one of 95% 92 to 98%:
the range in which 500 draws of an exact interval nearly always fall, and a little more.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.laws import fit, get

LEVELS = (0.90, 0.95)
ALLOWED = {0.90: (0.87, 0.93), 0.95: (0.92, 0.98)}
OUTLIERS = 0.05
Table = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """A law with the truth, a design of experiments, and a place beyond it to predict."""

    law: str
    truth: dict[str, float]
    design: Callable[[], Table]
    beyond: dict[str, float]
    sigma: float
    """Standard deviation of the noise, on the law's scale."""
    size: str
    """The variable that noise depends on where it is not the same everywhere."""
    cluster: str = ""
    """The variable whose values are the runs that share noise; "" for pairs of rows."""


def _grid(**axes: np.ndarray) -> Table:
    mesh = np.meshgrid(*axes.values(), indexing="ij")
    return {name: v.ravel() for name, v in zip(axes, mesh, strict=True)}


def _chinchilla() -> Table:
    x = _grid(N=np.geomspace(5e7, 1e10, 8), M=np.array([5.0, 10, 20, 40, 80, 160]))
    return {"N": x["N"], "D": x["N"] * x["M"]}


def _constrained() -> Table:
    x = _grid(N=np.geomspace(1e8, 6e9, 6), U=np.geomspace(1e9, 1e11, 5), epochs=np.array([1.0, 4, 16, 64]))
    return {"N": x["N"], "D": x["U"] * x["epochs"], "U": x["U"]}


CASES = (
    Case("chinchilla", {"E": 1.8, "A": 480.0, "B": 2100.0, "alpha": 0.35, "beta": 0.37}, _chinchilla,
         {"N": 7e10, "D": 1.4e12}, 0.004, "N"),
    Case("data_constrained",
         {"E": 1.87, "A": 521.0, "B": 1488.0, "alpha": 0.35, "beta": 0.35, "RD": 15.0, "RN": 5.0},
         _constrained, {"N": 1e10, "D": 1e12, "U": 1e11}, 0.003, "N"),
    Case("rl_sigmoid", {"A": 0.62, "R0": 0.2, "Cmid": 3e3, "B": 1.6},
         lambda: {"C": np.geomspace(1e2, 1e5, 40)}, {"C": 5e5}, 0.01, "C"),
    Case("train_to_test", {"t1": 4.0, "t2": 2.0, "t3": 3.0, "t4": 0.8},
         lambda: _grid(loss=np.linspace(1.8, 3.2, 24), k=np.array([1.0, 4, 16, 64])),
         {"loss": 1.6, "k": 16.0}, 0.01, "loss", "loss"),
)  # fmt: skip


def noisy(case: Case, kind: str, rng: np.random.Generator) -> tuple[Table, str | None]:
    """A table with noise of a kind, and its cluster column."""
    law, x = get(case.law), case.design()
    f = law(case.truth, x)
    n = len(f)
    labels = np.unique(x[case.cluster], return_inverse=True)[1] if case.cluster else np.arange(n) // 2
    e = rng.normal(0, case.sigma, n)
    if kind == "heteroscedastic":  # three times as large at the small end as at the large end
        place = np.argsort(np.argsort(x[case.size], kind="stable")) / n
        e *= 3.0 ** (0.5 - place)
    elif kind == "clustered":
        e = 0.6 * e + rng.normal(0, 0.8 * case.sigma, labels.max() + 1)[labels]
    elif kind == "outliers":
        far = rng.random(n) < OUTLIERS
        e[far] *= 8
    table = dict(x)
    table[law.target] = f * np.exp(e) if law.scale == "log" else np.clip(f + e, *law.span)
    if kind == "clustered":
        return table | {"run": labels}, "run"
    return table, None


def cover(case: Case, kind: str, draws: int, seed: int = 0) -> dict[str, float]:
    """Share of draws whose interval holds the truth, by "parameter level"."""
    hits: dict[str, list[bool]] = defaultdict(list)
    law = get(case.law)
    target = float(law(case.truth, {v: np.array([c]) for v, c in case.beyond.items()})[0])
    for i in range(draws):
        table, cluster = noisy(case, kind, np.random.default_rng((seed, i)))
        fitted = fit(law, table, cluster=cluster)
        for level in LEVELS:
            for name, value in case.truth.items():
                low, high = fitted.interval(name, level)
                hits[f"{name} {level}"].append(low <= value <= high)
            try:
                p = fitted.predict(level=level, **case.beyond)
            except FlopwiseError:  # the curve does not tell its ceiling: no prediction, no interval
                continue
            hits[f"prediction {level}"].append(p.mean_low <= target <= p.mean_high)
    return {name: float(np.mean(v)) for name, v in hits.items()}


def cover_counts(kind: str, draws: int, seed: int = 0) -> dict[str, float]:
    """The same for the beta-binomial law of counts: 300 problems, 50 samples each, or 20 to 500."""
    from scipy.special import betaln

    truth, problems, k = {"a": 0.35, "b": 4.0}, 300, 1000.0
    hits: dict[str, list[bool]] = defaultdict(list)
    target = float(-np.expm1(betaln(truth["a"], truth["b"] + k) - betaln(truth["a"], truth["b"])))
    for i in range(draws):
        rng = np.random.default_rng((seed, i))
        p = rng.beta(truth["a"], truth["b"], problems)
        n = np.full(problems, 50)
        cluster = None
        table: Table = {}
        if kind == "heteroscedastic":
            n = rng.integers(20, 500, problems)
        elif kind == "clustered":  # each problem was sampled in three sittings, rows of one chance of success
            p, n = np.repeat(p[: problems // 3], 3), np.repeat(n[: problems // 3], 3)
            table["problem"], cluster = np.repeat(np.arange(problems // 3), 3), "problem"
        table |= {"n": n.astype(float), "c": rng.binomial(n, p).astype(float)}
        fitted = fit("beta_binomial", table, cluster=cluster)
        for level in LEVELS:
            for name, value in truth.items():
                low, high = fitted.interval(name, level)
                hits[f"{name} {level}"].append(low <= value <= high)
            made = fitted.predict(level=level, k=k)
            hits[f"prediction {level}"].append(made.mean_low <= target <= made.mean_high)
    return {name: float(np.mean(v)) for name, v in hits.items()}


def main() -> None:
    """Run the simulations and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--only", default="")
    parser.add_argument("--out", type=Path, default=Path("docs/results/intervals.md"))
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/intervals.json"))
    a = parser.parse_args()
    kinds = ("normal", "heteroscedastic", "clustered", "outliers")
    jobs: list[tuple[str, str, Callable[[], dict[str, float]]]] = []
    for case in CASES:
        jobs += [(case.law, kind, lambda c=case, k=kind: cover(c, k, a.draws)) for kind in kinds]  # type: ignore[misc]
    jobs += [
        ("beta_binomial", kind, lambda k=kind: cover_counts(k, a.draws))  # type: ignore[misc]
        for kind in ("normal", "heteroscedastic", "clustered")
    ]
    found = json.loads(a.json.read_text()) if a.only and a.json.is_file() else {"rows": []}
    rows = [r for r in found["rows"] if a.only and r["law"] != a.only]
    for law, kind, run in jobs:
        if a.only and law != a.only:
            continue
        start = time.process_time()
        rows.append({"law": law, "noise": kind, "draws": a.draws, "coverage": run()})
        print(law, kind, f"{time.process_time() - start:.0f} s", rows[-1]["coverage"], flush=True)
    a.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    a.out.write_text(page(rows, a.draws))


def page(rows: list[dict], draws: int) -> str:
    """The table in Markdown; values outside the allowed range are bold."""
    lines = [
        "# Do intervals cover?\n",
        f"Made by `python -m benchmarks.intervals --draws {draws}`: {draws} simulated tables for each "
        f"row; in "
        "each cell the share of profile intervals (nominal 90% / 95%) that hold the true parameter, and of "
        "intervals of the law's value beyond the data that hold it. Bold: outside 87 to 93% or 92 to 98%. "
        f"The standard error of a cell is {np.sqrt(0.9 * 0.1 / draws):.1%} / "
        f"{np.sqrt(0.95 * 0.05 / draws):.1%}.\n",
        "Noise: normal; heteroscedastic (three times as large at the small end); clustered (rows of one run "
        "share four fifths of it; runs are named); outliers (5% of rows eight times as noisy). For "
        "counts: 50 "
        "samples of each of 300 problems; 20 to 500 samples; each problem three times, named.\n",
        "| law | noise | covered, nominal 90% / 95% |", "|---|---|---|",
    ]  # fmt: skip
    outside = total = 0
    for row in rows:
        names = dict.fromkeys(key.rsplit(" ", 1)[0] for key in row["coverage"])
        cells = []
        for name in names:
            parts = []
            for level in LEVELS:
                share = row["coverage"][f"{name} {level}"]
                low, high = ALLOWED[level]
                good = low <= share <= high
                outside, total = outside + (not good), total + 1
                parts.append(f"{share:.1%}" if good else f"**{share:.1%}**")
            cells.append(f"{name} {' / '.join(parts)}")
        kind = "as assumed" if (row["law"], row["noise"]) == ("beta_binomial", "normal") else row["noise"]
        lines.append(f"| `{row['law']}` | {kind} | {'; '.join(cells)} |")
    lines.append(f"\n{total - outside} of {total} cells are inside the range.\n")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
