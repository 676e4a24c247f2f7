"""Tables and fits of joint laws that several tests of the plan use."""

from __future__ import annotations

from functools import cache

import numpy as np

from flopwise.laws import Fit, fit, get

TRUTH = {
    "t1": -2.5, "t3": 1.5, "t4": 0.05, "N0": 5e8, "D0": 3e10, "alpha": 0.35, "beta": 0.4, "g": 0.4, "s": 0.05,
    "P0": 1e9,
}  # fmt: skip


def mesh(**axes) -> dict[str, np.ndarray]:
    grid = np.meshgrid(*(np.asarray(a, dtype=float) for a in axes.values()), indexing="ij")
    return {name: values.ravel() for name, values in zip(axes, grid, strict=True)}


def table(noise: float = 0.03, seed: int = 0) -> dict[str, np.ndarray]:
    """Three sizes, three token budgets, three amounts of post-training, four numbers of samples."""
    x = mesh(N=(1e8, 4e8, 1.5e9), D=(1e10, 5e10, 2e11), post=(0.0, 1e9, 1e10), k=(1, 4, 16, 64))
    run = np.repeat(np.arange(27), 4)
    y = get("joint_accuracy")(TRUTH, x)
    shift = np.random.default_rng(seed).normal(0, noise, 27)[run]
    y = 1 / (1 + (1 / y - 1) * np.exp(-shift))
    return x | {"coverage": y, "run": run.astype(str)}


@cache
def joint() -> Fit:
    return fit("joint_accuracy", table(), loss="squared", cluster="run", intervals="delta", starts=20)


@cache
def chinchilla(noise: float = 0.002) -> Fit:
    x = mesh(N=np.logspace(7, 9.5, 5), D=np.logspace(9, 11.5, 5))
    truth = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}
    loss = get("chinchilla")(truth, x) * np.exp(noise * np.random.default_rng(0).normal(size=25))
    return fit("chinchilla", x | {"loss": loss})
