"""The formulas against what PyTorch's counter sees the model do."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from flopwise.flops import (  # noqa: E402
    FlopCount,
    count_params,
    decode_flops,
    forward_flops,
    generate_flops,
    kv_cache_bytes,
    prefill_flops,
    score_flops,
    six_nd,
    train_flops,
)
from flopwise.flops.count import weight_bytes  # noqa: E402
from flopwise.infer.local import LocalEngine  # noqa: E402
from flopwise.models import kernels, native  # noqa: E402
from flopwise.models.config import ModelConfig  # noqa: E402
from flopwise.models.transformer import Transformer  # noqa: E402
from flopwise.train.loop import update_flops  # noqa: E402
from flopwise.train.objectives import Batch, cross_entropy, outcome_reward  # noqa: E402

SHAPES = {
    "plain heads": ModelConfig(96, 32, 2, 4, 4, 80),
    "grouped": ModelConfig(200, 48, 3, 6, 2, 128),
    "one key head": ModelConfig(64, 32, 1, 4, 1, 48),
    "wide heads": ModelConfig(64, 32, 2, 2, 1, 48, head_dim_override=24),
    "tied": ModelConfig(300, 40, 2, 4, 2, 112, tie_embeddings=True),
    "the dial": ModelConfig.from_width(64, 2, 512),
    "window": ModelConfig.from_width(64, 2, 512, sliding_window=8),
    "normed heads": ModelConfig.from_width(64, 2, 512, qk_norm=True),
    "one expert per token": ModelConfig.from_width(64, 2, 512, expansion=8),
    "shared experts": ModelConfig.from_width(48, 2, 300, expansion=4, granularity=8, shared_experts=2),
    "dense layer first": ModelConfig.from_width(
        64, 3, 512, expansion=4, granularity=4, balance="bias", qk_norm=True, sliding_window=16
    ).with_(n_dense_layers=1),
}


@pytest.fixture(params=SHAPES.values(), ids=SHAPES.keys())
def cfg(request: pytest.FixtureRequest) -> ModelConfig:
    return request.param


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Products that PyTorch sees, and one span: those of attention are then dense, as they are counted. With
    a window each query is a span: it is multiplied with the keys of its window."""
    monkeypatch.setattr(native, "library", lambda: None)
    windowed = "cfg" in request.fixturenames and request.getfixturevalue("cfg").sliding_window
    monkeypatch.setattr(kernels, "SPAN", 1 if windowed else 256)


def counted(work) -> float:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def ids(cfg: ModelConfig, B: int, T: int):
    return torch.randint(cfg.vocab_size, (B, T), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("B", "T"), [(1, 7), (3, 40), (2, 128)])
def test_forward(cfg, B, T):
    model = Transformer(cfg)
    with torch.no_grad():
        seen = counted(lambda: model(ids(cfg, B, T)))
        hidden = counted(lambda: model.hidden(ids(cfg, B, T)))
    assert forward_flops(cfg, T, B).total == pytest.approx(seen, rel=0.02)
    assert score_flops(cfg, T, B).total == pytest.approx(seen, rel=0.02)
    assert forward_flops(cfg, T, B, n_logits=0).total == pytest.approx(hidden, rel=0.02)


@pytest.mark.parametrize(("B", "T"), [(2, 16), (4, 64)])
def test_training_is_forward_and_backward(cfg, B, T):
    model, x = Transformer(cfg), ids(cfg, B, T + 1)
    seen = counted(lambda: cross_entropy(model, Batch(x[:, :-1], x[:, 1:]))[0].backward())
    assert train_flops(cfg, T, B).total == pytest.approx(seen, rel=0.02)


def test_training_where_little_is_learned(cfg):
    model, x = Transformer(cfg), ids(cfg, 4, 33)
    batch = Batch(x[:, :-1], x[:, 1:], (torch.arange(32) >= 20).float().repeat(4, 1))
    seen = counted(lambda: cross_entropy(model, batch)[0].backward())
    assert update_flops(model, batch) == train_flops(cfg, 32, 4, n_logits=12).total
    assert update_flops(model, batch) == pytest.approx(seen, rel=0.02)


def test_training_a_scorer(cfg):
    model, x = Transformer(cfg.with_(tie_embeddings=False), n_scores=1), ids(cfg, 4, 32)
    batch = Batch(x, labels=torch.ones(4), last=torch.full((4,), 31))
    seen = counted(lambda: outcome_reward(model, batch)[0].backward())
    assert update_flops(model, batch) == pytest.approx(seen, rel=0.02)


def test_causal_skipping_executes_less_than_is_counted(monkeypatch):
    monkeypatch.setattr(kernels, "SPAN", 32)
    cfg = SHAPES["the dial"]
    with torch.no_grad():
        seen = counted(lambda: Transformer(cfg)(ids(cfg, 1, 128)))
    dense = forward_flops(cfg, 128)
    # Four spans of 32 queries see 1, 2, 3 and 4 spans of keys: 10 of 16.
    assert seen == pytest.approx(dense.total - dense.scores * 6 / 16, rel=1e-6)


def test_prefill(cfg):
    model, x = Transformer(cfg), ids(cfg, 1, 50)
    with torch.no_grad():
        seen = counted(lambda: model.head(model.hidden(x)[:, -1]))
    assert prefill_flops(cfg, 50).total == pytest.approx(seen, rel=0.02)


def test_decode_against_the_engine(cfg):
    engine = LocalEngine(Transformer(cfg).initialise(0))

    def sample(n: int) -> float:
        return counted(lambda: engine.sample([list(range(20))], n=1, max_tokens=n, temperature=0.0))

    decode = sum(decode_flops(cfg, 20 + i).total for i in range(1, 30))
    assert decode == pytest.approx(sample(30) - sample(1), rel=0.02)
    assert generate_flops(cfg, 20, [30]).total == pytest.approx(prefill_flops(cfg, 20).total + decode)


def test_generate_shares_the_prefill():
    cfg = SHAPES["the dial"]
    alone, four = generate_flops(cfg, 30, [10]).total, generate_flops(cfg, 30, [10] * 4).total
    assert four == pytest.approx(4 * alone - 3 * prefill_flops(cfg, 30).total)
    assert (
        generate_flops(cfg, 30, [1]).total
        == prefill_flops(cfg, 30).total
        == generate_flops(cfg, 30, []).total
    )


def test_parameters_by_group(cfg):
    model, count = Transformer(cfg), count_params(cfg)
    sizes = {name: p.numel() for name, p in model.named_parameters()}

    def total(*words: str) -> int:
        return sum(n for name, n in sizes.items() if any(w in name for w in words))

    assert count.total == sum(sizes.values())
    assert count.by_module == {
        "embedding": total("embed"), "attention": total("attn.qkv", "attn.out"),
        "mlp": total("mlp.gate", "mlp.down", "mlp.shared"), "norms": total("norm"),
        "output": total("head"), "router": total("router"),
    }  # fmt: skip
    assert count.non_embedding == count.total - total("embed", "head") == count.total - count.embedding
    # What is active takes part in one token's products, once.
    products = forward_flops(cfg, 1, n_logits=0)
    products = (products.total - products.scores) / 2 + total("norm")
    assert count.active_non_embedding == products == count.active - count.embedding
    assert (count.active == count.total) == (not cfg.n_experts)


def test_six_nd_and_bytes():
    cfg = SHAPES["the dial"]
    assert six_nd(cfg, 1000) == 6 * count_params(cfg).non_embedding * 1000
    sparse = SHAPES["one expert per token"]
    assert six_nd(sparse, 1000) == 6 * count_params(sparse).active_non_embedding * 1000
    assert weight_bytes(cfg, 2) == 2 * count_params(cfg).total
    # Two tensors, two layers, two key-value heads of 16 units, ten positions, three sequences, four bytes.
    assert kv_cache_bytes(cfg, 10, 3) == 2 * 2 * 2 * 16 * 10 * 3 * 4


def test_a_mixture_has_the_active_width_of_the_dense_model():
    dense = count_params(ModelConfig.from_width(64, 2, 512))
    for options in ({}, {"granularity": 4}, {"granularity": 8, "shared_experts": 1}):
        cfg = ModelConfig.from_width(64, 2, 512, expansion=4, **options)
        sparse = count_params(cfg)
        routers = sparse.by_module["router"]
        assert sparse.active == dense.total + routers
        assert sparse.by_module["mlp"] == 4 * dense.by_module["mlp"]
        assert routers == 2 * 64 * cfg.n_experts
        assert (
            forward_flops(cfg, 40).total == forward_flops(cfg.from_width(64, 2, 512), 40).total + 80 * routers
        )


def test_a_window_limits_scores_and_cache():
    cfg, free = SHAPES["window"], SHAPES["the dial"]
    assert forward_flops(cfg, 128).scores == forward_flops(free, 128).scores / 16
    assert forward_flops(cfg, 8) == forward_flops(free, 8)
    assert decode_flops(cfg, 100) == decode_flops(free, 8)
    assert kv_cache_bytes(cfg, 100) == kv_cache_bytes(free, 8)
    for prompt, n in ((3, 20), (8, 5), (30, 2), (1, 3)):
        passes = sum((decode_flops(cfg, prompt + i) for i in range(1, n)), FlopCount())
        assert generate_flops(cfg, prompt, [n]).total == (prefill_flops(cfg, prompt) + passes).total


def test_counts_add_and_scale_by_module():
    a, b = FlopCount(attention=1, scores=2, mlp=3, output=4), FlopCount(attention=10, output=1)
    assert a + b == FlopCount(attention=11, scores=2, mlp=3, output=5)
    assert 2 * a == a * 2 == a + a
    assert FlopCount(router=5).total == 5
    assert (a + b).total == 21
