"""The family: who hangs under whom, what that cost, what was gained, and its outline at any size."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from benchmarks.tree_store import make

from flopwise.errors import FlopwiseError
from flopwise.flops.spend import Spend
from flopwise.records.family import Base, Family, Gain
from flopwise.records.outline import View, outline
from flopwise.records.pairing import Pairing
from flopwise.records.record import Metric, RunRecord
from flopwise.records.store import RunStore

PROBLEMS = 40


class Maker:
    """A store by hand: `data`, a trunk and its end, and what the test makes of them."""

    def __init__(self, root: Path):
        self.store, self.ids = RunStore(root), dict[str, str]()
        self.run("data", "data", 0.0)
        self.run("trunk", "pretrain", 80.0, data="data")
        self.run("base", "pretrain", 20.0, method="cooldown", data="data", init="trunk")

    def run(
        self, name: str, kind: str, spend: float | Spend, method: str | None = None,
        metrics: dict[str, Metric] | None = None, spec: dict | None = None, **roles: str,
    ) -> Path:  # fmt: skip
        parents = {role: self.ids[n] for role, n in roles.items()}
        folder = self.store.prepare(
            kind, method or ("trunk" if kind == "pretrain" else kind), {"name": name, **(spec or {})},
            parents, 0, name,
        )  # fmt: skip
        self.ids[name] = folder.id
        own = spend if isinstance(spend, Spend) else Spend(spend)
        folder.finish(metrics or {}, own, data={"corpus": "countdown"})
        return folder.path

    def sampled(self, model: str, greedy: np.ndarray, split: str = "test") -> None:
        mean, se = greedy.mean(), greedy.std(ddof=1) / math.sqrt(len(greedy))
        metrics = {"greedy": Metric(value=mean, se=se, n=len(greedy))}
        spec = {"problems": len(greedy), "split": split}
        path = self.run(
            f"sample-{model}", "sample", 1.0, metrics=metrics, spec=spec, model=model, data="data"
        )
        np.savez(path / "samples.npz", greedy=greedy, correct=np.stack([greedy, greedy], 1))

    def family(self, **options: float) -> Family:
        return Family(self.store.records(), **options)

    def member(self, name: str, family: Family | None = None):
        family = family or self.family()
        return family.members[self.ids[name]]


@pytest.fixture
def maker(tmp_path: Path) -> Maker:
    return Maker(tmp_path / "runs")


def shape(lines) -> list[tuple[int, str]]:
    return [
        (line.depth, line.member.name if line.member else f"{line.group.count}+{line.group.below}")
        for line in lines
    ]


def test_each_model_hangs_under_the_one_it_started_from(maker: Maker) -> None:
    maker.run("teacher", "rl", 7.0, data="data", init="base")
    maker.run("kept", "synthesize", 3.0, data="data", init="teacher")
    maker.run("student", "distill", 5.0, data="data", init="base", samples="kept")
    maker.run("aligned", "rl", 2.0, data="data", init="student", reward="teacher", judge="base")
    family = maker.family()
    assert [family.members[r].name for r in family.roots] == ["trunk"]
    assert maker.member("student").parent == maker.ids["base"]
    aligned = maker.member("aligned", family)
    roles = {"data": "data", "reward": "teacher", "judge": "base"}
    assert aligned.roles == {role: maker.ids[name] for role, name in roles.items()}
    # Each ancestor once: trunk and base, teacher, what it made, student, itself.
    assert aligned.lineage_flops == 100 + 7 + 3 + 5 + 2 and aligned.own_flops == 2
    (base,) = family.bases
    assert base == Base(maker.ids["base"], "base", 100.0, False, None, 4, 17.0, False)
    assert base.multiple == 0.17 and maker.member("trunk", family).size == 6
    assert maker.member("trunk", family).total_flops == 117.0
    assert "data" not in {m.name for m in family.members.values()}


def test_a_derivative_is_counted_once_however_many_ways_lead_to_it(maker: Maker) -> None:
    for name in ("a", "b"):
        maker.run(name, "sft", 10.0, data="data", init="base")
    maker.run("both", "distill", 1.0, data="data", init="a", teacher="b", judge="base")
    (base,) = maker.family().bases
    assert (base.derived, base.derived_flops) == (3, 21.0)


def test_a_base_of_unknown_compute_has_a_multiple_only_by_an_estimate(maker: Maker) -> None:
    maker.run("elsewhere", "base", Spend(unknown="made elsewhere"), "import")
    maker.run("tuned", "sft", 6.0, data="data", init="elsewhere")
    maker.run("judged", "rl", Spend(4.0, unknown="not counted: judge passes of x"), data="data", init="tuned")
    known = {b.name: b for b in maker.family().bases}["elsewhere"]
    assert (known.flops, known.multiple, known.unknown) == (None, None, "made elsewhere")
    assert (known.derived_flops, known.at_least, known.assumed) == (10.0, True, False)
    assumed = {b.name: b for b in maker.family(base_flops=100.0).bases}["elsewhere"]
    assert (assumed.flops, assumed.multiple, assumed.assumed) == (100.0, 0.1, True)
    tuned = maker.member("tuned")
    assert tuned.at_least and tuned.lineage_flops == 6.0 and maker.member("elsewhere").own_flops is None
    for wrong in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(FlopwiseError, match="must be a number above 0"):
            maker.family(base_flops=wrong)


def test_an_estimate_leaves_a_known_base_alone(maker: Maker) -> None:
    maker.run("tuned", "sft", 6.0, data="data", init="base")
    (base,) = maker.family(base_flops=1e9).bases
    assert (base.flops, base.assumed) == (100.0, False)


def test_failed_runs_are_members_of_unknown_compute(maker: Maker) -> None:
    folder = maker.store.prepare("sft", "m", {}, {"init": maker.ids["base"]}, 0, "broken")
    folder.fail("loss is nan")
    maker.ids["broken"] = folder.id
    broken = maker.member("broken")
    assert (broken.own_flops, broken.lineage_flops, broken.total_flops) == (None, None, 0.0)
    assert maker.family().bases[0].at_least


def test_gains_are_paired_where_both_answered_the_same_problems(maker: Maker) -> None:
    rng = np.random.default_rng(0)
    before = rng.random(PROBLEMS) < 0.3
    after = before | (rng.random(PROBLEMS) < 0.2)
    maker.run("tuned", "sft", 6.0, data="data", init="base")
    maker.sampled("base", before)
    maker.sampled("tuned", after)
    family = maker.family()
    tuned = maker.member("tuned", family)
    difference = after.astype(float) - before
    assert tuned.gain is not None and tuned.gain.value == pytest.approx(difference.mean())
    apart = math.hypot(*(x.std(ddof=1) / math.sqrt(PROBLEMS) for x in (before, after)))
    assert tuned.gain.se == pytest.approx(apart) and not tuned.gain.paired
    Pairing(maker.store.root, family).refine([tuned])
    gain = tuned.gain
    paired = difference.std(ddof=1) / math.sqrt(PROBLEMS)
    assert gain == Gain(
        "countdown", "greedy", pytest.approx(difference.mean()), pytest.approx(paired), 40, True
    )
    assert paired < apart


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 cut", None])
def test_without_readable_samples_the_error_stays_that_of_independent_ones(maker: Maker, damage) -> None:
    maker.run("tuned", "sft", 6.0, data="data", init="base")
    for i, name in enumerate(("base", "tuned")):
        maker.sampled(name, np.arange(PROBLEMS) % (3 - i) == 0)
    path = maker.store.root / maker.ids["sample-tuned"] / "samples.npz"
    path.unlink()
    if damage is not None:
        path.write_bytes(damage)
    family = maker.family()
    Pairing(maker.store.root, family).refine(family.members.values())
    gain = maker.member("tuned", family).gain
    assert gain is not None and not gain.paired and gain.se


def test_other_problems_are_no_gain(maker: Maker) -> None:
    maker.run("tuned", "sft", 6.0, data="data", init="base")
    maker.run("longer", "sft", 7.0, data="data", init="base")
    maker.sampled("base", np.arange(PROBLEMS) % 3 == 0)
    maker.sampled("tuned", np.arange(PROBLEMS) % 2 == 0, split="val")
    maker.sampled("longer", np.arange(2 * PROBLEMS) % 2 == 0)
    family = maker.family()
    assert maker.member("longer", family).gain is None  # another number of problems shows at once
    Pairing(maker.store.root, family).refine(family.members.values())
    assert maker.member("tuned", family).gain is None  # another split shows when the files are read


def test_what_was_measured_in_training_stands_in(maker: Maker) -> None:
    def metrics(accuracy: float, loss: float) -> dict[str, Metric]:
        return {
            "val_accuracy": Metric(value=accuracy, se=0.03, n=90),
            "loss": Metric(value=loss, se=0.01, n=9),
        }

    maker.run("one", "sft", 6.0, metrics=metrics(0.2, 2.0), data="data", init="base")
    maker.run("two", "sft", 6.0, metrics=metrics(0.5, 1.5), data="data", init="one")
    gains = {g.metric: g for g in maker.member("two").gains}
    assert gains["val_accuracy"].value == pytest.approx(0.3) and gains["loss"].value == -0.5
    assert gains["val_accuracy"].se == pytest.approx(0.03 * math.sqrt(2))


def test_records_that_point_in_a_circle_are_all_there() -> None:
    def record(run: str, parent: str) -> RunRecord:
        return RunRecord(
            id=run, kind="sft", method="m", parents=[parent], roles={"init": parent}, status="done"
        )

    family = Family([record("a", "b"), record("b", "c"), record("c", "a"), record("d", "d")])
    assert {line.member.id for line in outline(family, View()) if line.member} == {"a", "b", "c", "d"}


def test_a_chain_of_any_length(tmp_path: Path) -> None:
    def record(i: int) -> RunRecord:
        parents = {"init": f"r{i - 1}"} if i else {}
        spend = Spend(1.0)
        return RunRecord(
            id=f"r{i}", kind="sft", method="m", parents=list(parents.values()), roles=parents, spend=spend,
            status="done",
        )  # fmt: skip

    from flopwise.cli.tree import _json

    family = Family([record(i) for i in range(3000)])
    lines = outline(family, View(top=1))
    assert len(lines) == 3000 and family.members["r0"].size == 3000
    assert _json(family, lines).count('"children"') == 3000


def test_views(maker: Maker) -> None:
    for i in range(6):
        maker.run(f"s{i}", "sft", 10.0 + i, data="data", init="base")
    maker.run("rl", "rl", 4.0, data="data", init="s2")
    family = maker.family()
    whole = [(0, "trunk"), (1, "base"), (2, "s2"), (3, "rl"), *((2, f"s{i}") for i in (5, 4, 3, 1, 0))]
    assert shape(outline(family, View())) == whole
    one = [(0, "trunk"), (1, "base"), (2, "s2"), (3, "rl"), (2, "5+0")]
    assert shape(outline(family, View(top=1))) == one
    assert shape(outline(family, View(top=0))) == [(0, "trunk"), (1, "1+7")]
    (group,) = (line.group for line in outline(family, View(top=1)) if line.group)
    assert (group.kinds, group.own, group.total_flops) == ((("sft", 5),), (10.0, 15.0), 63.0)
    assert shape(outline(family, View(root="s2"))) == [(0, "s2"), (1, "rl")]
    assert shape(outline(family, View(depth=0))) == [(0, "trunk"), (1, "1+7")]
    assert shape(outline(family, View(kind="rl"))) == [(0, "trunk"), (1, "base"), (2, "s2"), (3, "rl")]
    named = [name for depth, name in shape(outline(family, View(sort="name"))) if depth == 2]
    assert named == [f"s{i}" for i in range(6)]
    for view, says in (
        (View(root="nobody"), "matches no model"), (View(kind="tea"), "no model of kind 'tea'; there are"),
        (View(depth=-1), "depth is -1"), (View(top=-1), "top is -1"),
    ):  # fmt: skip
        with pytest.raises(FlopwiseError, match=says):
            outline(family, view)


@pytest.mark.parametrize("sort", ["compute", "gain", "name"])
@pytest.mark.parametrize("lines", [30, 120])
def test_a_large_family_is_short_and_accounts_for_everyone(tmp_path: Path, sort, lines) -> None:
    store = RunStore(make(tmp_path / "runs", 400))
    family = Family(store.records())
    shown = outline(family, View(sort=sort, lines=lines))
    assert lines / 3 < len(shown) <= lines
    counted = sum(1 if line.member else line.group.count + line.group.below for line in shown)
    assert counted == len(family.members) == 405
    spent = sum(line.member.own_flops or 0 for line in shown if line.member)
    spent += sum(line.group.total_flops for line in shown if line.group)
    assert spent == pytest.approx(sum(m.own_flops or 0 for m in family.members.values()))
    for line in shown:
        assert line.group is None or line.group.own[0] <= line.group.own[1] <= line.group.total_flops


def test_the_made_up_store_is_the_same_every_time(tmp_path: Path) -> None:
    one, two = (RunStore(make(tmp_path / name, 40)).records() for name in "ab")
    assert one == two and len(one) > 44
    assert json.dumps([r.model_dump(mode="json") for r in one])
