"""Noise-free tables for every law, and the published data where they lie beside the project."""

from __future__ import annotations

import csv
from pathlib import Path

import grids_other
import grids_pretraining
import numpy as np
import pytest

from flopwise.laws.law import get

GRIDS = grids_pretraining.GRIDS | grids_other.GRIDS
PUBLISHED = Path(__file__).parents[3] / "shared" / "data"


def grid(law) -> dict[str, np.ndarray]:
    """A table that identifies the law: its own, or a grid of five values or more of each variable."""
    if law.name in GRIDS:
        return {v: np.asarray(values, dtype=float) for v, values in GRIDS[law.name]().items()}
    axes = {
        "N": np.geomspace(1e7, 1e10, 5), "D": np.geomspace(1e9, 1e12, 5), "C": np.geomspace(1e17, 1e22, 20),
        "k": 2.0 ** np.arange(8), "loss": np.linspace(1.0, 3.0, 5),
    }  # fmt: skip
    mesh = np.meshgrid(*(axes[name] for name in law.variables), indexing="ij")
    return {name: values.ravel() for name, values in zip(law.variables, mesh, strict=True)}


def middle(law, x) -> dict[str, float]:
    """Parameters in the middle of the ranges that starts are drawn from."""
    positive = {p.name: x[p.unit][x[p.unit] > 0] for p in law.parameters if p.unit}
    unit = {p.name: np.exp(np.log(positive[p.name]).mean()) if p.unit else 1.0 for p in law.parameters}

    def mid(p) -> float:
        if p.log:
            return float(np.sqrt(p.start[0] * p.start[1]) * unit[p.name])
        return float(np.mean(p.start) or p.start[1] / 3)  # at zero many a term would not be there

    return {p.name: mid(p) for p in law.parameters}


@pytest.fixture
def exact():
    """(table, parameters) of a law without noise."""

    def make(name, **params):
        law = get(name)
        x = grid(law)
        truth = middle(law, x) | params
        return x | {law.target: law(truth, x)}, truth

    return make


@pytest.fixture
def ladder():
    """A table like the demo's: four widths, three budgets, the smallest twice; noise is shared in a trunk."""

    def make(seed=0, between=0.003, within=0.001, params=None, law="chinchilla"):
        params = params or {"E": 1.82, "A": 30.8, "B": 3520.0, "alpha": 0.332, "beta": 0.615}
        sizes = [24736.0, 50928.0, 92480.0, 203232.0, 24736.0]
        x = {"N": np.repeat(sizes, 3), "D": np.tile([749568.0, 1499136.0, 3000320.0], 5)}
        rng = np.random.default_rng(seed)
        noise = np.repeat(rng.normal(0, between, 5), 3) + rng.normal(0, within, 15)
        loss = get(law)(params, x) * np.exp(noise)
        return x | {"loss": loss, "run": np.repeat(["a", "b", "c", "d", "e"], 3)}, params

    return make


@pytest.fixture
def published():
    """Columns of a published table, as texts where they are no numbers; skips where the data are absent."""

    def read(name):
        path = PUBLISHED / name
        if not path.is_file():
            pytest.skip(f"published data {name} are not beside the project")
        with open(path, newline="") as f:
            rows = list(csv.DictReader(f))
        columns = {}
        for key in rows[0]:
            try:
                columns[key] = np.array([float(row[key]) for row in rows])
            except ValueError:
                columns[key] = np.array([row[key] for row in rows])
        return columns

    return read
