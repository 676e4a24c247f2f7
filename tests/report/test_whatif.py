"""The sliders: the page's script computes what the planner does, from data that is never run as code."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flopwise.errors import FlopwiseError
from flopwise.laws import fit, get
from flopwise.plan.response import responses
from flopwise.plan.setting import Demand, Setting
from flopwise.plan.solve import optimise
from flopwise.plan.whatif import whatif
from flopwise.report import html

SCRIPT = html.TEMPLATES / "whatif.js"
ASK = {
    "budget": 3e20, "queries": 3e7, "prompt_tokens": 200.0, "answer_tokens": 400.0, "samples_max": 32.0,
}  # fmt: skip


def mesh(**axes: Any) -> dict[str, np.ndarray]:
    grid = np.meshgrid(*(np.asarray(a, dtype=float) for a in axes.values()), indexing="ij")
    return {name: values.ravel() for name, values in zip(axes, grid, strict=True)}


@pytest.fixture(scope="module")
def chained() -> list[Any]:
    """A law of loss and one of coverage that goes on from it."""
    x = mesh(N=np.logspace(7, 9.5, 5), D=np.logspace(9, 11.5, 5))
    truth = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}
    noise = np.exp(0.002 * np.random.default_rng(0).normal(size=25))
    loss = fit("chinchilla", x | {"loss": get("chinchilla")(truth, x) * noise}, intervals="delta")
    y = mesh(loss=np.linspace(2.0, 3.6, 8), k=(1, 4, 16, 64))
    cover = get("train_to_test")({"t1": 4.0, "t2": 2.0, "t3": 1.0, "t4": 0.2}, y)
    cover = cover * (1 + 0.01 * np.random.default_rng(1).normal(size=32))
    return [loss, fit("train_to_test", y | {"coverage": cover}, loss="squared", intervals="delta")]


@pytest.fixture(scope="module")
def additive() -> list[Any]:
    """A joint law in all four variables."""
    x = mesh(N=(1e8, 4e8, 1.5e9), D=(1e10, 5e10, 2e11), post=(0.0, 1e9, 1e10), k=(1, 4, 16))
    truth = {
        "E": 0.1, "A": 300.0, "B": 300.0, "G": 1.5, "H": 1.0, "alpha": 0.35, "beta": 0.3, "gamma": 0.4,
        "delta": 0.5, "P0": 1e9,
    }  # fmt: skip
    noise = np.exp(0.005 * np.random.default_rng(0).normal(size=81))
    return [fit("joint_loss", x | {"nlp": get("joint_loss")(truth, x) * noise}, intervals="delta", starts=20)]


@pytest.mark.parametrize("which", ["chained", "additive"])
def test_the_script_plans_as_the_planner_does(which: str, request: pytest.FixtureRequest, tmp_path: Path):
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no node to run the page's script with")
    fits = request.getfixturevalue(which)
    content = whatif(fits, **ASK)
    (tmp_path / "content.json").write_text(json.dumps(content))
    ask = {"budget": ASK["budget"], "queries": ASK["queries"], "samples": ASK["samples_max"]}
    code = (
        "const w = require(process.argv[1]);"
        "const c = JSON.parse(require('fs').readFileSync(process.argv[2]));"
        f"console.log(JSON.stringify(w.plan(c, {json.dumps(ask)})));"
    )
    done = subprocess.run(
        [node, "-e", code, str(SCRIPT), str(tmp_path / "content.json")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    response = responses(fits)[0]
    demand = Demand(ASK["queries"], ASK["prompt_tokens"], ASK["answer_tokens"], ASK["samples_max"])
    best = optimise(response, Setting(demand), ASK["budget"])
    sign = 1 if response.rises else -1
    assert sign * made["best"]["value"] == pytest.approx(best.score[0], abs=2e-3)
    assert np.log(made["best"]["N"] / best.N[0]) == pytest.approx(0, abs=0.3)
    assert made["best"]["k"] == pytest.approx(best.k[0], rel=0.25, abs=1)
    low, high = made["ends"]["value"]
    assert low <= made["best"]["value"] <= high and made["ends"]["N"][0] < made["ends"]["N"][1]


def test_what_a_page_cannot_compute_is_refused(chained: list[Any]):
    with pytest.raises(FlopwiseError, match="above 0"):
        whatif(chained, **(ASK | {"budget": 0.0}))
    C = np.geomspace(1e18, 1e21, 8)
    f = fit("power", {"C": C, "loss": 1.5 + 2e3 * C**-0.2}, intervals="delta")
    with pytest.raises(FlopwiseError, match="N and D"):
        whatif([f], **ASK)


def test_a_hostile_law_stays_data(chained: list[Any]):
    content = whatif(chained, **ASK)
    hostile = "\"><script>alert(1)</script>{{ 7*7 }}' onx="
    content |= {"law": hostile, "sliders": {name: [0, 6, 3] for name in ("budget", "queries", "samples")}}
    content["steps"][0]["tree"] = ["constructor", hostile]
    page = html.render({"kind": "laws", "whatif": content, "plan": {}, "folder": "x"})
    assert "<script>alert" not in page and page.count("<script>") == 1
    assert 'data-whatif="' in page and "eval(" not in page and "new Function" not in page
    attribute = page.split('data-whatif="')[1].split('"')[0]
    import html as markup

    assert json.loads(markup.unescape(attribute))["law"] == hostile


def test_an_experiment_with_its_laws_has_sliders(tiny_run: Path):
    from flopwise.report.collect import collect

    results = collect(tiny_run)
    page = html.render(results)
    if results["whatif"] is None:
        assert 'id="whatif"' not in page
    else:
        assert results["whatif"]["variables"] == ["D", "N", "k"] and 'id="whatif"' in page
