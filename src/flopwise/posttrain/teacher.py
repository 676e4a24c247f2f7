"""A teacher's distributions, written once and read by many students: top-k log-probabilities on disk.

One file in the safetensors layout, memory-mapped and checked by its SHA-256: the token ids of every sequence,
their weights in the loss, and for each token that has one the teacher's k likeliest tokens, their
log-probabilities, and the log of the mass of all others. `logits.json` says what made it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from flopwise.data import checksums
from flopwise.errors import FlopwiseError
from flopwise.flops.count import score_flops
from flopwise.flops.ledger import Ledger
from flopwise.flops.spend import Stopwatch
from flopwise.posttrain.bench import Bench, Progress, model_fields
from flopwise.posttrain.examples import Example, collate
from flopwise.posttrain.rejection import read_examples
from flopwise.train.distill_objectives import IDS, LOGPROBS, REST
from flopwise.train.objectives import Batch

if TYPE_CHECKING:
    from flopwise.data.tokenizer import Tokenizer
    from flopwise.models.transformer import Transformer
    from flopwise.records.folder import RunFolder

LOGITS_FILE, ABOUT_FILE = "logits.safetensors", "logits.json"
SCORED_TOKENS = 1 << 13
"""Tokens that the teacher reads at once."""
_NAMES = {"<i8": "I64", "<i4": "I32", "<u2": "U16", "<f4": "F32", "<f2": "F16"}


def run_step(folder: RunFolder, parents: dict[str, RunFolder], progress: Progress) -> None:
    """Write the log-probabilities of parent `teacher` over the completions of parent `samples`, or over the
    demonstrations where there is none (or beside them, with `with_demonstrations`).

    Deterministic; interrupted, it starts over.

    Raises:
        FlopwiseError: nothing to read.
    """
    from flopwise.records.record import Metric

    watch, ledger = Stopwatch(), Ledger()
    folder.sweep()
    bench = Bench.open(folder, parents, role="teacher")
    spec = bench.spec
    examples: list[Example] = read_examples(bench, parents["samples"]) if "samples" in parents else []
    if spec["with_demonstrations"] or "samples" not in parents:
        examples += bench.demonstrations()
    k = min(spec["top_k"], bench.model.cfg.vocab_size)
    writer = Writer(folder.path, examples, k, spec["precision"], bench.model.cfg.vocab_size)
    done = 0
    try:
        for rows in _by_length(examples):
            start = time.perf_counter()
            batch = collate([examples[i] for i in rows], bench.tokenizer.pad_id)
            top = top_of(bench.model, batch, k, spec["temperature"])
            writer.put(rows, *(t.numpy() for t in top))
            flops = pass_flops(bench.model, batch)
            ledger.post(
                "teacher", parents["teacher"].id, batch.ids.numel(), flops, time.perf_counter() - start
            )
            done += len(rows)
            progress(0.98 * done / len(examples))
        about = writer.finish(
            {"temperature": spec["temperature"], "vocabulary": fingerprint(bench.tokenizer)}
        )
    except BaseException:
        writer.discard()
        raise
    n = about["tokens"]
    folder.finish(
        metrics={
            "examples": Metric(value=len(examples)), "tokens": Metric(value=n),
            "bytes": Metric(value=about["bytes"]), "bytes_per_token": Metric(value=about["bytes"] / n),
            "rest_mass": Metric(value=about["rest_mass"], n=n),
        },
        spend=watch.spend(ledger, tokens=sum(map(len, examples))),
        model=model_fields(bench.model),
        data={"corpus": bench.asked.task, "tokens_seen": 0, "tokens_unique": None, "modality": "text"},
        extra={"top_k": k, "precision": spec["precision"]},
    )  # fmt: skip


@torch.no_grad()
def top_of(
    teacher: Transformer, batch: Batch, k: int, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The teacher's k likeliest tokens [N, k] where the batch has weight, their log-probabilities [N, k] at
    `temperature`, and the log of what all others have together [N] (minus infinity where there are none)."""
    assert batch.weights is not None
    teacher.eval()
    learned = batch.weights.flatten().nonzero()[:, 0]
    hidden = teacher.hidden(batch.ids, batch.extra.get("segments")).flatten(0, 1)[learned]
    logprobs = F.log_softmax(F.linear(hidden, teacher.head.weight).float() / temperature, -1)
    top, ids = logprobs.topk(k, dim=-1)
    if k == logprobs.shape[1]:
        return ids, top, torch.full((len(ids),), -math.inf)
    return ids, top, logprobs.scatter(1, ids, -math.inf).logsumexp(1)


def pass_flops(teacher: Transformer, batch: Batch) -> float:
    """FLOPs of one of `top_of`'s passes: the head is applied where the batch has weight."""
    assert batch.weights is not None
    B, T = batch.ids.shape
    return score_flops(teacher.cfg, T, B, int(torch.count_nonzero(batch.weights)) / B).total


def attach(batch: Batch, ids: torch.Tensor, logprobs: torch.Tensor, rest: torch.Tensor) -> Batch:
    """Put a teacher's word on the learned places [N, ...] into the batch's `extra`, as objectives read it."""
    assert batch.weights is not None
    B, T = batch.ids.shape
    learned = batch.weights.flatten().nonzero()[:, 0]
    for name, values in ((IDS, ids.long()), (LOGPROBS, logprobs.float()), (REST, rest.float())):
        whole = values.new_zeros(B * T, *values.shape[1:])
        batch.extra[name] = whole.index_copy_(0, learned, values).unflatten(0, (B, T))
    return batch


def fingerprint(tokenizer: Tokenizer) -> str:
    """16 digits that two tokenizers share if and only if each id means the same text in both."""
    content = json.loads(tokenizer.to_str())
    ids = {t["content"]: t["id"] for t in content.get("added_tokens", [])}
    vocabulary = content["model"]["vocab"]
    pairs = vocabulary.items() if isinstance(vocabulary, dict) else enumerate(map(str, vocabulary))
    whole = json.dumps(sorted((str(a), str(b)) for a, b in {**dict(pairs), **ids}.items()))
    return hashlib.sha256(whole.encode()).hexdigest()[:16]


def _by_length(examples: Sequence[Example]) -> Iterator[np.ndarray]:
    """Places of examples of like length, so many at once as the teacher reads in one pass."""
    sizes = np.array([len(e) for e in examples], dtype=np.int64)
    order = np.argsort(-sizes, kind="stable")
    first = 0
    while first < len(order):
        n = max(1, SCORED_TOKENS // int(sizes[order[first]]))
        yield order[first : first + n]
        first += n


class Writer:
    """Writes the file piece by piece; it exists once `finish` has returned."""

    def __init__(self, folder: Path, examples: Sequence[Example], k: int, precision: str, vocab_size: int):
        if not examples:
            raise FlopwiseError(
                "teacher-logits: there is no sequence to read; check the samples that feed this step"
            )
        self.folder, self.k, self.precision = folder, k, precision
        completions = np.array([len(e.completion) for e in examples], dtype="<i8")
        weights = np.concatenate(
            [np.ones(len(e.completion)) if e.weights is None else e.weights for e in examples]
        )
        self.places = _places(completions, weights)
        sizes = np.array([len(e) for e in examples], dtype="<i8")
        n = int(self.places[-1])
        shapes: dict[str, tuple[str, tuple[int, ...]]] = {
            "starts": ("<i8", (len(examples) + 1,)),
            "completions": ("<i8", (len(examples),)),
            "tokens": ("<i4", (int(sizes.sum()),)),
            "weights": ("<f4", (len(weights),)),
            "rest": ("<f4", (n,)),
            "ids": ("<u2" if vocab_size <= 1 << 16 else "<i4", (n, k)),
            "logprobs": ("<f2" if precision == "float16" else "<f4", (n, k)),
        }
        # The widest first, so that each array is aligned.
        shapes = dict(sorted(shapes.items(), key=lambda item: -np.dtype(item[1][0]).itemsize))
        self.temporary = folder / f".{LOGITS_FILE}.{os.getpid()}.tmp"
        self.arrays = _create(self.temporary, shapes)
        self.arrays["starts"][:] = np.concatenate([[0], sizes.cumsum()])
        self.arrays["completions"][:] = completions
        self.arrays["weights"][:] = weights
        self.arrays["tokens"][:] = [t for e in examples for t in (*e.prompt, *e.completion)]
        self.rest_mass = 0.0

    def put(self, rows: np.ndarray, ids: np.ndarray, logprobs: np.ndarray, rest: np.ndarray) -> None:
        """Enter what examples `rows` learn, whose tokens stand one after the other in the arrays."""
        at = 0
        for row in rows.tolist():
            first, end = int(self.places[row]), int(self.places[row + 1])
            part = slice(at, at + end - first)
            self.arrays["ids"][first:end] = ids[part]
            self.arrays["logprobs"][first:end] = logprobs[part]
            self.arrays["rest"][first:end] = rest[part]
            at = part.stop
        self.rest_mass += float(np.exp(rest.astype(np.float64)).sum())

    def finish(self, about: dict[str, Any]) -> dict[str, Any]:
        """Make the file exist, then say what it is."""
        from flopwise.records.folder import atomic_write

        n = int(self.places[-1])
        for array in self.arrays.values():
            array.flush()
        self.arrays.clear()
        with open(self.temporary, "rb") as f:
            os.fsync(f.fileno())
        digest, size = checksums.sha256(self.temporary), self.temporary.stat().st_size
        os.replace(self.temporary, self.folder / LOGITS_FILE)
        about = about | {
            "sha256": digest, "bytes": size, "tokens": n, "top_k": self.k, "precision": self.precision,
            "rest_mass": self.rest_mass / n,
        }  # fmt: skip
        atomic_write(self.folder / ABOUT_FILE, json.dumps(about, indent=1) + "\n")
        return about

    def discard(self) -> None:
        """Remove what was written."""
        self.arrays.clear()
        self.temporary.unlink(missing_ok=True)


def _places(completions: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Where each sequence's learned tokens begin [sequences + 1], given the lengths of all completions and
    the weights of their tokens, one after the other."""
    learned = np.concatenate([[0], np.cumsum(weights != 0)])
    out: np.ndarray = learned[np.concatenate([[0], np.cumsum(completions)])]
    return out


def _create(path: Path, shapes: dict[str, tuple[str, tuple[int, ...]]]) -> dict[str, np.memmap[Any, Any]]:
    """An empty safetensors file of these arrays, open for writing."""
    header: dict[str, Any] = {}
    end = 0
    for name, (dtype, shape) in shapes.items():
        size = np.dtype(dtype).itemsize * math.prod(shape)
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        f.truncate(8 + len(text) + end)
    return _mapped(path, "r+")


def _mapped(path: Path, mode: Any) -> dict[str, np.memmap[Any, Any]]:
    """The arrays of a safetensors file, memory-mapped."""
    types = {name: dtype for dtype, name in _NAMES.items()}
    with open(path, "rb") as f:
        length = int.from_bytes(f.read(8), "little")
        header = json.loads(f.read(length))
    return {
        name: np.memmap(
            path, types[entry["dtype"]], mode, 8 + length + entry["data_offsets"][0], tuple(entry["shape"])
        )
        for name, entry in header.items()
    }


class TeacherLogits:
    """A finished run of `teacher-logits`, open for reading.

    Attributes:
        about: `top_k`, `precision`, `temperature`, `bytes`, `tokens`, `vocabulary` (see `fingerprint`) and
            `rest_mass`, the mean mass that the teacher gives to tokens that are not kept.
        sizes: tokens of each sequence [n].

    Raises:
        FlopwiseError: the run holds none, or the file is damaged.
    """

    def __init__(self, folder: Path):
        path = folder / LOGITS_FILE
        try:
            self.about: dict[str, Any] = json.loads((folder / ABOUT_FILE).read_bytes())
            whole = checksums.matches(path, self.about["sha256"])
        except FileNotFoundError:
            raise FlopwiseError(
                f"run {folder.name} has no teacher's log-probabilities; give a run of method teacher-logits"
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise FlopwiseError(
                f"{path} cannot be read ({type(e).__name__}); delete {folder} and start again"
            ) from e
        if not whole:
            raise FlopwiseError(f"{path} is damaged (SHA-256 differs); delete {folder} and start again")
        self._arrays = _mapped(path, "r")
        self.sizes: np.ndarray = np.diff(self._arrays["starts"])
        self._ends = np.concatenate([[0], self._arrays["completions"].cumsum()])
        self._places = _places(self._arrays["completions"], self._arrays["weights"])

    def __len__(self) -> int:
        return len(self.sizes)

    def example(self, i: int) -> Example:
        """Sequence i."""
        first, end = self._arrays["starts"][i : i + 2].tolist()
        tokens = self._arrays["tokens"][first:end].tolist()
        cut = end - first - int(self._arrays["completions"][i])
        weights = self._arrays["weights"][self._ends[i] : self._ends[i + 1]]
        return Example(tuple(tokens[:cut]), tuple(tokens[cut:]), tuple(weights.tolist()))

    def batch(self, rows: Sequence[int] | np.ndarray, pad_id: int) -> Batch:
        """These sequences with the teacher's word on each token of their completions."""
        batch = collate([self.example(int(i)) for i in rows], pad_id)
        places = np.concatenate([np.arange(self._places[i], self._places[i + 1]) for i in rows])
        found = (torch.from_numpy(np.asarray(self._arrays[n][places], dtype=t)) for n, t in _READ)
        return attach(batch, *found)


_READ = (("ids", "<i8"), ("logprobs", "<f4"), ("rest", "<f4"))
