"""The store: ids, look-ups, and SQL that can reach nothing but the records."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from flopwise.errors import FlopwiseError
from flopwise.flops.spend import Spend
from flopwise.records.record import Metric
from flopwise.records.store import RunStore, run_id


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    """data -> trunk -> branch -> sft; samples of sft, scored by a reference."""
    store = RunStore(tmp_path / "runs")
    ids: dict[str, str] = {}

    def add(name: str, kind: str, metrics: dict[str, Metric], flops: float, **roles: str) -> None:
        parents = {role: ids[n] for role, n in roles.items()}
        folder = store.prepare(kind, kind, {"name": name}, parents, 0, name)
        ids[name] = folder.id
        folder.log(step=1, loss=2.0, Loss=3.0, id="hostile", note=["x"])
        folder.finish(metrics, Spend(train_flops=flops, tokens=10), model={"n_params_total": 7})

    add("data", "data", {}, 0.0)
    add("trunk", "pretrain", {}, 8.0, data="data")
    add("branch", "pretrain", {"loss": Metric(value=2.5, se=0.1, n=9)}, 4.0, data="data", init="trunk")
    add(
        "sft",
        "sft",
        {"Loss": Metric(value=1.0), "status": Metric(value=5.0)},
        2.0,
        data="data",
        init="branch",
    )
    add("samples", "synthesize", {"kept": Metric(value=3.0)}, 1.0, data="data", init="sft")
    add("distil", "distill", {}, 1.0, data="data", init="branch", samples="samples")
    return store


def test_ids_depend_on_all_that_was_asked_and_on_nothing_else() -> None:
    base = ("sft", "m", {"a": 1, "b": [1, 2]}, 0, {"init": "x"}, {"scorer": "y"})
    same = ("sft", "m", {"b": (1, 2), "a": 1}, 0, {"init": "x"}, {"scorer": "y"})
    assert run_id(*base) == run_id(*same) and len(run_id(*base)) == 16
    for i, other in enumerate(("rl", "n", {"a": 1.5}, 1, {"init": "z"}, {})):
        assert run_id(*base[:i], other, *base[i + 1 :]) != run_id(*base)  # type: ignore[arg-type]
    assert run_id("k", "m", {"x": {2: "a", 10: "b"}}, 0, {}, {}) == run_id(
        "k", "m", {"x": {"2": "a", "10": "b"}}, 0, {}, {}
    )


def test_prepare_finds_the_folder_again(store: RunStore) -> None:
    first = store.get("trunk")
    again = store.prepare("pretrain", "pretrain", {"name": "trunk"}, first.roles, 0, "another name")
    assert again.id == first.id and again.done and again.name == "trunk"


def test_runs_are_found_by_name_id_and_the_start_of_an_id(store: RunStore) -> None:
    trunk = store.get("trunk")
    assert store.get(trunk.id) == store.get(trunk.id[:10]) == trunk
    for wrong in ("nothing", "", "..", "../runs", "data/x", "\x1b[31m", "%"):
        with pytest.raises(FlopwiseError, match="matches") as caught:
            store.get(wrong)
        assert "\x1b" not in str(caught.value)


def test_an_exact_name_goes_before_the_start_of_an_id(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    first = store.prepare("k", "m", {"i": 0}, {}, 0, "first")
    first.finish({}, Spend())
    store.prepare("k", "m", {"i": 1}, {}, 0, first.id[0]).finish({}, Spend())
    assert store.get(first.id[0]).name == first.id[0]


def test_records_leave_out_what_is_damaged_copied_or_foreign(store: RunStore) -> None:
    assert [r.name for r in store.records()] == ["data", "trunk", "branch", "sft", "samples", "distil"]
    assert store.problems == []
    sft = store.root / store.get("sft").id
    shutil.copytree(sft, store.root / "copy")
    (store.root / "notes.txt").write_text("mine")
    (store.root / "empty").mkdir()
    (sft / "run.json").write_text((sft / "run.json").read_text()[:-40])
    assert "sft" not in {r.name for r in store.records()}
    assert len(store.problems) == 2
    assert any("is damaged" in p for p in store.problems) and any(
        "renamed or copied" in p for p in store.problems
    )


def test_no_folder_is_one_line(tmp_path: Path) -> None:
    for root in (tmp_path / "none", Path(__file__)):
        with pytest.raises(FlopwiseError, match="no such folder"):
            RunStore(root).records()


def test_the_ledger_is_a_table_and_an_unknown_spend_is_null(store: RunStore) -> None:
    rows = [
        {"kind": "train", "model": "x", "tokens": 3, "flops": 5.0, "seconds": 0.5},
        {"kind": "judge", "model": "y", "tokens": 4, "flops": 6.0, "seconds": None},
    ]
    folder = store.prepare("rl", "m", {}, {}, 0, "with a ledger")
    folder.finish({}, Spend(5.0, 0.0, 6.0, by=tuple(rows)))
    store.prepare("base", "import", {}, {}, 0, "elsewhere").finish({}, Spend(unknown="made elsewhere"))
    asked = store.query(
        "SELECT kind, model, flops, seconds FROM ledger WHERE run = 'with a ledger' ORDER BY 1"
    )
    assert asked[1] == [("judge", "y", 6.0, None), ("train", "x", 5.0, 0.5)]
    sql = "SELECT train_flops, total_flops, unknown FROM runs WHERE name = 'elsewhere'"
    assert store.query(sql)[1] == [(None, None, "made elsewhere")]


def test_sql_over_runs_metrics_and_curve(store: RunStore) -> None:
    names, rows = store.query(
        "SELECT name, total_flops, n_params_total FROM runs ORDER BY total_flops DESC LIMIT 2"
    )
    assert (names, rows) == (
        ["name", "total_flops", "n_params_total"],
        [("trunk", 8.0, 7.0), ("branch", 4.0, 7.0)],
    )
    assert store.query("SELECT value, se, n FROM metrics WHERE run = 'branch'")[1] == [(2.5, 0.1, 9.0)]
    assert store.query("SELECT count(*), sum(step) FROM curve")[1] == [(6, 6.0)]


def test_hostile_names_take_no_column_of_the_record(store: RunStore) -> None:
    status, measured = store.query("SELECT status, metric_status FROM runs WHERE name = 'sft'")[1][0]
    assert (status, measured) == ("done", 5.0)
    assert {i for (i,) in store.query("SELECT id FROM curve")[1]} <= {r.id for r in store.records()} | {
        "hostile"
    }
    folder = store.prepare("k", "m", {}, {}, 0, "'; DROP TABLE runs; --")
    folder.finish({'x"; DROP TABLE runs; --': Metric(value=1.0)}, Spend())
    assert store.query("SELECT count(*) FROM runs WHERE name LIKE '%DROP%'")[1] == [(1,)]


@pytest.mark.parametrize(
    "sql",
    [
        "COPY runs TO '{out}'", "COPY runs FROM '{file}'", "ATTACH '{out}' AS other",
        "EXPORT DATABASE '{out}'", "SELECT * FROM read_csv('{file}')", "SELECT * FROM read_text('{file}')",
        "SELECT * FROM '{file}'",
        "SELECT * FROM glob('/*')", "SELECT * FROM read_json('https://localhost/x')", "INSTALL httpfs",
        "LOAD httpfs", "SET enable_external_access = true", "SET temp_directory = '/tmp'",
        "PRAGMA enable_profiling", "SELECT * FROM records", "SELECT nothing FROM runs", "SELEC", "",
        "  -- nothing",
    ],
)  # fmt: skip
def test_sql_reaches_nothing_else(store: RunStore, sql: str, tmp_path: Path) -> None:
    secret, out = tmp_path / "secret.csv", tmp_path / "out"
    secret.write_text("a,b\n1,2\n")
    with pytest.raises(FlopwiseError, match=r"^query: ") as caught:
        store.query(sql.format(out=out, file=secret))
    assert "\n" not in str(caught.value) and not out.exists()


def test_a_query_changes_nothing(store: RunStore) -> None:
    before = {p: p.read_bytes() for p in store.root.rglob("*") if p.is_file()}
    store.query("DELETE FROM runs; DROP TABLE curve; CREATE TABLE x AS SELECT 1")
    assert before == {p: p.read_bytes() for p in store.root.rglob("*") if p.is_file()}
    assert store.query("SELECT count(*) FROM runs")[1] == [(6,)]


def test_an_empty_store_can_be_asked(tmp_path: Path) -> None:
    assert RunStore(tmp_path).query("SELECT * FROM runs")[1] == []


def test_the_demo_s_records_tell_a_whole_story(tiny_run: Path) -> None:
    store = RunStore(tiny_run)
    records = {r.id: r for r in store.records()}
    assert store.problems == [] and len(records) > 50
    assert all(r.status == "done" and r.versions["flopwise"] for r in records.values())
    for r in records.values():
        ancestors: dict[str, float] = {}
        todo = list(r.parents)
        while todo:
            a = records[todo.pop()]
            ancestors[a.id] = a.spend.total_flops
            todo += a.parents
        assert r.lineage_spend.total_flops == pytest.approx(
            r.spend.total_flops + sum(ancestors.values()), rel=1e-12
        )
    kinds = {k for (k,) in store.query("SELECT DISTINCT kind FROM runs")[1]}
    assert {
        "data",
        "pretrain",
        "fit",
        "sft",
        "rl",
        "rejection",
        "synthesize",
        "distill",
        "reward",
        "sample",
    } <= kinds
