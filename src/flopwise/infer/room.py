"""Where strategies work: engine, problems as it is asked them, scorers, limits; and what all of it costs.

FLOPs are counted per problem and purpose. A prompt is read once for all its samples; going on from something
that was written costs its last token alone, as its keys and values are still there (a prefix cache). A scorer
reads whole answers whole; of partial ones, where it keeps keys and values too, only what is new.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from flopwise.flops.count import decode_flops, decode_pairs, prefill_flops
from flopwise.infer.engine import Engine, Usage
from flopwise.infer.samples import Samples
from flopwise.infer.scorers import Scorer, StepChecker, Written, need, reads_on, scorer_of
from flopwise.infer.steps import STEP_ENDS, step_tokens
from flopwise.infer.strategies.base import Candidate, Choice, Outcome, TraceStep

if TYPE_CHECKING:
    from flopwise.data.tasks import Task
    from flopwise.data.tokenizer import Tokenizer
    from flopwise.infer.asking import Asked
    from flopwise.models.config import ModelConfig

Node = tuple[int, tuple[int, ...]]
"""A problem's place, and the token ids written for it so far."""
VALUERS = ("process", "reward", "probe", "judge")
"""By which a partial answer is valued: the first of these in the room, else the task's checker."""


@dataclass(frozen=True)
class Row:
    """What was written in one go, after the prefix at place `parent` of those asked for.

    `tokens` holds the stop token too, `logprob` is theirs alone, in nats; `finished` says that one of the
    tokens asked to stop at was drawn, `ended` that it ends the completion.
    """

    problem: int
    parent: int
    tokens: tuple[int, ...]
    logprob: float
    finished: bool
    ended: bool


@dataclass
class Room:
    """See the module's text.

    Args:
        max_tokens: of a completion, whatever it is written in pieces of.
        temperature: where a strategy asks for none of its own.
        scorers: by name, see `infer.scorers.NAMES`.
        keys: of the problems' random streams, below 2**63; by default made of the prompts, so that a problem
            gets the same samples whatever is asked beside it.
        step_chars: characters that close a step.
    """

    engine: Engine
    tokenizer: Tokenizer
    task: Task[Any]
    problems: list[Any]
    asked: Asked
    max_tokens: int
    temperature: float = 1.0
    scorers: dict[str, Scorer] = field(default_factory=dict)
    keys: list[int] = field(default_factory=list)
    step_chars: str = STEP_ENDS
    flops: dict[str, np.ndarray] = field(init=False)
    """By purpose (prefill, decode, score): [P] FLOPs since the room is fresh."""
    tokens: np.ndarray = field(init=False)
    """[P] tokens written."""
    usage: Usage = field(init=False)
    """What the engine says it computed, prefixes that it had to read again included."""
    clock: dict[str, float] = field(init=False)
    """Seconds in the engine (`sample`) and in each scorer."""

    def __post_init__(self) -> None:
        P = len(self.problems)
        self.keys = self.keys or [_key(ids) for ids in self.asked.ids]
        self.flops = {purpose: np.zeros(P) for purpose in ("prefill", "decode", "score")}
        self.tokens, self.usage, self.clock = np.zeros(P, dtype=np.int64), Usage(), {"sample": 0.0}
        self._known = [_Known() for _ in range(P)]
        self._valued: dict[str, list[_Known]] = {}
        self._checker = StepChecker(self.task)

    def fresh(self) -> Room:
        """The same room with nothing spent and nothing known."""
        return replace(self)

    @property
    def seconds(self) -> float:
        """By the clock, in the engine and the scorers."""
        return sum(self.clock.values())

    @property
    def cfg(self) -> ModelConfig | None:
        """Of the model; None behind a server, where FLOPs are not known and count as 0."""
        return getattr(self.engine, "cfg", None)

    @cached_property
    def step_ends(self) -> list[int]:
        """Ids of the tokens that close a step.

        Raises:
            FlopwiseError: there is none.
        """
        return step_tokens(self.tokenizer, self.step_chars)

    def sample(
        self, prefixes: Sequence[Node], n: int = 1, limit: int | None = None,
        stop: Sequence[int] | None = None, seed: int = 0, temperature: float | None = None,
    ) -> list[Row]:  # fmt: skip
        """n ways to go on from each prefix, prefix-major.

        What is drawn depends on the seed, the problem, the prefix and (where a prefix is listed again) which
        time it is, not on what else is asked; give each round of a strategy its own seed.

        Args:
            limit: of new tokens; a completion never gets longer than `max_tokens` in all, nor beyond the
                model's context: where nothing may be added a row has no tokens and is not finished.
            stop: token ids; by default those that end a completion. For a step: `asked.stop + step_ends`.
        """
        stop = list(self.asked.stop if stop is None else stop)
        temperature = self.temperature if temperature is None else temperature
        context = None if self.cfg is None else self.cfg.max_seq_len
        seen: dict[Node, int] = {}
        keys, allowed = [], []
        for p, written in prefixes:
            time_ = seen.get((p, written), 0)
            seen[p, written] = time_ + 1
            keys.append(self.keys[p] if not written and not time_ else _key([self.keys[p], time_, *written]))
            free = self.max_tokens - len(written)
            free = free if limit is None else min(free, limit)
            if context is not None:
                free = min(free, context - len(self.asked.ids[p]) - len(written))
            allowed.append(free)
        rows: list[list[Row]] = [[Row(p, i, (), 0.0, False, False)] * n for i, (p, _) in enumerate(prefixes)]
        ends = set(self.asked.stop)
        for places in _batches([len(self.asked.ids[p]) + len(w) for p, w in prefixes], allowed, context):
            out = self.engine.sample(
                [[*self.asked.ids[prefixes[i][0]], *prefixes[i][1]] for i in places], n,
                max(allowed[i] for i in places), stop, temperature, seed=seed, keys=[keys[i] for i in places],
            )  # fmt: skip
            self._used(out.usage)
            for at, place in enumerate(places):
                p = prefixes[place][0]
                for s in range(n):
                    row = at * n + s
                    m = int(min(out.lengths[row], allowed[place]))
                    ids = tuple(out.ids[row, :m].tolist())
                    finished = bool(out.finished[row]) and m == int(out.lengths[row])
                    logprob = float(out.logprobs[row, :m].sum())
                    rows[place][s] = Row(p, place, ids, logprob, finished, finished and ids[-1] in ends)
                self._charge(prefixes[place], [len(r.tokens) for r in rows[place]])
        for (_, written), each in zip(prefixes, rows, strict=True):
            for r in each:
                self._known[r.problem].add((*written, *r.tokens[:-1]))
        return [r for each in rows for r in each]

    def samples(
        self, n: int, seed: int = 0, scores: Sequence[str] = (), temperature: float | None = None,
        on_progress: Callable[[float], None] | None = None,
    ) -> Samples:  # fmt: skip
        """n whole completions of every problem, judged, and scored by the scorers that give `scores`.

        Raises:
            FlopwiseError: a scorer is not in the room, or the engine refuses.
        """
        names = list(dict.fromkeys(scorer_of(s) for s in scores))
        for name in names:
            need(self.scorers, name, "samples")
        P, before_s = len(self.problems), self.seconds
        temperature = self.temperature if temperature is None else temperature
        share = 0.7 if names else 1.0
        out = self.engine.sample(
            self.asked.ids, n, self.max_tokens, self.asked.stop, temperature, seed=seed, keys=self.keys,
            on_progress=None if on_progress is None else lambda f: on_progress(share * f),
        )  # fmt: skip
        self._used(out.usage)
        completions = out.completions(strip_stop=False)
        texts = self.tokenizer.decode_batch(out.completions())
        written = [
            Written(self.problems[p], tuple(self.asked.ids[p]), tuple(ids), text, bool(done))
            for p, ids, text, done in zip(out.prompt_index, completions, texts, out.finished, strict=True)
        ]
        lengths = out.lengths.reshape(P, n)
        before = {purpose: spent.copy() for purpose, spent in self.flops.items()}
        decode = np.stack([self._charge((p, ()), lengths[p].tolist()) for p in range(P)])
        decode = lengths.astype(float) if self.cfg is None else decode
        by: dict[str, np.ndarray] = {}
        flops: dict[str, np.ndarray] = {}
        for i, name in enumerate(names):
            with self._timed(name):
                found = self.scorers[name].score(written)
            each = found.flops.reshape(P, n)
            self.flops["score"] += each.sum(axis=1)
            by |= {key: values.reshape(P, n) for key, values in found.by.items()}
            flops |= dict.fromkeys(found.by, each)
            if on_progress is not None:
                on_progress(share + (1 - share) * (i + 1) / len(names))
        verdicts = [self._verdict(w) for w in written]
        rows = range(0, P * n, n)
        return Samples(
            problems=[problem.prompt for problem in self.problems],
            correct=np.array([right for right, _ in verdicts]).reshape(P, n),
            answers=[[answer for _, answer in verdicts[i : i + n]] for i in rows],
            logprob=out.logprobs.sum(axis=1, dtype=float).reshape(P, n), tokens=lengths,
            finished=out.finished.reshape(P, n), prefill_flops=self.flops["prefill"] - before["prefill"],
            decode_flops=decode, scores=by, score_flops=flops, seconds=self.seconds - before_s,
            texts=[texts[i : i + n] for i in rows], unit="tokens" if self.cfg is None else "FLOPs",
        )  # fmt: skip

    def values(self, nodes: Sequence[Node], by: str | None = None) -> np.ndarray:
        """How good partial answers look, [N] in [0, 1]: the chance that what comes of them will be right.

        Args:
            by: a scorer's name, or `checker`; by default the first of `VALUERS`, else the checker.
        """
        by = by or next((name for name in VALUERS if name in self.scorers), "checker")
        scorer = self._checker if by == "checker" else need(self.scorers, by, "values")
        if not len(nodes):
            return np.zeros(0)
        with self._timed(by):
            found, flops = scorer.values(self._written(nodes))
        if reads_on(scorer):
            known = self._valued.setdefault(by, [_Known() for _ in self.problems])
            flops = flops * np.array([self._unread(known, node) for node in nodes])
        for (p, _), cost in zip(nodes, flops, strict=True):
            self.flops["score"][p] += cost
        return found

    def candidates(
        self, nodes: Sequence[Node], logprobs: Sequence[float] | None = None, scores: Sequence[str] = ()
    ) -> list[Candidate]:
        """Completions judged by the verifier and scored; one without a final stop token abstains.

        Args:
            logprobs: of the whole completions, in nats; NaN where not given.
        """
        written = self._written(nodes)
        by: list[dict[str, float]] = [{} for _ in nodes]
        steps: list[tuple[float, ...]] = [()] * len(nodes)
        for name in dict.fromkeys(scorer_of(s) for s in scores):
            with self._timed(name):
                found = need(self.scorers, name, "candidates").score(written)
            steps = found.steps or steps
            for i, (p, _) in enumerate(nodes):
                self.flops["score"][p] += found.flops[i]
                by[i] |= {key: float(values[i]) for key, values in found.by.items()}
        given = [float("nan")] * len(nodes) if logprobs is None else logprobs
        rows = zip(written, map(self._verdict, written), given, by, steps, strict=True)
        return [
            Candidate(w.text, answer, float(logprob), len(w.tokens), right, row, step)
            for w, (right, answer), logprob, row, step in rows
        ]

    def candidate(
        self, problem: int, tokens: tuple[int, ...], logprob: float = float("nan"), scores: Sequence[str] = ()
    ) -> Candidate:
        """One completion as `candidates` gives it."""
        return self.candidates([(problem, tokens)], [logprob], scores)[0]

    def outcome(
        self, problem: int, candidates: list[Candidate], choice: Choice, trace: list[TraceStep]
    ) -> Outcome:
        """A decision with all that was spent on the problem since the room is fresh."""
        flops = {purpose: float(spent[problem]) for purpose, spent in self.flops.items()}
        return Outcome(candidates, choice, flops, int(self.tokens[problem]), trace)

    def text(self, tokens: Sequence[int]) -> str:
        """What token ids say, without a final stop token."""
        body = tokens[:-1] if len(tokens) and tokens[-1] in self.asked.stop else tokens
        return self.tokenizer.decode(body)

    def _written(self, nodes: Sequence[Node]) -> list[Written]:
        ends = set(self.asked.stop)
        done = [bool(tokens) and tokens[-1] in ends for _, tokens in nodes]
        bodies = [tokens[:-1] if d else tokens for (_, tokens), d in zip(nodes, done, strict=True)]
        texts = self.tokenizer.decode_batch(bodies)
        return [
            Written(self.problems[p], tuple(self.asked.ids[p]), tuple(tokens), text, d)
            for (p, tokens), text, d in zip(nodes, texts, done, strict=True)
        ]

    def _used(self, usage: Usage) -> None:
        self.usage += usage
        self.clock["sample"] += usage.seconds

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.clock[name] = self.clock.get(name, 0.0) + time.perf_counter() - start

    def _verdict(self, written: Written) -> tuple[bool, str | None]:
        """A completion cut short at the limit neither votes nor counts as right."""
        if not written.finished:
            return False, None
        return self.task.verify(written.problem, written.text), self.task.answer(written.text)

    def _charge(self, node: Node, lengths: Sequence[int]) -> np.ndarray:
        """Count rows of new tokens after a prefix; returns the FLOPs of writing each [rows]."""
        p, written = node
        self.tokens[p] += sum(lengths)
        cfg = self.cfg
        if cfg is None:
            return np.zeros(len(lengths))
        whole = len(self.asked.ids[p]) + len(written)
        if share := self._unread(self._known, node):  # else its logits are known as well
            # Each token that is read attends to all the text (as `flops.count` counts a prompt).
            body, head = prefill_flops(cfg, whole, 0).total, prefill_flops(cfg, whole, 1).total
            self.flops["prefill"][p] += body * share + head - body
        base = decode_flops(cfg, 0).total
        per_position = decode_flops(cfg, 1).total - base
        passes = [max(0, m - 1) for m in lengths]  # the first token comes of what was read
        each = np.array([base * m + per_position * decode_pairs(cfg, whole, m) for m in passes])
        self.flops["decode"][p] += each.sum()
        return each

    def _unread(self, known: list[_Known], node: Node) -> float:
        """Share of a prompt and what is written after it that has to be read, given what is known."""
        p, written = node
        cached = known[p].cached(written)
        if cached is None:
            return 0.0
        whole = len(self.asked.ids[p]) + len(written)
        return 1.0 if cached < 0 else (len(written) - cached) / whole


class _Known:
    """Of one problem, what keys and values are there for: everything that was read or written so far."""

    def __init__(self) -> None:
        self.asked: set[tuple[int, ...]] = set()
        self.new: list[tuple[int, ...]] = []
        self.nodes: dict[tuple[int, int], int] = {}

    def add(self, tokens: tuple[int, ...]) -> None:
        self.new.append(tokens)

    def cached(self, tokens: tuple[int, ...]) -> int | None:
        """How many of the tokens need not be read again; -1: not even the prompt was; None: the very same was
        gone on from before. The last token is always read, for the logits after it."""
        if tokens in self.asked:
            return None
        first = not self.asked
        self.asked.add(tokens)
        if first:
            self.new.append(tokens)
            return -1
        for row in self.new:
            at = 0
            for token in row:
                at = self.nodes.setdefault((at, token), len(self.nodes) + 1)
        self.new, at, length = [tokens], 0, 0
        for token in tokens:
            found = self.nodes.get((at, token))
            if found is None:
                break
            at, length = found, length + 1
        return min(length, len(tokens) - 1)


def _batches(begun: Sequence[int], allowed: Sequence[int], context: int | None) -> list[list[int]]:
    """Places of rows that may be sampled together: all have room for the longest continuation among them,
    and none may go on for less than half of it, since what is written beyond a row's limit is thrown away."""
    found: list[list[int]] = []
    longest: list[int] = []
    for i in sorted((i for i, free in enumerate(allowed) if free > 0), key=lambda i: -allowed[i]):
        for batch, limit in zip(found, longest, strict=True):
            if allowed[i] * 2 >= limit and (context is None or begun[i] + limit <= context):
                batch.append(i)
                break
        else:
            found.append([i])
            longest.append(allowed[i])
    return [sorted(batch) for batch in found]


def _key(ids: Sequence[int]) -> int:
    """A number below 2**63 made of ids."""
    digest = hashlib.sha256(np.asarray(ids, dtype=np.int64).tobytes()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
