"""A dense model's forward pass over loose tokens in compiled code (`models/native_infer.cpp`).

One call does all layers: at one token a time the calls themselves would cost as much as the arithmetic.
"""

from __future__ import annotations

import ctypes
import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from flopwise.infer.cache import Slots
from flopwise.infer.weights import KINDS, Packed, pack
from flopwise.models.lora import dense
from flopwise.models.moe import MoE
from flopwise.models.native_build import INFERENCE, library
from flopwise.models.transformer import Block, Transformer

LANES = 8
"""Floats that are worked on together: heads and the cache's capacity are multiples."""


def usable(model: Transformer) -> bool:
    """Whether a model can be run: there is a compiler, no experts, heads in whole vectors."""
    dense_only = not any(isinstance(b, Block) and isinstance(b.mlp, MoE) for b in model.blocks)
    return dense_only and model.cfg.head_dim % LANES == 0 and library(INFERENCE) is not None


class _Matrix(ctypes.Structure):
    _fields_ = [
        ("kind", ctypes.c_int64), ("out", ctypes.c_int64), ("inputs", ctypes.c_int64),
        ("data", ctypes.c_void_p), ("scales", ctypes.c_void_p),
    ]  # fmt: skip

    @classmethod
    def of(cls, packed: Packed) -> _Matrix:
        return cls(
            KINDS.index(packed.kind), packed.out, packed.inputs,
            packed.data.data_ptr(), packed.scales.data_ptr() or None,
        )  # fmt: skip


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("attn_norm", "q_norm", "k_norm", "mlp_norm")),
        *((name, _Matrix) for name in ("qkv", "mix", "gate_up", "down")),
    ]


class _Model(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("n_layers", "width", "H", "K", "D", "F", "window")),
        ("eps", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("cos", "sin", "embed", "norm")),
        ("head", _Matrix), ("layers", ctypes.POINTER(_Layer)),
    ]  # fmt: skip


class _Store(ctypes.Structure):
    _fields_ = [("slots", ctypes.c_void_p), ("stride", ctypes.c_int64), ("capacity", ctypes.c_int64)]


class NativeModel:
    """A model's weights, rounded and laid out, and what runs them.

    Args:
        kind: how matrices are kept (`weights.KINDS`); the head is never rounded to less than 8 bits, where
            4 cost most of the accuracy and save a fifth of the memory.
    """

    dtype = torch.float32
    """Of keys and values."""

    def __init__(self, model: Transformer, kind: str):
        cfg = model.cfg
        self.cfg = cfg
        self._alive: list[Tensor] = []
        self.weight_bytes = 0
        with torch.no_grad():
            blocks = [b for b in model.blocks if isinstance(b, Block)]
            layers = (_Layer * len(blocks))(*(self._layer(b, kind) for b in blocks))
            head = self._matrix(model.head.weight, "int8" if kind == "int4" else kind)
            self._model = _Model(
                cfg.n_layers, cfg.d_model, cfg.n_heads, cfg.n_kv_heads, cfg.head_dim, cfg.d_ff,
                cfg.sliding_window or 0, cfg.norm_eps, self._vector(model.cos), self._vector(model.sin),
                self._vector(model.embed.weight), self._vector(model.norm.weight), head, layers,
            )  # fmt: skip

    def _layer(self, block: Block, kind: str) -> _Layer:
        attn, mlp = block.attn, block.mlp
        assert not isinstance(mlp, MoE)
        norms = [attn.q_norm.weight, attn.k_norm.weight] if self.cfg.qk_norm else [None, None]
        vectors = [block.attn_norm.weight, *norms, block.mlp_norm.weight]
        matrices = [dense(m) for m in (attn.qkv, attn.out, mlp.gate_up, mlp.down)]
        return _Layer(*map(self._vector, vectors), *(self._matrix(m, kind) for m in matrices))

    def _vector(self, t: Tensor | None) -> int | None:
        if t is None:
            return None
        t = t.detach().float().contiguous()
        self._alive.append(t)
        return t.data_ptr()

    def _matrix(self, weight: Tensor, kind: str) -> _Matrix:
        packed = pack(weight, kind)
        self.weight_bytes += packed.bytes
        self._alive += [packed.data, packed.scales]
        return _Matrix.of(packed)

    def __call__(
        self, ids: np.ndarray, slots: np.ndarray, positions: np.ndarray, wanted: np.ndarray, store: Slots
    ) -> Tensor:
        """As `infer.forward.Forward`."""
        rows = np.where(wanted, wanted.cumsum() - 1, -1)
        logits = torch.empty(int(wanted.sum()), self._model.head.out)
        held = _Store(store.store.data_ptr(), store.store.stride(0), store.capacity)
        arrays = [np.ascontiguousarray(a, dtype=np.int64) for a in (ids, slots, positions, rows)]
        function = library(INFERENCE).forward_tokens  # type: ignore[union-attr]
        function.restype = None
        passed = [
            *(ctypes.c_void_p(a.ctypes.data) for a in arrays), ctypes.c_void_p(logits.data_ptr()),
            ctypes.byref(self._model), ctypes.byref(held),
        ]  # fmt: skip
        ends = _parts(arrays[1], torch.get_num_threads())
        if len(ends) == 2:
            function(ctypes.c_long(0), ctypes.c_long(len(ids)), *passed)
        else:
            # ctypes lets go of Python's lock during a call, so threads are enough.
            with ThreadPoolExecutor(len(ends) - 1) as pool:
                calls = [
                    pool.submit(function, ctypes.c_long(a), ctypes.c_long(b), *passed)
                    for a, b in itertools.pairwise(ends)
                ]
                for call in calls:
                    call.result()
        return logits


def _parts(slots: np.ndarray, threads: int) -> list[int]:
    """Where to cut tokens for threads, so that no slot falls into two parts."""
    if threads == 1:
        return [0, len(slots)]
    starts = np.flatnonzero(np.append(True, slots[1:] != slots[:-1]))
    cuts = {int(starts[len(starts) * i // threads]) for i in range(threads)}
    return [*sorted(cuts | {0}), len(slots)]
