"""`flopwise pretrain` and a ladder's dry run, from the command line, on a source that needs no network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.conftest import LADDER

pytest.importorskip("torch")

MAIN = [sys.executable, "-c", "from flopwise.cli import main; main()"]

ARGUMENTS = [
    "pretrain", "calibration", "-w", "16", "-w", "24", "-t", "12k", "-t", "20k", "--depth", "1",
    "--set", "ladder.seq_len=32", "--set", "ladder.batch_size=8", "--set", "ladder.warmup_steps=4",
    "--set", "ladder.heldout_tokens=2048", "--workers", "0",
    "--set",
    "data.sources=[{corpus: calibration, options: {vocab: 32, tokens: 65536, document_tokens: 4096}}]",
]  # fmt: skip


def flopwise(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*MAIN, *words], capture_output=True, text=True, env=os.environ | {"COLUMNS": "200"}
    )


def test_a_dry_run_shows_counts_costs_grid_and_rules(tmp_path: Path) -> None:
    done = flopwise(*ARGUMENTS, "--out", str(tmp_path / "runs"), "--dry-run")
    assert done.returncode == 0, done.stderr
    for words in ("params", "6ND", "width 24", "●", "Branched trunks", "Yang, Simon and Bernstein"):
        assert words in done.stdout
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_in_json_holds_every_count(tmp_path: Path) -> None:
    done = flopwise(*ARGUMENTS, "--out", str(tmp_path / "runs"), "--dry-run", "--json")
    told = json.loads(done.stdout)
    assert [rung["width"] for rung in told["rungs"]] == [16, 24]
    for rung in told["rungs"]:
        assert rung["n_params_total"] == rung["n_params_non_embedding"] + rung["n_params_embedding"]
        assert rung["flops"] < rung["flops_if_separate"] and rung["memory_bytes"] > 1e8
        assert rung["seconds"] > 0 and len(rung["budgets"]) == 2
    assert {step["kind"] for step in told["steps"]} == {"data", "pretrain"}


def test_pretrain_leaves_models_with_their_losses_and_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "runs"
    done = flopwise(*ARGUMENTS, "--out", str(out), "--json")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["done"]) == 9  # data, two widths of two pieces and two branches
    again = flopwise(*ARGUMENTS, "--out", str(out), "--json")
    assert not json.loads(again.stdout)["done"] and len(json.loads(again.stdout)["cached"]) == 9
    assert len(list(out.glob("*/model/model.safetensors"))) == 4 and (out / "report.html").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            ["--set", "ladder.batch_size=100000000", "--set", "ladder.budgets=[1000000000000]"],
            "memory: width 16 at 100000000 x 32 tokens needs about",
        ),
        (
            ["--set", "ladder.seq_len=8192", "--set", "ladder.budgets=[1000000]"],
            "the longest document has 4,097 tokens",
        ),
        (
            ["--set", "ladder.batch_size=3000", "--set", "ladder.budgets=[1000000]"],
            "rows of 32 tokens, there are",
        ),
        (["--set", "ladder.budgets=[1000]"], "too short to branch after step 4"),
        (["--tokenizer", "words"], "tokenizer.kind"),
        (["-t", "many"], "D is 'many', must be a number above 0"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, changes: list[str], says: str) -> None:
    done = flopwise(*ARGUMENTS, *changes, "--out", str(tmp_path / "runs"))
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("flopwise:") and says in last


def test_what_a_ladder_found_is_said_at_the_end(tiny_ladder: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "ladder.yaml"
    recipe.write_text(json.dumps(LADDER))  # JSON is YAML
    done = flopwise("run", str(recipe), "--out", str(tiny_ladder))
    assert done.returncode == 0, done.stderr
    assert "0 failed" in done.stdout and "Predicted " in done.stdout and "off by" in done.stdout
    assert "experts: " in done.stdout and "loss: " in done.stdout
    assert "Where the next FLOP should go" not in done.stdout
