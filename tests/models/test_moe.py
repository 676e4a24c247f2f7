"""Mixtures of experts: products and gradients against plain loops, balance, load."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402

from flopwise.models import native, native_build, native_moe, plain_moe  # noqa: E402
from flopwise.models.config import ModelConfig  # noqa: E402
from flopwise.models.moe import MoE, by_expert, expert_load, experts  # noqa: E402
from flopwise.models.transformer import Transformer  # noqa: E402
from flopwise.train import checkpoint  # noqa: E402
from flopwise.train.objectives import Batch, language_model  # noqa: E402
from flopwise.train.optim import Optimiser, Rates  # noqa: E402

compiled = pytest.mark.skipif(native_build.library() is None, reason="no C++ compiler here")
SIXTEEN = {"expansion": 4, "granularity": 4}
OPTIONS = {
    "softmax": SIXTEEN,
    "one expert per token": {"expansion": 8},
    "shared expert": SIXTEEN | {"shared_experts": 1},
    "bias": SIXTEEN | {"balance": "bias"},
}


def randn(*shape: int, seed: int = 0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def layer(**options) -> MoE:
    """With weights of a size that makes choices uneven."""
    moe = MoE(ModelConfig.from_width(32, 2, 64, **options))
    with torch.no_grad():
        for i, p in enumerate(moe.parameters()):
            p.copy_(randn(*p.shape, seed=i) * 0.3)
        if moe.cfg.scoring == "sigmoid":
            moe.bias.copy_(randn(len(moe.bias), seed=99) * 0.2)
    return moe


def by_the_book(moe: MoE, x: torch.Tensor) -> torch.Tensor:
    """One token after another, as the formulas say."""
    cfg, rows = moe.cfg, []
    for token in x:
        logits = moe.router.weight @ token
        scores = logits.softmax(0) if cfg.scoring == "softmax" else logits.sigmoid()
        chosen = (scores + moe.bias).sort(descending=True).indices[: cfg.experts_per_token]
        total = scores[chosen].sum() if cfg.norm_topk else 1.0
        out = moe.shared(token) if moe.shared else torch.zeros_like(token)
        for e in chosen:
            gate, up = (moe.gate_up[e] @ token).chunk(2)
            out = out + cfg.routed_scale * scores[e] / total * (moe.down[e] @ (F.silu(gate) * up))
        rows.append(out)
    return torch.stack(rows)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_values_and_gradients_are_those_of_the_formulas(options):
    moe = layer(**options).double()
    x, grad = randn(40, 32, seed=50), randn(40, 32, seed=51)
    ours, book = (x.clone().requires_grad_() for _ in range(2))
    wanted = [moe.router.weight, moe.gate_up, moe.down, *(moe.shared.parameters() if moe.shared else [])]
    a, b = moe(ours), by_the_book(moe, book)
    assert torch.allclose(a, b, atol=1e-12)
    got = torch.autograd.grad(a, [ours, *wanted], grad)
    want = torch.autograd.grad(b, [book, *wanted], grad)
    for p, q in zip(got, want, strict=True):
        assert torch.allclose(p, q, atol=1e-11)
    assert want[1].abs().max() > 1e-3  # the router learns, with one expert per token too


@compiled
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_compiled_code_learns_the_same(options, monkeypatch):
    cfg = ModelConfig.from_width(32, 2, 64, **options).with_(router_z_loss=0.1)
    model = Transformer(cfg).initialise(0)
    torch.nn.init.normal_(model.head.weight, std=0.1, generator=torch.Generator().manual_seed(3))
    ids = torch.randint(64, (4, 51), generator=torch.Generator().manual_seed(2))

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        language_model()(model, Batch(ids[:, :-1], ids[:, 1:]))[0].backward()
        return [p.grad.clone() for p in model.parameters()]

    ours = gradients()
    monkeypatch.setattr(native, "library", lambda: None)
    for a, b in zip(ours, gradients(), strict=True):
        assert torch.allclose(a, b, atol=1e-5, rtol=1e-4)


@compiled
@pytest.mark.parametrize("softmax", [True, False])
@pytest.mark.parametrize(("k", "norm", "scale"), [(1, False, 1.0), (3, True, 1.0), (9, True, 2.5)])
def test_compiled_routing(softmax, k, norm, scale):
    logits, bias = 3 * randn(50, 9), randn(9, seed=1) * 0.3
    results = []
    for module, dtype in ((plain_moe, torch.float64), (native_moe, torch.float32)):
        x = logits.to(dtype).requires_grad_()
        weights, chosen, shares, log_z = module.route(x, bias.to(dtype), k, softmax, norm, scale, True)
        weights = weights.gather(1, chosen.argsort(1))
        loss = (weights * randn(50, k, seed=2)).sum() + shares @ randn(9, seed=3, dtype=dtype)
        loss = loss + log_z @ randn(50, seed=4, dtype=dtype)
        results.append([chosen.sort(1).values, weights, shares, log_z, *torch.autograd.grad(loss, x)])
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a.float(), b.float(), atol=1e-5)


def test_identical_experts_are_one_dense_layer():
    moe = layer(**SIXTEEN).double()
    with torch.no_grad():
        moe.gate_up.copy_(moe.gate_up[:1].expand_as(moe.gate_up))
        moe.down.copy_(moe.down[:1].expand_as(moe.down))
    x = randn(30, 32, seed=5)
    gate, up = (x @ moe.gate_up[0].T).chunk(2, 1)
    assert torch.allclose(moe(x), (F.silu(gate) * up) @ moe.down[0].T, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_token_is_dropped_however_uneven(dtype):
    moe = layer(expansion=4, balance="bias").to(dtype)
    moe.bias[2] = 100.0
    x = randn(64, 32, seed=6, dtype=dtype)
    out = moe(x)
    gate, up = (x @ moe.gate_up[2].T).chunk(2, 1)
    weight = (x @ moe.router.weight[2]).sigmoid()[:, None]
    assert torch.allclose(out, weight * ((F.silu(gate) * up) @ moe.down[2].T), atol=1e-4)
    out.sum().backward()
    idle = [e for e in range(4) if e != 2]
    assert not moe.gate_up.grad[idle].any() and not moe.down.grad[idle].any()
    assert moe.gate_up.grad[2].any()


def test_order_of_experts():
    chosen = torch.tensor([[2, 0], [1, 2], [0, 2]])
    order, counts = by_expert(chosen, 4)
    assert order.tolist() == [1, 4, 2, 0, 3, 5] and counts.tolist() == [2, 1, 3, 0]


def test_auxiliary_losses():
    cfg = ModelConfig.from_width(32, 2, 64, **SIXTEEN).with_(aux_loss=0.5, router_z_loss=0.25)
    model = Transformer(cfg).initialise(0)
    hidden = []
    for moe in model.experts():
        moe.router.weight.data.mul_(20)
        moe.router.register_forward_hook(lambda m, inputs, logits: hidden.append(logits.detach()))
    ids = torch.randint(64, (4, 30), generator=torch.Generator().manual_seed(0))
    total, logs = language_model()(model, Batch(ids, ids))
    expected = 0.0
    for logits in hidden:
        probs, E, k = logits.softmax(1), cfg.n_experts, cfg.experts_per_token
        shares = torch.zeros_like(probs).scatter_(1, probs.topk(k).indices, 1.0).mean(0) / k
        expected += 0.5 * E * (shares * probs.mean(0)).sum() + 0.25 * logits.logsumexp(1).square().mean()
    assert logs["auxiliary_loss"] == pytest.approx(float(expected), rel=1e-5)
    assert total.item() - logs["loss"] == pytest.approx(float(expected), rel=1e-4)
    model.eval()
    assert language_model()(model, Batch(ids, ids))[1] == {}


def test_even_scores_have_an_auxiliary_loss_of_one():
    moe = layer(**SIXTEEN).train()
    moe.router.weight.data.zero_()
    moe(randn(20, 32, dtype=torch.float32))
    assert moe.auxiliary.item() == pytest.approx(0.01, rel=1e-5)


def test_the_bias_moves_by_the_sign_of_the_load_and_is_no_parameter():
    moe = layer(expansion=4, balance="bias").train()
    with torch.no_grad():
        moe.bias.zero_()
    moe.load.copy_(torch.tensor([10.0, 2.0, 5.0, 3.0]))
    moe.rebalance()
    assert moe.bias.tolist() == pytest.approx([-0.001, 0.001, 0.0, 0.001])
    assert not moe.load.any() and "bias" not in dict(moe.named_parameters())
    out, weights = moe(randn(9, 32, dtype=torch.float32)), moe.route(randn(9, 32, dtype=torch.float32))[0]
    assert moe.auxiliary is None and moe.load.sum() == 18
    assert weights.requires_grad and out.requires_grad


def train(model: Transformer, optimiser: Optimiser, first: int, last: int) -> list[float]:
    model.train()
    losses = []
    for step in range(first, last):
        rng = torch.Generator().manual_seed(step)
        start = torch.randint(64, (8, 1), generator=rng)
        ids = (start + torch.randint(1, 4, (8, 1), generator=rng) * torch.arange(33)) % 64
        loss, logs = language_model()(model, Batch(ids[:, :-1], ids[:, 1:]))
        loss.backward()
        optimiser.step(1.0)
        optimiser.zero_grad()
        losses.append(logs.get("loss", loss.item()))
    return losses


@pytest.mark.parametrize("balance", ["aux", "bias", "none"])
def test_training_and_its_balance(balance):
    options = SIXTEEN | {"balance": balance}
    model = Transformer(ModelConfig.from_width(32, 2, 64, **options).with_(bias_rate=0.01)).initialise(0)
    losses = train(model, Optimiser(model, Rates()), 0, 80)
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    ids = torch.arange(64 * 33).view(-1, 33) % 64
    load = expert_load(model.eval(), ids)
    if balance != "none":
        assert max(load["max_over_mean"]) < 3 and max(load["dead"]) == 0
    assert all(moe.bias.any() == (balance == "bias") for moe in model.experts())


@pytest.mark.parametrize("balance", ["aux", "bias"])
def test_a_resumed_run_ends_with_the_same_bits(balance, tmp_path: Path):
    cfg = ModelConfig.from_width(32, 2, 64, **SIXTEEN, balance=balance).with_(bias_rate=0.02)
    whole = Transformer(cfg).initialise(0)
    train(whole, Optimiser(whole, Rates()), 0, 12)
    half = Transformer(cfg).initialise(0)
    optimiser = Optimiser(half, Rates())
    train(half, optimiser, 0, 6)
    checkpoint.save(tmp_path / "state.safetensors", half, optimiser, {"step": 6})
    other = Transformer(cfg).initialise(1)
    optimiser = Optimiser(other, Rates())
    assert checkpoint.load(tmp_path / "state.safetensors", other, optimiser) == {"step": 6}
    train(other, optimiser, 6, 12)
    for (name, a), (_, b) in zip(whole.state_dict().items(), other.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def test_load_of_the_experts():
    model = Transformer(ModelConfig.from_width(32, 3, 64, expansion=8).with_(n_dense_layers=1)).initialise(0)
    first = model.experts()[0]
    with torch.no_grad():
        first.router.weight.zero_()
        first.bias[:2] = 1.0
        first.bias[0] += 1e-6
    ids = torch.randint(64, (40, 30), generator=torch.Generator().manual_seed(0))
    load = expert_load(model, ids, batch=7)
    assert load["layers"][0] == [1.0] + [0.0] * 7
    assert load["entropy"][0] == 0 and load["max_over_mean"][0] == 8 and load["dead"][0] == 7 / 8
    shares = load["layers"][1]
    assert len(load["layers"]) == 2 and sum(shares) == pytest.approx(1)
    entropy = -sum(s * math.log(s) for s in shares if s) / math.log(8)
    assert load["entropy"][1] == pytest.approx(entropy)
    assert not any(moe.load.any() for moe in model.experts())


@pytest.mark.parametrize("device", ["cpu"])
def test_low_precision_follows(device):
    moe = layer(**SIXTEEN)
    x = randn(50, 32, seed=8, dtype=torch.float32)
    exact = moe(x)
    with torch.autocast(device, torch.bfloat16):
        rough = moe(x)
    # A router in bfloat16 may choose otherwise where two scores are close: most tokens agree.
    near = ((rough - exact).norm(dim=1) / exact.norm(dim=1)) < 0.05
    assert rough.dtype == torch.bfloat16 and near.float().mean() > 0.7
    rough.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.any() for p in moe.parameters())


def test_experts_given_nothing():
    moe = layer(**SIXTEEN)
    order, counts = by_expert(torch.zeros(0, 4, dtype=torch.int64), moe.cfg.n_experts)
    out = experts(torch.zeros(0, 32), moe.gate_up, moe.down, torch.zeros(0, 4), order, counts)
    assert out.shape == (0, 32)
