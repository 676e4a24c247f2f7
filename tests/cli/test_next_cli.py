"""`flopwise next` and `flopwise verify`: what they print, in words and JSON; bad input is one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from flopwise.cli import command_line
from flopwise.errors import FlopwiseError
from flopwise.laws import fit, get

TRUTH = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}


def write(path: Path, columns: dict) -> str:
    rows = zip(*columns.values(), strict=True)
    path.write_text(",".join(columns) + "\n" + "".join(",".join(map(str, row)) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("next")
    N, D = (v.ravel() for v in np.meshgrid([2e7, 5e7, 1e8], [4e8, 1.2e9, 4e9]))
    loss = get("chinchilla")(TRUTH, {"N": N, "D": D}) * np.exp(
        0.003 * np.random.default_rng(0).normal(size=9)
    )
    table = {"N": N, "D": D, "loss": loss}
    fit("chinchilla", table, intervals="delta").to_json(folder / "fit.json")
    curve = np.linspace(2e8, 2e9, 12)
    partial = {
        "run": ["a"] * 12 + ["b"] * 12, "N": [3e7] * 24, "D": [*curve, *curve],
        "loss": [*get("chinchilla")(TRUTH, {"N": np.full(12, 3e7), "D": curve})] * 2, "D_end": [4e9] * 24,
    }  # fmt: skip
    partial["loss"] = [
        y * (1.0 if r == "a" else 1.1) for r, y in zip(partial["run"], partial["loss"], strict=True)
    ]
    return {
        "runs": write(folder / "runs.csv", table), "fit": str(folder / "fit.json"),
        "partial": write(folder / "partial.csv", partial), "plan": str(folder / "plan.json"),
    }  # fmt: skip


def call(*words: str) -> str:
    result = CliRunner().invoke(command_line(), list(words))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.stdout


def test_a_table_and_a_fit_give_runs_within_the_budget(files):
    small = ("--grid", "N=1e7:5e8:6,D=4e8:2e10:6")
    for source in (files["runs"], files["fit"]):
        made = json.loads(call("next", source, "--budget", "3 EFLOP", "--at", "N=1B,D=20B", *small, "--json"))
        assert made["spent"] <= 3e18 and made["runs"] and made["aim"] == {"N": [1e9], "D": [2e10]}
        assert made["narrowing"][0]["after"] < made["narrowing"][0]["before"]
    text = call(
        "next",
        files["runs"],
        "--law",
        "chinchilla,coupled",
        "--budget",
        "3e18",
        "--grid",
        "N=1e7:5e8:6,D=4e8:2e10:6",
    )
    assert "95% interval from" in text and "to take one for the other" in text and "mind: assumed" in text


def test_the_goal_plan_tells_its_regret(files):
    words = ("next", files["fit"], "--budget", "1e18", "--goal", "plan", "--plan-budget", "1e21")
    assert "is expected to give away" in call(*words)
    made = json.loads(call(*words, "--json"))
    assert made["goal"] == "plan" and made["regret"]["after"] <= made["regret"]["before"]


def test_candidates_of_a_table(files, tmp_path: Path):
    table = write(tmp_path / "c.csv", {"N": [1e7, 3e8], "D": [1e10, 4e8], "flops": [1e18, 2e18]})
    made = json.loads(
        call("next", files["fit"], "--budget", "2e18", "--candidates", table, "--cost", "flops", "--json")
    )
    assert [r["row"] for r in made["runs"]] in ([1], [2])


def test_running_ones_are_told_to_stop(files):
    words = (
        "next",
        files["runs"],
        "--law",
        "chinchilla",
        "--running",
        files["partial"],
        "--best-within",
        "N",
    )
    made = json.loads(call(*words, "--json"))
    assert [r["stop"] for r in made["runs"]] == [False, True]
    assert "will end lower" in call(*words)


def test_a_plan_is_verified(files, tmp_path: Path):
    call("plan", files["fit"], "--budget", "1e19", "--out", files["plan"])
    plan = json.loads(Path(files["plan"]).read_text())
    places = [p["at"] for p in plan["predictions"] + plan["neighbours"]]
    N, D = (np.array([p[n] for p in places]) for n in "ND")
    loss = get("chinchilla")(TRUTH, {"N": N, "D": D})
    table = write(tmp_path / "m.csv", {"params": N, "D": D, "loss": loss})
    words = ("verify", files["plan"], "--runs", table, "--map", "N=params")
    made = json.loads(call(*words, "--json"))
    assert len(made["checks"]) == 3 and all(c["measured"] for c in made["checks"])
    assert "measured inside the predicted 90% interval" in call(*words)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("next", "runs"), "--budget, for which runs to do"),
        (("next", "runs", "--budget", "0"), "above 0"),
        (("next", "fit", "--budget", "1e9"), "afford none"),
        (("next", "fit", "--budget", "1e18", "--law", "coupled"), "is a fit"),
        (("next", "fit", "--budget", "1e18", "--grid", "N=1e9:1e7"), "is above"),
        (("next", "fit", "--budget", "1e18", "--grid", "N=1e9"), "from:to:number"),
        (("next", "fit", "--budget", "1e18", "--at", "N=1e9,D=1e10", "--at", "N=1e9"), "every aim"),
        (("next", "none.csv", "--budget", "1e18"), "does not exist"),
        (("verify", "fit"), "names no predictions"),
        (("verify", "none.json"), "does not exist"),
        (("verify", "fit", "--runs", "runs", "--recipe", "x.yaml"), "or --recipe"),
        (("verify", "fit", "--recipe", "x.yaml"), "--fit FIT is needed"),
    ],
)
def test_bad_input_is_one_line(files, words, says):
    with pytest.raises(FlopwiseError, match=says):
        call(*(files.get(w, w) for w in words))
