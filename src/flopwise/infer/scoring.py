"""`fw.score`: pass@k, majority@k and best-of-k of anybody's judged samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.infer.estimators import (
    best_of_k,
    cast_votes,
    mean_interval,
    pass_at_k,
    pass_at_k_counts,
)
from flopwise.infer.votes import majority

_TRUE, _FALSE = {"true", "1", "1.0", "yes"}, {"false", "0", "0.0", "no"}


def score(samples: Any, k: Sequence[int] = (1, 2, 4, 8)) -> dict[str, Any]:
    """What k samples per problem are worth, by a perfect verifier, by vote, and by a score.

    Args:
        samples: a table (`records.read_table`) with a row per sample and columns `problem`, `correct`
            (boolean) and, where there are any, `answer` (None, NaN and the empty text abstain) and `score`
            (missing ranks last); or with a row per problem and columns `problem`, `n` (samples), `c` (right).
        k: sample counts, at least 1.

    Returns:
        `n_problems`, `n_samples`, `pass_at_k`; `majority_at_k` and `best_of_n` if the table has answers and
        scores. Each maps k to value, low, high (95%, over problems) and se; majority also to `mc_se`, the
        standard error due to drawing subsets (0: exact). Where some problem has fewer than k samples all are
        None and `reason` says so.

    Raises:
        FlopwiseError: a column is missing, a value in it is not what it should be (with its row), a bad k.
    """
    from flopwise.records.table import read_table, require

    sizes = _check_sizes(k)
    if isinstance(samples, Mapping):
        # A list of texts and NaN would turn into an array of texts, and an abstention into the answer "nan".
        samples = {name: _objects(v) if isinstance(v, list | tuple) else v for name, v in samples.items()}
    table = read_table(samples)
    require(table, "problem", "score")
    problem = _problems(table["problem"])
    if "correct" not in table and "n" in table and "c" in table:
        return _from_counts(table, problem, sizes)
    require(table, "correct", "score")
    correct = _booleans(table["correct"])
    order = np.argsort(problem, kind="stable")
    starts = np.flatnonzero(np.diff(problem[order], prepend=-1))
    groups = np.split(order, starts[1:])
    n_of = np.array([len(g) for g in groups])
    out: dict[str, Any] = {"n_problems": len(groups), "n_samples": len(problem)}

    def each_size(estimate: Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]) -> dict[int, Any]:
        """By k; `estimate` takes rows [problems, n] of places in the table, n being the same for all."""
        result = {}
        for size in sizes:
            values, variance = np.full(len(groups), np.nan), np.zeros(len(groups))
            for n in np.unique(n_of) if n_of.min() >= size else ():
                which = np.flatnonzero(n_of == n)
                values[which], variance[which] = estimate(np.stack([groups[i] for i in which]), size)
            result[size] = mean_interval(values) | _reason(n_of, size)
            if values.size and not np.isnan(values).any():
                result[size]["mc_se"] = math.sqrt(variance.sum()) / len(values)
        return result

    def exact(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return values, np.zeros(len(values))

    out["pass_at_k"] = each_size(lambda rows, size: exact(pass_at_k(correct[rows], size)))
    if "answer" in table:
        answers = [_answer(a) for a in table["answer"].tolist()]
        votes = {int(g[0]): cast_votes([answers[i] for i in g], correct[g]) for g in groups}
        out["majority_at_k"] = each_size(
            lambda rows, size: tuple(
                v[0] for v in majority([votes[int(first)] for first in rows[:, 0]], [size])
            )
        )
    if "score" in table:
        scores = _scores(table["score"])
        out["best_of_n"] = each_size(lambda rows, size: exact(best_of_k(correct[rows], scores[rows], size)))
    for name in ("pass_at_k", "best_of_n"):
        for entry in out.get(name, {}).values():
            entry.pop("mc_se", None)
    return out


def _from_counts(table: dict[str, np.ndarray], problem: np.ndarray, sizes: list[int]) -> dict[str, Any]:
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
    by_size = {s: mean_interval(pass_at_k_counts(n, c, s)) | _reason(n, s) for s in sizes}
    return {"n_problems": len(n), "n_samples": int(n.sum()), "pass_at_k": by_size}


def _check_sizes(k: Sequence[int]) -> list[int]:
    sizes = list(k)
    if not sizes or not all(isinstance(s, int | np.integer) and s >= 1 for s in sizes):
        raise FlopwiseError(f"score: k is {str(sizes)[:60]}, must be whole numbers of at least 1, as 1,2,4,8")
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


def _problems(column: np.ndarray) -> np.ndarray:
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


def _booleans(column: np.ndarray) -> np.ndarray:
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


def _scores(column: np.ndarray) -> np.ndarray:
    try:
        return column.astype(float)
    except (TypeError, ValueError):
        out = np.empty(len(column))
        for row, value in enumerate(column.tolist()):
            try:
                out[row] = np.nan if _missing(value) or value == "" else float(value)
            except (TypeError, ValueError):
                raise FlopwiseError(
                    f"score: column 'score' holds {str(value)[:40]!r} in row {row + 1}, must be a number"
                ) from None
        return out


def _answer(value: Any) -> str | None:
    """None where a sample abstains."""
    if _missing(value):
        return None
    return str(value).strip() or None
