"""Which runs may be stopped: those that cannot be best, and those that cannot move what is to be known."""

from __future__ import annotations

import numpy as np
import pytest

from flopwise.errors import FlopwiseError
from flopwise.laws import fit, get
from flopwise.plan.stopping import stopping

TRUTH = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}


def loss(N, D):
    return get("chinchilla")(TRUTH, {"N": np.asarray(N, dtype=float), "D": np.asarray(D, dtype=float)})


@pytest.fixture(scope="module")
def done():
    N, D = (v.ravel() for v in np.meshgrid(np.geomspace(2e7, 3e8, 5), np.geomspace(4e8, 1e10, 5)))
    noisy = loss(N, D) * np.exp(0.002 * np.random.default_rng(0).normal(size=25))
    return fit("chinchilla", {"N": N, "D": D, "loss": noisy}, intervals="delta")


def curves(runs, share=0.5, end=4e9, seed=0, points=14):
    """Rows of unfinished runs: name, N and what its loss is times the law's."""
    rng = np.random.default_rng(seed)
    rows = []
    for name, N, factor in runs:
        D = np.linspace(0.05, share, points) * end
        for d, y in zip(
            D, loss(np.full(points, N), D) * factor * np.exp(rng.normal(0, 5e-4, points)), strict=True
        ):
            rows.append({"run": name, "N": N, "D": d, "loss": y, "D_end": end})
    return rows


def test_only_what_will_not_be_the_best_of_its_group_is_stopped(done):
    rows = curves([("a", 3e7, 1.0), ("b", 3e7, 1.002), ("c", 3e7, 1.1), ("d", 6e7, 1.1)])
    made = stopping(done, rows, best_within=["N"])
    assert [v.run for v in made.runs if v.stop] == ["c"]
    assert "a will end lower" in made.runs[2].why
    assert made.saved == pytest.approx(6 * 3e7 * 2e9, rel=1e-6)
    assert made.left == pytest.approx(6 * (3 * 3e7 + 6e7) * 2e9, rel=1e-6)


def test_a_carried_end_holds_the_true_end_and_grows_surer(done):
    inside, widths = 0, []
    for share in (0.3, 0.8):
        made = stopping(
            done,
            [
                r
                for s in range(1)
                for r in curves([(str(i), 3e7, 1 + i / 50) for i in range(10)], share, seed=s)
            ],
        )
        truth = [loss([3e7], [4e9])[0] * (1 + i / 50) for i in range(10)]
        inside += sum(v.low <= y <= v.high for v, y in zip(made.runs, truth, strict=True))
        widths.append(np.mean([v.high / v.low for v in made.runs]))
    assert inside >= 15 and widths[1] < widths[0]


def test_a_run_of_which_much_is_known_may_stop_one_that_tells_much_may_not(done):
    rows = curves([("known", 2e7, 1.0), ("far", 2e9, 1.0)], share=0.9, end=4e9)
    made = stopping(done, rows, at={"N": 4e9, "D": 4e10}, small=0.2)
    known, far = made.runs
    assert known.stop and not far.stop and far.moves > known.moves
    assert made.saved == pytest.approx(known.saves)
    # What is uncertain for nobody can move nothing; at its start a run is uncertain.
    early = stopping(done, curves([("far", 2e9, 1.0)], share=0.2), at={"N": 4e9, "D": 4e10}).runs[0]
    assert early.moves > far.moves


def test_too_few_points_go_on_and_bad_tables_are_one_line(done):
    few = stopping(done, curves([("a", 3e7, 1.0)], points=3), best_within=["N"]).runs[0]
    assert not few.stop and ("points" in few.why or "carried" in few.why)
    with pytest.raises(FlopwiseError, match="beyond its end"):
        stopping(done, curves([("a", 3e7, 1.0)]), until=1e9)
    with pytest.raises(FlopwiseError, match="no column 'model'"):
        stopping(done, curves([("a", 3e7, 1.0)]), run="model")
    rows = [{k: v for k, v in r.items() if k != "D_end"} for r in curves([("a", 3e7, 1.0)])]
    with pytest.raises(FlopwiseError, match="where runs end"):
        stopping(done, rows)
