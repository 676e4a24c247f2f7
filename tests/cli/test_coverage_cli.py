"""`flopwise coverage` on its own app: a forecast by group, as text and as JSON; bad words and tables."""

from __future__ import annotations

import json

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from flopwise.cli import coverage as group
from flopwise.errors import FlopwiseError
from flopwise.laws.counts import Counts
from flopwise.laws.coverage import forecast


@pytest.fixture
def invoke():
    app = typer.Typer()
    app.callback()(lambda: None)
    group.register(app)
    return lambda *args: CliRunner().invoke(app, ["coverage", *map(str, args)])


@pytest.fixture
def table(tmp_path):
    rng = np.random.default_rng(0)
    lines = ["model,id,tries,hits"]
    for model, b in (("small", 30), ("big", 6)):
        c = rng.binomial(100, rng.beta(0.5, b, 40))
        lines += [f"{model},{i},100,{hits}" for i, hits in enumerate(c)]
    path = tmp_path / "counts.csv"
    path.write_text("\n".join(lines))
    return path


MAP = ("--map", "n=tries,c=hits,problem=id")


def test_a_forecast_for_each_group(invoke, table):
    result = invoke(table, *MAP, "--by", "model", "--k", "1,100,1k", "--json")
    small, big = json.loads(result.stdout)
    assert (small["model"], big["model"]) == ("small", "big")
    assert [p["k"] for p in big["points"]] == [1, 100, 1000]
    assert [p["measured"] for p in big["points"]] == [True, True, False]
    assert small["value"] < big["value"] and big["low"] < big["value"] < big["high"]
    hits = [int(line.split(",")[3]) for line in table.read_text().splitlines() if line.startswith("big")]
    assert big["value"] == forecast(Counts.of(100, hits), [1, 100, 1000]).value


def test_the_text_names_what_is_measured_and_the_form(invoke, table):
    result = invoke(table, *MAP, "--where", "model = 'big'", "--k", "1000,10")
    lines = result.stdout.splitlines()
    assert lines[0].startswith("40 problems, 100 samples of each (median), ")
    assert (
        "measured" in lines[2] and "forecast" in lines[3] and lines[4] == "intervals are for these problems"
    )
    assert "form power: pass@k = exp(-a k^-b); a = " in result.stdout and "tried on" in result.stdout
    measured = invoke(table, *MAP, "--where", "model = 'big'", "--k", "10", "--over", "new").stdout
    assert "form" not in measured and "new problems like these" in measured


def test_tries_until_solved(invoke, tmp_path):
    rng = np.random.default_rng(1)
    first = rng.geometric(rng.beta(0.5, 10.0, 100))
    rows = [f"{min(t, 64)},{str(t <= 64).lower()}" for t in first]
    path = tmp_path / "stopped.csv"
    path.write_text("attempts,solved\n" + "\n".join(rows))
    made = json.loads(invoke(path, "--k", "64,256", "--json").stdout)
    assert made["points"][0]["value"] == pytest.approx(np.mean(first <= 64)) and made["points"][0]["measured"]
    assert made["low"] <= np.mean(first <= 256) <= made["high"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--k", "0"], "must be a number above 0"),
        (["--k", "2.5"], "k is 2.5, must be whole numbers"),
        (["--k", "ten"], "--k is 'ten'"),
        (["--k", "10", "--by", "model", "--over", "all"], "over is 'all', must be 'same' or 'new'"),
        (["--k", "10", "--by", "modle"], "no column 'modle'; did you mean 'model'"),
        (["--k", "10"], "problem '0' comes twice"),
        (["--k", "10", "--by", "model", "--level", "95"], "level is 95"),
        (["--k", "10", "--where", "id < 5", "--by", "model"], "5 problems with 100 samples.*\\(small\\)"),
    ],
)
def test_bad_words_are_refused_in_one_line(invoke, table, words, message):
    with pytest.raises(FlopwiseError, match=message) as e:
        raise invoke(table, *MAP, *words).exception
    assert "\n" not in str(e.value)
