"""Samples from known truths: how chances, answers and scores are spread is settled here."""

from __future__ import annotations

import numpy as np

from flopwise.infer.samples import Samples


def samples_of(correct, answers=None, scores=None, cost=None, prefill=0.0, score_flops=None) -> Samples:
    """Samples of verdicts [P, n], by default without answers, each of cost 1."""
    correct = np.asarray(correct, dtype=bool)
    P, n = correct.shape
    return Samples(
        problems=[str(p) for p in range(P)], correct=correct,
        answers=answers or [[None] * n for _ in range(P)], logprob=np.full((P, n), np.nan),
        tokens=np.ones((P, n), dtype=np.int64), finished=np.ones((P, n), dtype=bool),
        prefill_flops=np.full(P, prefill), decode_flops=np.ones((P, n)) if cost is None else np.asarray(cost),
        scores=scores or {}, score_flops=score_flops or {}, unit="samples",
    )  # fmt: skip


def beta_world(P=200, n=32, a=0.5, b=1.5, seed=0) -> tuple[np.ndarray, Samples]:
    """Chances [P] from Beta(a, b) and their samples; wrong answers are spread over six, unevenly; a score is
    one higher, in its standard deviations, for what is right."""
    rng = np.random.default_rng(seed)
    p = rng.beta(a, b, P)
    correct = rng.random((P, n)) < p[:, None]
    favourite = rng.dirichlet(np.full(6, 0.7), P)
    wrong = (rng.random((P, n, 1)) > np.cumsum(favourite, axis=1)[:, None, :-1]).sum(axis=2)
    answers = [
        ["right" if c else f"wrong {w}" for c, w in zip(*row, strict=True)]
        for row in zip(correct, wrong, strict=True)
    ]
    return p, samples_of(correct, answers, {"reward": correct + rng.normal(size=(P, n))})
