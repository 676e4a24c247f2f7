"""The torch engine: prompts read once, samples share them, finished rows leave, nothing is done twice.

Why it is fast at this size: norm weights and the 1/sqrt(D) of attention are folded into the matrices; rotary
turns are complex products; prompts are right-aligned, so that all rows write the same cache column (rotary
positions are relative, a shift of a whole row changes nothing) and an attention window is a range of columns;
the cache grows with the text.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from flopwise.errors import FlopwiseError
from flopwise.flops.count import decode_flops, decode_pairs, prefill_flops, score_flops
from flopwise.infer.draw import Draw
from flopwise.infer.engine import SampleBatch, Usage, streams, uniforms
from flopwise.models.lora import dense
from flopwise.models.moe import MoE
from flopwise.models.transformer import Block, Transformer

GROW = 16
"""Columns that the cache grows by."""
COMPACT_BELOW = 0.8
"""Finished rows are dropped when the share still running falls to this: dropping copies the cache."""
SCORED_TOKENS = 1 << 14
"""Tokens scored at once."""
SCORED_LOGITS = 1 << 27
"""Logits at once, of a large vocabulary: half a gigabyte."""


class _Layer:
    """One block's matrices, ready to be multiplied from the right, with norms and adapters folded in: in
    float32, and rounded to `dtype` after that."""

    def __init__(self, block: Block, dtype: torch.dtype):
        cfg = block.attn.cfg
        H, K, D = cfg.n_heads, cfg.n_kv_heads, cfg.head_dim
        self.cfg = cfg
        qkv = (dense(block.attn.qkv).float() * block.attn_norm.weight).view(H + 2 * K, D, -1).clone()
        # The halves that rotary positions pair up come to lie side by side, as complex numbers.
        qkv[: H + K] = _paired(qkv[: H + K])
        self.qk_norm: Tensor | None = None
        if cfg.qk_norm:
            q_norm, k_norm = block.attn.q_norm.weight * D**-0.5, block.attn.k_norm.weight
            self.qk_norm = _paired(torch.cat([q_norm.expand(H, D), k_norm.expand(K, D)])[..., None])[..., 0]
        else:
            qkv[:H] *= D**-0.5
        self.qkv = qkv.flatten(0, 1).to(dtype).T
        self.out = dense(block.attn.out).to(dtype).T
        self.experts: MoE | None = None
        if isinstance(block.mlp, MoE):
            self.experts = _with_norm(block.mlp, block.mlp_norm.weight)
        else:
            self.gate_up = (dense(block.mlp.gate_up).float() * block.mlp_norm.weight).to(dtype).T
            self.down = dense(block.mlp.down).to(dtype).T

    def heads(self, x: Tensor) -> Tensor:
        """x [N, d_model] -> query, key and value heads [N, H + 2K, D], not turned yet."""
        cfg = self.cfg
        heads = (_unit(x, cfg.norm_eps) @ self.qkv).view(len(x), -1, cfg.head_dim)
        if self.qk_norm is not None:
            normed = heads[:, : len(self.qk_norm)]
            normed.copy_(_unit(normed, cfg.norm_eps) * self.qk_norm)
        return heads

    def feed_forward(self, x: Tensor) -> None:
        """Add the feed-forward part to x [N, d_model]."""
        unit = _unit(x, self.cfg.norm_eps)
        if self.experts is not None:
            x.add_(self.experts(unit.float()))
        else:
            gate, up = (unit @ self.gate_up).chunk(2, -1)
            torch.addmm(x, F.silu(gate).mul_(up), self.down, out=x)


def _paired(heads: Tensor) -> Tensor:
    """heads [n, D, m] with units i and i + D / 2 side by side."""
    return heads.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


def _with_norm(moe: MoE, norm: Tensor) -> MoE:
    """A copy that takes inputs before the norm's weight [d_model]."""
    copy = MoE(moe.cfg).eval()
    copy.load_state_dict(moe.state_dict())
    for weight in (copy.router.weight, copy.gate_up, *([copy.shared.gate_up.weight] if copy.shared else [])):
        weight.mul_(norm)
    return copy


def _unit(x: Tensor, eps: float) -> Tensor:
    """RMS normalisation without its weight; its sum is taken in float32."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    return (x * norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()).to(x.dtype)


def _turn(heads: Tensor, by: Tensor) -> Tensor:
    """Rotary turn of heads [..., D], pairs side by side, by complex numbers [..., D / 2] (broadcast)."""
    pairs = torch.view_as_complex(heads.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * by).flatten(-2).to(heads.dtype)


class _Cache:
    """Keys and values [rows, kv heads, capacity, D] of every layer; `mask` [rows, kv heads, capacity] is
    added to the attention scores: minus infinity where a prompt is padded."""

    def __init__(self, keys: list[Tensor], values: list[Tensor], mask: Tensor):
        self.keys, self.values, self.mask = keys, values, mask

    def select(self, rows: Tensor) -> _Cache:
        """The cache of some rows (repeats allowed: samples of one prompt)."""
        return _Cache(
            [k.index_select(0, rows) for k in self.keys],
            [v.index_select(0, rows) for v in self.values],
            self.mask.index_select(0, rows),
        )

    def reserve(self, columns: int) -> None:
        """Make room for at least so many columns."""
        have = self.mask.shape[2]
        if columns > have:
            more = columns - have + -columns % GROW
            self.mask = F.pad(self.mask, (0, more))
            self.keys, self.values = ([_longer(t, more) for t in store] for store in (self.keys, self.values))


def _longer(t: Tensor, more: int) -> Tensor:
    """t [R, K, T, D] with `more` columns of whatever was in memory: each is written before it is read."""
    out = t.new_empty(t.shape[0], t.shape[1], t.shape[2] + more, t.shape[3])
    out[:, :, : t.shape[2]] = t
    return out


class _Rows:
    """Samples in the making: where they go in the output, their random streams, how far they were before."""

    def __init__(self, place: np.ndarray, stream: np.ndarray, offset: np.ndarray):
        self.place, self.stream, self.offset = place, stream, offset

    def __getitem__(self, keep: np.ndarray) -> _Rows:
        return _Rows(self.place[keep], self.stream[keep], self.offset[keep])


class LocalEngine:
    """Samples from a `Transformer` in this process.

    Args:
        model: weights are read once; make a new engine after changing them.
        max_batch: rows decoded together.
        dtype: what products are taken in; by default what the model's weights are in. bfloat16 is twice as
            fast where products are most of the work, and half the memory; log-probabilities are then good to
            two digits.
    """

    def __init__(self, model: Transformer, max_batch: int = 1024, dtype: torch.dtype | None = None):
        self.model, self.cfg, self.max_batch = model, model.cfg, max_batch
        dtype = dtype or model.embed.weight.dtype
        with torch.no_grad():
            self.layers = [_Layer(b, dtype) for b in model.blocks if isinstance(b, Block)]
            self.head = (model.head.weight.float() * model.norm.weight).to(dtype).T
            self.embed = model.embed.weight.detach().to(dtype)
            half = self.cfg.head_dim // 2
            cos, sin = (t[:, :half].float().contiguous() for t in (model.cos, model.sin))
            self.turns = torch.complex(cos, sin)

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
        draw = Draw(temperature, top_k, top_p)
        per_chunk = max(1, self.max_batch // n)
        for begin in range(0, len(prompts), per_chunk):
            part = prompts[begin : begin + per_chunk]
            logits, cache = self._prefill(part)
            for a in range(0, len(part) * n, self.max_batch):
                local = np.arange(a, min(a + self.max_batch, len(part) * n))
                place, read = local + begin * n, torch.from_numpy(local // n)
                rows = _Rows(place, stream[place], offset[place])
                self._decode(logits[read], cache.select(read), max(map(len, part)), rows, draw, stop, out)
            if on_progress:
                on_progress(min(1.0, (begin + per_chunk) / len(prompts)))
        flops = self._flops(lengths, out.lengths, np.repeat(np.arange(len(prompts)), n))
        out.usage = Usage(int(lengths.sum()), int(out.lengths.sum()), flops, time.perf_counter() - start)
        return out

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

    def _check_ids(self, sequences: Sequence[Sequence[int]]) -> None:
        ids = [t for s in sequences for t in (min(s), max(s))]
        if min(ids) < 0 or max(ids) >= self.cfg.vocab_size:
            bad = min(ids) if min(ids) < 0 else max(ids)
            raise FlopwiseError(
                f"token {bad} is beyond the vocabulary of {self.cfg.vocab_size}; use its own tokenizer"
            )

    def _flops(self, prompts: np.ndarray, new: np.ndarray, prompt_index: np.ndarray) -> float:
        """As `flops.count.generate_flops`, for all rows at once (decode cost is linear in the context)."""
        base = decode_flops(self.cfg, 0).total
        per_position = decode_flops(self.cfg, 1).total - base
        passes = np.maximum(new - 1, 0)
        contexts = zip(prompts[prompt_index].tolist(), passes.tolist(), strict=True)
        pairs = sum(decode_pairs(self.cfg, prompt, n) for prompt, n in contexts)
        prefill = sum(prefill_flops(self.cfg, int(p)).total for p in prompts)
        return float(prefill + base * passes.sum() + per_position * pairs)

    def _prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, _Cache]:
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
        x = self.embed[torch.from_numpy(ids)].flatten(0, 1)
        keys, values = [], []
        for layer in self.layers:
            heads = layer.heads(x).view(B, P, H + 2 * K, D).transpose(1, 2)
            turned = _turn(heads[:, : H + K], self.turns[:P])
            q, k, v = turned[:, :H], turned[:, H:], heads[:, H + K :]
            keys.append(k.contiguous())
            values.append(v.contiguous())
            k, v = (t.repeat_interleave(H // K, 1) for t in (k, v))
            mixed = F.scaled_dot_product_attention(q, k, v, allowed[:, None], scale=1.0)
            x = torch.addmm(x, mixed.transpose(1, 2).reshape(B * P, H * D), layer.out)
            layer.feed_forward(x)
        logits = (_unit(x.view(B, P, -1)[:, -1], cfg.norm_eps) @ self.head).float()
        if not logits.isfinite().all():
            raise FlopwiseError(
                "sample: the model's logits are not finite; its weights are damaged, train it again"
            )
        mask = torch.zeros(B, K, P, dtype=x.dtype).masked_fill_(~keep[:, None], float("-inf"))
        return logits, _Cache(keys, values, mask)

    def _step(self, token: Tensor, cache: _Cache, column: int) -> Tensor:
        """One token per row, written to cache column `column`: logits [R, V]."""
        cfg, R = self.cfg, len(token)
        H, K, D = cfg.n_heads, cfg.n_kv_heads, cfg.head_dim
        cache.reserve(column + 1)
        seen = slice(max(0, column + 1 - (cfg.sliding_window or column + 1)), column + 1)
        mask = cache.mask.view(R * K, 1, -1)[:, :, seen]
        x = self.embed[token]
        for layer, keys, values in zip(self.layers, cache.keys, cache.values, strict=True):
            heads = layer.heads(x)
            turned = _turn(heads[:, : H + K], self.turns[column])
            keys[:, :, column] = turned[:, H:]
            values[:, :, column] = heads[:, H + K :]
            q = turned[:, :H].reshape(R * K, H // K, D)
            k, v = (t.view(R * K, -1, D)[:, seen] for t in (keys, values))
            weights = torch.baddbmm(mask, q, k.mT).softmax(-1)
            torch.addmm(x, (weights @ v).view(R, H * D), layer.out, out=x)
            layer.feed_forward(x)
        return (_unit(x, cfg.norm_eps) @ self.head).float()

    def _decode(
        self,
        logits: Tensor,
        cache: _Cache,
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
    def score(self, sequences: Sequence[Sequence[int]], prompt_lengths: Sequence[int]) -> list[np.ndarray]:
        """Log-probabilities, in nats, of each sequence's tokens after its prompt."""
        out: list[np.ndarray] = [np.zeros(0, dtype=np.float32)] * len(sequences)
        for ids, rows in self._padded(sequences):
            logits = self.model(ids[:, :-1]).float()
            chosen = logits.gather(-1, ids[:, 1:, None]).squeeze(-1) - logits.logsumexp(-1)
            for row, i in enumerate(rows):
                out[i] = chosen[row, prompt_lengths[i] - 1 : len(sequences[i]) - 1].numpy().copy()
        return out

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
        order = np.argsort(-lengths, kind="stable")
        first = 0
        while first < len(order):
            rows = order[first : first + max(1, SCORED_TOKENS // int(lengths[order[first]]))]
            logits = self._prefill([prompts[i] for i in rows])[0]
            out[rows] = logits.log_softmax(-1)[:, list(tokens)].float().numpy()
            first += len(rows)
        flops = sum(prefill_flops(self.cfg, int(n)).total for n in lengths)
        return out, Usage(int(lengths.sum()), 0, flops, time.perf_counter() - start)

    @torch.inference_mode()
    def reward(self, sequences: Sequence[Sequence[int]]) -> tuple[np.ndarray, float]:
        """A scorer's value at each sequence's last token [N], and the FLOPs it took."""
        if not self.model.n_scores:
            raise FlopwiseError("reward: this model has no score head; train one with the reward method")
        out = np.zeros(len(sequences), dtype=np.float32)
        for ids, rows in self._padded(sequences):
            last = torch.tensor([len(sequences[i]) - 1 for i in rows])
            hidden = self.model.hidden(ids)[torch.arange(len(rows)), last]
            out[rows] = self.model.head(hidden).squeeze(-1).float().numpy()
        lengths, counts = np.unique([len(s) for s in sequences], return_counts=True)
        flops = sum(
            score_flops(self.cfg, int(length), int(count), n_logits=0).total
            for length, count in zip(lengths, counts, strict=True)
        )
        return out, flops

    @torch.inference_mode()
    def states(self, sequences: Sequence[Sequence[int]]) -> np.ndarray:
        """The model's last hidden state, normalised, at each sequence's last token [N, d_model] float32."""
        out = np.zeros((len(sequences), self.cfg.d_model), dtype=np.float32)
        for ids, rows in self._padded(sequences):
            last = torch.tensor([len(sequences[i]) - 1 for i in rows])
            out[rows] = self.model.hidden(ids)[torch.arange(len(rows)), last].float().numpy()
        return out

    @torch.inference_mode()
    def rewards_at(
        self, sequences: Sequence[Sequence[int]], places: Sequence[Sequence[int]]
    ) -> tuple[list[np.ndarray], float]:
        """A scorer's values at some places of each sequence, from one pass over it, and the FLOPs it took."""
        out: list[np.ndarray] = [np.zeros(0, dtype=np.float32)] * len(sequences)
        for ids, rows in self._padded(sequences):
            scores = self.model.head(self.model.hidden(ids)).squeeze(-1).float()
            for row, i in enumerate(rows):
                out[i] = scores[row, list(places[i])].numpy().copy()
        sizes, counts = np.unique([len(s) for s in sequences], return_counts=True)
        flops = (
            score_flops(self.cfg, int(n), int(c), head=1).total for n, c in zip(sizes, counts, strict=True)
        )
        return out, sum(flops)

    def _padded(self, sequences: Sequence[Sequence[int]]) -> Iterator[tuple[Tensor, np.ndarray]]:
        """Right-padded batches of sequences of like length, with their places in `sequences`.

        Raises:
            FlopwiseError: a sequence is empty, too long for the model, or outside its vocabulary.
        """
        lengths = np.array([len(s) for s in sequences], dtype=np.int64)
        if len(lengths) and not 1 <= lengths.min() <= lengths.max() <= self.cfg.max_seq_len:
            bad = lengths.min() if lengths.min() < 1 else lengths.max()
            raise FlopwiseError(
                f"a sequence of {bad} tokens cannot be scored; the limit is {self.cfg.max_seq_len}"
            )
        if len(lengths):
            self._check_ids(sequences)
        order = np.argsort(-lengths, kind="stable")
        most = min(SCORED_TOKENS, SCORED_LOGITS // self.cfg.vocab_size)
        first = 0
        while first < len(order):
            longest = int(lengths[order[first]])
            rows = order[first : first + max(1, most // longest)]
            ids = np.zeros((len(rows), longest), dtype=np.int64)
            for row, i in enumerate(rows):
                ids[row, : lengths[i]] = sequences[i]
            yield torch.from_numpy(ids), rows
            first += len(rows)
