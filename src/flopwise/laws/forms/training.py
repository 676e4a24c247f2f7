"""Learning rate and batch as functions of size; loss as a function of a schedule of learning rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.laws.forms.dense import FLOOR
from flopwise.laws.law import Array, Columns, Law, Parameter, Published, register

_STEP = "Li et al. 2025 (Step law), arXiv 2503.04715"
_DEEPSEEK = "DeepSeek-AI 2024, arXiv 2401.02954"
_NOT_6ND = "C = M D with M non-embedding FLOP per token"
_RATE = {"lr": "peak learning rate"}
_BATCH = {"batch": "tokens"}

LR = register(
    Law(
        name="lr", regime="pretraining", formula="lr = c * N^-a * D^b",
        parameters=(
            Parameter("c", (1e-6, 1e3)), Parameter("a", (0.0, 1.0), log=False, bounds=(-3.0, 3.0)),
            Parameter("b", (-0.3, 0.6), log=False, bounds=(-3.0, 3.0)),
        ),
        source=_STEP, status="checked", units=_RATE,
        needs="the best learning rate at several sizes and budgets, each inside the rates tried",
        published=(
            Published(
                {"c": 1.79, "a": 0.713, "b": 0.307}, _STEP, "summary",
                "N without vocabulary; a reader of the released data found exponents .767 and .197",
            ),
        ),
    )
)  # fmt: skip

BATCH = register(
    Law(
        name="batch", regime="pretraining", formula="batch = c * D^b",
        parameters=(
            Parameter("c", (1e-4, 1e4)), Parameter("b", (0.0, 1.0), log=False, bounds=(-3.0, 3.0)),
        ),
        source=_STEP, status="checked", units=_BATCH,
        needs="the best batch at several budgets, each inside the batches tried",
        published=(Published({"c": 0.58, "b": 0.571}, _STEP, "summary"),),
    )
)  # fmt: skip

LR_COMPUTE = register(
    Law(
        name="lr_compute", regime="pretraining", formula="lr = c * C^-a",
        parameters=(
            Parameter("c", (1e-4, 1e2)), Parameter("a", (0.0, 0.5), log=False, bounds=(-3.0, 3.0)),
        ),
        source=_DEEPSEEK, status="summary", units=_RATE,
        needs="the best learning rate at several budgets, sizes being the best for each",
        published=(
            Published({"c": 0.3118, "a": 0.125}, _DEEPSEEK, "summary", _NOT_6ND),
        ),
    )
)  # fmt: skip

BATCH_COMPUTE = register(
    Law(
        name="batch_compute", regime="pretraining", formula="batch = c * C^b",
        parameters=(
            Parameter("c", (1e-4, 1e4)), Parameter("b", (0.0, 0.6), log=False, bounds=(-3.0, 3.0)),
        ),
        source=_DEEPSEEK, status="summary", units=_BATCH,
        needs="the best batch at several budgets, sizes being the best for each",
        published=(
            Published({"c": 0.2920, "b": 0.3271}, _DEEPSEEK, "summary", _NOT_6ND),
            Published({"b": 0.24}, "Kaplan et al. 2020, arXiv 2001.08361", "summary", "exponent alone"),
        ),
    )
)  # fmt: skip

ANNEALING = register(
    Law(
        name="annealing", regime="pretraining", formula="loss = E + A * S1^-alpha - F * S2",
        parameters=(
            FLOOR, Parameter("A", (0.01, 100.0)), Parameter("alpha", (0.1, 1.5)),
            Parameter("F", (0.01, 10.0)),
        ),
        from_zero=("S2",),
        source="Tissue et al. 2024, arXiv 2408.11029, whose L0 and C are E and F here", status="summary",
        needs="curves of one size under two schedules or more, or one with a part at a constant rate",
        units={
            "S1": "sum of learning rates so far, `areas`", "S2": "annealing area so far, `areas`",
        },
    )
)  # fmt: skip


def areas(rates: Array, decay: float = 0.999) -> tuple[Array, Array]:
    """S1 and S2 of the annealing law after each step of a schedule of learning rates [n].

    S1 sums the rates. S2 sums a momentum of their decreases, m(i) = decay m(i - 1) + rate(i - 1) - rate(i).
    Begin after warm-up, or with the peak rate in its place, as the paper does.

    Raises:
        FlopwiseError: rates are not a sequence of positive or zero numbers, or decay is not in [0, 1).
    """
    rates = _schedule(rates)
    if not 0 <= decay < 1:
        raise FlopwiseError(f"decay is {decay}, it must be at least 0 and below 1, as .999")
    drops = -np.diff(rates, prepend=rates[0])
    momentum = list(accumulate(drops.tolist(), lambda m, drop: decay * m + drop))
    return np.cumsum(rates), np.cumsum(momentum)


def multi_power(schedules: Sequence[Array], warmup: float = 0.0) -> Law:
    """The multi-power law of given schedules, not registered: columns S (steps done) and schedule (from 0).

    loss = E + A (S1 + warmup)^-alpha - B sum over k of (rate(k - 1) - rate(k)) G(k),
    G(k) = 1 - (1 + F rate(k)^-gamma S_k)^-beta, S_k the sum of rates from k on. `warmup`: area under the
    learning rate during warm-up; `schedules` begin after it. Time goes with rows times changes of the rate: a
    schedule in pieces of constant rate is fast.

    Raises:
        FlopwiseError: a schedule is not a sequence of positive or zero numbers.
    """
    known = [_schedule(rates) for rates in schedules]
    area = [np.concatenate([[0.0], np.cumsum(rates)]) for rates in known]
    changes = [np.flatnonzero(np.diff(rates)) + 1 for rates in known]

    def lost(p: Mapping[str, Any], which: int, done: int) -> Array:
        rates, sums = known[which], area[which]
        if done >= len(sums):
            raise FlopwiseError(f"S is {done}, but schedule {which} has {len(rates)} steps")
        at = changes[which][changes[which] < done]
        # Parameters may be [b, 1]: changes go on a last axis, which is summed away.
        F, beta, gamma = (np.asarray(p[name])[..., None] for name in ("F", "beta", "gamma"))
        rate = np.maximum(rates[at], 1e-300)
        drop = 1 - (1 + F * rate**-gamma * (sums[done] - sums[at])) ** -beta
        return np.atleast_1d(p["B"] * ((rates[at - 1] - rates[at]) * drop).sum(axis=-1))

    def function(p: Mapping[str, Any], x: Columns) -> Array:
        rows = list(zip(x["schedule"].astype(int), x["S"].astype(int), strict=True))
        losses = np.concatenate([lost(p, w, done) for w, done in rows], axis=-1)
        S1 = np.array([area[w][done] for w, done in rows])
        return np.asarray(p["E"] + p["A"] * (S1 + warmup) ** -p["alpha"] - losses)

    return Law(
        name="multi_power", regime="pretraining",
        formula="loss = E + A (S1 + warmup)^-alpha - B sum_k (rate_(k-1) - rate_k) "
        "(1 - (1 + F rate_k^-gamma S_k)^-beta)",
        parameters=(
            FLOOR, Parameter("A", (0.05, 5.0)), Parameter("alpha", (0.2, 1.0)),
            Parameter("B", (50.0, 2000.0)), Parameter("F", (0.2, 10.0)),
            Parameter("beta", (0.2, 1.2)), Parameter("gamma", (0.2, 1.2)),
        ),
        variables=("S", "schedule"), target="loss", function=function, from_zero=("schedule",),
        units={"schedule": "which of the schedules, from 0"},
        source="Luo et al. 2025, arXiv 2503.12811, whose L0 and C are E and F here", status="checked",
        needs="curves of one size under two schedules or more",
        published=tuple(
            Published(
                dict(zip(("E", "A", "alpha", "B", "F", "beta", "gamma"), values, strict=True)),
                "Luo et al. 2025, the authors' repository (updated values)", "checked", size,
            )
            for size, values in {
                "25M": (3.040, 0.525, 0.508, 363.788, 2.066, 0.583, 0.641),
                "100M": (2.651, 0.601, 0.453, 437.946, 2.132, 0.598, 0.655),
                "400M": (2.375, 0.654, 0.429, 523.425, 2.025, 0.594, 0.635),
            }.items()
        ),
    )  # fmt: skip


def _schedule(rates: Array) -> Array:
    rates = np.asarray(rates, float)
    if rates.ndim != 1 or not len(rates) or not np.isfinite(rates).all() or (rates < 0).any():
        raise FlopwiseError("a schedule must be a positive or zero learning rate for each step")
    return rates
