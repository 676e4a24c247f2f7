"""Shards: what was written is read, in files of bounded size, and damage is seen."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from flopwise.data import checksums, shards
from flopwise.data.mixture import Source
from flopwise.data.shards import Shards
from flopwise.errors import FlopwiseError

EOS = 0


@pytest.fixture
def shard(tmp_path) -> Shards:
    """Token i + 1 at place i, but for the end of each of 20 documents of 50."""
    assert shards.write([range(50 * d + 1, 50 * d + 50) for d in range(20)], tmp_path / "v1.2-a", EOS) == 1000
    return Shards(tmp_path / "v1.2-a")


def test_document_windows_stay_inside_documents(shard):
    rows, docs = shard.document_windows(seq_len=16, n_tokens=16 * 40)
    assert len(rows) == len(docs) == 40 and set(docs) == set(range(20))
    for row, doc in zip(rows, docs, strict=True):
        assert 50 * doc + 1 <= row[0] and (row[:-1] != EOS).all() and row[-2] <= 50 * doc + 50
    few, some = shard.document_windows(seq_len=16, n_tokens=16 * 5)
    assert len(few) == 5 and len(set(some)) == 5
    with pytest.raises(FlopwiseError, match="the longest document has 50 tokens, a window needs 65"):
        shard.document_windows(64, 1000)


def test_files_of_bounded_size_hold_whole_documents(shard, tmp_path):
    documents = [range(50 * d + 1, 50 * d + 50) for d in range(20)]
    assert shards.write(documents, tmp_path / "many", EOS, file_tokens=120) == 1000
    many = Shards(tmp_path / "many")
    assert [len(part) for part in many.parts] == [150] * 6 + [100] and len(many) == 1000
    assert many.starts.tolist() == shard.starts.tolist() and many.n_documents == 20
    assert np.concatenate(many.parts).tolist() == shard.parts[0].tolist()
    # Windows lie within files: an epoch shows each file's once.
    assert many.n_windows(9) == 6 * 16 + 11
    rows = Source([many]).rows(0, 107, 9, seed=4)
    by_hand = [part[i : i + 10].tolist() for part in many.parts for i in range(0, len(part) - 9, 9)]
    assert sorted(rows.tolist()) == sorted(by_hand)
    assert (many.document_windows(16, 640)[0] == shard.document_windows(16, 640)[0]).all()


def test_ids_must_fit(tmp_path):
    with pytest.raises(FlopwiseError, match="id 65536 of document 1 is outside of the vocabulary of 65,536"):
        shards.write([[1], [65_536]], tmp_path / "s", 0)
    with pytest.raises(FlopwiseError, match="id -1"):
        shards.write([[-1]], tmp_path / "s", 0)
    with pytest.raises(FlopwiseError, match="no documents"):
        shards.write([], tmp_path / "s", 0)
    assert not list(tmp_path.iterdir())
    assert shards.write([[65_535]], tmp_path / "s", 0) == 2
    assert shards.write([[65_536, 99_999]], tmp_path / "wide", 0, vocab_size=100_000) == 3
    wide = Shards(tmp_path / "wide")
    assert wide.parts[0].dtype == np.uint32 and wide.parts[0].tolist() == [65_536, 99_999, 0]
    assert wide.windows(np.array([0]), 2).tolist() == [[65_536, 99_999, 0]]


@pytest.mark.parametrize("damage", ["flip", "cut", "odd", "no header", "bad header", "no data", "starts"])
def test_damage_is_seen(shard, tmp_path, damage):
    data, header = tmp_path / "v1.2-a-00000.bin", tmp_path / "v1.2-a.json"
    content = data.read_bytes()
    match damage:
        case "flip":
            data.write_bytes(content[:500] + bytes([content[500] ^ 1]) + content[501:])
        case "cut":
            data.write_bytes(content[:-2])
        case "odd":
            data.write_bytes(content[:-1])
        case "no header":
            header.unlink()
        case "bad header":
            header.write_text(json.dumps(["x"]))
        case "no data":
            data.write_bytes(b"")
        case "starts":
            starts = tmp_path / "v1.2-a.starts"
            starts.write_bytes(bytes([1]) + starts.read_bytes()[1:])
    with pytest.raises(FlopwiseError, match="prepare the data again"):
        Shards(tmp_path / "v1.2-a")


def test_large_files_are_checked_once_a_day(tmp_path, monkeypatch):
    monkeypatch.setenv("FLOPWISE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(checksums, "LARGE", 10)
    path = tmp_path / "file"
    path.write_bytes(b"some bytes of a file")
    digest = checksums.sha256(path)
    read: list[object] = []
    whole = checksums.sha256
    monkeypatch.setattr(checksums, "sha256", lambda p: read.append(p) or whole(p))

    def forget() -> None:
        checksums._checked.clear()

    assert checksums.matches(path, digest) and checksums.matches(path, digest) and len(read) == 1
    forget()
    assert checksums.matches(path, digest) and len(read) == 1  # another process
    assert not checksums.matches(path, "0" * 64) and len(read) == 2  # another file was expected
    os.utime(path, ns=(1, 1))
    assert checksums.matches(path, digest) and len(read) == 3
    forget()
    monkeypatch.setattr(checksums, "REMEMBERED_S", -1.0)
    assert checksums.matches(path, digest) and len(read) == 4
    path.write_bytes(b"other bytes of a file")
    assert not checksums.matches(path, digest)
