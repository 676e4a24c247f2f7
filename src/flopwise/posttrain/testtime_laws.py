"""Laws asked of comparisons of strategies: accuracy by thinking tokens, and where a smaller model overtakes.

`thinking`: the points are budgets of thinking, cut short or forced on, so that problems are the same at every
length; lengths that a model chose itself would tell of hard problems (longer and wronger) rather than of
thinking. The forms are those of `flopwise laws`; the longest are held out.

`crossover`: what a larger model's single greedy answer is worth, predicted from the smaller ones (error a
power of size, as in Kaplan et al., arXiv 2001.08361, eq. 1.1, here of the error rate), and how much compute
at test time a smaller model needs to be as good (the trade of Snell et al., arXiv 2408.03314, section 7). The
largest model is seen by no fit. Intervals come from drawing problems again; other seeds of training would add
to them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from flopwise.errors import FlopwiseError, one_line
from flopwise.infer.samples import Samples
from flopwise.infer.strategies import make
from flopwise.posttrain.laws import LAW_FILE, POINTS_FILE, Rows, answer

if TYPE_CHECKING:
    from flopwise.records.folder import RunFolder

COMPARISON_FILE, SAMPLES_FILE = "comparison.json", "samples.npz"
DRAWS, LEVEL = 2000, 0.95
THINKING = ("thinking_length", "thinking_overlong")


def run_step(folder: RunFolder, parents: dict[str, RunFolder], progress: Callable[[float], None]) -> None:
    """Answer the question of `spec` (`launch.posttrain_recipe.PosttrainLaw`): points.json and law.json.

    Options of `thinking`: `strategies` (whose points are meant, by how their names begin; `budget`),
    `candidates`, `hold_out` (share of the points, the longest, that the fit does not see). Of `crossover`:
    `strategy`, with which the smaller models answer.
    """
    from flopwise.flops.spend import Stopwatch
    from flopwise.records.folder import atomic_write

    watch = Stopwatch()
    spec, options = folder.spec, folder.spec["options"]
    rows: Rows = []
    try:
        runs = [parents[f"compare{i}"] for i in range(len(spec["runs"]))]
        if spec["method"] == "thinking":
            rows = thinking_rows(runs, options.get("strategies", "budget"))
            found = thinking(rows, options, folder.seed)
        else:
            strategy = make(str(options.get("strategy", "best_of_n:verifier"))).name
            sides = [Side.read(run, name, strategy) for run, name in zip(runs, spec["runs"], strict=True)]
            found = crossover(sides, strategy, folder.seed)
            rows = found.pop("rows")
    except FlopwiseError as e:
        found = {"status": "refused", "text": f"no law: {one_line(str(e), 300)}"}
    found = {"name": spec["name"], "method": spec["method"], "n": len(rows), **found}
    atomic_write(folder.path / POINTS_FILE, json.dumps(rows, indent=1))
    atomic_write(folder.path / LAW_FILE, json.dumps(found, indent=1, default=float))
    folder.finish(metrics={}, spend=watch.spend(), extra={"text": found["text"], "status": found["status"]})


def thinking_rows(runs: Sequence[RunFolder], strategies: str) -> Rows:
    """Points of thinking: tokens (mean of a question), y (accuracy) and its error, shortest first.

    Raises:
        FlopwiseError: no comparison has such strategies.
    """
    rows: Rows = []
    for run in runs:
        content = json.loads((run.path / COMPARISON_FILE).read_bytes())
        for s in content["strategies"]:
            if str(s["name"]).startswith(strategies):
                rows += [
                    {"run": f"{run.id} {s['name']} {q['n']}", "name": s["name"], "n": q["n"],
                     "tokens": q["tokens"], "y": q["value"], "se": q.get("se"), "C": q.get("flops")}
                    for q in s["points"] if q.get("tokens")
                ]  # fmt: skip
    if not rows:
        raise FlopwiseError(f"thinking: no comparison has points of {strategies!r:.40}; compare budgets")
    return sorted(rows, key=lambda r: r["tokens"])


def thinking(rows: Rows, options: dict[str, Any], seed: int) -> dict[str, Any]:
    """The law of accuracy by thinking tokens, and in words over what factor of tokens accuracy rose.

    Raises:
        FlopwiseError: no form fits.
    """
    best = max(rows, key=lambda r: r["y"])
    told = (
        f"accuracy goes from {rows[0]['y']:.1%} at {rows[0]['tokens']:.3g} tokens to {best['y']:.1%} at "
        f"{best['tokens']:.3g} ({best['tokens'] / rows[0]['tokens']:.3g} times as many)"
    )
    if best is not rows[-1]:
        told += f", and to {rows[-1]['y']:.1%} at {rows[-1]['tokens']:.3g}"
    asked = {"candidates": list(THINKING), "hold_out": 0.2} | options | {"by": "tokens"}
    try:
        found = answer(rows, asked, seed)
    except FlopwiseError as e:
        return {"status": "refused", "text": f"{told}; no law: {one_line(str(e), 300)}"}
    return found | {
        "text": f"{told}; {found['text']}", "factor": best["tokens"] / rows[0]["tokens"],
        "rise": best["y"] - rows[0]["y"],
    }  # fmt: skip


@dataclass(frozen=True)
class Side:
    """One model of a crossover: its size (parameters without the tables), its greedy answers [P] and their
    FLOPs, and a strategy's values [budgets, P] with what each budget costs a question, cheapest first."""

    name: str
    size: float
    problems: list[str]
    greedy: np.ndarray
    greedy_flops: float
    costs: np.ndarray
    values: np.ndarray

    @classmethod
    def read(cls, run: RunFolder, name: str, strategy: str) -> Side:
        """From a comparison's folder.

        Raises:
            FlopwiseError: it has no such strategy, or its FLOPs or size are not known.
        """
        samples = Samples.load(run.path / SAMPLES_FILE)
        content = json.loads((run.path / COMPARISON_FILE).read_bytes())
        size = (run.record().model or {}).get("n_params_non_embedding")
        entry = next((e for e in content["strategies"] if e["name"] == strategy), None)
        if entry is None:
            there = ", ".join(e["name"] for e in content["strategies"])
            raise FlopwiseError(f"crossover: {name} was not asked by {strategy[:40]}; there are {there}")
        if samples.greedy is None or not size or any(q["flops"] is None for q in entry["points"]):
            raise FlopwiseError(f"crossover: size or FLOPs of {name} are not known; compare a local model")
        with np.load(run.path / SAMPLES_FILE, allow_pickle=False) as file:
            values = file[f"curve_{strategy}"]
        costs = np.array([q["flops"] for q in entry["points"]], dtype=float)
        order = np.argsort(costs, kind="stable")
        return cls(
            name, float(size), samples.problems, samples.greedy.astype(float),
            float(content["greedy"]["flops"]), costs[order], values[order],
        )  # fmt: skip

    def at(self, flops: float, draw: np.ndarray) -> float:
        """Accuracy for so many FLOPs a question; 0 below the cost of the smallest budget."""
        return float(np.interp(np.log(flops), np.log(self.costs), self._best(draw), left=0.0))

    def reaches(self, accuracy: float, draw: np.ndarray) -> float:
        """FLOPs from which on it is as good, between two budgets by the logarithm; infinite: never."""
        value = self._best(draw)
        if value[0] >= accuracy:
            return float(self.costs[0])
        if value[-1] < accuracy:
            return float("inf")
        i = int(np.argmax(value >= accuracy))
        share = (accuracy - value[i - 1]) / (value[i] - value[i - 1])
        return float(np.exp((1 - share) * np.log(self.costs[i - 1]) + share * np.log(self.costs[i])))

    def _best(self, draw: np.ndarray) -> np.ndarray:
        """Accuracy by budget on some problems, never falling: a budget need not be spent."""
        return np.maximum.accumulate(self.values[:, draw].mean(axis=1))


def crossover(sides: Sequence[Side], strategy: str, seed: int) -> dict[str, Any]:
    """From which compute on each smaller model is as good as the largest one's greedy answer: predicted from
    the smaller ones alone, beside what was measured.

    Raises:
        FlopwiseError: fewer than three sizes, or other problems.
    """
    sides = sorted(sides, key=lambda s: s.size)
    smaller, largest = sides[:-1], sides[-1]
    if len({s.size for s in sides}) < 3:
        raise FlopwiseError("crossover: needs three sizes: two to fit and one to predict")
    if any(s.problems != largest.problems for s in smaller):
        raise FlopwiseError("crossover: the comparisons ask other problems; give them the same number")
    rng = np.random.default_rng((seed, 17))
    P = len(largest.problems)
    draws = [np.arange(P), *(rng.integers(0, P, P) for _ in range(DRAWS))]
    predicted = np.array([_extrapolated(smaller, largest.size, d) for d in draws])
    truth = np.array([largest.greedy[d].mean() for d in draws])
    own = largest.greedy_flops
    rows: Rows = []
    entries = []
    for side in smaller:
        gain = np.array([side.at(own, d) for d in draws])
        entry: dict[str, Any] = {
            "small": side.name, "large": largest.name,
            "flops": _interval([side.reaches(g, d) for g, d in zip(predicted, draws, strict=True)]),
            "measured": _interval([side.reaches(g, d) for g, d in zip(truth, draws, strict=True)]),
            "gain": _interval(gain - predicted), "measured_gain": _interval(gain - truth),
        }  # fmt: skip
        low, high = entry["flops"]["low"], entry["flops"]["high"]
        entry["inside"] = bool(low <= entry["measured"]["value"] <= high)
        entries.append(entry)
        rows += [
            {"run": side.name, "N": side.size, "C": float(c), "y": float(v.mean())}
            for c, v in zip(side.costs, side.values, strict=True)
        ]
    accuracy: dict[str, Any] = _interval(predicted) | {"measured": float(truth[0])}
    accuracy["inside"] = bool(accuracy["low"] <= accuracy["measured"] <= accuracy["high"])
    return {
        "status": "fitted", "strategy": strategy, "greedy": accuracy, "greedy_flops": own,
        "entries": entries, "rows": rows, "text": words(strategy, largest.name, own, accuracy, entries),
    }  # fmt: skip


def _extrapolated(smaller: Sequence[Side], size: float, draw: np.ndarray) -> float:
    """Greedy accuracy of a larger size: the error is a power of the size."""
    half = 0.5 / len(draw)  # no error at all is taken for half a problem
    errors = np.maximum([1 - s.greedy[draw].mean() for s in smaller], half)
    slope, level = np.polyfit(np.log([s.size for s in smaller]), np.log(errors), 1)
    return float(1 - min(1.0, np.exp(level + slope * np.log(size))))


def _interval(draws: Sequence[float] | np.ndarray) -> dict[str, float]:
    """The first is the estimate; the others give its interval."""
    low, high = np.quantile(draws[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="inverted_cdf")
    return {"value": float(draws[0]), "low": float(low), "high": float(high)}


def words(
    strategy: str, largest: str, own: float, accuracy: dict[str, Any], entries: list[dict[str, Any]]
) -> str:
    """What was predicted and what came of it, in sentences."""
    from flopwise.report.format import flop, points

    def compute(x: float) -> str:
        return flop(x) if np.isfinite(x) else "more than was tried"

    text = (
        f"{largest} was predicted to answer {accuracy['value']:.1%} greedily ({accuracy['low']:.1%} to "
        f"{accuracy['high']:.1%}); measured {accuracy['measured']:.1%}, at {flop(own)} a question"
    )
    for e in entries:
        p, m, gain = e["flops"], e["measured"], e["measured_gain"]
        text += (
            f". {e['small']} with {strategy} was predicted to be as good from {compute(p['value'])} on "
            f"({compute(p['low'])} to {compute(p['high'])}); measured {compute(m['value'])}: "
            f"{'inside' if e['inside'] else 'outside'}. For the larger one's FLOPs it is "
            f"{points(gain['value'])} points better ({points(gain['low'])} to {points(gain['high'])})"
        )
    return text + "."
