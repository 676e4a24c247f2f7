"""Continuous batching: a row that ends leaves its slot at once to the next that waits.

(Yu et al. 2022, "Orca", section 3.1, call it iteration-level scheduling.) What a row writes depends on its
prompt and its own stream of random numbers, not on what runs beside it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from flopwise.infer.cache import Slots
from flopwise.infer.draw import Draw
from flopwise.infer.engine import SampleBatch, uniforms
from flopwise.infer.reading import Read, Reader

ENTER_AT = 8
"""Rows wait until an eighth of the slots is free: prompts are then read together."""


@dataclass
class Rows:
    """Samples to be made: their prompts, random streams, and how far each was before."""

    prompts: list[tuple[int, ...]]
    """Of each row."""
    stream: np.ndarray
    """[N] uint64"""
    offset: np.ndarray
    """[N] int64"""


@dataclass
class _Job:
    """A prompt, and the slots of its rows that are running."""

    prompt: tuple[int, ...]
    running: list[int] = field(default_factory=list)
    logits: Tensor | None = None


class Continuous:
    """One call's samples.

    Args:
        out: [N] rows in the order of `rows`; filled here.
        stop: token ids that end a row.
    """

    def __init__(
        self, reader: Reader, store: Slots, rows: Rows, draw: Draw, stop: Sequence[int], out: SampleBatch
    ):
        self.reader, self.store, self.rows, self.draw, self.out = reader, store, rows, draw, out
        self.stop = np.array(stop, dtype=np.int64)
        self.limit = out.ids.shape[1]
        jobs: dict[tuple[int, ...], _Job] = {}
        self.job = [jobs.setdefault(p, _Job(p)) for p in rows.prompts]
        # Rows of one prompt follow each other, so that its beginning is read once.
        number = {job.prompt: i for i, job in enumerate(jobs.values())}
        self.waiting = deque(sorted(range(len(rows.prompts)), key=lambda i: number[rows.prompts[i]]))
        self.free = list(range(store.count))[::-1]
        self.row = np.full(store.count, -1)
        self.length = np.zeros(store.count, dtype=np.int64)
        self.token = np.zeros(store.count, dtype=np.int64)
        self.spent = Read()

    def run(self, on_progress: Callable[[float], None] | None = None) -> Read:
        """Make all samples; returns what reading prompts took."""
        total, done = len(self.rows.prompts), 0
        while self.waiting or len(self.free) < self.store.count:
            if self.waiting and len(self.free) >= max(1, self.store.count // ENTER_AT):
                self._enter()
            live = np.flatnonzero(self.row >= 0)
            if len(live):
                logits = self.reader.forward(
                    self.token[live], live, self.length[live], np.ones(len(live), dtype=bool), self.store
                )
                self.length[live] += 1
                self._draw(live, logits)
            now = total - len(self.waiting) - (self.store.count - len(self.free))
            if on_progress and now > done:
                on_progress(now / total)
            done = now
        return self.spent

    def _enter(self) -> None:
        """Give free slots to rows that wait."""
        slots = np.array([self.free.pop() for _ in range(min(len(self.free), len(self.waiting)))])
        rows = [self.waiting.popleft() for _ in slots]
        fresh: dict[int, tuple[_Job, int]] = {}
        for slot, row in zip(slots.tolist(), rows, strict=True):
            job = self.job[row]
            if not job.running:
                fresh[id(job)] = job, slot
            job.running.append(slot)
        if fresh:
            prompts, homes = [job.prompt for job, _ in fresh.values()], [slot for _, slot in fresh.values()]
            logits, spent = self.reader.read(prompts, homes, self.store)
            self.spent.tokens += spent.tokens
            self.spent.flops += spent.flops
            for (job, _), row_logits in zip(fresh.values(), logits, strict=True):
                job.logits = row_logits
        for slot, row in zip(slots.tolist(), rows, strict=True):
            job = self.job[row]
            if job.running[0] != slot:
                self.store.copy(job.running[0], [slot], len(job.prompt))
            self.row[slot], self.length[slot] = row, len(job.prompt)
        self._draw(slots, torch.stack([self._logits(row) for row in rows]))

    def _logits(self, row: int) -> Tensor:
        logits = self.job[row].logits
        assert logits is not None
        return logits

    def _draw(self, slots: np.ndarray, logits: Tensor) -> None:
        """The next token of rows in `slots`; those that end leave."""
        rows, out = self.row[slots], self.out
        made = out.lengths[rows]
        u = uniforms(self.rows.stream[rows], self.rows.offset[rows] + made)
        token, logprob = (t.numpy() for t in self.draw(logits, torch.from_numpy(u).to(logits.dtype)))
        out.ids[rows, made], out.logprobs[rows, made] = token, logprob
        out.lengths[rows] += 1
        self.token[slots] = token
        stopped = (token[:, None] == self.stop).any(1)
        out.finished[rows] = stopped
        for slot in slots[stopped | (made + 1 == self.limit)].tolist():
            self._leave(slot)

    def _leave(self, slot: int) -> None:
        row = int(self.row[slot])
        job, made = self.job[row], int(self.out.lengths[row])
        if made > 1:
            # The last token was not read.
            written = self.out.ids[row, : made - 1].tolist()
            self.reader.tree.insert([*job.prompt, *written], self.store, slot)
        job.running.remove(slot)
        self.row[slot] = -1
        self.free.append(slot)
