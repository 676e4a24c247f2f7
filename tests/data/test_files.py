"""A person's own files: every format gives the same documents, what is broken is counted or one line."""

from __future__ import annotations

import builtins
import bz2
import gzip
import io
import json
import lzma
import tracemalloc
from pathlib import Path

import pytest

from flopwise.data import files
from flopwise.data.documents import check_names, label, open_text
from flopwise.data.files import Skipped
from flopwise.errors import FlopwiseError

TEXTS = ["first text", 'a second, with "quotes",\nlines and ünï ♞', "the third;\twith signs", "fourth"]


def texts_of(path: Path | str, field: str = "text") -> tuple[list[str], Skipped]:
    skipped = Skipped()
    return [d.text for d in files.read(files.find(str(path)), field, skipped)], skipped


def as_csv(texts: list[str], sign: str = ",") -> str:
    import csv

    out = io.StringIO()
    writer = csv.writer(out, delimiter=sign)
    writer.writerow(["id", "text"])
    writer.writerows([i, t] for i, t in enumerate(texts))
    return out.getvalue()


def as_lines(texts: list[str]) -> str:
    return "".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in enumerate(texts))


CONTENT = {
    "a.jsonl": as_lines(TEXTS),
    "a.ndjson": "\ufeff" + as_lines(TEXTS).replace("\n", "\r\n\r\n"),
    "list.json": json.dumps([{"text": t} for t in TEXTS], indent=2),
    "lines.json": as_lines(TEXTS),
    "a.csv": as_csv(TEXTS),
    "semicolons.csv": as_csv(TEXTS, ";"),
    "a.tsv": as_csv(TEXTS, "\t"),
}


@pytest.mark.parametrize("name", CONTENT)
@pytest.mark.parametrize("ending", ["", ".gz", ".bz2", ".xz"])
def test_every_format_gives_the_same_documents(tmp_path, name, ending):
    pack = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}[ending]
    path = tmp_path / (name + ending)
    path.write_bytes(pack(CONTENT[name].encode()))
    found, skipped = texts_of(path)
    assert found == TEXTS and not skipped.counts


def test_parquet_and_its_columns(tmp_path):
    import duckdb

    path = tmp_path / "a.parquet"
    db = duckdb.connect()
    db.execute("CREATE TABLE t (id INTEGER, text VARCHAR, raw BLOB)")
    db.executemany(
        "INSERT INTO t VALUES (?, ?, ?)", [(i, t, t and t.encode()) for i, t in enumerate([*TEXTS, None])]
    )
    db.execute(f"COPY t TO '{path}' (FORMAT parquet)")
    for field in ("text", "raw"):
        found, skipped = texts_of(path, field)
        assert found == TEXTS and skipped.counts == {"empty": 1}
    with pytest.raises(FlopwiseError, match="has no column 'body'; it has id, text, raw; set field"):
        texts_of(path, "body")
    with pytest.raises(FlopwiseError, match="column id is INTEGER, must be text"):
        texts_of(path, "id")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(FlopwiseError, match="cannot be read as Parquet"):
        texts_of(path)


def test_zstandard_or_the_command_that_installs_it(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl.zst"
    # A frame without compression, by hand: magic, descriptor, size, the last block's head, the bytes.
    content = as_lines(["one", "two"]).encode()
    block = (len(content) << 3 | 1).to_bytes(3, "little")
    path.write_bytes(b"\x28\xb5\x2f\xfd\x20" + bytes([len(content)]) + block + content)
    try:
        import zstandard  # noqa: F401
    except ModuleNotFoundError:
        with pytest.raises(FlopwiseError, match="pip install zstandard"):
            texts_of(path)
        return
    frame = path.read_bytes()
    path.write_bytes(frame + frame)
    assert texts_of(path)[0] == ["one", "two"] * 2
    path.write_bytes(frame[:4] + b"\xff" + frame[5:])
    with pytest.raises(FlopwiseError, match="damaged or cut"):
        texts_of(path)
    path.write_bytes(frame)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(FlopwiseError, match="damaged or cut"):
        texts_of(path)
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "zstandard":
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(FlopwiseError, match="pip install zstandard"):
        texts_of(path)


def test_plain_texts_are_documents_and_long_ones_are_cut(tmp_path):
    (tmp_path / "short.txt").write_text("A short text.\n")
    (tmp_path / "notes.md").write_text("# Notes\n\nSome.")
    paragraphs = [f"Paragraph {i} " + "has some words " * 40 for i in range(400)]
    (tmp_path / "z-long.txt").write_text("\n\n".join(paragraphs))
    found, skipped = texts_of(tmp_path)
    assert found[:2] == ["# Notes\n\nSome.", "A short text.\n"] and not skipped.counts
    parts = found[2:]
    assert len(parts) > 30 and max(map(len, parts)) <= files.DOCUMENT_CHARS
    assert "".join("".join(parts).split()) == "".join("".join(paragraphs).split())
    assert all(part.startswith("Paragraph") for part in parts)  # cut between paragraphs


def test_folders_and_patterns(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "two.txt").write_text("two")
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / ".hidden.txt").write_text("hidden")
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    assert texts_of(tmp_path)[0] == ["one", "two"]
    assert texts_of(tmp_path / "**/*.txt")[0] == ["one", "two"]
    for wrong in (tmp_path / "none.txt", tmp_path / "*.jsonl", tmp_path / "image.png"):
        with pytest.raises(FlopwiseError, match=r"\.txt, \.md") as error:
            texts_of(wrong)
        assert "\n" not in str(error.value)


def test_broken_rows_are_counted_with_the_first_place(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [
        b'{"text": "good"}', b'{"text": "broken \xff byte"}', b'{"text": ""}', b'{"text": "  \\n"}',
        b'{"body": "no such field"}', b'{"text": 7}', b'["a list"]', b'{"text": "half \\ud800 pair"}',
        b'{"text": "cut', b'{"text": "good too"}', b'{"text": null}', b"[" * 100_000,
    ]  # fmt: skip
    path.write_bytes(b"\n".join(rows))
    found, skipped = texts_of(path)
    assert found == ["good", "good too"]
    assert skipped.counts == {"broken UTF-8": 2, "empty": 3, "no field": 2, "no text": 1, "broken JSON": 2}
    about = skipped.about()
    assert about["broken UTF-8"] == {"documents": 2, "first": f"{path}:2"}
    assert about["no field"]["first"] == f"{path}:5, no 'text' among body"
    assert about["no text"]["first"] == f"{path}:6, a int"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"body": "x"}\n' * 3000,
         r"no text in the first 1,000 rows: 1,000 times no field.*a.jsonl:1, no 'text' among body"),
        ("a.jsonl", b"", "the files are empty"),
        ("a.txt", b"\xff\xff\x00", "no text in 1 rows: 1 times broken UTF-8"),
        ("a.txt", b"\xff\xfet\x00", "UTF-16 text; convert it"),
        ("a.txt", b"PK\x03\x04....", "zip archive; unpack it"),
        ("a.csv", b"a,b\n1,2\n", "has no column 'text'; it has a, b; set field"),
        ("a.json", b'[{"text": "good"}, {"text": ', r"a\.json is no JSON after row 1"),
        ("a.json", b"nonsense", "is no JSON after row 0"),
        ("a.jsonl.gz", gzip.compress(as_lines(["x" * 100_000]).encode())[:-30], "damaged or cut after row 0"),
        ("a.jsonl.xz", lzma.compress(as_lines(TEXTS).encode())[:-30], "damaged or cut"),
        ("a.jsonl.bz2", bz2.compress(as_lines(TEXTS).encode())[:-9], "damaged or cut"),
        ("a.parquet", b"PAR1 and nonsense", "cannot be read as Parquet"),
    ],
)  # fmt: skip
def test_unfit_files_are_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FlopwiseError, match=message) as error:
        texts_of(tmp_path / name)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_short_rows_and_open_quotes_of_csv(tmp_path, monkeypatch):
    path = tmp_path / "a.csv"
    path.write_text("id,text\n1,good\n2\n3,\n\n4,good too\n")
    found, skipped = texts_of(path)
    assert found == ["good", "good too"] and skipped.counts == {"no field": 1, "empty": 1}
    monkeypatch.setattr(files, "FIELD_BYTES", 1000)
    path.write_text('id,text\n1,good\n2,"a quote that nobody closes\n' + "3,more\n" * 1000)
    with pytest.raises(FlopwiseError, match="cannot be read after line"):
        texts_of(path)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv", "a.json", "a.txt"])
def test_memory_does_not_grow_with_the_file(tmp_path, name):
    row = "some words of a document " * 200
    n = 6000  # 30 MB
    texts = (row + str(i) for i in range(n))
    path = tmp_path / name
    with gzip.open(path, "wt", compresslevel=1) if name.endswith(".gz") else open(path, "w") as out:
        if name == "a.json":
            out.write("[" + ",".join(json.dumps({"text": t}) for t in texts) + "]")
        elif name == "a.csv":
            out.write("text\n" + "".join(f'"{t}"\n' for t in texts))
        elif name == "a.txt":
            out.write("\n\n".join(texts))
        else:
            out.writelines(json.dumps({"text": t}) + "\n" for t in texts)
    tracemalloc.start()
    count = sum(1 for _ in files.read([path], "text", Skipped()))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count >= n * 0.8 and peak < 12e6


def test_labels_and_their_limits():
    assert label({"path": "/data/texts/Some file.v2.jsonl.gz"}) == "Some-file"
    assert label({"path": "hub:org/name"}) == "name" and label({"path": "*.txt"}) == "data"
    assert label({"path": "texts/", "name": "mine"}) == "mine" and label({"path": "???"}) == "data"
    check_names(["a", "b.c_d-e"])
    for names, message in (
        (["a", "a"], "two sources are named a"),
        (["a/b"], "'a/b' must be"),
        ([".x"], "must be"),
    ):
        with pytest.raises(FlopwiseError, match=message):
            check_names(names)


def test_max_bytes_gives_whole_documents(tmp_path):
    (tmp_path / "a.jsonl").write_text(as_lines(["x" * 100] * 50))
    stream = open_text({"path": str(tmp_path / "a.jsonl"), "max_bytes": 1001})
    assert stream.name == "a" and len(list(stream.documents)) == 11
    assert open_text({"corpus": "stdlib", "max_bytes": 20_000}).license == "PSF-2.0"
