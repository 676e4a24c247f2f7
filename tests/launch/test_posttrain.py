"""Post-training recipes: every mistake is one line, and what they stand for are steps."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from flopwise.errors import FlopwiseError
from flopwise.launch.expand import expand
from flopwise.launch.recipe import load
from flopwise.launch.scheduler import step_ids
from flopwise.launch.steps import Step
from flopwise.posttrain.settings import tuning

LEFT_OUT = object()
CONTENT: dict[str, Any] = {
    "kind": "posttrain", "name": "x", "seeds": [0, 1], "val_problems": 10,
    "evaluate": {"problems": 20, "n": 4},
    "data": {"corpora": ["stdlib"], "task": "countdown-small", "val_problems": 20, "test_problems": 30},
    "bases": {"base": {"width": 16, "depth": 1, "tokens": 20_000}},
    "runs": {
        "sft": {"method": "sft", "init": "base", "steps": 5},
        "made": {"method": "verified-samples", "init": "sft", "problems": 20},
        "raft": {"method": "rejection", "init": "sft", "samples": "made", "steps": 4},
        "more": {"method": "sft", "init": "sft", "match": ["made", "raft"]},
        "rm": {"method": "reward-samples", "init": "sft", "steps": 3},
    },
    "laws": [{"name": "rise", "method": "curve", "runs": ["sft", "rm"]}],
}  # fmt: skip
COMPARED = {"name": "c", "model": "sft", "strategies": ["greedy", "self_consistency"], "n": 4, "problems": 10}


def recipe(**changes: Any) -> dict[str, Any]:
    """The recipe with some keys changed: `runs__sft__steps=3`."""
    content = copy.deepcopy(CONTENT)
    for key, value in changes.items():
        *path, last = key.split("__")
        place = content
        for part in path:
            place = place[part]
        if value is LEFT_OUT:
            del place[last]
        else:
            place[last] = value
    return content


def steps(**changes: Any) -> dict[str, Step]:
    return {s.name: s for s in expand(load(recipe(**changes)))}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"runs__sft__method": "sftt"}, "runs.sft: method 'sftt' is unknown; did you mean 'sft'?"),
        ({"runs__sft__method": ["sft"]}, "is unknown"),
        ({"runs__sft__method": LEFT_OUT}, "runs.sft.method is missing; there are sft, verified-samples"),
        ({"runs__raft__samples": LEFT_OUT},
         "runs.raft.samples is missing: the run that method rejection reads as samples"),
        ({"runs__raft__samples": "mad"},
         "runs.raft.samples is 'mad'; there are base, made, more, raft, rm, sft"),
        ({"runs__raft__samples": ["made", "sft"]}, "runs.raft.samples takes one run, not 2"),
        ({"runs__raft__samples": 3}, "runs.raft.samples is 3, must be the name of a run"),
        ({"runs__raft__samples": "a b"}, "runs.raft: roles.samples is 'a b'"),
        ({"runs__sft__init": "more"}, "wait for each other; break the circle"),
        ({"runs__sft__steps": 0}, "runs.sft: steps is '0': Input should be greater than or equal to 1"),
        ({"runs__sft__rate_factor": float("inf")}, "runs.sft: rate_factor is 'inf'"),
        ({"runs__sft__stesp": 3}, "runs.sft: unknown key 'stesp'; did you mean 'steps'?"),
        ({"runs__more__steps": 3}, "runs.more: give one of steps, epochs, and the runs to match"),
        ({"runs__sft__seeds": []}, "runs.sft: seeds is '[]': List should have at least 1 item"),
        ({"runs__sft__seeds": [2, 2]}, "the same seed twice is one run, not two"),
        ({"runs__sft__seeds": [-1]}, "runs.sft: seeds.0 is '-1'"),
        ({"runs__sft__evaluate": "maybe"}, "runs.sft: evaluate is 'maybe'"),
        ({"runs__sft__data": "rows"}, "runs.sft.data is 'rows'; datasets are none"),
        ({"runs__sft__data": ["rows"]}, "runs.sft.data is ['rows']; datasets are none"),
        ({"runs__sft": None}, "runs.sft is 'None'"),
        ({"runs__base": {"method": "sft", "init": "base"}}, "runs.base is also a base"),
        ({"runs": {}, "laws": []}, "there is nothing to do: give runs, or compare strategies on a base"),
        ({"seeds": [1, 1]}, "seeds is '[1, 1]': the same seed twice is one run, not two"),
        ({"seeds": []}, "seeds is '[]'"),
        ({"data": LEFT_OUT}, "bases.base is pretrained here, which needs data: give data.task"),
        ({"data": LEFT_OUT, "bases": {"base": {"model": "m"}}}, "runs.sft has nothing to learn from"),
        ({"data__task": "countdwn"}, "data.task is 'countdwn'"),
        ({"bases__base__tokens": LEFT_OUT}, "bases.base: give width and tokens (pretrained here), or model"),
        ({"bases__base__mixture": {"poems": 1}},
         "bases.base.mixture names 'poems', must be among text, task, stdlib"),
        ({"bases": {"far": {"model": "m"}, **CONTENT["bases"]}, "data__corpora": []},
         "bases.base would read the task in the tokens of the first base; name it first"),
        ({"bases": {"data": CONTENT["bases"]["base"]}, "runs": {"sft": {"method": "sft", "init": "data"}}},
         "bases.data has the name of the step that prepares data"),
        ({"bases": {"base": {"model": "/no/model"}}}, "/no/model"),
        ({"evaluate__problems": 31}, "evaluate.problems asks for 31 problems, data.test_problems is 30"),
        ({"val_problems": 21}, "val_problems asks for 21 problems, data.val_problems is 20"),
        ({"laws": [{"name": "l", "method": "final", "runs": ["none"]}]},
         "laws.l names run 'none'; there are sft"),
        ({"laws": [{"name": "l", "method": "finale", "runs": ["sft"]}]}, "laws.0.method is 'finale'"),
        ({"laws": CONTENT["laws"] * 2}, "two laws have the same name; give each its own"),
        ({"laws": [{"name": "l", "method": "final", "runs": ["sft"], "options": {"candidates": ["moore"]}}]},
         "laws.0.options: law 'moore' is unknown"),
        ({"laws": [{"name": "l", "method": "final", "runs": ["sft"], "options": {"candidates": "moore"}}]},
         "must be a list of laws by name"),
        ({"datasets": {"rows": {"path": "none.jsonl"}}, "runs__sft__data": "rows"}, "none.jsonl is no file"),
        ({"laws": [{"name": "l", "method": "final", "runs": ["sft"], "options": {"holdout": 0.1}}]},
         "options has 'holdout'; method final knows candidates, target, hold_out, by"),
        ({"laws": [{"name": "l", "method": "thinking", "runs": ["sft"]}]},
         "laws.l names comparison 'sft'; there are none"),
        ({"compare": [COMPARED], "laws": [{"name": "l", "method": "crossover", "runs": ["c"]}]},
         "name three or more in runs, not 1"),
        ({"compare": [COMPARED, COMPARED]}, "two entries of compare have the same name"),
        ({"compare": [COMPARED | {"model": "rm"}]},
         "compare.c.model is 'rm'; models that answer are base, sft, raft, more"),
        ({"compare": [COMPARED | {"reward": "sft"}]}, "compare.c.reward is 'sft'; runs that score are rm"),
        ({"compare": [COMPARED | {"process": "rm"}]}, "process takes one of process-reward"),
        ({"compare": [COMPARED | {"strategies": ["greedier"]}]}, "strategy is 'greedier', must be one of"),
        ({"compare": [COMPARED | {"strategies": ["greedy", "greedy"]}]}, "greedy is named twice"),
        ({"compare": [COMPARED | {"strategies": ["best_of_n:reward"]}]},
         "strategy best_of_n:reward goes by reward, so name the run: reward: RUN"),
        ({"compare": [COMPARED | {"strategies": ["best_of_n:judge"]}]}, "which no run of a recipe makes"),
        ({"compare": [COMPARED | {"problems": 31}]},
         "compare.c.problems asks for 31, data.test_problems is 30"),
        ({"compare": [COMPARED | {"task": "sums"}]}, "compare.0.task is 'sums'"),
        ({"compare": [COMPARED | {"style": "shouted"}]}, "compare.0.style is 'shouted'"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(FlopwiseError) as caught:
        steps(**changes)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_each_run_is_made_with_each_seed_and_judged_where_it_is_a_policy() -> None:
    found = steps()
    for seed in (0, 1):
        for name in ("sft", "raft", "more"):
            judged = found[f"eval-{name}-s{seed}"]
            assert judged.parents == {"data": "data", "model": f"{name}-s{seed}"} and judged.seed == seed
        assert found[f"made-s{seed}"].kind == "synthesize" and f"eval-made-s{seed}" not in found
        assert f"eval-rm-s{seed}" not in found
    assert len(set(step_ids(list(found.values())).values())) == len(found)
    assert "eval-sft-s0" not in steps(runs__sft__evaluate=False)


def test_what_a_run_is_made_of_are_parents_and_what_it_looks_at_references() -> None:
    found = steps()
    base = next(n for n in found if n.startswith("base-w16"))
    assert found["sft-s1"].parents == {"data": "data", "init": base} and not found["sft-s1"].references
    assert found["raft-s1"].parents == {"data": "data", "init": "sft-s1", "samples": "made-s1"}
    assert found["more-s1"].parents == {"data": "data", "init": "sft-s1"}
    assert found["more-s1"].references == {"match": "made-s1", "match2": "raft-s1"}
    assert found["more-s1"].flops == pytest.approx(found["made-s1"].flops + found["raft-s1"].flops)
    assert found["law-rise"].references == {
        "run0s0": "sft-s0", "eval0s0": "eval-sft-s0", "run0s1": "sft-s1", "eval0s1": "eval-sft-s1",
        "run1s0": "rm-s0", "run1s1": "rm-s1",
    }  # fmt: skip


def test_a_comparison_is_a_step_on_the_model_with_the_runs_that_score() -> None:
    scored = COMPARED | {"reward": "rm", "strategies": ["greedy", "best_of_n:reward"], "max_tokens": 16}
    other = COMPARED | {"name": "d", "model": "base", "task": "sum-1digit", "style": "few_shot", "shots": 2}
    law = {"name": "cross", "method": "crossover", "runs": ["c", "d", "c"]}
    found = steps(compare=[scored, other], laws=[law])
    step = found["compare-c"]
    assert (step.kind, step.method, step.seed) == ("evaluate", "compare", 0)
    assert step.parents == {"data": "data", "model": "sft-s0"} and step.references == {"reward": "rm-s0"}
    assert step.spec["strategies"] == ["greedy", "best_of_n:reward"] and step.spec["max_tokens"] == 16
    assert "style" not in step.spec and "model" not in step.spec
    asked = found["compare-d"]
    data = found[asked.parents["data"]]
    assert asked.spec["style"] == "few_shot" and asked.spec["shots"] == 2
    assert data.spec["task"] == "sum-1digit" and data.spec["test_problems"] == 10
    assert data.parents == {"init": asked.parents["model"]} and not data.spec["corpora"]
    assert found["law-cross"].references == {
        "compare0": "compare-c", "compare1": "compare-d", "compare2": "compare-c",
    }  # fmt: skip
    before = step_ids(list(steps(laws=[]).values()))
    assert before.items() <= step_ids(list(found.values())).items()


def test_strategies_may_be_all_that_a_recipe_is_about() -> None:
    found = steps(runs={}, laws=[], compare=[COMPARED | {"model": "base"}])
    assert [n for n in found if n.startswith("compare")] == ["compare-c"] and "sft-s0" not in found


def test_runs_of_fewer_seeds_are_read_by_those_of_more() -> None:
    found = steps(runs__made__seeds=[1])
    assert "made-s0" not in found
    assert found["raft-s0"].parents["samples"] == found["raft-s1"].parents["samples"] == "made-s1"
    assert found["made-s1"].parents["init"] == "sft-s1"
    shared = steps(runs__sft__seeds=[7])
    assert {shared[f"raft-s{s}"].parents["init"] for s in (0, 1)} == {"sft-s7"}


def test_a_setting_that_says_nothing_leaves_the_ids_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    before = step_ids(expand(load(recipe())))
    assert before == step_ids(expand(load(recipe(runs__sft__lora=None, runs__sft__backend=None))))
    assert all("lora" not in s.spec and "backend" not in s.spec for s in steps().values())

    class Newer(tuning.SftSection):
        """A version of these settings with one more that is off unless it is asked for."""

        invented: int | None = None

    method = tuning.METHODS[0]
    assert method.name == "sft"
    newer = type(method)(**{**vars(method), "section": Newer})
    monkeypatch.setitem(__import__("flopwise.posttrain.settings", fromlist=["METHODS"]).METHODS, "sft", newer)
    assert before == step_ids(expand(load(recipe())))
    changed = step_ids(expand(load(recipe(runs__sft__invented=3))))
    assert before["sft-s0"] != changed["sft-s0"] and before["data"] == changed["data"]


def test_other_runs_do_not_change_an_id() -> None:
    before, without = (
        step_ids(list(steps().values())),
        step_ids(list(steps(runs__rm=LEFT_OUT, laws=[]).values())),
    )
    assert without.items() <= before.items()


def test_a_base_from_elsewhere_gives_its_tokenizer_to_the_task(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from flopwise.data.tokenizer import train_bpe
    from flopwise.models import hf
    from flopwise.models.config import ModelConfig
    from flopwise.models.transformer import Transformer

    tokenizer = train_bpe(["1 2 3=6: 1+2+3"] * 3, 300)
    model = Transformer(ModelConfig.from_width(16, 1, tokenizer.vocab_size, 64)).initialise(0)
    hf.save(model, tmp_path / "far", tokenizer)
    found = steps(bases={"base": {"model": str(tmp_path / "far")}}, data__corpora=[])
    assert found["base"].kind == "base" and found["data"].parents == {"init": "base"}
    assert found["sft-s0"].parents["init"] == "base" and found["sft-s0"].spec["rates"]["optimiser"] == "adamw"
    before = step_ids(list(found.values()))
    with torch.no_grad():
        model.embed.weight += 1
    hf.save(model, tmp_path / "far", tokenizer)
    again = step_ids(expand(load(recipe(bases={"base": {"model": str(tmp_path / "far")}}, data__corpora=[]))))
    assert again["base"] != before["base"]
