"""Distillation from distributions: a teacher's cached ones, or its word on the student's own samples.

Sequences of a teacher are distilled by `posttrain.rejection` (methods verified-samples, distill-sequences).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from flopwise.data.tokenizer import hub_tokenizer
from flopwise.errors import FlopwiseError
from flopwise.posttrain.bench import Bench, Progress, load_model
from flopwise.posttrain.examples import Example, collate, epoch_rows, lengths
from flopwise.posttrain.rejection import read_examples
from flopwise.posttrain.teacher import TeacherLogits, attach, fingerprint, pass_flops, top_of
from flopwise.train.distill_objectives import distillation
from flopwise.train.objectives import Batch, Objective

if TYPE_CHECKING:
    from flopwise.records.folder import RunFolder


def run_step(folder: RunFolder, parents: dict[str, RunFolder], progress: Progress) -> None:
    """Teach parent `init` by the log-probabilities of parent `logits` (a run of teacher-logits).

    Raises:
        FlopwiseError: the vocabularies of teacher and student differ, or the file is damaged.
    """
    bench = Bench.open(folder, parents)
    spec, cache = bench.spec, TeacherLogits(parents["logits"].path)
    if fingerprint(bench.tokenizer) != cache.about["vocabulary"]:
        raise FlopwiseError(
            "distill-logits: teacher and student have different vocabularies, so token ids mean different "
            "texts; use distill-sequences, which the student's own tokenizer reads"
        )
    rows = epoch_rows(cache.sizes, spec["batch_size"], folder.seed)
    pad = bench.tokenizer.pad_id

    def next_batch(step: int) -> Batch:
        return cache.batch(rows(step), pad)

    counters = bench.fit(next_batch, spec["steps"], progress, _objective(spec, cache.about["temperature"]))
    about = {n: cache.about[n] for n in ("top_k", "temperature", "rest_mass")}
    bench.finish(counters, {}, int(cache.sizes.sum()), {"examples": len(cache), **about})


def on_policy_step(folder: RunFolder, parents: dict[str, RunFolder], progress: Progress) -> None:
    """Let parent `init` write, and parent `teacher` say at each token what it would have done.

    A step is on the student's own samples with a chance of `on_policy`, else on sequences of parent `samples`
    (on the demonstrations without one), also with the teacher's distributions (GKD, Agarwal et al., arXiv
    2306.13649, algorithm 1). Gradients do not go through the sampling.

    Raises:
        FlopwiseError: the vocabularies of teacher and student differ, or there are too few problems.
    """
    bench = Bench.open(folder, parents)
    spec = bench.spec
    counters = bench.fit(
        Lessons(bench, parents), spec["steps"], progress, _objective(spec, spec["teacher_temperature"])
    )
    bench.finish(counters, {}, None, {"steps": spec["steps"]})


def _objective(spec: dict[str, Any], temperature: float) -> Objective:
    return distillation(spec["beta"], temperature, spec["hard_weight"])


class Lessons:
    """Makes the batch of an on-policy step, which depends on the step, the seed and the student alone."""

    def __init__(self, bench: Bench, parents: dict[str, RunFolder]):
        self.bench, self.spec, self.seed = bench, bench.spec, bench.folder.seed
        self.teacher_id = parents["teacher"].id
        theirs = hub_tokenizer(str(parents["teacher"].path / "model"))
        if fingerprint(bench.tokenizer) != fingerprint(theirs):
            raise FlopwiseError(
                "distill-on-policy: teacher and student have different vocabularies, so the teacher cannot "
                "read the student's tokens; use distill-sequences"
            )
        self.teacher = load_model(parents["teacher"]).eval()
        self.k = min(self.spec["top_k"], self.teacher.cfg.vocab_size)
        self.pool = bench.problems("rl")
        self.size = self.spec["batch_size"]
        if len(self.pool) < self.size:
            raise FlopwiseError(
                f"distill-on-policy: a batch of {self.size} problems, but only {len(self.pool)} exist; lower "
                "batch_size"
            )
        self.given: list[Example] = []
        if self.spec["on_policy"] < 1:
            samples = parents.get("samples")
            self.given = read_examples(bench, samples) if samples else bench.demonstrations()
            self.rows = epoch_rows(lengths(self.given), self.size, self.seed)

    def __call__(self, step: int) -> Batch:
        """Sequences of the student or given ones, with the teacher's word on them."""
        if np.random.default_rng((self.seed, 31, step)).random() < self.spec["on_policy"]:
            batch = self.own(step)
        else:
            batch = collate([self.given[i] for i in self.rows(step)], self.bench.tokenizer.pad_id)
        start = time.perf_counter()
        attach(batch, *top_of(self.teacher, batch, self.k, self.spec["teacher_temperature"]))
        seconds = time.perf_counter() - start
        flops = pass_flops(self.teacher, batch)
        batch.ledger.post("teacher", self.teacher_id, batch.ids.numel(), flops, seconds)
        return batch

    def own(self, step: int) -> Batch:
        """One sample of the student for each problem of the step."""
        bench, spec = self.bench, self.spec
        problems = self.problems(step)
        seed = bench.folder.seed * 1_000_003 + step
        samples = bench.sample(problems, 1, seed, spec["temperature"], spec["max_tokens"])
        bench.model.train()
        batch = collate(bench.sampled_examples(problems, samples), bench.tokenizer.pad_id)
        batch.ledger.used("sample", bench.folder.id, samples.usage)
        batch.info = {"reward": float(bench.verify(problems, samples).mean())} if bench.asked.task else {}
        return batch

    def problems(self, step: int) -> list[Any]:
        """Each problem once an epoch, in a fresh order each time."""
        epoch, slot = divmod(step, len(self.pool) // self.size)
        order = np.random.default_rng((self.seed, 32, epoch)).permutation(len(self.pool))
        return [self.pool[i] for i in order[slot * self.size : (slot + 1) * self.size]]
