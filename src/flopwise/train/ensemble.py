"""Several runs of one shape trained together: `train.loop.train` for a group, each with its own all.

Members may differ in seed, data order, learning rates, schedule, first and last step; each keeps its own
log, ledger and checkpoints, and its numbers are those of the run alone (`models.ensemble`). A member that
ends or fails leaves, and the others go on without it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from flopwise.errors import FlopwiseError
from flopwise.models.ensemble import Ensemble
from flopwise.models.transformer import Transformer
from flopwise.train import checkpoint
from flopwise.train.loop import Counters, Log, update_flops
from flopwise.train.objectives import Batch
from flopwise.train.optim import Optimiser, orthogonalise


class EnsembleOptimiser:
    """`Optimiser` for the members of an ensemble: batched where they agree, and to the same numbers.

    It takes over the state of the members' own optimisers and gives it back with `give_back`. Learning rates
    may differ between members; the kind of optimiser, momentum, betas and weight decay may not.
    """

    def __init__(self, ensemble: Ensemble, optimisers: Sequence[Optimiser]):
        """Raises FlopwiseError where the members' optimisers differ in more than their rates."""
        self.ensemble, self.optimisers = ensemble, list(optimisers)
        first = optimisers[0]
        self.rates = first.rates
        for other in optimisers:
            kinds = [(r.optimiser, r.momentum, r.betas, r.weight_decay) for r in (self.rates, other.rates)]
            if kinds[0] != kinds[1]:
                raise FlopwiseError(
                    "ensemble: members differ in optimiser, momentum, betas or weight decay; train them apart"
                )
        parameters = dict(ensemble.models[0].named_parameters())
        names = {id(p): name for name, p in parameters.items()}
        # What AdamW moves, with its weight decay; and the members' base rates, in this order.
        self.elementwise = [
            (names[id(p)], group["weight_decay"])
            for group in first.adam.param_groups for p in group["params"]
        ]  # fmt: skip
        self.base_lr = [
            [lr for group, lr in zip(o.adam.param_groups, o.base_lr, strict=True) for _ in group["params"]]
            for o in optimisers
        ]
        owners = {p.untyped_storage().data_ptr(): (name, p) for name, p in parameters.items()}
        # What Muon moves, by shape: name of the weight, its rows, whether they are turned to lie flat.
        self.stacks: dict[tuple[int, int], list[tuple[str, slice, bool]]] = {}
        for shape, entries in first.stacks.items():
            self.stacks[shape] = []
            for part, _, flip in entries:
                name, p = owners[part.untyped_storage().data_ptr()]
                start = (part.storage_offset() - p.storage_offset()) // p.stride(0)
                self.stacks[shape].append((name, slice(start, start + part.shape[1]), flip))
        self._take_over([o.state() for o in optimisers])

    def _take_over(self, states: list[dict[str, Tensor]]) -> None:
        weights = self.ensemble.weights
        whole = {name: torch.stack([s[f"muon.{name}"] for s in states]) for name in self._turned()}
        self.momentum = {shape: _gather(whole, entries) for shape, entries in self.stacks.items()}
        self.moments: list[tuple[Tensor, Tensor, list[Tensor]]] = []
        for name, _ in self.elementwise:
            first, second = (torch.zeros_like(weights[name], requires_grad=False) for _ in range(2))
            steps = [first.new_zeros(()) for _ in states]
            for e, state in enumerate(states):
                if f"adam.{name}.step" in state:
                    first[e].copy_(state[f"adam.{name}.exp_avg"])
                    second[e].copy_(state[f"adam.{name}.exp_avg_sq"])
                    steps[e].copy_(state[f"adam.{name}.step"])
            self.moments.append((first, second, steps))

    def _turned(self) -> set[str]:
        """Names of the weights that Muon moves."""
        return {name for entries in self.stacks.values() for name, _, _ in entries}

    def give_back(self, member: int) -> Optimiser:
        """The member's own optimiser, with the state it has here."""
        weights = self.ensemble.weights
        whole = {name: torch.empty_like(weights[name][member]) for name in self._turned()}
        for shape, entries in self.stacks.items():
            for (name, rows, flip), part in zip(entries, self.momentum[shape][member], strict=True):
                whole[name][rows] = part.mT if flip else part
        state = {f"muon.{name}": momentum for name, momentum in whole.items()}
        for (name, _), (first, second, steps) in zip(self.elementwise, self.moments, strict=True):
            state |= {
                f"adam.{name}.step": steps[member], f"adam.{name}.exp_avg": first[member],
                f"adam.{name}.exp_avg_sq": second[member],
            }  # fmt: skip
        self.optimisers[member].load_state(state)
        return self.optimisers[member]

    def zero_grad(self) -> None:
        """Drop gradients."""
        for weight in self.ensemble.weights.values():
            weight.grad = None

    @torch.no_grad()
    def clip(self, limit: float) -> list[float]:
        """Scale each member's gradients to a joint norm of at most `limit`; returns the norms before."""
        grads = [_grad(w) for w in self.ensemble.weights.values()]
        parts = [g for member in zip(*(g.unbind() for g in grads), strict=True) for g in member]
        norms = torch.stack(torch._foreach_norm(parts)).view(len(self.ensemble), -1)
        total = torch.linalg.vector_norm(norms, dim=1)
        share = (limit / (total + 1e-6)).clamp_(max=1.0)
        if not bool((share == 1.0).all()):
            for g in grads:
                g.mul_(share.view(-1, *[1] * (g.ndim - 1)))
        return total.tolist()

    @torch.no_grad()
    def step(self, factors: Sequence[float]) -> None:
        """One update of each member at its factor times its base rates."""
        self._step_elementwise(factors)
        rates = [o.rates.muon * f for o, f in zip(self.optimisers, factors, strict=True)]
        weights, momentum = self.ensemble.weights, self.rates.momentum
        for shape, entries in self.stacks.items():
            grads = _gather({name: _grad(weights[name]) for name, _, _ in entries}, entries)
            buffer = self.momentum[shape]
            buffer.lerp_(grads, 1 - momentum)
            update = orthogonalise(grads.lerp_(buffer, momentum))
            wide = (shape[1] / shape[0]) ** 0.5
            for (name, rows, flip), delta in zip(entries, update.unbind(1), strict=True):
                delta = delta.mT if flip else delta
                for which, lr in _alike(rates):
                    weight = weights[name][which, rows]
                    if self.rates.weight_decay:
                        weight.mul_(1.0 - lr * self.rates.weight_decay)
                    weight.add_(delta[which], alpha=-lr * (wide if flip else 1.0))

    def _step_elementwise(self, factors: Sequence[float]) -> None:
        """One call of torch's AdamW for all weights of all members with one rate and decay."""
        calls: dict[tuple[float, float], list[list[Tensor]]] = {}
        for i, ((name, decay), (first, second, steps)) in enumerate(
            zip(self.elementwise, self.moments, strict=True)
        ):
            weight = self.ensemble.weights[name]
            rows = zip(
                weight.unbind(), _grad(weight).unbind(), first.unbind(), second.unbind(), steps, strict=True
            )
            for row, base, factor in zip(rows, self.base_lr, factors, strict=True):
                lists = calls.setdefault((base[i] * factor, decay), [[], [], [], [], []])
                for tensors, tensor in zip(lists, row, strict=True):
                    tensors.append(tensor)
        for (lr, decay), (params, grads, firsts, seconds, steps) in calls.items():
            adamw(
                params, grads, firsts, seconds, [], steps, fused=True, amsgrad=False,
                beta1=self.rates.betas[0], beta2=self.rates.betas[1], lr=lr, weight_decay=decay,
                eps=1e-10, maximize=False,
            )  # fmt: skip


def _gather(whole: dict[str, Tensor], entries: list[tuple[str, slice, bool]]) -> Tensor:
    """The parts of whole matrices [E, out, in] that have one shape: [E, parts, short, long]."""
    parts = [(whole[name][:, rows], flip) for name, rows, flip in entries]
    return torch.stack([part.mT if flip else part for part, flip in parts], 1)


def _grad(weight: Tensor) -> Tensor:
    assert weight.grad is not None
    return weight.grad


def _alike(rates: Sequence[float]) -> Iterator[tuple[slice, float]]:
    """Members next to each other that share a rate, with it.

    >>> [(s.start, s.stop, rate) for s, rate in _alike([0.1, 0.1, 0.2])]
    [(0, 2, 0.1), (2, 3, 0.2)]
    """
    start = 0
    for i, rate in enumerate(rates):
        if i + 1 == len(rates) or rates[i + 1] != rate:
            yield slice(start, i + 1), rate
            start = i + 1


@dataclass
class Member:
    """One run of a group: the arguments that `train.loop.train` takes for it alone."""

    model: Transformer
    optimiser: Optimiser
    next_batch: Callable[[int], Batch | None]
    schedule: Callable[[int], float]
    log: Log
    first_step: int
    last_step: int
    evaluate: Callable[[int], dict[str, float]] | None = None
    evaluate_at: Container[int] = ()


@dataclass(frozen=True)
class Ended:
    """A member's run is over: what it spent, why it failed if it did, how large its group was at most."""

    index: int
    counters: Counters
    error: FlopwiseError | None = None
    together: int = 1


def train_group(
    members: Sequence[Member],
    *,
    progress: Callable[[int, float], None] = lambda member, fraction: None,
    clip: float = 1.0,
    log_every: int = 20,
    checkpoint_every_s: float = 4.0,
    z_loss: float = 0.0,
) -> Iterator[Ended]:
    """Train all members at once, each from where its own checkpoint left it; yields each as it ends.

    Once yielded, a member's model and optimiser hold its final state. `progress` gets the index of a member
    and how far it is. Batches must be plain (`ids` and `targets`) and alike in shape; the objective is
    `objectives.language_model(z_loss)`. Seconds spent together are divided evenly among those who spent them;
    FLOPs and tokens are each member's own. Time that the caller takes between two members is nobody's.

    Raises:
        FlopwiseError: batches or optimisers that cannot be brought together; train such runs one by one.
        OSError: a checkpoint cannot be written.
    """
    runs = [_Run(i, member) for i, member in enumerate(members)]
    active: list[_Run] = []
    for run in runs:
        try:
            run.resume()
        except FlopwiseError as e:
            yield Ended(run.index, run.counters, e)
            continue
        if run.counters.step >= run.member.last_step:
            yield Ended(run.index, run.counters)
        else:
            active.append(run)
    while active:
        for run in active:
            run.together = max(run.together, len(active))
        group = _Group(active, clip, log_every, checkpoint_every_s, z_loss, progress)
        group.until_one_ends()
        for run in active:
            if run.over:
                yield Ended(run.index, run.counters, run.error, run.together)
        active = [run for run in active if not run.over]


class _Run:
    """A member and how far it is."""

    def __init__(self, index: int, member: Member):
        self.index, self.member = index, member
        self.counters = Counters(member.first_step)
        self.error: FlopwiseError | None = None
        self.together = 1

    @property
    def over(self) -> bool:
        """Whether it has ended, well or not."""
        return self.error is not None or self.counters.step >= self.member.last_step

    def resume(self) -> None:
        """Go on from its checkpoint, if there is one (DamagedFile: it cannot be read)."""
        m = self.member
        path = m.log.path / checkpoint.STATE_FILE
        if path.exists():
            self.counters = Counters(**checkpoint.load(path, m.model, m.optimiser))
        m.log.rewind(self.counters.step)
        m.model.train()

    def batch(self) -> Batch | None:
        """The next one; None where it cannot be had, which ends this run."""
        try:
            batch = self.member.next_batch(self.counters.step)
        except FlopwiseError as e:
            self.error = e
            return None
        if batch is None or batch.targets is None or batch.weights is not None:
            raise FlopwiseError(
                "ensemble: batches must be plain ids and targets; train these runs one by one"
            )
        return batch

    def note(self, **row: float) -> None:
        """Log a row at the current step, with what had been spent by then."""
        names = ("train_flops", "generate_flops", "score_flops", "tokens")
        ledger = {name: getattr(self.counters, name) for name in names}
        self.member.log.log(step=self.counters.step, **ledger, **row)


class _Group:
    """Runs in one ensemble, from when it is formed until the first one leaves."""

    def __init__(
        self, runs: list[_Run], clip: float, log_every: int, every_s: float, z_loss: float,
        progress: Callable[[int, float], None],
    ):  # fmt: skip
        self.runs, self.limit, self.log_every, self.every_s = runs, clip, log_every, every_s
        self.z_loss, self.progress = z_loss, progress
        self.ensemble = Ensemble([r.member.model for r in runs])
        self.optimiser = EnsembleOptimiser(self.ensemble, [r.member.optimiser for r in runs])
        self.wall, self.cpu = time.monotonic(), time.process_time()
        self.saved_at, self.rest = self.wall, 0.0

    def until_one_ends(self) -> None:
        """Update all until a run ends or fails; then every model and optimiser has its own state back."""
        while not any(r.over for r in self.runs):
            batches = [r.batch() for r in self.runs]
            if any(r.over for r in self.runs):
                break
            self._update([b for b in batches if b is not None])
            if time.monotonic() - self.saved_at > self.every_s + self.rest:
                self._save()
        for k, run in enumerate(self.runs):
            # The loop for one leaves a failed run's weights as they were at its last checkpoint or before.
            if run.error is None:
                self._give_back(k)
        self._settle(self.runs)

    def _give_back(self, k: int) -> None:
        self.ensemble.give_back(k)
        self.optimiser.give_back(k)

    def _update(self, batches: list[Batch]) -> None:
        if any(b.ids.shape != batches[0].ids.shape for b in batches):
            raise FlopwiseError("ensemble: batches differ in shape; train these runs one by one")
        ids = torch.stack([b.ids for b in batches])
        targets = torch.stack([b.targets for b in batches if b.targets is not None])
        losses = self.ensemble.backward(ids, targets, self.z_loss)
        norms = self.optimiser.clip(self.limit)
        values = losses.tolist()
        factors = [r.member.schedule(r.counters.step) for r in self.runs]
        self.optimiser.step(factors)
        self.optimiser.zero_grad()
        for k, (run, batch) in enumerate(zip(self.runs, batches, strict=True)):
            step = run.counters.step
            if not math.isfinite(values[k]):
                run.error = FlopwiseError(
                    f"loss is {values[k]} at step {step}; lower the learning rate or check the data"
                )
            elif not math.isfinite(norms[k]):
                run.error = FlopwiseError(
                    f"gradient norm is {norms[k]} at step {step}; lower the learning rate"
                )
            else:
                row = {"loss": values[k], "grad_norm": norms[k], "lr_factor": factors[k], **batch.info}
                self._account(k, batch, row)

    def _account(self, k: int, batch: Batch, row: dict[str, float]) -> None:
        run, m = self.runs[k], self.runs[k].member
        counters = run.counters
        name = m.log.path.name
        counters.made(batch, name)
        counters.learned(batch, name, update_flops(m.model, batch))  # the seconds are everybody's
        counters.step += 1
        if counters.step % self.log_every == 0 or counters.step == m.last_step:
            run.note(**row)
        if m.evaluate is not None and counters.step in m.evaluate_at:
            self._settle(self.runs)
            self._give_back(k)
            began = time.perf_counter()
            judged = m.evaluate(counters.step)
            run.note(**counters.evaluated(judged, name, time.perf_counter() - began))
            self._settle([run])
        self.progress(run.index, (counters.step - m.first_step) / (m.last_step - m.first_step))

    def _save(self) -> None:
        """Everybody's checkpoint, then a rest of twenty times as long as that took."""
        self._settle(self.runs)
        start = time.monotonic()
        for k, run in enumerate(self.runs):
            if not run.over:
                self._give_back(k)
                m = run.member
                checkpoint.save(m.log.path / checkpoint.STATE_FILE, m.model, m.optimiser, vars(run.counters))
        self.saved_at = time.monotonic()
        self.rest = max(0.0, 20 * (self.saved_at - start) - self.every_s)

    def _settle(self, runs: list[_Run]) -> None:
        """Divide the time since the last settling among `runs`."""
        now, cpu = time.monotonic(), time.process_time()
        for run in runs:
            run.counters.wall_s += (now - self.wall) / len(runs)
            run.counters.device_s += (cpu - self.cpu) / len(runs)
        self.wall, self.cpu = now, cpu
