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
from flopwise.infer.evaluate import powers_of_two
from flopwise.infer.samples import Samples
from flopwise.infer.strategies import Choosing, make
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
    `strategy`, one that chooses among samples.
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
            sides = [Side.read(run, name) for run, name in zip(runs, spec["runs"], strict=True)]
            found = crossover(sides, str(options.get("strategy", "best_of_n:verifier")), folder.seed)
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
    """One model of a crossover: its size (parameters without the tables) and its judged samples."""

    name: str
    size: float
    samples: Samples

    @classmethod
    def read(cls, run: RunFolder, name: str) -> Side:
        """From a comparison's folder.

        Raises:
            FlopwiseError: it holds no greedy answers, or the size is not known.
        """
        samples = Samples.load(run.path / SAMPLES_FILE)
        size = (run.record().model or {}).get("n_params_non_embedding")
        if samples.greedy is None or samples.greedy_flops is None or not size:
            raise FlopwiseError(f"crossover: {name} has no greedy answers or no size; compare greedy too")
        return cls(name, float(size), samples)


def crossover(sides: Sequence[Side], strategy: str, seed: int) -> dict[str, Any]:
    """From which compute on each smaller model is as good as the largest one's greedy answer: predicted from
    the smaller ones alone, beside what was measured.

    Raises:
        FlopwiseError: fewer than three sizes, other problems, or a strategy that does not replay.
    """
    sides = sorted(sides, key=lambda s: s.size)
    smaller, largest = sides[:-1], sides[-1]
    if len({s.size for s in sides}) < 3:
        raise FlopwiseError("crossover: needs three sizes: two to fit and one to predict")
    if any(s.samples.problems != largest.samples.problems for s in smaller):
        raise FlopwiseError("crossover: the comparisons ask other problems; give them the same number")
    chooses = make(strategy)
    if not isinstance(chooses, Choosing):
        raise FlopwiseError(f"crossover: {strategy[:40]} does not choose among samples; name one that does")
    curves = [_Curve.of(s, chooses) for s in smaller]
    rng = np.random.default_rng((seed, 17))
    P = largest.samples.P
    draws = [np.arange(P), *(rng.integers(0, P, P) for _ in range(DRAWS))]
    predicted = np.array([_extrapolated(smaller, largest.size, d) for d in draws])
    truth = np.array([_greedy(largest, d) for d in draws])
    own = float(np.mean(largest.samples.greedy_flops))
    rows: Rows = []
    entries = []
    for side, curve in zip(smaller, curves, strict=True):
        found = np.array([curve.reaches(g, d) for g, d in zip(predicted, draws, strict=True)])
        measured = np.array([curve.reaches(g, d) for g, d in zip(truth, draws, strict=True)])
        gain = np.array([curve.at(own, d) for d in draws])
        entry = {
            "small": side.name, "large": largest.name,
            "flops": _interval(found), "measured": _interval(measured),
            "gain": _interval(gain - predicted), "measured_gain": _interval(gain - truth),
        }  # fmt: skip
        low, high = entry["flops"]["low"], entry["flops"]["high"]
        entry["inside"] = bool(low <= entry["measured"]["value"] <= high)
        entries.append(entry)
        rows += [
            {"run": side.name, "N": side.size, "k": k, "C": float(c.mean()), "y": float(v.mean())}
            for k, c, v in zip(curve.ks, curve.costs, curve.values, strict=True)
        ]
    accuracy = _interval(predicted) | {"measured": float(truth[0])}
    accuracy["inside"] = bool(accuracy["low"] <= accuracy["measured"] <= accuracy["high"])
    return {
        "status": "fitted", "strategy": chooses.name, "greedy": accuracy, "greedy_flops": own,
        "entries": entries, "rows": rows, "text": words(chooses.name, largest.name, own, accuracy, entries),
    }  # fmt: skip


@dataclass(frozen=True)
class _Curve:
    """Accuracy and cost of a strategy by problem, [P] for each k."""

    ks: list[int]
    values: list[np.ndarray]
    costs: list[np.ndarray]

    @classmethod
    def of(cls, side: Side, strategy: Choosing) -> _Curve:
        ks = powers_of_two(side.samples.n)
        values = [strategy.replay(side.samples, k) for k in ks]
        return cls(ks, values, [side.samples.cost(k, strategy.judge) for k in ks])

    def _means(self, draw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """FLOPs of a question and accuracy, the latter never falling: a budget need not be spent."""
        value = np.array([v[draw].mean() for v in self.values])
        return np.array([c[draw].mean() for c in self.costs]), np.maximum.accumulate(value)

    def at(self, flops: float, draw: np.ndarray) -> float:
        """Accuracy for so many FLOPs; 0 below the cost of one sample."""
        cost, value = self._means(draw)
        return float(np.interp(np.log(flops), np.log(cost), value, left=0.0))

    def reaches(self, accuracy: float, draw: np.ndarray) -> float:
        """FLOPs from which on it is as good, between two budgets by the logarithm; infinite: never."""
        cost, value = self._means(draw)
        if value[0] >= accuracy:
            return float(cost[0])
        if value[-1] < accuracy:
            return float("inf")
        i = int(np.argmax(value >= accuracy))
        share = (accuracy - value[i - 1]) / (value[i] - value[i - 1])
        return float(np.exp((1 - share) * np.log(cost[i - 1]) + share * np.log(cost[i])))


def _greedy(side: Side, draw: np.ndarray) -> float:
    assert side.samples.greedy is not None
    return float(side.samples.greedy[draw].mean())


def _extrapolated(smaller: Sequence[Side], size: float, draw: np.ndarray) -> float:
    """Greedy accuracy of a larger size: the error is a power of the size."""
    half = 0.5 / len(draw)  # an error of nothing, or of all, is taken for half a problem
    errors = np.clip([1 - _greedy(s, draw) for s in smaller], half, 1 - half)
    slope, level = np.polyfit(np.log([s.size for s in smaller]), np.log(errors), 1)
    return float(1 - min(1.0, np.exp(level + slope * np.log(size))))


def _interval(draws: np.ndarray) -> dict[str, float]:
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
