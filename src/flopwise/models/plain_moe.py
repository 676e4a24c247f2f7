"""The pieces of `moe.py` in torch, for machines without a compiler and for all devices and precisions."""

from __future__ import annotations

import torch
from torch import Tensor


def route(
    logits: Tensor, bias: Tensor, k: int, softmax: bool, norm: bool, scale: float, watched: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """logits [N, E], bias [E] -> weights and chosen experts [N, k]; and, if `watched`, the mean
    over tokens of each expert's share of the scores [E] and each token's log-sum-exp [N] (else anything)."""
    logits = logits.float() if logits.dtype.itemsize < 4 else logits
    scores = logits.softmax(1) if softmax else logits.sigmoid()
    with torch.no_grad():
        chosen = (scores + bias).topk(k, 1).indices
    weights = scores.gather(1, chosen)
    if norm:
        weights = weights / weights.sum(1, keepdim=True)
    if scale != 1:
        weights = weights * scale
    if not watched:
        return weights, chosen, logits.new_zeros(len(bias)), logits.new_zeros(len(logits))
    shares = scores if softmax else scores / scores.sum(1, keepdim=True)
    return weights, chosen, shares.mean(0), logits.logsumexp(1)


def by_expert(chosen: Tensor, n_experts: int) -> tuple[Tensor, Tensor]:
    """Places of `chosen` [N, k], flattened, sorted by expert, then by place: order [N k]; and how many each
    expert has [E]."""
    flat = chosen.flatten()
    return flat.argsort(stable=True), torch.bincount(flat, minlength=n_experts)


def expand(order: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens of the rows of `order` [N k], rows of the places, weights of the rows; given weights [N, k]."""
    tokens = order.div(weights.shape[1], rounding_mode="floor")
    rows = torch.arange(len(order), device=order.device)
    return (
        tokens,
        torch.empty_like(order).index_copy_(0, order, rows),
        weights.flatten().index_select(0, order),
    )


def sum_places(rows: Tensor, places: Tensor, k: int) -> Tensor:
    """Sum of each token's k rows: [N, d]."""
    back = rows.index_select(0, places)
    return back if k == 1 else back.view(-1, k, rows.shape[1]).sum(1)


def scaled_swiglu(hidden: Tensor, scale: Tensor) -> Tensor:
    """silu(gate) * up * scale for hidden = gate, up side by side [N k, 2F], scale [N k]."""
    gate, up = hidden.chunk(2, 1)
    return torch.sigmoid(gate).mul_(gate).mul_(up).mul_(scale[:, None])


def scaled_swiglu_back(grad: Tensor, hidden: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to hidden and to scale, and `scaled_swiglu`'s result once more."""
    gate, up = hidden.chunk(2, 1)
    sigmoid = torch.sigmoid(gate)
    silu = gate * sigmoid
    result = silu * up
    to_scale = (grad * result).sum(1)
    scale = scale[:, None]
    to_hidden = torch.empty_like(hidden)
    to_gate, to_up = to_hidden.chunk(2, 1)
    torch.mul(grad, silu, out=to_up).mul_(scale)
    # d silu(g) / dg = s + g s (1 - s)
    torch.addcmul(silu, silu, sigmoid, value=-1, out=to_gate)
    to_gate.add_(sigmoid).mul_(up).mul_(grad).mul_(scale)
    return to_hidden, to_scale, result.mul_(scale)
