"""Two rounds: m samples of a prompt, a look at them, then all the others at once.

What the look sees needs no verifier (how far the first answers agree, or what a judge thinks of them), and
the first samples count in the choice as well, so that nothing is thrown away. Two rounds take twice the time
of one, where a rule that stops takes as many as it looks. Difficulty is here part of what is evaluated, as
with any rule that stops: its value is what the whole procedure comes to, over random orders of the samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flopwise.infer.policies.difficulty import Difficulty
from flopwise.infer.policies.options import VERIFIER, Option, judge_of, sizes
from flopwise.infer.policies.walk import Shuffled


def two_rounds(
    shuffled: Shuffled, strategies: Sequence[str], m: int
) -> tuple[list[Option], Difficulty] | None:
    """Options of every order of every problem's samples [P * orders], and how easy it looks after m of them.

    An option is a strategy with k samples in all, m or more. None where no strategy can look without a
    verifier: it looks at agreement, and without answers at the mean score of the first judge.
    """
    usable = [
        s for s in strategies if s != VERIFIER and (s == "self_consistency" or s.startswith("best_of_n:"))
    ]
    judges = [judge_of(s) for s in usable]
    samples, ks = shuffled.samples, [k for k in sizes(shuffled.samples.n) if k >= m]
    if not usable or m >= samples.n:
        return None
    answered = bool((shuffled.codes >= 0).any())
    by = "agreement" if answered else str(judges[0])
    options: list[Option] = []
    ease: list[np.ndarray] = []
    for strategy, judge in zip(usable, judges, strict=True):
        found: list[tuple[np.ndarray, np.ndarray]] = []
        for rows, walk in shuffled.chunks(judge):
            right = walk.votes.right if judge is None else walk.right_of_best(judge)
            before = np.repeat(samples.prefill_flops[rows], shuffled.orders)[:, None]
            at = np.array(ks) - 1
            found.append((right[:, at], walk.spent[:, at] + before))
            if len(options) == 0:
                ease.append(walk.votes.top[:, m - 1] / m if answered else _mean(walk.score(by)[:, :m]))
        value, cost = (np.concatenate(parts) for parts in zip(*found, strict=True))
        none = np.zeros(len(value))
        options += [
            Option(f"{strategy} x{k}", value[:, i], cost[:, i], np.full(len(value), float(k)), none)
            for i, k in enumerate(ks)
        ]
    looks = np.concatenate(ease)
    return options, Difficulty(by, looks, np.zeros(len(looks)), m)


def _mean(scores: np.ndarray) -> np.ndarray:
    """Mean [R] of the scores that there are; the least of all where there is none."""
    known = np.isfinite(scores)
    least = scores[known].min(initial=0.0)
    total = np.where(known, scores, 0.0).sum(axis=1)
    return np.where(known.any(axis=1), total / np.maximum(known.sum(axis=1), 1), least)
