"""Over-optimisation: what a learned reward gains and the truth loses as more is asked of it.

Gao et al., arXiv 2210.10760: with d the square root of the KL distance to the initial policy, the true
(gold) reward of best-of-n is d (alpha - beta d) above that of the policy, and of RL d (alpha - beta log d).
Gold here is the share that the exact verifier accepts. The distance of best-of-n is taken as
log n - (n - 1) / n, an upper bound (Beirami et al., arXiv 2401.01879) that is reached where no two answers
are level; beside it stands the distance within the samples themselves, in which equal answers are one.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.flops.ledger import Ledger
from flopwise.flops.spend import Stopwatch
from flopwise.infer import calibration
from flopwise.infer.estimators import best_of_k, pass_at_k
from flopwise.infer.local import LocalEngine
from flopwise.infer.turnover import Fitted, distance, fit_best_of_n, peak_best_of_n, sizes, solver, turn_over
from flopwise.posttrain.bench import Bench, Progress, load_model, model_fields

if TYPE_CHECKING:
    from flopwise.records.folder import RunFolder
    from flopwise.records.record import Metric

RESULT_FILE, TABLE_FILE = "overoptimisation.json", "curve.jsonl"
FEWEST_ROWS = 8
"""Of an RL run's curve, for three coefficients."""
DIGITS = 5
"""Scores that agree to so many digits are level: equal answers, read in different batches."""


def sample_distance(scores: np.ndarray, n: int) -> np.ndarray:
    """KL [problems] of best-of-n from the policy where the policy is the samples [problems, N] themselves.

    Answers with level scores are one outcome of mass p, whose chance to be the best of n is F^n minus that of
    all below. With n far below N this is the distance itself, from below; near N it falls short.
    """
    out = np.zeros(len(scores))
    for i, row in enumerate(np.round(scores, DIGITS)):
        mass = np.unique(row, return_counts=True)[1] / len(row)
        top = np.diff(np.cumsum(mass).clip(max=1.0) ** n, prepend=0.0)
        seen = top > 0
        out[i] = np.sum(top[seen] * np.log(top[seen] / mass[seen]))
    return out


def fit_rl(gold: np.ndarray, se: np.ndarray, kl: np.ndarray, draws: int, seed: int = 0) -> Fitted:
    """R0 + alpha d - beta d log d through an RL run's true rewards [T] at KL [T], with standard errors [T].

    The draws resample blocks of neighbouring steps: what was learned at one step stays for the next.
    """
    d = np.sqrt(np.maximum(kl, 0.0))
    design = np.stack([np.ones_like(d), d, -d * np.log(np.maximum(d, 1e-12))], axis=1)
    solve = solver(design, se)
    point = solve @ gold
    block = max(2, round(len(d) ** 0.5))
    rng, found = np.random.default_rng(seed), np.zeros((draws, 3))
    for i in range(draws):
        starts = rng.integers(0, len(d) - block + 1, size=-(-len(d) // block))
        rows = (starts[:, None] + np.arange(block)).ravel()[: len(d)]
        found[i] = solver(design[rows], se[rows]) @ gold[rows]
    return Fitted(point, found)


def peak_rl(alpha: float, beta: float) -> float:
    """The d at which alpha d - beta d log d is largest, exp(alpha / beta - 1)."""
    return math.exp(min(alpha / beta - 1, 700.0)) if beta > 0 else math.inf


def run_step(folder: RunFolder, parents: dict[str, RunFolder], progress: Progress) -> None:
    """Best of 1 to n answers of `init` by parent `reward`, true and learned reward against distance, and the
    curve of each RL run `rl`; fits, intervals and whether it turned over.

    Raises:
        FlopwiseError: `reward` is no scorer, or an RL run's curve lacks proxy, gold or kl.
    """
    from flopwise.records.folder import atomic_write

    watch, ledger, bench = Stopwatch(), Ledger(), Bench.open(folder, parents)
    spec = bench.spec
    curves = {role: _rl_curve(run) for role, run in parents.items() if role.startswith("rl")}
    problems = bench.problems(spec["split"])[: spec["problems"]]
    if len(problems) < 10:
        raise FlopwiseError(f"overoptimise: {len(problems)} {spec['split']} problems, take 10 or more")
    samples = bench.sample(
        problems, spec["n"], folder.seed * 1_000_003 + 17, spec["temperature"], spec["max_tokens"]
    )
    ledger.used("sample", parents["init"].id, samples.usage)
    progress(0.6)
    scorer = LocalEngine(load_model(parents["reward"]).eval())
    whole = [e.prompt + e.completion for e in bench.sampled_examples(problems, samples)]
    scores, flops = scorer.reward(whole)
    ledger.post("reward", parents["reward"].id, sum(map(len, whole)), flops)
    progress(0.9)
    shape = (len(problems), spec["n"])
    right, proxy = bench.verify(problems, samples).reshape(shape), scores.astype(float).reshape(shape)
    n = sizes(spec["n"])
    gold = np.stack([best_of_k(right, np.round(proxy, DIGITS), k) for k in n])
    learned = np.stack([best_of_k(proxy, proxy, k) for k in n])
    rows = [
        {
            "n": k, "d": math.sqrt(distance(k)), "kl_bound": distance(k),
            "kl_samples": float(sample_distance(proxy, k).mean()) if 4 * k <= spec["n"] else None,
            **_with_error("gold", gold[i]), **_with_error("proxy", learned[i]),
            **_with_error("oracle", pass_at_k(right, k)),
        }
        for i, k in enumerate(n)
    ]  # fmt: skip
    fitted = fit_best_of_n(gold, n, spec["bootstrap"], folder.seed)
    found: dict[str, Any] = {
        "best_of_n": {
            "law": "overoptimisation_best_of_n", "curve": rows, "turn_over": turn_over(gold, n),
            "fit": fitted.to_dict(peak_best_of_n),
        },
        "rl": {
            role: {
                "law": "overoptimisation_rl", "run": parents[role].id, "curve": curve,
                "fit": _fit_curve(curve, spec["bootstrap"], folder.seed).to_dict(peak_rl),
            }
            for role, curve in curves.items()
        },
    }  # fmt: skip
    atomic_write(folder.path / RESULT_FILE, json.dumps(found, indent=1))
    table = [{"n": r["n"], "d": r["d"], "reward": r["gold"], "proxy": r["proxy"]} for r in rows]
    atomic_write(folder.path / TABLE_FILE, "".join(json.dumps(r) + "\n" for r in table))
    groups = np.repeat(np.arange(shape[0]), shape[1])
    folder.finish(
        metrics=_metrics(found["best_of_n"], shape[0])
        | calibration.within(proxy.ravel(), right.ravel(), groups),
        spend=watch.spend(ledger, tokens=samples.usage.prefill_tokens + samples.usage.decode_tokens),
        model=model_fields(bench.model), extra=found,
        data={"corpus": bench.asked.task, "tokens_seen": 0, "tokens_unique": None, "modality": "text"},
    )  # fmt: skip


def _with_error(name: str, values: np.ndarray) -> dict[str, float]:
    return {
        name: float(values.mean()), f"{name}_se": float(values.std(ddof=1) / math.sqrt(len(values)))
    }  # fmt: skip


def _metrics(found: dict[str, Any], n: int) -> dict[str, Metric]:
    from flopwise.records.record import Metric

    rows, turn = found["curve"], found["turn_over"]
    best = max(rows, key=lambda r: r["gold"])
    out = {
        "pass_at_1": Metric(value=rows[0]["gold"], se=rows[0]["gold_se"], n=n),
        "best": Metric(value=best["gold"], se=best["gold_se"], n=n),
        "at_most": Metric(value=rows[-1]["gold"], se=rows[-1]["gold_se"], n=n),
    }
    for name in ("rise", "fall"):
        out[name] = Metric(value=turn[name]["value"], se=turn[name]["se"], n=n)
    for name in ("alpha", "beta"):
        out[name] = Metric(value=found["fit"][name]["value"], se=found["fit"][name]["se"], n=n)
    return out


def _rl_curve(run: RunFolder) -> list[dict[str, float]]:
    """Steps of an RL run with its rewards and its distance.

    Raises:
        FlopwiseError: they were not logged, or are too few.
    """
    names = ("step", "proxy", "gold", "gold_se", "kl")
    rows = [{name: float(row[name]) for name in names} for row in run.curve(*names)]
    if len(rows) < FEWEST_ROWS:
        raise FlopwiseError(
            f"overoptimise: run {run.name or run.id} logged {len(rows)} steps with proxy, gold and kl, "
            f"{FEWEST_ROWS} are needed; reinforce with a reward model and track_kl"
        )
    return rows


def _fit_curve(rows: list[dict[str, float]], draws: int, seed: int) -> Fitted:
    gold, se, kl = (np.array([r[name] for r in rows]) for name in ("gold", "gold_se", "kl"))
    return fit_rl(gold, se, kl, draws, seed)
