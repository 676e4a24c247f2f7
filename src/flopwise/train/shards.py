"""Tensors that are split over processes: put together for a checkpoint, cut again when one is read.

Two kinds of split, both by rows (dimension 0): FSDP's distributed tensors (`DTensor`) and, under expert
parallelism, an expert matrix [experts, out, in] of which each process holds some experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from flopwise.models.transformer import Transformer


def rank() -> int:
    """This process's number in the team, 0 where there is none."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def size() -> int:
    """How many processes train together, 1 where there is no team."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@dataclass(frozen=True)
class Rows:
    """Which rows of a whole tensor of `total` rows this process holds: `first` to `first + count`."""

    first: int
    count: int
    total: int

    @classmethod
    def of(cls, total: int, rank: int, size: int) -> Rows:
        """Rows of process `rank`: equal parts, the first ones larger where it does not divide (torch.chunk).

        >>> [Rows.of(7, r, 3) for r in range(3)]
        [Rows(first=0, count=3, total=7), Rows(first=3, count=3, total=7), Rows(first=6, count=1, total=7)]
        """
        each = -(-total // size)
        first = min(total, rank * each)
        return cls(first, min(each, total - first), total)

    def cut(self, whole: Tensor) -> Tensor:
        """This process's rows of a whole tensor (a view)."""
        if whole.shape[0] != self.total:
            raise ValueError(f"a tensor has {whole.shape[0]} rows, {self.total} are expected")
        return whole[self.first : self.first + self.count]


def rows_of(weight: Tensor) -> Rows | None:
    """How a weight is split; None where every process holds all of it."""
    from torch.distributed.tensor import DTensor

    if isinstance(weight, DTensor):
        return Rows.of(weight.shape[0], rank(), size())
    rows: Rows | None = getattr(weight, "rows", None)
    return rows


def mine(weight: Tensor) -> Tensor:
    """The part of a weight that lies in this process, sharing its memory."""
    from torch.distributed.tensor import DTensor

    return weight.to_local() if isinstance(weight, DTensor) else weight


def gather(part: Tensor, rows: Rows | None, everywhere: bool = True) -> Tensor:
    """The whole tensor from every process's rows; every process calls this. No gradient.

    Unless it is wanted `everywhere`, the first process alone has it, on the processor, and the others an
    empty one: a checkpoint then takes no more memory of an accelerator than its largest tensor.
    """
    if rows is None or size() == 1:
        return part.detach()
    each = Rows.of(rows.total, 0, size()).count
    padded = part.new_zeros(each, *part.shape[1:])
    padded[: rows.count] = part.detach()
    out = part.new_empty(each * size(), *part.shape[1:])
    dist.all_gather_into_tensor(out, padded)
    if everywhere:
        return out[: rows.total]
    return part.new_empty(0) if rank() else out[: rows.total].cpu()


def weights(model: Transformer, everywhere: bool = True) -> dict[str, Tensor]:
    """All weights and lasting buffers by name, whole (see `gather`); a head tied to the embedding is listed
    once. Of a model with adapters what is frozen is left out: whoever goes on has the base model."""
    params = dict(model.named_parameters())
    out = {}
    for name, tensor in model.state_dict().items():
        if name == "head.weight" and model.head.weight is model.embed.weight:
            continue
        weight = params.get(name, tensor)
        if model.lora and name in params and not weight.requires_grad:
            continue
        out[name] = gather(mine(weight).detach(), rows_of(weight), everywhere)
    return out


def load_weights(model: Transformer, whole: dict[str, Tensor]) -> None:
    """Take whole tensors by name, each process its rows.

    Raises:
        KeyError: a tensor is missing; RuntimeError or ValueError: one has another shape.
    """
    params: dict[str, Any] = dict(model.named_parameters())
    if model.lora:
        frozen = {name: p for name, p in params.items() if not p.requires_grad}
        whole = {**frozen, **whole}
    if not any(rows_of(p) for p in params.values()):
        tied = model.head.weight is model.embed.weight
        model.load_state_dict({**whole, **({"head.weight": whole["embed.weight"]} if tied else {})})
        return
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name == "head.weight" and model.head.weight is model.embed.weight:
                continue
            weight = params.get(name, tensor)
            rows = rows_of(weight)
            local = mine(weight)
            part = whole[name] if rows is None else rows.cut(whole[name])
            if part.shape != local.shape:
                raise ValueError(f"{name} has shape {tuple(whole[name].shape)}, another one is expected")
            local.copy_(part)


def name_of(model: nn.Module) -> dict[int, str]:
    """The name of each parameter, by its identity."""
    return {id(p): name for name, p in model.named_parameters()}
