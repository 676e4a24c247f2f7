"""`fw.score`: pass@k, votes and best-of-n of anybody's judged samples, with what their judge is worth."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.infer.estimators import best_of_k, intervals, pass_at_k, pass_at_k_counts
from flopwise.infer.votes import Votes, cast_votes, majority, weighted, weights_from

_TRUE, _FALSE = {"true", "1", "1.0", "yes"}, {"false", "0", "0.0", "no"}
SCORE = "score_"
"""Columns whose names begin so are scores too."""
UNITS = {"flops": "FLOPs", "tokens": "tokens", "seconds": "seconds"}
"""Columns of what a sample cost, and the unit they are in."""
Estimate = Callable[[np.ndarray, list[int]], tuple[np.ndarray, np.ndarray]]
"""Rows of places in the table [problems, n], sizes -> values and variances by drawing [sizes, problems]."""


def score(
    samples: Any, k: Sequence[int] = (1, 2, 4, 8), forecast: Sequence[int] | int = (), seed: int = 0
) -> dict[str, Any]:
    """What k samples per problem are worth, by a perfect verifier, by vote, and by scores.

    Args:
        samples: a table (`records.read_table`) with a row per sample and columns `problem`, `correct`
            (boolean) and, where there are any, `answer` (None, NaN and the empty text abstain), `score` or
            several `score_NAME` (missing ranks last), and what the sample cost: `tokens`, `flops`, `seconds`;
            or with a row per problem and columns `problem`, `n` (samples), `c` (right).
        k: sample counts, at least 1.
        forecast: sample counts to forecast every strategy for, up to 100 times the samples drawn.

    Returns:
        `n_problems`, `n_samples`, `pass_at_k`; with answers `majority_at_k`; with scores `best_of_n` (of
        `score`, or of the first score column) and `scores`: for each column `best_of_n`, with answers
        `weighted_at_k` (votes that count as much as the score trusts them; `weights` says how that was
        read), and `quality` (`infer.quality`). Each maps k to value, low, high (95%, bootstrap over
        problems) and se; votes also to `mc_se`, the standard error due to drawing subsets (0: exact). Where
        some problem has fewer than k samples all are None and `reason` says so. `differences`: strategies
        compared at equal k, paired over problems. `forecast`: by strategy, `infer.laws.Outlook`, or `reason`.
        `thinking` where there are tokens: `infer.thinking`, or `reason`.

    Raises:
        FlopwiseError: a column is missing, a value in it is not what it should be (with its row), a bad k.
    """
    from flopwise.records.table import read_table, require

    sizes = _check_sizes(k)
    ahead = (
        _check_sizes([forecast] if isinstance(forecast, int) else forecast, "forecast") if forecast else []
    )
    if isinstance(samples, Mapping):
        # A list of texts and NaN would turn into an array of texts, and an abstention into the answer "nan".
        samples = {name: _objects(v) if isinstance(v, list | tuple) else v for name, v in samples.items()}
    table = read_table(samples)
    require(table, "problem", "score")
    problem = number_problems(table["problem"])
    if "correct" not in table and "n" in table and "c" in table:
        return _from_counts(table, problem, sizes, ahead, seed)
    require(table, "correct", "score")
    judged = _Judged(problem, read_verdicts(table["correct"]), seed)
    out: dict[str, Any] = {"n_problems": len(judged.groups), "n_samples": len(problem)}
    curves: dict[str, np.ndarray] = {}
    out["pass_at_k"], curves["pass_at_k"] = judged.by_size(judged.passed, sizes)
    if "answer" in table:
        judged.vote([read_answer(a) for a in table["answer"].tolist()])
        out["majority_at_k"], curves["majority_at_k"] = judged.by_size(judged.majority, sizes, votes=True)
    names = [name for name in table if name == "score" or name.startswith(SCORE)]
    columns = {name: _scores(table[name], name) for name in sorted(names, key=lambda n: n != "score")}
    for name, values in columns.items():
        suffix = "" if name == "score" else f":{name.removeprefix(SCORE)}"
        entry: dict[str, Any] = {}
        entry["best_of_n"], curves[f"best_of_n{suffix}"] = judged.by_size(judged.best(values), sizes)
        if judged.votes:
            by_weight, entry["weights"] = judged.weighted(values)
            entry["weighted_at_k"], curves[f"weighted_at_k{suffix}"] = judged.by_size(by_weight, sizes, True)
        entry["quality"] = judged.quality(values)
        out.setdefault("best_of_n", entry["best_of_n"])
        out.setdefault("scores", {})[name] = entry
    out["differences"] = _differences(curves, sizes, judged.passed_once(), seed)
    costs = _costs(table)
    if ahead:
        out["forecast"] = judged.forecast(ahead, columns, costs)
    if "tokens" in table:
        out["thinking"] = judged.thinking(table["tokens"])
    return out


@dataclass
class _Judged:
    """Samples grouped by problem; problems may have different numbers of them."""

    problem: np.ndarray
    correct: np.ndarray
    seed: int

    def __post_init__(self) -> None:
        order = np.argsort(self.problem, kind="stable")
        starts = np.flatnonzero(np.diff(self.problem[order], prepend=-1))
        self.groups = np.split(order, starts[1:])
        self.n_of = np.array([len(g) for g in self.groups])
        self.votes: dict[int, Votes] = {}

    @property
    def least(self) -> int:
        """Samples that every problem has."""
        return int(self.n_of.min())

    def vote(self, answers: list[str | None]) -> None:
        """Take note of the answers."""
        self.votes = {int(g[0]): cast_votes([answers[i] for i in g], self.correct[g]) for g in self.groups}

    def curve(self, estimate: Estimate, sizes: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Values [sizes, problems], NaN where one has too few samples, and their variance by drawing."""
        values = np.full((len(sizes), len(self.groups)), np.nan)
        variance = np.zeros_like(values)
        within = [i for i, size in enumerate(sizes) if size <= self.least]
        for n in np.unique(self.n_of) if within else ():
            which = np.flatnonzero(self.n_of == n)
            rows = np.stack([self.groups[i] for i in which])
            found = estimate(rows, [sizes[i] for i in within])
            place = np.ix_(np.array(within), which)
            values[place], variance[place] = found
        return values, variance

    def by_size(
        self, estimate: Estimate, sizes: list[int], votes: bool = False
    ) -> tuple[dict[int, dict[str, Any]], np.ndarray]:
        """Entries by k, and the curve behind them."""
        values, variance = self.curve(estimate, sizes)
        out: dict[int, dict[str, Any]] = {}
        for i, (size, entry) in enumerate(zip(sizes, intervals(values, seed=self.seed), strict=True)):
            out[size] = {**entry, **_reason(self.n_of, size)}
            if votes and entry["value"] is not None:
                out[size]["mc_se"] = math.sqrt(variance[i].sum()) / values.shape[1]
        return out, values

    def passed(self, rows: np.ndarray, sizes: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """pass@k."""
        values = np.stack([pass_at_k(self.correct[rows], size) for size in sizes])
        return values, np.zeros_like(values)

    def passed_once(self) -> np.ndarray:
        """pass@1 [problems]."""
        return self.curve(self.passed, [1])[0][0]

    def majority(self, rows: np.ndarray, sizes: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """majority@k."""
        return majority([self.votes[int(first)] for first in rows[:, 0]], sizes, seed=self.seed)

    def best(self, scores: np.ndarray) -> Estimate:
        """best-of-n by these scores [N]."""

        def estimate(rows: np.ndarray, sizes: list[int]) -> tuple[np.ndarray, np.ndarray]:
            values = np.stack([best_of_k(self.correct[rows], scores[rows], size) for size in sizes])
            return values, np.zeros_like(values)

        return estimate

    def weighted(self, scores: np.ndarray) -> tuple[Estimate, str]:
        """Votes weighted by these scores [N], and how they were read."""
        how = weights_from(scores[None])[1]

        def estimate(rows: np.ndarray, sizes: list[int]) -> tuple[np.ndarray, np.ndarray]:
            votes = [self.votes[int(first)] for first in rows[:, 0]]
            return weighted(votes, weights_from(scores[rows], how)[0], sizes, seed=self.seed)

        return estimate, how

    def quality(self, scores: np.ndarray) -> dict[str, Any]:
        """What the scores are worth: `infer.quality`."""
        from flopwise.infer import quality, turnover

        steps = turnover.sizes(self.least)
        values = self.curve(self.best(scores), steps)[0]
        return {
            **quality.ranking(scores, self.correct, self.problem, self.seed),
            "calibration": quality.calibrated(scores, self.correct, self.problem),
            "overoptimisation": quality.overoptimised(values, steps, self.seed),
        }

    def forecast(
        self, at: list[int], scores: dict[str, np.ndarray], costs: dict[str, float]
    ) -> dict[str, Any]:
        """Every strategy's law and what it says of more samples."""
        from flopwise.infer import laws
        from flopwise.laws.counts import Counts

        right = np.array([int(self.correct[g].sum()) for g in self.groups])
        out = {
            "pass_at_k": _or_reason(lambda: laws.coverage(Counts.of(self.n_of, right), at, costs, self.seed))
        }
        strategies: list[tuple[str, str, Estimate]] = []
        if self.votes:
            strategies.append(("majority_at_k", "votes", self.majority))
        for name, values in scores.items():
            suffix = "" if name == "score" else f":{name.removeprefix(SCORE)}"
            strategies.append((f"best_of_n{suffix}", "judge", self.best(values)))
        for name, kind, estimate in strategies:
            ks = laws.grid(self.least, odd=kind == "votes")
            ks = sorted({*ks, self.least, *(k for k in at if k <= self.least)})
            curve = self.curve(estimate, ks)[0]
            made = partial(laws.outlook, name, curve, ks, at, kind, costs, self.seed)
            out[name] = _or_reason(made)
        return out

    def thinking(self, tokens: np.ndarray) -> dict[str, Any]:
        """Accuracy by length within problems."""
        from flopwise.infer.thinking import thinking

        try:
            lengths = tokens.astype(float)
        except (TypeError, ValueError):
            return {"reason": "column 'tokens' holds what is no number"}
        try:
            return thinking(lengths, self.correct, self.problem, seed=self.seed)
        except FlopwiseError as e:
            return {"reason": str(e)}


def _or_reason(made: Callable[[], Any]) -> dict[str, Any]:
    try:
        found: dict[str, Any] = made().to_dict()
    except FlopwiseError as e:
        return {"reason": str(e)}
    return found


def _costs(table: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Mean cost of a sample by unit, of the columns that are there."""
    from flopwise.records.table import numbers

    found = {
        unit: float(numbers(table, name, "score").mean()) for name, unit in UNITS.items() if name in table
    }
    return {unit: cost for unit, cost in found.items() if cost > 0}


def _differences(
    curves: dict[str, np.ndarray], sizes: list[int], once: np.ndarray, seed: int
) -> dict[str, dict[int, dict[str, Any]]]:
    """Strategies against the vote, or against one sample where there is none, at equal k."""
    base = "majority_at_k" if "majority_at_k" in curves else None
    out = {}
    for name, values in curves.items():
        if name == "pass_at_k":
            continue
        other = "one sample" if base in (None, name) else base
        against = np.tile(once, (len(sizes), 1)) if other == "one sample" else curves[other]
        entries = intervals(values - against, seed=seed, shares=False)
        out[f"{name} - {other}"] = {
            s: e for s, e in zip(sizes, entries, strict=True) if e["value"] is not None
        }
    return out


def _from_counts(
    table: dict[str, np.ndarray], problem: np.ndarray, sizes: list[int], ahead: list[int], seed: int
) -> dict[str, Any]:
    from flopwise.records.table import numbers

    n, c = (numbers(table, name, "score") for name in ("n", "c"))
    bad = (n < 1) | (c < 0) | (c > n) | (n % 1 != 0) | (c % 1 != 0)
    if bad.any():
        row = int(np.argmax(bad))
        raise FlopwiseError(f"score: row {row + 1} has {c[row]:g} right of {n[row]:g} samples; correct it")
    if len(np.unique(problem)) < len(problem):
        raise FlopwiseError(
            "score: with counts n and c a problem has one row; choose with --where or add a key"
        )
    entries = intervals(np.stack([pass_at_k_counts(n, c, s) for s in sizes]), seed=seed)
    by_size = {s: {**entry, **_reason(n, s)} for s, entry in zip(sizes, entries, strict=True)}
    out = {"n_problems": len(n), "n_samples": int(n.sum()), "pass_at_k": by_size}
    if ahead:
        from flopwise.infer import laws
        from flopwise.laws.counts import Counts

        out["forecast"] = {"pass_at_k": _or_reason(lambda: laws.coverage(Counts.of(n, c), ahead, seed=seed))}
    return out


def _check_sizes(k: Sequence[int], name: str = "k") -> list[int]:
    sizes = list(k)
    if not sizes or not all(isinstance(s, int | np.integer) and s >= 1 for s in sizes):
        raise FlopwiseError(
            f"score: {name} is {str(sizes)[:60]}, must be whole numbers of at least 1, as 1,2,4,8"
        )
    return sorted({int(s) for s in sizes})


def _reason(n_of: np.ndarray, size: int) -> dict[str, str]:
    few = int((n_of < size).sum())
    if not few:
        return {}
    return {
        "reason": f"{few} of {len(n_of)} problems have fewer than {size} samples, one has {n_of.min():.0f}"
    }


def _objects(values: Sequence[Any]) -> np.ndarray:
    out = np.empty(len(values), dtype=object)
    for i, value in enumerate(values):
        out[i] = value
    return out


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def number_problems(column: np.ndarray) -> np.ndarray:
    """Problems as numbers, in order of appearance."""
    numbers: dict[Any, int] = {}
    out = np.empty(len(column), dtype=np.int64)
    for row, value in enumerate(column.tolist()):
        if _missing(value):
            raise FlopwiseError(f"score: column 'problem' holds nothing in row {row + 1}; name the problem")
        try:
            out[row] = numbers.setdefault(value, len(numbers))
        except TypeError:
            out[row] = numbers.setdefault(repr(value), len(numbers))
    return out


def read_verdicts(column: np.ndarray) -> np.ndarray:
    """True and false as people's tables spell them; anything else is refused with its row."""
    if column.dtype == bool:
        return column
    out = np.empty(len(column), dtype=bool)
    for row, value in enumerate(column.tolist()):
        text = str(value).strip().lower()
        if text not in _TRUE and text not in _FALSE:
            raise FlopwiseError(
                f"score: column 'correct' holds {str(value)[:40]!r} in row {row + 1}, must be true or false"
            )
        out[row] = text in _TRUE
    return out


def _scores(column: np.ndarray, name: str = "score") -> np.ndarray:
    try:
        return column.astype(float)
    except (TypeError, ValueError):
        out = np.empty(len(column))
        for row, value in enumerate(column.tolist()):
            try:
                out[row] = np.nan if _missing(value) or value == "" else float(value)
            except (TypeError, ValueError):
                raise FlopwiseError(
                    f"score: column {name!r} holds {str(value)[:40]!r} in row {row + 1}, must be a number"
                ) from None
        return out


def read_answer(value: Any) -> str | None:
    """None where a sample abstains."""
    if _missing(value):
        return None
    return str(value).strip() or None
