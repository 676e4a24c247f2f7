"""How good a judge is at telling right samples from wrong ones, from its scores alone.

What counts for choosing among the samples of one problem is the ranking within problems; pooled over problems
a score looks good as soon as it knows which problems are easy.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from flopwise.infer import calibration
from flopwise.infer.estimators import intervals
from flopwise.infer.turnover import fit_best_of_n, n_at, peak, peak_best_of_n, turn_over

FEWEST = 20
"""Problems below which a turn-over is not looked for."""
SURE = 1e-6
"""Chances are kept so far from 0 and 1: their log-odds must be numbers."""
Z = 2.0
"""Standard errors by which the truth must fall for a turn-over."""
DRAWS = 500


def ranking(scores: np.ndarray, right: np.ndarray, groups: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """AUC within problems, the mean over those with right and wrong samples, and pooled over all.

    Args:
        scores: [N], NaN where there is none (left out).
        right: [N] verdicts.
        groups: [N] problems.

    Returns:
        `auc_within` (value, low, high, se over problems; None where no problem has both kinds) and `problems`
        behind it; `auc_pooled`.
    """
    there = ~np.isnan(scores)
    scores, right, groups = scores[there], np.asarray(right, dtype=bool)[there], groups[there]
    each = calibration.auc_within(scores, right, groups) if len(scores) else np.zeros(0)
    pooled = calibration.auc(scores, right)
    return {
        "auc_within": intervals(each[None], seed=seed)[0], "problems": len(each),
        "auc_pooled": None if np.isnan(pooled) else pooled,
    }  # fmt: skip


def log_odds(scores: np.ndarray) -> tuple[np.ndarray | None, str]:
    """Scores as log-odds, and how they were read; None where they are no statement of a chance.

    >>> log_odds(np.array([0.5, 1.0]))[1], log_odds(np.array([-40.0, -3.0]))[0]
    ('a chance', None)
    """
    known = scores[~np.isnan(scores)]
    if not len(known):
        return None, "no scores"
    if known.min() >= 0 and known.max() <= 1:
        chances = np.clip(scores, SURE, 1 - SURE)
        return np.log(chances) - np.log1p(-chances), "a chance"
    if known.max() <= 0:
        return None, "a log-probability, which is no chance to be right"
    return scores, "log-odds"


def calibrated(scores: np.ndarray, right: np.ndarray, groups: np.ndarray) -> dict[str, Any]:
    """Whether scores mean the chances they name: [N] each, as `ranking`.

    Returns:
        `read_as`; where scores name chances also `brier` (with `brier_of_the_share`, that of a judge who says
        the share right of every sample), `calibration_error` (with `error_by_chance`), `temperature`, what
        dividing by it brings (`scaled`, cross-fitted) and the table behind it (`reliability`).
    """
    logits, how = log_odds(scores)
    there = ~np.isnan(scores)
    if logits is None or np.unique(right[there]).size < 2:
        return {"read_as": how if logits is None else f"{how}; all samples are alike, right or wrong"}
    metrics, found = calibration.describe(logits[there], right[there], groups[there])
    values = {name: metric.value for name, metric in metrics.items()}
    return {"read_as": how, **values, **found}


def overoptimised(values: np.ndarray, n: list[int], seed: int = 0) -> dict[str, Any]:
    """Where best-of-n by the score is best and whether it falls beyond.

    Args:
        values: [sizes, problems] accuracy of best-of-n (`estimators.best_of_k`).
        n: the sizes, growing, from 1.

    Returns:
        `peak` (n, low, high: an n at the edge of what was measured may lie beyond it); `turn_over` (`rise` to
        the best n and `fall` from it to the largest, judged on other problems than the best n was chosen on);
        `law`: the fit of overoptimisation_best_of_n with its own peak; `verdict` in words. With fewer than 20
        problems or four sizes only a verdict.
    """
    P = values.shape[1]
    if P < FEWEST or len(n) < 4:
        few = f"{P} problems" if P < FEWEST else f"{len(n)} sizes of n"
        return {"verdict": f"not looked for: {few}, it takes {FEWEST} problems and 4 sizes"}
    turned = turn_over(values, n)
    fitted = fit_best_of_n(values, n, DRAWS, seed).to_dict(peak_best_of_n)
    for end in ("", "_low", "_high"):
        if fitted.get(f"peak_d{end}") is not None:
            fitted[f"peak_n{end}"] = n_at(fitted[f"peak_d{end}"])
    best, fall = peak(values, n, seed=seed), turned["fall"]
    if fall["z"] > Z:
        said = f"falls by {fall['value']:.3f} (standard error {fall['se']:.3f}) beyond its best n"
    elif turned["rise"]["z"] > Z:
        said = f"rises up to n = {best['n']}, no fall is seen up to n = {n[-1]}"
    else:
        said = f"neither rise nor fall is seen up to n = {n[-1]}"
    law = {"name": "overoptimisation_best_of_n", **fitted}
    return {"peak": best, "turn_over": turned, "law": law, "verdict": said}
