"""What the next FLOP brings by each law at a point, and what one law's gain costs by another, with
intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.plan.response import Response
from flopwise.plan.setting import Setting

Array = np.ndarray
DRAWS = 200
STEP = 1e-3
"""Relative step of the differences."""
MOST = 1e8
"""Times as much pretraining, beyond which nothing is claimed."""
WAYS = {
    "larger": ("pretraining", "a larger model on the same tokens"),
    "longer": ("pretraining", "the same model on more tokens"),
    "post": ("post-training", "more post-training"),
    "samples": ("test time", "more samples a question"),
}


def full_point(at: Mapping[str, float]) -> dict[str, float]:
    """A point with post 0 and one sample where nothing else is said.

    Raises:
        FlopwiseError: N or D is missing, or a value is no number above 0.
    """
    point = {"post": 0.0, "k": 1.0, **{name: float(v) for name, v in at.items()}}
    for name in ("N", "D"):
        if name not in point:
            raise FlopwiseError(f"plan: a point needs N and D; {name} is missing")
    for name, v in point.items():
        if not np.isfinite(v) or v < 0 or (v == 0 and name != "post"):
            raise FlopwiseError(f"plan: {name} is {v:g}, must be a number above 0")
    return point


def value_at(
    response: Response, setting: Setting, params: Sequence[dict[str, Any]], point: Mapping[str, Any]
) -> Array:
    """The metric [b] at a point, or at one each where its values are [b, 1]."""
    columns = setting.columns(response.variables, point["N"], point["D"], point["post"], point["k"])
    columns = {name: np.atleast_2d(np.asarray(v, dtype=float)) for name, v in columns.items()}
    return response.value(params, columns)[:, 0]


def marginal(
    response: Response, setting: Setting, at: Mapping[str, float], level: float = 0.95, seed: int = 0,
    draws: Sequence[dict[str, Any]] | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Gain of the metric per FLOP by each way that the law knows; above 0 is better, for a loss too.

    Each row: law, how, `per_flop` with `low` and `high`, and `per_percent`, the gain that one percent of what
    the point costs in all would bring. Without a demand, samples have no price and are left out.
    """
    point = full_point(at)
    params = response.draws(DRAWS, seed) if draws is None else draws
    total = float(setting.total(**point))
    sign = 1.0 if response.rises else -1.0
    rows = []
    for way, (law, how) in WAYS.items():
        name = {"larger": "N", "longer": "D", "post": "post", "samples": "k"}[way]
        if name not in response.variables:
            continue
        h = STEP * point[name] if point[name] else STEP * point["D"] * 0.01
        up, down = point | {name: point[name] + h}, point | {name: max(point[name] - h, 0.0)}
        cost = float(setting.total(**up) - setting.total(**down))
        if cost <= 0:
            continue
        found = [
            sign * (value_at(response, setting, p, up) - value_at(response, setting, p, down)) / cost
            for p in (response.best(), params)
        ]
        low, high = np.nanquantile(found[1], [0.5 - level / 2, 0.5 + level / 2])
        rows.append({
            "law": law, "how": how, "per_flop": float(found[0][0]), "low": float(low), "high": float(high),
            "per_percent": float(found[0][0]) * total / 100,
        })  # fmt: skip
    return rows


def exchange(
    response: Response, setting: Setting, at: Mapping[str, float], samples: Sequence[float] = (4, 16, 64),
    level: float = 0.95, seed: int = 0, draws: Sequence[dict[str, Any]] | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """How much pretraining would bring the same as k samples, or as the post-training, at a point.

    `pretraining`: times as much compute, N and D grown alike, with one sample (or without post-training),
    until the metric is the same; None where no 1e8-fold reaches it, or where fewer than the interval's share
    of draws do for `high`. `tokens`: the same by more tokens alone.
    """
    point = full_point(at)
    params = response.draws(DRAWS, seed) if draws is None else draws
    rows = []
    if "k" in response.variables:
        one = point | {"k": 1.0}
        rows = [
            {"of": f"{k:g} samples", "k": float(k)}
            | _worth(response, setting, one, point | {"k": float(k)}, params, level)
            for k in samples if k > 1
        ]  # fmt: skip
    if "post" in response.variables and point["post"] > 0:
        without = point | {"post": 0.0}
        rows.append(
            {"of": "post-training", "flops": float(setting.tuning(point["N"], point["post"]))}
            | _worth(response, setting, without, point, params, level)
        )
    return rows


def _worth(
    response: Response, setting: Setting, start: dict[str, float], goal: dict[str, float],
    params: Sequence[dict[str, Any]], level: float,
) -> dict[str, Any]:  # fmt: skip
    out: dict[str, Any] = {}
    for name, powers in (("pretraining", (0.5, 0.5)), ("tokens", (0.0, 1.0))):
        best = _multiple(response, setting, start, goal, response.best(), powers)[0]
        drawn = np.sort(_multiple(response, setting, start, goal, params, powers))
        low, high = (float(drawn[min(int(q * len(drawn)), len(drawn) - 1)])
                     for q in (0.5 - level / 2, 0.5 + level / 2))  # fmt: skip
        ends = {"value": float(best), "low": low, "high": high}
        out[name] = {key: v if np.isfinite(v) else None for key, v in ends.items()}
    return out


def _multiple(
    response: Response, setting: Setting, start: dict[str, float], goal: dict[str, float],
    params: Sequence[dict[str, Any]], powers: tuple[float, float],
) -> Array:  # fmt: skip
    """Times as much compute [b] that brings `start` to the metric of `goal`; infinite where none does."""
    sign = 1.0 if response.rises else -1.0
    wanted = sign * value_at(response, setting, params, goal)

    def reached(logs: Array) -> Array:
        x = np.exp(logs)[:, None]
        grown = start | {"N": start["N"] * x ** powers[0], "D": start["D"] * x ** powers[1]}
        return sign * value_at(response, setting, params, grown) >= wanted

    low, high = np.zeros(len(wanted)), np.full(len(wanted), np.log(MOST))
    ever = reached(high)
    for _ in range(40):
        middle = (low + high) / 2
        there = reached(middle)
        low, high = np.where(there, low, middle), np.where(there, middle, high)
    return np.where(ever, np.exp(high), np.inf)
