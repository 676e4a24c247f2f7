"""Speculative decoding: a small model writes ahead, the large one checks several tokens in one pass.

Leviathan et al. (arXiv 2211.17192, algorithm 1) and Chen et al. (arXiv 2302.01318, algorithm 2): a drafted
token x is kept with probability min(1, p(x) / q(x)), p of the large model and q of the small one, both as
they are drawn from (temperature, top-k, top-p); the first that is not kept is drawn anew from max(p - q, 0)
over its sum. Samples have the large model's distribution exactly, whatever the small one is; greedy text is
the same. They are other samples than `LocalEngine` draws by the same seed. A large model in 8 or 4 bits
rounds the activations of up to four tokens at once, not of more (`models/native_infer.cpp`), so its p depends
a little on how many are checked together.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from flopwise.errors import FlopwiseError
from flopwise.flops.count import decode_flops, head_flops
from flopwise.infer.cache import Slots
from flopwise.infer.draw import Draw, invert
from flopwise.infer.engine import SampleBatch, Usage, uniforms
from flopwise.infer.local import LocalEngine, Prepared
from flopwise.infer.reading import Reader

DRAWS = 3
"""Random numbers of a position: what the small model drafts, whether it is kept, what is drawn instead."""


@dataclass
class Drafted:
    """How drafts fared: tokens that were drafted, and those that were kept."""

    drafted: int = 0
    kept: int = 0

    @property
    def rate(self) -> float:
        """Share kept."""
        return self.kept / max(1, self.drafted)


class SpeculativeEngine:
    """`infer.engine.Engine` that samples from a large model with a small one's help.

    Args:
        large: what is sampled from; a continuous engine (`weights` or `prefix_cache`).
        small: the same vocabulary, ids meaning the same; likewise continuous.
        ahead: tokens drafted at a time.

    Raises:
        FlopwiseError: vocabularies of other sizes, engines that work in waves, or nothing to draft.
    """

    def __init__(self, large: LocalEngine, small: LocalEngine, ahead: int = 4):
        sizes = large.cfg.vocab_size, small.cfg.vocab_size
        if sizes[0] != sizes[1]:
            raise FlopwiseError(
                f"speculative: vocabularies of {sizes[0]} and {sizes[1]}; both models need one tokenizer"
            )
        if large.reader is None or small.reader is None:
            raise FlopwiseError("speculative: both engines must be made with weights, for example 'float32'")
        if ahead < 1:
            raise FlopwiseError(f"speculative: ahead={ahead} must be at least 1")
        self.large, self.small, self.ahead, self.cfg = large, small, ahead, large.cfg
        self.drafted = Drafted()

    def sample(
        self, prompts: Sequence[Sequence[int]], n: int = 1, max_tokens: int = 64, stop: Sequence[int] = (),
        temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None, seed: int = 0,
        prefix_tokens: Sequence[Sequence[int]] | None = None,
        on_progress: Callable[[float], None] | None = None, keys: Sequence[int] | None = None, first: int = 0,
    ) -> SampleBatch:  # fmt: skip
        """As `LocalEngine.sample`; `usage` counts both models, drafts that were not kept among them."""
        start = time.perf_counter()
        setting = max_tokens, temperature, top_k, top_p, seed, prefix_tokens, keys, first
        asked = self.large.prepare(prompts, n, *setting)
        self.small.prepare(prompts, n, *setting)
        out, texts = asked.out, [tuple(p) for p in asked.prompts for _ in range(asked.n)]
        draw = Draw(temperature, top_k, top_p)
        tokens = max(map(len, texts)) + max_tokens + self.ahead
        # A compiled or torch model keeps keys and values in four bytes at most.
        at_once = min(engine.rows_at_once(tokens, 4) for engine in (self.large, self.small))
        for begin in range(0, len(texts), at_once):
            rows = np.arange(begin, min(begin + at_once, len(texts)))
            _Chunk(self, [texts[i] for i in rows], rows, asked, draw, stop).run()
            if on_progress:
                on_progress(min(1.0, (begin + at_once) / len(texts)))
        out.usage.decode_tokens = int(out.lengths.sum())
        out.usage.seconds = time.perf_counter() - start
        return out

    def score(self, sequences: Sequence[Sequence[int]], prompt_lengths: Sequence[int]) -> list[np.ndarray]:
        """The large model's (`LocalEngine.score`)."""
        return self.large.score(sequences, prompt_lengths)


class _Chunk:
    """Rows that are sampled together, each with a slot of both models' caches."""

    def __init__(
        self, engine: SpeculativeEngine, whole: list[tuple[int, ...]], rows: np.ndarray, asked: Prepared,
        draw: Draw, stop: Sequence[int],
    ):  # fmt: skip
        self.engine, self.rows, self.draw, self.out, self.stop = engine, rows, draw, asked.out, set(stop)
        self.stream, self.offset = asked.stream[rows], asked.offset[rows]
        self.context = min(engine.large.cfg.max_seq_len, engine.small.cfg.max_seq_len)
        assert engine.large.reader is not None and engine.small.reader is not None
        self.readers = engine.large.reader, engine.small.reader
        capacity = min(self.context, max(map(len, whole)) + self.out.ids.shape[1] + engine.ahead)
        self.stores = [e.slots(len(rows), capacity) for e in (engine.large, engine.small)]
        self.texts = [list(t) for t in whole]
        self.logits = self._read()
        self.drafted_until = np.array([len(t) for t in whole])
        """Tokens of each text that the small model has read."""

    def _read(self) -> Tensor:
        """Prompts into both caches; the large model's logits after each row's."""
        number = {t: i for i, t in enumerate(dict.fromkeys(map(tuple, self.texts)))}
        homes = [self.texts.index(list(t)) for t in number]
        all_logits = []
        for reader, store in zip(self.readers, self.stores, strict=True):
            logits, spent = reader.read(list(number), homes, store)
            self.out.usage += Usage(spent.tokens, 0, spent.flops)
            for slot, text in enumerate(self.texts):
                home = homes[number[tuple(text)]]
                if slot != home:
                    store.copy(home, [slot], len(text))
            all_logits.append(logits)
        return all_logits[0][[number[tuple(t)] for t in self.texts]]

    def run(self) -> None:
        """First a token from the prompt's logits, then rounds of drafting and checking."""
        live = np.arange(len(self.rows))
        first = invert(self.draw.probabilities(self.logits), self._uniform(live, 0, 2))
        live = live[self._write(live, first.numpy()[:, None], np.ones(len(live), int), self.logits[:, None])]
        while len(live):
            longest = max(len(self.texts[i]) for i in live)
            # The same for all rows and rounds, so that a sample does not depend on what runs beside it, until
            # a text comes to the end of the context.
            drafts, q = self._draft(live, min(self.engine.ahead, self.context - longest))
            live = live[self._check(live, drafts, q)]

    def _uniform(self, live: np.ndarray, ahead: int, which: int) -> Tensor:
        """A random number for each row's position `ahead` tokens on."""
        position = self.offset[live] + self.out.lengths[self.rows[live]] + ahead
        return torch.from_numpy(uniforms(self.stream[live], DRAWS * position + which)).float()

    def _draft(self, live: np.ndarray, ahead: int) -> tuple[np.ndarray, Tensor]:
        """Tokens [R, ahead] that the small model writes, and what it drew them from [R, ahead, V]."""
        reader, store = self.readers[1], self.stores[1]
        drafts = np.zeros((len(live), ahead), dtype=np.int64)
        q = torch.zeros(len(live), ahead, self.engine.cfg.vocab_size)
        unread = [self.texts[i][self.drafted_until[i] :] for i in live]
        for k in range(ahead):
            logits = self._forward(reader, store, live, unread, last_only=True)
            q[:, k] = self.draw.probabilities(logits)
            drafts[:, k] = invert(q[:, k], self._uniform(live, k, 0)).numpy()
            for place, i in enumerate(live):
                self.drafted_until[i] += len(unread[place])
            unread = [[int(token)] for token in drafts[:, k]]
        return drafts, q

    def _forward(
        self, reader: Reader, store: Slots, live: np.ndarray, tokens: list[list[int]], last_only: bool
    ) -> Tensor:
        """Run some tokens of each row, which follow what its slot holds; logits after the last, or all."""
        sizes = np.array([len(t) for t in tokens])
        begins = self.drafted_until[live] if last_only else np.array([len(self.texts[i]) - 1 for i in live])
        positions = np.concatenate([np.arange(b, b + n) for b, n in zip(begins, sizes, strict=True)])
        wanted = np.full(len(positions), not last_only)
        wanted[sizes.cumsum() - 1] = True
        cfg = reader.forward.cfg
        spent = sum(decode_flops(cfg, int(p) + 1).total for p in positions)
        self.out.usage.flops += spent - (~wanted).sum() * head_flops(cfg, 1, cfg.vocab_size, False).total
        ids = np.concatenate([np.array(t, dtype=np.int64) for t in tokens])
        return reader.forward(ids, np.repeat(live, sizes), positions, wanted, store)

    def _check(self, live: np.ndarray, drafts: np.ndarray, q: Tensor) -> np.ndarray:
        """Check drafts [R, A] in one pass, write what is kept and one token more; which rows [R] go on."""
        A = drafts.shape[1]
        given = [[self.texts[i][-1], *row.tolist()] for i, row in zip(live, drafts, strict=True)]
        logits = self._forward(self.readers[0], self.stores[0], live, given, last_only=False)
        p = self.draw.probabilities(logits).view(len(live), A + 1, -1)
        drafted = torch.from_numpy(drafts)[..., None]
        p_of, q_of = (t[:, :A].gather(2, drafted).squeeze(2) for t in (p, q))
        u = torch.stack([self._uniform(live, k, 1) for k in range(A + 1)], 1)
        kept = (u[:, :A] * q_of < p_of).long().cumprod(1).sum(1)
        # Where all are kept the next token comes from p itself.
        rows = torch.arange(len(live))
        q_next = F.pad(q, (0, 0, 0, 1))[rows, kept]
        p_next = p[rows, kept]
        left = (p_next - q_next).clamp_min_(0)
        # Rounding can leave nothing where both agree.
        left = torch.where(left.sum(-1, keepdim=True) > 0, left, p_next)
        spare = torch.stack([self._uniform(live, k, 2) for k in range(A + 1)], 1)[rows, kept]
        tokens = np.concatenate([drafts, np.zeros((len(live), 1), dtype=np.int64)], 1)
        tokens[rows.numpy(), kept.numpy()] = invert(left, spare).numpy()
        self.engine.drafted.drafted += drafts.size
        self.engine.drafted.kept += int(kept.sum())
        return self._write(live, tokens, kept.numpy() + 1, logits.view(len(live), A + 1, -1))

    def _write(self, live: np.ndarray, tokens: np.ndarray, counts: np.ndarray, logits: Tensor) -> np.ndarray:
        """Put the first of tokens [R, A] in place, up to a stop or the limit; which rows go on."""
        out, goes_on = self.out, np.ones(len(live), dtype=bool)
        logprobs = logits.gather(2, torch.from_numpy(tokens)[..., None]).squeeze(2) - logits.logsumexp(2)
        for place, i in enumerate(live):
            row, before = self.rows[i], len(self.texts[i])
            for token, logprob in zip(
                tokens[place, : counts[place]].tolist(), logprobs[place].tolist(), strict=False
            ):
                at = out.lengths[row]
                out.ids[row, at], out.logprobs[row, at] = token, logprob
                out.lengths[row] += 1
                self.texts[i].append(token)
                out.finished[row] = token in self.stop
                if out.finished[row] or out.lengths[row] == out.ids.shape[1]:
                    goes_on[place] = False
                    break
            # Of the drafts the small model has read those that were kept, but for the last.
            if before < self.drafted_until[i]:
                self.drafted_until[i] = min(self.drafted_until[i], len(self.texts[i]) - 1)
        return goes_on
