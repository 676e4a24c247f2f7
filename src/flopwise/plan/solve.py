"""The best point for a budget, or the least budget for a target, for one set of parameters or many at once.

A point is (N, share of training that is post-training, k); the tokens follow, since what is left of a budget
is spent. A grid over all of it finds the valley, pattern steps walk to its bottom: for every parameter set,
all in arrays. Tests compare it with brute force.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from flopwise.plan.response import Response
from flopwise.plan.setting import Setting

Array = np.ndarray
EDGE = 12.0
"""Logit of a share beyond which it is none, or all."""
GRID = (40, 17, 15)
COARSE = (14, 7, 7)
"""Points along log N, the logit of the share and log k: for one set of parameters, for draws of them."""
STEPS, STEPS_COARSE = 24, 12
"""Pattern steps, each of which moves or halves."""
AROUND = 100.0
"""No plan goes farther than this many times beyond what was fitted, in size, tokens or post-training: there a
law with many parameters says whatever its noise makes it say."""


@dataclass(frozen=True)
class Points:
    """Splits, one for each set of parameters [b]: parameters, tokens, tokens of post-training, samples."""

    N: Array
    D: Array
    post: Array
    k: Array
    score: Array
    """The metric, with the sign that makes more better; minus infinity where nothing is affordable."""


class Space:
    """The points that a budget affords."""

    def __init__(
        self, response: Response, setting: Setting, budget: Any, pinned: dict[str, float] | None = None
    ):
        """`budget` a number, or [b, 1] for one each. `pinned`: N, share or k that are not free."""
        self.response, self.setting, self.budget = response, setting, budget
        self.variables = response.variables
        pinned = dict(pinned or {})
        base = setting.limits.base
        low, high = response.ranges.get("N", (1e3, 1e12))
        most = float(np.max(budget))
        top = most / (setting.train_cost + setting.demand.per_parameter(1.0, setting.answer_cost))
        n = (max(low / AROUND, 1.0), max(min(high * AROUND, top, setting.largest()), 1.0))
        fewest, most_tokens = response.ranges.get("D", (1.0, np.inf))
        self.tokens = (max(fewest / AROUND, 1.0), max(most_tokens * AROUND, setting.sunk))
        self.post = response.ranges.get("post", (0.0, 0.0))[1] * AROUND
        if base is not None:
            n = (base[0], base[0])
        n = (pinned["N"],) * 2 if "N" in pinned else n
        share = (-EDGE, EDGE) if "post" in self.variables else (-EDGE, -EDGE)
        share = (_logit(pinned["share"]),) * 2 if "share" in pinned else share
        k = (1.0, max(setting.demand.samples_max, 1.0)) if "k" in self.variables else (1.0, 1.0)
        k = (pinned["k"],) * 2 if "k" in pinned else k
        self.low = np.array([np.log(n[0]), share[0], np.log(k[0])])
        self.high = np.maximum(np.array([np.log(n[1]), share[1], np.log(k[1])]), self.low)
        self.spend = np.ones(1)
        if "U" in self.variables and setting.limits.data is not None:
            # More passes over the same data may hurt: then less than all is spent.
            self.spend = np.geomspace(0.02, 1.0, 12)

    def points(self, z: Array, spend: Any = 1.0) -> dict[str, Array]:
        """N, D, post, k of coordinates z [..., 3]; D is negative where the budget does not reach."""
        s = self.setting
        N, k = np.exp(z[..., 0]), np.exp(z[..., 2])
        share = np.where(
            z[..., 1] <= -EDGE, 0.0, np.where(z[..., 1] >= EDGE, 1.0, 1 / (1 + np.exp(-z[..., 1])))
        )
        left = np.minimum(self.budget - s.answering(N, k), s.most_trained())
        tokens = left / (s.train_cost * N) * spend
        D = np.minimum(s.sunk + (1 - share) * tokens, self.tokens[1])
        post = np.minimum(share * tokens, self.post)
        return {"N": N, "D": np.where(left > 0, D, -1.0), "post": post, "k": k}

    def score(self, params: Sequence[dict[str, Any]], z: Array) -> Array:
        """Scores [b, m] of coordinates [b or 1, m, 3]; the best over how much is spent."""
        best: Array | None = None
        for spend in self.spend:
            p = self.points(z, spend)
            ok = (p["D"] >= self.tokens[0]) & self.setting.fits(p["N"], p["k"])
            at = p | {"D": np.maximum(p["D"], 1.0), "post": np.maximum(p["post"], 0.0)}
            found = self.response.score(params, self.setting.columns(self.variables, **at))
            found = np.where(ok, found, -np.inf)
            best = found if best is None else np.maximum(best, found)
        assert best is not None
        return best

    def finish(self, params: Sequence[dict[str, Any]], z: Array, score: Array) -> Points:
        """Coordinates [b, 3] as splits."""
        spend: Any = 1.0
        if len(self.spend) > 1:
            each = np.stack([self._single(params, z, s) for s in self.spend], axis=1)
            spend = self.spend[each.argmax(axis=1)][:, None]
        p = {name: v[:, 0] for name, v in self.points(z[:, None, :], spend).items()}
        nearest = np.round(p["k"])
        k = np.where(np.abs(p["k"] / nearest - 1) < 1e-9, nearest, p["k"])
        return Points(p["N"], p["D"], p["post"], k, score)

    def _single(self, params: Sequence[dict[str, Any]], z: Array, spend: float) -> Array:
        one = Space.__new__(Space)
        one.__dict__ |= self.__dict__ | {"spend": np.array([spend])}
        return one.score(params, z[:, None, :])[:, 0]


def _logit(share: float) -> float:
    if share <= 0 or share >= 1:
        return -EDGE if share <= 0 else EDGE
    return float(np.log(share / (1 - share)))


def search(
    score: Callable[[Array], Array], low: Array, high: Array, grid: Sequence[int], steps: int
) -> tuple[Array, Array]:
    """Where `score` ([b or 1, m, d] to [b, m]) is largest between `low` and `high` [d]: [b, d] and [b]."""
    axes = [np.linspace(a, b, n) if b > a else np.array([a]) for a, b, n in zip(low, high, grid, strict=True)]
    mesh = np.stack([m.ravel() for m in np.meshgrid(*axes, indexing="ij")], axis=-1)
    values = score(mesh[None])
    i = values.argmax(axis=1)
    rows = np.arange(len(i))
    z, best = mesh[i], values[rows, i]
    step = np.array([axis[1] - axis[0] if len(axis) > 1 else 0.0 for axis in axes]) * 0.5
    moves = np.array(np.meshgrid(*[(-1.0, 0.0, 1.0) if s else (0.0,) for s in step], indexing="ij"))
    moves = moves.reshape(len(step), -1).T
    size = np.ones(len(z))
    for _ in range(steps):
        near = np.clip(z[:, None, :] + moves * step * size[:, None, None], low, high)
        values = score(near)
        i = values.argmax(axis=1)
        better = values[rows, i] > best
        z = np.where(better[:, None], near[rows, i], z)
        best = np.where(better, values[rows, i], best)
        size = np.where(better, size, size / 2)
    return z, best


def optimise(
    response: Response, setting: Setting, budget: Any, params: Sequence[dict[str, Any]] | None = None,
    pinned: dict[str, float] | None = None,
) -> Points:  # fmt: skip
    """The best split of a budget, for each set of parameters; without any, for the fitted ones, and then with
    a whole number of samples."""
    single = params is None
    sets = response.best() if params is None else params
    if params is not None and (exact := _closed(response, setting, budget, sets, pinned)) is not None:
        return exact
    if single and (exact := _closed(response, setting, budget, sets, pinned)) is not None:
        return exact
    space = Space(response, setting, budget, pinned)
    grid, steps = (GRID, STEPS) if single else (COARSE, STEPS_COARSE)
    z, best = search(lambda z: space.score(sets, z), space.low, space.high, grid, steps)
    if single and np.isfinite(best[0]) and space.high[2] > space.low[2]:
        z, best = _whole(space, sets, z)
    return space.finish(sets, z, best)


def _whole(space: Space, sets: Sequence[dict[str, Any]], z: Array) -> tuple[Array, Array]:
    """The better of the whole numbers of samples beside the best."""
    k = float(np.exp(z[0, 2]))
    found = []
    for whole in {max(1.0, np.floor(k)), min(np.ceil(k), np.floor(np.exp(space.high[2]) + 1e-9))}:
        at = np.log(max(whole, 1.0))
        low, high = space.low.copy(), space.high.copy()
        low[2] = high[2] = at
        low[0], high[0] = max(low[0], z[0, 0] - 1), min(high[0], z[0, 0] + 1)
        if abs(z[0, 1]) < EDGE:
            low[1], high[1] = max(low[1], z[0, 1] - 2), min(high[1], z[0, 1] + 2)
        else:
            low[1] = high[1] = z[0, 1]
        found.append(search(lambda p: space.score(sets, p), low, high, (9, 9, 1), STEPS))
    return max(found, key=lambda pair: pair[1][0])


def _closed(
    response: Response, setting: Setting, budget: Any, params: Sequence[dict[str, Any]],
    pinned: dict[str, float] | None,
) -> Points | None:  # fmt: skip
    """By `laws.optimum` (in closed form where there is one) for a law in N and D alone that nothing
    limits."""
    from flopwise.laws.optimum import optimum

    plain = replace(setting, demand=replace(setting.demand, samples_max=1.0))
    free = setting.limits == type(setting.limits)() and (setting.train_cost, setting.answer_cost) == (
        6.0,
        2.0,
    )
    plain_law = response.inner is None and response.variables == {"N", "D"} and not response.rises
    if pinned or not plain_law or not free or np.ndim(budget):
        return None
    demand = float(plain.demand.per_parameter(1.0)) / 2
    if budget <= 6 + 2 * demand:
        return None
    flat = {name: np.ravel(v) for name, v in params[0].items()}
    N, D, loss = optimum(response.fit.form, flat, float(budget), demand)
    one = np.ones(len(N))
    return Points(N, D, 0 * one, one, -loss)


def cheapest(
    response: Response, setting: Setting, target: float, span: tuple[float, float]
) -> tuple[float, Points] | None:
    """The least budget within `span` whose best split reaches `target` (with `Points.score`'s sign), and
    it."""
    sets = response.best()

    def reaches(log_budget: float, quick: bool = False) -> Points | None:
        points = optimise(response, setting, float(np.exp(log_budget)), sets if quick else None)
        return points if points.score[0] >= target else None

    low, high = np.log(span[0]), np.log(span[1])
    at = reaches(high)
    if at is None:
        return None
    near, far = low, high
    while far - near > 0.02:  # roughly, on a coarse grid; then again around what that found
        middle = (near + far) / 2
        near, far = (near, middle) if reaches(middle, quick=True) else (middle, far)
    for edge in (far - 0.1, far + 0.1):
        if low < edge < high:
            found = reaches(edge)
            low, high, at = (edge, high, at) if found is None else (low, edge, found)
    while high - low > 1e-3:
        middle = (low + high) / 2
        found = reaches(middle)
        low, high, at = (middle, high, at) if found is None else (low, middle, found)
    return float(np.exp(high)), at


def cheapest_draws(
    response: Response, setting: Setting, target: float, budget: float, params: Sequence[dict[str, Any]],
    decades: float = 2.0, n: int = 7,
) -> Array:  # fmt: skip
    """The least budgets [b] for draws of the parameters, read between budgets around the best estimate;
    infinite where even the largest does not reach, and the smallest where all do."""
    budgets = budget * np.logspace(-decades, decades, n)
    scores = np.stack([optimise(response, setting, float(b), params).score for b in budgets], axis=1)
    scores = np.maximum.accumulate(scores, axis=1)
    out = np.full(len(scores), np.inf)
    for i, row in enumerate(scores):
        j = int(np.argmax(row >= target))
        if row[j] < target:
            continue
        if j == 0 or not np.isfinite(row[j - 1]):
            out[i] = budgets[j]
            continue
        share = (target - row[j - 1]) / max(row[j] - row[j - 1], 1e-300)
        out[i] = budgets[j - 1] * (budgets[j] / budgets[j - 1]) ** share
    return out
