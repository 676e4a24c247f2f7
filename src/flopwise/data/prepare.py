"""The data step: corpora to shards, the task to disjoint problem sets; everything checked before a model sees it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flopwise.data import contamination, corpora, countdown, dedup, shards
from flopwise.data.countdown import Problem
from flopwise.data.tokenizer import Tokenizer, train_bpe
from flopwise.errors import FlopwiseError

if TYPE_CHECKING:
    from flopwise.records.folder import RunFolder


@dataclass(frozen=True)
class Demonstration:
    """A prompt with its worked solution."""

    prompt: str
    completion: str


class PreparedData:
    """What `run_step` left in a folder, opened for reading."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self.about: dict[str, Any] = json.loads((path / "about.json").read_text())
        except (OSError, ValueError) as e:
            raise FlopwiseError(f"data folder {path} has no readable about.json; run its step again") from e
        self.corpora: list[str] = [c["name"] for c in self.about["corpora"]]
        self.task: str = self.about["task"]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer trained on this text."""
        return Tokenizer.load(self.path)

    def mixture(self, weights: dict[str, float]) -> shards.Mixture:
        """Batches of `text` (all corpora as they come) and `task` (the demonstrations), in fixed shares."""
        known = {
            "text": [shards.Shards(self.path / f"train-{name}") for name in self.corpora],
            "task": [shards.Shards(self.path / "demonstrations")],
        }
        unknown = set(weights) - set(known)
        if unknown:
            raise FlopwiseError(f"mixture: {min(unknown)!r} is unknown; there are text and task")
        return shards.Mixture([shards.Source(known[name], name) for name in weights], list(weights.values()))

    def heldout(self, name: str, n_tokens: int, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
        """Held-out windows [n, seq_len + 1] of a corpus and their documents [n]."""
        return shards.Shards(self.path / f"heldout-{name}").document_windows(seq_len, n_tokens)

    def demos(self) -> list[Demonstration]:
        """The fixed set of worked solutions."""
        return [Demonstration(r["prompt"], r["completion"]) for r in self._rows("demos")]

    def problems(self, name: str) -> list[Problem]:
        """Problems of the set `rl`, `val` or `test`."""
        return [Problem(tuple(r["numbers"]), r["target"]) for r in self._rows(name)]

    def _rows(self, name: str) -> list[dict[str, Any]]:
        with open(self.path / f"{name}.jsonl", encoding="utf-8") as f:
            return [json.loads(line) for line in f]


def run_step(folder: RunFolder, parents: dict[str, RunFolder], progress: Callable[[float], None]) -> None:
    """Prepare everything the spec (`launch.sections.DataSection`) asks for.

    Raises:
        FlopwiseError: unknown corpus or task, or a held-out problem stands in training text.
    """
    from flopwise.flops.hardware import device_name
    from flopwise.flops.spend import Spend
    from flopwise.records.folder import atomic_write
    from flopwise.records.record import Metric

    wall, cpu = time.monotonic(), time.process_time()
    spec = folder.spec
    if spec["task"] != "countdown":
        raise FlopwiseError(f"data: task {spec['task']!r} is unknown; there is countdown")
    loaded, note = corpora.load_with_fallback(spec["corpora"], spec["max_chars"])
    progress(0.3)
    training: dict[str, list[str]] = {}
    heldout: dict[str, list[str]] = {}
    about: list[dict[str, Any]] = []
    for corpus in loaded:
        texts = [d.text for d in corpus.documents]
        kept = [texts[i] for i in dedup.near_duplicates(texts)]
        training[corpus.name], heldout[corpus.name] = split_documents(kept, spec["heldout_fraction"], folder.seed)
        about.append(
            {
                "name": corpus.name, "license": corpus.license, "source": corpus.source, "documents": len(texts),
                "duplicates_removed": len(texts) - len(kept), "heldout_documents": len(heldout[corpus.name]),
                "characters": sum(map(len, training[corpus.name])),
            }
        )  # fmt: skip
    progress(0.5)
    tasks = countdown.split(
        folder.seed, demos=spec["demonstrations"], rl=spec["rl_problems"], val=spec["val_problems"], test=spec["test_problems"]
    )
    demos = [Demonstration(p.prompt, countdown.demonstration(p, folder.seed)) for p in tasks["demos"]]
    everything = [d.prompt + d.completion for d in demos] + [t for texts in training.values() for t in texts]
    report = contamination.check(everything, tasks["val"] + tasks["test"])
    if report.hits:
        raise FlopwiseError(f"data: {len(report.hits)} held-out problems stand in training text, first {report.hits[0]!r}")
    progress(0.6)
    # Every third document is enough to learn 512 merges from.
    tokenizer = train_bpe((t for texts in training.values() for t in texts[::3]), spec["vocab_size"])
    tokenizer.save(folder.path)
    progress(0.7)
    for entry in about:
        name = entry["name"]
        entry["tokens"] = shards.write(tokenizer.encode_batch(training[name]), folder.path / f"train-{name}", tokenizer.eos_id)
        entry["heldout_tokens"] = shards.write(
            tokenizer.encode_batch(heldout[name]), folder.path / f"heldout-{name}", tokenizer.eos_id
        )
        entry["bytes_per_token"] = sum(len(t.encode()) for t in training[name]) / entry["tokens"]
    pairs = zip(tokenizer.encode_batch(d.prompt for d in demos), tokenizer.encode_batch(d.completion for d in demos), strict=True)
    demo_tokens = shards.write([p + c for p, c in pairs], folder.path / "demonstrations", tokenizer.eos_id)
    _write_rows(folder.path / "demos.jsonl", [vars(d) for d in demos])
    for name in ("rl", "val", "test"):
        _write_rows(folder.path / f"{name}.jsonl", [{"numbers": p.numbers, "target": p.target} for p in tasks[name]])
    summary = {
        "corpora": about, "task": spec["task"], "vocab_size": tokenizer.vocab_size, "demonstrations": len(demos),
        "demonstration_tokens": demo_tokens, "problems": {k: len(v) for k, v in tasks.items()}, "note": note,
        "contamination": {"checked": report.texts, "prompts": report.prompts_found, "hits": len(report.hits)},
    }  # fmt: skip
    atomic_write(folder.path / "about.json", json.dumps(summary, indent=1))
    tokens = sum(e["tokens"] for e in about) + demo_tokens
    folder.finish(
        metrics={
            "train_tokens": Metric(value=tokens), "contamination_hits": Metric(value=0, n=report.texts),
            "duplicates_removed": Metric(value=sum(e["duplicates_removed"] for e in about)),
        },
        spend=Spend(0.0, 0.0, 0.0, 0, time.monotonic() - wall, time.process_time() - cpu, device_name(), None),
        data={"corpus": "+".join(c.name for c in loaded), "tokens_seen": 0, "tokens_unique": tokens, "modality": "text"},
        extra={"note": note},
    )  # fmt: skip


def split_documents(texts: list[str], fraction: float, seed: int) -> tuple[list[str], list[str]]:
    """Training and held-out documents; at least two are held out, so that a standard error exists.

    >>> [len(part) for part in split_documents([str(i) for i in range(100)], 0.05, 0)]
    [95, 5]
    """
    if len(texts) < 4:
        raise FlopwiseError(f"data: {len(texts)} documents are too few to hold some out; raise data.max_chars")
    held = max(2, round(len(texts) * fraction))
    order = np.random.default_rng((seed, len(texts))).permutation(len(texts))
    out = set(order[:held].tolist())
    # A shuffled order, so that a short run sees all of a corpus and not its beginning.
    return [texts[i] for i in order if i not in out], [texts[i] for i in sorted(out)]


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    from flopwise.records.folder import atomic_write

    atomic_write(path, "".join(json.dumps(row) + "\n" for row in rows))
