"""Systems that were not measured but that a law vouches for: larger pretrained models, more samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from flopwise.flops.count import count_params, generate_flops, train_flops
from flopwise.laws.coverage import forecast
from flopwise.models.config import ModelConfig
from flopwise.plan.allocate import Predicted
from flopwise.plan.joint import coverage_draws, loss_draws
from flopwise.plan.systems import Measured, System

if TYPE_CHECKING:
    from flopwise.laws import Fit

BEYOND = 4.0
"""No further than this many times what was measured, in parameters, tokens or samples."""


def larger_models(
    loss_law: Fit, joint: Fit, shapes: Sequence[ModelConfig], tokens: Sequence[float], seq_len: int,
    tuning_flops: Callable[[ModelConfig], float], prompt: float, completion: float,
    samples: Sequence[int], seed: int,
) -> list[Predicted]:  # fmt: skip
    """Train-to-Test over sizes, tokens and samples: models by their predicted loss, asked with a verifier.

    All get the same fine-tuning, and `tuning_flops` is what that of a shape takes. Models within the range of
    the fits are left out: those were measured.
    """
    found = []
    for cfg in shapes:
        N = float(count_params(cfg).non_embedding)
        for D in tokens:
            prediction = loss_law.predict(N=N, D=D)
            if not 1.0 < prediction.extrapolation <= BEYOND:
                continue
            losses = loss_draws(prediction.value, prediction.low, prediction.high, seed)
            for k in samples:
                found.append(Predicted(
                    f"w{cfg.d_model}-{D / 1e6:.2g}M",
                    f"pretrain width {cfg.d_model} on {D / 1e6:.2g}M tokens, fine-tune",
                    "verifier", k, coverage_draws(joint, losses, k, seed),
                    D / seq_len * train_flops(cfg, seq_len).total + tuning_flops(cfg),
                    generate_flops(cfg, round(prompt), [completion] * k).total,
                ))  # fmt: skip
    return found


def more_samples(model: Measured, systems: Sequence[System], how: str, seed: int) -> list[Predicted]:
    """A measured model with a verifier and more samples than were drawn, by its coverage law.

    Only for models that were sampled the most: the others could be sampled more instead.
    """
    correct = model.arrays["correct"]
    most = [s for s in systems if s.model == model.name and s.checkable]
    drawn = max((s.n for s in systems), default=0)
    if correct.shape[1] < max(16, drawn) or not correct.any() or len(most) < 2:
        return []
    last, before = most[-1], most[-2]
    per_sample = (last.per_question_flops - before.per_question_flops) / (last.n - before.n)
    found, n = [], 2 * last.n
    while n <= BEYOND * last.n:
        draws = forecast(correct, n, seed, over="new").draws
        cost = last.per_question_flops + (n - last.n) * per_sample
        found.append(Predicted(model.name, how, "verifier", n, np.asarray(draws), last.one_off_flops, cost))
        n *= 2
    return found
