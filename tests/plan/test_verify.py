"""A plan held to its word: from tables, by runs made for it, and from the checks of finished experiments."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from flopwise.errors import FlopwiseError
from flopwise.laws import fit, get
from flopwise.plan.frontier import plan
from flopwise.plan.verify import from_runs, read_plan, run_recipe, verify

TRUTH = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}
TINY = {
    "kind": "ladder", "name": "tiny",
    "data": {"sources": [{"corpus": "calibration", "options": {"vocab": 32, "tokens": 65536,
                                                               "document_tokens": 4096}}]},
    "ladder": {"widths": [16, 24], "budgets": [12000, 20000], "depth": 1, "seq_len": 32, "batch_size": 8,
               "warmup_steps": 4, "heldout_tokens": 2048},
    "laws": [{"name": "loss"}],
}  # fmt: skip


@pytest.fixture(scope="module")
def fitted():
    N, D = (v.ravel() for v in np.meshgrid(np.geomspace(2e7, 3e8, 5), np.geomspace(4e8, 1e10, 5)))
    noise = np.exp(0.003 * np.random.default_rng(0).normal(size=25))
    loss = get("chinchilla")(TRUTH, {"N": N, "D": D}) * noise
    return fit("chinchilla", {"N": N, "D": D, "loss": loss}, intervals="delta")


@pytest.fixture
def kept(fitted, tmp_path: Path) -> Path:
    plan(fitted, 1e20).to_json(tmp_path / "plan.json")
    return tmp_path / "plan.json"


def records(checks, off=0.0, factor=1.0):
    N, D = (np.array([c.at[n] for c in checks]) for n in "ND")
    N = N * (1 + off)
    return {"N": N, "D": D, "loss": get("chinchilla")(TRUTH, {"N": N, "D": D}) * factor}


def test_a_kept_plan_is_read_and_a_true_law_is_inside(kept):
    checks = read_plan(kept)
    assert [c.role for c in checks] == ["recommended", "neighbour", "neighbour"]
    assert {c.level for c in checks} == {0.9} and all(c.measured is None for c in checks)
    made = verify(kept, records(checks))
    assert all(c.inside for c in made.checks) and all(c.runs == 1 for c in made.checks)
    assert made.verdict.startswith("3 of 3 measured inside the predicted 90% interval")
    assert "at least as good as its best neighbour" in made.verdict
    for c in made.checks:
        assert c.relative_error == pytest.approx(c.predicted / c.measured - 1)


def test_what_falls_outside_is_said_and_repeats_are_averaged(kept):
    checks = read_plan(kept)
    one = records(checks[:1], factor=1.2)
    rows = {n: np.repeat(v, 2) for n, v in one.items()}
    rows["loss"] *= [0.99, 1.01]
    made = verify(kept, rows)
    assert made.checks[0].inside is False and made.checks[0].runs == 2
    assert made.checks[0].measured == pytest.approx(float(one["loss"][0]))
    assert made.checks[1].inside is None and "2 not measured" in made.verdict


def test_a_run_beside_the_place_is_predicted_anew_by_the_fit_only(kept, fitted):
    checks = read_plan(kept)
    rows = records(checks, off=0.1)
    without = verify(kept, rows)
    assert "nothing to verify by" in without.verdict and "10% off" in without.checks[0].note
    anew = verify(kept, rows, fitted)
    assert all(c.inside for c in anew.checks)
    assert anew.checks[0].at["N"] == pytest.approx(1.1 * checks[0].at["N"])
    far = verify(kept, records(checks[:1], off=3.0), fitted)
    assert far.checks[0].inside is None


def test_a_worse_recommendation_is_called_so(kept):
    checks = read_plan(kept)
    rows = records(checks)
    rows["loss"][1] = rows["loss"][0] - 0.2
    assert "worse than its best neighbour, by 0.2 loss" in verify(kept, rows).verdict


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{}", "names no predictions"),
        ("[1]", "names no predictions"),
        ("nonsense", "cannot be read as JSON"),
        ('{"predictions": [{"what": "loss"}]}', "lacks its parts"),
        ('{"predictions": [{"what": "loss", "at": {"N": 1}, "value": 5, "low": 6, "high": 7}]}', "lacks"),
    ],
)
def test_what_is_no_plan_is_one_clear_line(tmp_path: Path, content: str, says: str):
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(FlopwiseError, match=says):
        read_plan(tmp_path / "plan.json")
    with pytest.raises(FlopwiseError, match="does not exist"):
        read_plan(tmp_path / "none.json")


def test_the_checks_of_a_demo_are_read(tiny_run: Path, tmp_path: Path):
    made = from_runs(tiny_run)
    assert {c.role for c in made.checks} == {"joint law"} and len(made.checks) >= 2
    assert all(c.what == f"pass@{c.at['k']:g}" and c.measured is not None for c in made.checks)
    with pytest.raises(FlopwiseError, match="has checked a prediction"):
        from_runs(tmp_path)


def test_the_runs_of_a_plan_are_made_and_held_to_a_law(tmp_path: Path):
    pytest.importorskip("torch")
    from flopwise.launch import run
    from flopwise.launch.recipe import load
    from flopwise.records.table import read_table

    entries = [
        {"what": "loss", "at": {"N": N, "D": D}, "value": 3.3, "low": 3.0, "high": 3.6, "level": 0.9}
        for N, D in ((5500, 12000), (3100, 20000), (9000, 6000))
    ]
    (tmp_path / "plan.json").write_text(json.dumps({"predictions": entries[:1], "neighbours": entries[1:]}))
    checks = read_plan(tmp_path / "plan.json")
    content = run_recipe(checks, load(TINY))
    assert list(content["variants"]) == ["recommended", "neighbour-1", "neighbour-2"] and not content["laws"]
    assert run(content, tmp_path / "runs", workers=0, quiet=True).failed == {}
    made = read_table(tmp_path / "runs", held_out=True)
    assert sorted(made["variant"]) == ["neighbour-1", "neighbour-2", "recommended"]
    at = dict(zip(made["variant"], zip(made["N"], made["D"], strict=True), strict=True))
    assert at["recommended"][1] == pytest.approx(12000, rel=0.02)
    exact = [
        type(c)(**{**vars(c), "at": dict(zip("ND", at[name], strict=True))})
        for c, name in zip(checks, content["variants"], strict=True)
    ]
    told = verify(exact, made)
    assert all(c.measured is not None and 2.0 < c.measured < 4.0 for c in told.checks)


def test_a_ladder_cannot_measure_everything(tmp_path: Path):
    from flopwise.launch.recipe import load

    entry = {"what": "accuracy", "at": {"N": 5500, "D": 12000, "k": 4}, "value": 0.5, "low": 0.4, "high": 0.6}
    (tmp_path / "plan.json").write_text(json.dumps({"predictions": [entry]}))
    with pytest.raises(FlopwiseError, match="a ladder measures the loss"):
        run_recipe(read_plan(tmp_path / "plan.json"), load(TINY))
    small = {"what": "loss", "at": {"N": 500, "D": 12000}, "value": 0.5, "low": 0.4, "high": 0.6}
    (tmp_path / "plan.json").write_text(json.dumps({"predictions": [small]}))
    with pytest.raises(FlopwiseError, match="no width"):
        run_recipe(read_plan(tmp_path / "plan.json"), load(TINY))
