"""Low-rank adapters on the linear maps of a `Transformer`: trained, saved, loaded, merged (see `adapters`).

The fused matrices stay fused: of query, key and value the three A lie below one another, so that one product
serves them, and each B moves its own rows. Frozen weights get no gradient, so the product for it is not made.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from flopwise.errors import FlopwiseError
from flopwise.models import stock
from flopwise.models.adapters import (
    CONFIG_FILE,
    FUSED,
    PEFT_NAMES,
    WEIGHTS_FILE,
    LoRA,
    all_maps,
    find_base,
    read_config,
    weights_sha256,
)
from flopwise.models.transformer import Transformer
from flopwise.records.folder import atomic_write

if TYPE_CHECKING:
    from flopwise.models.hf import SavesItself


@dataclass(frozen=True)
class Span:
    """One adapted map within a fused matrix: its name, its rows of the output, of B and of A."""

    target: str
    out: slice
    b: slice
    a: slice


class LoRALinear(nn.Linear):
    """A frozen, perhaps fused, linear map with an adapter on some of its parts.

    Args:
        weight: the frozen matrix [n_out, n_in].
        parts: name and rows of the maps that are fused in it, in order.
        lora: settings; parts that are not among its targets stay as they are.
    """

    def __init__(self, weight: nn.Parameter, parts: Sequence[tuple[str, int]], lora: LoRA):
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.shape
        self.weight = weight.requires_grad_(False)
        self.register_parameter("bias", None)
        self.spans: list[Span] = []
        self.scale, self.off = lora.scale, False
        row = n_b = n_a = 0
        for target, rows in parts:
            if target in lora.targets:
                out, b, a = (slice(at, at + n) for at, n in ((row, rows), (n_b, rows), (n_a, lora.rank)))
                self.spans.append(Span(target, out, b, a))
                n_b, n_a = n_b + rows, n_a + lora.rank
            row += rows
        # Adapters are kept in float32 whatever the base is in: their steps are small.
        A, B = torch.zeros(n_a, self.in_features), torch.zeros(n_b, lora.rank)
        self.A, self.B = (nn.Parameter(t.to(weight.device)) for t in (A, B))

    def forward(self, x: Tensor) -> Tensor:
        """x [N, n_in] -> [N, n_out]."""
        if self.off:
            return F.linear(x, self.weight)
        if stock.wanted(x) or x.dtype != self.A.dtype:
            return self._stock(x)
        return _LoRA.apply(x, self.weight, self.A, self.B, self.spans, self.scale)

    def _stock(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight)
        low = F.linear(x, self.A.to(x.dtype)) * self.scale
        B = self.B.to(x.dtype)
        if len(self.spans) == 1 and len(B) == self.out_features:
            return y + F.linear(low, B).to(y.dtype)
        moved = {s.out.start: F.linear(low[:, s.a], B[s.b]) for s in self.spans}
        edges = sorted({0, self.out_features, *(e for s in self.spans for e in (s.out.start, s.out.stop))})
        columns = [
            y[:, a:b] + moved[a].to(y.dtype) if a in moved else y[:, a:b]
            for a, b in itertools.pairwise(edges)
        ]
        return torch.cat(columns, 1)

    @torch.no_grad()
    def merged(self) -> Tensor:
        """W + s B A [n_out, n_in], in the precision of W."""
        whole = self.weight.detach().to(torch.float32, copy=True)
        for span in self.spans:
            whole[span.out].addmm_(self.B[span.b], self.A[span.a], alpha=self.scale)
        return whole.to(self.weight.dtype)


class _LoRA(Function):
    """x W^T + s (x A^T) B^T; of the gradients those that are wanted."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, A: Tensor, B: Tensor, spans: list[Span], scale: float
    ) -> Tensor:
        out, low = torch.mm(x, weight.T), torch.mm(x, A.T)
        for s in spans:
            torch.addmm(out[:, s.out], low[:, s.a], B[s.b].T, alpha=scale, out=out[:, s.out])
        ctx.save_for_backward(x, weight, A, B, low)
        ctx.spans, ctx.scale = spans, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, A, B, low = ctx.saved_tensors
        to_low, to_B = _low_back(grad, low, B, ctx.spans)
        to_low.mul_(ctx.scale)
        to_B.mul_(ctx.scale)
        to_x = None
        if ctx.needs_input_grad[0]:
            to_x = torch.mm(grad, weight)
            torch.addmm(to_x, to_low, A, out=to_x)
        return to_x, None, torch.mm(to_low.T, x), to_B, None, None


THIN = 16
"""Columns below which BLAS is so bad at a product that one for all spans, zeros included, is faster than one
for each: half the time at rank 8, width 128 and 1,024 tokens."""


def _low_back(grad: Tensor, low: Tensor, B: Tensor, spans: list[Span]) -> tuple[Tensor, Tensor]:
    """Gradients to x A^T and to B, but for the scale, of grad [N, n_out]."""
    to_low, to_B = torch.empty_like(low), torch.empty_like(B)
    if B.shape[1] >= THIN:
        for s in spans:
            torch.mm(grad[:, s.out], B[s.b], out=to_low[:, s.a])
            torch.mm(grad[:, s.out].T, low[:, s.a], out=to_B[s.b])
        return to_low, to_B
    apart = B.new_zeros(grad.shape[1], low.shape[1])
    for s in spans:
        apart[s.out, s.a] = B[s.b]
    whole = torch.mm(low.T, grad)
    for s in spans:
        to_B[s.b] = whole[s.a, s.out].T
    return torch.mm(grad, apart, out=to_low), to_B


def attach(model: Transformer, lora: LoRA, seed: int) -> Transformer:
    """Freeze a model and give it fresh adapters, which change nothing yet: B is zero, A drawn uniformly
    within 1/sqrt(n_in), as PEFT draws it. A scorer's head stays trainable. The model itself is changed.

    Raises:
        FlopwiseError: it has adapters already, or the settings do not fit it.
    """
    if model.lora is not None:
        raise FlopwiseError("lora: the model has adapters already; merge them first")
    rows = {m.target: m.n_out for m in all_maps(model.cfg)}
    lora.maps(model.cfg)  # raises where they do not fit
    for p in model.parameters():
        p.requires_grad_(False)
    if model.n_scores:
        model.head.weight.requires_grad_(True)
    rng = torch.Generator().manual_seed(seed)
    for block in model.blocks:
        for path, targets in FUSED.items():
            if set(targets) & set(lora.targets):
                parent, _, name = path.rpartition(".")
                owner = block.get_submodule(parent)
                linear = LoRALinear(getattr(owner, name).weight, [(t, rows[t]) for t in targets], lora)
                drawn = torch.rand(linear.A.shape, generator=rng)
                with torch.no_grad():
                    linear.A.copy_(drawn.mul_(2).sub_(1).div_(math.sqrt(linear.in_features)))
                setattr(owner, name, linear)
    model.lora = lora
    return model


def adapted(model: nn.Module) -> list[LoRALinear]:
    """The maps that have an adapter, first layer first."""
    return [m for m in model.modules() if isinstance(m, LoRALinear)]


@contextmanager
def disabled(model: Transformer) -> Iterator[Transformer]:
    """The base model, while this lasts: a reference that needs no second copy of the weights."""
    linears = adapted(model)
    for linear in linears:
        linear.off = True
    try:
        yield model
    finally:
        for linear in linears:
            linear.off = False


def dense(linear: nn.Linear) -> Tensor:
    """What a map multiplies by [n_out, n_in], its adapter merged in; without one the weight itself."""
    return linear.merged() if isinstance(linear, LoRALinear) else linear.weight.detach()


def merged(model: Transformer) -> Transformer:
    """A plain model that computes the same; it shares memory with `model` where there is no adapter."""
    adapters = {id(m.A) for m in adapted(model)} | {id(m.B) for m in adapted(model)}
    names = {name for name, p in model.named_parameters() if id(p) in adapters}
    state = {name: t for name, t in model.state_dict().items() if name not in names}
    for name, module in model.named_modules():
        if isinstance(module, LoRALinear):
            state[f"{name}.weight"] = module.merged()
    return Transformer.holding(model.cfg, state, model.n_scores)


def save(model: Transformer, folder: Path, base: Path, tokenizer: SavesItself | None = None) -> None:
    """Write the adapters as PEFT does, so that `peft` loads them onto the base in `transformers`.

    Args:
        folder: where to; made if need be. The weights are renamed into place last.
        base: folder of the base model, which is named by its way from `folder` and by its content.
    """
    from safetensors.torch import save_file

    assert model.lora is not None
    folder.mkdir(parents=True, exist_ok=True)
    way = os.path.relpath(base.absolute(), folder.absolute())
    config = model.lora.to_peft(way, bool(model.n_scores))
    atomic_write(folder / CONFIG_FILE, json.dumps(config, indent=1))
    if tokenizer is not None:
        tokenizer.save(folder)
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in _named(model)}
    temporary = folder / f".{WEIGHTS_FILE}.{os.getpid()}.tmp"
    try:
        save_file(tensors, temporary, metadata={"format": "pt", "base_sha256": weights_sha256(base)})
        os.replace(temporary, folder / WEIGHTS_FILE)
    finally:
        temporary.unlink(missing_ok=True)


def load(folder: Path, base: Path | None = None) -> Transformer:
    """A base model with the adapters of a folder in PEFT's layout, ready to be trained on.

    Args:
        base: folder of the base model; by default what the adapter names.

    Raises:
        FlopwiseError: a file is missing or damaged, the adapter is of a kind that is not supported, the base
            is not here or not the one that the adapter was made on.
    """
    from safetensors import SafetensorError, safe_open

    from flopwise.models import hf

    config = read_config(folder)
    lora = LoRA.from_peft(config)
    base = base or find_base(folder, config.get("base_model_name_or_path") or "")
    try:
        with safe_open(folder / WEIGHTS_FILE, framework="pt") as f:
            made_on = (f.metadata() or {}).get("base_sha256")
            tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as e:
        raise FlopwiseError(f"adapter {folder}: {WEIGHTS_FILE} cannot be read ({str(e)[:120]})") from e
    if made_on is not None and made_on != (found := weights_sha256(base)):
        raise FlopwiseError(
            f"adapter {folder}: it was made on weights with SHA-256 {made_on[:12]}..., those in {base} have "
            f"{found[:12]}...; name the right base model"
        )
    model = hf.load(base)
    if model.n_scores == 0 and (score := tensors.get("base_model.model.score.weight")) is not None:
        model = scorer(model, len(score))
    attach(model, lora, seed=0)
    with torch.no_grad():
        for name, place in _named(model):
            tensor = tensors.pop(name, None)
            if tensor is None or tensor.shape != place.shape:
                what = "is missing" if tensor is None else f"has shape {tuple(tensor.shape)}"
                raise FlopwiseError(
                    f"adapter {folder}: {name} {what}, {tuple(place.shape)} is expected; name the right base"
                )
            place.copy_(tensor)
    if tensors:
        raise FlopwiseError(f"adapter {folder}: {next(iter(tensors))!r:.120} has no place in {base}")
    return model


def scorer(model: Transformer, n_scores: int = 1) -> Transformer:
    """A scorer on the trunk of a language model, which shares its memory; the head is zero."""
    state = {name: t for name, t in model.state_dict().items() if name != "head.weight"}
    state["head.weight"] = model.embed.weight.new_zeros(n_scores, model.cfg.d_model)
    return Transformer.holding(model.cfg.with_(tie_embeddings=False), state, n_scores)


def _named(model: Transformer) -> list[tuple[str, Tensor]]:
    """What an adapter's file holds, as views, under PEFT's names."""
    out: list[tuple[str, Tensor]] = []
    for i, block in enumerate(model.blocks):
        for linear in adapted(block):
            for s in linear.spans:
                at = f"base_model.model.model.layers.{i}.{PEFT_NAMES[s.target]}"
                out += [
                    (f"{at}.lora_A.weight", linear.A.detach()[s.a]),
                    (f"{at}.lora_B.weight", linear.B.detach()[s.b]),
                ]
    if model.n_scores:
        out.append(("base_model.model.score.weight", model.head.weight.detach()))
    return out
