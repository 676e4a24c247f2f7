"""Compiled kernels: values and gradients of torch in float64, the same bits however rows are shared."""

from __future__ import annotations

import itertools

import pytest

torch = pytest.importorskip("torch")

from flopwise.models import kernels, native, native_build, stock  # noqa: E402
from flopwise.models.config import ModelConfig  # noqa: E402
from flopwise.models.kernels import Positions  # noqa: E402
from flopwise.models.transformer import Transformer, rope_tables  # noqa: E402

compiled = pytest.mark.skipif(native_build.library() is None, reason="no C++ compiler here")


def randn(*shape: int, seed: int = 0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def walk(function, *inputs, grads=None):
    """Values of `function` and gradients to its inputs, for given or seeded gradients of the values."""
    inputs = [t.detach().clone().requires_grad_() for t in inputs]
    out = function(*inputs)
    outs = out if isinstance(out, tuple) else (out,)
    grads = grads or [randn(*o.shape, seed=9).to(o.dtype) for o in outs]
    torch.autograd.backward(outs, grads)
    return [o.detach() for o in outs], [t.grad for t in inputs]


def agree(function, *inputs, atol=2e-5):
    """Compiled in float32 against torch in float64 (which `kernels` never hands to the compiled code)."""
    assert native.usable(inputs[0])
    for ours, exact in zip(
        walk(function, *inputs), walk(function, *(t.double() for t in inputs)), strict=True
    ):
        for a, b in zip(ours, exact, strict=True):
            assert a.dtype == torch.float32 and b.dtype == torch.float64
            assert torch.allclose(a.double(), b, atol=atol, rtol=1e-5)


@compiled
@pytest.mark.parametrize(("n", "d"), [(1, 8), (300, 48), (513, 130)])
def test_rms_norm(n, d):
    agree(lambda x, w: kernels.rms_norm(x, w, 1e-5), randn(n, d), randn(d, seed=1), atol=1e-4)


@compiled
def test_sum_and_norm():
    def norm(x, y, w):
        return kernels.add_rms_norm(x, y, w, 1e-5)

    inputs = randn(300, 48), randn(300, 48, seed=2), randn(48, seed=1)
    agree(norm, *inputs, atol=1e-4)

    def apart(x, y, w):
        total = x + y
        return total, kernels.rms_norm(total, w, 1e-5)

    # The same bits: models trained together add and normalise apart.
    for a, b in zip(walk(norm, *inputs), walk(apart, *inputs), strict=True):
        assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


@compiled
@pytest.mark.parametrize(("n", "f"), [(1, 16), (65, 44), (256, 128)])
def test_swiglu(n, f):
    agree(kernels.swiglu, 3 * randn(n, 2 * f))


@compiled
def test_swiglu_far_from_zero():
    """Where the exponential would leave float32 the gate is shut or open, not NaN."""
    x = torch.tensor([[-200.0, -89.0, 89.0, 200.0, 1.0, 1.0, 1.0, 1.0]])
    agree(kernels.swiglu, x)


@compiled
@pytest.mark.parametrize(
    ("B", "T", "H", "K", "D", "window"),
    [
        (2, 33, 4, 2, 12, None), (1, 128, 4, 4, 32, None), (2, 70, 6, 2, 10, 16), (1, 200, 4, 1, 64, 50),
        (2, 1, 4, 2, 12, None), (1, 40, 8, 1, 6, 7), (1, 45, 32, 1, 8, None), (1, 30, 2, 2, 16, 1),
    ],
)  # fmt: skip
def test_attention(B, T, H, K, D, window):
    cfg = ModelConfig(8, H * D, 1, H, K, 8, max_seq_len=256, head_dim_override=D)

    def attend(qkv):
        cos, sin = (t.to(qkv.dtype) for t in rope_tables(cfg, T))
        return kernels.attention(qkv, Positions.of(cos, sin, H, K, window), H, K)

    agree(attend, randn(B, T, (H + 2 * K) * D))


@compiled
def test_attention_of_large_scores():
    cfg = ModelConfig(8, 32, 1, 4, 2, 8)

    def attend(qkv):
        cos, sin = (t.to(qkv.dtype) for t in rope_tables(cfg, 50))
        return kernels.attention(qkv, Positions.of(cos, sin, 4, 2), 4, 2)

    agree(attend, 8 * randn(1, 50, 64), atol=2e-3)


@compiled
def test_what_is_no_number_stays_none():
    """The loop stops at a loss that is not finite, which must not be hidden from it."""
    cfg = ModelConfig(8, 16, 1, 2, 1, 8)
    at = Positions.of(*rope_tables(cfg, 9), 2, 1)
    qkv = randn(1, 9, 32)
    qkv[0, 4, 3] = torch.nan  # a query of head 0
    out = kernels.attention(qkv, at, 2, 1)
    assert out[0, 4, :8].isnan().all() and out[0, :4].isfinite().all()
    assert kernels.swiglu(torch.full((1, 8), torch.nan)).isnan().all()


@compiled
def test_more_query_heads_than_the_compiled_code_takes_go_to_torch():
    cfg = ModelConfig(8, 33 * 2, 1, 33, 1, 8)
    at = Positions.of(*rope_tables(cfg, 5), 33, 1)
    out = kernels.attention(randn(1, 5, 35 * 2).requires_grad_(), at, 33, 1)
    assert "native" not in type(out.grad_fn).__module__ and out.isfinite().all()


@compiled
@pytest.mark.parametrize("V", [5, 512])
def test_token_logprobs_and_their_denominators(V):
    targets = torch.randint(V, (77,), generator=torch.Generator().manual_seed(2))
    agree(
        lambda h, w: kernels.token_logprobs(h, w, targets), randn(77, 24), 5 * randn(V, 24, seed=1), atol=1e-3
    )


@compiled
def test_gradients_that_are_not_contiguous():
    x, grad = randn(64, 96), randn(48, 64).T
    (_, [a]), (_, [b]) = (
        walk(kernels.swiglu, x, grads=[grad]),
        walk(kernels.swiglu, x, grads=[grad.contiguous()]),
    )
    assert torch.equal(a, b)


def step_gradients(model: Transformer, ids: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    logprobs, _ = kernels.token_logprobs(
        model.hidden(ids[:, :-1]).flatten(0, 1), model.head.weight, ids[:, 1:].flatten()
    )
    logprobs.mean().backward()
    return [p.grad.clone() for p in model.parameters()]


@compiled
def test_a_model_learns_the_same_as_in_torch(monkeypatch):
    cfg = ModelConfig.from_width(48, 2, 64, 64, qk_norm=True, sliding_window=20)
    model = Transformer(cfg).initialise(0)
    torch.nn.init.normal_(model.head.weight, std=0.1, generator=torch.Generator().manual_seed(3))
    ids = torch.randint(64, (4, 51), generator=torch.Generator().manual_seed(2))
    ours = step_gradients(model, ids)
    monkeypatch.setattr(native, "library", lambda: None)
    assert not native.usable(ids)
    for a, b in zip(ours, step_gradients(model, ids), strict=True):
        assert torch.allclose(a, b, atol=1e-5, rtol=1e-4)


@compiled
def test_threads_share_rows_without_a_change_of_bits():
    x, weight = randn(700, 64), randn(64, seed=1)
    norm = lambda x, w: kernels.rms_norm(x, w, 1e-5)  # noqa: E731
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append([*walk(norm, x, weight)[1], *walk(kernels.swiglu, x)[1]])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """A cache folder of its own, and nothing known about compilers before and after."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("FLOPWISE_CACHE", raising=False)
    native_build.library.cache_clear()
    yield tmp_path
    native_build.library.cache_clear()


@compiled
def test_compiled_once_per_machine(fresh):
    assert native_build.library() is not None
    (made,) = fresh.rglob("*.so")
    first = made.stat()
    native_build.library.cache_clear()
    assert native_build.library() is not None
    assert made.stat().st_mtime_ns == first.st_mtime_ns
    assert list(made.parent.iterdir()) == [made]


@pytest.mark.parametrize("setting", [{"FLOPWISE_NATIVE": "0"}, {"CXX": "false"}])
def test_without_a_compiler_torch_does_the_same(fresh, monkeypatch, setting):
    for name, value in setting.items():
        monkeypatch.setenv(name, value)
    assert native_build.library() is None
    x = randn(5, 8)
    assert not native.usable(x)
    assert torch.allclose(kernels.swiglu(x), torch.nn.functional.silu(x[:, :4]) * x[:, 4:], atol=1e-6)


def test_a_damaged_library_is_not_fatal(fresh, monkeypatch):
    monkeypatch.setattr(native_build, "_build", lambda compiler, path, sources: path.write_text("no library"))
    (fresh / "flopwise" / "native").mkdir(parents=True)
    assert native_build.library() is None


@compiled
@pytest.mark.parametrize(
    ("H", "K", "D", "window"), [(4, 2, 12, None), (2, 2, 8, 7), (4, 1, 16, 50), (8, 1, 6, None), (1, 1, 8, 1)]
)
def test_attention_inside_of_segments(H, K, D, window):
    """Against one sequence at a time, each at its place in the row."""
    cuts = [[0, 1, 30, 33, 70], [0, 64, 65, 66, 70]]
    segments = torch.stack(
        [torch.repeat_interleave(torch.arange(4) % 3, torch.tensor(c).diff()) for c in cuts]
    )
    cfg = ModelConfig(8, H * D, 1, H, K, 8, max_seq_len=256, head_dim_override=D)

    def packed(qkv):
        cos, sin = (t.to(qkv.dtype) for t in rope_tables(cfg, 70))
        return kernels.attention(qkv, Positions.of(cos, sin, H, K, window, segments), H, K)

    def alone(qkv):
        cos, sin = (t.to(qkv.dtype) for t in rope_tables(cfg, 70))
        rows = []
        for row, c in zip(qkv, cuts, strict=True):
            parts = [
                kernels.attention(row[None, a:b], Positions.of(cos[a:b], sin[a:b], H, K, window), H, K)
                for a, b in itertools.pairwise(c)
            ]
            rows.append(torch.cat(parts, 1))
        return torch.cat(rows)

    def stocked(qkv):
        cos, sin = (t.to(qkv.dtype) for t in rope_tables(cfg, 70))
        return stock.attention(qkv, Positions.of(cos, sin, H, K, window, segments), H, K)

    qkv = randn(2, 70, (H + 2 * K) * D)
    agree(packed, qkv)
    for a, b, c in zip(walk(alone, qkv), walk(packed, qkv), walk(stocked, qkv), strict=True):
        assert torch.allclose(a[0], b[0], atol=1e-5) and torch.allclose(a[0], c[0], atol=1e-5)
