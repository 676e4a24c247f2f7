"""How a matrix is kept for sampling: float32, bfloat16, or whole numbers of 8 or 4 bits in groups.

A group is `GROUP` inputs of one output. With 8 bits a weight is scale * q, q in [-127, 127]; with 4 bits it
is least + scale * q, q in [0, 15], which spans the group's range whole. Scale and least are half-precision
numbers, and q is rounded against them as they are stored: 8.5 and 5 bits a weight. Rounding to the nearest of
a grid per group is what GPTQ (arXiv 2210.17323, section 4) and others call RTN.

The layout is that of `models/native_infer.cpp`: panels of `PANEL` outputs, in which the inputs follow one
another, so that a product reads each weight once, in order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from flopwise.errors import FlopwiseError

KINDS = ("float32", "bfloat16", "int8", "int4")
PANEL, GROUP = 16, 32
LARGEST_HALF = 65504.0


@dataclass(frozen=True)
class Packed:
    """A matrix [out, in] in panels; `scales` is empty where numbers are not whole."""

    kind: str
    out: int
    inputs: int
    data: Tensor
    scales: Tensor

    @property
    def bytes(self) -> int:
        """What one product reads."""
        return self.data.nbytes + self.scales.nbytes

    def dense(self) -> Tensor:
        """The matrix that it stands for: float32 [out, in]."""
        if self.kind in KINDS[:2]:
            rows = self.data.float().transpose(1, 2).flatten(0, 1)
        else:
            rows = _unpacked(self.data, self.scales, self.kind).flatten(0, 1).flatten(1)
        return rows[: self.out, : self.inputs].contiguous()


def pack(weight: Tensor, kind: str) -> Packed:
    """Round a matrix [out, in] to a kind and lay it out.

    Raises:
        FlopwiseError: an unknown kind, or weights that are not finite or, for whole numbers, too large for
            half-precision scales.
    """
    if kind not in KINDS:
        raise FlopwiseError(f"weights are {kind!r:.40}, must be one of {', '.join(KINDS)}")
    n_out, n_in = weight.shape
    w = F.pad(weight.detach().float(), (0, 0, 0, -n_out % PANEL))
    if kind in KINDS[:2]:
        dtype = torch.float32 if kind == "float32" else torch.bfloat16
        panels = w.view(-1, PANEL, n_in).transpose(1, 2).to(dtype).contiguous()
        return Packed(kind, n_out, n_in, panels, torch.empty(0))
    if not w.abs().max() <= LARGEST_HALF:
        raise FlopwiseError(f"weights: not all are finite and below {LARGEST_HALF:.0f}; keep them in float32")
    groups = F.pad(w, (0, -n_in % GROUP)).view(len(w) // PANEL, PANEL, -1, GROUP)
    if kind == "int8":
        scale = (groups.abs().amax(-1) / 127).half()
        whole = _steps(groups, scale).clamp_(-127, 127).to(torch.int8)
        scales = scale.transpose(1, 2)
    else:
        least, most = groups.amin(-1).half(), groups.amax(-1)
        scale = ((most - least.float()) / 15).half()
        whole = _steps(groups - least[..., None].float(), scale).clamp_(0, 15).to(torch.uint8)
        scales = torch.stack([scale.transpose(1, 2), least.transpose(1, 2)], 2)
    # [panels, 2 x 8 outputs, groups, inputs by fours] -> fours of an output side by side, 8 outputs at once.
    fours = whole.unflatten(1, (2, 8)).unflatten(-1, (-1, 4)).permute(0, 3, 4, 1, 2, 5)
    if kind == "int4":
        fours = fours[:, :, 0::2] | fours[:, :, 1::2] << 4
    return Packed(kind, n_out, n_in, fours.contiguous(), scales.contiguous())


def _steps(values: Tensor, scale: Tensor) -> Tensor:
    """Whole steps of `scale` [panels, 16, groups] in values [..., GROUP]; none where there is no scale."""
    step = scale[..., None].float()
    return torch.where(step > 0, values / step, 0.0).round_()


def _unpacked(data: Tensor, scales: Tensor, kind: str) -> Tensor:
    """Float32 [panels, 16, groups, GROUP] of whole numbers as `pack` lays them out."""
    if kind == "int4":
        data = torch.stack([data & 15, data >> 4], 3).flatten(2, 3)
    whole = data.permute(0, 3, 4, 1, 2, 5).flatten(1, 2).flatten(3).float()
    if kind == "int8":
        return whole * scales.transpose(1, 2)[..., None].float()
    scale, least = (s.transpose(1, 2)[..., None].float() for s in scales.unbind(2))
    return whole * scale + least
