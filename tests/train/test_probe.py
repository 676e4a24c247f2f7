"""The probe of a step's time and the decision about compiling; the memory estimate."""

from __future__ import annotations

import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

from team_steps import batch_at, config, prepare  # noqa: E402

from flopwise.errors import FlopwiseError  # noqa: E402
from flopwise.models.config import ModelConfig  # noqa: E402
from flopwise.train import memory, probe  # noqa: E402
from flopwise.train.parallel import Team  # noqa: E402
from flopwise.train.settings import Settings  # noqa: E402


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("FLOPWISE_CACHE", str(tmp_path))


def test_a_step_is_timed_once_and_shared_out(monkeypatch) -> None:
    made = []
    real = probe._Trial

    class Counted(real):
        def __init__(self, *args):
            made.append(args)
            super().__init__(*args)

    monkeypatch.setattr(probe, "_Trial", Counted)
    monkeypatch.setattr(probe, "SECONDS", 0.05)
    threads = torch.get_num_threads()
    one = probe.probe(config(), 4, 32)
    assert 0 < one == probe.probe(config(), 4, 32) and len(made) == 1
    assert torch.get_num_threads() == threads
    # Two processes take two rows each.
    halves = Settings(precision="fp32", device="cpu", compile="off", processes=2)
    assert probe.probe(config(), 4, 32, halves) > 0 and made[-1][1] == 2
    # A batch too long for a probe is tried in part and scaled.
    monkeypatch.setattr(probe, "SLOW", 1e6)
    assert probe.probe(config(), 64, 32) > 0 and made[-1][1] == 1


def trial(monkeypatch, compiled: float) -> Team:
    monkeypatch.setattr(probe, "probe", lambda *args: 0.1)
    monkeypatch.setattr(probe, "measure_compiling", lambda *args: probe.Compiling(0.1, compiled, 50.0))
    return Team(Settings(precision="fp32", device="cpu", compile="auto"))


def test_compiling_must_pay_within_the_run(monkeypatch) -> None:
    team = trial(monkeypatch, 0.05)
    model, _ = prepare(team, {}, {})
    few = probe.decide_compiling(team, model, batch_at(0), 500)
    assert few == (False, "off: 500 steps of 0.1 s are too few to pay for compiling")
    yes, why = probe.decide_compiling(team, model, batch_at(0), 5000)
    assert yes and why == "on: 0.1 s a step without it, 0.05 s with it, 50 s once"
    assert not probe.decide_compiling(team, model, batch_at(0), 950)[0]  # 47.5 s of 50


def test_a_compiler_that_is_slower_is_not_used(monkeypatch) -> None:
    team = trial(monkeypatch, 0.3)
    model, _ = prepare(team, {}, {})
    yes, why = probe.decide_compiling(team, model, batch_at(0), 10**6)
    assert not yes and why.startswith("off: 0.1 s a step without it, 0.3 s with it")


def test_what_is_never_compiled() -> None:
    for settings, model in (
        (Settings(device="cpu", precision="fp32", compile="off"), {}),
        (Settings(device="cpu", precision="fp32", compile="on"), {"expansion": 2}),
    ):
        team = Team(settings)
        made, _ = prepare(team, model, {})
        yes, why = probe.decide_compiling(team, made, batch_at(0), 10**9)
        assert not yes and why.startswith("off")


def test_blocks_are_replaced_and_put_back() -> None:
    team = Team(Settings(precision="fp32", device="cpu", compile="off"))
    model, _ = prepare(team, {}, {})
    called = []

    def forward(block, x, at):
        called.append(block)
        return type(block).forward(block, x, at)

    with torch.no_grad():
        plain = model(batch_at(0).ids)
        with probe.compiled_blocks(model, forward):
            assert torch.equal(model(batch_at(0).ids), plain)
        assert called == list(model.blocks)
        assert torch.equal(model(batch_at(0).ids), plain) and len(called) == 2


@pytest.mark.slow
def test_a_compiled_block_gives_the_same_gradients() -> None:
    from flopwise.train.objectives import cross_entropy

    team = Team(Settings(precision="fp32", device="cpu", compile="off"))
    model, _ = prepare(team, {}, {})
    found = []
    for compiled in (None, probe.compile_block()):
        model.zero_grad()
        with probe.compiled_blocks(model, compiled):
            loss, _ = cross_entropy(model, batch_at(0))
        loss.backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(*found, atol=1e-6, rtol=1e-4)


def test_memory_is_what_the_formula_says() -> None:
    cfg = ModelConfig.from_width(64, 2, 512, 128)
    plain = memory.estimate_memory(cfg, 16, 128)
    assert plain.weights == plain.gradients == 4 * 158016
    # 91,136... of them hidden matrices with one float each, the rest with two
    matrices = 158016 - 2 * 512 * 64 - 5 * 64
    assert plain.optimiser == 4 * (2 * (158016 - matrices) + matrices)
    assert memory.estimate_memory(cfg, 16, 128, optimiser="adamw").optimiser == 8 * 158016
    assert memory.estimate_memory(cfg, 32, 128).activations == 2 * plain.activations
    assert plain.total == plain.per_process


def test_splitting_saves_memory_per_process() -> None:
    cfg = ModelConfig.from_width(256, 8, 512, 128, expansion=8)
    one = memory.estimate_memory(cfg, 16, 128)
    for parallel, least in (("fsdp", 0.4), ("ep", 0.2)):
        four = memory.estimate_memory(cfg, 16, 128, Settings(processes=4, parallel=parallel))
        assert four.processes == 4 and four.weights < (1 - least) * one.weights
    copies = memory.estimate_memory(cfg, 16, 128, Settings(processes=4, parallel="ddp"))
    assert copies.weights == one.weights and copies.gradients == 2 * one.gradients


def test_what_does_not_fit_is_said_in_one_line(monkeypatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 10_000_000_000)
    cfg = ModelConfig.from_width(64, 2, 512, 128)
    assert memory.check_memory(cfg, 16, 128).total < 1e9
    with pytest.raises(FlopwiseError) as e:
        memory.check_memory(cfg, 16384, 128)
    said = str(e.value)
    assert said.startswith("memory: width 64 at 16384 x 128 tokens needs about ") and "\n" not in said
    assert said.endswith("10 GB are free; lower batch_size or seq_len")
    with pytest.raises(FlopwiseError, match=r"lower the width$"):
        memory.check_memory(ModelConfig.from_width(16384, 8, 512, 128), 1, 128)


def test_free_memory_is_found() -> None:
    free = memory.available_bytes()
    assert free is None or 10e6 < free < 1e15


PEAK = """
import sys, torch
torch.set_num_threads(1)
from flopwise.models.config import ModelConfig
from flopwise.models.transformer import Transformer
from flopwise.train.objectives import Batch, cross_entropy
from flopwise.train.optim import Optimiser, Rates
cfg = ModelConfig.from_width(256, 2, 2048, 128)
model = Transformer(cfg).initialise(0)
optimiser = Optimiser(model, Rates())
for _ in range(2):
    rows = torch.randint(2048, (16, 129))
    cross_entropy(model, Batch(rows[:, :-1], rows[:, 1:]))[0].backward()
    optimiser.clip(1.0)
    optimiser.step(1.0)
    optimiser.zero_grad()
# Not ru_maxrss: that begins with what the process that started this one held.
status = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
print(int(status["VmHWM"].split()[0]) * 1024)
"""


@pytest.mark.slow
def test_the_estimate_is_near_what_is_measured() -> None:
    peak = float(
        subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True).stdout
    )
    estimate = memory.estimate_memory(ModelConfig.from_width(256, 2, 2048, 128), 16, 128)
    assert estimate.total == pytest.approx(peak, rel=0.25)
