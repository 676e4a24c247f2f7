"""Weights in fewer bits: what they stand for, products by compiled code, and what it does to a model."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import torch
from test_architectures import build
from tiny_models import make_model

from flopwise.errors import FlopwiseError
from flopwise.infer import native
from flopwise.infer.local import LocalEngine, rounded
from flopwise.infer.weights import KINDS, pack
from flopwise.models.native_build import INFERENCE, library

PROMPTS = [[3, 4, 5], [7], [9, 8, 7, 6, 5, 4, 3], [1, 2]]
compiled = pytest.mark.skipif(library(INFERENCE) is None, reason="no C++ compiler here")


def divergence(p, q):
    """Largest Kullback-Leibler divergence of rows of log-probabilities, in nats."""
    return (np.exp(p.astype(float)) * (p.astype(float) - q)).sum(1).max()


SHAPES = [(40, 48), (100, 70), (16, 320)]


def matrix(n_out, n_in, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(n_out, n_in, generator=rng) * torch.rand(n_out, 1, generator=rng)


@pytest.mark.parametrize("shape", SHAPES)
def test_rounding_is_to_the_nearest_step_of_each_group(shape):
    w = matrix(*shape)
    assert torch.equal(pack(w, "float32").dense(), w)
    assert torch.equal(pack(w, "bfloat16").dense(), w.bfloat16().float())
    for kind, steps in (("int8", 127), ("int4", 15)):
        error = (pack(w, kind).dense() - w).abs()
        for a in range(0, shape[1], 32):
            group = w[:, a : a + 32]
            padded = torch.cat([group, torch.zeros(len(w), 1)], 1) if group.shape[1] < 32 else group
            span = group.abs().amax(1) if kind == "int8" else padded.amax(1) - padded.amin(1)
            # Half a step; scale and least themselves are rounded to 11 bits.
            allowed = 0.5 * span / steps + 1.1 * group.abs().amax(1) * 2**-10
            assert (error[:, a : a + 32].amax(1) <= allowed).all()
    assert pack(w, "int4").bytes < pack(w, "int8").bytes < pack(w, "float32").bytes


def test_weights_on_a_grid_of_four_bits_are_kept_exactly():
    # As in a file whose groups of 32 have a scale and a least value in half precision.
    rng = torch.Generator().manual_seed(0)
    steps = torch.randint(0, 16, (32, 4, 32), generator=rng)
    steps[..., 0], steps[..., 1] = 0, 15
    scale, least = (torch.rand(32, 4, 1, generator=rng).half().float() * k for k in (2**-4, -0.5))
    w = (least + scale * steps).flatten(1)
    assert torch.allclose(pack(w, "int4").dense(), w, atol=1e-6)


@compiled
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_products_are_those_of_the_dense_matrix(shape, kind):
    packed = pack(matrix(*shape), kind)
    dense = packed.dense()
    for rows in (1, 2, 3, 4, 5, 6, 7, 13, 40):
        x, y = matrix(rows, shape[1], rows), torch.empty(rows, shape[0])
        library(INFERENCE).packed_product(
            ctypes.c_long(0), ctypes.c_long(rows), ctypes.c_void_p(x.data_ptr()),
            ctypes.c_void_p(y.data_ptr()), ctypes.byref(native._Matrix.of(packed)),
        )  # fmt: skip
        expected = x @ dense.T
        if kind.startswith("int") and rows <= 4:
            # Activations are rounded to 127 steps of each group's largest.
            most = torch.nn.functional.pad(x.abs(), (0, -shape[1] % 32)).view(rows, -1, 32).amax(-1)
            step = (most / 127).repeat_interleave(32, 1)[:, : shape[1]]
            assert ((y - expected).abs() <= (0.5 * step) @ dense.abs().T + 1e-4).all()
        else:
            assert torch.allclose(y, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "limit"), [("float32", 1e-6), ("bfloat16", 2e-3), ("int8", 2e-3), ("int4", 0.05)]
)
def test_a_model_in_fewer_bits_says_nearly_the_same(kind, limit, monkeypatch):
    model = make_model()
    exact = LocalEngine(model).next_logprobs(PROMPTS, range(40))[0]
    engine = LocalEngine(model, weights=kind)
    rough = engine.next_logprobs(PROMPTS, range(40))[0]
    assert divergence(exact, rough) < limit
    out = engine.sample(PROMPTS, n=3, max_tokens=8, seed=1)
    assert np.all(out.logprobs <= 1e-6)
    # Without a compiler torch has the same weights, and rounds no activations but in bfloat16.
    monkeypatch.setattr(native, "usable", lambda model: False)
    slow = LocalEngine(model, weights=kind).next_logprobs(PROMPTS, range(40))[0]
    assert divergence(slow, rough) < (1e-6 if kind == "float32" else 2e-3)


def test_what_cannot_be_rounded_is_one_line():
    with pytest.raises(FlopwiseError, match="weights are 'int3'"):
        LocalEngine(make_model(), weights="int3")
    with pytest.raises(FlopwiseError, match="experts is not rounded"):
        LocalEngine(build("one expert per token"), weights="int8")
    with pytest.raises(FlopwiseError, match="below 65504"):
        pack(torch.full((4, 4), 1e5), "int8")
    experts = LocalEngine(build("one expert per token"), weights="bfloat16")
    assert experts.sample(PROMPTS, max_tokens=3).ids.shape == (4, 3)


def test_the_embedding_is_not_rounded_with_a_tied_head():
    model = build("normed heads")
    copy = rounded(model, "int8")
    assert torch.equal(copy.embed.weight, model.embed.weight)
    assert not torch.equal(copy.head.weight, model.head.weight)
