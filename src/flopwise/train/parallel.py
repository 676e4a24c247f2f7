"""One run by several processes: who holds what, which rows are whose, how gradients become one.

A batch is the global batch of a step; process r of W takes rows r, r + W, ..., so what is learned at a step
does not depend on W. Losses are means over what is learned: process r's mean over n_r of n tokens counts
W n_r / n, and gradients are averaged, which gives the gradient of the mean over the whole batch.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from flopwise.errors import FlopwiseError
from flopwise.models.transformer import Transformer
from flopwise.train import precision, shards
from flopwise.train.objectives import Batch, Objective
from flopwise.train.probe import compile_block, compiled_blocks, decide_compiling
from flopwise.train.settings import PLAIN, Settings

PATIENCE = timedelta(minutes=30)
"""How long a process waits for the others before it gives up."""


class Steps(Protocol):
    """What the loop asks of an optimiser."""

    def step(self, factor: float) -> None: ...
    def zero_grad(self) -> None: ...
    def clip(self, limit: float) -> Tensor: ...
    def state(self) -> dict[str, Tensor]: ...
    def load_state(self, tensors: dict[str, Tensor]) -> None: ...


@dataclass(frozen=True)
class Share:
    """What a process's means count among W: W n_r / n over what is `learned`, and over all `tokens`."""

    learned: float = 1.0
    tokens: float = 1.0


class Team:
    """The processes that train one run, seen from one of them; a single process is a team of one."""

    def __init__(self, settings: Settings, rank: int = 0, size: int = 1, local_rank: int = 0):
        self.settings, self.rank, self.size = settings, rank, size
        self.device = precision.choose_device(settings.device, local_rank)
        self.precision, self._why = precision.choose_precision(settings.precision, self.device)
        self.compiled = "off"
        """What became of `settings.compile`, in words."""
        self._reducer: nn.Module | None = None
        self._compiled: Callable[..., Any] | None = None

    @classmethod
    def join(cls, settings: Settings) -> Team:
        """The team that torchrun started this process in (RANK, WORLD_SIZE, LOCAL_RANK), else a team of one.

        Raises:
            FlopwiseError: the settings ask for what this machine has not.
        """
        size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
        if size == 1:
            return cls(settings)
        team = cls(settings, rank, size, int(os.environ.get("LOCAL_RANK", "0")))
        if not dist.is_initialized():
            backend = "cpu:gloo,cuda:nccl" if team.device.type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=PATIENCE)
        return team

    @property
    def leads(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def place(
        self, model: Transformer, make_optimiser: Callable[[Transformer], Any]
    ) -> tuple[Transformer, Any]:
        """The model where it is trained, split as the settings say, with an optimiser over what is here.

        `make_optimiser(model)` makes the optimiser of a whole model; a split one takes its groups and rates.

        Raises:
            FlopwiseError: experts cannot be split as asked, or the model has adapters, which are not split.
        """
        model.to(self.device)
        if self.size == 1 or self.settings.parallel == "ddp":
            return model, make_optimiser(model)
        if model.lora is not None:
            raise FlopwiseError(
                f"train.parallel {self.settings.parallel} does not split models with adapters; use ddp"
            )
        if self.settings.parallel == "fsdp":
            from flopwise.train.sharded import shard

            return shard(model, make_optimiser, self.device)
        from flopwise.train.experts import split

        return split(model, make_optimiser)

    def share(self, batch: Batch) -> tuple[Batch, Share]:
        """This process's rows on its device, and what its means count.

        Raises:
            FlopwiseError: fewer rows than processes.
        """
        if self.size == 1:
            return _map(batch, lambda t: t.to(self.device)), Share()
        n_rows = len(batch.ids)
        if n_rows < self.size:
            raise FlopwiseError(
                f"a batch of {n_rows} sequences cannot be split over {self.size} processes; raise batch_size"
            )
        mine = _map(batch, lambda t: t[self.rank :: self.size].to(self.device))
        learned = self.size * _n_learned(mine) / _n_learned(batch)
        return mine, Share(learned, self.size * len(mine.ids) / n_rows)

    def loss(
        self, objective: Objective, model: Transformer, batch: Batch, share: Share
    ) -> tuple[Tensor, float, dict[str, float]]:
        """The objective on this process's rows: what to walk back from, its value, what to log."""
        with self.autocast(), compiled_blocks(model, self._compiled):
            if self.size == 1:
                loss, logs = objective(model, batch)
                return loss, loss.item(), logs
            if self.settings.parallel != "ddp":
                return _weighted(objective, model, batch, share)
            if self._reducer is None:
                from torch.nn.parallel import DistributedDataParallel

                # Gradients are summed in buckets while the backward pass still goes on.
                self._reducer = DistributedDataParallel(_Loss(model))
            out: tuple[Tensor, float, dict[str, float]] = self._reducer(objective, batch, share)
            return out

    def tune(self, model: Transformer, batch: Batch, steps: int, as_before: bool | None = None) -> None:
        """Decide about compiling before the first of `steps` steps; a resumed run goes on `as_before`."""
        if self.leads:
            yes, self.compiled = decide_compiling(self, model, batch, steps)
            if as_before is not None and yes != as_before:
                yes, self.compiled = as_before, f"{'on' if as_before else 'off'}: as it was begun"
        if self.agree(self.leads and yes):
            self._compiled = compile_block()

    @property
    def compiles(self) -> bool:
        """Whether steps are compiled."""
        return self._compiled is not None

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of a forward pass."""
        return precision.autocast(self.precision, self.device)

    def total(self, value: float, logs: dict[str, float], share: Share) -> tuple[float, dict[str, float]]:
        """Loss and logged values of the whole batch, the same in every process."""
        if self.size == 1:
            return value, logs
        names = sorted(logs)
        sums = torch.tensor([value, *(logs[n] for n in names)], dtype=torch.float64)
        sums *= share.learned / self.size
        dist.all_reduce(sums)
        out = sums.tolist()
        return out[0], dict(zip(names, out[1:], strict=True))

    def join_gradients(self, model: Transformer) -> None:
        """After the backward pass: every process's gradient becomes that of the whole batch."""
        if self.size > 1 and self.settings.parallel == "ep":
            from flopwise.train.experts import join_gradients

            join_gradients(model)

    def agree(self, wish: bool) -> bool:
        """What the first process wishes: decisions by the clock must be the same everywhere."""
        if self.size == 1:
            return wish
        word = torch.tensor([wish], dtype=torch.uint8)
        dist.broadcast(word, 0)
        return bool(word.item())

    def add_up(self, *values: float) -> list[float]:
        """Sums over the processes."""
        if self.size == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(sums)
        out: list[float] = sums.tolist()
        return out

    def whole(self, model: Transformer) -> Transformer:
        """A model with all weights on the processor, for evaluation and for the run's folder; every process
        calls this, after the last update and the last checkpoint."""
        if self.size == 1 or self.settings.parallel == "ddp":
            return model.to("cpu")
        plain = Transformer(model.cfg, model.n_scores)
        shards.load_weights(plain, shards.weights(model))
        return plain

    def disclosed(self) -> dict[str, Any]:
        """How the run was carried out, for its record."""
        return {
            "device": self.device.type, "precision": self.precision, "precision_why": self._why,
            "compile": self.compiled, "processes": self.size,
            "parallel": self.settings.parallel if self.size > 1 else None,
        }  # fmt: skip


def alone() -> Team:
    """A team of one that does things plainly."""
    return Team(PLAIN)


class _Loss(nn.Module):
    """The objective as a module's forward pass, which is what DistributedDataParallel hooks into."""

    def __init__(self, model: Transformer):
        super().__init__()
        self.model = model

    def named_buffers(self, *args: Any, **kwargs: Any) -> Any:
        """None: buffers follow from what is the same everywhere, and need not be sent round at each step."""
        return iter(())

    def forward(
        self, objective: Objective, batch: Batch, share: Share
    ) -> tuple[Tensor, float, dict[str, float]]:
        return _weighted(objective, self.model, batch, share)


def _weighted(
    objective: Objective, model: Transformer, batch: Batch, share: Share
) -> tuple[Tensor, float, dict[str, float]]:
    """The loss as it counts in the batch's; auxiliary losses are means over tokens, learned or not."""
    loss, logs = objective(model, batch)
    value = loss.item()
    loss = loss * share.learned
    auxiliary = model.auxiliary_loss()
    if auxiliary is not None and share.tokens != share.learned:
        loss = loss + auxiliary * (share.tokens - share.learned)
    return loss, value, logs


def _map(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    values = {f.name: getattr(batch, f.name) for f in fields(batch)}
    changed: dict[str, Any] = {n: change(v) for n, v in values.items() if isinstance(v, Tensor)}
    return replace(batch, **changed, extra={n: change(t) for n, t in batch.extra.items()})


def _n_learned(batch: Batch) -> float:
    """What an objective's mean divides by: sequences with a label, else the weight of the tokens."""
    if batch.labels is not None:
        return len(batch.labels)
    return batch.ids.numel() if batch.weights is None else max(1.0, float(batch.weights.sum()))
