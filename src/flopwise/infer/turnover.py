"""Where best-of-n by a learned score turns over: its best n, its fall beyond, and the law of both.

Gao et al., arXiv 2210.10760: with d the square root of the KL distance to what is sampled from, the truth of
what best-of-n chooses is d (alpha - beta d) above that of a single sample.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from flopwise.infer.estimators import resampled_means

LEVEL = 0.95


@dataclass(frozen=True)
class Fitted:
    """reward = R0 + alpha d - beta g(d), coefficients [3] with draws [B, 3] of them."""

    point: np.ndarray
    draws: np.ndarray

    def to_dict(self, peak: Any) -> dict[str, Any]:
        """Values with standard errors and intervals; where the peak is, and how sure a turn-over is."""
        low, high = np.quantile(self.draws, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2], axis=0)
        out: dict[str, Any] = {
            name: {"value": float(v), "se": float(s), "low": float(a), "high": float(b)}
            for name, v, s, a, b in zip(
                ("R0", "alpha", "beta"), self.point, self.draws.std(axis=0, ddof=1), low, high, strict=True
            )
        }
        peaks = np.array([peak(*row) for row in self.draws[:, 1:]])
        turned = np.isfinite(peaks)
        out["peak_d"] = peak(*self.point[1:])
        out["share_of_draws_that_turn"] = float(turned.mean())
        if turned.mean() > LEVEL:
            out["peak_d_low"], out["peak_d_high"] = np.quantile(
                peaks[turned], [0.5 - LEVEL / 2, 0.5 + LEVEL / 2]
            ).tolist()
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in out.items()}


def sizes(n: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12, ... up to n: powers of two and what lies halfway.

    >>> sizes(16)
    [1, 2, 3, 4, 6, 8, 12, 16]
    """
    powers = [1 << i for i in range(n.bit_length())]
    return sorted({k for p in powers for k in (p, p * 3 // 2) if k <= n})


def distance(n: int) -> float:
    """log n - (n - 1) / n, in nats: at most so far is best-of-n from what it samples.

    >>> round(distance(4), 3)
    0.636
    """
    return math.log(n) - (n - 1) / n


def fit_best_of_n(gold: np.ndarray, n: list[int], draws: int, seed: int = 0) -> Fitted:
    """R0 + alpha d - beta d^2 through mean gold rewards, from values [sizes, problems].

    Least squares with the points' own standard errors; the draws resample problems, which all points share.
    """
    d = np.sqrt([distance(k) for k in n])
    spread = gold.std(axis=1, ddof=1)
    solve = solver(np.stack([np.ones_like(d), d, -(d**2)], axis=1), spread)
    P = gold.shape[1]
    counts = np.random.default_rng(seed).multinomial(P, np.full(P, 1 / P), size=draws)
    return Fitted(solve @ gold.mean(axis=1), counts @ gold.T / P @ solve.T)


def n_at(d: float) -> float:
    """How many samples are `distance` d^2 away: the inverse of d = sqrt(log n - (n - 1) / n).

    >>> round(n_at(distance(12) ** 0.5), 6)
    12.0
    """
    low, high = 0.0, d * d + 2.0  # of log n
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if middle - 1 + math.exp(-middle) < d * d else (low, middle)
    return math.exp(min(low, 700.0))


def solver(design: np.ndarray, se: np.ndarray) -> np.ndarray:
    """The matrix [3, K] that takes values to the weighted least-squares coefficients."""
    weights = 1 / np.maximum(se, 0.1 * float(np.mean(se)) or 1.0)
    out: np.ndarray = np.linalg.pinv(design * weights[:, None]) * weights
    return out


def peak_best_of_n(alpha: float, beta: float) -> float:
    """The d at which alpha d - beta d^2 is largest; infinite where it only rises, NaN where it never does."""
    return alpha / (2 * beta) if beta > 0 < alpha else math.inf if alpha > 0 else math.nan


def turn_over(gold: np.ndarray, n: list[int]) -> dict[str, Any]:
    """Whether the truth falls after its best n: values [sizes, problems] -> rise, fall, standard errors, z.

    The best n is chosen on half of the problems and judged on the other half, and the other way round: chosen
    and judged on the same ones, the best would look better than it is and any noise would be a turn-over.
    """
    half = np.arange(gold.shape[1]) % 2 == 0
    rise, fall = np.zeros(gold.shape[1]), np.zeros(gold.shape[1])
    chosen = []
    for mine, other in ((half, ~half), (~half, half)):
        best = int(np.argmax(gold[:, mine].mean(axis=1)))
        chosen.append(n[best])
        rise[other], fall[other] = (gold[best] - gold[0])[other], (gold[best] - gold[-1])[other]
    out: dict[str, Any] = {"best_n": chosen}
    for name, values in (("rise", rise), ("fall", fall)):
        se = float(values.std(ddof=1) / math.sqrt(len(values)))
        out[name] = {"value": float(values.mean()), "se": se, "z": float(values.mean()) / se if se else 0.0}
    return out


def peak(gold: np.ndarray, n: list[int], draws: int = 1000, seed: int = 0) -> dict[str, Any]:
    """The n whose mean is largest, of values [sizes, problems], with its interval over resampled problems.

    `inside` is the share of resamples in which it is neither the smallest nor the largest n measured.
    """
    best = np.argmax(resampled_means(gold, draws, seed), axis=1)
    low, high = np.quantile(best, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2], method="nearest")
    at = int(np.argmax(gold.mean(axis=1)))
    inside = float(np.mean((best > 0) & (best < len(n) - 1)))
    ends = {"low": n[int(low)], "high": n[int(high)]}
    return {"n": n[at], **ends, "value": float(gold[at].mean()), "inside": inside}
