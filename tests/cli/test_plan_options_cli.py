"""`flopwise plan` with its options: words, numbers with units, the file for verification."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from flopwise.cli import command_line
from flopwise.errors import FlopwiseError
from flopwise.laws import fit, get

TRUTH = {
    "E": 0.1, "A": 300.0, "B": 300.0, "G": 1.5, "H": 1.0, "alpha": 0.35, "beta": 0.3, "gamma": 0.4,
    "delta": 0.5, "P0": 1e9,
}  # fmt: skip
ASKED = ("--queries", "30M", "--prompt-tokens", "200", "--answer-tokens", "400", "--samples-max", "16")


@pytest.fixture(scope="module")
def joint(tmp_path_factory: pytest.TempPathFactory) -> str:
    axes = ((1e8, 4e8, 1.5e9), (1e10, 5e10, 2e11), (0.0, 1e9, 1e10), (1.0, 4.0, 16.0))
    N, D, post, k = (v.ravel() for v in np.meshgrid(*axes))
    table = {"N": N, "D": D, "post": post, "k": k}
    noise = np.exp(0.005 * np.random.default_rng(0).normal(size=len(N)))
    path = tmp_path_factory.mktemp("fits") / "joint.json"
    fit(
        "joint_loss", table | {"nlp": get("joint_loss")(TRUTH, table) * noise}, intervals="delta", starts=20
    ).to_json(path)
    return str(path)


def call(*words: str) -> str:
    result = CliRunner().invoke(command_line(), ["plan", *words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.stdout


def test_a_joint_plan_in_words_and_numbers(joint: str, tmp_path: Path) -> None:
    kept = tmp_path / "plan.json"
    words = (joint, "--budget", "3e20", *ASKED, "--hardware", "h100", "--price", "2.5", "--memory", "16GB")
    text = call(*words, "--latency", "2s", "--deadline", "30d", "--data", "100B", "--out", str(kept))
    for said in (
        "post-training", "samples", "the same budget", "all into test time", "what would change it",
        "One percent more", " samples here", "kg of CO2", "assumed:", "█",
    ):  # fmt: skip
        assert said in text, said
    made = json.loads(call(*words, "--latency", "2s", "--deadline", "30d", "--data", "100B", "--json"))
    assert json.loads(kept.read_text()) == made
    assert made["limits"] == {"memory": 16e9, "latency": 2.0, "data": 1e11, "deadline": 30 * 86400.0}
    assert made["best"]["metric"] == "nlp" and 0 < made["best"]["accuracy"] < 1
    assert made["predictions"][0]["what"] == "nlp" and len(made["neighbours"]) == 2


def test_a_target_names_its_least_budget(joint: str) -> None:
    text = call(joint, "--target-accuracy", "0.4", *ASKED)
    assert "nlp 0.9163 takes" in text and "FLOPs at least (95%" in text
    there = json.loads(call(joint, "--budget", "3e20", *ASKED, "--at", "N=1B,D=20B,post=1B,k=4", "--json"))
    assert there["exchange"][-1]["flops"] == pytest.approx(6 * 1e9 * 1e9) and len(there["marginal"]) == 4
    started = call(joint, "--budget", "3e20", *ASKED, "--base", "N=400M,D=50B")
    assert "N 4e+08 (4e+08 to 4e+08)" in started


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--budget", "3e20"), "how many questions"),
        ((), "a budget in FLOPs, or a target"),
        (("--budget", "3e20", *ASKED, "--memory", "16 apples"), "--memory is '16 apples', must be as 16GB"),
        (("--budget", "3e20", *ASKED, "--latency", "-2s"), "must be as 2s"),
        (("--budget", "3e20", *ASKED, "--base", "N=4e8"), "must be as N=7B,D=1T"),
        (("--budget", "3e20", *ASKED, "--hardware", "abacus"), "unknown; there are a100"),
        (("--target-loss", "1", "--queries", "1e6", "--answer-tokens", "-3"), "--answer-tokens is"),
        (("--budget", "3e20", *ASKED, "--out", "/nowhere/at/all.json"), "cannot be written"),
    ],
)
def test_bad_options_are_one_line(joint: str, words: tuple[str, ...], message: str) -> None:
    with pytest.raises(FlopwiseError, match=message) as error:
        call(joint, *words)
    assert "\n" not in str(error.value)
