"""How good are plans? `python -m benchmarks.plan_truths [--data DIR] [--runs DIR] --out
docs/results/plan.md`.

Simulated joint truths: a law of which everything is known makes a ladder of noisy runs; the law is fitted, a
plan made for a random budget and demand; its regret is what the true law says it gives away, and its
intervals either hold the truth or not. With `--data` and `--runs` also plans with the largest model held out
(`benchmarks.plan_measured`).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import plan_measured
from flopwise.laws import fit
from flopwise.laws.law import get
from flopwise.plan.marginal import value_at
from flopwise.plan.response import Response
from flopwise.plan.setting import Demand, Setting
from flopwise.plan.solve import optimise

LAW = "joint_accuracy"
SIZES, TOKENS = (1e8, 2.5e8, 6e8, 1.5e9), (5e9, 2e10, 8e10, 2.4e11)
POST, SAMPLES = (0.0, 1e9, 4e9, 1.6e10), (1.0, 4.0, 16.0, 64.0)
RUN_NOISE = 0.05
"""Standard deviation between runs, on the logit of the mean chance."""
PROBLEMS = 512
LEVEL = 0.9
DRAWS = 200


def truth(rng: np.random.Generator) -> dict[str, float]:
    """Parameters of a joint law, of sizes seen in fits."""
    ranges = {
        "t1": (-5.0, -2.0), "t3": (0.5, 2.5), "t4": (-0.15, 0.2), "alpha": (0.25, 0.5), "beta": (0.25, 0.5),
        "g": (0.2, 0.7), "s": (-0.1, 0.15), "N0": (8.3, 9.3), "D0": (10.0, 11.0), "P0": (8.5, 9.5),
    }  # fmt: skip
    drawn = {name: float(rng.uniform(*ends)) for name, ends in ranges.items()}
    return {name: 10**v if name in ("N0", "D0", "P0") else v for name, v in drawn.items()}


def ladder(params: dict[str, float], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """What 64 runs, each asked with four numbers of samples, are measured to be."""
    axes = np.meshgrid(SIZES, TOKENS, POST, SAMPLES, indexing="ij")
    N, D, post, k = (v.ravel() for v in axes)
    run = np.repeat(np.arange(len(N) // len(SAMPLES)), len(SAMPLES))
    shift = rng.normal(0, RUN_NOISE, run[-1] + 1)[run]
    y = np.array([
        get(LAW)({**params, "t1": params["t1"] + e}, {"N": a, "D": b, "post": c, "k": d})
        for a, b, c, d, e in zip(N, D, post, k, shift, strict=True)
    ])  # fmt: skip
    # Chances differ between problems, so that a mean over them scatters less than of so many coins.
    y = y + 0.5 * rng.standard_normal(len(y)) * np.sqrt(y * (1 - y) / PROBLEMS)
    y = np.clip(y, 1e-5, 1 - 1e-5)
    return {"N": N, "D": D, "post": post, "k": k, "coverage": y, "run": run.astype(str)}


def one(seed: int) -> dict[str, float]:
    """A truth, its fit, a plan, and how that does."""
    rng = np.random.default_rng(seed)
    params = truth(rng)
    fitted = fit(LAW, ladder(params, rng), loss="squared", cluster="run", intervals="delta", starts=20)
    response = Response(fitted)
    demand = Demand(10 ** rng.uniform(6, 8.5), 200, 10 ** rng.uniform(2, 3), 64)
    budget, setting = 10 ** rng.uniform(20, 22), Setting(demand)
    started = time.process_time()
    plan = optimise(response, setting, budget)
    spent = time.process_time() - started
    true = [{name: np.array([[v]]) for name, v in params.items()}]
    best = optimise(response, setting, budget, true)
    at = {"N": plan.N[0], "D": plan.D[0], "post": plan.post[0], "k": plan.k[0]}
    value = float(value_at(response, setting, true, at)[0])
    made = response.predict({name: float(v) for name, v in at.items()}, LEVEL, seed)
    draws = optimise(response, setting, budget, response.draws(DRAWS, seed))
    q = [0.5 - LEVEL / 2, 0.5 + LEVEL / 2]

    def held(values: Any, true_value: float) -> float:
        low, high = np.quantile(values, q)
        return float(low <= true_value <= high)

    return {
        "regret": max(float(best.score[0]) - value, 0.0) / float(best.score[0]), "value": value,
        "accuracy": float(made.mean_low <= value <= made.mean_high), "N": held(draws.N, best.N[0]),
        "D": held(draws.D, best.D[0]), "beyond": made.extrapolation, "seconds": spent,
    }  # fmt: skip


def simulated(n: int, seed: int) -> list[str]:
    """Lines of the page on simulated truths."""
    rows = [one(seed + i) for i in range(n)]
    column = {name: np.array([r[name] for r in rows]) for name in rows[0]}
    regret = column["regret"]
    middle = np.quantile(column["value"], [0.05, 0.5, 0.95])
    lines = [
        f"## {n} simulated joint truths", "",
        f"Each: `{LAW}` with random parameters makes {len(SIZES)} sizes x {len(TOKENS)} token budgets x "
        f"{len(POST)} amounts of post-training, asked with {', '.join(f'{k:g}' for k in SAMPLES)} samples; "
        f"runs scatter by {RUN_NOISE:g} on the logit, {PROBLEMS} problems. The budget is 1e20 to 1e22 "
        "FLOPs (the largest run takes "
        f"{6 * SIZES[-1] * (TOKENS[-1] + POST[-1]):.2g}), 1e6 to 3e8 questions with answers of 100 to 1000 "
        "tokens.",
        "",
        "| | |", "|---|---|",
        f"| median regret, relative to the best accuracy | **{np.median(regret):.2%}** |",
        f"| mean, 95th percentile, worst | {regret.mean():.2%}, {np.quantile(regret, 0.95):.2%}, "
        f"{regret.max():.1%} |",
        f"| 90% interval of the plan's accuracy holds the truth | **{column['accuracy'].mean():.1%}** |",
        f"| 90% interval of N holds the truly best N | {column['N'].mean():.1%} |",
        f"| 90% interval of D holds the truly best D | {column['D'].mean():.1%} |",
        f"| accuracy of the plans: 5%, median, 95% | {', '.join(f'{v:.2f}' for v in middle)} |",
        f"| times beyond the runs fitted, median | {np.median(column['beyond']):.0f} |",
        f"| one plan, processor seconds, median | {np.median(column['seconds']):.3f} |", "",
    ]  # fmt: skip
    return lines


def measured(title: str, made: dict[str, Any]) -> list[str]:
    """Lines of the page on one set of measured models."""
    lines = [f"## {title}", "", f"{made['reasons'][0]}.", ""]
    every, held = made["rows"], made["held"]
    inside = sum(r["inside"] for r in every)
    width = float(np.mean([r["high"] - r["low"] for r in every]))
    note = f"The intervals are {width:.2f} wide on average."
    if width > 0.5:
        note += " That they hold what was measured says little: these few models do not carry a joint law."
    lines += [
        f"Inside their 90% interval: {inside} of the {len(every)} different splits that were recommended; "
        "of the "
        f"{len(held)} that would be of the held-out size {sum(r['inside'] for r in held)}. {note}", "",
        "| rule, same budget | mean measured | the plan's | plan at least as good |", "|---|---|---|---|",
    ]  # fmt: skip
    names = ("all into pretraining", "all into post-training", "all into test time", "even shares", "best")
    for name in names:
        both = np.array([(r["measured"], r[name]) for r in made["all"] if name in r])
        if len(both):
            share = np.mean(both[:, 0] >= both[:, 1] - 1e-9)
            words = "the best of all that was measured (in hindsight)" if name == "best" else name
            lines.append(
                f"| {words} | {both[:, 1].mean():.3f} | {both[:, 0].mean():.3f} | {share:.0%} of "
                f"{len(both)} |"
            )
    lines += [
        "", "| of the held-out size: N | D | post | samples | predicted [90%] | measured | |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    lines += [
        f"| {r['N']:.3g} | {r['D']:.2g} | {r['post']:.2g} | {r['k']:g} | {r['predicted']:.3f} "
        f"[{r['low']:.3f}, {r['high']:.3f}] | {r['measured']:.3f} | "
        f"{'inside' if r['inside'] else 'outside'} |"
        for r in held
    ]
    return [*lines, ""]


def main() -> None:
    """Run, write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, help="folder with pythia_train_x_test/counts.csv")
    parser.add_argument("--runs", type=Path, action="append", default=[], help="folder of `flopwise demo`")
    parser.add_argument("--out", type=Path, default=Path("docs/results/plan.md"))
    args = parser.parse_args()
    lines = ["# How good plans are", "", "Made by `python -m benchmarks.plan_truths`.", ""]
    lines += simulated(args.n, args.seed)
    if args.data:
        for benchmark in plan_measured.LEAST:
            made = plan_measured.trial(plan_measured.read(args.data, benchmark))
            lines += measured(f"Pythia on {benchmark}, 12B held out", made)
    for i, folder in enumerate(args.runs, 1):
        cells = plan_measured.from_runs(folder, ["sft"])
        budgets, queries = 10.0 ** np.arange(11.5, 13.6, 0.25), (1e3, 1e4, 1e5, 1e6)
        made = plan_measured.trial(cells, budgets, queries, tokens=20.0, by="C")
        lines += measured(
            f"The demo's own records, fine-tuned models, the largest width held out ({i})", made
        )
    args.out.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
