"""Recipes: every mistake a person can make is one line that says where and what next."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from flopwise.errors import FlopwiseError
from flopwise.launch.expand import expand
from flopwise.launch.recipe import SHIPPED, load
from flopwise.launch.scheduler import step_ids

DEMO = (SHIPPED / "demo.yaml").read_text()


def refusal(path: Path, overrides: list[str] | None = None) -> str:
    with pytest.raises(FlopwiseError) as caught:
        step_ids(expand(load(path, overrides)))
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_recipes_load_and_expand_to_a_graph(path: Path) -> None:
    recipe = load(path)
    assert load(path.stem) == recipe
    try:
        steps = expand(recipe)
    except FlopwiseError as e:  # a model that has to be fetched first
        assert "flopwise get" in str(e) and "kind: posttrain" in path.read_text()
        pytest.skip(str(e))
    ids = step_ids(steps)
    assert len(set(ids.values())) == len(steps) > 10
    assert all(s.seconds > 0 and s.flops >= 0 for s in steps)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [1,\n  b: {", "line 2: not valid YAML"),
        ("name: a\nseed: 0\nname: b\n", "line 3: not valid YAML (key 'name' stands twice)"),
        ("name: 2024-99-99", "not valid YAML"),
        ("[" * 5000, "not valid YAML"),
        ("[1, 2]", "holds list, must be a mapping"),
        ("", "holds NoneType, must be a mapping"),
        ("name: \x00", "not valid YAML"),
        ("name: x", "data is missing"),
        (DEMO.replace("widths:", "widhts:"), "unknown key 'ladder.widhts'; did you mean 'widths'?"),
        (DEMO.replace("depth: 2", "depth: two"), "ladder.depth is 'two': Input should be a valid integer"),
        (
            DEMO.replace("depth: 2", "depth: 0"),
            "ladder.depth is '0': Input should be greater than or equal to 1",
        ),
        (DEMO.replace("seed: 0", "seed: -1"), "seed is '-1'"),
    ],
)
def test_a_malformed_recipe(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    message = refusal(path)
    assert says in message and str(path) in message


def test_a_recipe_that_cannot_be_found_or_read(tmp_path: Path) -> None:
    assert "neither a file nor a shipped recipe (demo" in refusal(tmp_path / "none.yaml")
    assert "neither a file nor a shipped recipe" in refusal(tmp_path)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    assert "cannot be read (UnicodeDecodeError)" in refusal(binary)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("ladder", "--set 'ladder': write it as key.key=value"),
        ("=3", "write it as key.key=value"),
        ("ladder.depth.x=3", "depth is not a section"),
        ("ladder.depth=[1", "the value is not valid YAML"),
        ("ladder.depth=2024-99-99", "the value is not valid YAML"),
        ("ladder.dept=3", "unknown key 'ladder.dept'; did you mean 'depth'?"),
        ("posttrain.sft.stepz=3", "unknown key 'posttrain.sft.stepz'; did you mean 'steps'?"),
        ("zzz=3", "known keys: data, ladder"),
        ("ladder=null", "ladder is 'None'"),
        ("data.corpora=[]", "data.corpora is '[]'"),
        ("data.corpora=[kjv, nothing]", "data.corpora.1 is 'nothing': must be one of kjv, shakespeare"),
        ("data.task=chess", "data.task is 'chess': must be one of countdown, countdown-small"),
        ("ladder.mixture={poems: 0.5}", "ladder.mixture names 'poems', must be among text, task, kjv"),
        ("ladder.mixture={}", "ladder.mixture: Dictionary should have at least 1 item"),
        ("law.candidates=[chinchilla, moore]", "'moore' is not a law of loss in N and D; there are"),
        ("law.candidates=[coverage_power]", "'coverage_power' is not a law of loss in N and D"),
        ("plan.budget_flops=.inf", "plan.budget_flops is 'inf': Input should be a finite number"),
        (
            "posttrain.student={width: 64, tokens: 1_000_000}",
            "student and base are both width 64 at 1,000,000 tokens",
        ),
        (
            "posttrain.other_sizes=[{width: 32, tokens: 2_000_000}]",
            "other_sizes.0 and student are both width 32",
        ),
        ("posttrain.base={width: 128, tokens: 2_000_000}", "that is ladder.held_out, which no fit may see"),
        ("testtime.problems=1001", "testtime.problems asks for 1,001 problems, data.test_problems is 1,000"),
        ("posttrain.reward.problems=5_900", "asks for 6,100 problems, data.rl_problems is 6,000"),
        ("testtime.fit_up_to=4", "testtime.fit_up_to is '4': Input should be greater than or equal to 8"),
        ("ladder.held_out.width=64", "held_out.width is 64, must be above the ladder's largest, 96"),
        ("posttrain.base.width=33", "posttrain.base asks for width 33"),
        ("ladder.seq_len=48", "ladder.seq_len is 48, must be at least 64"),
        ("ladder.budgets=[1000, 2000]", "too short to branch"),
        ("ladder.widths=[32, 48, 64, 64, 96]", "two are the same"),
    ],
)
def test_a_wrong_override(override: str, says: str) -> None:
    assert says in refusal(SHIPPED / "demo.yaml", [override])


def test_single_corpora_may_be_mixed() -> None:
    assert load("demo", ["ladder.mixture={kjv: 0.2, apidocs: 0.3, task: 0.5}"]).ladder.mixture["kjv"] == 0.2


def test_checking_and_expanding_a_recipe_loads_nothing_heavy() -> None:
    code = (
        "import sys; from flopwise.launch.recipe import load; from flopwise.launch.expand import expand; "
        "expand(load('demo')); "
        "print(sorted({'torch', 'scipy', 'matplotlib', 'duckdb', 'tokenizers'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_overrides_reach_their_key(tmp_path: Path) -> None:
    recipe = load("demo", ["ladder.depth=3", "posttrain.sft.steps=7", "name='a: b'"])
    assert (recipe.ladder.depth, recipe.posttrain.sft.steps, recipe.name) == (3, 7, "a: b")
    copy = tmp_path / "copy.yaml"
    copy.write_text(yaml.safe_dump(yaml.safe_load(DEMO)))
    assert load(copy) == load("demo")
