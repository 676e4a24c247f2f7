"""Synthetic data: made, verified, freed of duplicates, checked against the test set, filtered by quality.

What is left after each stage is counted by source, so that one sees where rows are lost.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from flopwise.data.dedup import near_duplicates
from flopwise.errors import FlopwiseError
from flopwise.flops.ledger import Ledger
from flopwise.flops.spend import Stopwatch
from flopwise.posttrain.bench import Bench, Progress, logprobs_of, model_fields
from flopwise.posttrain.examples import collate
from flopwise.posttrain.rejection import examples_of, write_rows
from flopwise.posttrain.slices import read_slices
from flopwise.posttrain.synthetic_sources import Row, Sources

if TYPE_CHECKING:
    from flopwise.records.folder import RunFolder

STAGES = ("made", "verified", "distinct", "not_alike", "clean", "kept")
STAGES_FILE = "stages.json"
SHINGLE = 3
"""Words of a run, by which two rows are compared: solutions are short texts."""
SCORED_ROWS = 256
PROGRAM_SPARE = 1.25
"""A program makes so many times the rows asked for, since some fall to duplicates and filters."""


@dataclass
class Stages:
    """Rows after each stage, by source."""

    counts: dict[str, dict[str, int]] = field(default_factory=dict)

    def note(self, stage: str, rows: Iterable[Row]) -> None:
        """Count the rows that a stage let through."""
        for source, n in Counter(row.source for row in rows).items():
            self.counts.setdefault(source, dict.fromkeys(STAGES, 0))[stage] = n

    def total(self, stage: str) -> int:
        """Over the sources."""
        return sum(counts[stage] for counts in self.counts.values())

    def lines(self) -> str:
        """In one line, for errors."""
        return "; ".join(
            f"{source}: " + ", ".join(f"{stage} {n}" for stage, n in counts.items())
            for source, counts in self.counts.items()
        )


def run_step(folder: RunFolder, parents: dict[str, RunFolder], progress: Progress) -> None:
    """Make up to `rows` rows from the spec's sources, with model `init` where one samples or judges
    likelihood.

    Rows are for the slices named in the spec, for those that parent `weak` (a run of weak-slices) found
    weak, or for all problems as they come. Deterministic; interrupted, it starts over.

    Raises:
        FlopwiseError: no row is left, no slice is weak, or a source cannot serve the task.
    """
    from flopwise.records.folder import atomic_write
    from flopwise.records.record import Metric

    watch, ledger, stages = Stopwatch(), Ledger(), Stages()
    bench = Bench.open(folder, parents)
    spec = bench.spec
    slices = wanted_slices(spec, parents.get("weak"))
    held_out = held_out_problems(bench)
    keys = {p.key for p in held_out}
    sources = Sources(bench, slices, keys, ledger, parents["init"].id, lambda f: progress(0.8 * f))
    made: list[Row] = []
    for source in spec["sources"]:
        made += sources.rows(source, math.ceil(PROGRAM_SPARE * spec["rows"]))
    stages.note("made", made)
    rows = verified(made, sources)
    stages.note("verified", rows)
    rows = distinct(rows, spec["keep_per_problem"])
    stages.note("distinct", rows)
    if spec["near_duplicates"]:
        texts = [row.problem.prompt + " " + row.completion for row in rows]
        rows = [rows[i] for i in near_duplicates(texts, spec["near_duplicates"], SHINGLE)]
    stages.note("not_alike", rows)
    rows = clean(rows, sources, held_out)
    stages.note("clean", rows)
    progress(0.9)
    rows, likelihood = by_quality(rows, bench, ledger, parents["init"].id)
    rows = spread(rows, spec["rows"])
    stages.note("kept", rows)
    if not rows:
        raise FlopwiseError(
            f"synthetic: no row is left ({stages.lines() or 'nothing was made'}); sample more, loosen the "
            "filters, or take another source"
        )
    write_rows(
        folder,
        ({"prompt": r.problem.prompt, "completion": r.completion, "source": r.source, "slice": r.slice}
         for r in rows),
    )  # fmt: skip
    by_slice = Counter(row.slice for row in rows)
    about = {"stages": stages.counts, "slices": dict(by_slice), "likelihood": likelihood}
    atomic_write(folder.path / STAGES_FILE, json.dumps(about, indent=1) + "\n")
    folder.finish(
        metrics={name: Metric(value=stages.total(name)) for name in STAGES}
        | {f"kept_{name}": Metric(value=n) for name, n in sorted(by_slice.items())},
        spend=watch.spend(ledger, tokens=sum(r["tokens"] for r in ledger.rows())),
        model=model_fields(bench.model),
        data={"corpus": bench.asked.task, "tokens_seen": 0, "tokens_unique": None, "modality": "text"},
        extra=about,
    )  # fmt: skip


def wanted_slices(spec: dict[str, Any], found: RunFolder | None) -> list[str] | None:
    """The slices to fill: named ones, those found weak, or None for all problems as they come.

    Raises:
        FlopwiseError: a search for weak slices found none.
    """
    if found is None:
        return spec.get("slices")
    weak = [row["slice"] for row in read_slices(found) if row["weak"]]
    if not weak:
        raise FlopwiseError(
            f"synthetic: run {found.name or found.id} found no slice that is weaker than the others by more "
            "than chance; name slices, or measure with more problems"
        )
    return weak


def held_out_problems(bench: Bench) -> list[Any]:
    """All validation and test problems there are, those of single slices too."""
    sets = bench.asked.about.get("problems", ("val", "test"))
    return [p for name in sets if name.startswith(("val", "test")) for p in bench.problems(name)]


def verified(rows: Sequence[Row], sources: Sources) -> list[Row]:
    """Those that the task's verifier accepts."""
    task = sources.task
    return [r for r in rows if (task.verify(r.problem, r.completion) if r.right is None else r.right)]


def distinct(rows: Sequence[Row], keep_per_problem: int) -> list[Row]:
    """Each completion of a problem once, and a few of each problem, so that easy ones do not crowd the
    set."""
    seen: dict[Any, set[str]] = {}
    out = []
    for row in rows:
        found = seen.setdefault(row.problem.key, set())
        if row.completion not in found and len(found) < keep_per_problem:
            found.add(row.completion)
            out.append(row)
    return out


def clean(rows: Sequence[Row], sources: Sources, held_out: Sequence[Any]) -> list[Row]:
    """Those that give no validation or test problem away, neither in the prompt nor by a worked attempt."""
    find = sources.task.detector(map(sources.judged, held_out))
    return [
        row for row in rows
        if row.problem.key not in sources.held_out
        and not any(passage.hit for passage in find(row.problem.prompt + row.completion))
    ]  # fmt: skip


def by_quality(
    rows: list[Row], bench: Bench, ledger: Ledger, model_id: str
) -> tuple[list[Row], dict[str, float] | None]:
    """Without what exceeds the model's context, without the longest `drop_long` share, and without the
    `drop_unlikely` share that the model finds least likely per token; also the quartiles of that likelihood,
    in nats per token, where it was taken."""
    spec = bench.spec
    examples = examples_of(bench, [(r.problem.prompt, r.completion) for r in rows])
    fits = [i for i, e in enumerate(examples) if len(e) - 1 <= bench.model.cfg.max_seq_len]
    rows, examples = [rows[i] for i in fits], [examples[i] for i in fits]
    if not rows or not (spec["drop_long"] or spec["drop_unlikely"]):
        return rows, None
    keep = np.ones(len(rows), dtype=bool)
    if spec["drop_long"]:
        sizes = np.array([len(e) for e in examples])
        keep &= sizes <= np.quantile(sizes, 1 - spec["drop_long"])
    if not spec["drop_unlikely"]:
        return [row for row, ok in zip(rows, keep, strict=True) if ok], None
    per_token = np.zeros(len(rows))
    for first in range(0, len(rows), SCORED_ROWS):
        start = time.perf_counter()
        batch = collate(examples[first : first + SCORED_ROWS], bench.tokenizer.pad_id)
        assert batch.weights is not None
        logprobs, flops = logprobs_of(bench.model, batch)
        per_token[first : first + SCORED_ROWS] = (logprobs * batch.weights).sum(1) / batch.weights.sum(1)
        ledger.post("score", model_id, batch.ids.numel(), flops, time.perf_counter() - start)
    keep &= per_token >= np.quantile(per_token, spec["drop_unlikely"])
    quartiles = {f"q{q}": float(np.quantile(per_token, q / 100)) for q in (25, 50, 75)}
    return [row for row, ok in zip(rows, keep, strict=True) if ok], quartiles


def spread(rows: Sequence[Row], n: int) -> list[Row]:
    """The first n, taken in turn from each slice and source, so that none is filled by what is easy to
    make."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.slice, row.source), []).append(row)
    turns = sorted(
        ((place, group, row) for group, members in groups.items() for place, row in enumerate(members)),
        key=lambda turn: turn[:2],
    )
    return [row for _, _, row in turns[:n]]
