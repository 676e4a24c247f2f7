"""Models trained together end where each ends alone, with its own ledger, log, checkpoint and failure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from flopwise.errors import DamagedFile, FlopwiseError  # noqa: E402
from flopwise.models.config import ModelConfig  # noqa: E402
from flopwise.models.ensemble import Ensemble  # noqa: E402
from flopwise.models.transformer import Transformer  # noqa: E402
from flopwise.records.folder import RunFolder  # noqa: E402
from flopwise.records.store import RunStore  # noqa: E402
from flopwise.train import checkpoint  # noqa: E402
from flopwise.train.ensemble import EnsembleOptimiser, Member, train_group  # noqa: E402
from flopwise.train.group_size import best_size, seconds_per_update  # noqa: E402
from flopwise.train.loop import Counters, seeded, train  # noqa: E402
from flopwise.train.objectives import Batch, language_model  # noqa: E402
from flopwise.train.optim import Optimiser, Rates  # noqa: E402
from flopwise.train.schedule import WSD  # noqa: E402

VOCAB, B, T = 40, 3, 24
CFG = ModelConfig.from_width(16, 2, VOCAB, 32)
RATES = Rates(weight_decay=0.1)

# Seed, factor of the rates, first and last step: members differ in all of them.
SPECS = [(0, 1.0, 0, 20), (1, 1.0, 0, 20), (2, 2.0, 0, 24), (3, 0.5, 4, 17)]


class Killed(Exception):
    """Stands for kill -9."""


def batches(seed: int) -> Callable[[int], Batch]:
    def next_batch(step: int) -> Batch:
        rows = torch.randint(VOCAB, (B, T + 1), generator=seeded(seed, step)) // (1 + step % 3)
        return Batch(rows[:, :-1], rows[:, 1:], info={"seen": float(step)})

    return next_batch


def member(
    root: Path, spec: tuple[int, float, int, int], cfg: ModelConfig = CFG, rates: Rates = RATES
) -> Member:
    seed, factor, first, last = spec
    folder = RunStore(root).prepare("pretrain", "test", {"spec": list(spec)})
    model = Transformer(cfg).initialise(seed)
    optimiser = Optimiser(model, rates.scaled(factor))
    return Member(model, optimiser, batches(seed), WSD(5, last - 8, last), folder, first, last)


def alone(m: Member, z_loss: float = 0.0) -> Counters:
    return train(
        m.model, m.optimiser, m.next_batch, language_model(z_loss), m.schedule, m.log,
        first_step=m.first_step, last_step=m.last_step, log_every=1, evaluate=m.evaluate,
        evaluate_at=m.evaluate_at,
    )  # fmt: skip


def folder_of(m: Member) -> RunFolder:
    assert isinstance(m.log, RunFolder)
    return m.log


def ledger(counters: Counters) -> dict[str, float]:
    names = ("step", "train_flops", "generate_flops", "score_flops", "tokens")
    return {name: getattr(counters, name) for name in names}


def close(a: Member, b: Member) -> None:
    """The same run up to rounding: losses, weights, optimiser state."""
    one, two = folder_of(a).curve(), folder_of(b).curve()
    assert [row["step"] for row in one] == [row["step"] for row in two]
    for x, y in zip(one, two, strict=True):
        assert x.keys() == y.keys()
        assert all(y[k] == pytest.approx(x[k], rel=1e-4, abs=1e-4) for k in x), (x, y)
    for (name, p), q in zip(a.model.named_parameters(), b.model.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-3), name
    s, t = a.optimiser.state(), b.optimiser.state()
    assert s.keys() == t.keys() and all(torch.allclose(s[k], t[k], atol=1e-3) for k in s)


CASES = {
    "muon": (CFG, "muon"),
    "adamw, tied": (replace(CFG, tie_embeddings=True), "adamw"),
    "normalised heads, window, z-loss": (replace(CFG, qk_norm=True, sliding_window=8), "muon"),
}


@pytest.mark.parametrize(("cfg", "optimiser"), CASES.values(), ids=CASES)
def test_each_ends_where_it_ends_alone(tmp_path: Path, cfg: ModelConfig, optimiser: str) -> None:
    rates = replace(RATES, optimiser=optimiser)
    singles = [member(tmp_path / "alone", spec, cfg, rates) for spec in SPECS]
    group = [member(tmp_path / "group", spec, cfg, rates) for spec in SPECS]
    z_loss = 1e-3 if cfg.qk_norm else 0.0
    counters = [alone(m, z_loss) for m in singles]
    seen: list[tuple[int, float]] = []
    ends = list(train_group(group, log_every=1, z_loss=z_loss, progress=lambda i, f: seen.append((i, f))))
    assert [e.index for e in ends] == [3, 0, 1, 2]  # in the order in which they end
    assert {e.together for e in ends} == {4} and not any(e.error for e in ends)
    assert {i for i, f in seen if f == 1.0} == {0, 1, 2, 3}
    for end in ends:
        close(singles[end.index], group[end.index])
        assert ledger(end.counters) == ledger(counters[end.index])
        assert end.counters.wall_s > 0 and end.counters.device_s > 0


def test_members_start_as_single_models_and_come_out_as_such() -> None:
    models = [Transformer(CFG).initialise(seed) for seed in (4, 5)]
    ensemble = Ensemble(models)
    for e, seed in enumerate((4, 5)):
        fresh = Transformer(CFG).initialise(seed)
        for name, weight in fresh.named_parameters():
            assert torch.equal(ensemble.weights[name][e], weight)
    with torch.no_grad():
        ensemble.weights["embed.weight"][1] += 1.0
    before = models[1].embed.weight.clone()
    out = ensemble.give_back(1)
    assert out is models[1] and torch.equal(out.embed.weight, before + 1.0)
    again = Ensemble([out, models[0]])
    assert torch.equal(again.weights["embed.weight"][0], ensemble.weights["embed.weight"][1])


def test_a_killed_group_goes_on_each_from_its_own_checkpoint(tmp_path: Path) -> None:
    singles = [member(tmp_path / "alone", spec) for spec in SPECS]
    counters = [alone(m) for m in singles]
    first = [member(tmp_path / "group", spec) for spec in SPECS]
    stop_at = first[0].next_batch

    def killed(step: int) -> Batch:
        if step == 12:
            raise Killed
        return stop_at(step)

    first[0].next_batch = killed
    with pytest.raises(Killed):
        list(train_group(first, log_every=1, checkpoint_every_s=-1.0))
    # One is brought further by itself, another one lost its checkpoint.
    state = [folder_of(m).path / checkpoint.STATE_FILE for m in first]
    state[1].unlink()
    again = [member(tmp_path / "group", spec) for spec in SPECS]
    assert alone(again[2]).step == SPECS[2][3]
    checkpoint.save(state[2], again[2].model, again[2].optimiser, vars(counters[2]))
    ends = {e.index: e for e in train_group(again, log_every=1)}
    assert ends[2].together == 1 and {ends[i].together for i in (0, 1, 3)} == {3}
    for i in (0, 1, 3):
        close(singles[i], again[i])
        assert ledger(ends[i].counters) == ledger(counters[i])
        steps = [row["step"] for row in folder_of(again[i]).curve()]
        assert steps == sorted(set(steps))


def test_a_member_fails_alone(tmp_path: Path) -> None:
    singles = [member(tmp_path / "alone", spec) for spec in SPECS[2:]]
    for m in singles:
        alone(m)
    group = [member(tmp_path / "group", spec) for spec in SPECS]
    torch.nn.init.constant_(group[0].model.head.weight, float("nan"))
    make = group[1].next_batch

    def unreadable(step: int) -> Batch:
        if step == 9:
            raise FlopwiseError("shard is damaged")
        return make(step)

    group[1].next_batch = unreadable
    ends = {e.index: e for e in train_group(group, log_every=1)}
    assert str(ends[0].error) == "loss is nan at step 0; lower the learning rate or check the data"
    assert str(ends[1].error) == "shard is damaged" and ends[1].counters.step == 9
    for i, single in enumerate(singles, 2):
        assert ends[i].error is None and ends[i].together == 4
        close(single, group[i])


def test_a_damaged_checkpoint_is_its_members_alone(tmp_path: Path) -> None:
    group = [member(tmp_path, spec) for spec in SPECS[:2]]
    path = folder_of(group[0]).path / checkpoint.STATE_FILE
    path.write_bytes(b"garbage")
    ends = list(train_group(group))
    assert [e.index for e in ends] == [0, 1] and ends[1].error is None
    assert isinstance(ends[0].error, DamagedFile) and ends[0].error.path == path


def test_seconds_are_shared_and_an_evaluation_is_its_members_own(tmp_path: Path) -> None:
    group = [member(tmp_path, (seed, 1.0, 0, 6)) for seed in (0, 1)]
    model = group[1].model

    def evaluate(step: int) -> dict[str, float]:
        """Takes long; the model it sees is the member's at this step."""
        sum(i * i for i in range(3_000_000))
        return {"norm": float(model.embed.weight.detach().norm())}

    group[1].evaluate, group[1].evaluate_at = evaluate, {3, 6}
    counters = {e.index: e.counters for e in train_group(group, log_every=1)}
    rows = folder_of(group[1]).curve("norm")
    assert [row["step"] for row in rows] == [3, 6] and rows[0]["norm"] != rows[1]["norm"]
    assert rows[1]["norm"] == float(model.embed.weight.detach().norm())
    assert counters[1].device_s > counters[0].device_s > 0


def with_experts() -> ModelConfig:
    return ModelConfig.from_width(16, 2, VOCAB, 32, expansion=4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: replace(m, model=Transformer(replace(CFG, d_ff=32))), "differ in shape"),
        (lambda m: replace(m, optimiser=Optimiser(m.model, Rates(momentum=0.5))), "differ in optimiser"),
        (lambda m: replace(m, next_batch=lambda step: None), "batches must be plain"),
        (lambda m: replace(m, next_batch=lambda step: short(m.next_batch(step))), "differ in shape"),
    ],
)  # fmt: skip
def test_what_cannot_be_brought_together_is_refused(tmp_path: Path, change, message: str) -> None:
    group = [member(tmp_path, spec) for spec in SPECS[:2]]
    group[1] = change(group[1])
    with pytest.raises(FlopwiseError, match=message) as e:
        list(train_group(group))
    assert "\n" not in str(e.value)


def short(batch: Batch | None) -> Batch:
    assert batch is not None and batch.targets is not None
    return Batch(batch.ids[:, 1:], batch.targets[:, 1:])


def test_experts_are_not_stacked() -> None:
    with pytest.raises(FlopwiseError, match="mixtures of experts are not stacked"):
        Ensemble([Transformer(with_experts())])
    assert best_size(with_experts(), B, T, 4) == 1


def test_the_size_of_groups_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOPWISE_CACHE", str(tmp_path))
    probes: list[int] = []

    def probe(*_: object) -> dict[str, float]:
        probes.append(1)
        return {"1": 1.0, "2": 0.8, "4": 0.7, "8": 0.9}

    monkeypatch.setattr("flopwise.train.group_size._probe", probe)
    assert [best_size(CFG, B, T, n) for n in (1, 2, 3, 4, 8)] == [1, 2, 3, 4, 4]
    assert len(probes) == 1
    best_size(CFG, B + 1, T, 2)
    assert len(probes) == 2


def test_the_probe_times_what_it_says() -> None:
    times = seconds_per_update(CFG, B, T, [1, 2], lambda spent, turns: turns < 2)
    assert {size: len(values) for size, values in times.items()} == {1: 2, 2: 2}
    assert all(v > 0 for values in times.values() for v in values)


def test_one_clip_per_member() -> None:
    models = [Transformer(CFG).initialise(seed) for seed in range(3)]
    optimisers = [Optimiser(model, RATES) for model in models]
    ensemble = Ensemble(models)
    joint = EnsembleOptimiser(ensemble, optimisers)
    data = [batches(e)(0) for e in range(3)]
    targets = [b.targets for b in data if b.targets is not None]
    losses = ensemble.backward(torch.stack([b.ids for b in data]), torch.stack(targets))
    for w in ensemble.weights.values():
        assert w.grad is not None
        w.grad[2] *= 1e-6
    norms = joint.clip(0.01)
    for e, (model, optimiser) in enumerate(zip(models, optimisers, strict=True)):
        loss, _ = language_model()(model, data[e])
        loss.backward()
        if e == 2:
            for p in model.parameters():
                assert p.grad is not None
                p.grad *= 1e-6
        assert loss.item() == pytest.approx(losses[e].item(), abs=1e-6)
        assert float(optimiser.clip(0.01)) == pytest.approx(norms[e], rel=1e-5)
        for name, p in model.named_parameters():
            grad = ensemble.weights[name].grad
            assert p.grad is not None and grad is not None
            assert torch.allclose(grad[e], p.grad, atol=1e-7), name
