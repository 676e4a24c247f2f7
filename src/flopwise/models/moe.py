"""Mixture of experts: which experts a token goes to, how they are kept evenly used, and the products.

Token choice: each token goes to the k experts with the highest scores, and no expert ever turns one away
(dropless: there is no capacity). `docs/models.md` states the formulas with their sources.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from flopwise.models import kernels
from flopwise.models.config import ModelConfig


class MLP(nn.Module):
    """SwiGLU (Shazeer, arXiv 2002.05202): down(silu(gate(x)) * up(x)), gate and up fused."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, d_model] -> [N, d_model]."""
        return self.down(kernels.swiglu(self.gate_up(x)))

    def matrices(self) -> list[tuple[Tensor, list[int]]]:
        """Weights [out, in], each with the rows of the maps that are fused in it."""
        inner = self.down.in_features
        return [(self.gate_up.weight, [inner, inner]), (self.down.weight, [self.down.out_features])]


class _Experts(Function):
    """Every expert on the tokens that go to it; tokens are gathered in the order of their experts, so each
    product reads and writes one slice."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor, order: Tensor, ends: list[int]
    ) -> Tensor:
        k, inner = weights.shape[1], down.shape[2]
        tokens = order.div(k, rounding_mode="floor")
        places = torch.empty_like(order).index_copy_(0, order, torch.arange(len(order), device=order.device))
        inputs = x.index_select(0, tokens)
        hidden = x.new_empty(len(order), 2 * inner)
        _grouped(inputs, gate_up.mT, ends, hidden)
        gate, up = hidden.chunk(2, -1)
        sigmoid = torch.sigmoid(gate)
        gated = gate * sigmoid
        scale = weights.flatten().index_select(0, order)[:, None]
        active = (gated * up).mul_(scale)
        outputs = torch.empty_like(inputs)
        _grouped(active, down.mT, ends, outputs)
        ctx.save_for_backward(inputs, gate_up, down, hidden, sigmoid, gated, active, scale, places, tokens)
        ctx.ends, ctx.k = ends, k
        return _sum_places(outputs, places, k)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs, gate_up, down, hidden, sigmoid, gated, active, scale, places, tokens = ctx.saved_tensors
        ends, k = ctx.ends, ctx.k
        grad = grad.index_select(0, tokens)
        to_down, to_gate_up = torch.empty_like(down), torch.empty_like(gate_up)
        _grouped_weights(grad, active, ends, to_down)
        to_active = torch.empty_like(active)
        _grouped(grad, down, ends, to_active)
        up = hidden.chunk(2, -1)[1]
        to_hidden = torch.empty_like(hidden)
        to_gate, to_up = to_hidden.chunk(2, -1)
        torch.mul(to_active, gated, out=to_up)
        to_scale = (to_up * up).sum(1)
        to_up.mul_(scale)
        # d silu(g) / dg = s + g s (1 - s)
        torch.addcmul(gated, gated, sigmoid, value=-1, out=to_gate)
        to_gate.add_(sigmoid).mul_(up).mul_(to_active.mul_(scale))
        _grouped_weights(to_hidden, inputs, ends, to_gate_up)
        to_inputs = torch.empty_like(inputs)
        _grouped(to_hidden, gate_up, ends, to_inputs)
        to_weights = to_scale.index_select(0, places).view(-1, k)
        return _sum_places(to_inputs, places, k), to_gate_up, to_down, to_weights, None, None


def _grouped(x: Tensor, matrices: Tensor, ends: list[int], out: Tensor) -> None:
    """out[a:b] = x[a:b] @ matrices[e], where the rows of expert e end at ends[e]."""
    start = 0
    for end, matrix in zip(ends, matrices, strict=True):
        if end > start:
            torch.mm(x[start:end], matrix, out=out[start:end])
        start = end


def _grouped_weights(grad: Tensor, x: Tensor, ends: list[int], out: Tensor) -> None:
    """out[e] = grad[a:b].T @ x[a:b]: zeros where an expert has no tokens."""
    start = 0
    for end, matrix in zip(ends, out, strict=True):
        torch.mm(grad[start:end].T, x[start:end], out=matrix)
        start = end


def _sum_places(rows: Tensor, places: Tensor, k: int) -> Tensor:
    """Sum of the rows of each token [N, d], which lie at its k places."""
    back = rows.index_select(0, places)
    return back if k == 1 else back.view(-1, k, rows.shape[1]).sum(1)


class MoE(nn.Module):
    """Feed-forward layer of `n_experts` experts, `experts_per_token` at work per token, and a shared one.

    Args of the configuration that it reads: see `ModelConfig`. After a forward pass in training mode
    `auxiliary` is what the loss should be raised by, and `load` has grown by the tokens each expert took.
    """

    bias: Tensor
    load: Tensor

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.cfg = cfg
        E, width, inner = cfg.n_experts, cfg.d_model, cfg.d_expert
        self.router = nn.Linear(width, E, bias=False)
        self.gate_up = nn.Parameter(torch.empty(E, 2 * inner, width))
        self.down = nn.Parameter(torch.empty(E, width, inner))
        self.shared = MLP(width, cfg.d_shared) if cfg.d_shared else None
        # Part of the state: a resumed run selects as it would have.
        self.register_buffer("bias", torch.zeros(E))
        self.register_buffer("load", torch.zeros(E), persistent=False)
        self.auxiliary: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x [N, d_model] -> [N, d_model]."""
        weights, chosen = self.route(x)
        order, counts = by_expert(chosen, self.cfg.n_experts)
        ends = counts.cumsum(0).tolist()
        out = _Experts.apply(x, self.gate_up, self.down, weights, order, ends)
        return out if self.shared is None else out + self.shared(x)

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and indices of each token's experts [N, k] for x [N, d_model]."""
        cfg = self.cfg
        logits = self.router(x)
        scores = logits.softmax(-1) if cfg.scoring == "softmax" else logits.sigmoid()
        with torch.no_grad():
            chosen = (scores + self.bias).topk(cfg.experts_per_token, -1, sorted=False).indices
        weights = scores.gather(1, chosen)
        if cfg.norm_topk:
            weights = weights / weights.sum(1, keepdim=True)
        if cfg.routed_scale != 1:
            weights = weights * cfg.routed_scale
        self.auxiliary = self._watch(logits, scores, chosen) if self._learns() else None
        return weights, chosen

    def _learns(self) -> bool:
        """Roll-outs and scoring between updates say nothing about the balance of training."""
        return self.training and torch.is_grad_enabled()

    def _watch(self, logits: Tensor, scores: Tensor, chosen: Tensor) -> Tensor | None:
        """Count the load; the sum of the auxiliary losses.

        Load balancing: E times the product of an expert's share of the assignments and its mean share of the
        scores, summed over experts: 1 when all are even (Switch, arXiv 2101.03961, eq. 4, for k > 1 with the
        share over all k choices; sigmoid scores are divided by their sum, DeepSeek-V3, arXiv 2412.19437,
        eq. 19). Router z-loss: the mean squared log-sum-exp of the logits (ST-MoE, arXiv 2202.08906, eq. 5).
        """
        cfg = self.cfg
        counts = across_processes(torch.bincount(chosen.flatten(), minlength=cfg.n_experts).to(scores.dtype))
        self.load += counts
        losses = []
        if cfg.balance == "aux" and cfg.aux_loss:
            shares = scores if cfg.scoring == "softmax" else scores / scores.sum(1, keepdim=True)
            losses.append((shares.mean(0) * counts).sum() * (cfg.aux_loss * cfg.n_experts / counts.sum()))
        if cfg.router_z_loss:
            losses.append(logits.logsumexp(1).square().mean() * cfg.router_z_loss)
        return torch.stack(losses).sum() if losses else None

    @torch.no_grad()
    def rebalance(self) -> None:
        """Move the selection bias against the load seen since the last call, and forget that load.

        An expert with less than the mean load gains `bias_rate`, one with more loses it (Wang et al.,
        arXiv 2408.15664, algorithm 1; DeepSeek-V3, arXiv 2412.19437, section 2.1.2).
        """
        if self.cfg.balance == "bias":
            self.bias += self.cfg.bias_rate * (self.load.mean() - self.load).sign()
        self.load.zero_()

    def matrices(self) -> list[tuple[Tensor, list[int]]]:
        """Weights [experts, out, in] or [out, in], each with the rows of the maps that are fused in it.
        The router is none of them: like the head it is a read-out, not a map between hidden layers."""
        inner = self.cfg.d_expert
        own: list[tuple[Tensor, list[int]]] = [
            (self.gate_up, [inner, inner]), (self.down, [self.cfg.d_model]),
        ]  # fmt: skip
        return own if self.shared is None else own + self.shared.matrices()


DEAD = 0.01
"""An expert is called dead below this part of an even share of the tokens."""


@torch.no_grad()
def expert_load(model: nn.Module, ids: Tensor, batch: int = 32) -> dict[str, list[Any]]:
    """How evenly the experts of a model are used over the tokens `ids` [n, T], read `batch` rows at a time.

    One entry per layer with experts, first layer first: `layers` each expert's share of all assignments (they
    sum to 1), `entropy` of these shares over the log of their number (1: even), `max_over_mean`, and `dead`,
    the share of experts with less than a hundredth of an even load.
    """
    moes = [m for m in model.modules() if isinstance(m, MoE)]
    counts = [torch.zeros(m.cfg.n_experts, dtype=torch.int64) for m in moes]

    def watch(moe: MoE, inputs: tuple[Tensor], _: Tensor) -> None:
        chosen = moe.route(inputs[0])[1].flatten()
        counts[moes.index(moe)] += torch.bincount(chosen, minlength=moe.cfg.n_experts).cpu()

    hooks = [m.register_forward_hook(watch) for m in moes]
    try:
        for rows in ids.split(batch):
            model(rows)
    finally:
        for hook in hooks:
            hook.remove()
    shares = [c.double() / c.sum() for c in counts]
    return {
        "layers": [s.tolist() for s in shares],
        "entropy": [float(-torch.xlogy(s, s).sum() / math.log(max(2, len(s)))) for s in shares],
        "max_over_mean": [float(s.max() * len(s)) for s in shares],
        "dead": [float((s * len(s) < DEAD).double().mean()) for s in shares],
    }


def by_expert(chosen: Tensor, n_experts: int) -> tuple[Tensor, Tensor]:
    """Places of `chosen` [N, k], flattened, sorted by expert and then by place; tokens per expert [E]."""
    flat = chosen.flatten()
    return flat.argsort(stable=True), torch.bincount(flat, minlength=n_experts)


def across_processes(counts: Tensor) -> Tensor:
    """Sum over the processes of a distributed run: balance is a matter of the whole batch."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(counts)
    return counts
