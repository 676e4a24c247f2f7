"""The model: its kernels against plain PyTorch, its initial weights, the dial."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402

from flopwise.errors import FlopwiseError  # noqa: E402
from flopwise.flops import count_params  # noqa: E402
from flopwise.models import families, kernels  # noqa: E402
from flopwise.models.config import ModelConfig  # noqa: E402
from flopwise.models.transformer import Transformer, rope_tables  # noqa: E402


def randn(*shape: int, seed: int = 0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain_attention(qkv, cos, sin, H: int, K: int, window: int | None = None):
    """As the Llama family writes it: turn, repeat keys and values, mask, softmax."""
    B, T, _ = qkv.shape
    heads = qkv.view(B, T, H + 2 * K, -1).transpose(1, 2)
    a, b = heads[:, : H + K].chunk(2, -1)
    turned = heads[:, : H + K] * cos + torch.cat([-b, a], -1) * sin
    k, v = (x.repeat_interleave(H // K, 1) for x in (turned[:, H:], heads[:, H + K :]))
    seen = torch.ones(T, T, dtype=torch.bool).tril().triu(1 - (window or T))
    mixed = F.scaled_dot_product_attention(turned[:, :H], k, v, seen)
    return mixed.transpose(1, 2).flatten(2)


@pytest.mark.parametrize("T", [1, 5, kernels.SPAN, kernels.SPAN + 1, 3 * kernels.SPAN - 7])
@pytest.mark.parametrize(("H", "K"), [(4, 2), (3, 1), (2, 2)])
def test_attention_and_its_gradient(T, H, K):
    cfg = ModelConfig(8, 8 * H, 1, H, K, 16)
    cos, sin = (t.double() for t in rope_tables(cfg, T))
    positions = kernels.Positions.of(cos, sin, H, K)
    ours, plain = (randn(2, T, (H + 2 * K) * 8).requires_grad_() for _ in range(2))
    a, b = kernels.attention(ours, positions, H, K), plain_attention(plain, cos, sin, H, K)
    assert torch.allclose(a, b, atol=1e-12)
    weight = randn(*a.shape, seed=1)
    (a * weight).sum().backward()
    (b * weight).sum().backward()
    assert torch.allclose(ours.grad, plain.grad, atol=1e-12)


def test_gradients_of_norm_and_mlp():
    x, w = randn(5, 6).requires_grad_(), randn(6, seed=1).requires_grad_()
    assert torch.allclose(kernels.rms_norm(x, w, 1e-5), F.rms_norm(x, (6,), w, 1e-5))
    torch.autograd.gradcheck(lambda x, w: kernels.rms_norm(x, w, 1e-5), (x, w))
    gate, up = x.chunk(2, -1)
    assert torch.allclose(kernels.swiglu(x), F.silu(gate) * up)
    torch.autograd.gradcheck(kernels.swiglu, (x,))


def test_token_logprobs_and_their_gradient():
    hidden, weight = (4 * randn(7, 5)).requires_grad_(), randn(11, 5, seed=1).requires_grad_()
    targets = torch.tensor([0, 10, 3, 3, 5, 1, 0])
    plain = (hidden @ weight.T).log_softmax(-1)[torch.arange(7), targets]
    assert torch.allclose(kernels.token_logprobs(hidden, weight, targets)[0], plain)
    scale = randn(7, seed=2)
    want = torch.autograd.grad((plain * scale).sum(), (hidden, weight))
    got = torch.autograd.grad(
        (kernels.token_logprobs(hidden, weight, targets)[0] * scale).sum(), (hidden, weight)
    )
    assert all(torch.allclose(a, b) for a, b in zip(got, want, strict=True))


def test_token_logprobs_survive_large_logits():
    hidden, weight = torch.tensor([[200.0], [-300.0]]), torch.tensor([[1.0], [-1.0]])
    assert kernels.token_logprobs(hidden, weight, torch.tensor([1, 0]))[0].tolist() == [-400.0, -600.0]


def test_a_graph_through_the_shared_buffer_cannot_be_walked_twice():
    hidden = randn(3, 4).requires_grad_()
    loss = kernels.token_logprobs(hidden, randn(6, 4, seed=1), torch.tensor([0, 1, 2]))[0].sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_later_tokens_do_not_change_earlier_logits():
    model = Transformer(ModelConfig.from_width(32, 2, 64)).initialise(0)
    torch.nn.init.normal_(model.head.weight)
    x = torch.arange(60)[None] % 64
    y = x.clone()
    y[:, 40:] = 0
    assert torch.allclose(model(x)[:, :40], model(y)[:, :40], atol=1e-5)
    assert not torch.allclose(model(x)[:, 40:], model(y)[:, 40:], atol=1e-5)


def test_too_long_a_sequence():
    model = Transformer(ModelConfig.from_width(32, 1, 64, max_seq_len=8))
    with pytest.raises(FlopwiseError, match="9 tokens do not fit its context of 8"):
        model(torch.zeros(1, 9, dtype=torch.int64))


def test_initial_weights():
    cfg = ModelConfig.from_width(96, 2, 512)
    model = Transformer(cfg).initialise(0)
    assert model(torch.arange(10)[None]).abs().max() == 0  # a zero head: the first loss is log V
    block = model.blocks[0]
    assert block.attn.qkv.weight.std().item() == pytest.approx(0.7 / math.sqrt(96), rel=0.03)
    assert block.mlp.down.weight.std().item() == pytest.approx(0.7 / math.sqrt(cfg.d_ff) / 2, rel=0.03)
    assert model.embed.weight.std().item() == pytest.approx(1, rel=0.02)
    again, other = Transformer(cfg).initialise(0), Transformer(cfg).initialise(1)
    assert torch.equal(again.embed.weight, model.embed.weight)
    assert not torch.equal(other.embed.weight, model.embed.weight)


def test_the_dial():
    sizes = []
    for width in range(16, 520, 8):
        cfg = ModelConfig.from_width(width, 2, 512)
        assert cfg.n_heads * cfg.head_dim == width
        assert 8 * width / 3 <= cfg.d_ff < 8 * width / 3 + 16 and cfg.d_ff % 16 == 0
        if width <= 128:
            sizes.append(count_params(cfg).non_embedding)
    assert sizes == sorted(sizes)
    assert ModelConfig.from_width(64, 2, 512) == ModelConfig(512, 64, 2, 4, 2, 176)
    with pytest.raises(FlopwiseError, match="width 36 is not a multiple of 8; the next is 40"):
        ModelConfig.from_width(36, 2, 512)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"d_model": 0}, "d_model is 0"),
        ({"n_layers": 1.5}, "n_layers is 1.5"),
        ({"n_heads": 5}, "not a multiple of n_heads 5"),
        ({"n_kv_heads": 3}, "not a multiple of n_kv_heads 3"),
        ({"d_model": 36}, "is odd"),
        ({"vocab_size": True}, "vocab_size is True"),
    ],
)
def test_impossible_shapes(changes, match):
    with pytest.raises(FlopwiseError, match=match):
        ModelConfig.from_width(32, 2, 64).with_(**changes)


EXPERTS = {"n_experts": 8, "experts_per_token": 2, "d_expert": 16}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"sliding_window": 0}, "sliding_window is 0"),
        ({"sliding_window": 2.5}, "sliding_window is 2.5"),
        ({"sliding_window": True}, "sliding_window is True"),
        ({"n_experts": -1}, "n_experts is -1"),
        ({"n_experts": 8}, "0 experts per token of 8; must be between 1 and 8"),
        (EXPERTS | {"experts_per_token": 9}, "9 experts per token of 8"),
        (EXPERTS | {"d_expert": 0}, "d_expert is 0"),
        (EXPERTS | {"d_expert": 1.5}, "d_expert is 1.5"),
        (EXPERTS | {"d_shared": 24, "scoring": "sigmoid"}, "not a multiple of d_expert 16"),
        (EXPERTS | {"d_shared": 16}, "need scoring: sigmoid"),
        (EXPERTS | {"balance": "bias"}, "need scoring: sigmoid"),
        (EXPERTS | {"balance": "even"}, "must be one of aux, bias, none"),
        (EXPERTS | {"scoring": "tanh"}, "must be one of softmax, sigmoid"),
        (EXPERTS | {"aux_loss": -0.1}, "aux_loss is -0.1"),
        (EXPERTS | {"router_z_loss": math.nan}, "router_z_loss is nan"),
        (EXPERTS | {"bias_rate": "fast"}, "bias_rate is 'fast'"),
        (EXPERTS | {"n_dense_layers": 2}, "leaves no layer of 2"),
        (EXPERTS | {"scoring": "sigmoid", "sliding_window": 4}, "needs qk_norm"),
        ({"experts_per_token": 2}, "need n_experts above 0"),
        ({"d_shared": 16}, "need n_experts above 0"),
    ],
)
def test_impossible_experts_and_windows(changes, match):
    with pytest.raises(FlopwiseError, match=match) as e:
        ModelConfig.from_width(32, 2, 64).with_(**changes)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"expansion": 0}, "expansion is 0"),
        ({"expansion": 2.0}, "expansion is 2.0"),
        ({"expansion": 4, "granularity": 0}, "granularity is 0"),
        ({"expansion": 4, "granularity": 5}, "cannot be cut into granularity 5"),
        ({"expansion": 4, "shared_experts": 1}, "shared_experts 1 must be below granularity 1"),
        ({"expansion": 4, "granularity": 4, "shared_experts": -1}, "shared_experts is -1"),
    ],
)
def test_impossible_dials(options, match):
    with pytest.raises(FlopwiseError, match=match):
        ModelConfig.from_width(32, 2, 64, **options)


def test_the_dial_of_experts():
    cfg = ModelConfig.from_width(64, 2, 512, expansion=4, granularity=8, shared_experts=2, balance="bias")
    assert (cfg.n_experts, cfg.experts_per_token, cfg.d_expert, cfg.d_shared) == (30, 6, 22, 44)
    assert cfg.experts_per_token * cfg.d_expert + cfg.d_shared == cfg.d_ff
    assert (cfg.scoring, cfg.norm_topk) == ("sigmoid", True)
    one = ModelConfig.from_width(64, 2, 512, expansion=8)
    assert (one.n_experts, one.experts_per_token, one.scoring, one.norm_topk) == (8, 1, "softmax", False)
    assert ModelConfig.from_width(64, 2, 512, granularity=4) == ModelConfig.from_width(64, 2, 512)


@pytest.mark.parametrize("window", [1, 5, kernels.SPAN, 50, 200])
@pytest.mark.parametrize("T", [1, 40, 3 * kernels.SPAN - 7])
def test_a_window_and_its_gradient(T, window):
    H, K = 4, 2
    cos, sin = (t.double() for t in rope_tables(ModelConfig(8, 8 * H, 1, H, K, 16), T))
    positions = kernels.Positions.of(cos, sin, H, K, window)
    ours, plain = (randn(2, T, (H + 2 * K) * 8).requires_grad_() for _ in range(2))
    a, b = kernels.attention(ours, positions, H, K), plain_attention(plain, cos, sin, H, K, window)
    assert torch.allclose(a, b, atol=1e-12)
    weight = randn(*a.shape, seed=1)
    (a * weight).sum().backward()
    (b * weight).sum().backward()
    assert torch.allclose(ours.grad, plain.grad, atol=1e-12)


def test_normed_heads_and_their_gradient():
    H, K, D = 4, 2, 6
    x = randn(5, (H + 2 * K) * D).requires_grad_()
    q, k = randn(D, seed=1).requires_grad_(), randn(D, seed=2).requires_grad_()

    def plain(x, q, k):
        heads = x.view(5, -1, D)
        normed = [F.rms_norm(heads[:, :H], (D,), q, 1e-5), F.rms_norm(heads[:, H : H + K], (D,), k, 1e-5)]
        return torch.cat([*normed, heads[:, H + K :]], 1).flatten(1)

    assert torch.allclose(kernels.qk_norm(x, q, k, H, K, 1e-5), plain(x, q, k))
    torch.autograd.gradcheck(lambda *args: kernels.qk_norm(*args, H, K, 1e-5), (x, q, k))


def test_what_lies_before_the_window_is_not_seen():
    model = Transformer(ModelConfig.from_width(32, 1, 64, sliding_window=10)).initialise(0)
    torch.nn.init.normal_(model.head.weight)
    x = torch.arange(60)[None] % 64
    y = x.clone()
    y[:, :20] = 0
    assert torch.allclose(model(x)[:, 29:], model(y)[:, 29:], atol=1e-5)
    assert not torch.allclose(model(x)[:, 28], model(y)[:, 28], atol=1e-5)


def test_config_round_trips():
    cfg = ModelConfig(100, 32, 2, 2, 1, 48, head_dim_override=24, tie_embeddings=True)
    assert ModelConfig(**cfg.to_dict()) == cfg
    assert families.from_hf(families.to_hf(cfg)) == cfg
