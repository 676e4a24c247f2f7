import json

import numpy as np
import pytest
import typer
from invoking import invoking

from flopwise.cli import score

app = typer.Typer()
app.callback()(lambda: None)
score.register(app)

SAMPLES = "id,correct,answer,prm\n" + "".join(
    f"{p},{int(s == 0)},{'a' if s == 0 else 'b'},{1 - s / 4}\n" for p in range(3) for s in range(4)
)


run, refused = invoking(app)


@pytest.fixture
def samples(tmp_path):
    path = tmp_path / "samples.csv"
    path.write_text(SAMPLES)
    return path


MAP = ("--map", "problem=id,score=prm")


def test_score_prints_the_contracts_keys(samples):
    out = json.loads(run("score", samples, *MAP, "--k", "1,4,8", "--json"))
    for key in ("pass_at_k", "majority_at_k", "best_of_n"):
        assert list(out[key]) == ["1", "4", "8"]
        assert out[key]["1"]["value"] == pytest.approx(0.25)
        assert out[key]["8"]["value"] is None and "fewer than 8" in out[key]["8"]["reason"]
    assert out["pass_at_k"]["4"]["value"] == out["best_of_n"]["4"]["value"] == 1
    assert out["majority_at_k"]["4"]["value"] == 0
    assert {"low", "high"} <= set(out["pass_at_k"]["4"])


def test_score_for_people(samples):
    out = run("score", samples, *MAP, "--k", "1,8", "--where", "id < 2")
    assert "8 samples of 2 problems" in out
    assert "pass@k" in out and "0.250" in out and "none: 2 of 2 problems have fewer than 8" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--k", "one"], "--k is 'one'"),
        (["--k", "0"], "at least 1"),
        (["--map", "score"], "must be NAME=VALUE"),
        (["--map", "problem=idd"], "no column 'idd'"),
        ([], "no column 'problem'"),
        ([*MAP, "--where", "id >"], "where"),
        ([*MAP, "--where", "id > 99"], "no rows"),
    ],
)
def test_score_refuses_in_one_line(samples, arguments, message):
    assert message in refused("score", samples, *arguments)


def test_score_refuses_files_it_cannot_read(tmp_path):
    assert "does not exist" in refused("score", tmp_path / "no.csv")
    (tmp_path / "bad.parquet").write_bytes(b"\x00\xff" * 50)
    assert "cannot be read" in refused("score", tmp_path / "bad.parquet")
    (tmp_path / "bad.csv").write_text("problem,correct\na,1\nb,maybe\n")
    assert "'maybe' in row 2" in refused("score", tmp_path / "bad.csv")


@pytest.fixture
def many(tmp_path):
    """60 problems, 16 samples, two judges: one that knows, one that is noise."""
    rng = np.random.default_rng(0)
    lines = ["problem,correct,answer,score,score_noise,tokens"]
    for p in range(60):
        chance = rng.beta(1, 1)
        for _ in range(16):
            right = rng.random() < chance
            answer = "a" if right else rng.choice(["b", "c", ""])
            score = rng.normal() + 1.5 * right
            lines.append(f"{p},{int(right)},{answer},{score:.3f},{rng.random():.3f},{rng.integers(20, 90)}")
    path = tmp_path / "many.csv"
    path.write_text("\n".join(lines))
    return path


def test_several_judges_and_forecasts(many):
    out = json.loads(run("score", many, "--k", "1,8", "--forecast", "16,1k", "--json"))
    assert set(out["scores"]) == {"score", "score_noise"}
    assert out["best_of_n"] == out["scores"]["score"]["best_of_n"]
    good, noise = (out["scores"][name]["quality"]["auc_within"] for name in ("score", "score_noise"))
    assert good["low"] > 0.75 and noise["low"] < 0.5 < noise["high"]
    assert out["scores"]["score_noise"]["weights"] == "the score, a chance"
    better = out["differences"]["best_of_n - majority_at_k"]["8"]
    assert better["low"] > 0 and better["value"] == pytest.approx(
        out["best_of_n"]["8"]["value"] - out["majority_at_k"]["8"]["value"]
    )
    assert set(out["forecast"]) == {"pass_at_k", "majority_at_k", "best_of_n", "best_of_n:noise"}
    for found in out["forecast"].values():
        first, last = found["points"]
        assert first["measured"] and last["k"] == 1000 and last["low"] <= last["value"] <= last["high"]
        assert last["costs"]["tokens"] == pytest.approx(1000 * first["costs"]["tokens"] / 16)
    assert "verdict" in out["thinking"]


def test_judges_and_forecasts_for_people(many):
    out = run("score", many, "--k", "8", "--forecast", "1k")
    for said in (
        "best of n noise", "weighted", "AUC within problems", "pooled", "temperature", "best n",
        "overoptimisation_best_of_n", "paired over problems", "forecast of majority_at_k", "tokens",
        "thinking: within problems accuracy",
    ):  # fmt: skip
        assert said in out, said


def test_what_cannot_be_forecast_says_why(samples):
    out = run("score", samples, *MAP, "--forecast", "1k")
    assert "forecast of majority_at_k: none" in out and "needs 10 problems" in out
    assert "--forecast is 'many'" in refused("score", samples, *MAP, "--forecast", "many")
