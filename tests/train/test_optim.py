"""Muon, AdamW and the rate rule that `docs/results/lr_rule.md` states."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from flopwise.models.config import ModelConfig  # noqa: E402
from flopwise.models.transformer import Transformer  # noqa: E402
from flopwise.train import optim  # noqa: E402
from flopwise.train.optim import REFERENCE_WIDTH, Optimiser, Rates, orthogonalise  # noqa: E402

NEAR_ONE = (0.65, 1.25)
"""Where Muon's five steps bring singular values that are not tiny."""


def randn(*shape: int):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(32, 32), (16, 48), (48, 16), (5, 32, 96), (2, 3, 24, 8)])
def test_orthogonalise_brings_singular_values_near_one(shape):
    G = randn(*shape) * 7.0
    out = orthogonalise(G)
    assert out.shape == G.shape
    values = torch.linalg.svdvals(out.double())
    # A square Gaussian matrix has singular values near 0, which five steps do not lift all the way.
    known = torch.linalg.svdvals(G.double())
    strong = values[known > 0.05 * known.amax(-1, keepdim=True)]
    assert NEAR_ONE[0] < strong.min() and values.max() < NEAR_ONE[1]


@pytest.mark.parametrize("spread", [0, -6])
def test_the_iteration_on_the_small_matrix_ends_where_the_plain_one_does(spread, monkeypatch):
    G = randn(3, 16, 48) * torch.logspace(0, spread, 16)[:, None]
    small = orthogonalise(G)
    monkeypatch.setattr(optim, "LONG", float("inf"))
    assert torch.allclose(small, orthogonalise(G), atol=1e-5)
    monkeypatch.setattr(optim, "LONG", 1.0)
    assert torch.allclose(orthogonalise(G[..., :20]), orthogonalise(G[..., :20].double()).float(), atol=1e-4)


def test_orthogonalise_keeps_the_singular_vectors():
    G = randn(12, 30).double()
    u, _, vt = torch.linalg.svd(G, full_matrices=False)
    turned = u.T @ orthogonalise(G) @ vt.T
    assert torch.allclose(turned, torch.diag(turned.diagonal()), atol=1e-9)
    assert (turned.diagonal() > 0).all()


def test_orthogonalise_does_not_see_the_scale_and_survives_zero():
    G = randn(8, 20)
    assert torch.allclose(orthogonalise(G), orthogonalise(1000 * G), atol=1e-5)
    assert torch.equal(orthogonalise(torch.zeros(3, 8, 20)), torch.zeros(3, 8, 20))


def parts(model: Transformer) -> dict[str, torch.Tensor]:
    """Every map that Muon treats as one matrix, [fan_out, fan_in]."""
    cfg, out = model.cfg, {}
    kv = cfg.n_kv_heads * cfg.head_dim
    for i, block in enumerate(model.blocks):
        named = zip("qkv", block.attn.qkv.weight.split([cfg.d_model, kv, kv]), strict=True)
        out |= {f"{i}.{name}": w for name, w in named}
        out |= {
            f"{i}.gate": block.mlp.gate_up.weight[: cfg.d_ff],
            f"{i}.up": block.mlp.gate_up.weight[cfg.d_ff :],
        }
        out |= {f"{i}.out": block.attn.out.weight, f"{i}.down": block.mlp.down.weight}
    return out


def one_update(width: int, rates: Rates, factor: float = 1.0):
    """Changes of a model's weights by its first update from random gradients."""
    model = Transformer(ModelConfig.from_width(width, 2, 64)).initialise(0)
    optimiser = Optimiser(model, rates)
    rng = torch.Generator().manual_seed(1)
    for p in model.parameters():
        fresh = torch.randn(p.shape, generator=rng)
        p.grad = fresh if p.grad is None else p.grad.copy_(fresh)
    before, others = {k: w.clone() for k, w in parts(model).items()}, [model.embed.weight, model.head.weight]
    old = [p.detach().clone() for p in others]
    optimiser.step(factor)
    moved = {name: (w - before[name]).detach() for name, w in parts(model).items()}
    return moved, *[(p - q).detach() for p, q in zip(others, old, strict=True)]


@pytest.mark.parametrize("width", [32, 64, 128])
def test_hidden_matrices_move_by_the_spectral_rule(width):
    """Singular values of every update: rate * sqrt(max(1, fan_out / fan_in)), at every width."""
    moved, _, _ = one_update(width, Rates(muon=0.02), factor=0.5)
    assert len(moved) == 14
    for name, delta in moved.items():
        fan_out, fan_in = delta.shape
        values = torch.linalg.svdvals(delta.double()) / (0.5 * 0.02 * max(1, fan_out / fan_in) ** 0.5)
        assert NEAR_ONE[0] < values.median() < NEAR_ONE[1], name
        assert values.max() < NEAR_ONE[1], name


@pytest.mark.parametrize("width", [32, 64, 128])
def test_embedding_moves_alike_at_every_width_and_the_head_by_its_inverse(width):
    _, embed, head = one_update(width, Rates(embed=0.01, head=0.004))
    # Adam's first step moves each number by its rate.
    assert embed.abs().median().item() == pytest.approx(0.01, rel=1e-3)
    assert head.abs().median().item() == pytest.approx(0.004 * REFERENCE_WIDTH / width, rel=1e-3)


def test_scaled_rates_scale_every_group():
    rates = {"muon": 0.1, "adam": 0.2, "embed": 0.3, "head": 0.4, "norm": 0.5, "lora": 0.6}
    smaller = {name: rate * 0.1 for name, rate in rates.items()}
    assert Rates(**rates, weight_decay=0.5).scaled(0.1) == Rates(**smaller, weight_decay=0.5)


def test_weight_decay_shrinks_hidden_matrices_only_by_its_rate():
    plain, decayed = one_update(32, Rates(muon=0.02)), one_update(32, Rates(muon=0.02, weight_decay=0.5))
    start = parts(Transformer(ModelConfig.from_width(32, 2, 64)).initialise(0))
    for name, weight in start.items():
        assert torch.allclose(decayed[0][name] - plain[0][name], -0.02 * 0.5 * weight, atol=1e-6), name


def test_momentum_remembers():
    """After a gradient and then none, Nesterov's average still moves along the first."""
    model = Transformer(ModelConfig.from_width(32, 1, 64)).initialise(0)
    optimiser = Optimiser(model, Rates())
    grad = randn(32, 32)
    out = model.blocks[0].attn.out.weight
    out.grad.copy_(grad)
    optimiser.step(1.0)
    optimiser.zero_grad()
    before = out.detach().clone()
    optimiser.step(1.0)
    assert torch.allclose(out - before, -0.02 * orthogonalise(grad), atol=1e-5)


def test_gradients_are_cleared_in_place_and_clipped_jointly():
    model = Transformer(ModelConfig.from_width(32, 1, 64)).initialise(0)
    optimiser = Optimiser(model, Rates())
    for p in model.parameters():
        p.grad = torch.ones_like(p) if p.grad is None else p.grad.fill_(1.0)
    n = sum(p.numel() for p in model.parameters())
    assert optimiser.clip(1.0).item() == pytest.approx(n**0.5, rel=1e-5)
    norm = sum(p.grad.square().sum().item() for p in model.parameters()) ** 0.5
    assert norm == pytest.approx(1.0, rel=1e-4)
    place = model.blocks[0].mlp.down.weight.grad.data_ptr()
    optimiser.zero_grad()
    assert model.blocks[0].mlp.down.weight.grad.data_ptr() == place
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("tied", [False, True])
def test_every_parameter_is_moved_by_exactly_one_of_the_two(tied):
    model = Transformer(ModelConfig.from_width(32, 2, 64).with_(tie_embeddings=tied)).initialise(0)
    optimiser = Optimiser(model, Rates())
    adam = [p for g in optimiser.adam.param_groups for p in g["params"]]
    both = [id(p) for p in adam] + [id(p) for p in optimiser.matrices]
    assert len(both) == len(set(both)) and set(both) == {id(p) for p in model.parameters()}
    assert sum(w.numel() for e in optimiser.stacks.values() for w, _, _ in e) == sum(
        p.numel() for p in optimiser.matrices
    )


def test_state_goes_on_bit_for_bit():
    def model_and_optimiser():
        model = Transformer(ModelConfig.from_width(32, 1, 64)).initialise(0)
        return model, Optimiser(model, Rates())

    def push(model, optimiser, seed: int) -> None:
        rng = torch.Generator().manual_seed(seed)
        for p in model.parameters():
            fresh = torch.randn(p.shape, generator=rng)
            p.grad = fresh if p.grad is None else p.grad.copy_(fresh)
        optimiser.step(1.0)

    a, oa = model_and_optimiser()
    push(a, oa, 1)
    b, ob = model_and_optimiser()
    b.load_state_dict(a.state_dict())
    ob.load_state({k: t.clone() for k, t in oa.state().items()})
    push(a, oa, 2)
    push(b, ob, 2)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_adamw_alone_moves_hidden_matrices_at_a_rate_that_falls_with_width():
    rates = Rates(optimiser="adamw")
    for width in (32, 64):
        model = Transformer(ModelConfig.from_width(width, 2, 300, 32)).initialise(0)
        torch.nn.init.normal_(model.head.weight)  # a head of zeros gives what is below it no gradient
        optimiser = Optimiser(model, rates)
        assert not optimiser.stacks and not optimiser.matrices
        weight = model.blocks[0].attn.qkv.weight
        before = weight.detach().clone()
        model(torch.arange(64).view(2, 32)).square().mean().backward()
        optimiser.step(1.0)
        # Adam's first step moves each number by its rate.
        moved = (weight.detach() - before).abs().median().item()
        assert moved == pytest.approx(rates.adam * REFERENCE_WIDTH / width, rel=1e-3)
