"""The command `get`, on its own app: what it prints, and what it refuses."""

from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from flopwise.cli import data
from flopwise.errors import FlopwiseError


@pytest.fixture
def invoke(tmp_path, monkeypatch):
    monkeypatch.setenv("FLOPWISE_CACHE", str(tmp_path))
    app = typer.Typer()
    app.callback()(lambda: None)
    data.register(app)
    return lambda *args: CliRunner().invoke(app, ["get", *args])


def test_list_needs_no_network(invoke):
    rows = json.loads(invoke("--list", "--json").stdout)
    assert [row["name"] for row in rows] == ["kjv", "shakespeare", "apidocs", "gapidocs", "stdlib"]
    assert [row["cached"] for row in rows] == [False] * 4 + [True]
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
