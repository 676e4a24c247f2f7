"""Where a training step goes: matrix products, attention, passes over memory, the rest; one thread, float32.

Every part is timed alone on arrays of the model's shapes (least processor time of some repeats), and so is
the whole step with and without compiled kernels. What the parts do not explain is the optimiser, the
embedding, residual sums and calling the kernels.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch

from benchmarks.training import BATCH, SEQ_LEN, SHAPES, VOCAB
from flopwise.flops.hardware import keep_freed_memory, matmul_peak
from flopwise.models import kernels, native
from flopwise.models.config import ModelConfig
from flopwise.models.kernels import Positions
from flopwise.models.transformer import Transformer
from flopwise.train.objectives import Batch, cross_entropy
from flopwise.train.optim import Optimiser, Rates


def least(action: Callable[[], Any], seconds: float = 0.25, repeats: int = 5) -> float:
    """Milliseconds of processor time of the fastest call: so many of them, and for so long."""
    action()
    times: list[float] = []
    while len(times) < repeats or sum(times) < seconds:
        start = time.process_time()
        action()
        times.append(time.process_time() - start)
    return min(times) * 1e3


def both_ways(function: Callable[..., Any], *inputs: torch.Tensor) -> Callable[[], None]:
    """Forward and backward."""
    inputs = tuple(t.requires_grad_() for t in inputs)

    def action() -> None:
        out = function(*inputs)
        out = out[0] if isinstance(out, tuple) else out
        torch.autograd.grad(out, inputs, torch.ones_like(out))

    return action


def linear(fan_in: int, fan_out: int) -> float:
    """Milliseconds of a linear layer's three products: forward, to the input, to the weight."""
    N = BATCH * SEQ_LEN
    x, w, g = torch.randn(N, fan_in), torch.randn(fan_out, fan_in), torch.randn(N, fan_out)
    return least(lambda: torch.mm(x, w.T)) + least(lambda: torch.mm(g, w)) + least(lambda: torch.mm(x.T, g))


def products(cfg: ModelConfig) -> float:
    """Milliseconds of all layers' products but the head's."""
    d = cfg.d_model
    heads = (cfg.n_heads + 2 * cfg.n_kv_heads) * cfg.head_dim
    layers = [(d, heads), (cfg.n_heads * cfg.head_dim, d), (d, 2 * cfg.d_ff), (cfg.d_ff, d)]
    return cfg.n_layers * sum(linear(*shape) for shape in layers)


def whole(cfg: ModelConfig, optimiser: str) -> float:
    """Milliseconds of a step: forward, backward, clipping, update."""
    model = Transformer(cfg).initialise(0)
    torch.nn.init.normal_(model.head.weight, std=0.02)
    opt = Optimiser(model, Rates(optimiser=optimiser))
    rows = torch.randint(VOCAB, (BATCH, SEQ_LEN + 1), generator=torch.Generator().manual_seed(0))
    batch = Batch(rows[:, :-1], rows[:, 1:])

    def step() -> None:
        loss, _ = cross_entropy(model, batch)
        loss.backward()
        opt.clip(1.0)
        opt.step(0.1)
        opt.zero_grad()

    return least(step, seconds=1.5)


def parts(width: int, depth: int) -> dict[str, Any]:
    """One row of the table, in milliseconds."""
    cfg = ModelConfig.from_width(width, depth, VOCAB, SEQ_LEN)
    N, H, K, D = BATCH * SEQ_LEN, cfg.n_heads, cfg.n_kv_heads, cfg.head_dim
    model = Transformer(cfg)
    at = Positions.of(model.cos, model.sin, H, K)
    attention = both_ways(
        lambda qkv: kernels.attention(qkv, at, H, K), torch.randn(BATCH, SEQ_LEN, (H + 2 * K) * D)
    )
    norm = both_ways(lambda x, w: kernels.rms_norm(x, w, 1e-5), torch.randn(N, width), torch.ones(width))
    targets = torch.randint(VOCAB, (N,))
    hidden, weight = torch.randn(N, width), torch.randn(VOCAB, width)
    loss = least(both_ways(lambda h, w: kernels.token_logprobs(h, w, targets), hidden, weight))
    head = linear(width, VOCAB)
    row = {
        "width": width,
        "depth": depth,
        "matmul_peak_flop_s": matmul_peak(),
        "products": products(cfg) + head,
        "attention": depth * least(attention),
        "passes": depth * least(both_ways(kernels.swiglu, torch.randn(N, 2 * cfg.d_ff)))
        + (2 * depth + 1) * least(norm)
        + max(0.0, loss - head),
        "step": whole(cfg, "adamw"),
        "muon": whole(cfg, "muon"),
    }
    with mock.patch.object(native, "library", lambda: None):
        row["step_in_torch"] = whole(cfg, "adamw")
    return row


def run() -> list[dict[str, Any]]:
    """A row per shape."""
    torch.set_num_threads(1)
    keep_freed_memory()
    return [parts(width, depth) for width, depth in SHAPES]
