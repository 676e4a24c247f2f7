"""Accuracy against the length of thinking, from samples whose lengths the model chose itself.

Hard problems get longer samples and wronger ones, so that pooled over problems accuracy falls with length
whatever thinking does. Here problems are compared with themselves: each problem's samples are ranked by
length and cut into parts of equal number, and the i-th parts of all problems make the i-th point. Every point
then holds the same problems in the same shares. What remains is no proof either: a model that has lost its
way also writes longer. Lengths that are set (a budget that cuts or forces) are the experiment.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.infer.estimators import intervals, resampled_means

PARTS = 8
FEWEST = 20
"""Problems with samples enough."""
FORMS = ("thinking_length", "thinking_overlong")


def thinking(
    tokens: np.ndarray, right: np.ndarray, groups: np.ndarray, parts: int = PARTS, seed: int = 0
) -> dict[str, Any]:
    """The law of accuracy by thinking tokens within problems, and how far it is from the pooled one.

    Args:
        tokens: [N] of each sample, at least 1.
        right: [N] verdicts.
        groups: [N] problems; those with fewer samples than `parts` are left out.

    Returns:
        `points` (tokens, accuracy with its interval over problems); `slope`, the change of accuracy for
        twice the tokens, `within` problems, `between` them (their means) and `pooled`, each with interval;
        `law`: the fitted form with the least error at the longest quarter of points, or `reason` why there is
        none; `verdict` in words.

    Raises:
        FlopwiseError: lengths below 1, fewer than 20 problems with samples enough, or all of one length.
    """
    tokens, right = np.asarray(tokens, dtype=float), np.asarray(right, dtype=float)
    if not np.isfinite(tokens).all() or (tokens < 1).any():
        row = int(np.argmax(~(tokens >= 1)))
        raise FlopwiseError(f"thinking: {tokens[row]:g} tokens in row {row + 1}, must be 1 or more")
    order = np.lexsort((tokens, groups))
    cuts = np.flatnonzero(np.diff(groups[order])) + 1
    rows = [part for part in np.split(order, cuts) if len(part) >= parts]
    if len(rows) < FEWEST:
        raise FlopwiseError(
            f"thinking: {len(rows)} problems have {parts} samples or more; it takes {FEWEST} such problems"
        )
    logs = np.log2(tokens)
    if all(np.ptp(logs[part]) == 0 for part in rows):
        raise FlopwiseError("thinking: the samples of each problem have one length; there is nothing to fit")
    cells = [np.array_split(part, parts) for part in rows]
    length = np.array([[logs[c].mean() for c in each] for each in cells]).T
    accuracy = np.array([[right[c].mean() for c in each] for each in cells]).T
    at = 2 ** length.mean(axis=1)
    points = [
        {"tokens": float(t), **found} for t, found in zip(at, intervals(accuracy, seed=seed), strict=True)
    ]
    slopes = _slopes(logs, right, rows, seed)
    within = slopes["within"]
    doing = (
        "rises"
        if within["low"] > 0
        else "falls"
        if within["high"] < 0
        else "neither rises nor falls for sure"
    )
    verdict = (
        f"within problems accuracy {doing} with length: {within['value']:+.3f} for twice the tokens "
        f"({within['low']:+.3f} to {within['high']:+.3f}); pooled over problems it seems "
        f"{slopes['pooled']['value']:+.3f}"
    )
    return {
        "points": points, "slope": slopes, **_law(at, accuracy), "problems": len(rows), "verdict": verdict,
    }  # fmt: skip


def _slopes(logs: np.ndarray, right: np.ndarray, rows: list[np.ndarray], seed: int) -> dict[str, Any]:
    """Least-squares slopes with intervals over problems, all from sums that a resample adds up anew."""
    kept = np.concatenate(rows)
    x, y = logs - logs[kept].mean(), right - right[kept].mean()
    sums = []
    for part in rows:
        n, mx, my = len(part), x[part].mean(), y[part].mean()
        dx, dy = x[part] - mx, y[part] - my
        sums.append([n, n * mx, n * my, n * mx * my, n * mx * mx, float(dx @ dy), float(dx @ dx)])
    each = np.array(sums).T
    drawn = np.concatenate([each.mean(axis=1)[None], resampled_means(each, 1000, seed)])
    n, sx, sy, bxy, bxx, wxy, wxx = drawn.T
    between = (bxy - sx * sy / n, bxx - sx * sx / n)
    found = {
        "within": _ratio(wxy, wxx), "between": _ratio(*between),
        "pooled": _ratio(wxy + between[0], wxx + between[1]),
    }  # fmt: skip
    return {
        name: {
            "value": float(v[0]), "low": float(np.quantile(v[1:], 0.025)),
            "high": float(np.quantile(v[1:], 0.975)),
        }
        for name, v in found.items()
    }  # fmt: skip


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.zeros_like(a), where=b > 1e-12)


def _law(at: np.ndarray, accuracy: np.ndarray) -> dict[str, Any]:
    """The form that forecasts the longest quarter of the points best, fitted to all of them."""
    from flopwise.laws.fitting import fit

    y, errors, reasons = accuracy.mean(axis=1), {}, []
    # Parts of nearly one length would be points on top of each other.
    seen = np.arange(len(at)) < len(at) - max(len(at) // 4, 1)
    for form in FORMS:
        try:
            part = fit(form, {"tokens": at[seen], "accuracy": y[seen]}, loss="squared", intervals="delta")
            ahead = np.asarray(part.predict(tokens=at[~seen]).value)
            errors[form] = float(np.sqrt(np.mean((ahead - y[~seen]) ** 2)))
        except FlopwiseError as e:
            reasons.append(f"{form}: {e}")
    if not errors:
        return {"law": None, "reason": "; ".join(reasons)}
    best = min(errors, key=lambda form: errors[form])
    made = fit(best, {"tokens": at, "accuracy": y}, loss="squared")
    return {
        "law": {
            "name": best, "formula": made.form.formula, "params": made.params, "status": made.status,
            "intervals": {name: made.interval(name) for name in made.params}, "held_out": errors,
        },
        "reason": "; ".join(reasons) or None,
    }  # fmt: skip
