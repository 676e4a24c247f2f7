"""Goodhart's alarm: tells when a learned reward and the truth it stands for part.

A policy that is trained on a learned reward raises that reward; whether it still gets better is another
question (Gao et al., arXiv 2210.10760). Each roll-out gives two means over its problems, of the learned
reward and of the verifier's verdicts, each with its standard error. The rule compares the newest `window`
roll-outs with each earlier window that does not overlap it, and alarms where

    proxy_now - proxy_then > PROXY_Z x standard error    and    gold_then - gold_now > z x standard error.

Looking back at every window finds a turn-over as well as a decline from the start, and is why z is large: the
best of many windows lies high by chance. `tests/posttrain/test_rl_alarm.py` simulates how often the rule
cries wolf and how soon it sees a decline; `docs/rl.md` has the table.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

PROXY_Z = 2.0
"""A rising proxy is what training is for; it need not be shown as strictly as the fall of the truth."""


@dataclass(frozen=True)
class Alarm:
    """What was seen: windows of roll-outs ending at `then` and `step`, their means, and how sure it is."""

    step: int
    then: int
    window: int
    proxy: tuple[float, float]
    gold: tuple[float, float]
    z: float

    def __str__(self) -> str:
        return (
            f"alarm at roll-out {self.step}: the learned reward rose from {self.proxy[0]:.3g} to "
            f"{self.proxy[1]:.3g} while true accuracy fell from {self.gold[0]:.1%} to {self.gold[1]:.1%} "
            f"({self.z:.1f} standard errors) since roll-out {self.then}"
        )

    def to_dict(self) -> dict[str, Any]:
        """As a record takes it."""
        return asdict(self) | {"proxy": list(self.proxy), "gold": list(self.gold)}


class Monitor:
    """Watches proxy and gold, roll-out by roll-out; the first alarm stands."""

    def __init__(self, window: int = 8, z: float = 4.5):
        self.window, self.z = window, z
        self.rows: list[tuple[float, float, float, float]] = []
        self.alarm: Alarm | None = None

    def observe(self, proxy: float, proxy_se: float, gold: float, gold_se: float) -> Alarm | None:
        """Take in a roll-out; returns the alarm at the moment when it goes off."""
        self.rows.append((proxy, proxy_se, gold, gold_se))
        if self.alarm is not None or len(self.rows) < 2 * self.window:
            return None
        self.alarm = self._judge()
        return self.alarm

    def _judge(self) -> Alarm | None:
        w = self.window
        rows = np.array(self.rows)
        means = np.stack([_moving(rows[:, i], w) for i in (0, 2)])
        variances = np.stack([_moving(rows[:, i] ** 2, w) for i in (1, 3)]) / w
        rise = means[0, -1] - means[0, :-w]
        fall = means[1, :-w] - means[1, -1]
        proxy_se, gold_se = np.sqrt(variances[:, :-w] + variances[:, -1:])
        sure = _ratio(fall, gold_se)
        parted = (_ratio(rise, proxy_se) > PROXY_Z) & (sure > self.z)
        if not parted.any():
            return None
        at = int(np.where(parted, sure, -np.inf).argmax())
        return Alarm(
            len(rows), at + w, w,
            (float(means[0, at]), float(means[0, -1])), (float(means[1, at]), float(means[1, -1])),
            float(sure[at]),
        )  # fmt: skip


def _moving(values: np.ndarray, window: int) -> np.ndarray:
    """Means of every `window` values in a row."""
    return np.convolve(values, np.full(window, 1 / window), mode="valid")


def _ratio(difference: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Differences in standard errors; without any error a difference is no evidence of anything."""
    return np.divide(difference, error, out=np.zeros_like(difference), where=error > 0)


def mean_of_groups(values: np.ndarray) -> tuple[float, float]:
    """Mean of values [problems, n] and its standard error: problems are drawn independently, their answers
    are not. Of a single problem, that of its answers.

    >>> mean_of_groups(np.array([[1.0, 0.0], [0.0, 0.0]]))
    (0.25, 0.25)
    """
    of_each = values.mean(axis=1)
    if len(of_each) < 2:
        of_each = values[0]
    return float(of_each.mean()), float(of_each.std(ddof=1) / len(of_each) ** 0.5)
