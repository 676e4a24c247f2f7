"""A run's folder: atomic files, the growing log, records that survive whatever happens to them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from flopwise.errors import FlopwiseError
from flopwise.flops.spend import Spend
from flopwise.records.folder import RunFolder, atomic_write
from flopwise.records.record import Metric, RunRecord, read_record
from flopwise.records.store import RunStore


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunStore(tmp_path).prepare("sft", "demonstrations", {"steps": 3, "rate": 1e-5}, {}, 4, "mine")


def test_the_spec_comes_back_as_it_was_given(folder: RunFolder) -> None:
    again = RunFolder(folder.path)
    assert (again.kind, again.method, again.seed, again.name) == ("sft", "demonstrations", 4, "mine")
    assert again.spec == {"steps": 3, "rate": 1e-5}
    with pytest.raises(FlopwiseError, match="has no readable"):
        RunFolder(folder.path.parent / "none")


def test_the_log_survives_a_cut_line_and_rewinds(folder: RunFolder) -> None:
    for step in range(1, 6):
        folder.log(step=step, loss=1.0 / step)
    folder.log(step=5, val_accuracy=0.5)
    with open(folder.path / "metrics.jsonl", "a") as f:
        f.write('[1]\nnot json\n{"step": 6, "lo')
    assert [row["step"] for row in folder.curve("loss")] == [1, 2, 3, 4, 5]
    assert folder.curve("val_accuracy") == [{"step": 5, "val_accuracy": 0.5}]
    folder.rewind(3)
    assert [row["step"] for row in folder.curve()] == [1, 2, 3]
    folder.log(step=4, loss=9.0)
    assert [row["loss"] for row in folder.curve("loss")][-2:] == [1 / 3, 9.0]


def test_no_log_is_no_rows(folder: RunFolder) -> None:
    folder.rewind(3)
    assert folder.curve("loss") == []


def test_a_record_holds_the_contract_and_comes_back_equal(folder: RunFolder) -> None:
    spend = Spend(1e12, 2e11, 3.0, 77, 1.5, 1.25, "a machine", 1 << 30)
    metric = Metric(value=0.1 + 0.2, se=1e-3, n=512)
    record = folder.finish({"loss": metric}, spend, model={"n_params_total": 5}, extra={"width": 16})
    assert folder.done and folder.record() == record
    stored = json.loads((folder.path / "run.json").read_text())
    contract = {
        "id", "kind", "method", "parents", "model", "data", "spend", "lineage_spend", "metrics", "seed",
        "status", "versions", "created",
    }  # fmt: skip
    assert contract <= set(stored)
    assert stored["data"] is None and stored["metrics"]["loss"]["value"] == 0.1 + 0.2
    assert read_record(folder.path / "run.json").spend == spend


def test_what_is_not_finite_is_null_in_the_file(folder: RunFolder) -> None:
    folder.finish({"loss": Metric(value=math.nan)}, Spend())
    assert json.loads((folder.path / "run.json").read_text())["metrics"]["loss"]["value"] is None
    assert folder.record().metrics["loss"].value is None


def test_a_failure_is_one_line_and_not_done(folder: RunFolder) -> None:
    folder.fail("first\nsecond \x1b[31m" + "x" * 1000)
    record = folder.record()
    assert not folder.done and record.status == "failed"
    assert (
        record.reason is not None
        and record.reason.startswith("first second ?[31m")
        and len(record.reason) == 500
    )
    folder.finish({}, Spend())
    assert folder.done and folder.record().reason is None


def test_an_unfinished_run_says_so(folder: RunFolder) -> None:
    with pytest.raises(FlopwiseError, match=r"\(mine\) has no record yet"):
        folder.record()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"id": "../../etc"}, "id String should match"),
        ({"parents": ["../x"]}, "parents.0 String should match"),
        ({"roles": {"init": "a/b"}}, "roles.init String should match"),
        ({"id": "0123456789abcdef"}, "is that of run 0123456789abcdef"),
        ({"metrics": {"loss": {"value": "high"}}}, "metrics.loss.value"),
        ({"status": "great"}, "status"),
    ],
)
def test_a_record_that_cannot_be_trusted_is_refused(
    folder: RunFolder, change: dict[str, object], says: str
) -> None:
    record = json.loads(folder.finish({}, Spend()).model_dump_json())
    (folder.path / "run.json").write_text(json.dumps(record | change))
    with pytest.raises(FlopwiseError, match=r"^record ") as caught:
        folder.record()
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert not folder.done


def test_fields_of_a_newer_version_stay_readable(folder: RunFolder) -> None:
    record = json.loads(folder.finish({}, Spend()).model_dump_json())
    record["spend"]["joules"] = 3.0
    record["later"] = {"x": 1}
    (folder.path / "run.json").write_text(json.dumps(record))
    assert folder.record().spend == Spend()


def test_lineage_needs_its_ancestors(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    base = store.prepare("pretrain", "trunk", {}, {}, 0, "base")
    child = store.prepare("sft", "x", {}, {"init": base.id}, 0, "child")
    with pytest.raises(FlopwiseError, match=f"ancestor {base.id} has no record"):
        child.finish({}, Spend())
    base.finish({}, Spend(train_flops=5.0))
    assert child.finish({}, Spend(train_flops=2.0)).lineage_spend.train_flops == 7.0


def test_atomic_write_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "f"
    atomic_write(path, "old")
    atomic_write(path, b"new")
    assert path.read_bytes() == b"new" and [p.name for p in tmp_path.iterdir()] == ["f"]


def test_sweep_takes_dotted_files_alone(folder: RunFolder) -> None:
    (folder.path / "model").mkdir()
    (folder.path / "model" / ".half").touch()
    (folder.path / "model" / "whole").touch()
    outside = folder.path.parent / "outside"
    outside.touch()
    (folder.path / ".link").symlink_to(outside)
    folder.sweep()
    assert sorted(p.name for p in folder.path.rglob("*")) == ["model", "spec.yaml", "whole"]
    assert outside.exists()


def test_spend_of_a_record_defaults_to_nothing() -> None:
    record = RunRecord(id="a", kind="k", method="m")
    assert record.spend.total_flops == 0.0 and record.spend.tokens is None
