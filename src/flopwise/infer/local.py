"""The torch engine: prompts read once, samples share them, finished rows leave, nothing is done twice.

Why it is fast at this size: norm weights and the 1/sqrt(D) of attention are folded into the matrices; prompts
are right-aligned, so that all rows write the same cache column (rotary positions are relative, a shift of a
whole row changes nothing); sampling is a cumulative sum and a search instead of `torch.multinomial`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from flopwise.errors import FlopwiseError
from flopwise.flops.count import decode_flops, prefill_flops, score_flops
from flopwise.infer.engine import SampleBatch, Usage, uniforms
from flopwise.models.transformer import Block, Transformer, apply_rope


class _Layer:
    """One block's matrices with the norms folded in."""

    def __init__(self, block: Block):
        cfg = block.attn.cfg
        qkv = block.attn.qkv.weight * block.attn_norm.weight
        scale = torch.ones(qkv.shape[0], 1, device=qkv.device)
        scale[: cfg.n_heads * cfg.head_dim] = cfg.head_dim**-0.5
        self.qkv = (qkv * scale).contiguous()
        self.out = block.attn.out.weight.detach()
        self.gate_up = (block.mlp.gate_up.weight * block.mlp_norm.weight).contiguous()
        self.down = block.mlp.down.weight.detach()


def _unit(x: Tensor, eps: float) -> Tensor:
    """RMS normalisation without its weight."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


class _Cache:
    """Keys and values [rows, kv heads, columns, head width] of every layer, and which columns are padding."""

    def __init__(self, keys: list[Tensor], values: list[Tensor], mask: Tensor):
        self.keys, self.values, self.mask = keys, values, mask

    def select(self, rows: Tensor) -> _Cache:
        """The cache of some rows (repeats allowed: samples of one prompt)."""
        return _Cache(
            [k.index_select(0, rows) for k in self.keys],
            [v.index_select(0, rows) for v in self.values],
            self.mask.index_select(0, rows),
        )


class LocalEngine:
    """Samples from a `Transformer` in this process.

    Args:
        model: weights are read once; make a new engine after changing them.
        max_batch: rows decoded together; larger ones fall out of the processor's cache.
    """

    def __init__(self, model: Transformer, max_batch: int = 512):
        self.model, self.cfg, self.max_batch = model, model.cfg, max_batch
        with torch.no_grad():
            self.layers = [_Layer(b) for b in model.blocks if isinstance(b, Block)]
            self.head = (model.head.weight * model.norm.weight).contiguous()
            self.embed = model.embed.weight.detach()

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
        on_progress: Callable[[float], None] | None = None,
    ) -> SampleBatch:
        """n completions of each prompt, at most `max_tokens` long; temperature 0 is greedy.

        Raises:
            FlopwiseError: an empty prompt, or prompt plus max_tokens beyond the model's context.
        """
        start = time.perf_counter()
        lengths = np.array([len(p) for p in prompts])
        if not len(prompts) or lengths.min() < 1:
            raise FlopwiseError("sample: a prompt is empty; give at least one token")
        longest = int(lengths.max())
        if longest + max_tokens > self.cfg.max_seq_len:
            raise FlopwiseError(
                f"sample: prompt of {longest} plus max_tokens {max_tokens} exceeds the model's context of "
                f"{self.cfg.max_seq_len}; lower max_tokens to {max(1, self.cfg.max_seq_len - longest)}"
            )
        if n < 1 or max_tokens < 1 or temperature < 0:
            raise FlopwiseError(f"sample: n={n}, max_tokens={max_tokens}, temperature={temperature} must be positive")
        total = len(prompts) * n
        ids = np.full((total, max_tokens), -1, dtype=np.int32)
        logprobs = np.zeros((total, max_tokens), dtype=np.float32)
        out_lengths = np.zeros(total, dtype=np.int64)
        finished = np.zeros(total, dtype=bool)
        prompt_index = np.repeat(np.arange(len(prompts)), n)
        sample_index = np.tile(np.arange(n), len(prompts))
        draw = _Sampler(temperature, top_k, top_p, seed)
        per_chunk = max(1, self.max_batch // n)
        for first in range(0, len(prompts), per_chunk):
            part = prompts[first : first + per_chunk]
            logits, cache = self._prefill(part, max_tokens)
            for a in range(0, len(part) * n, self.max_batch):
                rows = np.arange(a, min(a + self.max_batch, len(part) * n))
                local = torch.from_numpy(rows // n)
                out = rows + first * n
                self._decode(
                    logits.index_select(0, local), cache.select(local), max(len(p) for p in part), max_tokens,
                    np.array(stop), draw, (prompt_index[out], sample_index[out]), (ids, logprobs, out_lengths, finished), out,
                )  # fmt: skip
            if on_progress:
                on_progress(min(1.0, (first + per_chunk) / len(prompts)))
        usage = Usage(
            int(lengths.sum()), int(out_lengths.sum()), self._flops(lengths, out_lengths, prompt_index),
            time.perf_counter() - start,
        )  # fmt: skip
        return SampleBatch(ids, out_lengths, logprobs, prompt_index, sample_index, finished, usage)

    def _flops(self, prompts: np.ndarray, new: np.ndarray, prompt_index: np.ndarray) -> float:
        """As `flops.count.generate_flops`, for all rows at once (decode cost is linear in the context)."""
        base = decode_flops(self.cfg, 0).total
        per_position = decode_flops(self.cfg, 1).total - base
        passes = np.maximum(new - 1, 0)
        pairs = passes * prompts[prompt_index] + passes * (passes + 1) / 2
        prefill = sum(prefill_flops(self.cfg, int(p)).total for p in prompts)
        return float(prefill + base * passes.sum() + per_position * pairs.sum())

    def _prefill(self, prompts: Sequence[Sequence[int]], room: int) -> tuple[Tensor, _Cache]:
        """Read right-aligned prompts; logits [B, V] after the last token and a cache with room for more."""
        cfg, B, P = self.cfg, len(prompts), max(len(p) for p in prompts)
        ids = np.zeros((B, P), dtype=np.int64)
        real = np.zeros((B, P), dtype=bool)
        for row, prompt in enumerate(prompts):
            ids[row, P - len(prompt) :] = prompt
            real[row, P - len(prompt) :] = True
        keep = torch.from_numpy(real)
        # A padding query may look at itself, so that its softmax is defined; nobody looks at it.
        allowed = (keep[:, None, :] & torch.ones(P, P, dtype=torch.bool).tril()) | torch.eye(P, dtype=torch.bool)
        H, K, D = cfg.n_heads, cfg.n_kv_heads, cfg.head_dim
        x = self.embed[torch.from_numpy(ids)]
        cos, sin = self.model.cos[:P], self.model.sin[:P]
        keys, values = [], []
        for layer in self.layers:
            heads = F.linear(_unit(x, cfg.norm_eps), layer.qkv).view(B, P, H + 2 * K, D).transpose(1, 2)
            turned = apply_rope(heads[:, : H + K], cos, sin)
            q, k, v = turned[:, :H], turned[:, H:], heads[:, H + K :]
            for store, fresh in ((keys, k), (values, v)):
                room_for = torch.zeros(B, K, P + room, D, dtype=x.dtype)
                room_for[:, :, :P] = fresh
                store.append(room_for)
            mixed = F.scaled_dot_product_attention(
                q, k.repeat_interleave(H // K, 1), v.repeat_interleave(H // K, 1), allowed[:, None], scale=1.0
            )
            x = x + F.linear(mixed.transpose(1, 2).reshape(B, P, H * D), layer.out)
            gate, up = F.linear(_unit(x, cfg.norm_eps), layer.gate_up).chunk(2, -1)
            x = x + F.linear(F.silu(gate) * up, layer.down)
        logits = F.linear(_unit(x[:, -1], cfg.norm_eps), self.head)
        mask = torch.zeros(B, 1, P + room, dtype=x.dtype)
        mask[:, 0, :P].masked_fill_(~keep, float("-inf"))
        return logits, _Cache(keys, values, mask)

    def _step(self, token: Tensor, cache: _Cache, column: int) -> Tensor:
        """One token per row, at cache column `column`: logits [R, V]."""
        cfg, R = self.cfg, len(token)
        H, K, D = cfg.n_heads, cfg.n_kv_heads, cfg.head_dim
        G, T = H // K, column + 1
        cos, sin = self.model.cos[column], self.model.sin[column]
        mask = cache.mask[:, :, :T].repeat_interleave(K, 0)
        x = self.embed[token]
        for layer, keys, values in zip(self.layers, cache.keys, cache.values, strict=True):
            heads = F.linear(_unit(x, cfg.norm_eps), layer.qkv).view(R, H + 2 * K, D)
            turned = apply_rope(heads[:, : H + K], cos, sin)
            keys[:, :, column] = turned[:, H:]
            values[:, :, column] = heads[:, H + K :]
            q = turned[:, :H].reshape(R * K, G, D)
            k = keys[:, :, :T].reshape(R * K, T, D) if T == keys.shape[2] else keys.view(R * K, -1, D)[:, :T]
            v = values.view(R * K, -1, D)[:, :T]
            weights = torch.baddbmm(mask, q, k.mT).softmax(-1)
            x = x + F.linear((weights @ v).view(R, H * D), layer.out)
            gate, up = F.linear(_unit(x, cfg.norm_eps), layer.gate_up).chunk(2, -1)
            x = x + F.linear(F.silu(gate).mul_(up), layer.down)
        return F.linear(_unit(x, cfg.norm_eps), self.head)

    def _decode(
        self, logits: Tensor, cache: _Cache, column: int, max_tokens: int, stop: np.ndarray, draw: _Sampler,
        who: tuple[np.ndarray, np.ndarray], outputs: tuple[np.ndarray, ...], rows: np.ndarray,
    ) -> None:  # fmt: skip
        """Sample until every row has stopped; `rows` are the places of the live rows in the outputs."""
        ids, logprobs, lengths, finished = outputs
        prompt, sample = who
        alive = np.ones(len(rows), dtype=bool)
        for position in range(max_tokens):
            token, logprob = draw(logits, prompt, sample, position)
            live = rows[alive]
            ids[live, position] = token[alive]
            logprobs[live, position] = logprob[alive]
            lengths[live] += 1
            if len(stop):
                stopped = np.isin(token, stop) & alive
                finished[rows[stopped]] = True
                alive &= ~stopped
            if not alive.any() or position + 1 == max_tokens:
                return
            if alive.sum() <= 0.8 * len(alive):
                keep = np.flatnonzero(alive)
                cache = cache.select(torch.from_numpy(keep))
                token, rows, prompt, sample = token[keep], rows[keep], prompt[keep], sample[keep]
                alive = alive[keep]
            logits = self._step(torch.from_numpy(token), cache, column + position)

    @torch.inference_mode()
    def score(self, sequences: Sequence[Sequence[int]], prompt_lengths: Sequence[int]) -> list[np.ndarray]:
        """Log-probabilities, in nats, of each sequence's tokens after its prompt."""
        out: list[np.ndarray] = []
        for batch, first in self._padded(sequences):
            logits = self.model(batch[:, :-1]).log_softmax(-1)
            chosen = logits.gather(-1, batch[:, 1:, None]).squeeze(-1).numpy()
            for row in range(len(batch)):
                i = first + row
                out.append(chosen[row, prompt_lengths[i] - 1 : len(sequences[i]) - 1].copy())
        return out

    @torch.inference_mode()
    def reward(self, sequences: Sequence[Sequence[int]]) -> tuple[np.ndarray, float]:
        """A scorer's value at each sequence's last token [N], and the FLOPs it took."""
        if not self.model.n_scores:
            raise FlopwiseError("reward: this model has no score head; train one with the reward method")
        out = np.zeros(len(sequences), dtype=np.float32)
        flops = 0.0
        for batch, first in self._padded(sequences):
            part = sequences[first : first + len(batch)]
            last = torch.tensor([len(s) - 1 for s in part])
            hidden = self.model.hidden(batch)[torch.arange(len(batch)), last]
            out[first : first + len(batch)] = self.model.head(hidden).squeeze(-1).numpy()
            flops += sum(score_flops(self.cfg, len(s), n_logits=0).total for s in part)
        return out, flops

    def _padded(self, sequences: Sequence[Sequence[int]]) -> list[tuple[Tensor, int]]:
        """Right-padded batches in order with the index of their first row."""
        out = []
        for first in range(0, len(sequences), self.max_batch):
            part = sequences[first : first + self.max_batch]
            ids = np.zeros((len(part), max(map(len, part))), dtype=np.int64)
            for row, s in enumerate(part):
                ids[row, : len(s)] = s
            out.append((torch.from_numpy(ids), first))
        return out


class _Sampler:
    """Draws tokens from logits."""

    def __init__(self, temperature: float, top_k: int | None, top_p: float | None, seed: int):
        self.temperature, self.top_k, self.top_p, self.seed = temperature, top_k, top_p, seed

    def __call__(self, logits: Tensor, prompt: np.ndarray, sample: np.ndarray, position: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens [R] and their log-probabilities [R] at temperature 1."""
        logp = logits.log_softmax(-1)
        if self.temperature == 0:
            token = logp.argmax(-1)
        else:
            token = self._draw(logp, torch.from_numpy(uniforms(self.seed, prompt, sample, position)).to(logp.dtype))
        return token.numpy(), logp.gather(1, token[:, None]).squeeze(1).numpy()

    def _draw(self, logp: Tensor, u: Tensor) -> Tensor:
        candidates = None
        if self.temperature != 1:
            logp = logp / self.temperature
        if self.top_k is not None and self.top_k < logp.shape[-1]:
            # Before top-p: a sort of k values instead of the vocabulary.
            logp, candidates = logp.topk(self.top_k, dim=-1)
        p = logp.softmax(-1) if self.temperature != 1 or candidates is not None else logp.exp()
        if self.top_p is not None and self.top_p < 1:
            p, order = p.sort(-1, descending=True)
            candidates = order if candidates is None else candidates.gather(1, order)
            # The smallest set whose mass reaches top_p: a token stays if what stands before it is less.
            p = p.masked_fill(p.cumsum(-1) - p >= self.top_p, 0.0)
        cumulative = p.cumsum(-1)
        place = torch.searchsorted(cumulative, (u * cumulative[:, -1])[:, None], right=True)
        place = place.clamp_max_(p.shape[-1] - 1)
        return (place if candidates is None else candidates.gather(1, place)).squeeze(1)
