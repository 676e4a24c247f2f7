"""Tables of one's own: files of every kind, a folder of runs, a dataframe; bad ones are refused."""

from __future__ import annotations

import gzip
import json

import duckdb
import numpy as np
import pytest

from flopwise.errors import FlopwiseError
from flopwise.flops.spend import Spend
from flopwise.models.config import ModelConfig
from flopwise.records import RunStore, read_table
from flopwise.records.record import Metric
from flopwise.records.table import numbers

ROWS = [(1e6, 2e7, 3.5, "a"), (2e6, 4e7, 3.1, "b"), (4e6, 8e7, None, "c")]


@pytest.fixture(params=["csv", "tsv", "csv.gz", "jsonl", "parquet"])
def file(request, tmp_path):
    """The same three rows in each format."""
    path = tmp_path / f"runs.{request.param}"
    if request.param == "parquet":
        db = duckdb.connect()
        db.execute("CREATE TABLE t (size DOUBLE, D DOUBLE, loss DOUBLE, run VARCHAR)")
        db.executemany("INSERT INTO t VALUES (?, ?, ?, ?)", ROWS)
        db.execute(f"COPY t TO '{path}'")
        return path
    if request.param == "jsonl":
        names = ("size", "D", "loss", "run")
        text = "".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in ROWS)
    else:
        sign = "\t" if request.param == "tsv" else ","
        lines = [("size", "D", "loss", "run"), *ROWS]
        text = "\n".join(sign.join("" if v is None else str(v) for v in line) for line in lines)
    data = text.encode()
    path.write_bytes(gzip.compress(data, mtime=0) if request.param.endswith("gz") else data)
    return path


def test_every_format_gives_the_same_columns(file):
    table = read_table(file, rename={"N": "size"})
    assert table["N"].tolist() == [1e6, 2e6, 4e6] and table["N"].tolist() == table["size"].tolist()
    assert table["loss"][:2].tolist() == [3.5, 3.1] and np.isnan(table["loss"][2])
    assert table["run"].tolist() == ["a", "b", "c"]


def test_where_chooses_rows(file):
    table = read_table(file, where="loss IS NOT NULL AND run <> 'a'")
    assert table["D"].tolist() == [4e7]


@pytest.mark.parametrize(
    "where",
    [
        "1 = 1); DROP TABLE source; --",
        "size > 1; SELECT 1",
        "size IN (SELECT 1 FROM read_text('/etc/passwd'))",
        "size IN (SELECT column0 FROM read_csv('{path}'))",
        "size IN (SELECT size FROM secret)",
        "no_such > 1",
        "(((",
        "'a'",
    ],
)
def test_hostile_and_wrong_conditions_are_refused(where, tmp_path):
    secret = {"size": [1.0]}
    assert secret
    path = tmp_path / "runs.csv"
    path.write_text("size,loss\n1,2\n")
    with pytest.raises(FlopwiseError, match="where") as e:
        read_table(path, where=where.replace("{path}", str(path)))
    assert "\n" not in str(e.value)
    assert read_table(path)["loss"].tolist() == [2]


def test_a_path_is_a_name_not_a_pattern_nor_sql(tmp_path):
    odd = tmp_path / "it's [1] a*b?.csv"
    odd.write_text("N\n1\n")
    (tmp_path / "it's 1 axxb1.csv").write_text("N\n2\n")
    assert read_table(odd)["N"].tolist() == [1]
    with pytest.raises(FlopwiseError, match="does not exist"):
        read_table(tmp_path / "*.csv")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("runs.csv", b"", "cannot be read|no rows"),
        ("runs.csv", b"N,loss\n", "no rows"),
        ("runs.csv", b"\x00\xff\xfe\x00N", "cannot be read|no rows"),
        ("runs.parquet", b"not parquet", "cannot be read as parquet"),
        ("runs.jsonl", b"{broken", "cannot be read as jsonl"),
        ("runs.xlsx", b"x", "must be one of .csv"),
        ("runs", b"x", "ends in nothing"),
    ],
)
def test_unreadable_files_are_refused(name, content, message, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(FlopwiseError, match=message) as e:
        read_table(path)
    assert "\n" not in str(e.value)


def test_no_such_column_names_the_close_ones(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text("n_params,val_loss\n1,2\n")
    with pytest.raises(FlopwiseError, match="did you mean 'n_params'"):
        read_table(path, rename={"N": "n_param"})
    with pytest.raises(FlopwiseError, match="there are n_params, val_loss"):
        read_table(path, rename={"N": "zzz"})


def test_a_value_that_is_no_number_is_named_with_its_row(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text("N,loss\n1,3.5\n2,n/a\n3,\n")
    table = read_table(path)
    assert numbers(table, "N", "fit").tolist() == [1, 2, 3]
    with pytest.raises(FlopwiseError, match=r"'n/a' in row 2"):
        numbers(table, "loss", "fit")
    path.write_text("N,loss\n1,3.5\n2,\n")
    with pytest.raises(FlopwiseError, match="nothing in row 2"):
        numbers(read_table(path), "loss", "fit")


class Frame:
    """What pandas and polars have in common."""

    def __init__(self, columns):
        self.columns, self._data = list(columns), columns

    def __getitem__(self, name):
        return self._data[name]


@pytest.mark.parametrize("wrap", [dict, Frame])
def test_mappings_and_frames_are_taken_as_they_are(wrap):
    table = read_table(
        wrap({"size": [1, 2, 3], "loss": [3.0, 2.0, 1.0]}), rename={"N": "size"}, where="size > 1"
    )
    assert table["N"].tolist() == [2, 3] and table["loss"].tolist() == [2.0, 1.0]


@pytest.mark.parametrize("bad", [3, None, [1, 2], {"a": [1], "b": [1, 2]}, {"a": 1.0}, {}])
def test_what_is_no_table_is_refused(bad):
    with pytest.raises(FlopwiseError, match="table"):
        read_table(bad)


@pytest.fixture
def runs(tmp_path):
    """A folder with two finished cooldown runs, one held out, one failed, and a damaged record."""
    store = RunStore(tmp_path / "runs")
    for width, held_out in ((32, False), (64, False), (96, True)):
        folder = store.prepare("pretrain", "cooldown", {"width": width}, seed=width, name=f"w{width}")
        folder.finish(
            {"loss": Metric(value=4 - width / 64, se=0.01, n=10)}, Spend(train_flops=1e9 * width),
            model={
                "n_params_total": 200 * width, "n_params_non_embedding": 100 * width,
                "architecture": ModelConfig.from_width(width, 2, 300, 64).to_dict(),
            },
            data={"tokens_seen": 1_000_000}, extra={"held_out": held_out},
        )  # fmt: skip
    store.prepare("pretrain", "cooldown", {"width": 128}, seed=1).fail("diverged")
    damaged = store.prepare("pretrain", "cooldown", {"width": 256}, seed=1)
    (damaged.path / "run.json").write_text("{half")
    return store.root


def test_a_folder_of_runs_is_a_table_of_its_ladder(runs):
    with pytest.warns(UserWarning, match="left out"):
        table = read_table(runs)
    assert table["N"].tolist() == [3200.0, 6400.0] and table["loss"].tolist() == [3.5, 3.0]
    assert table["C"].tolist() == [3.2e10, 6.4e10] and len(set(table["run"])) == 2


@pytest.mark.filterwarnings("ignore:left out")
def test_the_held_out_run_comes_when_asked(runs):
    assert read_table(runs, held_out=True)["width"].tolist() == [32, 64, 96]
    assert read_table(runs, where="width > 40")["N"].tolist() == [6400.0]


def test_the_folder_of_one_run_is_its_curve(tmp_path):
    folder = RunStore(tmp_path).prepare("rl", "grpo", {"steps": 3})
    for step in (1, 2):
        folder.log(step=step, train_flops=1e9 * step, generate_flops=5e8 * step, reward=0.1 * step)
    folder.log(step=2, train_flops=2e9, generate_flops=1e9, val_accuracy=0.3)
    table = read_table(folder.path, where="reward IS NOT NULL")
    assert table["C"].tolist() == [1.5e9, 3e9] and table["reward"].tolist() == [0.1, 0.2]
    assert len(read_table(folder.path)["C"]) == 3


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(FlopwiseError, match="no finished cooldown run"):
        read_table(tmp_path)
