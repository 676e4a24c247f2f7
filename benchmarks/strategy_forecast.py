"""How well are votes and best-of-n forecast? `python -m benchmarks.strategy_forecast --out FILE`.

Worlds whose truth is known: answers' chances of each problem, or a judge's scores, are drawn from given
distributions. 32 samples of each of 150 problems are drawn, `infer.laws` forecasts accuracy at 3,200, and the
truth comes from fresh samples of the same problems. Beside it: staying at the last measured point, and
majority_vote_power with its exponent left free.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from flopwise.infer import laws
from flopwise.infer.estimators import best_of_k
from flopwise.infer.votes import majority
from flopwise.laws import fit

PROBLEMS, SEEN, AT = 150, 32, 3200
VOTES = {
    "8 answers, chances of the right one beta(0.8, 1.2)": (8, 0.5, 0.8, 1.2),
    "8 answers, beta(1, 4)": (8, 0.5, 1.0, 4.0),
    "30 answers, beta(0.5, 3)": (30, 1.0, 0.5, 3.0),
    "3 answers, beta(2, 3)": (3, 0.3, 2.0, 3.0),
    "100 answers, beta(0.5, 1)": (100, 0.2, 0.5, 1.0),
}
"""Answers, how evenly wrong ones are spread (Dirichlet), and the right one's beta distribution."""
Scores = Callable[[np.ndarray, np.random.Generator], np.ndarray]
JUDGES: dict[str, Scores] = {
    "right samples score 1 standard deviation higher": lambda right, rng: _shifted(right, rng, 1.0),
    "0.3 higher": lambda right, rng: _shifted(right, rng, 0.3),
    "1 higher, but 3% of wrong ones score 4 higher": lambda right, rng: (
        _shifted(right, rng, 1.0) + 4 * (~right & (rng.random(right.shape) < 0.03))
    ),
    "accepts 80% of right and 15% of wrong ones": lambda right, rng: np.where(
        right, rng.random(right.shape) < 0.8, rng.random(right.shape) < 0.15
    ).astype(float),
}


def _shifted(right: np.ndarray, rng: np.random.Generator, by: float) -> np.ndarray:
    return rng.normal(0, 1, right.shape) + by * right


def votes(
    answers: int, even: float, a: float, b: float, seed: int
) -> tuple[laws.Outlook, float, float, float]:
    """The forecast of one world, its truth, the last measured point, and the free power law's forecast."""
    rng = np.random.default_rng(seed)
    right = rng.beta(a, b, (PROBLEMS, 1))
    chances = np.concatenate([right, (1 - right) * rng.dirichlet(np.full(answers, even), PROBLEMS)], axis=1)
    cast = []
    for row in chances:
        names, codes = np.unique(rng.choice(len(row), SEEN, p=row), return_inverse=True)
        cast.append((codes, (names == 0).astype(float)))
    ks = laws.grid(SEEN, odd=True)
    values = majority(cast, ks)[0]
    counts = np.stack([rng.multinomial(AT, row, size=200) for row in chances])
    top = counts == counts.max(axis=2, keepdims=True)
    truth = float((top[:, :, 0] / top.sum(axis=2)).mean())
    curve = {"k": np.array(ks, float), "accuracy": values.mean(axis=1)}
    free = fit("majority_vote_power", curve, loss="squared", intervals="delta").predict(k=AT).value
    return laws.outlook("majority", values, ks, [AT], seed=seed), truth, float(values[-1].mean()), float(free)


def judged(scores: Scores, seed: int) -> tuple[laws.Outlook, float, float]:
    """The forecast of one world, its truth, and the last measured point."""
    rng = np.random.default_rng(seed)
    chance = rng.beta(0.8, 1.5, (PROBLEMS, 1))
    right = rng.random((PROBLEMS, SEEN)) < chance
    ks = laws.grid(SEEN, odd=False)
    score = scores(right, rng)
    values = np.stack([best_of_k(right, score, k) for k in ks])
    found = []
    for _ in range(5):
        fresh = rng.random((PROBLEMS, AT)) < chance
        score = scores(fresh, rng)
        top = score == score.max(axis=1, keepdims=True)
        found.append(((fresh & top).sum(axis=1) / top.sum(axis=1)).mean())
    made = laws.outlook("best_of_n", values, ks, [AT], "judge", seed=seed)
    return made, float(np.mean(found)), float(values[-1].mean())


def page(sets: int) -> str:
    """The result page."""
    head = (
        "| world | truth | absolute error | inside 95% | width | staying at the last point | power, b free |"
    )
    lines = [
        f"# Accuracy at {AT:,} samples, forecast from {SEEN}", "",
        f"Made by `python -m benchmarks.strategy_forecast`: {PROBLEMS} problems, {sets} sets of samples in "
        "each world, whose truth is known. Means over sets; the last two are absolute errors too.", "",
        head, "|---" * 7 + "|",
    ]  # fmt: skip
    for name, world in VOTES.items():
        rows = [votes(*world, seed) for seed in range(sets)]
        free = np.mean([abs(r[3] - r[1]) for r in rows])
        lines.append(_line(f"votes: {name}", [r[:3] for r in rows]) + f" {free:.3f} |")
        print(lines[-1], flush=True)
    for name, scores in JUDGES.items():
        lines.append(_line(f"best of n: {name}", [judged(scores, seed) for seed in range(sets)]) + " |")
        print(lines[-1], flush=True)
    return "\n".join(lines) + "\n"


def _line(name: str, rows: list[tuple[laws.Outlook, float, float]]) -> str:
    last = [r[0].points[-1] for r in rows]
    truth = np.array([r[1] for r in rows])
    error = np.mean([abs(p.value - t) for p, t in zip(last, truth, strict=True)])
    inside = sum(p.low <= t <= p.high for p, t in zip(last, truth, strict=True))
    width = np.mean([p.high - p.low for p in last])
    stays = np.mean([abs(r[2] - r[1]) for r in rows])
    return (
        f"| {name} | {truth.mean():.3f} | {error:.3f} | {inside} of {len(rows)} | {width:.2f} | {stays:.3f} |"
    )


def main() -> None:
    """Parse and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", type=int, default=10)
    parser.add_argument("--out", type=Path, default=None)
    given = parser.parse_args()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = page(given.sets)
    if given.out is not None:
        given.out.write_text(made, encoding="utf-8")


if __name__ == "__main__":
    main()
