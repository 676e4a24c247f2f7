"""Noise between seeds: parts that come back, and what a law's predictions make of them."""

from __future__ import annotations

import numpy as np
import pytest

from flopwise.laws import fit
from flopwise.pretrain.noise import carry, seed_noise

BUDGETS = (1e6, 2e6, 4e6)


def ladder(seed, trunk=0.004, branch=0.002, repeats=(3, 3, 1, 1, 1), widths=(32, 48, 64, 96, 128)):
    rng = np.random.default_rng(seed)
    rows = []
    for w, n in zip(widths, repeats, strict=True):
        for s in range(n):
            shared = rng.normal(0, 1) * trunk
            for d in BUDGETS:
                y = (1.6 + 16 / (25.0 * w**2) ** 0.28 + 600 / d**0.45) * np.exp(
                    shared + rng.normal(0, 1) * branch
                )
                rows.append((w, 25.0 * w**2, d, y, f"w{w}-s{s}", s))
    names = ("width", "N", "D", "loss", "run", "seed")
    return {name: np.array(values) for name, values in zip(names, zip(*rows, strict=True), strict=True)}


def test_both_parts_come_back_without_bias():
    found = [seed_noise(ladder(i)) for i in range(300)]
    mean = {
        name: np.sqrt(np.mean([np.square(getattr(n, name)) for n in found]))
        for name in ("sd_relative", "within")
    }
    assert mean["sd_relative"] == pytest.approx(np.hypot(0.004, 0.002), rel=0.08)
    assert mean["within"] == pytest.approx(0.002, rel=0.08)
    # Two widths of three seeds: four degrees of freedom between trunks, some more from their branches.
    assert 3.5 < np.mean([n.df for n in found]) < 8
    inside = [n.trend[1] <= 0 <= n.trend[2] for n in found]
    assert 0.88 < np.mean(inside) <= 1


def test_noise_that_grows_with_width_is_seen():
    table = ladder(3, repeats=(8, 1, 1, 1, 8))
    wide = table["width"] == 128
    mean = np.array([table["loss"][wide & (table["D"] == d)].mean() for d in table["D"]])
    table["loss"] = np.where(wide, mean * (table["loss"] / mean) ** 4, table["loss"])
    found = seed_noise(table)
    assert found.trend[1] > 0 and "grows with width" in found.words
    assert found.by_width[128][0] > 2 * found.by_width[32][0]
    assert set(found.by_tokens) == {1_000_000, 2_000_000, 4_000_000}


def test_nothing_repeated_is_no_noise():
    assert seed_noise(ladder(0, repeats=(1, 1, 1, 1, 1))) is None
    assert seed_noise({"loss": np.array([1.0])}) is None
    exact = ladder(0, trunk=0.0, branch=0.0)
    assert seed_noise(exact) is None


def test_one_budget_and_one_width_are_said_to_be_little():
    table = ladder(1, repeats=(4, 1, 1, 1, 1))
    table = {name: values[table["D"] == 2e6] for name, values in table.items()}
    found = seed_noise(table)
    assert found.df == pytest.approx(3) and found.between == 0 and found.trend is None
    own = np.log(table["loss"][table["width"] == 32])
    assert found.sd_relative == pytest.approx(own.std(ddof=1))
    assert "only one width is repeated" in found.words and found.to_dict()["words"] == found.words


def test_variants_are_rungs_of_their_own():
    a, b = ladder(1, repeats=(2, 1, 1, 1, 1)), ladder(2, repeats=(2, 1, 1, 1, 1))
    both = {
        name: np.concatenate([a[name], b[name] * (1.1 if name == "loss" else 1)])
        for name in a
        if name != "run"
    }
    both["variant"] = np.repeat(["x", "y"], len(a["loss"]))
    assert seed_noise(both).sd_relative < 0.02  # not the tenth between the variants


def test_predictions_scatter_at_least_as_seeds_do():
    table = ladder(5, trunk=0.01)
    made = fit("chinchilla", table, cluster="run", intervals="delta")
    noise = seed_noise(table)
    quiet = carry(made, noise.__class__(**{**noise.__dict__, "sd_relative": made.scatter / 2}))
    assert quiet is made
    loud = carry(made, noise.__class__(**{**noise.__dict__, "sd_relative": 3 * made.scatter}))
    a, b = (f.predict(level=0.9, N=1e6, D=8e6) for f in (made, loud))
    assert b.high / b.low > a.high / a.low and b.value == a.value
    assert (b.mean_low, b.mean_high) == (a.mean_low, a.mean_high)
