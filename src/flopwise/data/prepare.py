"""The demo's data step: its corpora as any ladder's, the task's disjoint problem sets, a check for leaks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flopwise.data import contamination, corpora, countdown, shards, text
from flopwise.data.build import ABOUT_FILE, metrics, write_about
from flopwise.data.countdown import TASKS, Problem
from flopwise.data.documents import TextStream
from flopwise.data.prepared import DEMO_SHARD, Demonstration, PreparedData
from flopwise.data.vocabulary import Range, Vocabulary
from flopwise.errors import FlopwiseError

if TYPE_CHECKING:
    from flopwise.records.folder import RunFolder

__all__ = ["ABOUT_FILE", "Demonstration", "PreparedData", "make_problems", "run_step"]


def run_step(folder: RunFolder, parents: dict[str, RunFolder], progress: Callable[[float], None]) -> None:
    """Prepare everything the spec (`launch.sections.DataSection`) asks for.

    Deterministic given spec, seed and the corpora that could be had; interrupted, it starts over.

    Raises:
        FlopwiseError: unknown corpus or task, too little text, or a held-out problem stands in training text.
    """
    from flopwise.flops.spend import Stopwatch
    from flopwise.records.record import Metric

    watch = Stopwatch()
    spec = folder.spec
    folder.sweep()
    if spec["task"] not in TASKS:
        raise FlopwiseError(f"data.task is {spec['task']!r:.60}, must be one of {', '.join(TASKS)}")
    loaded, note = corpora.load_with_fallback(spec["corpora"], max_chars=spec["max_chars"])
    progress(0.25)
    parts: list[text.TextPart] = []
    try:
        for corpus in loaded:
            stream = TextStream(corpus.name, iter(corpus.documents), corpus.license, corpus.source)
            parts.append(
                text.read(stream, folder.path, seed=folder.seed, heldout_fraction=spec["heldout_fraction"])
            )
        progress(0.45)
        problems, demos = make_problems(spec, folder.seed)
        report = _check_contamination((t for part in parts for t in part.texts()), demos, problems)
        progress(0.55)
        tokenizer = text.make_tokenizer({"kind": "bpe", "vocab_size": spec["vocab_size"]}, parts)
        tokenizer.save(folder.path)
        progress(0.65)
        ids = Vocabulary((Range("text", tuple(c.name for c in loaded), 0, tokenizer.vocab_size),))
        overlaps = text.overlaps(parts)
        entries = []
        for i, part in enumerate(parts, 1):
            entries.append(text.write(part, tokenizer, folder.path, ids, overlaps[part.name]))
            progress(0.65 + 0.3 * i / len(parts))
    finally:
        for part in parts:
            part.close()
    demo_tokens = shards.write(
        text.encoded((d.prompt + d.completion for d in demos), tokenizer),
        folder.path / DEMO_SHARD, ids.eos_id, ids.size,
    )  # fmt: skip
    _write_rows(folder.path / "demos.jsonl", (asdict(d) for d in demos))
    for name in ("rl", "val", "test"):
        _write_rows(
            folder.path / f"{name}.jsonl",
            ({"numbers": p.numbers, "target": p.target} for p in problems[name]),
        )
    write_about(
        folder.path,
        {
            "corpora": entries, "task": spec["task"], "vocab_size": ids.size, "vocabulary": ids.about(),
            "eos_id": ids.eos_id, "pad_id": ids.pad_id, "demonstration_tokens": demo_tokens,
            "problems": {name: len(part) for name, part in problems.items()},
            "contamination": asdict(report), "note": note,
        },
    )  # fmt: skip
    measured = metrics(entries)
    tokens = int(measured["train_tokens"].value or 0) + demo_tokens
    folder.finish(
        metrics=measured
        | {
            "train_tokens": Metric(value=tokens),
            "demonstration_tokens": Metric(value=demo_tokens, n=len(demos)),
            "contamination_hits": Metric(value=report.n_hits, n=report.n_texts),
        },
        spend=watch.spend(),
        data={
            "corpus": "+".join(c.name for c in loaded), "tokens_seen": None, "tokens_unique": tokens,
            "modality": "text",
        },
        extra={"note": note, "corpora": entries},
    )  # fmt: skip


def make_problems(spec: dict[str, Any], seed: int) -> tuple[dict[str, list[Problem]], list[Demonstration]]:
    """Disjoint problem sets `demos`, `rl`, `val` and `test`, and the demonstrations of the first.

    No demonstration shows a way to a validation or test problem, not even as a dead end.
    """
    largest, dead_ends = TASKS[spec["task"]]
    problems = countdown.split(
        seed, largest=largest, demos=spec["demonstrations"], rl=spec["rl_problems"],
        val=spec["val_problems"], test=spec["test_problems"],
    )  # fmt: skip
    held_out = {p.key for p in problems["val"] + problems["test"]}
    demos = [
        Demonstration(p.prompt, countdown.demonstration(p, seed, held_out, dead_ends))
        for p in problems["demos"]
    ]
    return problems, demos


def _check_contamination(
    texts: Iterable[str], demos: list[Demonstration], problems: dict[str, list[Problem]]
) -> contamination.Report:
    def everything() -> Iterator[str]:
        yield from (d.prompt + d.completion for d in demos)
        yield from texts

    report = contamination.check(everything(), problems["val"] + problems["test"])
    if report.n_hits:
        raise FlopwiseError(
            f"data: {report.n_hits} passages of training text give held-out problems away, first "
            f"{report.examples[0]!r}; change recipe.seed or the corpora"
        )
    return report


def _write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    from flopwise.records.folder import atomic_write

    atomic_write(path, "".join(json.dumps(row) + "\n" for row in rows))
