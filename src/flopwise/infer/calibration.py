"""How good a score is at telling right from wrong: accuracy, ranking within problems, calibration.

Scores are log-odds. Standard errors treat problems as the units: answers to one problem are alike.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from flopwise.records.record import Metric

BINS = 10
WIDEST = 6.0
"""A temperature is sought from exp(-6) to exp(6)."""


def auc(scores: np.ndarray, right: np.ndarray) -> float:
    """Chance that a right sample scores above a wrong one, ties half; NaN where there are none of a kind.

    >>> auc(np.array([0.1, 0.4, 0.4, 0.9]), np.array([False, True, False, True]))
    0.875
    """
    good, bad = np.asarray(scores)[right], np.sort(np.asarray(scores)[~right])
    if not len(good) or not len(bad):
        return float("nan")
    below, upto = (np.searchsorted(bad, good, side).mean() for side in ("left", "right"))
    return float((below + upto) / 2 / len(bad))


def auc_within(scores: np.ndarray, right: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """`auc` within each problem that has answers of both kinds: [at most the number of problems].

    Pooled over problems it mostly measures which problems are easy, which is no help in choosing among the
    answers to one.
    """
    order = np.argsort(groups, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(np.asarray(groups)[order])) + 1)
    each = np.array([auc(scores[rows], right[rows]) for rows in parts])
    return each[~np.isnan(each)]


def log_loss(scores: np.ndarray, right: np.ndarray) -> float:
    """Mean -log of the chance given to what is true, in nats; `right` may be shares."""
    return float(np.mean(np.logaddexp(0.0, scores) - right * scores))


def brier(scores: np.ndarray, right: np.ndarray) -> float:
    """Mean squared difference of chance and truth (Brier 1950); 0.25 for a coin.

    >>> brier(np.array([0.0, 0.0]), np.array([True, False]))
    0.25
    """
    return float(np.mean((_chance(scores) - right) ** 2))


def reliability(scores: np.ndarray, right: np.ndarray, bins: int = BINS) -> list[dict[str, float]]:
    """The reliability table: of each occupied bin of equal width the mean chance given, the share right, n.

    >>> reliability(np.array([-9.0, 9.0, 9.0]), np.array([False, True, False]), 2)[1]["right"]
    0.5
    """
    p = _chance(scores)
    which = np.minimum((p * bins).astype(int), bins - 1)
    n = np.bincount(which, minlength=bins)
    given = np.bincount(which, p, minlength=bins) / np.maximum(n, 1)
    share = np.bincount(which, np.asarray(right, dtype=float), minlength=bins) / np.maximum(n, 1)
    return [{"given": float(given[b]), "right": float(share[b]), "n": int(n[b])} for b in np.flatnonzero(n)]


def expected_error(table: list[dict[str, float]]) -> float:
    """Expected calibration error: mean distance of chance and share right, bins weighted by n (Guo et al.,
    arXiv 1706.04599, eq. 3)."""
    return sum(row["n"] * abs(row["given"] - row["right"]) for row in table) / sum(row["n"] for row in table)


def error_by_chance(scores: np.ndarray, draws: int = 200, bins: int = BINS) -> float:
    """The expected calibration error that so many answers would show if the chances were all true.

    It is never 0: bins are finite. An error is worth a word where it exceeds this.
    """
    p, rng = _chance(scores), np.random.default_rng(0)
    return float(
        np.mean([expected_error(reliability(scores, rng.random(len(p)) < p, bins)) for _ in range(draws)])
    )


def temperature(scores: np.ndarray, right: np.ndarray) -> float:
    """What the scores are to be divided by for the least log loss (Guo et al., section 4.2)."""
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda t: log_loss(scores * math.exp(-t), right), bounds=(-WIDEST, WIDEST), method="bounded"
    )
    return math.exp(float(found.x))


def scaled(scores: np.ndarray, right: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Scores over the temperature, each half of the problems by that fitted to the other half."""
    half = np.searchsorted(np.unique(groups), groups) % 2 == 0
    out = scores.astype(float).copy()
    if half.all() or not half.any():
        return out
    out[half] /= temperature(scores[~half], right[~half])
    out[~half] /= temperature(scores[half], right[half])
    return out


def cluster_error(values: np.ndarray, groups: np.ndarray) -> float | None:
    """Standard error of the mean of values [N] whose problems [N] are the independent units."""
    names, place = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        return None
    off = np.bincount(place, values - values.mean())
    return float(math.sqrt(len(names) / (len(names) - 1) * np.sum(off**2)) / len(values))


def describe(
    scores: np.ndarray, right: np.ndarray, groups: np.ndarray
) -> tuple[dict[str, Metric], dict[str, Any]]:
    """Metrics and the record's `calibration` of held-out scores [N], verdicts [N], problems [N].

    Verdicts are true or false, or shares; a share counts as right above a half. `temperature` is what the
    scores should be divided by; what is said of the scaled scores is cross-fitted, so that no answer's
    temperature was fitted to itself.
    """
    from flopwise.records.record import Metric

    scores, right = np.asarray(scores, dtype=float), np.asarray(right, dtype=float)
    hits = (scores > 0) == (right > 0.5)
    better = scaled(scores, right, groups)
    table, table_scaled = reliability(scores, right), reliability(better, right)
    squares = (_chance(scores) - right) ** 2
    metrics = {
        "accuracy": Metric(value=float(hits.mean()), se=cluster_error(hits * 1.0, groups), n=len(hits)),
        "brier": Metric(value=brier(scores, right), se=cluster_error(squares, groups), n=len(hits)),
        "calibration_error": Metric(value=expected_error(table), se=None, n=len(hits)),
    }
    calibration = {
        "share_right": float(right.mean()), "brier_of_the_share": float(right.var()), "reliability": table,
        "error_by_chance": error_by_chance(scores), "log_loss": log_loss(scores, right),
        "temperature": temperature(scores, right),
        "scaled": {
            "brier": brier(better, right), "calibration_error": expected_error(table_scaled),
            "log_loss": log_loss(better, right), "reliability": table_scaled,
        },
    }  # fmt: skip
    return metrics, calibration


def within(scores: np.ndarray, right: np.ndarray, groups: np.ndarray) -> dict[str, Metric]:
    """`auc_within`, the mean over problems, and `auc_pooled`, as a record wants them."""
    from flopwise.records.record import Metric

    each = auc_within(scores, right, groups)
    se = float(each.std(ddof=1) / len(each) ** 0.5) if len(each) > 1 else None
    value = float(each.mean()) if len(each) else None
    pooled = auc(scores, right)
    return {
        "auc_within": Metric(value=value, se=se, n=len(each)),
        "auc_pooled": Metric(value=None if math.isnan(pooled) else pooled, se=None, n=len(scores)),
    }


def _chance(scores: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0.0, -np.asarray(scores, dtype=float)))
