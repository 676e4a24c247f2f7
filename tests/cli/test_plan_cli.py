"""`flopwise plan`: from fits and from runs; bad input is one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from flopwise.cli import command_line
from flopwise.errors import FlopwiseError
from flopwise.laws import fit, get

TRUTH = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}


@pytest.fixture(scope="module")
def fits(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    N, D = (v.ravel() for v in np.meshgrid(np.logspace(7, 9, 5), np.logspace(9, 11, 5)))
    noise = np.exp(0.002 * np.random.default_rng(0).normal(size=len(N)))
    table = {"N": N, "D": D, "loss": get("chinchilla")(TRUTH, {"N": N, "D": D}) * noise}
    folder = tmp_path_factory.mktemp("fits")
    for law in ("chinchilla", "kaplan"):
        fit(law, table).to_json(folder / f"{law}.json")
    return [str(folder / f"{law}.json") for law in ("chinchilla", "kaplan")]


def call(*words: str) -> str:
    result = CliRunner().invoke(command_line(), ["plan", *words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.stdout


def test_fits_give_a_split_that_spends_the_budget(fits: list[str]) -> None:
    made = json.loads(call(*fits, "--budget", "1e21", "--demand", "1e12", "--json"))
    best = made["best"]
    assert best["law"] == "chinchilla" and [s["law"] for s in made["others"]] == ["kaplan"]
    assert best["train_flops"] + best["inference_flops"] == pytest.approx(1e21, rel=1e-6)
    assert json.loads(call(*fits, "--budget", "1000 EFLOP", "--demand", "1T tokens", "--json")) == made
    text = call(*fits, "--budget", "1e21")
    assert "tokens a parameter" in text and "If kaplan is right instead" in text


def test_runs_give_a_plan_for_other_budgets(tiny_run: Path) -> None:
    made = json.loads(call(str(tiny_run), "--budget", "1e14", "--questions", "1e4", "--json"))
    assert made["budget_flops"] == 1e14 and made["questions"] == 1e4
    assert made["checkable"]["total_flops"] <= 1e14
    text = call(str(tiny_run), "--budget", "1e14")
    assert "Where answers can be checked" in text and "all others measured" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nosuch.json", "--budget", "1e20"), "does not exist"),
        (("{fit}", "--budget", "-1"), "above 0"),
        (("{fit}", "--budget", "1e20", "--demand", "1e12 FLOP"), "a number of tokens"),
        (("{fit}", "--budget", "1e20", "--questions", "5"), "goes with a folder of runs"),
        (("{runs}", "{fit}", "--budget", "1e20"), "one folder of runs"),
        (("{runs}", "--budget", "1"), "afford no known system"),
    ],
)
def test_bad_input_is_one_line(words: tuple[str, ...], message: str, fits: list[str], tiny_run: Path) -> None:
    filled = [w.format(fit=fits[0], runs=tiny_run) for w in words]
    with pytest.raises(FlopwiseError, match=message) as error:
        call(*filled)
    assert "\n" not in str(error.value)
