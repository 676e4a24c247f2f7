"""What do chosen runs save? `python -m benchmarks.next_runs --out docs/results/next.md`.

The same law is fitted to runs picked in four ways, for the same FLOPs: by `flopwise.plan.next_runs` in
rounds (fit, choose, measure, fit again), on a plain grid of four sizes and four budgets of tokens as large as
the FLOPs allow, at random, and the largest affordable first. The error is that of the fit's prediction of
runs it did not see and that no picker could choose. Simulated truths, where candidates are a fine grid, and
published runs replayed, where the candidates are the published ones and the largest are held out. Trials are
kept in a file as they are made, so that a stopped benchmark goes on.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.laws import Fit, fit, get
from flopwise.plan.next_runs import next_runs
from flopwise.plan.stopping import stopping
from flopwise.records.folder import atomic_write

DATA = Path(__file__).parents[2] / "shared" / "data"
STAGES = 5
"""Budgets, from 1.5 times what the first runs cost."""
AT_RANDOM = 3
LOST = 1.0
"""Error that stands for a table no law could be fitted to."""
Array = np.ndarray
Table = dict[str, Array]


@dataclass
class Pool:
    """Runs to choose from. `group`: rows of one run; `aim` and `truth`: what is to be predicted."""

    table: Table
    aim: Table
    truth: Array
    law: str = "chinchilla"
    group: Array = field(default_factory=lambda: np.empty(0))
    grown: Array = field(default_factory=lambda: np.empty(0))
    measure: Callable[[Array], Array] | None = None
    """For simulations: losses of rows, with fresh noise."""

    def __post_init__(self) -> None:
        self.cost = 6 * self.table["N"] * self.table["D"]
        if not len(self.group):
            self.group = np.arange(len(self.cost))

    def spent(self, rows: set[int]) -> float:
        """FLOPs of rows: of a run, those of its last one."""
        i = np.array(sorted(rows), dtype=int)
        return float(sum(self.cost[i][self.group[i] == g].max() for g in np.unique(self.group[i])))

    def whole(self, rows: set[int], row: int) -> set[int]:
        """With this row and all earlier ones of its run."""
        same = (self.group == self.group[row]) & (self.cost <= self.cost[row])
        return rows | set(map(int, np.flatnonzero(same)))

    def fitted(self, rows: set[int]) -> Fit:
        """The law on rows."""
        i = np.array(sorted(rows), dtype=int)
        table = {name: v[i] for name, v in self.table.items()} | {"run": self.group[i]}
        clustered = len(np.unique(self.group)) < len(self.group)
        return fit(self.law, table, intervals="delta", cluster="run" if clustered else None)

    def error(self, rows: set[int]) -> float:
        """Root mean square of the relative errors at the aims."""
        try:
            made = self.fitted(rows).predict(**self.aim)
        except FlopwiseError:
            return LOST
        return min(float(np.sqrt(np.mean(np.log(made.value / self.truth) ** 2))), LOST)

    def grid(self, top: float, n: int) -> set[int]:
        """Of runs up to a cost, those nearest to n sizes by n budgets of tokens, even in logarithms."""
        near = np.flatnonzero(self.cost <= top * (1 + 1e-9))
        x = np.log(np.stack([self.table["N"][near], self.table["D"][near]]))
        low, high = x.min(axis=1), x.max(axis=1)
        width = np.maximum(high - low, 1e-9)
        places = np.stack(np.meshgrid(*(np.linspace(a, b, n) for a, b in zip(low, high, strict=True))), -1)
        out: set[int] = set()
        for place in places.reshape(-1, 2):
            out.add(int(near[np.argmin((((x.T - place) / width) ** 2).sum(axis=1))]))
        return out

    def grid_for(self, budget: float, n: int = 4) -> set[int]:
        """The grid that reaches farthest for a budget."""
        best: set[int] = set()
        tops = np.unique(self.cost)
        for top in tops[np.unique(np.linspace(0, len(tops) - 1, 60).round().astype(int))]:
            rows = self.grid(float(top), n)
            if self.spent(rows) <= budget:
                best = rows
        return best

    def start(self) -> set[int]:
        """Three sizes by three budgets, as small as leaves eight runs."""
        for top in np.unique(self.cost):
            rows = self.grid(float(top), 3)
            if len(rows) >= 8 and len(np.unique(self.table["N"][list(rows)])) > 2:
                return rows
        raise FlopwiseError("no eight runs to start from")


def by_design(pool: Pool, start: set[int], budgets: Array, seed: int) -> tuple[list[set[int]], list[float]]:
    """Rows after each budget; and the half-width got over that promised."""
    rows, out, kept = set(start), [], []
    for budget in budgets:
        open_ = np.flatnonzero(~np.isin(pool.group, pool.group[sorted(rows)]))
        left = float(budget) - pool.spent(rows)
        promised = None
        if len(open_) and left > 0:
            try:
                known = pool.fitted(rows)
                made = next_runs(
                    known, left, at=pool.aim, seed=seed, cluster="run", groups=_groups(pool, rows),
                    candidates={n: v[open_] for n, v in pool.table.items()} | {"run": pool.group[open_]},
                )  # fmt: skip
                promised = made.narrowing[0].after
                for run in made.runs:
                    rows = pool.whole(rows, int(open_[run["row"] - 1]))
            except FlopwiseError:
                pass
        out.append(set(rows))
        if promised:
            p = pool.fitted(rows).predict(**pool.aim)
            kept.append(float(np.sqrt(np.mean((np.log(p.mean_high / p.mean_low) / 2) ** 2))) / promised)
    return out, kept


def _groups(pool: Pool, rows: set[int]) -> Array | None:
    clustered = len(np.unique(pool.group)) < len(pool.group)
    return pool.group[sorted(rows)] if clustered else None


def one_by_one(pool: Pool, start: set[int], budgets: Array, order: Array) -> list[set[int]]:
    """Rows after each budget, when every run of an order is made that is still affordable."""
    rows, out = set(start), []
    for budget in budgets:
        spent = pool.spent(rows)
        for row in order:
            if row in rows or spent + pool.cost[row] > budget:
                continue
            ahead = pool.whole(rows, int(row))
            if pool.spent(ahead) <= budget:
                rows, spent = ahead, pool.spent(ahead)
        out.append(set(rows))
    return out


def trial(pool: Pool, budgets: Array | None, seed: int) -> dict[str, Any] | None:
    """Errors of every way at every budget."""
    rng = np.random.default_rng(seed)
    try:
        start = pool.start()
    except FlopwiseError:
        return None
    if budgets is None:
        budgets = np.geomspace(1.5 * pool.spent(start), 0.7 * pool.spent(set(range(len(pool.cost)))), STAGES)
    chosen, kept = by_design(pool, start, budgets, seed)
    largest = one_by_one(pool, start, budgets, np.argsort(-pool.cost, kind="stable"))
    random = [
        one_by_one(pool, start, budgets, rng.permutation(len(pool.cost))) for _ in range(AT_RANDOM)
    ]  # fmt: skip
    return {
        "budgets": budgets.tolist(), "kept": kept,
        "runs": [len(np.unique(pool.group[sorted(r)])) for r in chosen],
        "next": [pool.error(r) for r in chosen], "grid": [pool.error(pool.grid_for(b)) for b in budgets],
        "random": np.median([[pool.error(r) for r in rows] for rows in random], axis=0).tolist(),
        "largest": [pool.error(r) for r in largest],
    }  # fmt: skip


def simulated(law: str, params: dict[str, float], noise: float, seed: int) -> Pool:
    """A fine grid of runs of a truth, fitted by chinchilla; three aims at 1e22 FLOPs, without noise."""
    rng = np.random.default_rng(seed)
    params = {n: v * np.exp(0.1 * rng.normal()) if n != "E" else v for n, v in params.items()}
    N, D = (v.ravel() for v in np.meshgrid(np.geomspace(2e7, 2e9, 13), np.geomspace(4e8, 4e10, 13)))
    cheap = 6 * N * D <= 3e19
    N, D = N[cheap], D[cheap]
    form = get(law)
    sizes = np.sqrt(1e22 / 6 / 20) * np.array([0.5, 1.0, 2.0])
    aim = {"N": sizes, "D": 1e22 / 6 / sizes}
    extra = {"U": np.full(len(N), 4e9)} if "U" in form.variables else {}
    loss = form(params, {"N": N, "D": D, **extra}) * np.exp(noise * rng.normal(size=len(N)))
    far = {"U": np.full(3, 4e9)} if extra else {}
    return Pool({"N": N, "D": D, "loss": loss}, aim, form(params, aim | far))


def published(name: str, seed: int) -> Pool:
    """Four fifths of the published runs at random; the largest held out."""
    file = {"gemstones": "losses.csv"}.get(name, "runs.csv")
    with open(DATA / name / file, newline="") as f:
        rows = list(csv.DictReader(f))
    keep = np.random.default_rng(seed)
    if name == "gemstones":
        rows = [r for r in rows if r["eval_set"] == "fineweb_dclm" and int(r["step"]) % 11925 == 0]
        N, D, loss = (np.array([float(r[c]) for r in rows]) for c in ("N", "D", "loss"))
        run = np.unique([r["run"] for r in rows], return_inverse=True)[1].ravel()
        held = (N > 1.9e9) & (D > 2.9e11)
        usable = N < 1.9e9
    else:
        size, target = ("N_no_emb", "loss") if name == "misfitting" else ("N", "smooth_loss")
        best: dict[tuple[float, float], float] = {}
        for r in rows:
            if int(float(r.get("total_steps") or 1e9)) >= 1000:
                place = (float(r[size]), float(r["D"]))
                best[place] = min(best.get(place, np.inf), float(r[target]))
        N, D = np.array(sorted(best)).T
        loss, run = np.array([best[p] for p in sorted(best)]), np.arange(len(best))
        held = N >= 3.9e8 if name == "misfitting" else 6 * N * D >= 1.5e20
        usable = ~held
    usable &= keep.random(run.max() + 1)[run] < (1.0 if name == "steplaw_dense" else 0.8)
    return Pool(
        {"N": N[usable], "D": D[usable], "loss": loss[usable]}, {"N": N[held], "D": D[held]}, loss[held],
        group=run[usable],
    )  # fmt: skip


CHINCHILLA = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}
SIMULATED = {
    "Chinchilla, noise .3%": ("chinchilla", CHINCHILLA, 0.003),
    "Chinchilla, noise 1%": ("chinchilla", CHINCHILLA, 0.01),
}
PUBLISHED = ("gemstones", "misfitting", "steplaw_dense")


def saving(found: list[dict[str, Any]], against: str) -> str:
    """FLOPs of the other way over those of `next` for the same median error: at the error that the other
    reaches with its largest budget."""
    budgets = np.median([t["budgets"] for t in found], axis=0)
    ours, theirs = (np.median([t[name] for t in found], axis=0) for name in ("next", against))
    ours = np.minimum.accumulate(ours)
    i = int(np.argmin(theirs))
    reached = np.flatnonzero(ours <= theirs[i])
    if not len(reached):
        return "not reached"
    j = int(reached[0])
    if j == 0:
        return f"{budgets[i] / budgets[0]:.1f} or more"
    share = (np.log(ours[j - 1]) - np.log(theirs[i])) / (np.log(ours[j - 1]) - np.log(ours[j]))
    cost = np.exp(np.log(budgets[j - 1]) + share * (np.log(budgets[j]) - np.log(budgets[j - 1])))
    return f"{budgets[i] / cost:.1f}"


def lines(title: str, found: list[dict[str, Any]]) -> list[str]:
    """A table of one set."""
    budgets = np.median([t["budgets"] for t in found], axis=0)
    out = [f"### {title}", "", f"{len(found)} trial{'s' if len(found) > 1 else ''}.", ""]
    out += ["| FLOPs | runs chosen | next | grid | random | largest |", "|---" * 6 + "|"]
    for i, budget in enumerate(budgets):
        cells = [f"{np.median([t[n][i] for t in found]):.2%}" for n in ("next", "grid", "random", "largest")]
        runs = np.median([t["runs"][i] for t in found])
        out.append(f"| {budget:.2e} | {runs:.0f} | **{cells[0]}** | " + " | ".join(cells[1:]) + " |")
    savings = ", ".join(f"{saving(found, n)} ({n})" for n in ("grid", "random", "largest"))
    kept = [k for t in found for k in t["kept"]]
    out += ["", f"FLOPs of the others for the least error they reach, over those of next: {savings}.", ""]
    if kept:
        low, middle, high = np.quantile(kept, [0.1, 0.5, 0.9])
        out.append(
            f"The interval after a round over the one promised before it: {middle:.2f} (80%: {low:.2f} to "
            f"{high:.2f})."
        )
    return [*out, ""]


def early_stops(seed: int) -> list[str]:
    """How stopping does: on sweeps that are simulated, and on the published curves cut at a third."""
    rng = np.random.default_rng(seed)
    law = get("chinchilla")
    N, D = (v.ravel() for v in np.meshgrid(np.geomspace(2e7, 3e8, 5), np.geomspace(4e8, 1e10, 5)))
    done = fit(
        "chinchilla", {"N": N, "D": D, "loss": law(CHINCHILLA, {"N": N, "D": D})
                       * np.exp(0.003 * rng.normal(size=25))}, intervals="delta",
    )  # fmt: skip
    sweeps, stopped, lost, saved, left = 20, 0, 0, 0.0, 0.0
    x = np.linspace(0.05, 0.4, 12) * 4e9
    for _ in range(sweeps):
        factors = np.exp(0.02 * np.arange(-2, 3) ** 2 * rng.uniform(0.3, 1.5) + 0.003 * rng.normal(size=5))
        rows = [
            {"run": str(i), "N": 5e7, "D": d, "D_end": 4e9, "loss": y * f * np.exp(0.001 * rng.normal())}
            for i, f in enumerate(factors)
            for d, y in zip(x, law(CHINCHILLA, {"N": np.full(12, 5e7), "D": x}), strict=True)
        ]
        made = stopping(done, rows, best_within=["N"])
        stopped += sum(v.stop for v in made.runs)
        lost += made.runs[int(np.argmin(factors))].stop
        saved, left = saved + made.saved, left + made.left
    out = [
        "## Early stopping", "",
        f"{sweeps} simulated sweeps of 5 rates, looked at when 40% of their tokens are seen: {stopped} of "
        f"{5 * sweeps} runs are stopped, which saves {saved / left:.0%} of the FLOPs left; the best rate was "
        f"stopped in {lost} of {sweeps}.", "",
    ]  # fmt: skip
    if (DATA / "gemstones" / "losses.csv").is_file():
        with open(DATA / "gemstones" / "losses.csv", newline="") as f:
            rows = [r for r in csv.DictReader(f) if r["eval_set"] == "fineweb_dclm"]
        early = [
            {n: float(r[n]) for n in ("N", "D", "loss")} | {"run": r["run"], "D_end": 3.5e11}
            for r in rows if float(r["D"]) < 1.2e11
        ]  # fmt: skip
        end = {r["run"]: float(r["loss"]) for r in sorted(rows, key=lambda r: float(r["D"]))}
        made = stopping(done, early)
        inside = sum(v.low <= end[v.run] <= v.high for v in made.runs)
        off = np.median([abs(v.final / end[v.run] - 1) for v in made.runs])
        out += [
            f"The {len(made.runs)} curves of gemstones (constant rate), cut at a third of their tokens: the "
            f"80% interval of the end holds it for {inside}; the median error is {off:.2%}.", "",
        ]  # fmt: skip
    return out


def sets(trials: int) -> dict[str, Callable[[int], tuple[Pool, Array | None]]]:
    """What is tried, by title: the pool and the budgets of a seed."""

    def of_truth(law: str, params: dict[str, float], noise: float) -> Callable[[int], Any]:
        return lambda seed: (simulated(law, params, noise, seed), np.geomspace(4e18, 1.2e20, STAGES))

    def of_runs(name: str) -> Callable[[int], Any]:
        return lambda seed: (published(name, seed), None)

    there = [name for name in PUBLISHED if (DATA / name).is_dir()]
    return {t: of_truth(*args) for t, args in SIMULATED.items()} | {n: of_runs(n) for n in there}


def page(found: dict[str, dict[str, Any]], stops: list[str], seconds: float) -> str:
    """The result page from all trials that were made."""
    text = HEAD.splitlines()
    for heading, titles in (("Simulated truths", tuple(SIMULATED)), ("Published runs replayed", PUBLISHED)):
        text += ["", f"## {heading}", ""]
        for title in titles:
            if made := list(found.get(title, {}).values()):
                text += lines(title, made)
    text += [*stops, f"All trials took {seconds:.0f} s of one core.", "", NOTES]
    return "\n".join(text)


def main(argv: list[str] | None = None) -> None:
    """Make the trials that are missing, write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=6)
    parser.add_argument("--keep", type=Path, required=True, help="file of trials (JSON)")
    parser.add_argument("--out", type=Path, help="the page; standard output otherwise")
    args = parser.parse_args(argv)
    kept: dict[str, Any] = {"seconds": 0.0, "found": {}}
    if args.keep.exists():
        kept = json.loads(args.keep.read_text())
    tried = sets(args.trials)
    for seed in range(args.trials):
        for title, pool_of in tried.items():
            done = kept["found"].setdefault(title, {})
            if str(seed) in done or (title == "steplaw_dense" and seed):
                continue  # of so few runs there is one pool only
            began = time.process_time()
            if made := trial(*pool_of(seed), seed):
                done[str(seed)] = made
            kept["seconds"] += time.process_time() - began
            atomic_write(args.keep, json.dumps(kept) + "\n")
            print(title, seed, made and made["next"], made and made["grid"], file=sys.stderr, flush=True)
    if "stops" not in kept:
        kept["stops"] = early_stops(0)
        atomic_write(args.keep, json.dumps(kept) + "\n")
    text = page(kept["found"], kept["stops"], kept["seconds"])
    if args.out:
        args.out.write_text(text)
    else:
        print(text)


HEAD = """\
# Which runs next: what chosen runs save

The same law (chinchilla) is fitted to runs picked in four ways for the same FLOPs: **next**, by
`flopwise.plan.next_runs` in five rounds (fit, choose, measure, fit again); **grid**, four sizes by four
budgets of tokens, even in logarithms, as large as the FLOPs allow; **random**; and the **largest** affordable
first. All but the grid begin with the same eight or nine small runs, whose cost counts. Shown is the median
over trials of the root mean square error of predictions at runs that no picker could choose. A simulated
trial has a truth and noise of its own and aims at 1e22 FLOPs; a replayed one has four fifths of the published
runs to choose from (steplaw_dense all), and the largest held out. Made by

    python -m benchmarks.next_runs --trials 4 --keep next_runs.json --out docs/results/next.md
"""
NOTES = """\
## What this says

- Where the law's form is right (simulated), chosen runs reach the grid's least error for far less than half
  of its FLOPs. With much noise and few FLOPs nobody knows where to look, and choosing is hardly better than
  chance.
- On published runs the aim, the same error for half of the FLOPs, is **not** met in general. On gemstones
  next gets to the grid's least error for half of its FLOPs, but with few FLOPs the grid is ahead, and the
  largest first is ahead of both. On misfitting next errs less than the grid at the same FLOPs but with the
  most, where it does not get to the grid's error: the form does not hold at the small end, which a design
  that trusts it likes. On steplaw_dense there are 14 runs to choose from, and next to nothing to choose.
- Of misfitting only runs of 1,000 steps or more take part. That was decided after a look at the others: they
  are so far off the form that no way of choosing got anywhere.
- The largest affordable first is a strong rival wherever the form errs far from the aim. A larger `--bend`,
  or candidates nearer to the aim, say so to the design.
- The promised interval is about right where the form is and the noise is small; elsewhere what is then got
  is wider, by 1.5 to 2 times in the middle and more at worst. Take a promise for a ranking of choices, not
  for a guarantee.
- Few trials: factors are rough. Truths with repeated data were not tried.
"""


if __name__ == "__main__":
    main()
