"""What a ladder's law step decides by itself: the form, the range of sizes, the words."""

from __future__ import annotations

import numpy as np
import pytest

from flopwise.errors import FlopwiseError
from flopwise.pretrain.law import choose_range, renamed
from flopwise.pretrain.observations import columns

SPEC = {"candidates": ["chinchilla"], "target": "loss", "by": "N", "leave_out": True}


def ladder(bend: float, seed: int = 0) -> dict[str, np.ndarray]:
    """Six sizes by four budgets of a known law; the smallest lies above it by `bend`."""
    rng = np.random.default_rng(seed)
    N, D = (v.ravel() for v in np.meshgrid(2.5e4 * 2.0 ** np.arange(6), 1e6 * 2.0 ** np.arange(4)))
    loss = (1.5 + 30 / N**0.35 + 400 / D**0.45) * np.exp(rng.normal(0, 0.001, N.size))
    loss = np.where(N.min() == N, loss * (1 + bend), loss)
    return {"N": N, "D": D, "C": 6 * N * D, "loss": loss, "run": np.array([f"n{n:.0f}" for n in N])}


def test_a_smallest_size_that_bends_away_is_left_out_and_said() -> None:
    table = ladder(0.05)
    choice, kept, words = choose_range(table, SPEC, 0)
    assert kept["N"].min() > table["N"].min() and len(words) == 1
    assert "N = 25,000 is left out" in words[0] and "instead of" in words[0]
    straight, *_ = choose_range(table, SPEC | {"leave_out": False}, 0)
    truth = 1.5 + 30 / 3.2e6**0.35 + 400 / 3.2e7**0.45
    errors = [abs(c.fit.predict(N=3.2e6, D=3.2e7).value / truth - 1) for c in (choice, straight)]
    assert errors[0] < errors[1]


def test_a_straight_ladder_keeps_its_sizes_mostly() -> None:
    """Noise alone can make a size look bent; it must not do so often."""
    dropped = sum(bool(choose_range(ladder(0.0, seed), SPEC, 0)[2]) for seed in range(12))
    assert dropped <= 6


def test_four_sizes_are_all_kept() -> None:
    table = ladder(0.05)
    few = {name: values[table["N"] <= 2.5e5] for name, values in table.items()}
    assert len(np.unique(few["N"])) == 4
    assert len(choose_range(few, SPEC, 0)[1]["N"]) == len(few["N"])


def test_a_variable_takes_the_column_that_is_named_and_other_counts_go() -> None:
    table = {"N": [1.0], "N_active": [2.0], "N_total": [3.0], "E": [4.0], "loss": [5.0]}
    out = renamed(table, {"N": "N_active", "experts": "E"})
    assert out == {"N": [2.0], "N_active": [2.0], "E": [4.0], "loss": [5.0], "experts": [4.0]}
    with pytest.raises(FlopwiseError, match="column 'nothing' for N is not there"):
        renamed(table, {"N": "nothing"})


def test_columns_are_those_that_every_row_has() -> None:
    rows = [{"a": 1, "b": 2, "c": None}, {"a": 3, "b": 4, "c": 5}]
    assert {name: values.tolist() for name, values in columns(rows).items()} == {"a": [1, 3], "b": [2, 4]}


def test_a_form_that_ends_at_a_bound_gives_way_to_one_that_does_not() -> None:
    """Without a floor in the truth, a fitted floor ends at zero; the form without one says the same."""
    table = ladder(0.0)
    table["loss"] = (
        60 / table["N"] ** 0.3 * np.exp(np.random.default_rng(1).normal(0, 0.002, len(table["N"])))
    )
    floor, none = "loss = E + A / N^a", "loss = A / N^a"
    alone, *_ = choose_range(table, SPEC | {"candidates": [floor], "leave_out": False}, 0)
    both, *_ = choose_range(table, SPEC | {"candidates": [floor, none], "leave_out": False}, 0)
    assert alone.fit.params["E"] < 0.05
    assert both.fit.form.formula == none and both.fit.status == "converged"
