"""Batches: any step without state, every window once an epoch, the same rows for any number of processes."""

from __future__ import annotations

import numpy as np
import pytest

from flopwise.data import shards
from flopwise.data.mixture import Mixture, Source
from flopwise.data.shards import Shards
from flopwise.errors import FlopwiseError

EOS = 0


@pytest.fixture
def shard(tmp_path) -> Shards:
    """Token i + 1 at place i, but for the end of each of 20 documents of 50."""
    assert shards.write([range(50 * d + 1, 50 * d + 50) for d in range(20)], tmp_path / "v1.2-a", EOS) == 1000
    return Shards(tmp_path / "v1.2-a")


def batch(shard: Shards, step: int, batch_size: int, seq_len: int, seed: int, stream: int = 0) -> np.ndarray:
    return Source([shard]).rows(step * batch_size, batch_size, seq_len, seed, stream)


def test_an_epoch_shows_every_target_once(shard):
    T, B = 9, 4
    n = shard.n_windows(T)
    assert n == 111
    rows = np.concatenate([batch(shard, step, B, T, seed=0) for step in range(n * B // B)])
    assert rows.shape == (n * B, T + 1) and rows.dtype == np.int64
    starts = set()
    for epoch in range(B):
        part = rows[epoch * n : (epoch + 1) * n]
        assert sorted(part[:, 1:].ravel().tolist()) == sorted(shard.parts[0][1 : n * T + 1].tolist())
        starts.add(tuple(part[:, 0].tolist()))
    assert len(starts) == B  # each epoch in an order of its own


def test_batches_need_no_state(shard, tmp_path):
    fresh = Shards(tmp_path / "v1.2-a")
    later = batch(fresh, 37, 4, 9, seed=5)
    for step in range(37):
        batch(shard, step, 4, 9, seed=5)
    assert (batch(shard, 37, 4, 9, seed=5) == later).all()
    assert (batch(shard, 37, 4, 9, seed=6) != later).any()
    assert (batch(shard, 37, 4, 9, seed=5, stream=1) != later).any()
    halves = np.concatenate([batch(shard, 74, 2, 9, seed=5), batch(shard, 75, 2, 9, seed=5)])
    assert (halves == later).all()  # the sequence of rows does not depend on the batch size


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
    assert sorted(shown.tolist()) == sorted(c.parts[0][1:97].tolist())


def test_mixture_rounds_by_largest_remainder_and_refuses_empty_shares(shard):
    mix = Mixture({"x": [shard], "y": [shard], "z": [shard]}, {"x": 0.5, "y": 0.3, "z": 0.2})
    assert mix.rows(7) == {"x": 4, "y": 2, "z": 1} and sum(mix.rows(97).values()) == 97
    with pytest.raises(FlopwiseError, match=r"1\.0% of y is less than one row in a batch of 16"):
        Mixture({"x": [shard], "y": [shard]}, {"x": 0.99, "y": 0.01}).rows(16)
    with pytest.raises(FlopwiseError, match="above 0"):
        Mixture({"x": [shard]}, {"x": 0.0})


def test_too_short_for_a_row(shard):
    with pytest.raises(FlopwiseError, match="1,000 tokens, a row needs 2001"):
        batch(shard, 0, 1, 2000, 0)
    with pytest.raises(FlopwiseError, match="a batch takes 8 rows of 200 tokens, there are 4"):
        Mixture({"x": [shard]}, {"x": 1.0}).batch(0, 8, 200, 0)


def test_processes_share_a_batch_row_by_row(shard, tmp_path):
    shards.write([range(500, 900)], tmp_path / "other", EOS)
    mix = Mixture({"x": [shard], "y": [Shards(tmp_path / "other")]}, {"x": 0.7, "y": 0.3})
    for step in (0, 3, 40):
        whole = mix.batch(step, 10, 8, seed=2)
        for ranks in (1, 2, 3, 7):
            for rank in range(ranks):
                assert (mix.batch(step, 10, 8, seed=2, rank=rank, ranks=ranks) == whole[rank::ranks]).all()


def test_unique_tokens_are_the_same_for_every_seed_and_nested(shard):
    def shown(limit: int, seed: int, epochs: int = 1) -> list[tuple[int, ...]]:
        mix = Mixture({"x": [shard]}, {"x": 1.0}, unique_tokens=limit)
        assert mix.tokens_unique == limit
        steps = limit // 10 // 5 * epochs
        assert mix.epochs(steps, 5, 10) == {"x": epochs}
        return [tuple(row) for step in range(steps) for row in mix.batch(step, 5, 10, seed).tolist()]

    few, more = shown(200, seed=0), shown(400, seed=0)
    assert len(set(few)) == 20 and len(set(more)) == 40 and set(few) < set(more)
    assert shown(200, seed=9) != few and set(shown(200, seed=9)) == set(few)
    twice = shown(200, seed=0, epochs=2)
    assert twice[:20] == few and twice[20:] != few and set(twice[20:]) == set(few)
    starts = sorted(row[0] for row in few)
    assert max(np.diff(starts)) > 20  # not the beginning of the shard but a sample of it
    everything = Mixture({"x": [shard]}, {"x": 1.0}, unique_tokens=10**9)
    assert (everything.batch(1, 5, 10, 3) == Mixture({"x": [shard]}, {"x": 1.0}).batch(1, 5, 10, 3)).all()


def test_unique_tokens_out_of_range_are_one_line(shard):
    with pytest.raises(FlopwiseError, match=r"9 tokens \(unique_tokens\), a row needs 11"):
        Mixture({"x": [shard]}, {"x": 1.0}, unique_tokens=9).batch(0, 1, 10, 0)
    with pytest.raises(FlopwiseError, match="a batch takes 8 rows of 10 tokens, there are 5"):
        Mixture({"x": [shard]}, {"x": 1.0}, unique_tokens=50).check(8, 10)
    with pytest.raises(FlopwiseError, match="unique_tokens is 0"):
        Mixture({"x": [shard]}, {"x": 1.0}, unique_tokens=0)
