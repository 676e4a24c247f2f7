"""Expert parallelism: each process holds some experts of every mixture layer and all of the rest.

A token's row goes to the processes that hold its experts (all-to-all), is worked on there, and comes back:
what a mixture layer computes is what one process would compute (GShard, arXiv 2006.16668, section 3.2).
Attention, norms, router and tables are held by all, and their gradients are averaged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from flopwise.errors import FlopwiseError
from flopwise.models.moe import MoE, by_expert, experts
from flopwise.models.transformer import Transformer
from flopwise.train import shards
from flopwise.train.shards import Rows

EXPERT_WEIGHTS = ("gate_up", "down")


class _Exchange(Function):
    """Rows to other processes and from them: `sent[r]` go to process r, `got[r]` come from it."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sent: list[int], got: list[int]) -> Tensor:
        ctx.sent, ctx.got = sent, got
        return _exchange(rows, sent, got)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _exchange(grad.contiguous(), ctx.got, ctx.sent), None, None


def _exchange(rows: Tensor, sent: list[int], got: list[int]) -> Tensor:
    out = rows.new_empty(sum(got), *rows.shape[1:])
    dist.all_to_all_single(out, rows.contiguous(), got, sent)
    return out


class SplitMoE(MoE):
    """A mixture layer of which this process holds experts `rows`; an existing layer becomes one."""

    rows: Rows

    @classmethod
    def take(cls, layer: MoE) -> None:
        """Keep this process's experts of a whole layer and drop the others.

        Raises:
            FlopwiseError: there are fewer experts than processes.
        """
        total = layer.cfg.n_experts
        rows = Rows.of(total, shards.rank(), shards.size())
        if Rows.of(total, shards.size() - 1, shards.size()).count < 1:
            raise FlopwiseError(
                f"train.parallel is ep, but {total} experts cannot be split over {shards.size()} processes; "
                f"lower train.processes or raise expansion"
            )
        for name in EXPERT_WEIGHTS:
            part = nn.Parameter(rows.cut(getattr(layer, name).detach()).clone())
            part.rows = rows  # type: ignore[attr-defined]
            setattr(layer, name, part)
        layer.__class__ = cls
        layer.rows = rows  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        """x [N, d_model], this process's tokens -> [N, d_model]."""
        weights, chosen = self.route(x)
        k, W = chosen.shape[1], shards.size()
        order, counts = by_expert(chosen, self.cfg.n_experts)
        each = Rows.of(self.cfg.n_experts, 0, W).count
        # How many rows of each expert go to each process, and come from each for the experts held here.
        to = [counts[r * each : (r + 1) * each] for r in range(W)]
        asked = _exchange(counts, [len(c) for c in to], [self.rows.count] * W).view(W, -1)
        sent, got = [int(c.sum()) for c in to], asked.sum(1).tolist()
        rows = _Exchange.apply(x[order.div(k, rounding_mode="floor")], sent, got)
        places = torch.arange(self.rows.count, device=x.device).repeat(W)
        places = places.repeat_interleave(asked.flatten())[:, None]
        ones = rows.new_ones(len(rows), 1)
        done = experts(rows, self.gate_up, self.down, ones, *by_expert(places, self.rows.count))
        back = _Exchange.apply(done, got, sent)
        out = torch.empty_like(back).index_copy(0, order, back)
        out = (out.view(-1, k, x.shape[1]) * weights[:, :, None]).sum(1)
        return out if self.shared is None else out + self.shared(x)


def split(
    model: Transformer, make_optimiser: Callable[[Transformer], Any]
) -> tuple[Transformer, SplitOptimiser]:
    """The model with this process's experts alone, and an optimiser over what is here.

    Raises:
        FlopwiseError: the model has no experts, or fewer than there are processes.
    """
    layers = [m for m in model.modules() if isinstance(m, MoE)]
    if not layers:
        raise FlopwiseError("train.parallel is ep, but the model has no experts; use ddp or fsdp")
    for layer in layers:
        SplitMoE.take(layer)
    return model, SplitOptimiser(model, make_optimiser(model))


@torch.no_grad()
def join_gradients(model: Transformer) -> None:
    """Average the gradients of what all processes hold; experts' are sums over all tokens already."""
    W = shards.size()
    shared = []
    for p in model.parameters():
        if p.grad is None:
            p.grad = torch.zeros_like(p)
        if shards.rows_of(p) is None:
            shared.append(p.grad)
        else:
            p.grad /= W
    flat = torch.cat([g.flatten() for g in shared])
    dist.all_reduce(flat)
    flat /= W
    for grad, part in zip(shared, flat.split([g.numel() for g in shared]), strict=True):
        grad.copy_(part.view_as(grad))


class SplitOptimiser:
    """An optimiser of whole matrices over what this process holds; its state is gathered by name."""

    def __init__(self, model: Transformer, inner: Any):
        self.model, self.inner = model, inner
        self.rows = {name: shards.rows_of(p) for name, p in model.named_parameters()}

    def step(self, factor: float) -> None:
        """One update at `factor` times the base rates."""
        self.inner.step(factor)

    def zero_grad(self) -> None:
        """Clear gradients."""
        self.inner.zero_grad()

    def clip(self, limit: float) -> Tensor:
        """Scale all gradients to a joint norm of at most `limit`; returns the norm before."""
        return clip(list(self.model.parameters()), limit)

    def state(self) -> dict[str, Tensor]:
        """Everything needed to go on: every process calls this, and in the first one it is whole."""
        return {key: shards.gather(t, self._rows(key, t), False) for key, t in self.inner.state().items()}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `state` gave, this process's experts of it."""
        cut = {}
        for key, t in tensors.items():
            rows = self._rows(key, t)
            cut[key] = t if rows is None else rows.cut(t)
        self.inner.load_state(cut)

    def _rows(self, key: str, t: Tensor) -> Rows | None:
        """How the state named `muon.<parameter>` or `adam.<parameter>.<what>` is split."""
        name = key.partition(".")[2]
        for candidate in (name, name.rpartition(".")[0]):
            if candidate in self.rows:
                return self.rows[candidate] if t.ndim else None
        raise KeyError(f"the optimiser's state {key} belongs to no parameter")


@torch.no_grad()
def clip(params: list[nn.Parameter], limit: float) -> Tensor:
    """Scale gradients, some of them split over processes, to a joint norm of at most `limit`."""
    held = [p.grad for p in params if p.grad is not None and shards.rows_of(p) is None]
    split = [shards.mine(p.grad) for p in params if p.grad is not None and shards.rows_of(p) is not None]

    def square(grads: list[Tensor]) -> Tensor:
        norms = list(torch._foreach_norm(grads)) if grads else []
        return torch.stack(norms).square().sum() if norms else torch.zeros((), device=params[0].device)

    parts = square([g for g in split if g.numel()])
    dist.all_reduce(parts)
    norm = (square(held) + parts).sqrt()
    # As nn.utils.clip_grad_norm_ has it.
    torch._foreach_mul_([g for g in held + split if g.numel()], (limit / (norm + 1e-6)).clamp(max=1.0))
    return norm
