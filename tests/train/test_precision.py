"""Device and precision: chosen by what the machine does, float32 where it matters."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from team_steps import batch_at, config  # noqa: E402

from flopwise.errors import FlopwiseError  # noqa: E402
from flopwise.models import kernels, stock  # noqa: E402
from flopwise.models.kernels import Positions  # noqa: E402
from flopwise.models.transformer import Transformer, rope_tables  # noqa: E402
from flopwise.train import measured, precision  # noqa: E402
from flopwise.train.objectives import cross_entropy  # noqa: E402
from flopwise.train.parallel import Team  # noqa: E402
from flopwise.train.settings import Settings  # noqa: E402

CPU = torch.device("cpu")


@pytest.mark.parametrize(("ratio", "chosen"), [(0.01, "fp32"), (1.2, "fp32"), (8.0, "bf16")])
def test_the_faster_one_is_chosen_and_the_reason_is_kept(monkeypatch, ratio, chosen) -> None:
    monkeypatch.setattr(precision, "bf16_speedup", lambda: ratio)
    team = Team(Settings(precision="auto", device="cpu", compile="off"))
    told = team.disclosed()
    assert (team.precision, told["precision"]) == (chosen, chosen)
    assert (
        f"{ratio:.2g} times as fast" in told["precision_why"] or f"{ratio:.3g} times" in told["precision_why"]
    )


def test_what_is_asked_for_is_done() -> None:
    assert precision.choose_precision("bf16", CPU) == ("bf16", "asked for")
    assert precision.choose_precision("fp32", CPU) == ("fp32", "asked for")


def test_the_probe_runs_once_per_machine(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("FLOPWISE_CACHE", str(tmp_path))
    asked = []

    def peak(dtype, *args):
        asked.append(dtype)
        return {"bfloat16": 3.0, "float32": 2.0}[dtype]

    monkeypatch.setattr(precision, "matmul_peak", peak)
    assert precision.bf16_speedup() == precision.bf16_speedup() == 1.5
    assert asked == ["bfloat16", "float32"]


def test_a_damaged_or_unwritable_cache_only_costs_time(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("FLOPWISE_CACHE", str(tmp_path))
    (tmp_path / "measured.json").write_text("{")
    assert measured.remembered("here", {"a": 1}, lambda: 7) == 7
    assert measured.remembered("here", {"a": 1}, lambda: 8) == 7
    assert measured.remembered("elsewhere", {"a": 1}, lambda: 8) == 8
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FLOPWISE_CACHE", str(tmp_path / "file"))
    assert measured.remembered("here", {"a": 1}, lambda: 9) == 9


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is an accelerator")
def test_an_accelerator_that_is_not_there() -> None:
    assert precision.choose_device("auto") == CPU
    with pytest.raises(FlopwiseError, match=r"train\.device is cuda, but torch finds no such device"):
        precision.choose_device("cuda")


@pytest.mark.parametrize("model", [{}, {"qk_norm": True}, {"sliding_window": 7}, {"expansion": 2}], ids=str)
def test_bfloat16_is_near_and_its_loss_and_gradients_are_float32(model) -> None:
    made = Transformer(config(**model)).initialise(0)
    with torch.no_grad():
        made.head.weight.normal_(0, 0.3)
    found = []
    for kind in ("fp32", "bf16"):
        made.zero_grad()
        with precision.autocast(kind, CPU):
            loss, _ = cross_entropy(made, batch_at(0))
        loss.backward()
        assert loss.dtype == torch.float32
        assert all(p.dtype == p.grad.dtype == torch.float32 for p in made.parameters())
        found.append((loss.item(), torch.cat([p.grad.flatten() for p in made.parameters()])))
    (a, grad), (b, other) = found
    assert a != b and a == pytest.approx(b, rel=3e-3)
    assert float((grad - other).norm() / grad.norm()) < 0.05


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize(("heads", "kv"), [(4, 2), (4, 4), (4, 1)])
def test_stock_attention_is_the_kernels(heads, kv, window) -> None:
    cfg = config()
    D, T, generator = 8, 40, torch.Generator().manual_seed(0)
    cos, sin = rope_tables(cfg.with_(head_dim_override=D), T)
    at = Positions.of(cos, sin, heads, kv, window)
    start = torch.randn(2, T, (heads + 2 * kv) * D, generator=generator)
    weight = torch.randn(2, T, heads * D, generator=generator)
    results = []
    for attention in (kernels.attention, stock.attention):
        qkv = start.clone().requires_grad_()
        out = attention(qkv, at, heads, kv)
        (out * weight).sum().backward()
        results += [(out, qkv.grad)]
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


def test_stock_loss_norm_and_activation_are_the_kernels() -> None:
    generator = torch.Generator().manual_seed(1)
    hidden, weight = torch.randn(9, 16, generator=generator), torch.randn(40, 16, generator=generator)
    targets = torch.randint(40, (9,), generator=generator)
    for a, b in zip(
        kernels.token_logprobs(hidden, weight, targets),
        stock.token_logprobs(hidden, weight, targets),
        strict=True,
    ):
        torch.testing.assert_close(a, b)
    scale = torch.randn(16, generator=generator)
    torch.testing.assert_close(kernels.rms_norm(hidden, scale, 1e-5), stock.rms_norm(hidden, scale, 1e-5))
    torch.testing.assert_close(kernels.swiglu(hidden), stock.swiglu(hidden))
    assert not stock.wanted(hidden)
    with precision.autocast("bf16", CPU):
        assert stock.wanted(hidden)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator")
@pytest.mark.parametrize("kind", ["fp32", "bf16"])
def test_an_accelerator_learns_what_the_processor_does(kind, tmp_path) -> None:
    from team_steps import Memory, prepare

    from flopwise.train.loop import train

    losses = []
    for device, how in (("cpu", "fp32"), ("cuda", kind)):
        team = Team(Settings(precision=how, device=device, compile="off"))
        model, optimiser = prepare(team, {}, {})
        log = Memory(tmp_path / device)
        counters = train(
            model, optimiser, batch_at, cross_entropy, lambda step: 1.0, log, first_step=0, last_step=8,
            log_every=1, team=team,
        )  # fmt: skip
        losses.append([row["loss"] for row in log.rows])
    assert losses[0] == pytest.approx(losses[1], abs=1e-3 if kind == "fp32" else 0.05)
    assert counters.device == torch.cuda.get_device_name() and counters.peak_bytes > 0
