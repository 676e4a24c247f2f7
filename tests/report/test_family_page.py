"""The report of a folder of very many models: the family alone, short, and all text escaped."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.tree_store import make

from flopwise.flops.spend import Spend
from flopwise.records.store import RunStore
from flopwise.report import collect, family, html


def test_many_models_are_reported_as_a_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make(tmp_path / "runs", 150)
    hostile = "<script>alert(1)</script>"
    RunStore(root).prepare("base", hostile, {}, {}, 0, hostile).finish({}, Spend(unknown=hostile))
    monkeypatch.setattr(collect, "MANY", 100)
    monkeypatch.setattr(family, "LINES", 40)
    results = collect.collect(root)
    found = results["family"]
    assert (results["kind"], found["members"]) == ("family", 156) and 13 < found["shown"] <= 40
    assert sum(tree["size"] for tree in found["trees"]) == 156
    page = html.render(results)
    assert "more<small>" in page and "models, " in page and hostile not in page and "&lt;script&gt;" in page
