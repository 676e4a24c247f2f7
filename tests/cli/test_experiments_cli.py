"""`flopwise demo` and `run`: what a person sees before, during and after, and what stops them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from flopwise.cli import experiments

app = typer.Typer()
experiments.register(app)
MAIN = [sys.executable, "-c", "from flopwise.cli import main; main()"]


def flopwise(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*MAIN, *words], capture_output=True, text=True, env=os.environ | {"COLUMNS": "200"}
    )


def sets(overrides: list[str]) -> list[str]:
    return [word for change in overrides for word in ("--set", change)]


def test_a_dry_run_prints_what_it_would_cost_and_makes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["demo", "--dry-run", "--out", str(out)], catch_exceptions=False)
    assert result.exit_code == 0 and not out.exists()
    assert "The three scaling laws on a laptop" in result.output
    for word in ("trunk-w96-s0-1", "grpo", "law", "FLOPs", "6ND", "minutes with", "never paid for twice"):
        assert word in result.output
    result = CliRunner().invoke(
        app, ["demo", "--dry-run", "--json", "--out", str(out)], catch_exceptions=False
    )
    rows = json.loads(result.output)
    assert len(rows) > 60 and not any(row["done"] for row in rows)
    assert all(row["seconds"] > 0 and row["flops"] >= 0 for row in rows)


def test_a_dry_run_knows_what_is_done(tiny_run: Path, tiny_overrides: list[str]) -> None:
    words = ["run", "demo", "--dry-run", "--out", str(tiny_run), *sets(tiny_overrides)]
    result = CliRunner().invoke(app, [*words, "--json"], catch_exceptions=False)
    assert all(row["done"] for row in json.loads(result.output))
    text = " ".join(CliRunner().invoke(app, words, catch_exceptions=False).output.split())
    assert "steps, all done already" in text


def test_hostile_titles_and_folders_are_shown_as_they_are(tmp_path: Path) -> None:
    words = [
        "run",
        "demo",
        "--dry-run",
        "--set",
        'title="[bold]t[/] \\e[2J"',
        "--out",
        str(tmp_path / "[red]x[/]"),
    ]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0 and "[bold]t[/]" in result.output and "\x1b" not in result.output
    assert "[red]x[/]" in "".join(result.output.splitlines())


def test_a_second_run_of_a_finished_recipe_takes_nothing(tiny_run: Path, tiny_overrides: list[str]) -> None:
    before = {p: p.stat().st_mtime_ns for p in tiny_run.glob("*/run.json")}
    result = flopwise("run", "demo", "--out", str(tiny_run), "--json", *sets(tiny_overrides))
    assert result.returncode == 0, result.stderr
    summary = json.loads(result.stdout)
    assert summary["done"] == [] and summary["failed"] == {} and len(summary["cached"]) == len(before)
    assert before == {p: p.stat().st_mtime_ns for p in before}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["run", "nothing"], "neither a file nor a shipped recipe"),
        (["run", "demo", "--set", "ladder.dept=3"], "did you mean 'depth'?"),
        (["run", "demo", "--set", "data.corpora=[nothing]"], "data.corpora.0 is 'nothing'"),
        (["run", "demo", "--set", "x\x1b[31m"], "write it as key.key=value"),
        (["runs", "nowhere"], "no such folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(words: list[str], says: str, tmp_path: Path) -> None:
    result = subprocess.run([*MAIN, *words], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 2 and result.stdout == ""
    assert says in result.stderr and len(result.stderr.splitlines()) == 1 and "\x1b" not in result.stderr


def test_a_failed_step_is_exit_code_2_and_the_rest_is_kept(tmp_path: Path, tiny_overrides: list[str]) -> None:
    result = flopwise("run", "demo", "--out", str(tmp_path), *sets([*tiny_overrides, "data.max_chars=1"]))
    assert result.returncode == 2 and "Traceback" not in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("flopwise: ") and "first data: " in last and "too few" in last


@pytest.mark.slow
def test_ctrl_c_is_one_line_and_exit_code_130(tmp_path: Path, tiny_overrides: list[str]) -> None:
    process = subprocess.Popen(
        [*MAIN, "run", "demo", "--out", str(tmp_path), *sets(tiny_overrides)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob("*/spec.yaml")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too, even while they start
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "stopped; the same command goes on where it stopped"
    assert "Traceback" not in errors and "KeyboardInterrupt" not in errors
    assert not list(tmp_path.glob("*/run.json"))
