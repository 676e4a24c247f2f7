"""The envelope of training curves: a law's frontier comes back, and what makes it doubtful is told."""

from __future__ import annotations

import json

import numpy as np
import pytest

from flopwise.errors import FlopwiseError
from flopwise.laws import get
from flopwise.laws.envelope import at_budgets, envelope
from flopwise.laws.isoflop import isoflop

LAW = {"E": 1.7, "A": 400.0, "B": 900.0, "alpha": 0.34, "beta": 0.3}
TRUE = 0.3 / 0.64


def curves(sizes=15, points=60, noise=0.0, schedule=0.0, seed=0):
    """Checkpoints of runs that all end far past their best tokens; `schedule` lifts those before the end."""
    N = np.repeat(np.geomspace(3e7, 3e10, sizes), points)
    D = np.tile(np.geomspace(3e8, 3e13, points), sizes)
    left = np.tile(np.linspace(1, 0, points), sizes)
    rng = np.random.default_rng(seed)
    loss = (
        get("chinchilla")(LAW, {"N": N, "D": D})
        * (1 + schedule * left)
        * np.exp(rng.normal(0, noise, len(N)) if noise else 0)
    )
    return {"N": N, "D": D, "loss": loss, "run": np.repeat([f"r{i}" for i in range(sizes)], points)}


def test_the_frontier_of_a_law_comes_back():
    found = envelope(curves())
    assert found.a == pytest.approx(TRUE, abs=0.01)
    assert found.laws["D"].exponents["C"] == pytest.approx(1 - TRUE, abs=0.01)
    low, high = found.laws["N"].interval("C")
    assert low < TRUE < high and high - low < 0.1
    spent = 6 * found.N * found.D
    assert spent == pytest.approx(found.C)
    # At a point where one size hands over to the next the loss is above the frontier, never below.
    assert found.holders == 13 and found.runs == 15 and len(found.run) == len(found.C)
    assert np.all(np.diff(found.N) >= 0)


def test_doubts_are_told_in_words():
    said = " ".join(envelope(curves()).warnings)
    assert "schedule" in said and "not independent" in said and "smallest or the largest" in said
    assert "geometric mean" not in said
    mixed = curves()
    mixed["N"] = mixed["N"] * np.linspace(1, 1.2, len(mixed["N"]))
    assert "geometric mean" in " ".join(envelope(mixed).warnings)


def test_checkpoints_inside_a_schedule_move_the_exponent():
    # 30% above at the start, nothing at the end, along the curve in log D.
    assert abs(envelope(curves(schedule=0.3)).a - TRUE) > 2 * abs(envelope(curves()).a - TRUE)


def test_smoothing_takes_out_the_luck_of_noisy_checkpoints():
    noisy = curves(noise=0.004, points=200)
    rough, smooth = envelope(noisy), envelope(noisy, smooth=3.0)
    assert np.mean(np.diff(np.log(rough.N)) < 0) > 3 * np.mean(np.diff(np.log(smooth.N)) < 0)
    assert smooth.a == pytest.approx(TRUE, abs=0.03)


def test_the_same_seed_gives_the_same_intervals():
    one, two, other = (envelope(curves(noise=0.002), seed=s).laws["N"].interval("C") for s in (1, 1, 2))
    assert one == two != other


def test_curves_read_off_at_budgets_make_isoflop_curves():
    rows = at_budgets(curves(), [1e20, 1e21, 1e22, 1e23])
    assert set(rows) == {"N", "D", "C", "loss", "run"}
    assert rows["loss"] == pytest.approx(get("chinchilla")(LAW, {"N": rows["N"], "D": rows["D"]}), rel=1e-3)
    assert isoflop(rows, "akima", bias=False).a == pytest.approx(TRUE, abs=0.01)
    # Never beyond a run's last checkpoint: the smallest ends at 6 * 3e7 * 3e13.
    assert rows["N"][rows["C"] == 1e22].min() > 3e7 * 1.1
    with pytest.raises(FlopwiseError, match="no run has checkpoints"):
        at_budgets(curves(), [1e30])
    with pytest.raises(FlopwiseError, match="above 0"):
        at_budgets(curves(), [-1.0])


@pytest.mark.parametrize(
    ("change", "options", "match"),
    [
        ({"run": None}, {}, "no column 'run'"), ({}, {"run": "model"}, "no column 'model'"),
        ({"loss": -1.0}, {}, "'loss' holds -1 in row 1, must be above 0"),
        ({"N": 1e9}, {}, "1 sizes in 15 runs, needs at least 3"),
        ({}, {"smooth": 0.5}, "smooth is 0.5"), ({}, {"points": 3}, "points is 3"),
        ({}, {"bootstrap": 1}, "bootstrap is 1"),
    ],
)  # fmt: skip
def test_bad_input_is_told_in_one_line(change, options, match):
    table = curves()
    for name, value in change.items():
        if value is None:
            del table[name]
        else:
            table[name] = np.full(len(table[name]), value)
    with pytest.raises(FlopwiseError, match=match) as e:
        envelope(table, **options)
    assert "\n" not in str(e.value)


def test_a_frontier_that_no_inner_size_holds_is_refused():
    table = curves(sizes=4)
    table["loss"] = 2 + 1e9 / table["N"] / 1e3 + 1e-6 * np.arange(len(table["N"]))[::-1]
    with pytest.raises(FlopwiseError, match="add sizes"):
        envelope(table)


def test_everything_goes_to_json():
    d = json.loads(json.dumps(envelope(curves()).to_dict()))
    assert set(d["points"]) == {"C", "N", "D", "loss", "run"} and d["laws"]["N"]["n"] == len(d["points"]["C"])


def test_gemstones_moves_with_the_method(published):
    # McLeish et al. 2025, arXiv 2502.06857: no one exponent; their lesson is how far it moves.
    table = published("gemstones/losses.csv")
    kept = table["eval_set"] == "fineweb_dclm"
    rows = {name: values[kept] for name, values in table.items()}
    found = envelope(rows)
    assert (found.runs, found.holders) == (22, 7) and found.a == pytest.approx(0.43, abs=0.01)
    low, high = found.laws["N"].interval("C")
    assert high - low > 0.2
    slices = at_budgets(rows, np.geomspace(6e19, 3e21, 8))
    assert isoflop(slices, "akima", bias=False).a == pytest.approx(0.44, abs=0.02)
