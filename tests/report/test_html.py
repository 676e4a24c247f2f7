"""The page: whole without a network, safe against what records say, complete even where runs are not."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flopwise.flops.spend import Spend
from flopwise.records.record import Metric
from flopwise.records.store import RunStore
from flopwise.report import build

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7*7 }}'
VOID = {"meta", "link", "br", "img", "input", "hr", "path", "circle"}


class Page(HTMLParser):
    """Tags, attributes, text, and whether every element is closed."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def page(experiment: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    out = build(experiment.root, tmp_path_factory.mktemp("out") / "deep" / "report.html")
    return out.read_text(), out


def test_page_is_whole_and_asks_no_network(page: tuple[str, Path]) -> None:
    text, _ = page
    parsed = Page(text)
    assert not parsed.open
    for tag, attributes in parsed.tags:
        assert tag not in {"link", "iframe", "object", "embed", "base"}
        assert not {"src", "srcset", "data", "xlink:href"} & set(attributes), tag
        assert (attributes.get("href") or "#").startswith("#")
        assert not any(name.startswith("on") for name in attributes)
    assert "url(" not in text
    assert "@import" not in text
    assert len(text) < 1_500_000


def test_only_our_script_may_run(page: tuple[str, Path]) -> None:
    import base64
    import hashlib

    text, _ = page
    scripts = re.findall(r"<script>(.*?)</script>", text, re.S)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    policy = next(
        a["content"]
        for t, a in Page(text).tags
        if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def test_every_section_has_its_figures(page: tuple[str, Path]) -> None:
    text, _ = page
    parts = dict(zip(*[iter(re.split(r'<section id="(\w+)">', text)[1:])] * 2, strict=True))
    assert list(parts) == ["law1", "law2", "law3", "exchange", "plan", "family", "numbers"]
    for name in ("law1", "law2", "law3", "exchange", "plan"):
        assert 'role="img"' in parts[name], name
        assert "is missing: this folder holds no plan" not in parts[name]
    assert parts["law1"].count("data-tip") >= 20
    assert "unexpected shape" not in text
    assert "beats its control by" in parts["law2"]
    assert "public domain" in parts["numbers"]


def test_results_lie_beside_the_page(page: tuple[str, Path]) -> None:
    results = json.loads(page[1].with_name("results.json").read_text())
    assert results["schema"] == 1
    assert results["pretraining"]["chosen"] == "chinchilla"


def test_hostile_text_stays_text(experiment: Any, tmp_path: Path) -> None:
    copy = shutil.copytree(experiment.root, tmp_path / "runs")
    evil = json.dumps(HOSTILE)[1:-1]
    for name in ("sft", "grpo", "larger", "w32-1.5M", "sample-grpo"):
        path = copy / experiment.ids[name] / "run.json"
        record = json.loads(path.read_text())
        record["name"] = HOSTILE
        path.write_text(json.dumps(record))
    for run, file in (
        ("plan", "plan.json"),
        ("data", "about.json"),
        ("sample-grpo", "examples.json"),
        ("law", "choice.json"),
    ):
        path = copy / experiment.ids[run] / file
        text = path.read_text()
        for word in (
            "make grpo",
            "four samples",
            "public domain",
            "3*7=21!",
            "chinchilla was best",
            "pass@k of",
        ):
            text = text.replace(word, evil + word)
        path.write_text(text)
    text = build(copy, tmp_path / "report.html").read_text()
    parsed = Page(text)
    assert not parsed.open
    assert [t for t, _ in parsed.tags].count("script") == 1
    assert "img" not in [t for t, _ in parsed.tags]
    assert not any(name.startswith("on") for _, a in parsed.tags for name in a)
    assert "{{ 7*7 }}" in parsed.text
    tips = [a["data-tip"] for _, a in parsed.tags if "data-tip" in a]
    assert any(HOSTILE in (tip or "") for tip in tips)


def test_files_of_unexpected_shape_cost_their_section_alone(experiment: Any, tmp_path: Path) -> None:
    copy = shutil.copytree(experiment.root, tmp_path / "runs")
    path = copy / experiment.ids["plan"] / "plan.json"
    content = json.loads(path.read_text())
    content["exchange"]["rates"] = 3
    content["plan"]["checkable"]["accuracy"] = "high"
    content["plan"]["options"][0]["total_flops"] = None
    content["verification"]["points"][0]["predicted"] = None
    path.write_text(json.dumps(content))
    (copy / experiment.ids["law"] / "choice.json").write_text('{"fits": 1}')
    record = copy / experiment.ids["sft"] / "run.json"
    record.write_text(record.read_text().replace('"train_flops": 1000000000000.0', '"train_flops": "many"'))
    parsed = Page(build(copy, tmp_path / "report.html").read_text())
    assert not parsed.open
    assert "exchange cannot be told: a file it reads has an unexpected shape" in parsed.text
    assert "Pretraining cannot be told" in parsed.text
    assert "its spend is not in numbers" in parsed.text
    assert "GRPO beats its equal-compute control" in parsed.text


def test_a_few_records_are_enough(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "runs")
    folder = store.prepare("pretrain", "cooldown", {}, name="alone")
    folder.finish(
        metrics={"loss": Metric(value=3.0, se=0.1, n=5)},
        spend=Spend(1e9, device="x"),
        model={"n_params_non_embedding": 1000, "n_params_total": 2000},
        data={"tokens_seen": 1e5},
    )
    store.prepare("rl", "grpo", {}, name="never finished")
    store.prepare("fit", "pretraining_law", {}, name="law").fail("too few points")
    parsed = Page(build(tmp_path / "runs", tmp_path / "report.html").read_text())
    assert not parsed.open
    assert "step law failed (too few points)" in parsed.text
    assert "alone" in parsed.text
    assert "The plan is missing" in parsed.text
    assert "Every curve is missing: this folder holds no sample run." in parsed.text


def test_command_writes_the_page_or_prints_the_results(experiment: Any, tmp_path: Path) -> None:
    import typer

    from flopwise.cli import report

    app = typer.Typer()
    report.register(app)
    app.command("other")(lambda: None)  # a second command keeps the first one's name
    out = tmp_path / "page.html"
    done = CliRunner().invoke(app, ["report", str(experiment.root), "-o", str(out)])
    assert done.exit_code == 0, done.output
    assert out.read_text().startswith("<!doctype html>")
    printed = CliRunner().invoke(app, ["report", str(experiment.root), "--json"])
    assert json.loads(printed.output)["schema"] == 1
    missing = CliRunner().invoke(app, ["report", str(tmp_path / "none"), "-o", str(out)])
    assert "no runs in" in str(missing.exception)
