"""A split of a budget with all that should be known of it: intervals, doubts, rivals, what would change
it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.plan.marginal import value_at
from flopwise.plan.response import Response
from flopwise.plan.setting import Setting
from flopwise.plan.solve import AROUND, Points, optimise

DRAWS = 200
FAR, TOO_FAR = 10.0, 100.0
"""Times beyond the runs that were fitted: to be verified; not to be believed."""
SAID = 0.9
"""Level of the predictions that a plan is later held to."""
ALIKE, SHIFT = 1.5, 0.1
"""Sizes, tokens and samples within this factor, and shares within this much, are the same answer."""


@dataclass(frozen=True)
class Split:
    """The best split under one law, with 95% intervals from the fit's draws.

    `loss` is that of a single run, None for a law of accuracy, whose value is `accuracy`; `regret` is what
    following this split costs, in the law's metric, if each of the other laws is the true one, and
    `expected_regret` what it costs on average over the fit's own draws. `post` are tokens of post-training.
    """

    law: str
    N: float
    D: float
    loss: float | None
    intervals: dict[str, tuple[float, float]]
    train_flops: float
    inference_flops: float
    extrapolation: float
    regret: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    metric: str = "loss"
    accuracy: float | None = None
    post: float = 0.0
    post_flops: float = 0.0
    samples: int = 1
    expected_regret: float = 0.0
    binding: list[str] = field(default_factory=list)
    """What holds the answer where it is: limits that were given, the most samples."""

    @property
    def value(self) -> float:
        """The metric."""
        return float(self.accuracy if self.loss is None else self.loss)  # type: ignore[arg-type]

    @property
    def point(self) -> dict[str, float]:
        """Where it is, as a law takes it."""
        return {"N": self.N, "D": self.D, "post": self.post, "k": float(self.samples)}


def found(points: Points, i: int = 0) -> dict[str, float]:
    """One of the splits as a point."""
    values = {"N": points.N[i], "D": points.D[i], "post": points.post[i], "k": points.k[i]}
    return {name: float(v) for name, v in values.items()}


def nothing_left(response: Response, setting: Setting, budget: float) -> FlopwiseError:
    """Why no split is affordable: what the answers take, the smallest run not too far off, or the limits."""
    base, limits = setting.limits.base, setting.limits.given()
    least = float(setting.answering(base[0] if base else 1.0, 1.0))
    who = "training the model to start from" if base else "even one parameter"
    if least >= budget:
        return FlopwiseError(
            f"plan: the answers leave nothing of {budget:.3g} FLOPs for {who}: they take {least:.3g}"
        )
    if not set(limits) - {"base", "data"}:
        N, D = base or (response.ranges["N"][0] / AROUND, response.ranges["D"][0] / AROUND)
        needed = float(setting.training(N, max(D, 1.0)) + setting.answering(N, 1.0))
        return FlopwiseError(
            f"plan: {budget:.3g} FLOPs are below the smallest run that is not more than {AROUND:.0f} times "
            f"below those fitted: N = {N:.3g} on {D:.3g} tokens, with its answers, takes {needed:.3g}"
        )
    names = ", ".join(f"--{name}" for name in limits if name not in ("base", "data"))
    return FlopwiseError(
        f"plan: no model keeps the limits within {budget:.3g} FLOPs; loosen {names}, or raise the budget"
    )


def split(
    response: Response, setting: Setting, budget: float, level: float = 0.95, seed: int = 0,
    points: Points | None = None, params: Sequence[dict[str, Any]] | None = None,
) -> Split:  # fmt: skip
    """The best split of a budget under one law.

    Raises:
        FlopwiseError: the budget affords nothing within the limits.
    """
    best = optimise(response, setting, budget) if points is None else points
    if not np.isfinite(best.score[0]) or best.N[0] < 1:
        raise nothing_left(response, setting, budget)
    at = found(best)
    params = response.draws(DRAWS, seed) if params is None else params
    drawn = optimise(response, setting, budget, params)
    made = response.predict(_columns(response, setting, at), level)
    ok = np.isfinite(drawn.score)
    quantiles = [0.5 - level / 2, 0.5 + level / 2]

    def ends(values: Any) -> tuple[float, float]:
        low, high = np.quantile(np.asarray(values)[ok], quantiles) if ok.any() else (np.nan, np.nan)
        return float(low), float(high)

    intervals: dict[str, tuple[float, float]] = {"N": ends(drawn.N), "D": ends(drawn.D)}
    shown = "accuracy" if response.rises else "loss"
    intervals[shown] = (float(made.low), float(made.high))
    if "post" in response.variables:
        intervals["post_flops"] = ends(setting.tuning(drawn.N, drawn.post))
    if "k" in response.variables:
        low, high = ends(drawn.k)
        intervals["samples"] = (float(np.floor(low)), float(np.ceil(high)))
    sign = 1.0 if response.rises else -1.0
    lost = drawn.score - sign * value_at(response, setting, params, at)
    lost = lost[np.isfinite(lost)]
    return Split(
        law=response.name, N=at["N"], D=at["D"], loss=None if response.rises else float(made.value),
        intervals=intervals, train_flops=float(setting.training(at["N"], at["D"])),
        inference_flops=float(setting.answering(at["N"], at["k"])), extrapolation=float(made.extrapolation),
        warnings=[*response.warnings, *_far(made.extrapolation), *_small(response, setting, budget)],
        metric=response.metric, accuracy=_accuracy(response, float(made.value)), post=at["post"],
        post_flops=float(setting.tuning(at["N"], at["post"])), samples=round(at["k"]),
        expected_regret=float(np.maximum(lost, 0.0).mean()) if len(lost) else 0.0,
        binding=_binding(response, setting, budget, at),
    )  # fmt: skip


def _accuracy(response: Response, value: float) -> float | None:
    """As a share, where the metric is one or the logarithm of one."""
    if response.rises:
        return value
    return float(np.exp(-value)) if response.metric == "nlp" else None


def _columns(response: Response, setting: Setting, at: dict[str, float]) -> dict[str, float]:
    columns = setting.columns(response.variables, at["N"], at["D"], at["post"], at["k"])
    return {name: float(v) for name, v in columns.items()}


def _far(beyond: float) -> list[str]:
    if beyond > TOO_FAR:
        return [
            f"{beyond:.3g}x beyond the runs fitted: no law is to be believed that far; make runs in between "
            "first"
        ]
    if beyond > FAR:
        return [f"{beyond:.0f}x beyond the largest run fitted: verify with a run in between"]
    return []


def _small(response: Response, setting: Setting, budget: float) -> list[str]:
    inside = response.inner or response.fit
    smallest = inside.support.get("C", [0.0])[0] or 0.0
    if budget < smallest and setting.limits.base is None:
        return [
            f"the budget, {budget:.3g} FLOPs, is below the smallest run fitted ({smallest:.3g}): the plan "
            "is an extrapolation downwards"
        ]
    return []


def _binding(response: Response, setting: Setting, budget: float, at: dict[str, float]) -> list[str]:
    said, limits = [], setting.limits
    if "k" in response.variables and at["k"] >= setting.demand.samples_max > 1:
        said.append(f"the most samples allowed, {setting.demand.samples_max:g}: more would still pay")
    if at["N"] >= 0.99 * setting.largest():
        said.append("memory at inference")
    if limits.latency is not None and setting.seconds(at["N"], at["k"]) >= 0.95 * limits.latency:
        said.append("latency")
    trained = float(setting.training(at["N"], at["D"]) + setting.tuning(at["N"], at["post"]))
    if trained >= 0.99 * setting.most_trained():
        said.append("the deadline: training takes all the time there is")
    for name, words in (("N", "size"), ("D", "tokens"), ("post", "post-training")):
        low, high = response.ranges.get(name, (0.0, np.inf))
        if name in response.variables and (
            at[name] >= 0.99 * AROUND * high or 0 < at[name] <= 1.01 * low / AROUND
        ):
            said.append(f"{words} {AROUND:.0f} times beyond what was fitted: no plan goes farther")
    if limits.data is not None and at["D"] > limits.data * 1.01:
        said.append(f"data: {at['D'] / limits.data:.3g} passes over what there is")
    if (left := 1 - float(setting.total(**at)) / budget) > 0.05:
        said.append(f"{left:.0%} of the budget is left: nothing within the limits turns it into more")
    return said


def add_regrets(splits: Sequence[Split], laws: Sequence[Response], setting: Setting, budget: float) -> None:
    """What each split gives away if another of the laws is right."""
    best = {r.name: float(optimise(r, setting, budget).score[0]) for r in laws} if len(laws) > 1 else {}
    for s in splits:
        for r in laws:
            if r.name != s.law:
                sign = 1.0 if r.rises else -1.0
                at = sign * float(value_at(r, setting, r.best(), s.point)[0])
                s.regret[r.name] = max(best[r.name] - at, 0.0)


def corners(response: Response, setting: Setting, budget: float) -> list[dict[str, Any]]:
    """What simple rules would do with the same budget: all of it into one law, or even shares.

    All into post-training or into test time means: pretrain no more than the smallest run that was fitted, or
    take the base as it is.
    """
    out = []
    asked_more = setting.demand.queries * setting.demand.answer_tokens * (setting.demand.samples_max - 1) > 0
    has = {"post": "post" in response.variables, "k": "k" in response.variables and asked_more}
    pretraining = _first(optimise(response, setting, budget, pinned={"share": 0.0, "k": 1.0}))
    out.append(("all into pretraining", pretraining))
    ranges = response.ranges
    N, D = setting.limits.base or (ranges["N"][0], ranges["D"][0])
    left = budget - float(setting.training(N, D))
    asked = float(setting.answering(N, 1.0))
    if has["post"]:
        post = (left - asked) / (setting.train_cost * N)
        out.append(("all into post-training", {"N": N, "D": D, "post": post, "k": 1.0} if post > 0 else None))
    if has["k"]:
        more = float(setting.answering(N, 2.0)) - asked
        k = np.floor(1 + (left - asked) / more) if more > 0 else 0.0
        k = min(k, np.floor(setting.demand.samples_max))
        out.append(("all into test time", {"N": N, "D": D, "post": 0.0, "k": float(k)} if k >= 1 else None))
    if has["post"] or has["k"]:
        out.append(("even shares", _even(response, setting, budget, has)))
    return [_corner(how, response, setting, at) for how, at in out]


def _first(points: Points) -> dict[str, float] | None:
    return found(points) if np.isfinite(points.score[0]) else None


def _even(
    response: Response, setting: Setting, budget: float, has: dict[str, bool]
) -> dict[str, float] | None:
    """An equal share for each law, the size the best for it."""
    share = budget / (1 + has["post"] + has["k"])
    low, high = response.ranges["N"]
    sizes = [setting.limits.base[0]] if setting.limits.base else np.geomspace(low / 100, high * 100, 400)
    N = np.asarray(sizes, dtype=float)
    one = setting.answering(N, 1.0)
    each = np.maximum(setting.answering(N, 2.0) - one, 1e-300)
    k = (
        np.floor(np.clip(1 + (share - one) / each, 0, setting.demand.samples_max))
        if has["k"]
        else 1.0 + 0 * N
    )
    trained = share if has["k"] else share - one
    D = setting.sunk + trained / (setting.train_cost * N)
    post = share / (setting.train_cost * N) * has["post"]
    ok = (k >= 1) & (D >= 1) & setting.fits(N, np.maximum(k, 1))
    columns = setting.columns(response.variables, N, np.maximum(D, 1), post, np.maximum(k, 1))
    score = np.where(ok, response.score(response.best(), columns)[0], -np.inf)
    i = int(score.argmax())
    if not np.isfinite(score[i]):
        return None
    return {"N": float(N[i]), "D": float(D[i]), "post": float(post[i]), "k": float(k[i])}


def _corner(how: str, response: Response, setting: Setting, at: dict[str, float] | None) -> dict[str, Any]:
    if at is None:
        return {"how": how, "affordable": False, "value": None}
    value = float(value_at(response, setting, response.best(), at)[0])
    return {"how": how, "affordable": True, **at, "value": value, "flops": float(setting.total(**at))}


def sensitivity(response: Response, setting: Setting, budget: float, best: Split) -> list[dict[str, Any]]:
    """The plan made again with one thing changed at a time; `changes` says whether the answer is another."""
    d, limits = setting.demand, setting.limits
    changed: list[tuple[str, Setting, float]] = [
        ("ten times the budget", setting, 10 * budget), ("a tenth of the budget", setting, budget / 10),
    ]  # fmt: skip
    name = "queries" if d.queries else "tokens" if d.tokens else ""
    if name:
        for factor, words in (
            (100, "100 times"),
            (10, "ten times"),
            (0.1, "a tenth of"),
            (0.01, "a hundredth of"),
        ):
            more = replace(d, **{name: getattr(d, name) * factor})
            changed.append(
                (
                    f"{words} the {'questions' if d.queries else 'demand'}",
                    replace(setting, demand=more),
                    budget,
                )
            )
    if "k" in response.variables:
        longer = replace(d, answer_tokens=4 * d.answer_tokens)
        changed.append(("answers four times as long", replace(setting, demand=longer), budget))
        most = replace(d, samples_max=4 * d.samples_max)
        changed.append((f"up to {most.samples_max:g} samples", replace(setting, demand=most), budget))
        if d.samples_max > 1:
            changed.append(("one sample only", replace(setting, demand=replace(d, samples_max=1.0)), budget))
    for limit in ("memory", "latency", "data", "deadline"):
        if getattr(limits, limit) is not None:
            free: dict[str, Any] = {limit: None}
            without = replace(setting, limits=replace(limits, **free))
            changed.append((f"no limit of {limit}", without, budget))
    return [_changed(words, response, s, b, best) for words, s, b in changed]


def _changed(words: str, response: Response, setting: Setting, budget: float, best: Split) -> dict[str, Any]:
    points = optimise(response, setting, budget)
    if not np.isfinite(points.score[0]):
        return {"if": words, "affordable": False, "changes": True}
    at = found(points)

    def share(post: float, D: float) -> float:
        trained = post + D - setting.sunk
        return post / trained if trained > 0 else 0.0

    def apart(a: float, b: float) -> bool:
        return max(a, b) > ALIKE * max(min(a, b), 1e-300)

    mine, theirs = share(best.post, best.D), share(at["post"], at["D"])
    changes = apart(at["N"], best.N) or apart(at["k"], best.samples) or abs(mine - theirs) > SHIFT
    value = float(value_at(response, setting, response.best(), at)[0])
    return {"if": words, "affordable": True, **at, "post_share": theirs, "value": value, "changes": changes}


def predictions(response: Response, setting: Setting, at: dict[str, float]) -> dict[str, Any]:
    """What the law says of a point, to be held to it later (`flopwise verify`)."""
    columns = _columns(response, setting, at)
    made = response.predict(columns, SAID)
    # Where data are short, the law is asked with what repeated tokens are worth; the run will see all of
    # them.
    shown = {name: at.get(name, v) for name, v in columns.items()}
    return {
        "what": response.metric, "at": shown, "value": float(made.value), "low": float(made.low),
        "high": float(made.high), "level": SAID,
    }  # fmt: skip


def neighbours(response: Response, setting: Setting, budget: float, best: Split) -> list[dict[str, Any]]:
    """Predictions of two splits beside the best, for the same budget: half and twice the size, or where that
    is given, half and twice the samples."""
    out = []
    share = best.post / max(best.post + best.D - setting.sunk, 1e-300)
    for factor in (0.5, 2.0):
        pinned = {"share": share, "k": float(best.samples), "N": best.N * factor}
        if setting.limits.base is not None:
            k = max(round(best.samples * factor), 1)
            if k == best.samples or "k" not in response.variables:
                continue
            pinned = {"k": float(k)}
        points = optimise(response, setting, budget, pinned=pinned)
        if np.isfinite(points.score[0]):
            out.append(predictions(response, setting, found(points)))
    return out
