"""The data step that reads somebody's dataset: rows checked, tokenised for one model, split by their prompts.

What it leaves in its folder: `train.safetensors`, `heldout.safetensors` (`instruct_tokens`), the texts as
`train.jsonl`, `heldout.jsonl`, the tokenizer with its chat template, and about.json, written last.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flopwise.data import instruct_tokens
from flopwise.data.build import write_about
from flopwise.data.chat import ChatTemplate
from flopwise.data.instruct_layouts import Row
from flopwise.data.instruct_rows import Rows, source_files, source_sha256
from flopwise.data.instruct_spec import InstructSpec, checked
from flopwise.data.instruct_tokens import Encoder, Table, TooLong
from flopwise.data.instructions import Instructions, is_dataset
from flopwise.data.messages import BadRow
from flopwise.data.spool import Spool
from flopwise.data.tasks import task
from flopwise.data.tasks.table import is_name as is_table
from flopwise.data.tokenizer import hub_tokenizer
from flopwise.errors import FlopwiseError, one_line

if TYPE_CHECKING:
    from flopwise.records.folder import RunFolder

ANSWERED = ("problems", "demos")
"""Kinds whose rows must have an answer where a task's verifier judges them."""
__all__ = ["Instructions", "build", "is_dataset", "run_step"]


def run_step(folder: RunFolder, parents: dict[str, RunFolder], progress: Callable[[float], None]) -> None:
    """Tokenise the dataset that the spec (`instruct_spec.InstructSpec`) names for the model of parent `init`.

    Without such a parent the tokenizer is that of parent `data`. Deterministic given spec, seed and the
    files; interrupted, it starts over.

    Raises:
        FlopwiseError: the dataset or a row of it is not as it must be; one line names the row.
    """
    from flopwise.flops.spend import Stopwatch
    from flopwise.records.record import Metric

    watch = Stopwatch()
    folder.sweep()
    about = build(checked(folder.spec), folder.path, parents, folder.seed, progress)
    splits = about["splits"]
    left_out = sum(kind["documents"] for kind in about["skipped"].values())
    folder.finish(
        metrics={
            "train_rows": Metric(value=splits["train"]["rows"]),
            "heldout_rows": Metric(value=splits["heldout"]["rows"]),
            "rows_left_out": Metric(value=left_out, n=about["rows"]),
            "train_tokens": Metric(value=splits["train"]["tokens"], n=splits["train"]["sequences"]),
        },
        spend=watch.spend(),
        data={
            "corpus": about["source"], "tokens_seen": None, "tokens_unique": splits["train"]["tokens"],
            "modality": "text",
        },
        extra={name: about[name] for name in ("kind", "notes", "ignored", "skipped", "cut", "duplicates")},
    )  # fmt: skip


def build(
    spec: InstructSpec,
    folder: Path,
    parents: dict[str, RunFolder],
    seed: int = 0,
    progress: Callable[[float], None] = lambda _: None,
) -> dict[str, Any]:
    """Write the dataset's files and, last, about.json into `folder`; returns what about.json says.

    Raises:
        FlopwiseError: see `run_step`.
    """
    if spec.task is not None and not is_table(spec.task):
        raise FlopwiseError(
            f"dataset: task {one_line(spec.task, 60)} judges no rows with answers; give "
            "table:ROWS,rule=number or another rule of docs/tasks.md"
        )
    chat, context = _reader(parents)
    limit = spec.max_length or context
    if limit is None:
        raise FlopwiseError(
            "dataset: max_length must be given where no model in the role init gives its context"
        )
    if context is not None and limit > context:
        raise FlopwiseError(
            f"dataset: max_length is {limit:,}, the model's context is {context:,}; must be at most that"
        )
    if spec.sha256 is not None and source_sha256(spec.path) != spec.sha256:
        raise FlopwiseError(f"dataset: {spec.path} has changed since it was asked for; start again with it")
    options = {k: v for k, v in (("split", spec.split), ("config", spec.config)) if v is not None}
    rows = Rows(
        spec.path, None if spec.format == "auto" else spec.format, options, spec.bad_rows == "drop",
        lambda share: progress(0.8 * share),
    )  # fmt: skip
    taken = _Taken(Encoder(chat, limit, spec.over_long == "truncate", spec.as_chat), rows, spec, limit)
    texts = Spool(folder / ".rows.tmp")
    try:
        keys = taken.all(texts, str(seed).encode())
        held = instruct_tokens.held_out(keys, spec.heldout_fraction)
        splits = {}
        for name, which in (("train", ~held), ("heldout", held)):
            arrays = taken.table.arrays(which)
            instruct_tokens.write(folder / f"{name}.safetensors", arrays)
            if rows.kind != "text":
                _write_lines(folder / f"{name}.jsonl", texts.texts(which))
            splits[name] = _sizes(arrays) | {"rows": int(which.sum())}
            progress(0.9)
    finally:
        texts.close()
    chat.tokenizer.save(folder)
    chat.save(folder)
    return write_about(
        folder,
        {
            "corpora": [], "kind": rows.kind, "source": one_line(spec.path, 200),
            "files": source_files(spec.path), "rows_sha256": rows.digest, "rows": rows.n_rows,
            "splits": splits, "skipped": rows.skipped.about(), "cut": taken.n_cut,
            "duplicates": taken.n_duplicates, "notes": list(rows.reading.notes), "ignored": rows.ignored,
            "max_length": limit, "over_long": spec.over_long, "task": spec.task,
            "chat_template": "the model's" if chat.own else "ChatML", "stop_ids": chat.stop_ids,
            "vocab_size": chat.tokenizer.vocab_size, "eos_id": chat.tokenizer.eos_id,
            "pad_id": chat.tokenizer.pad_id,
        },
    )  # fmt: skip


def _reader(parents: dict[str, RunFolder]) -> tuple[ChatTemplate, int | None]:
    """Tokenizer and template of the model, and its context."""
    if "init" not in parents:
        folder = parents["data"].path
        return ChatTemplate.load(folder, hub_tokenizer(str(folder))), None
    from flopwise.models import families

    folder = parents["init"].path / "model"
    chat = ChatTemplate.load(folder, hub_tokenizer(str(folder)))
    try:
        config = families.from_hf(json.loads((folder / "config.json").read_bytes()))
    except (OSError, ValueError) as e:
        raise FlopwiseError(f"model {folder}: config.json cannot be read ({type(e).__name__})") from e
    if chat.tokenizer.vocab_size > config.vocab_size:
        raise FlopwiseError(
            f"model {folder}: its tokenizer has {chat.tokenizer.vocab_size:,} ids, its embedding "
            f"{config.vocab_size:,}; give it the tokenizer it was made with"
        )
    return chat, config.max_seq_len


class _Taken:
    """Rows on their way into a table; what is left out is counted."""

    def __init__(self, encoder: Encoder, rows: Rows, spec: InstructSpec, limit: int):
        self.encoder, self.rows, self.spec, self.limit = encoder, rows, spec, limit
        self.table = Table()
        self.n_cut = self.n_duplicates = 0
        self.task = None if spec.task is None else task(spec.task)

    def all(self, texts: Spool, salt: bytes) -> np.ndarray:
        """Read to the end; a key [n] uint64 per row that is kept, of its prompt."""
        keys: list[int] = []
        seen: set[bytes] = set()
        for row in self.rows:
            if self._take(row, len(texts)):
                content = json.dumps(vars(row) | {"place": ""}, sort_keys=True).encode()
                digest = hashlib.blake2b(content, digest_size=8).digest()
                self.n_duplicates += digest in seen
                seen.add(digest)
                keys.append(_key(row, salt))
                texts.append((json.dumps(vars(row)) + "\n").encode() if self.rows.kind != "text" else b"")
            if len(texts) == self.spec.max_rows:
                break
        if not keys:
            raise FlopwiseError(
                f"dataset: no row of {one_line(self.spec.path, 120)} is left of {self.rows.n_rows:,}: "
                + "; ".join(f"{n:,} {reason}" for reason, n in self.rows.skipped.counts.most_common(3))
            )
        return np.array(keys, dtype=np.uint64)

    def _take(self, row: Row, number: int) -> bool:
        try:
            if self.task is not None and self.rows.kind in ANSWERED:
                self._judge(row)
            tokens = self.encoder.encode(row, self.rows.kind)
        except BadRow as e:
            self.rows.reject(row.place, e)
            return False
        except TooLong as e:
            if self.spec.over_long == "error":
                raise FlopwiseError(
                    f"data: {row.place}: {e.length:,} tokens, must be at most {self.limit:,} (max_length); "
                    "set over_long to drop or truncate, or take a model with a longer context"
                ) from e
            self.rows.skipped.add("too long", f"{row.place}, {e.length:,} tokens of at most {self.limit:,}")
            return False
        self.table.add(number, tokens)
        self.n_cut += tokens.cut
        return True

    def _judge(self, row: Row) -> None:
        """Whether the task can judge answers to a row."""
        if row.answer is None:
            raise BadRow("no answer", "has no answer, which the task's verifier needs")
        try:
            assert self.task is not None
            self.task.from_row({"prompt": "", "answer": row.answer})
        except FlopwiseError as e:
            raise BadRow("unfit answer", str(e)) from e


def _key(row: Row, salt: bytes) -> int:
    """A hash of the prompt; of a text, of itself."""
    content = json.dumps(row.prompt or row.answers, sort_keys=True).encode()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8, key=salt).digest(), "little")


def _sizes(arrays: dict[str, np.ndarray]) -> dict[str, int]:
    lengths = np.diff(arrays["starts"])
    return {
        "sequences": len(lengths), "tokens": int(lengths.sum()), "learned": int(arrays["said"].sum()),
        "longest": int(lengths.max(initial=0)),
    }  # fmt: skip


def _write_lines(path: Path, lines: Iterator[str]) -> None:
    from flopwise.records.folder import atomic_write

    atomic_write(path, "".join(lines))
