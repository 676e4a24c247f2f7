"""The pieces of `moe.py` in compiled code: routing, sorting and the experts' activation, one pass each.

Same mathematics and same gradients (`tests/models/test_moe.py` compares them).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from flopwise.models.native import _run


class _Route(Function):
    """Router logits to weights of the chosen experts."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, bias: Tensor, k: int, softmax: bool, norm: bool, scale: float, watched: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As `route`."""
        logits = logits.contiguous()
        N, E = logits.shape
        scores, weights = torch.empty_like(logits), logits.new_empty(N, k)
        chosen = torch.empty(N, k, dtype=torch.int64)
        sizes = (E, k, int(softmax), int(norm), float(scale))
        log_z = logits.new_empty(N)
        _run("route", N, logits, bias, scores, chosen, weights, log_z, *sizes)
        shares = logits.new_zeros(E)
        if watched:
            shares = (scores if softmax else scores / scores.sum(1, keepdim=True)).mean(0)
        ctx.save_for_backward(logits, scores, chosen, log_z)
        ctx.sizes = sizes
        ctx.mark_non_differentiable(chosen)
        return weights, chosen, shares, log_z

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, to_weights: Tensor, _: Any, to_shares: Tensor, to_log_z: Tensor
    ) -> tuple[Any, ...]:
        """To logits."""
        logits, scores, chosen, log_z = ctx.saved_tensors
        to_logits = torch.empty_like(logits)
        given = to_weights.contiguous(), to_shares / len(logits), to_log_z.contiguous()
        _run("route_back", len(logits), *given, logits, scores, chosen, log_z, to_logits, *ctx.sizes)
        return to_logits, None, None, None, None, None, None


def route(
    logits: Tensor, bias: Tensor, k: int, softmax: bool, norm: bool, scale: float, watched: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """logits [N, E], bias [E] -> weights and chosen experts [N, k]; and, if `watched`, the mean
    over tokens of each expert's share of the scores [E] and each token's log-sum-exp [N] (else anything)."""
    return _Route.apply(logits, bias, k, softmax, norm, scale, watched)


def by_expert(chosen: Tensor, n_experts: int) -> tuple[Tensor, Tensor]:
    """Places of `chosen` [N, k], flattened, sorted by expert, then by place: order [N k]; and how many each
    expert has [E]."""
    chosen = chosen.flatten()
    order, counts = torch.empty_like(chosen), chosen.new_empty(n_experts)
    _run("by_expert", 1, chosen, order, counts, len(chosen), n_experts)
    return order, counts


def expand(order: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens of the rows of `order` [N k], rows of the places, weights of the rows; given weights [N, k]."""
    tokens, places, scale = torch.empty_like(order), torch.empty_like(order), weights.new_empty(len(order))
    _run("expand", len(order), order, weights.contiguous(), tokens, places, scale, weights.shape[1])
    return tokens, places, scale


def sum_places(rows: Tensor, places: Tensor, k: int) -> Tensor:
    """Sum of each token's k rows: [N, d]."""
    out = rows.new_empty(len(rows) // k, rows.shape[1])
    _run("sum_places", len(out), rows, places, out, rows.shape[1], k)
    return out


def scaled_swiglu(hidden: Tensor, scale: Tensor) -> Tensor:
    """silu(gate) * up * scale for hidden = gate, up side by side [N k, 2F], scale [N k]."""
    out = hidden.new_empty(len(hidden), hidden.shape[1] // 2)
    _run("scaled_swiglu", len(hidden), hidden, scale, out, out.shape[1])
    return out


def scaled_swiglu_back(grad: Tensor, hidden: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to hidden and to scale, and `scaled_swiglu`'s result once more."""
    to_hidden, to_scale, result = torch.empty_like(hidden), torch.empty_like(scale), torch.empty_like(grad)
    _run("scaled_swiglu_back", len(hidden), grad, hidden, scale, to_hidden, to_scale, result, grad.shape[1])
    return to_hidden, to_scale, result
