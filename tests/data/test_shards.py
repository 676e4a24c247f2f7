"""Shards: any step's batch without state, every window once an epoch, damage seen."""

from __future__ import annotations

import json

import numpy as np
import pytest

from flopwise.data import shards
from flopwise.data.shards import Mixture, Shards
from flopwise.errors import FlopwiseError

EOS = 0


@pytest.fixture
def shard(tmp_path) -> Shards:
    """Token i + 1 at place i, but for the end of each of 20 documents of 50."""
    assert shards.write([range(50 * d + 1, 50 * d + 50) for d in range(20)], tmp_path / "v1.2-a", EOS) == 1000
    return Shards(tmp_path / "v1.2-a")


def test_an_epoch_shows_every_target_once(shard):
    T, B = 9, 4
    n = shard.n_windows(T)
    assert n == 111
    rows = np.concatenate([shard.batch(step, B, T, seed=0) for step in range(n * B // B)])
    assert rows.shape == (n * B, T + 1) and rows.dtype == np.int64
    starts = set()
    for epoch in range(B):
        part = rows[epoch * n : (epoch + 1) * n]
        assert sorted(part[:, 1:].ravel().tolist()) == sorted(shard.tokens[1 : n * T + 1].tolist())
        starts.add(tuple(part[:, 0].tolist()))
    assert len(starts) == B  # each epoch in an order of its own


def test_batches_need_no_state(shard, tmp_path):
    fresh = Shards(tmp_path / "v1.2-a")
    later = fresh.batch(37, 4, 9, seed=5)
    for step in range(37):
        shard.batch(step, 4, 9, seed=5)
    assert (shard.batch(37, 4, 9, seed=5) == later).all()
    assert (shard.batch(37, 4, 9, seed=6) != later).any()
    assert (shard.batch(37, 4, 9, seed=5, stream=1) != later).any()
    halves = np.concatenate([shard.batch(74, 2, 9, seed=5), shard.batch(75, 2, 9, seed=5)])
    assert (halves == later).all()  # the sequence of rows does not depend on the batch size


def test_document_windows_stay_inside_documents(shard):
    rows, docs = shard.document_windows(seq_len=16, n_tokens=16 * 40)
    assert len(rows) == len(docs) == 40 and set(docs) == set(range(20))
    for row, doc in zip(rows, docs, strict=True):
        assert 50 * doc + 1 <= row[0] and (row[:-1] != EOS).all() and row[-2] <= 50 * doc + 50
    few, some = shard.document_windows(seq_len=16, n_tokens=16 * 5)
    assert len(few) == 5 and len(set(some)) == 5
    with pytest.raises(FlopwiseError, match="no document has 65 tokens"):
        shard.document_windows(64, 1000)


def test_mixture_keeps_its_shares_in_every_batch(tmp_path):
    for name, base, n in (("a", 0, 300), ("b", 1000, 200), ("c", 2000, 100)):
        shards.write([[base + i % 900 for i in range(n)]], tmp_path / name, 999)
    a, b, c = (Shards(tmp_path / name) for name in "abc")
    mix = Mixture({"text": [a, b], "task": [c]}, {"text": 3, "task": 1})
    assert mix.rows(16) == {"text": 12, "task": 4} and mix.tokens_unique == 603
    for step in range(20):
        rows = mix.batch(step, 16, 8, seed=1)
        assert rows.shape == (16, 9)
        assert (rows[:12].min() < 2000) and (rows[12:, 0] >= 2000).sum() + (rows[12:, 0] == 999).sum() == 4
    assert mix.tokens_seen(20, 16, 8) == {"text": 20 * 12 * 8, "task": 20 * 4 * 8}
    assert mix.epochs(3, 16, 8) == {"text": pytest.approx(36 / 62), "task": 1.0}
    shown = np.concatenate([mix.batch(step, 16, 8, 1)[12:, 1:].ravel() for step in range(3)])
    assert sorted(shown.tolist()) == sorted(c.tokens[1:97].tolist())


def test_mixture_rounds_by_largest_remainder_and_refuses_empty_shares(shard):
    mix = Mixture({"x": [shard], "y": [shard], "z": [shard]}, {"x": 0.5, "y": 0.3, "z": 0.2})
    assert mix.rows(7) == {"x": 4, "y": 2, "z": 1} and sum(mix.rows(97).values()) == 97
    with pytest.raises(FlopwiseError, match=r"1\.0% of y is less than one row in a batch of 16"):
        Mixture({"x": [shard], "y": [shard]}, {"x": 0.99, "y": 0.01}).rows(16)
    with pytest.raises(FlopwiseError, match="above 0"):
        Mixture({"x": [shard]}, {"x": 0.0})


def test_too_short_for_a_row(shard):
    with pytest.raises(FlopwiseError, match="1,000 tokens, a row needs 2001"):
        shard.batch(0, 1, 2000, 0)


def test_ids_must_fit(tmp_path):
    with pytest.raises(FlopwiseError, match="65536 does not fit 16 bits"):
        shards.write([[65_536]], tmp_path / "s", 0)
    with pytest.raises(FlopwiseError, match="no documents"):
        shards.write([], tmp_path / "s", 0)
    assert not list(tmp_path.iterdir())
    assert shards.write([[65_535]], tmp_path / "s", 0) == 2


@pytest.mark.parametrize("damage", ["flip", "cut", "odd", "no header", "bad header", "no data"])
def test_damage_is_seen(shard, tmp_path, damage):
    data, header = tmp_path / "v1.2-a.bin", tmp_path / "v1.2-a.json"
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
    with pytest.raises(FlopwiseError, match="prepare the data again"):
        Shards(tmp_path / "v1.2-a")
