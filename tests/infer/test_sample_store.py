"""The store of samples: nothing drawn twice, nothing lost, writers that do not meet, many rows cheap."""

import subprocess
import sys
import textwrap
import time
from pathlib import Path

import duckdb
import numpy as np
import pytest
from tiny_models import make_model
from toy_sampler import ToySampler

from flopwise.errors import FlopwiseError
from flopwise.infer import store as module
from flopwise.infer.local import LocalEngine
from flopwise.infer.store import Store, Stored, model_hash
from flopwise.models import hf

PROMPTS = [[1, 2, 3], [4, 5, 6], [7, 8]]
HOW = {"max_tokens": 10, "stop": [0], "seed": 3}


class Counting:
    """An engine that notes how many samples it was asked for."""

    def __init__(self, engine):
        self.engine, self.cfg, self.asked = engine, engine.cfg, []

    def sample(self, prompts, n, *args, **how):
        self.asked.append((len(prompts), n, how["first"]))
        return self.engine.sample(prompts, n, *args, **how)


@pytest.fixture
def stored(engine, tmp_path):
    return Stored(Counting(engine), Store(tmp_path / "store"), "abc", "tiny")


def same(a, b):
    for name in ("ids", "logprobs", "lengths", "finished", "prompt_index", "sample_index"):
        x, y = getattr(a, name), getattr(b, name)
        if x.ndim == 2:
            width = min(x.shape[1], y.shape[1])
            assert (x[:, width:] <= 0).all() and (y[:, width:] <= 0).all()
            x, y = x[:, :width], y[:, :width]
        # Rows that are decoded together may differ in the last bits.
        assert np.allclose(x, y, rtol=0, atol=1e-4 if name == "logprobs" else 0), name


def test_only_what_is_not_there_is_drawn(engine, stored):
    keys = [9, 8, 7]
    same(stored.sample(PROMPTS, 3, keys=keys, **HOW), engine.sample(PROMPTS, 3, keys=keys, **HOW))
    same(stored.sample(PROMPTS, 5, keys=keys, **HOW), engine.sample(PROMPTS, 5, keys=keys, **HOW))
    again = stored.sample(PROMPTS[::-1], 4, keys=keys[::-1], **HOW)
    same(again, engine.sample(PROMPTS[::-1], 4, keys=keys[::-1], **HOW))
    assert stored.engine.asked == [(3, 3, 0), (3, 2, 3)]
    assert again.usage.decode_tokens == 0 and again.usage.seconds > 0
    more = [*PROMPTS, [9, 9]]
    same(stored.sample(more, 5, keys=[*keys, 1], **HOW), engine.sample(more, 5, keys=[*keys, 1], **HOW))
    assert stored.engine.asked[2:] == [(1, 5, 0)] and stored.store.count() == 20


@pytest.mark.parametrize(
    "change", [{"seed": 4}, {"max_tokens": 9}, {"temperature": 0.5}, {"stop": [1]}, {"top_k": 3}]
)
def test_other_parameters_are_other_samples(stored, change):
    stored.sample(PROMPTS, 2, **HOW)
    stored.sample(PROMPTS, 2, **(HOW | change))
    assert len(stored.engine.asked) == 2 and stored.store.count() == 12


def test_a_second_process_reads_what_the_first_wrote(engine, stored):
    first = stored.sample(PROMPTS, 2, **HOW)
    other = Stored(Counting(engine), Store(stored.store.root), "abc")
    same(other.sample(PROMPTS, 2, **HOW), first)
    assert other.engine.asked == [] and other.cfg is engine.cfg
    assert (
        Stored(Counting(engine), Store(stored.store.root), "other").sample(PROMPTS, 2, **HOW).usage.flops > 0
    )


def test_many_small_parts_become_one(tmp_path, monkeypatch):
    stored = Stored(ToySampler(), Store(tmp_path / "store"), "abc", "tiny")
    monkeypatch.setattr(module, "MANY", 4)
    monkeypatch.setattr(module, "BLOCK", 2)
    out = stored.sample(PROMPTS, 2, **HOW)
    parts = list(stored.store.root.glob("*/*/part-*.parquet"))
    assert len(parts) == 3
    stored.sample(PROMPTS, 3, **HOW)
    assert len(list(stored.store.root.glob("*/*/part-*.parquet"))) < 4 and stored.store.count() == 9
    same(stored.sample(PROMPTS, 2, **HOW), out)
    # Someone is merging: it is left to them; one who was killed at it is not waited for.
    lock = parts[0].parent / "merging"
    lock.touch()
    stored.sample(PROMPTS, 7, **HOW)
    assert lock.exists() and stored.store.count() == 21
    monkeypatch.setattr(module, "STALE_S", -1.0)
    stored.sample(PROMPTS, 8, **HOW)
    assert not lock.exists() and stored.store.count() == 24


WRITER = """
    import sys
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    from toy_sampler import ToySampler
    from flopwise.infer import store
    store.BLOCK, store.MANY = 8, 3
    root, seed, rounds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    engine = store.Stored(ToySampler(), store.Store(root), "abc")
    for n in range(1, rounds):
        engine.sample([[i, i + 1] for i in range(6)], n, 6, [0], seed=seed)
        print(n, flush=True)
"""


def writer(root, seed, rounds):
    code = textwrap.dedent(WRITER.format(tests=str(Path(__file__).parent)))
    return subprocess.Popen(
        [sys.executable, "-c", code, str(root), str(seed), str(rounds)], stdout=subprocess.PIPE, text=True
    )


def test_writers_at_once_and_one_that_is_killed_leave_whole_samples(tmp_path):
    engine = ToySampler()
    keys = list(range(6))
    running = [writer(tmp_path, 1, 6), writer(tmp_path, 1, 6), writer(tmp_path, 2, 10_000)]
    assert running[2].stdout.readline().strip() == "1"
    time.sleep(0.1)
    running[2].kill()
    assert [p.wait(120) for p in running[:2]] == [0, 0]
    running[2].wait(10)
    reader = Stored(Counting(engine), Store(tmp_path), "abc")
    prompts = [[i, i + 1] for i in range(6)]
    same(reader.sample(prompts, 5, 6, [0], seed=1), engine.sample(prompts, 5, 6, [0], seed=1, keys=keys))
    assert reader.engine.asked == []
    # Of what the killed one drew, whole samples are there and right.
    same(reader.sample(prompts, 3, 6, [0], seed=2), engine.sample(prompts, 3, 6, [0], seed=2, keys=keys))
    for process in running:
        process.stdout.close()


def test_a_hundred_thousand_rows_are_asked_in_no_time(engine, tmp_path):
    store, n = Store(tmp_path), 100_000
    prompts = np.repeat(np.arange(n // 64 + 1), 64)[:n].astype(np.int64)
    blob = np.empty(n, dtype=object)
    blob[:] = [np.arange(20, dtype=np.int32).tobytes()] * n
    columns = {
        "model": np.array(["tiny"] * n, dtype=object), "prompt": prompts, "prompt_tokens": blob,
        "seed": np.zeros(n, np.int64), "idx": np.tile(np.arange(64, dtype=np.int32), n // 64 + 1)[:n],
        "length": np.full(n, 20, np.int32), "finished": np.ones(n, bool), "logprob": np.zeros(n),
        "tokens": blob, "logprobs": blob, "seconds": np.zeros(n),
    }  # fmt: skip
    store.add("abc/def", columns)
    assert store.count() == n
    found = store.read("abc/def", 0, [5, 700], 0, 64)
    assert len(found) == 128 and len(found[700, 63].ids) == 20
    asked = duckdb.sql(
        f"SELECT model, count(*), avg(length) FROM '{tmp_path}/*/*/*.parquet' GROUP BY 1"
    ).fetchall()
    assert asked == [("tiny", n, 20.0)]


def test_a_damaged_part_is_one_line(stored):
    stored.sample(PROMPTS, 2, **HOW)
    part = next(stored.store.root.glob("*/*/part-*.parquet"))
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(FlopwiseError, match="delete the damaged part") as caught:
        stored.sample(PROMPTS, 2, **HOW)
    assert "\n" not in str(caught.value)


def test_a_models_hash_follows_its_weights(tmp_path):
    hf.save(make_model(), tmp_path / "a")
    hf.save(make_model(), tmp_path / "b")
    hf.save(make_model(seed=4), tmp_path / "c")
    marks = [model_hash(tmp_path / name) for name in "abc"]
    assert marks[0] == marks[1] != marks[2] and model_hash(tmp_path / "a", "bfloat16") != marks[0]
    assert LocalEngine(make_model()).cfg is not None
