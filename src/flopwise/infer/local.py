"""The torch engine: prompts read once, samples share them, finished rows leave, nothing is done twice.

It samples in one of two ways. **In waves**, by default, with torch's products: norm weights and the 1/sqrt(D)
of attention are folded into the matrices; rotary turns are complex products; prompts are right-aligned, so
that all rows write the same cache column (rotary positions are relative, a shift of a whole row changes
nothing) and an attention window is a range of columns; the cache grows with the text. **Continuously**, with
`weights` or `prefix_cache`: rows of unlike length side by side, waiting ones enter where others end, compiled
code with weights rounded or not, and nothing that was read before is read again.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flopwise.errors import FlopwiseError
from flopwise.flops.count import decode_flops, decode_pairs, prefill_flops
from flopwise.infer import native
from flopwise.infer.cache import Columns, Slots
from flopwise.infer.continuous import Continuous, Rows
from flopwise.infer.draw import Draw
from flopwise.infer.engine import SampleBatch, Usage, streams, uniforms
from flopwise.infer.forward import Folded, Forward, TorchModel
from flopwise.infer.judging import SCORED_TOKENS, Judge
from flopwise.infer.layer import turn, unit
from flopwise.infer.prefix import PrefixTree
from flopwise.infer.reading import Reader
from flopwise.infer.weights import pack
from flopwise.models import lora
from flopwise.models.moe import MoE
from flopwise.models.transformer import Transformer

COMPACT_BELOW = 0.8
"""Finished rows are dropped when the share still running falls to this: dropping copies the cache."""
CACHE_BYTES = 1 << 31
"""Keys and values of the rows decoded together may take so much; they are copied as they grow."""
PREFIX_CACHE = 1 << 28
"""Bytes of keys and values kept between calls of a continuous engine, unless told otherwise."""


@dataclass
class Prepared:
    """Prompts with their prefixes, samples of each, and what a sample's random numbers depend on."""

    prompts: Sequence[Sequence[int]]
    n: int
    lengths: np.ndarray
    """Of the prompts [P]."""
    stream: np.ndarray
    """[P n] uint64"""
    offset: np.ndarray
    """[P n] int64: tokens that were written before."""
    out: SampleBatch


class _Rows:
    """Samples in the making: where they go in the output, their random streams, how far they were before."""

    def __init__(self, place: np.ndarray, stream: np.ndarray, offset: np.ndarray):
        self.place, self.stream, self.offset = place, stream, offset

    def __getitem__(self, keep: np.ndarray) -> _Rows:
        return _Rows(self.place[keep], self.stream[keep], self.offset[keep])


class LocalEngine(Judge):
    """Samples from a `Transformer` in this process.

    Args:
        model: weights are read once; make a new engine after changing them.
        max_batch: rows decoded together, or fewer where their keys and values would exceed `CACHE_BYTES`.
        dtype: what torch's products are taken in; by default what the model's weights are in. bfloat16 is
            twice as fast where there is hardware for it and products are most of the work, and half the
            memory; log-probabilities are then good to two digits.
        weights: how compiled code keeps the matrices (`infer.weights.KINDS`): "float32" for the same numbers
            to rounding, "bfloat16", "int8" or "int4" for less memory and a faster single stream. Without a
            compiler torch does the same, more slowly.
        prefix_cache: bytes of keys and values to keep from call to call, so that what was read or written
            is not read again. None: a quarter of a gigabyte with `weights`, else none.

    Raises:
        FlopwiseError: unknown `weights`, or whole-numbered ones for a mixture of experts.
    """

    def __init__(
        self, model: Transformer, max_batch: int = 1024, dtype: torch.dtype | None = None,
        weights: str | None = None, prefix_cache: int | None = None,
    ):  # fmt: skip
        super().__init__(model)
        self.max_batch = max_batch
        if prefix_cache is None:
            prefix_cache = PREFIX_CACHE if weights else 0
        self._store: Slots | None = None
        with torch.no_grad():
            forward: Forward
            if weights and native.usable(model):
                forward = native.NativeModel(model, weights)
            else:
                if weights in ("int8", "int4"):
                    model = rounded(model, weights)
                dtype = torch.bfloat16 if weights == "bfloat16" else dtype or model.embed.weight.dtype
                self.folded = Folded(model, dtype)
                forward = TorchModel(self.folded, self.cfg, dtype)
        self.reader = Reader(forward, PrefixTree(prefix_cache)) if weights or prefix_cache else None

    @torch.inference_mode()
    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        n: int = 1,
        max_tokens: int = 64,
        stop: Sequence[int] = (),
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        prefix_tokens: Sequence[Sequence[int]] | None = None,
        on_progress: Callable[[float], None] | None = None,
        keys: Sequence[int] | None = None,
        first: int = 0,
    ) -> SampleBatch:
        """n completions of each prompt, at most `max_tokens` long; temperature 0 is greedy.

        Args:
            prefix_tokens: what each of the `len(prompts) * n` samples has written before, prompt-major; it is
                read again, each sample on its own, and only what follows is returned. A sample that was
                stopped by `max_tokens` goes on with the tokens it would have had under a larger limit.
            keys, first: of the prompts' random streams (`infer.engine.Engine.sample`).

        Raises:
            FlopwiseError: an empty prompt, a token outside the vocabulary, a setting out of range, prompt and
                max_tokens beyond the model's context, or weights that give no finite logits.
        """
        start = time.perf_counter()
        asked = self.prepare(
            prompts, n, max_tokens, temperature, top_k, top_p, seed, prefix_tokens, keys, first
        )
        draw, out, lengths = Draw(temperature, top_k, top_p), asked.out, asked.lengths
        index = np.repeat(np.arange(len(lengths)), asked.n)
        if self.reader is not None:
            texts = [tuple(p) for p in asked.prompts]
            rows = Rows([texts[i] for i in index], asked.stream, asked.offset)
            store = self.slots(len(index), int(lengths.max()) + max_tokens)
            read = Continuous(self.reader, store, rows, draw, stop, out).run(on_progress)
            out.usage = Usage(read.tokens, 0, read.flops)
        else:
            self._waves(asked, draw, stop, on_progress)
            read_all = sum(prefill_flops(self.cfg, int(p)).total for p in lengths)
            out.usage = Usage(int(lengths.sum()), 0, float(read_all))
        out.usage.decode_tokens = int(out.lengths.sum())
        out.usage.flops += self._decode_flops(lengths[index], out.lengths)
        out.usage.seconds = time.perf_counter() - start
        return out

    def prepare(
        self, prompts: Sequence[Sequence[int]], n: int, max_tokens: int, temperature: float,
        top_k: int | None, top_p: float | None, seed: int, prefix_tokens: Sequence[Sequence[int]] | None,
        keys: Sequence[int] | None, first: int,
    ) -> Prepared:  # fmt: skip
        """What `sample` is asked for, checked, with an empty batch for it."""
        total = len(prompts) * n
        prompt_index, sample_index = (
            np.repeat(np.arange(len(prompts)), n),
            np.tile(np.arange(first, first + n), len(prompts)),
        )
        named = prompt_index if keys is None else np.asarray(keys, dtype=np.int64)[prompt_index]
        stream = streams(seed, named, sample_index)
        offset = np.zeros(total, dtype=np.int64)
        if prefix_tokens is not None:
            if len(prefix_tokens) != total:
                raise FlopwiseError(
                    f"sample: {len(prefix_tokens)} prefixes for {total} samples; give one for each"
                )
            prompts = [
                [*prompts[i], *prefix] for i, prefix in zip(prompt_index.tolist(), prefix_tokens, strict=True)
            ]
            offset, n = np.array([len(prefix) for prefix in prefix_tokens]), 1
        lengths = self._check(prompts, n, max_tokens, temperature, top_k, top_p)
        out = SampleBatch(
            ids=np.full((total, max_tokens), -1, dtype=np.int32), lengths=np.zeros(total, dtype=np.int64),
            logprobs=np.zeros((total, max_tokens), dtype=np.float32), prompt_index=prompt_index,
            sample_index=sample_index, finished=np.zeros(total, dtype=bool),
        )  # fmt: skip
        return Prepared(prompts, n, lengths, stream, offset, out)

    def rows_at_once(self, tokens: int, bytes_each: int) -> int:
        """How many rows of so many tokens are decoded together."""
        per_token = 2 * self.cfg.n_layers * self.cfg.n_kv_heads * self.cfg.head_dim * bytes_each
        return max(1, min(self.max_batch, CACHE_BYTES // (per_token * tokens)))

    def slots(self, rows: int, capacity: int) -> Slots:
        """Room for so many rows of so many tokens, or those decoded together; kept for the next call."""
        assert self.reader is not None
        count = min(rows, self.rows_at_once(capacity, self.reader.forward.dtype.itemsize))
        held = self._store
        if held is None or held.count < count or held.capacity < capacity:
            self._store = None
            if held is not None:
                count, capacity = max(count, held.count), max(capacity, held.capacity)
            held = self._store = Slots(self.cfg, count, capacity, self.reader.forward.dtype)
        return held

    def _waves(
        self, asked: Prepared, draw: Draw, stop: Sequence[int], on_progress: Callable[[float], None] | None
    ) -> None:
        """Fill the batch, as many prompts at a time as go into one."""
        prompts, n = asked.prompts, asked.n
        rows = _Rows(np.arange(len(prompts) * n), asked.stream, asked.offset)
        longest = int(asked.lengths.max()) + asked.out.ids.shape[1]
        at_once = self.rows_at_once(longest, self.folded.embed.element_size())
        per_chunk = max(1, at_once // n)
        for first in range(0, len(prompts), per_chunk):
            part = prompts[first : first + per_chunk]
            logits, cache = self._prefill(part)
            for a in range(0, len(part) * n, at_once):
                local = np.arange(a, min(a + at_once, len(part) * n))
                read = torch.from_numpy(local // n)
                chunk, columns = rows[local + first * n], max(map(len, part))
                self._decode(logits[read], cache.select(read), columns, chunk, draw, stop, asked.out)
            if on_progress:
                on_progress(min(1.0, (first + per_chunk) / len(prompts)))

    def _check(
        self, prompts: Sequence[Sequence[int]], n: int, max_tokens: int,
        temperature: float, top_k: int | None, top_p: float | None,
    ) -> np.ndarray:  # fmt: skip
        """Lengths of the prompts [P]; raises on bad input."""
        lengths = np.array([len(p) for p in prompts])
        if not len(prompts) or lengths.min() < 1:
            raise FlopwiseError("sample: a prompt is empty; give at least one token")
        if n < 1 or max_tokens < 1:
            raise FlopwiseError(f"sample: n={n} and max_tokens={max_tokens} must both be at least 1")
        if not temperature >= 0:
            raise FlopwiseError(f"sample: temperature={temperature} must be 0 (greedy) or more")
        if (top_k is not None and top_k < 1) or (top_p is not None and not 0 < top_p <= 1):
            raise FlopwiseError(
                f"sample: top_k={top_k} must be at least 1, top_p={top_p} in (0, 1]; None is off"
            )
        longest = int(lengths.max())
        if longest + max_tokens > self.cfg.max_seq_len:
            room = self.cfg.max_seq_len - longest
            advice = f"lower max_tokens to {room}" if room > 0 else "shorten the prompt"
            raise FlopwiseError(
                f"sample: prompt of {longest} plus max_tokens {max_tokens} exceeds the model's context of "
                f"{self.cfg.max_seq_len}; {advice}"
            )
        self._check_ids(prompts)
        return lengths

    def _decode_flops(self, prompts: np.ndarray, new: np.ndarray) -> float:
        """As `flops.count.generate_flops` without prompts, for rows after prompts of given lengths (decode
        cost is linear in the context)."""
        base = decode_flops(self.cfg, 0).total
        per_position = decode_flops(self.cfg, 1).total - base
        passes = np.maximum(new - 1, 0)
        contexts = zip(prompts.tolist(), passes.tolist(), strict=True)
        pairs = sum(decode_pairs(self.cfg, prompt, n) for prompt, n in contexts)
        return float(base * passes.sum() + per_position * pairs)

    def _prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Columns]:
        """Read right-aligned prompts: logits [B, V] after the last token, and the cache."""
        cfg, B, P = self.cfg, len(prompts), max(len(p) for p in prompts)
        ids = np.zeros((B, P), dtype=np.int64)
        real = np.zeros((B, P), dtype=bool)
        for row, prompt in enumerate(prompts):
            ids[row, P - len(prompt) :] = prompt
            real[row, P - len(prompt) :] = True
        keep = torch.from_numpy(real)
        # A padding query may look at itself, so that its softmax is defined; nobody looks at it.
        seen = torch.ones(P, P, dtype=torch.bool).tril()
        if cfg.sliding_window is not None:
            seen = seen.triu(1 - cfg.sliding_window)
        allowed = (keep[:, None, :] & seen) | torch.eye(P, dtype=torch.bool)
        H, K, D = cfg.n_heads, cfg.n_kv_heads, cfg.head_dim
        x = self.folded.embed[torch.from_numpy(ids)].flatten(0, 1)
        keys, values = [], []
        for layer in self.folded.layers:
            heads = layer.heads(x).view(B, P, H + 2 * K, D).transpose(1, 2)
            turned = turn(heads[:, : H + K], self.folded.turns[:P])
            q, k, v = turned[:, :H], turned[:, H:], heads[:, H + K :]
            keys.append(k.contiguous())
            values.append(v.contiguous())
            k, v = (t.repeat_interleave(H // K, 1) for t in (k, v))
            mixed = F.scaled_dot_product_attention(q, k, v, allowed[:, None], scale=1.0)
            x = torch.addmm(x, mixed.transpose(1, 2).reshape(B * P, H * D), layer.out)
            layer.feed_forward(x)
        logits = (unit(x.view(B, P, -1)[:, -1], cfg.norm_eps) @ self.folded.head).float()
        if not logits.isfinite().all():
            raise FlopwiseError(
                "sample: the model's logits are not finite; its weights are damaged, train it again"
            )
        mask = torch.zeros(B, K, P, dtype=x.dtype).masked_fill_(~keep[:, None], float("-inf"))
        return logits, Columns(keys, values, mask)

    def _step(self, token: Tensor, cache: Columns, column: int) -> Tensor:
        """One token per row, written to cache column `column`: logits [R, V]."""
        cfg, R = self.cfg, len(token)
        H, K, D = cfg.n_heads, cfg.n_kv_heads, cfg.head_dim
        cache.reserve(column + 1)
        seen = slice(max(0, column + 1 - (cfg.sliding_window or column + 1)), column + 1)
        mask = cache.mask.view(R * K, 1, -1)[:, :, seen]
        x = self.folded.embed[token]
        for layer, keys, values in zip(self.folded.layers, cache.keys, cache.values, strict=True):
            heads = layer.heads(x)
            turned = turn(heads[:, : H + K], self.folded.turns[column])
            keys[:, :, column] = turned[:, H:]
            values[:, :, column] = heads[:, H + K :]
            q = turned[:, :H].reshape(R * K, H // K, D)
            k, v = (t.view(R * K, -1, D)[:, seen] for t in (keys, values))
            weights = torch.baddbmm(mask, q, k.mT).softmax(-1)
            torch.addmm(x, (weights @ v).view(R, H * D), layer.out, out=x)
            layer.feed_forward(x)
        return (unit(x, cfg.norm_eps) @ self.folded.head).float()

    def _decode(
        self,
        logits: Tensor,
        cache: Columns,
        column: int,
        rows: _Rows,
        draw: Draw,
        stop: Sequence[int],
        out: SampleBatch,
    ) -> None:
        """Sample into `out` until every row has stopped or is full; the prompts fill `column` columns."""
        alive = np.ones(len(rows.place), dtype=bool)
        stops = np.array(stop, dtype=np.int64)
        for position in range(out.ids.shape[1]):
            u = torch.from_numpy(uniforms(rows.stream, rows.offset + position)).to(logits.dtype)
            token, logprob = (t.numpy() for t in draw(logits, u))
            live = rows.place[alive]
            out.ids[live, position] = token[alive]
            out.logprobs[live, position] = logprob[alive]
            out.lengths[live] += 1
            if len(stops):
                stopped = (token[:, None] == stops).any(1) & alive
                out.finished[rows.place[stopped]] = True
                alive &= ~stopped
            if not alive.any() or position + 1 == out.ids.shape[1]:
                return
            if alive.mean() <= COMPACT_BELOW:
                keep = np.flatnonzero(alive)
                cache, rows, token = cache.select(torch.from_numpy(keep)), rows[keep], token[keep]
                alive = alive[keep]
            logits = self._step(torch.from_numpy(token), cache, column + position)

    @torch.inference_mode()
    def next_logprobs(
        self, prompts: Sequence[Sequence[int]], tokens: Sequence[int]
    ) -> tuple[np.ndarray, Usage]:
        """Log-probabilities [N, k], in nats, that each prompt goes on with each of k tokens, and the cost.

        Raises:
            FlopwiseError: an empty prompt, one as long as the context, or a token outside the vocabulary.
        """
        start = time.perf_counter()
        lengths = self._check(prompts, 1, 1, 0.0, None, None)
        self._check_ids([tokens])
        out = np.zeros((len(prompts), len(tokens)), dtype=np.float32)
        if self.reader is not None:
            return self._next_by_reader(prompts, tokens, start)
        order = np.argsort(-lengths, kind="stable")
        first = 0
        while first < len(order):
            rows = order[first : first + max(1, SCORED_TOKENS // int(lengths[order[first]]))]
            logits = self._prefill([prompts[i] for i in rows])[0]
            out[rows] = logits.log_softmax(-1)[:, list(tokens)].float().numpy()
            first += len(rows)
        flops = sum(prefill_flops(self.cfg, int(n)).total for n in lengths)
        return out, Usage(int(lengths.sum()), 0, flops, time.perf_counter() - start)

    def _next_by_reader(
        self, prompts: Sequence[Sequence[int]], tokens: Sequence[int], start: float
    ) -> tuple[np.ndarray, Usage]:
        """`next_logprobs` with what is known of the prompts left out."""
        found, usage = self._read(prompts, lambda logits: logits.log_softmax(-1)[:, list(tokens)])
        usage.seconds = time.perf_counter() - start
        return found, usage

    @torch.inference_mode()
    def values_after(self, sequences: Sequence[Sequence[int]]) -> tuple[np.ndarray, float]:
        """As `reward`; with a `prefix_cache`, of texts that extend what was read before only what is new is
        read."""
        if self.reader is None or not self.model.n_scores:
            return self.reward(sequences)
        self._check_texts(sequences)
        found, usage = self._read(sequences, lambda logits: logits[:, 0])
        return found, usage.flops

    def _read(
        self, sequences: Sequence[Sequence[int]], take: Callable[[Tensor], Tensor]
    ) -> tuple[np.ndarray, Usage]:
        """What is taken of the outputs after each sequence, with what is known left out, and the cost."""
        assert self.reader is not None
        number = {p: i for i, p in enumerate(dict.fromkeys(tuple(p) for p in sequences))}
        texts, found, usage = list(number), [], Usage()
        at_once = self.rows_at_once(max(map(len, texts)), self.reader.forward.dtype.itemsize)
        for first in range(0, len(texts), at_once):
            part = texts[first : first + at_once]
            store = self.slots(len(part), max(map(len, part)))
            logits, read = self.reader.read(part, range(len(part)), store)
            found.append(take(logits).numpy())
            usage += Usage(read.tokens, 0, read.flops)
        return np.concatenate(found)[[number[tuple(p)] for p in sequences]], usage


def rounded(model: Transformer, kind: str) -> Transformer:
    """A copy of a dense model whose matrices have the values that `weights.pack` would give them.

    Raises:
        FlopwiseError: it has experts, which are not rounded.
    """
    if any(isinstance(m, MoE) for m in model.modules()):
        raise FlopwiseError(f"weights {kind}: a mixture of experts is not rounded; use float32 or bfloat16")
    model = copy.deepcopy(lora.merged(model) if model.lora else model)
    # Tied to the embedding, which is not rounded.
    model.head.weight = nn.Parameter(model.head.weight.detach().clone())
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            chosen = "int8" if name == "head" else kind
            module.weight.data.copy_(pack(module.weight, chosen).dense())
    return model
