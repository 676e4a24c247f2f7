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


def least(action: Callable[[], Any], repeats: int = 12) -> float:
    """Milliseconds of processor time of the fastest of some calls."""
    action()
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        action()
        best = min(best, time.process_time() - start)
    return best * 1e3


def both_ways(function: Callable[..., Any], *inputs: torch.Tensor) -> Callable[[], None]:
    """Forward and backward."""
    inputs = tuple(t.requires_grad_() for t in inputs)

    def action() -> None:
        out = function(*inputs)
        out = out[0] if isinstance(out, tuple) else out
        torch.autograd.grad(out, inputs, torch.ones_like(out))

    return action


def products(cfg: ModelConfig) -> float:
    """Milliseconds of all linear layers' products: forward, to the input, to the weight."""
    N, d = BATCH * SEQ_LEN, cfg.d_model
    heads = (cfg.n_heads + 2 * cfg.n_kv_heads) * cfg.head_dim
    layers = [(d, heads), (cfg.n_heads * cfg.head_dim, d), (d, 2 * cfg.d_ff), (cfg.d_ff, d)]
    total = 0.0
    for (fan_in, fan_out), times in [*((shape, cfg.n_layers) for shape in layers), ((d, VOCAB), 1)]:
        x, w, g = torch.randn(N, fan_in), torch.randn(fan_out, fan_in), torch.randn(N, fan_out)
        total += times * sum(
            least(product)
            for product in (
                lambda x=x, w=w: torch.mm(x, w.T),
                lambda g=g, w=w: torch.mm(g, w),
                lambda g=g, x=x: torch.mm(x.T, g),
            )
        )
    return total


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

    return least(step)


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
    head = torch.randn(VOCAB, 8)
    loss = both_ways(lambda h, w: kernels.token_logprobs(h, w, targets), torch.randn(N, 8), head)
    row = {
        "width": width,
        "depth": depth,
        "matmul_peak_flop_s": matmul_peak(),
        "products": products(cfg),
        "attention": depth * least(attention),
        "passes": depth * least(both_ways(kernels.swiglu, torch.randn(N, 2 * cfg.d_ff)))
        + (2 * depth + 1) * least(norm)
        + least(loss),
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
