"""`flopwise runs`, `tree` and `query`: what is listed, and that nothing in a record drives the terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from flopwise.cli import runs
from flopwise.errors import FlopwiseError
from flopwise.flops.ledger import Ledger
from flopwise.flops.spend import Spend, Stopwatch
from flopwise.records.record import Metric
from flopwise.records.store import RunStore

app = typer.Typer()
runs.register(app)
HOSTILE = "[bold]x[/] \x1b[2J\x07[link=file:///]"


def call(*words: str) -> str:
    result = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    store = RunStore(tmp_path)
    base = store.prepare("pretrain", "trunk", {}, {}, 0, "base")
    base.log(step=1, loss=3.5)
    base.finish(
        {"loss_a": Metric(value=4.0), "loss": Metric(value=3.25, se=0.5, n=7)},
        Spend(train_flops=2e12, wall_s=3.0),
    )
    child = store.prepare(HOSTILE, "m", {}, {"init": base.id}, 0, HOSTILE)
    child.finish({HOSTILE: Metric(value=1.0)}, Spend(train_flops=1e12))
    store.prepare("sft", "m", {}, {"init": base.id}, 0, "broken").fail("loss is nan [red]")
    return tmp_path


def test_runs_lists_every_run_with_its_cost_and_result(folder: Path) -> None:
    text = call("runs", str(folder))
    assert "base" in text and "2.00e+12" in text and "3.00e+12" in text and "loss 3.25" in text
    assert "failed" in text and "loss is nan [red]" in text
    assert {r["name"] for r in json.loads(call("runs", str(folder), "--json"))} == {"base", "broken", HOSTILE}


def test_tree_hangs_children_under_their_parents(folder: Path) -> None:
    lines = call("tree", str(folder)).splitlines()
    assert lines[1].split() == ["base", "pretrain:", "trunk", "2.00e+12", "2.00e+12"]
    assert sum("1.00e+12" in line and "3.00e+12" in line for line in lines) == 1
    assert any("broken" in line and "(failed)" in line and "unknown" in line for line in lines)
    (root,) = json.loads(call("tree", str(folder), "--json"))
    assert root["name"] == "base" and {c["name"] for c in root["children"]} == {HOSTILE, "broken"}
    assert (root["own_flops"], root["lineage_flops"], root["runs"]) == (2e12, 2e12, 3)


def test_a_ledger_is_shown_by_purpose_and_model(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    ledger = Ledger()
    ledger.post("train", "x", 2000, 3e9, 1.5)
    ledger.post("judge", HOSTILE, 10, None)
    ledger.post("evaluate", "x", None, 5e9, 2.0)
    store.prepare("rl", "grpo", {}, {}, 0, "run").finish({}, Stopwatch().spend(ledger))
    text = call("runs", str(tmp_path), "--ledger", "run")
    lines = [line.split() for line in text.splitlines()]
    assert ["train", "x", "2,000", "3.000e+09", "1.5", "train"] in lines
    assert ["evaluate", "x", "unknown", "5.000e+09", "2.0", "no", "total"] in lines
    assert "at least: not counted: judge passes of" in text and "\x1b" not in text
    values = json.loads(call("runs", str(tmp_path), "--ledger", "run", "--json"))
    assert values["train_flops"] == values["total_flops"] == 3e9 and values["score_flops"] is None
    assert values["by"] == ledger.rows() and values["at_least"]


def test_query_answers_in_a_table_and_in_json(folder: Path) -> None:
    sql = "SELECT name, loss, 'nan'::DOUBLE AS odd, NULL AS none FROM runs WHERE name = 'base'"
    assert "3.25" in call("query", sql, "--runs", str(folder))
    (row,) = json.loads(call("query", sql, "--runs", str(folder), "--json"))
    assert row == {"name": "base", "loss": 3.25, "odd": None, "none": None}


@pytest.mark.parametrize("command", [["runs"], ["tree"], ["query", "SELECT * FROM runs", "--runs"]])
def test_hostile_names_are_shown_as_they_are(folder: Path, command: list[str]) -> None:
    text = call(*command, str(folder))
    assert "\x1b" not in text and "\x07" not in text
    assert "[bold]x[/]" in text


def test_damaged_records_are_named_and_the_rest_is_shown(folder: Path) -> None:
    store = RunStore(folder)
    (folder / store.get("broken").id / "run.json").write_text("{")
    text = call("runs", str(folder))
    assert "left out record" in text and "base" in text


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["runs", "none"], "no such folder"), (["tree", "none"], "no such folder"),
        (["query", "SELEC", "--runs", "."], "query: "),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(
    words: list[str], says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FlopwiseError, match=says):
        call(*words)


def test_a_base_of_unknown_compute_and_an_estimate_for_it(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    base = store.prepare("base", "import", {}, {}, 0, "elsewhere")
    base.finish({}, Spend(unknown="made elsewhere"))
    store.prepare("sft", "lora", {}, {"init": base.id}, 0, "tuned").finish({}, Spend(3e12))
    text = call("tree", str(tmp_path))
    assert "≥ 3.00e+12" in text and "its own are unknown (made elsewhere): try --base-flops" in text
    assumed = call("tree", str(tmp_path), "--base-flops", "1e11")
    assert "cost 3.00e+12 FLOPs, 30 times the 1.00e+11 assumed for it" in assumed
    (root,) = json.loads(call("tree", str(tmp_path), "--json", "--base-flops", "1e11"))
    assert root["own_flops"] is None and root["derived"]["multiple"] == 30 and root["derived"]["assumed"]


@pytest.mark.parametrize(
    ("words", "says"),
    [(["--sort", "tea"], "sort 'tea' must be one of"), (["--base-flops", "much"], "must be a number above 0"),
     (["--kind", "tea"], "no model of kind"), (["--root", "x"], "matches no model")],
)  # fmt: skip
def test_a_view_that_cannot_be_is_one_line(folder: Path, words: list[str], says: str) -> None:
    with pytest.raises(FlopwiseError, match=says):
        call("tree", str(folder), *words)
