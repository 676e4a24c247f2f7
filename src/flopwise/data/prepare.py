"""The data step of a recipe with a task: corpora as any ladder's, disjoint problem sets, a check for leaks.

Without corpora it is a task alone: its demonstrations, and problems to be solved.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flopwise.data import contamination, corpora, shards, text
from flopwise.data.build import ABOUT_FILE, metrics, write_about
from flopwise.data.documents import TextStream
from flopwise.data.prepared import DEMO_SHARD, PreparedData
from flopwise.data.tasks import Demonstration, Task, task
from flopwise.data.tokenizer import Tokenizer, train_bpe
from flopwise.data.vocabulary import Range, Vocabulary
from flopwise.errors import FlopwiseError

if TYPE_CHECKING:
    from flopwise.records.folder import RunFolder

__all__ = ["ABOUT_FILE", "Demonstration", "PreparedData", "make_problems", "run_step"]


def run_step(folder: RunFolder, parents: dict[str, RunFolder], progress: Callable[[float], None]) -> None:
    """Prepare everything the spec (`launch.sections.DataSection`) asks for.

    Without corpora the tokenizer is that of the parent `init`, if there is one, else trained on the
    demonstrations. Deterministic given spec, seed and the corpora that could be had; interrupted, it starts
    over.

    Raises:
        FlopwiseError: unknown corpus or task, too little text, or a held-out problem stands in training text.
    """
    from flopwise.flops.spend import Stopwatch
    from flopwise.records.record import Metric

    watch = Stopwatch()
    spec = folder.spec
    folder.sweep()
    exercise = task(spec["task"])
    loaded, note = (
        corpora.load_with_fallback(spec["corpora"], max_chars=spec["max_chars"])
        if spec["corpora"]
        else ([], None)
    )
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
        report = _check_contamination((t for part in parts for t in part.texts()), demos, problems, exercise)
        progress(0.55)
        tokenizer = _tokenizer(spec, parts, demos, parents.get("init"))
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
    for name, asked in problems.items():
        if name != "demos":
            _write_rows(folder.path / f"{name}.jsonl", map(exercise.to_row, asked))
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
            "corpus": "+".join(c.name for c in loaded) or spec["task"], "modality": "text",
            "tokens_seen": None, "tokens_unique": tokens,
        },
        extra={"note": note, "corpora": entries},
    )  # fmt: skip


def make_problems(spec: dict[str, Any], seed: int) -> tuple[dict[str, list[Any]], list[Demonstration]]:
    """Disjoint problem sets `demos`, `rl`, `val` and `test`, and the demonstrations of the first.

    With `slice_problems` in the spec each slice of the task has sets of its own, as `val_rare` and
    `test_rare`: of a rare slice the other sets hold too few to measure. No demonstration shows a way to a
    validation or test problem, not even as a dead end.
    """
    exercise = task(spec["task"])
    problems = exercise.split(
        seed, demos=spec["demonstrations"], rl=spec["rl_problems"], val=spec["val_problems"],
        test=spec["test_problems"],
    )  # fmt: skip
    if size := spec.get("slice_problems"):
        taken = {p.key for part in problems.values() for p in part}
        for name in exercise.slices:
            more = exercise.generate(2 * size, seed, taken, slice=name)
            problems |= {f"val_{name}": more[:size], f"test_{name}": more[size:]}
    held_out = {p.key for p in _held_out(problems)}
    demos = [Demonstration(p.prompt, exercise.demonstration(p, seed, held_out)) for p in problems["demos"]]
    return problems, demos


def _held_out(problems: dict[str, list[Any]]) -> list[Any]:
    """All validation and test problems."""
    return [p for name, part in problems.items() if name not in ("demos", "rl") for p in part]


def _tokenizer(
    spec: dict[str, Any], parts: list[text.TextPart], demos: list[Demonstration], init: RunFolder | None
) -> Tokenizer:
    """Trained on the corpora; without any, that of the model which training starts from, else of the task."""
    if parts:
        return text.make_tokenizer({"kind": "bpe", "vocab_size": spec["vocab_size"]}, parts)
    if init is not None:
        return Tokenizer.load(init.path / "model")
    return train_bpe((d.prompt + d.completion for d in demos), spec["vocab_size"])


def _check_contamination(
    texts: Iterable[str], demos: list[Demonstration], problems: dict[str, list[Any]], exercise: Task[Any]
) -> contamination.Report:
    def everything() -> Iterator[str]:
        yield from (d.prompt + d.completion for d in demos)
        yield from texts

    report = contamination.check(everything(), _held_out(problems), exercise)
    if report.n_hits:
        raise FlopwiseError(
            f"data: {report.n_hits} passages of training text give held-out problems away, first "
            f"{report.examples[0]!r}; change recipe.seed or the corpora"
        )
    return report


def _write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    from flopwise.records.folder import atomic_write

    atomic_write(path, "".join(json.dumps(row) + "\n" for row in rows))
