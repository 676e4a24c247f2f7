"""Dataframes of every library by what they have in common, and tables behind a URL."""

from __future__ import annotations

import gzip
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import duckdb
import numpy as np
import pytest

from flopwise.errors import FlopwiseError
from flopwise.records import remote
from flopwise.records.table import numbers, read_table


class NAType:
    """Like pandas.NA: it has no truth value and is not equal to anything, itself included."""

    def __eq__(self, other):
        return self

    __ne__ = __eq__
    __hash__ = object.__hash__

    def __bool__(self):
        raise TypeError("boolean value of NA is ambiguous")


class Series:
    """A column of a nullable type: an array of objects once numpy asks."""

    def __init__(self, *values):
        self.values = np.array(values, dtype=object)

    def __array__(self, dtype=None, copy=None):
        return self.values


class LazyFrame:
    """Like polars.LazyFrame: columns by name, no values before `collect`."""

    columns = ("N",)

    def collect(self):
        return {"N": [1, 2]}


def test_a_nullable_column():
    table = read_table({"N": Series(1, NAType(), 3), "run": ["a", "b", "c"]}, where="N IS NOT NULL")
    assert numbers(table, "N", "fit").tolist() == [1, 3] and table["run"].tolist() == ["a", "c"]
    with pytest.raises(FlopwiseError, match="nothing in row 2"):
        numbers({"N": Series(1, NAType())}, "N", "fit")


def test_a_lazy_frame_a_structured_array_rows_and_a_relation():
    assert read_table(LazyFrame())["N"].tolist() == [1, 2]
    structured = np.array([(1, 2.5)], dtype=[("N", "i4"), ("loss", "f8")])
    assert read_table(structured)["loss"].tolist() == [2.5]
    rows = read_table([{"N": 1, "run": "a"}, {"N": 2, "loss": 3.0}])
    assert rows["N"].tolist() == [1, 2] and rows["run"].tolist() == ["a", None]
    assert read_table(duckdb.sql("SELECT 1 AS N, 'a'::ENUM('a') AS kind"))["kind"].tolist() == ["a"]


def test_texts_with_nothing_between_stay_texts():
    assert read_table({"run": ["a", np.nan], "N": [1, 2]}, where="run IS NULL")["N"].tolist() == [2]
    masked = np.ma.array([1.0, 2.0], mask=[False, True])
    assert np.isnan(read_table({"N": masked})["N"][1])
    assert numbers({"N": np.array([b"7", b"8"])}, "N", "fit").tolist() == [7, 8]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"N": [1], 1: [2], "1": [3]}, "two columns are named '1'"),
        ({"N": np.ones((2, 2))}, "one length"), ({"N": {1, 2}}, "one length"), ([{}], "no rows"),
        ([], "table"), ({"N": []}, "no rows"), (object(), "must be a path, a URL"),
    ],
)  # fmt: skip
def test_other_things_are_refused(bad, message):
    with pytest.raises(FlopwiseError, match=message):
        read_table(bad)


def test_pandas():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({
        "N": pd.array([1, None, 3], dtype="Int64"), "kind": pd.Categorical(["a", "b", None]),
        "size": ["7B", None, "1T"], "ok": pd.array([True, None, False], dtype="boolean"),
        "at": pd.to_datetime(["2020", "2021", "2022"], utc=True),
    })  # fmt: skip
    table = read_table(frame, where="N IS NOT NULL AND kind IS NOT NULL")
    assert table["N"].tolist() == [1] and table["size"].tolist() == ["7B"] and table["ok"].tolist() == [True]
    with pytest.raises(FlopwiseError, match="nothing in row 2"):
        numbers(read_table(frame), "ok", "fit")
    with pytest.raises(FlopwiseError, match="two columns are named 'N'"):
        read_table(pd.DataFrame([[1, 2]], columns=["N", "N"]))


def test_polars():
    pl = pytest.importorskip("polars")
    frame = pl.DataFrame({"N": [1, None, 3], "size": ["7B", None, "1T"], "parts": [[1], [2], [3, 4]]})
    frame = frame.with_columns(
        kind=pl.col("size").cast(pl.Categorical), exact=pl.col("N").cast(pl.Decimal(9, 2))
    )
    for source in (frame, frame.lazy()):
        table = read_table(source, where="N IS NOT NULL AND kind <> '7B'")
        assert table["N"].tolist() == [3] and numbers(table, "exact", "fit").tolist() == [3]


def test_arrow():
    pa = pytest.importorskip("pyarrow")
    kind = pa.array(["a", "b", "a"]).dictionary_encode()
    frame = pa.table({"N": pa.array([1, None, 3]), "kind": kind, "parts": [[1], [2], [3]]})
    for source in (frame, frame.to_batches()[0]):
        assert read_table(source, where="kind = 'a' AND N > 1")["N"].tolist() == [3]
    with pytest.raises(FlopwiseError, match="two columns are named 'N'"):
        read_table(pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["N", "N"]))


class Pages(BaseHTTPRequestHandler):
    """A server with a table and the ways it can fail."""

    body = b"N,loss\n7,3.5\n8,3.0\n"
    answers: ClassVar = {
        "/runs.csv": (200, "text/plain", body, None),
        "/runs.csv.gz": (200, "", gzip.compress(body, mtime=0), None),
        "/api": (200, "text/csv; charset=utf-8", body, None),
        "/page.csv": (200, "text/html", b"<html>", None), "/cut.csv": (200, "text/csv", body, 1000),
        "/huge.csv": (200, "text/csv", b"", 10**12),
        "/unknown": (200, "application/octet-stream", body, None), "/empty.csv": (200, "text/csv", b"", 0),
    }  # fmt: skip

    def do_GET(self):
        path = self.path.partition("?")[0]
        if path == "/away.csv":
            self.send_response(302)
            self.send_header("Location", "file:///etc/hostname")
            self.end_headers()
            return
        status, kind, body, length = self.answers.get(path, (404, "text/plain", b"", None))
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def address():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("name", ["/runs.csv", "/runs.csv.gz", "/api", "/runs.csv?token=secret"])
def test_a_table_behind_an_address(address, name):
    for source in (address + name, Path(address + name)):  # a path has one slash less
        assert read_table(source, where="N > 7")["loss"].tolist() == [3]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/none.csv?token=secret", "HTTP 404"), ("/page.csv", "is a web page, not a table"),
        ("/cut.csv", "broke off after 19 of 1000 bytes"), ("/huge.csv", "larger than 1 GB"),
        ("/unknown", "ends in nothing, must be one of"), ("/empty.csv", "is empty"),
        ("/away.csv", "not allow"),
    ],
)  # fmt: skip
def test_what_cannot_be_fetched_is_said_in_one_line(address, name, message):
    with pytest.raises(FlopwiseError, match=message) as e:
        read_table(address + name)
    assert "\n" not in str(e.value) and "secret" not in str(e.value) and address + name[:4] in str(e.value)


def test_limits_of_size_and_time(address, monkeypatch):
    monkeypatch.setattr(remote, "LIMIT", 10)
    with pytest.raises(FlopwiseError, match="larger than 1e-08 GB"):
        read_table(f"{address}/runs.csv")
    monkeypatch.undo()
    monkeypatch.setattr(remote, "_WHOLE", -1)
    with pytest.raises(FlopwiseError, match="took more than"):
        read_table(f"{address}/runs.csv")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://127.0.0.1:1/runs.csv", "cannot be fetched"), ("http://[::1/x.csv", "is no address"),
        ("nope://x/runs.csv", "nope:// "), ("http://me:secret@127.0.0.1:1/runs.csv", "table http://127.0.0.1:1/"),
    ],
)  # fmt: skip
def test_addresses_that_lead_nowhere(url, message):
    with pytest.raises(FlopwiseError, match=message) as e:
        read_table(url)
    assert "\n" not in str(e.value) and "secret" not in str(e.value)


def test_object_storage_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(FlopwiseError, match="pip install fsspec s3fs"):
        read_table("s3://bucket/runs.csv?X-Amz-Signature=1")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(FlopwiseError, match=r"gs://bucket/runs.csv.*pip install fsspec gcsfs"):
        read_table("gs://bucket/runs.csv")


def test_other_file_systems_through_fsspec():
    fsspec = pytest.importorskip("fsspec")
    with fsspec.open("memory://tables/runs.csv", "wb") as f:
        f.write(Pages.body)
    assert read_table("memory://tables/runs.csv")["N"].tolist() == [7, 8]


def test_a_file_address(tmp_path):
    path = tmp_path / "my runs.csv"
    path.write_bytes(Pages.body)
    assert read_table(path.as_uri())["N"].tolist() == [7, 8]
