"""The commands `get` and `prepare`, on their own app: what it prints, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from flopwise.cli import data
from flopwise.data.prepared import PreparedData
from flopwise.errors import FlopwiseError


@pytest.fixture
def invoke(tmp_path, monkeypatch):
    monkeypatch.setenv("FLOPWISE_CACHE", str(tmp_path))
    app = typer.Typer()
    app.callback()(lambda: None)
    data.register(app)
    return lambda *args, command="get": CliRunner().invoke(app, [command, *args])


def test_list_needs_no_network(invoke):
    rows = json.loads(invoke("--list", "--json").stdout)
    assert [row["name"] for row in rows if row["modality"] == "text"] == [
        "kjv", "shakespeare", "apidocs", "gapidocs", "stdlib"
    ]  # fmt: skip
    assert {"image", "audio", "video", "sensor"} < {row["modality"] for row in rows}
    assert {row["name"] for row in rows if row["cached"]} == {"stdlib", "calibration"}
    table = invoke("--list")
    assert table.exit_code == 0 and "King James" in table.stdout


def test_get_reports_what_a_run_will_read(invoke):
    (row,) = json.loads(invoke("stdlib", "--json").stdout)
    assert row["documents"] > 100 and row["characters"] > 1e6


@pytest.mark.parametrize("args", [("nope",), ("stdlib", "../x"), ()])
def test_refusals_name_what_there_is(invoke, args):
    error = invoke(*args).exception
    assert isinstance(error, FlopwiseError) and "\n" not in str(error)
    assert "stdlib" in str(error) or "--list" in str(error)


@pytest.fixture
def prepare(invoke):
    return lambda *args: invoke(*map(str, args), command="prepare")


@pytest.fixture
def lines(tmp_path) -> Path:
    """Forty documents, one of them twice, one broken."""
    path = tmp_path / "notes.jsonl"
    texts = [f"note {i} of " + " ".join(f"word{i * 7 + k}" for k in range(30)) for i in range(40)]
    rows = [json.dumps({"body": text}) for text in [*texts, texts[3]]]
    path.write_text("\n".join([*rows, "{"]))
    return path


def test_prepare_prints_a_table_and_json(prepare, lines, tmp_path):
    pytest.importorskip("tokenizers")
    args = ("--field", "body", "--tokenizer", "bpe:300", "--held-out", "0.1")
    shown = prepare(lines, "-o", tmp_path / "a", *args)
    assert shown.exit_code == 0, shown.exception
    assert "duplicates" in shown.stdout and "notes" in shown.stdout
    assert "1 left out, broken JSON; first" in shown.stdout
    about = json.loads(prepare(f"mine={lines}", "-o", tmp_path / "b", *args, "--json").stdout)
    (entry,) = about["corpora"]
    assert entry["name"] == "mine" and entry["duplicates_removed"] == 1
    assert entry["documents"] + entry["heldout_documents"] == 40 and entry["heldout_documents"] >= 2
    data = PreparedData(tmp_path / "b")
    assert data.mixture({"mine": 1.0}).batch(0, 4, 16, 0).shape == (4, 17)
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == [
        "about.json", "heldout-mine-00000.bin", "heldout-mine.json", "heldout-mine.starts", "tokenizer.json",
        "tokenizer_config.json", "train-mine-00000.bin", "train-mine.json", "train-mine.starts",
    ]  # fmt: skip


def test_prepare_takes_shipped_corpora_and_limits(prepare, tmp_path):
    result = prepare("stdlib", "-o", tmp_path / "a", "--tokenizer", "byte", "--max-bytes", "100k", "--json")
    (entry,) = json.loads(result.stdout)["corpora"]
    assert entry["name"] == "stdlib" and 60_000 < entry["bytes"] < 120_000


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("nothing.txt",), "no file, folder or pattern"),
        (("stdlib", "--tokenizer", "words"), "must be byte, bpe:SIZE or hub:PATH"),
        (("stdlib", "--tokenizer", "bpe:10"), "vocab_size is 10, must be 258"),
        (("stdlib", "--held-out", "1.5"), "between 0 and 1"),
        (("stdlib", "--max-bytes", "lots"), "--max-bytes is 'lots'"),
        (("stdlib", "--option", "levels"), "must be NAME=VALUE, as levels=16"),
        (("stdlib", "stdlib"), "two sources are named stdlib"),
        (("a/b=stdlib",), "'a/b' must be"),
    ],
)
def test_prepare_refuses_in_one_line_and_leaves_nothing(prepare, tmp_path, args, message):
    error = prepare(*args, "-o", tmp_path / "out").exception
    assert isinstance(error, FlopwiseError) and message in str(error) and "\n" not in str(error)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_prepare_does_not_overwrite(prepare, lines, tmp_path):
    (tmp_path / "about.json").write_text("{}")
    assert "holds prepared data already" in str(prepare(lines, "-o", tmp_path).exception)
