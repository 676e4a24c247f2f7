"""Fully sharded training: each process holds some rows of every weight, its gradient and its optimiser state.

PyTorch's FSDP2 gathers a block's weights for its forward and backward pass and scatters its gradient
(`fully_shard`; the scheme is ZeRO's third stage, arXiv 1910.02054). AdamW is elementwise and needs no more.
Muon needs whole matrices: the momentum stays in rows, its direction is gathered one shape at a time, each
process orthogonalises its share of the matrices, and every process takes its rows of the results.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flopwise.models.transformer import Block, Transformer
from flopwise.train import experts, shards
from flopwise.train.optim import Optimiser, orthogonalise
from flopwise.train.shards import Rows


def shard(
    model: Transformer, make_optimiser: Callable[[Transformer], Optimiser], device: torch.device
) -> tuple[Transformer, ShardedOptimiser]:
    """The model with its weights split over all processes, and an optimiser over the parts."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    groups = Groups(model, make_optimiser(model))
    for p in model.parameters():
        p.grad = None
    mesh = init_device_mesh(device.type, (shards.size(),))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    # Tables and the last norm stay gathered between forward and backward pass: the loss reads the head.
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    register_fsdp_forward_method(model, "hidden")
    return model, ShardedOptimiser(model, groups)


class Groups:
    """What an optimiser of the whole model does with each weight, by name."""

    def __init__(self, model: Transformer, whole: Optimiser):
        names = {id(p): name for name, p in model.named_parameters()}
        self.rates = whole.rates
        self.adam = [
            ([names[id(p)] for p in group["params"]], {"lr": lr, "weight_decay": group["weight_decay"]})
            for group, lr in zip(whole.adam.param_groups, whole.base_lr, strict=True)
        ]
        self.adam_options = {key: whole.adam.defaults[key] for key in ("betas", "eps")}
        moved = {id(weight) for weight in whole.matrices}
        blocks = [b for b in model.blocks if isinstance(b, Block)]
        self.matrices = [
            (names[id(weight)], rows)
            for block in blocks for weight, rows in block.matrices() if id(weight) in moved
        ]  # fmt: skip


class ShardedOptimiser:
    """`Optimiser` over rows of weights: the same update to rounding; its state is whole when asked for."""

    def __init__(self, model: Transformer, groups: Groups):
        self.model, self.groups = model, groups
        self.params = dict(model.named_parameters())
        self.local = {name: torch.nn.Parameter(shards.mine(p.detach())) for name, p in self.params.items()}
        self.rows = {name: shards.rows_of(p) for name, p in self.params.items()}
        self.adam = torch.optim.AdamW(
            [{"params": [self.local[n] for n in names], **how} for names, how in groups.adam],
            **groups.adam_options, fused=True,
        )  # fmt: skip
        self.momentum = {name: torch.zeros_like(self.local[name].detach()) for name, _ in groups.matrices}

    def zero_grad(self) -> None:
        """Clear gradients."""
        for p in (*self.params.values(), *self.local.values()):
            p.grad = None

    def clip(self, limit: float) -> Tensor:
        """Scale all gradients to a joint norm of at most `limit`; returns the norm before."""
        return experts.clip(list(self.params.values()), limit)

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """One update at `factor` times the base rates; every process calls this."""
        for name, p in self.params.items():
            self.local[name].grad = None if p.grad is None else shards.mine(p.grad)
        for group, (_, how) in zip(self.adam.param_groups, self.groups.adam, strict=True):
            group["lr"] = how["lr"] * factor
        self.adam.step()
        self._muon(self.groups.rates.muon * factor)
        self.model.rebalance()

    def _muon(self, lr: float) -> None:
        rates = self.groups.rates
        shapes: dict[tuple[int, ...], list[tuple[str, list[int]]]] = {}
        for name, rows in self.groups.matrices:
            shapes.setdefault(tuple(self.params[name].shape), []).append((name, rows))
        for members in shapes.values():
            directions = []
            for name, _ in members:
                gradient, buffer = self.local[name].grad, self.momentum[name]
                assert gradient is not None
                buffer.lerp_(gradient, 1 - rates.momentum)
                directions.append(gradient.lerp(buffer, rates.momentum))
            if directions[0].ndim == 3:  # experts: whole matrices, and some of them here
                updates = [
                    _maps(d, rows, orthogonalise) for d, (_, rows) in zip(directions, members, strict=True)
                ]
            else:
                updates = self._together(directions, members)
            for (name, _), update in zip(members, updates, strict=True):
                if rates.weight_decay:
                    self.local[name].mul_(1.0 - lr * rates.weight_decay)
                self.local[name].add_(update, alpha=-lr)

    def _together(self, directions: list[Tensor], members: list[tuple[str, list[int]]]) -> list[Tensor]:
        """Updates of this process's rows of some matrices [out, in] of one shape."""
        whole = [shards.gather(d, self.rows[name]) for d, (name, _) in zip(directions, members, strict=True)]

        def shared(stack: Tensor) -> Tensor:
            mine = Rows.of(len(stack), shards.rank(), shards.size())
            own = mine.cut(stack)
            return shards.gather(orthogonalise(own) if len(own) else own, mine)

        done = _maps(torch.stack(whole), members[0][1], shared)
        return [
            update if (rows := self.rows[name]) is None else rows.cut(update)
            for update, (name, _) in zip(done, members, strict=True)
        ]

    def state(self) -> dict[str, Tensor]:
        """Everything needed to go on, by the parameter's name: every process calls this, and in the first one
        it is whole."""

        def whole(part: Tensor, name: str) -> Tensor:
            return shards.gather(part, self.rows[name] if part.ndim else None, everywhere=False)

        out = {f"muon.{name}": whole(m, name) for name, m in self.momentum.items()}
        for name, p in self.local.items():
            for key, value in self.adam.state.get(p, {}).items():
                out[f"adam.{name}.{key}"] = whole(value, name)
        return out

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `state` gave, this process's rows of it."""

        def part(key: str, name: str, like: Tensor) -> Tensor:
            rows = self.rows[name]
            return torch.empty_like(like).copy_(tensors[key] if rows is None else rows.cut(tensors[key]))

        for name, m in self.momentum.items():
            m.copy_(part(f"muon.{name}", name, m))
        for name, p in self.local.items():
            if f"adam.{name}.step" in tensors:
                state = {
                    key: part(f"adam.{name}.{key}", name, p.detach()) for key in ("exp_avg", "exp_avg_sq")
                }
                self.adam.state[p] = {
                    "step": p.detach().new_tensor(tensors[f"adam.{name}.step"].item()),
                    **state,
                }


def _maps(stack: Tensor, rows: list[int], orthogonal: Callable[[Tensor], Tensor]) -> Tensor:
    """Updates [n, out, in] of matrices in which maps of so many rows are fused, each scaled for its shape."""
    parts = []
    for part in stack.split(rows, 1):
        # The maps' update has singular values of sqrt(fan_out / fan_in), at least 1 (train.optim).
        parts.append(orthogonal(part) * max(1.0, part.shape[1] / part.shape[2]) ** 0.5)
    return torch.cat(parts, 1)
