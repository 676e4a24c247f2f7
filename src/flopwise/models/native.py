"""The pieces of `kernels.py` in compiled code: one pass over memory each, attention without stored weights.

Same mathematics and same gradients (`tests/models/test_kernels_native.py` compares them) in about a third of
the time. Each call into `native.cpp` works on a range of rows; several threads share them out.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from flopwise.models.native_build import library


def usable(x: Tensor) -> bool:
    """Whether x can be taken: float32 in memory, neither traced nor to be cast, and there is a compiler."""
    return (
        not torch.compiler.is_compiling()
        and x.dtype == torch.float32
        and x.device.type == "cpu"
        and type(x) in (Tensor, torch.nn.Parameter)
        and not torch.is_autocast_enabled("cpu")
        and library() is not None
    )


def _run(name: str, rows: int, *arguments: Tensor | int | float | None) -> None:
    """Call a function of `native.cpp` for rows [0, rows) with contiguous tensors; None is no array."""
    function = _function(name, tuple(map(type, arguments)))
    passed = [a.data_ptr() if isinstance(a, Tensor) else a for a in arguments]
    threads = torch.get_num_threads()
    if threads == 1:
        function(0, rows, *passed)
        return
    ends = [rows * i // threads for i in range(threads + 1)]
    calls = [_pool(threads).submit(function, a, b, *passed) for a, b in itertools.pairwise(ends) if b > a]
    for call in calls:
        call.result()


@functools.cache
def _function(name: str, kinds: tuple[type, ...]) -> Any:
    """The compiled function, told once how to take its arguments (a tensor by its address)."""
    function = getattr(library(), name)
    known = {int: ctypes.c_long, float: ctypes.c_float}
    function.argtypes = [ctypes.c_long, ctypes.c_long, *(known.get(k, ctypes.c_void_p) for k in kinds)]
    function.restype = None
    return function


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """ctypes lets go of Python's lock during a call, so threads are enough."""
    return ThreadPoolExecutor(threads)


class RMSNorm(Function):
    """`kernels.rms_norm`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x [N, d], weight [d] -> [N, d]."""
        x = x.contiguous()
        out, scale = torch.empty_like(x), x.new_empty(len(x))
        _run("rms_norm", len(x), x, None, weight, None, out, scale, x.shape[1], eps)
        ctx.save_for_backward(x, weight, scale)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        """To x and to weight."""
        return *_norm_back(ctx.saved_tensors, grad, None), None


class AddRMSNorm(Function):
    """`kernels.add_rms_norm`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, other: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """x, other [N, d], weight [d] -> sum and normalised sum [N, d]."""
        x = x.contiguous()
        total, out, scale = torch.empty_like(x), torch.empty_like(x), x.new_empty(len(x))
        _run("rms_norm", len(x), x, other.contiguous(), weight, total, out, scale, x.shape[1], eps)
        ctx.save_for_backward(total, weight, scale)
        return total, out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, direct: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """To x, to other and to weight."""
        to_total, to_weight = _norm_back(ctx.saved_tensors, grad, direct.contiguous())
        return to_total, to_total, to_weight, None


def _norm_back(saved: tuple[Tensor, ...], grad: Tensor, direct: Tensor | None) -> tuple[Tensor, Tensor]:
    """Gradients to what was normalised (`direct` added) and to the weight."""
    x, weight, scale = saved
    to_x, to_weight = torch.empty_like(x), x.new_empty(-(-len(x) // BLOCK), len(weight))
    arguments = (grad.contiguous(), direct, x, weight, scale, to_x, to_weight, *x.shape)
    _run("rms_norm_back", len(to_weight), *arguments)
    return to_x, to_weight.sum(0)


BLOCK = 256
"""Rows whose gradients to a weight are summed together, so that no sum depends on the number of threads.
`native.cpp` has it too."""


class SwiGLU(Function):
    """`kernels.swiglu`; keeps its argument alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """x [N, 2F] -> [N, F]."""
        x = x.contiguous()
        out = x.new_empty(len(x), x.shape[1] // 2)
        _run("swiglu", len(x), x, out, out.shape[1])
        ctx.save_for_backward(x)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """To x."""
        (x,) = ctx.saved_tensors
        to_x = torch.empty_like(x)
        _run("swiglu_back", len(x), grad.contiguous(), x, to_x, grad.shape[1])
        return to_x


MAX_GROUP = 32
"""Query heads that may share a key-value head: `LANES` of `native.cpp`, the width of its tiles."""


class Attention(Function):
    """`kernels.attention` by rotary tables cos and sin [T, D]; keeps qkv and a number per query."""

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor, n_heads: int, n_kv_heads: int, window: int,
        starts: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """qkv [B, T, (H + 2K) D] -> [B, T, H D]; `window` 0: all keys before are seen; `starts` [B, T] int64:
        the first key that each position sees, which never falls along a row."""
        qkv, cos, sin = qkv.contiguous(), cos.contiguous(), sin.contiguous()
        B, T, D = *qkv.shape[:2], cos.shape[1]
        tiles = -(-T // (MAX_GROUP // (n_heads // n_kv_heads)))
        out, log_sum = qkv.new_empty(B, T, n_heads * D), qkv.new_empty(B, n_kv_heads, tiles, MAX_GROUP)
        ctx.sizes = (T, n_heads, n_kv_heads, D, window)
        starts = starts if starts is None else starts.contiguous()
        _run("attention", B, qkv, cos, sin, starts, out, log_sum, *ctx.sizes)
        ctx.save_for_backward(qkv, cos, sin, starts, log_sum)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None, None, None]:
        """To qkv."""
        qkv, *others = ctx.saved_tensors
        to_qkv = torch.empty_like(qkv)
        _run("attention_back", len(qkv), grad.contiguous(), qkv, *others, to_qkv, *ctx.sizes)
        return to_qkv, None, None, None, None, None, None


class TokenLogprobs(Function):
    """`kernels.token_logprobs`."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """hidden [N, d], weight [V, d], targets [N] -> log-probability and log-denominator [N]."""
        logits, targets = torch.mm(hidden, weight.T), targets.contiguous()
        total, chosen, log_z = logits.new_empty(3, len(logits))
        _run("log_softmax", len(logits), logits, targets, total, chosen, log_z, logits.shape[1])
        ctx.save_for_backward(hidden, weight, targets, logits, total)
        return chosen, log_z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, to_log_z: Tensor) -> tuple[Tensor, Tensor | None, None]:
        """To hidden and to weight, unless it is frozen."""
        hidden, weight, targets, exps, total = ctx.saved_tensors
        given = grad.contiguous(), to_log_z.contiguous()
        _run("log_softmax_back", len(exps), *given, targets, total, exps, exps.shape[1])
        to_weight = torch.mm(hidden.T, exps).T if ctx.needs_input_grad[1] else None
        return torch.mm(exps, weight), to_weight, None
