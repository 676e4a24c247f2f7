"""Learning-rate schedules: plain functions from a step to a factor in [0, 1]."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class WSD:
    """Warm-up, stable, decay (Hu et al., MiniCPM, arXiv 2404.06395, section 4).

    The decay follows 1 - sqrt(progress), which Haegele et al. (arXiv 2405.18392, section 3) found best
    among cooldown shapes. `decay_from` None is a trunk: it never decays, and branches start from it.

    >>> s = WSD(warmup_steps=10, decay_from=80, total_steps=100)
    >>> s(0), s(9), s(79), round(s(85), 3), s(100)
    (0.1, 1.0, 1.0, 0.5, 0.0)
    """

    warmup_steps: int = 0
    decay_from: int | None = None
    total_steps: int | None = None

    def __call__(self, step: int) -> float:
        """Factor for the update made at `step`, counted from 0."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.decay_from is None or step < self.decay_from:
            return 1.0
        assert self.total_steps is not None
        progress = (step - self.decay_from) / max(1, self.total_steps - self.decay_from)
        return max(0.0, 1.0 - math.sqrt(min(1.0, progress)))


@dataclass(frozen=True)
class Linear:
    """Warm-up, then a straight line to `final` of the rate: the usual choice for fine-tuning.

    >>> s = Linear(warmup_steps=2, total_steps=6)
    >>> [s(i) for i in range(7)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    """

    warmup_steps: int
    total_steps: int
    final: float = 0.0

    def __call__(self, step: int) -> float:
        """Factor for the update made at `step`, counted from 0."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        return 1.0 + (self.final - 1.0) * min(1.0, progress)
