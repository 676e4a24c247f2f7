"""`flopwise policy` on tables and samples, in words and as JSON."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from flopwise.cli import main
from flopwise.infer.samples import Samples


def run(monkeypatch, capsys, *words: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["flopwise", "policy", *map(str, words)])
    code = 0
    try:
        main()
    except SystemExit as e:
        code = int(e.code or 0)
    out = capsys.readouterr()
    return code, out.out, out.err


@pytest.fixture
def table(tmp_path):
    """40 problems, 12 samples of each: right with a chance of its own, or one of three wrong answers."""
    rng = np.random.default_rng(0)
    lines = ["problem,correct,answer,score,tokens,easy"]
    for problem, p in enumerate(rng.beta(0.6, 1.0, 40)):
        for _ in range(12):
            right = rng.random() < p
            answer = "right" if right else f"w{rng.integers(3)}"
            score, tokens = right + rng.normal(), rng.integers(50, 150)
            lines.append(f"q{problem},{int(right)},{answer},{score:.4f},{tokens},{p:.3f}")
    path = tmp_path / "samples.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_table_is_compared_in_words(table, monkeypatch, capsys):
    code, out, err = run(monkeypatch, capsys, table, "--budget", "5x")
    assert code == 0 and not err
    assert "40 problems, 11 samples of each evaluated; budget" in out and "tokens" in out
    for word in ("uniform", "adaptive", "by difficulty", "both", "gain", "saves", "hardest first"):
        assert word in out
    assert "mind: what score costs is not known" in out


def test_json_holds_everything_and_depends_on_the_seed_alone(table, monkeypatch, capsys):
    words = (table, "--budget", "5x", "-s", "self_consistency", "--difficulty", "agreement:3", "--json")
    made = json.loads(run(monkeypatch, capsys, *words)[1])
    assert made["strategies"] == ["self_consistency"] and made["difficulty"]["m"] == 3
    assert made["unit"] == "tokens" and len(made["policies"]) == 5
    assert json.loads(run(monkeypatch, capsys, *words)[1]) == made
    total = json.loads(run(monkeypatch, capsys, table, "--budget", made["budget"], *words[3:])[1])
    assert total["budget"] == made["budget"] and total["uniform"] == made["uniform"]


def test_a_probe_takes_the_place_of_samples(table, monkeypatch, capsys):
    words = ("--budget", "5x", "-s", "best_of_n:verifier", "--probe", "easy", "--probe-cost", "10", "--json")
    made = json.loads(run(monkeypatch, capsys, table, *words)[1])
    assert made["samples"] == 12 and made["difficulty"] == {"by": "probe", "m": 0, "cost": 10.0}
    names = [row["name"] for row in made["policies"]]
    assert names == ["adaptive", "by difficulty", "by difficulty, free", "both"]
    problems = [row["problems"] for row in made["table"]]
    assert sum(problems) == 40 and min(problems) >= 5


def test_samples_of_a_run_are_read_as_they_are(table, tmp_path, monkeypatch, capsys):
    from flopwise.records.table import read_table

    (tmp_path / "run").mkdir()
    Samples.from_table(read_table(table)).save(tmp_path / "run" / "samples.npz")
    words = ("--budget", "4x", "-s", "self_consistency", "--json")
    from_run = json.loads(run(monkeypatch, capsys, tmp_path / "run", *words)[1])
    from_table = json.loads(run(monkeypatch, capsys, table, *words)[1])
    assert from_run == from_table
    fewer = json.loads(run(monkeypatch, capsys, tmp_path / "run", "-n", "8", *words)[1])
    assert fewer["samples"] == 7


@pytest.mark.parametrize(
    ("words", "says"),
    [(("--budget", "-3"), "must be a number above 0"), (("--budget", "10"), "less than one sample of each"),
     (("--budget", "0x"), "--budget is '0'"), (("-s", "beam"), "cannot be replayed"),
     (("--difficulty", "agreement:no"), "must be NAME or NAME:SAMPLES"), (("--probe", "nothing"), "nothing"),
     (("--probe", "easy", "--difficulty", "agreement"), "not both"), (("-n", "99"), "99 of each asked for")],
)  # fmt: skip
def test_bad_words_give_one_line_and_exit_code_2(table, monkeypatch, capsys, words, says):
    code, out, err = run(monkeypatch, capsys, table, *words)
    assert code == 2 and not out and says in err and err.count("\n") == 1
