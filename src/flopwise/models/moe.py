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

from flopwise.models import kernels, native, native_moe, plain_moe
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
        ctx: Any, x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor, order: Tensor, counts: Tensor
    ) -> Tensor:
        pieces = _pieces(x)
        tokens, places, scale = pieces.expand(order, weights)
        sizes = counts.tolist()
        inputs = x.index_select(0, tokens)
        hidden = _grouped(inputs, gate_up.mT, sizes)
        out = _grouped(pieces.scaled_swiglu(hidden, scale), down.mT, sizes)
        ctx.save_for_backward(inputs, gate_up, down, hidden, scale, tokens, places)
        ctx.sizes, ctx.pieces, ctx.k = sizes, pieces, weights.shape[1]
        return pieces.sum_places(out, places, ctx.k)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs, gate_up, down, hidden, scale, tokens, places = ctx.saved_tensors
        sizes, pieces, k = ctx.sizes, ctx.pieces, ctx.k
        grad = grad.index_select(0, tokens)
        to_active = _grouped(grad, down, sizes)
        to_hidden, to_scale, active = pieces.scaled_swiglu_back(to_active, hidden, scale)
        _, wants_gate_up, wants_down, *_ = ctx.needs_input_grad
        to_down = _grouped_weights(grad, active, sizes, down) if wants_down else None
        to_gate_up = _grouped_weights(to_hidden, inputs, sizes, gate_up) if wants_gate_up else None
        to_x = pieces.sum_places(_grouped(to_hidden, gate_up, sizes), places, k)
        return to_x, to_gate_up, to_down, to_scale.index_select(0, places).view(-1, k), None, None


def experts(
    x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor, order: Tensor, counts: Tensor
) -> Tensor:
    """Weighted sum of experts' results for each token [N, d].

    Args:
        x: tokens [N, d].
        gate_up: experts' first matrices [E, 2F, d].
        down: their last matrices [E, d, F].
        weights: of each token's experts [N, k].
        order, counts: what `by_expert` made of the tokens' experts.
    """
    device = x.device.type
    if not torch.is_autocast_enabled(device):
        return _Experts.apply(x, gate_up, down, weights, order, counts)
    low = torch.get_autocast_dtype(device)
    with torch.autocast(device, enabled=False):
        given = (t.to(low) for t in (x, gate_up, down, weights))
        return _Experts.apply(*given, order, counts)


def by_expert(chosen: Tensor, n_experts: int) -> tuple[Tensor, Tensor]:
    """Places of `chosen` [N, k], flattened, sorted by expert, then by place: order [N k]; and how many each
    expert has [E]."""
    like = torch.empty(0, device=chosen.device)  # what is compiled asks for floats
    return _pieces(like).by_expert(chosen, n_experts)


def _pieces(x: Tensor) -> Any:
    """Compiled code where it can be had."""
    return native_moe if native.usable(x) else plain_moe


def _grouped(x: Tensor, matrices: Tensor, sizes: list[int]) -> Tensor:
    """The rows of each expert, `sizes` of them, times its matrix [rows, columns] of `matrices`."""
    out = x.new_empty(len(x), matrices.shape[2])
    for rows, matrix, to in zip(x.split(sizes), matrices.unbind(), out.split(sizes), strict=True):
        torch.mm(rows, matrix, out=to)
    return out


def _grouped_weights(grad: Tensor, x: Tensor, sizes: list[int], like: Tensor) -> Tensor:
    """Gradient to the matrices `like`: of each expert its rows of `grad`, transposed, times those of x."""
    out = torch.empty_like(like)
    for above, rows, to in zip(grad.split(sizes), x.split(sizes), out.unbind(), strict=True):
        torch.mm(above.T, rows, out=to)
    return out


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
        self.gate_up = nn.Parameter(torch.zeros(E, 2 * inner, width))
        self.down = nn.Parameter(torch.zeros(E, width, inner))
        self.shared = MLP(width, cfg.d_shared) if cfg.d_shared else None
        # Part of the state: a resumed run selects as it would have.
        self.register_buffer("bias", torch.zeros(E))
        self.register_buffer("load", torch.zeros(E), persistent=False)
        self.auxiliary: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x [N, d_model] -> [N, d_model]."""
        weights, chosen = self.route(x)
        out = experts(x, self.gate_up, self.down, weights, *by_expert(chosen, self.cfg.n_experts))
        return out if self.shared is None else out + self.shared(x)

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and indices of each token's experts [N, k] for x [N, d_model]."""
        cfg = self.cfg
        # Roll-outs and scoring between updates say nothing about the balance of training.
        learns = self.training and torch.is_grad_enabled()
        watched = learns and bool(cfg.router_z_loss or (cfg.balance == "aux" and cfg.aux_loss))
        how = cfg.experts_per_token, cfg.scoring == "softmax", cfg.norm_topk, cfg.routed_scale, watched
        logits = self.router(x)
        weights, chosen, shares, log_z = _pieces(logits).route(logits, self.bias, *how)
        self.auxiliary = self._watch(chosen, shares, log_z) if learns else None
        return weights, chosen

    def _watch(self, chosen: Tensor, shares: Tensor, log_z: Tensor) -> Tensor | None:
        """Count the load; the sum of the auxiliary losses.

        Load balancing: E times the product of an expert's share of the assignments and its mean share of the
        scores, summed over experts: 1 when all are even (Switch, arXiv 2101.03961, eq. 4, for k > 1 with the
        share over all k choices; sigmoid scores are divided by their sum, DeepSeek-V3, arXiv 2412.19437,
        eq. 19). Router z-loss: the mean squared log-sum-exp of the logits (ST-MoE, arXiv 2202.08906, eq. 5).
        """
        cfg = self.cfg
        counts = across_processes(torch.bincount(chosen.flatten(), minlength=cfg.n_experts).to(shares.dtype))
        self.load += counts
        losses = []
        if cfg.balance == "aux" and cfg.aux_loss:
            losses.append((shares * counts).sum() * (cfg.aux_loss * cfg.n_experts / counts.sum()))
        if cfg.router_z_loss:
            losses.append(log_z.square().mean() * cfg.router_z_loss)
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


def across_processes(counts: Tensor) -> Tensor:
    """Sum over the processes of a distributed run: balance is a matter of the whole batch."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(counts)
    return counts
