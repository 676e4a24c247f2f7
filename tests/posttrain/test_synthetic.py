"""Synthetic rows: each source, each filter with its count, slices found honestly and compared in pairs."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flopwise.data.prepare import PreparedData
from flopwise.data.tasks import task
from flopwise.data.tasks.countdown import Problem
from flopwise.errors import FlopwiseError
from flopwise.flops.ledger import Ledger
from flopwise.posttrain import slices, synthesize
from flopwise.posttrain.bench import Bench
from flopwise.posttrain.rejection import read_examples, read_rows
from flopwise.posttrain.settings import METHODS
from flopwise.posttrain.synthetic_sources import Row, Sources, restated_countdown, restater
from flopwise.records.folder import RunFolder
from flopwise.records.store import RunStore

TASK = task("countdown-rare")


@pytest.fixture
def store(rare_store: RunStore) -> RunStore:
    return rare_store


def rows_of(folder: RunFolder) -> list[dict[str, Any]]:
    rows = read_rows(folder)
    assert len({(r["prompt"], r["completion"]) for r in rows}) == len(rows)
    assert all(TASK.verify(Problem.parse(r["prompt"]), r["completion"]) for r in rows)
    return rows


def test_a_program_fills_the_slice_that_is_named(store: RunStore, step: Any) -> None:
    folder = step("synthetic", init="init", sources=["program"], rows=60, slices=["rare"])
    rows = rows_of(folder)
    assert len(rows) == 60 and {TASK.slice_of(Problem.parse(r["prompt"])) for r in rows} == {"rare"}
    data = PreparedData(store.folder("data").path)
    held = [p for name in ("val", "test", "val_rare", "test_rare") for p in data.problems(name)]
    find = TASK.detector(held)
    assert not any(passage.hit for r in rows for passage in find(r["prompt"] + r["completion"]))
    record = folder.record()
    assert record.metrics["made"].value == 75 and record.metrics["kept_rare"].value == 60
    assert record.spend.total_flops == 0  # no model was asked


def test_self_made_rows_are_what_the_verifier_accepts(writes: Any, step: Any) -> None:
    writes(lambda p, i: TASK.demonstration(p, i) if i % 2 else "1+1=2,2+1=3!")
    folder = step("synthetic", init="init", sources=["self"], problems=20, n=6, rows=1000)
    stages = json.loads((folder.path / synthesize.STAGES_FILE).read_text())["stages"]["self"]
    assert stages["made"] == 120 and stages["verified"] == 60
    rows = rows_of(folder)
    assert len(rows) == stages["kept"] <= stages["distinct"] <= 40  # two of each problem at most
    assert max(Counter(r["prompt"] for r in rows).values()) <= 2


def test_wrong_answers_find_the_problem_they_solve(writes: Any, step: Any) -> None:
    def off_by_the_target(p: Problem, i: int) -> str:
        a, b, c = p.numbers
        return f"{a}+{b}={a + b},{a + b}+{c}={a + b + c}!"

    writes(off_by_the_target)
    spec = {"problems": 60, "n": 1, "rows": 1000, "near_duplicates": 0.0}
    folder = step("synthetic", init="init", sources=["back-translation"], slices=["rare"], **spec)
    rows = rows_of(folder)
    assert rows and all(r["slice"] == "rare" and r["source"] == "back-translation" for r in rows)
    assert all(sum(Problem.parse(r["prompt"]).numbers) == Problem.parse(r["prompt"]).target for r in rows)


@given(st.tuples(*[st.integers(1, 30)] * 3), st.integers(0, 200))
def test_what_an_answer_solves_is_solved_by_it(numbers: tuple[int, ...], seed: int) -> None:
    from flopwise.data.tasks.countdown import attempts

    ways = attempts(tuple(sorted(numbers)))
    text, value = ways[seed % len(ways)]
    found = restated_countdown(Problem(numbers, 1), f"1+1=2?{text}!")
    if not 1 <= value <= 100:
        assert found is None
    else:
        assert found is not None and found[0] == Problem(numbers, value) and TASK.verify(*found)


def test_an_answer_that_does_not_hold_together_solves_nothing() -> None:
    asked = Problem((25, 3, 7), 40)
    for text in ("25+3=28,28+7=36!", "25+3=28!", "", "25+3=28,28+7=35", "?!", "!" * 5000):
        assert restated_countdown(asked, text) is None


def test_a_task_whose_answers_say_no_problem_is_refused() -> None:
    class Plain:
        name = "sorting"

    with pytest.raises(FlopwiseError, match="does not say which problem it solves"):
        restater(Plain())  # type: ignore[arg-type]


def rows_with(*texts: tuple[Problem, str]) -> list[Row]:
    return [Row(p, text, "self", TASK.slice_of(p), None) for p, text in texts]


def bench_of(store: RunStore, **spec: Any) -> Bench:
    folder = store.prepare("synthesize", "synthetic", spec, {}, 0, "b")
    parents = {r: store.folder(r) for r in ("data", "init")}
    return Bench.open(folder, parents)


def test_what_gives_a_test_problem_away_is_dropped(store: RunStore) -> None:
    secret, other = Problem((5, 7, 9), 21), Problem((7, 3, 3), 24)
    rows = rows_with(
        (Problem((9, 5, 7), 21), "5+7=12,12+9=21!"),  # the same numbers in another order
        (other, "5+7=12,12+9=21?7*3=21,21+3=24!"),  # shown as a dead end
        (other, "7*3=21,21+3=24!"),
    )
    sources = Sources(bench_of(store), None, {secret.key}, Ledger(), "m")
    assert synthesize.clean(rows, sources, [secret]) == rows[2:]


def test_each_completion_counts_once_and_problems_do_not_crowd() -> None:
    p, q = Problem((7, 3, 3), 24), Problem((1, 2, 3), 6)
    same = Problem((3, 7, 3), 24)
    rows = rows_with((p, "a"), (p, "a"), (same, "b"), (p, "c"), (q, "a"))
    assert synthesize.distinct(rows, 2) == [rows[0], rows[2], rows[4]]


def test_the_longest_and_the_least_likely_go(store: RunStore) -> None:
    p = Problem((7, 3, 3), 24)
    rows = rows_with(*[(p, "7*3=21,21+3=24!" * k) for k in range(1, 6)])
    bench = bench_of(store, drop_long=0.4, drop_unlikely=0.0)
    kept, likelihood = synthesize.by_quality(rows, bench, Ledger(), "m")
    assert kept == rows[:3] and likelihood is None
    ledger = Ledger()
    bench = bench_of(store, drop_long=0.0, drop_unlikely=0.2)
    kept, likelihood = synthesize.by_quality(rows, bench, ledger, "m")
    assert len(kept) == 4 and likelihood is not None and likelihood["q25"] <= likelihood["q75"] < 0
    assert [row["kind"] for row in ledger.rows()] == ["score"] and ledger.total("score_flops") > 0


def test_rows_are_taken_in_turn_from_slices_and_sources() -> None:
    p = Problem((7, 3, 3), 24)
    many = [Row(p, str(i), "program", "common") for i in range(8)]
    few = [Row(p, str(i), "self", "rare") for i in range(2)]
    kept = synthesize.spread([*many, *few], 6)
    assert Counter(row.source for row in kept) == {"program": 4, "self": 2}


def test_nothing_left_says_where_it_went(writes: Any, step: Any) -> None:
    writes(lambda p, i: "1+1=2!")
    with pytest.raises(FlopwiseError, match=r"no row is left \(self: made 10, verified 0"):
        step("synthetic", init="init", sources=["self"], problems=5, n=2)


def test_weak_slices_are_found_filled_and_compared(writes: Any, step: Any) -> None:
    """A model that solves common problems alone: the rare slice is found, and rows are made for it."""
    writes(lambda p, i: "1!" if max(p.numbers) > 20 else TASK.demonstration(p, i))
    weak = step("weak-slices", init="init", problems_per_slice=60)
    found = slices.read_slices(weak)
    assert [r["slice"] for r in found] == ["rare", "common"] and [r["weak"] for r in found] == [True, False]
    assert found[0]["accuracy"] == 0 and found[1]["accuracy"] == 1 and weak.record().extra["weak"] == ["rare"]
    made = step("synthetic", init="init", weak=weak.name, rows=30, n=1)
    assert {r["slice"] for r in rows_of(made)} == {"rare"}
    same = step("compare-slices", before="init", after="init", n=2, problems_per_slice=30)
    for row in slices.read_slices(same):
        assert row["n"] == 30 and row["greedy"]["gain"] == row["greedy"]["se"] == 0
    assert same.record().metrics["greedy_gain_rare"].value == 0
    assert same.record().spend.total_flops == 0  # evaluation is no part of it


def test_no_weak_slice_is_said_and_not_filled(writes: Any, step: Any) -> None:
    writes(lambda p, i: TASK.demonstration(p, i))
    weak = step("weak-slices", init="init", problems_per_slice=30, seed=1)
    assert weak.record().metrics["n_weak"].value == 0
    with pytest.raises(FlopwiseError, match="found no slice that is weaker"):
        step("synthetic", init="init", weak=weak.name, seed=1)


def test_chance_calls_a_slice_weak_no_oftener_than_alpha() -> None:
    """Ten slices of equal accuracy: the error rate over all of them together is held."""
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(400):
        counts = {str(i): (int(rng.binomial(60, 0.4)), 60) for i in range(10)}
        wrong += any(row["weak"] for row in slices.weakness(counts))
    assert wrong / 400 < 0.05 + 2 * (0.05 * 0.95 / 400) ** 0.5


def test_intervals_of_all_slices_hold_together() -> None:
    rng = np.random.default_rng(1)
    missed = 0
    for _ in range(300):
        truth = {str(i): 0.1 + 0.08 * i for i in range(10)}
        rows = slices.weakness({k: (int(rng.binomial(80, p)), 80) for k, p in truth.items()})
        missed += any(not row["low"] <= truth[row["slice"]] <= row["high"] for row in rows)
    assert missed / 300 < 0.05 + 2 * (0.05 * 0.95 / 300) ** 0.5


def test_pairs_cancel_what_is_hard_for_both() -> None:
    rng = np.random.default_rng(0)
    hard = rng.random(400)
    before, after = (hard > 0.5).astype(float), (hard > 0.45).astype(float)
    found = slices.paired(before, after, comparisons=2)
    unpaired = np.sqrt(before.var() / 400 + after.var() / 400)
    assert found["gain"] == pytest.approx(after.mean() - before.mean()) and found["se"] < unpaired / 2
    assert found["low"] < found["gain"] < found["high"]


def test_slices_too_small_to_measure_are_not(store: RunStore) -> None:
    bench = bench_of(store)
    data = bench.data
    by = slices.by_slice(bench, "test", 30)
    assert {name: len(part) for name, part in by.items()} == {"common": 30, "rare": 30}
    sets = data.about["problems"]
    sets.pop("test_rare"), sets.pop("test_common")
    assert list(slices.by_slice(bench, "test", 30)) == ["common"]  # one rare problem is no measurement


def test_roles_and_settings_that_contradict_each_other() -> None:
    section = METHODS["synthetic"].section
    assert section.model_validate({"slices": ["rare"]}).lacks({"init": "a", "weak": "b"})
    with pytest.raises(ValueError, match="names a source twice"):
        section.model_validate({"sources": ["self", "self"]})


def test_runs_are_deterministic(tmp_path: Path, step: Any) -> None:
    one = step("synthetic", init="init", rows=25, slices=["common"])
    rows = (one.path / "samples.jsonl").read_bytes()
    (one.path / "samples.jsonl").unlink()
    again = step("synthetic", init="init", rows=25, slices=["common"])
    assert again.id == one.id and (again.path / "samples.jsonl").read_bytes() == rows


def test_somebody_s_own_rows_are_sampled_and_judged_by_their_answers(
    rare_store: RunStore, tmp_path: Path, writes: Any
) -> None:
    """Questions with an answer column: right samples become rows, held-out questions never do."""
    from flopwise.data import instruct
    from flopwise.launch.worker import find

    rows = [{"prompt": f"{a} plus {b} is", "answer": str(a + b)} for a in range(1, 9) for b in range(1, 9)]
    path = tmp_path / "sums.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    init = rare_store.folder("init")
    spec = {
        "path": str(path),
        "format": "problems",
        "task": f"table:{path},rule=number",
        "heldout_fraction": 0.2,
    }
    data = rare_store.prepare("data", "instructions", spec, {"init": init.id}, name="sums")
    instruct.run_step(data, {"init": init}, lambda fraction: None)
    writes(lambda p, i: f" {eval(p.prompt.replace(' plus ', '+').removesuffix(' is')) + i % 2}")
    kind = METHODS["synthetic"]
    section = kind.section.model_validate({"sources": ["self"], "n": 4, "problems": 100, "rows": 100})
    parents = {"data": data, "init": init}
    made = rare_store.prepare(
        kind.kind, "synthetic", section.spec(), {r: f.id for r, f in parents.items()}, name="made-sums"
    )
    find(kind.run)(made, parents, lambda fraction: None)
    asked = {p.prompt: p for p in Bench.open(made, parents).problems("rl")}
    found = read_rows(made)
    assert {r["prompt"] for r in found} == set(asked) and len(found) == len(asked) < 64
    assert all(r["completion"].strip() == asked[r["prompt"]].answer for r in found)
    stages = json.loads((made.path / synthesize.STAGES_FILE).read_text())["stages"]["self"]
    assert stages["verified"] == stages["made"] / 2
    examples = read_examples(Bench.open(made, parents), made)
    assert tuple(examples[0].prompt) == asked[found[0]["prompt"]].prompt_ids
    with pytest.raises(FlopwiseError, match="use source self"):
        wrong = kind.section.model_validate({"sources": ["program"]}).spec()
        roles = {r: f.id for r, f in parents.items()}
        find(kind.run)(
            rare_store.prepare(kind.kind, "synthetic", wrong, roles), parents, lambda fraction: None
        )
