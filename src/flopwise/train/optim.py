"""Muon for the hidden matrices, AdamW for everything else, and the rate rule across sizes.

Rule (one base rate for every width): a hidden matrix is moved by an update whose singular values are all
`muon_lr * sqrt(max(1, fan_out / fan_in))`, the scale under which features learn at the same speed at every
width (Yang, Simon and Bernstein, "A spectral condition for feature learning", arXiv 2310.17813, condition 1).
The embedding's rate is the same at every width, the output head's falls as 1/width (Yang et al., muP,
arXiv 2203.03466, table 8, for Adam). `docs/results/lr_rule.md` holds the sweep that tests it on the ladder.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from flopwise.errors import FlopwiseError
from flopwise.models.lora import adapted
from flopwise.models.transformer import Block, Transformer

REFERENCE_WIDTH = 64
"""Width at which rates of the head and, under AdamW, of hidden matrices are stated: 64 / d of them at d."""


@dataclass(frozen=True)
class Rates:
    """Base learning rates; all are multiplied by the schedule's factor."""

    muon: float = 0.02
    adam: float = 0.008
    """Of hidden matrices under AdamW, at the reference width."""
    embed: float = 0.01
    head: float = 0.004
    norm: float = 0.01
    weight_decay: float = 0.0
    momentum: float = 0.95
    betas: tuple[float, float] = (0.9, 0.99)
    optimiser: str = "muon"
    """Of hidden matrices: "muon", or "adamw" for everything."""
    lora: float = 0.005
    """Of adapters under AdamW, at every width and rank; where there are any, nothing else moves."""

    def scaled(self, factor: float) -> Rates:
        """The same rates times `factor`: fine-tuning moves every group more gently alike."""
        names = ("muon", "adam", "embed", "head", "norm", "lora")
        return replace(self, **{name: getattr(self, name) * factor for name in names})


def orthogonalise(G: Tensor, steps: int = 5) -> Tensor:
    """Bring the singular values of each matrix in G [..., rows, cols] near 1 by Newton-Schulz iteration.

    Quintic coefficients of Jordan et al., "Muon" (2024, kellerjordan.github.io/posts/muon): after five
    steps the singular values lie in about [0.7, 1.2], which is as good as exact for training.
    """
    X = G / (G.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    tall = X.shape[-2] > X.shape[-1]
    if tall:
        X = X.mT
    X = X.reshape(-1, *X.shape[-2:])
    rows, cols = X.shape[1:]
    if cols > LONG * rows:
        X = torch.bmm(_factor(torch.bmm(X, X.mT), steps), X)
    else:
        for _ in range(steps):
            X = torch.bmm(_quintic(torch.bmm(X, X.mT)), X)
    X = X.mT if tall else X
    return X.reshape(G.shape)


LONG = 1.5
"""Sides' ratio above which the iteration runs on the small matrix X X^T: 17 r^3 + 2 r^2 c products against
5 r^3 + 10 r^2 c."""


def _quintic(A: Tensor) -> Tensor:
    """What one step multiplies X by from the left, for A = X X^T [n, rows, rows]."""
    a, b, c = 3.4445, -4.7750, 2.0315
    P = torch.baddbmm(A, A, A, beta=b, alpha=c)
    P.diagonal(dim1=1, dim2=2).add_(a)
    return P


def _factor(A: Tensor, steps: int) -> Tensor:
    """The product of all steps' factors, from A = X X^T alone: a step turns A into P A P."""
    whole = P = _quintic(A)
    for _ in range(steps - 1):
        A = torch.bmm(torch.bmm(P, A), P)
        P = _quintic(A)
        whole = torch.bmm(P, whole)
    return whole


class Optimiser:
    """Muon + AdamW, or AdamW alone, over a Transformer; its whole state is a flat dict of tensors.

    Of a model with adapters, AdamW over the adapters (and a scorer's head): what is frozen has no state.

    Matrices of one shape are stacked, so the iteration costs a few batched products for the model
    instead of a few per matrix. Fused matrices are taken apart first, and experts are one map each.
    """

    def __init__(self, model: Transformer, rates: Rates):
        self.rates = rates
        self.model = model
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        if any(p.dtype.itemsize < 4 for p in self.parameters):
            raise FlopwiseError(
                f"weights in {self.parameters[0].dtype} cannot be trained: most steps are too small for it; "
                "load them in float32, or train adapters"
            )
        parts: list[tuple[Tensor, Tensor]] = []
        owners: list[Tensor] = []
        self.matrices: list[Tensor] = []
        for block in model.blocks:
            assert isinstance(block, Block)
            for weight, rows in block.matrices() if rates.optimiser == "muon" and not model.lora else ():
                self.matrices.append(weight)
                weight.grad = torch.zeros_like(weight)
                values, grads = (t.view(-1, *weight.shape[-2:]) for t in (weight.detach(), weight.grad))
                parts += list(zip(values.split(rows, 1), grads.split(rows, 1), strict=True))
                owners += [weight] * len(rows)
        # Parts [n, rows, cols] are views of weight and gradient. Tall and wide of one shape share a stack.
        self.stacks: dict[tuple[int, int], list[tuple[Tensor, Tensor, bool]]] = {}
        for part, grad in parts:
            short, long = sorted(part.shape[1:])
            self.stacks.setdefault((short, long), []).append((part, grad, part.shape[1] == long > short))
        self.momentum = {
            shape: entries[0][0].new_zeros(sum(len(part) for part, _, _ in entries), *shape)
            for shape, entries in self.stacks.items()
        }
        # The same parts of the momentum, by the name of the matrix: its state whatever the stacks.
        self.pieces: dict[str, list[Tensor]] = {}
        names = {id(p): name for name, p in model.named_parameters()}
        filled = dict.fromkeys(self.stacks, 0)
        for (part, _), owner in zip(parts, owners, strict=True):
            short, long = sorted(part.shape[1:])
            start = filled[short, long]
            filled[short, long] += len(part)
            piece = self.momentum[short, long][start : filled[short, long]]
            flip = part.shape[1] == long > short
            self.pieces.setdefault(names[id(owner)], []).append(piece.mT if flip else piece)
        hidden = {id(p) for p in self.matrices}
        groups = _adapters(model, rates) if model.lora else _groups(model, rates, hidden)
        assert all(id(p) not in hidden for g in groups for p in g["params"])
        self.adam = torch.optim.AdamW(
            groups, betas=rates.betas, eps=1e-10, weight_decay=rates.weight_decay, fused=True
        )
        self.base_lr = [g["lr"] for g in self.adam.param_groups]

    def zero_grad(self) -> None:
        """Clear gradients; the matrices' gradients keep their memory, which the stacks view."""
        if self.matrices:
            torch._foreach_zero_([p.grad for p in self.matrices if p.grad is not None])
        self.adam.zero_grad(set_to_none=True)

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """One update at `factor` times the base rates."""
        for group, base in zip(self.adam.param_groups, self.base_lr, strict=True):
            group["lr"] = base * factor
        self.adam.step()
        lr = self.rates.muon * factor
        decay = 1.0 - lr * self.rates.weight_decay
        for shape, entries in self.stacks.items():
            grads = torch.cat([g.mT if flip else g for _, g, flip in entries])
            buffer = self.momentum[shape]
            buffer.lerp_(grads, 1 - self.rates.momentum)
            update = orthogonalise(grads.lerp_(buffer, self.rates.momentum))
            wide = (shape[1] / shape[0]) ** 0.5
            deltas = update.split([len(weight) for weight, _, _ in entries])
            for (weight, _, flip), delta in zip(entries, deltas, strict=True):
                if self.rates.weight_decay:
                    weight.mul_(decay)
                # A flipped entry is tall: fan_out / fan_in is the long side over the short one.
                weight.add_(delta.mT if flip else delta, alpha=-lr * (wide if flip else 1.0))
        self.model.rebalance()

    def clip(self, limit: float) -> Tensor:
        """Scale all gradients to a joint norm of at most `limit`; returns the norm before."""
        return nn.utils.clip_grad_norm_(self.parameters, limit, foreach=True)

    def state(self) -> dict[str, Tensor]:
        """Everything needed to go on bit for bit, by the parameter's name and in its shape."""
        out = {}
        for name, pieces in self.pieces.items():
            out[f"muon.{name}"] = torch.cat(pieces, 1).view_as(self.model.get_parameter(name))
        for name, weight in self.model.named_parameters():
            for key, value in self.adam.state.get(weight, {}).items():
                out[f"adam.{name}.{key}"] = value
        return out

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `state` gave (KeyError or RuntimeError where shapes differ)."""
        for name, pieces in self.pieces.items():
            whole = tensors[f"muon.{name}"].view(-1, *self.model.get_parameter(name).shape[-2:])
            for piece, part in zip(pieces, whole.split([p.shape[1] for p in pieces], 1), strict=True):
                piece.copy_(part)
        for name, weight in self.model.named_parameters():
            if f"adam.{name}.step" in tensors:
                self.adam.state[weight] = {
                    key: torch.empty_like(like).copy_(tensors[f"adam.{name}.{key}"])
                    for key, like in (
                        ("step", weight.new_empty(())),
                        ("exp_avg", weight),
                        ("exp_avg_sq", weight),
                    )
                }


def _groups(model: Transformer, rates: Rates, hidden: set[int]) -> list[dict[str, Any]]:
    """AdamW's parameters by their rates; `hidden` are those of Muon, by identity."""
    wider = REFERENCE_WIDTH / model.cfg.d_model
    groups: list[dict[str, Any]] = [
        {"params": [model.embed.weight], "lr": rates.embed},
        {"params": [p for p in model.parameters() if p.ndim == 1], "lr": rates.norm, "weight_decay": 0.0},
    ]
    if rates.optimiser == "adamw":
        blocks = [b for b in model.blocks if isinstance(b, Block)]
        inner = [weight for b in blocks for weight, _ in b.matrices()]
        groups.append({"params": inner, "lr": rates.adam * wider})
    grouped = {id(p) for g in groups for p in g["params"]} | hidden
    # What is left reads out of the hidden state: the head, and routers of experts.
    readouts = [p for p in model.parameters() if id(p) not in grouped]
    if readouts:
        groups.append({"params": readouts, "lr": rates.head * wider})
    return groups


def _adapters(model: Transformer, rates: Rates) -> list[dict[str, Any]]:
    """The same for a model with adapters."""
    groups: list[dict[str, Any]] = [
        {"params": [p for m in adapted(model) for p in (m.A, m.B)], "lr": rates.lora}
    ]
    if model.n_scores:
        wider = REFERENCE_WIDTH / model.cfg.d_model
        groups.append({"params": [model.head.weight], "lr": rates.head * wider})
    return groups
