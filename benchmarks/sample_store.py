"""The store of samples at ten million rows: adding, finding 200 prompts' samples, asking in SQL, merging.

All rows are of one model and one set of parameters, the worst case, since these are folders. The disk's cache
is warm. Processor seconds of this process (two threads), the median of `TURNS` where it is done again.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROWS, PART, LENGTH, SAMPLES, PROMPTS, TURNS = 10_000_000, 250_000, 20, 64, 200, 3


def run(rows: int = ROWS) -> list[dict[str, Any]]:
    """Rows of the benchmark's table."""
    import duckdb

    from flopwise.infer.store import Store

    setup = f"{rows:,} samples of {LENGTH} tokens, {SAMPLES} of each prompt, one folder"
    with tempfile.TemporaryDirectory() as folder:
        store, rng = Store(Path(folder)), np.random.default_rng(0)
        spent = 0.0
        for first in range(0, rows, PART):
            columns = _part(first, rng)
            start = time.process_time()
            store.add("model/parameters", columns)
            spent += time.process_time() - start
        size = sum(f.stat().st_size for f in Path(folder).rglob("*.parquet"))
        wanted = _hash(rng.choice(rows // SAMPLES, PROMPTS, replace=False))
        found = store.read("model/parameters", 0, wanted.tolist(), 0, SAMPLES)
        assert len(found) == PROMPTS * SAMPLES
        query = f"SELECT finished, count(*), avg(length) FROM '{folder}/*/*/*.parquet' GROUP BY 1"
        timed = {
            f"find {PROMPTS} prompts": _timed(
                lambda: store.read("model/parameters", 0, wanted.tolist(), 0, SAMPLES)
            ),
            "find what is not there": _timed(
                lambda: store.read("model/parameters", 1, wanted.tolist(), 0, 64)
            ),
            "count": _timed(store.count),
            "group all in SQL": _timed(lambda: duckdb.sql(query).fetchall()),
        }
    table = [("add a million", spent * 1e6 / rows, "s"), ("size of a million", size * 1e6 / rows / 1e6, "MB")]
    table += [(name, seconds, "s") for name, seconds in timed.items()]
    return [
        {"name": f"sample store: {name}", "ours": value, "unit": unit, "peer": None, "peer_name": None,
         "ratio": None, "setup": setup}
        for name, value, unit in table
    ]  # fmt: skip


def _hash(prompts: np.ndarray) -> np.ndarray:
    """Scattered over all numbers, as hashes are: no file can be left out for the prompts in it."""
    return ((prompts.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(1)).astype(np.int64)


def _timed(work: Callable[[], Any]) -> float:
    turns = []
    for _ in range(TURNS):
        start = time.process_time()
        work()
        turns.append(time.process_time() - start)
    return statistics.median(turns)


def _part(first: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Rows as `infer.store.Stored` adds them: random tokens, so that nothing compresses by chance."""
    place = np.arange(first, first + PART)
    ids = rng.integers(0, 512, (PART, LENGTH), dtype=np.int32)
    logprobs = -rng.random((PART, LENGTH), dtype=np.float32)

    def blobs(rows: np.ndarray) -> np.ndarray:
        out = np.empty(PART, dtype=object)
        out[:] = [row.tobytes() for row in rows]
        return out

    return {
        "model": np.full(PART, "model", dtype=object), "prompt": _hash(place // SAMPLES),
        "prompt_tokens": blobs(np.repeat(ids[:: SAMPLES], SAMPLES, axis=0)[:PART]),
        "seed": np.zeros(PART, np.int64), "idx": (place % SAMPLES).astype(np.int32),
        "length": np.full(PART, LENGTH, np.int32), "finished": rng.random(PART) < 0.9,
        "logprob": logprobs.sum(axis=1).astype(float), "tokens": blobs(ids), "logprobs": blobs(logprobs),
        "seconds": np.full(PART, 0.001),
    }  # fmt: skip
