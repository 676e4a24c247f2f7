"""Samples that were drawn stay: an append-only store, and an engine that draws only what is not in it.

A sample's key is the model's hash, the prompt's hash, the parameters' hash, the seed and the index. Parts are
Parquet files, `STORE/MODEL/PARAMETERS/part-*.parquet`: each is written beside its place, flushed and renamed,
so that a writer that is killed leaves what was there, and writers at the same time do not meet. Anything that
reads Parquet can ask them, as DuckDB: SELECT model, count(*) FROM 'STORE/*/*/*.parquet' GROUP BY 1.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flopwise.errors import FlopwiseError, one_line
from flopwise.infer.engine import SampleBatch, Usage

if TYPE_CHECKING:
    from flopwise.infer.engine import Engine

BLOCK = 4096
"""Samples that are drawn, and written, at a time: what a kill may cost."""
MANY, SMALL = 32, 4 << 20
"""So many parts below so many bytes are merged into one."""
STALE_S = 600.0
"""A merge that is older was killed."""
TRIES = 5
"""Of reading, as a merge may take a file away that was just listed."""


@dataclass(frozen=True)
class Kept:
    """One sample of the store: its tokens, their log-probabilities, and its share of the time it took."""

    ids: np.ndarray
    logprobs: np.ndarray
    finished: bool
    seconds: float


class Store:
    """A folder of samples."""

    def __init__(self, root: Path):
        self.root = root

    def read(
        self, part: str, seed: int, prompts: Sequence[int], first: int, n: int
    ) -> dict[tuple[int, int], Kept]:
        """Samples `first` to `first + n - 1` of prompts, as far as they are there, by prompt and index.

        Args:
            part: MODEL/PARAMETERS.

        Raises:
            FlopwiseError: a file is damaged.
        """
        wanted = {"prompt": np.unique(np.asarray(prompts, dtype=np.int64))}
        query = (
            "SELECT s.prompt, s.idx, s.tokens, s.logprobs, s.finished, s.seconds FROM read_parquet($files) s "
            "SEMI JOIN wanted USING (prompt) WHERE s.seed = $seed AND s.idx >= $first AND s.idx < $last"
        )
        values = {"seed": seed, "first": first, "last": first + n}
        columns = self._ask(query, part, values, wanted)
        names = ("prompt", "idx", "tokens", "logprobs", "finished", "seconds")
        rows = zip(*(columns.get(name, ()) for name in names), strict=True)
        return {
            (int(prompt), int(idx)): Kept(
                np.frombuffer(tokens, np.int32), np.frombuffer(logprobs, np.float32), bool(done), float(spent)
            )
            for prompt, idx, tokens, logprobs, done, spent in rows
        }

    def count(self) -> int:
        """Samples in the store, of all models."""
        found = self._ask("SELECT count(*) AS n FROM read_parquet($files)", "*/*", {})
        return int(found["n"][0]) if found else 0

    def add(self, part: str, columns: dict[str, np.ndarray]) -> None:
        """Write rows as a part of their own; merges parts where there are many small ones."""
        folder = self.root / part
        folder.mkdir(parents=True, exist_ok=True)
        order = np.lexsort((columns["idx"], columns["seed"], columns["prompt"]))
        with _connection() as db:
            db.register("rows", {name: values[order] for name, values in columns.items()})
            _write(db, "SELECT * FROM rows", folder)
        self._merge(folder)

    def describe(self, part: str, about: dict[str, Any]) -> None:
        """Say in words what a model's or a parameters' hash stands for."""
        from flopwise.records.folder import atomic_write

        path = self.root / part / "about.json"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, json.dumps(about, indent=1))

    def _ask(
        self, query: str, part: str, values: dict[str, Any], table: dict[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        """The answer's columns; nothing where there is no file."""
        import duckdb

        for attempt in range(TRIES):
            files = sorted(str(f) for f in self.root.glob(f"{part}/part-*.parquet"))
            if not files:
                return {}
            try:
                with _connection() as db:
                    if table is not None:
                        db.register("wanted", table)
                    found: dict[str, np.ndarray] = db.execute(query, {**values, "files": files}).fetchnumpy()
                    return found
            except duckdb.Error as e:
                gone = [f for f in files if not os.path.exists(f)]
                if not gone or attempt == TRIES - 1:
                    raise FlopwiseError(
                        f"store {self.root}: {one_line(e, 160)}; delete the damaged part, then its samples "
                        "are drawn again"
                    ) from e
        return {}

    def _merge(self, folder: Path) -> None:
        """Many small parts into one, by one process at a time. The merged part is there before they go."""
        small = [f for f in folder.glob("part-*.parquet") if f.stat().st_size < SMALL]
        if len(small) < MANY:
            return
        lock = folder / "merging"
        with suppress(OSError):
            if time.time() - lock.stat().st_mtime > STALE_S:
                lock.unlink()
        try:
            os.close(os.open(lock, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        try:
            files = [str(f) for f in folder.glob("part-*.parquet") if f.stat().st_size < SMALL]
            with _connection() as db:
                key = "prompt, seed, idx"
                query = f"SELECT DISTINCT ON ({key}) * FROM read_parquet($files) ORDER BY {key}"
                _write(db, query, folder, {"files": files})
            for name in files:
                Path(name).unlink(missing_ok=True)
        finally:
            lock.unlink(missing_ok=True)


class Stored:
    """An engine with a store before it: what is there is read, the rest is drawn and added, block by block.

    `Usage` counts tokens and FLOPs of what was drawn now, and seconds of all samples as they took when they
    were drawn. Continuations by `prefix_tokens` are not kept.

    Args:
        model: hash of whatever the engine's samples depend on (`model_hash`).
        name: the model's, for people.
    """

    def __init__(self, engine: Engine, store: Store, model: str, name: str = ""):
        self.engine, self.store, self.model, self.name = engine, store, model, name
        store.describe(model, {"model": name})

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def sample(
        self, prompts: Sequence[Sequence[int]], n: int = 1, max_tokens: int = 64, stop: Sequence[int] = (),
        temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None, seed: int = 0,
        prefix_tokens: Sequence[Sequence[int]] | None = None,
        on_progress: Callable[[float], None] | None = None, keys: Sequence[int] | None = None, first: int = 0,
    ) -> SampleBatch:  # fmt: skip
        """n completions of each prompt (`infer.engine.Engine.sample`), as if all were drawn now."""
        settings: dict[str, Any] = {
            "max_tokens": max_tokens, "stop": list(map(int, stop)), "temperature": temperature,
            "top_k": top_k, "top_p": top_p,
        }  # fmt: skip
        if prefix_tokens is not None or not len(prompts) or n < 1:
            return self.engine.sample(
                prompts, n, seed=seed, prefix_tokens=prefix_tokens, on_progress=on_progress, keys=keys,
                first=first, **settings,
            )  # fmt: skip
        mark = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
        part = f"{self.model}/{mark}"
        self.store.describe(part, settings)
        keys = list(range(len(prompts))) if keys is None else list(keys)
        hashes = [_hash([key, *prompt]) for key, prompt in zip(keys, prompts, strict=True)]
        found = self.store.read(part, seed, hashes, first, n)
        groups: dict[int, list[int]] = {}
        for place in {h: i for i, h in enumerate(hashes)}.values():
            missing = next((i for i in range(first, first + n) if (hashes[place], i) not in found), None)
            if missing is not None:
                groups.setdefault(missing, []).append(place)
        todo = sum(len(places) * (first + n - begin) for begin, places in groups.items())
        usage, done = Usage(), 0
        for begin, places in sorted(groups.items()):
            left = first + n - begin
            for at in range(0, len(places), size := max(1, BLOCK // left)):
                some = places[at : at + size]
                out = self.engine.sample(
                    [prompts[i] for i in some], left, seed=seed, keys=[keys[i] for i in some], first=begin,
                    **settings,
                )  # fmt: skip
                found |= self._keep(part, seed, out, [(hashes[i], prompts[i]) for i in some])
                usage += out.usage
                done += len(out.lengths)
                if on_progress is not None:
                    on_progress(done / todo)
        return _batch([(h, i) for h in hashes for i in range(first, first + n)], found, n, usage)

    def _keep(
        self, part: str, seed: int, out: SampleBatch, prompts: Sequence[tuple[int, Sequence[int]]]
    ) -> dict[tuple[int, int], Kept]:
        seconds = out.usage.seconds / max(1, len(out.lengths))
        rows = []
        for row, length, done in zip(range(len(out.lengths)), out.lengths, out.finished, strict=True):
            ids, logprobs = out.ids[row, :length].astype(np.int32), out.logprobs[row, :length]
            rows.append(Kept(ids, logprobs.astype(np.float32), bool(done), seconds))
        hashes = np.array([h for h, _ in prompts], dtype=np.int64)[out.prompt_index]
        texts = [np.asarray(ids, dtype=np.int32).tobytes() for _, ids in prompts]
        self.store.add(part, {
            "model": _objects([self.name] * len(rows)), "prompt": hashes,
            "prompt_tokens": _objects([texts[i] for i in out.prompt_index.tolist()]),
            "seed": np.full(len(rows), seed, dtype=np.int64), "idx": out.sample_index.astype(np.int32),
            "length": out.lengths.astype(np.int32), "finished": out.finished.astype(bool),
            "logprob": np.array([float(k.logprobs.sum(dtype=float)) for k in rows]),
            "tokens": _objects([k.ids.tobytes() for k in rows]),
            "logprobs": _objects([k.logprobs.tobytes() for k in rows]),
            "seconds": np.full(len(rows), seconds),
        })  # fmt: skip
        places = zip(hashes.tolist(), out.sample_index.tolist(), rows, strict=True)
        return {(h, i): kept for h, i, kept in places}


def model_hash(source: Path | str, precision: str = "float32") -> str:
    """16 letters that tell a model's weights and shape, and what products are taken in; of a text (a server's
    address and the model's name there) that text's."""
    digest = hashlib.sha256(precision.encode())
    if isinstance(source, str):
        digest.update(source.encode())
    else:
        files = sorted(f for f in source.iterdir() if f.suffix in (".safetensors", ".gguf") or f.name in
                       ("config.json", "adapter_config.json"))  # fmt: skip
        for path in files:
            digest.update(path.name.encode())
            with open(path, "rb") as f:
                digest.update(hashlib.file_digest(f, "sha256").digest())
    return digest.hexdigest()[:16]


def _batch(
    wanted: list[tuple[int, int]], found: dict[tuple[int, int], Kept], n: int, usage: Usage
) -> SampleBatch:
    rows = [found[key] for key in wanted]
    lengths = np.array([len(r.ids) for r in rows], dtype=np.int64)
    ids = np.full((len(rows), max(1, int(lengths.max()))), -1, dtype=np.int32)
    logprobs = np.zeros(ids.shape, dtype=np.float32)
    for i, r in enumerate(rows):
        ids[i, : len(r.ids)], logprobs[i, : len(r.ids)] = r.ids, r.logprobs
    usage.seconds = sum(r.seconds for r in rows)
    return SampleBatch(
        ids, lengths, logprobs, np.repeat(np.arange(len(rows) // n), n), np.array([i for _, i in wanted]),
        np.array([r.finished for r in rows], dtype=bool), usage,
    )  # fmt: skip


def _write(db: Any, query: str, folder: Path, values: dict[str, Any] | None = None) -> None:
    name = f"part-{uuid.uuid4().hex}.parquet"
    temporary = folder / f".{name}.tmp"
    try:
        target = str(temporary).replace("'", "''")
        db.execute(f"COPY ({query}) TO '{target}' (FORMAT parquet, COMPRESSION zstd)", values)
        with open(temporary, "rb") as f:
            os.fsync(f.fileno())
        os.replace(temporary, folder / name)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _connection() -> Iterator[Any]:
    import duckdb

    db = duckdb.connect()
    try:
        db.execute("SET threads = 2")
        yield db
    finally:
        db.close()


def _objects(values: Sequence[Any]) -> np.ndarray:
    out = np.empty(len(values), dtype=object)
    out[:] = values
    return out


def _hash(numbers: Sequence[int]) -> int:
    """Of a prompt: a number below 2**63."""
    digest = hashlib.sha256(np.asarray(numbers, dtype=np.int64).tobytes()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
