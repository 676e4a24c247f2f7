"""The loop: resumes to the same bits, keeps an exact ledger, stops at a loss that is no number."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402

from flopwise.errors import DamagedFile, FlopwiseError  # noqa: E402
from flopwise.flops import train_flops  # noqa: E402
from flopwise.models.config import ModelConfig  # noqa: E402
from flopwise.models.transformer import Transformer  # noqa: E402
from flopwise.records.folder import RunFolder  # noqa: E402
from flopwise.records.store import RunStore  # noqa: E402
from flopwise.train import checkpoint  # noqa: E402
from flopwise.train.loop import Counters, seeded, train  # noqa: E402
from flopwise.train.objectives import Batch, cross_entropy, outcome_reward  # noqa: E402
from flopwise.train.optim import Optimiser, Rates  # noqa: E402
from flopwise.train.schedule import WSD  # noqa: E402

CFG = ModelConfig.from_width(16, 2, 40, 64)
STEPS = 12


class Killed(Exception):
    """Stands for kill -9: nothing after it runs."""


def batch_at(step: int) -> Batch:
    rows = torch.randint(40, (4, 21), generator=seeded(7, step))
    weights = (torch.rand(4, 20, generator=seeded(8, step)) < 0.6).float() if step % 2 else None
    return Batch(rows[:, :-1], rows[:, 1:], weights, generate_flops=10.0, score_flops=1.0)


def run(
    folder: RunFolder, kill_at: int | None = None, every_s: float = -1.0, cfg: ModelConfig = CFG, **kwargs
):
    """Train from scratch or from what lies in the folder; saves after every step unless told otherwise."""
    model = Transformer(cfg).initialise(3)
    optimiser = Optimiser(model, Rates(weight_decay=0.1))

    def next_batch(step: int) -> Batch:
        if step == kill_at:
            raise Killed
        return batch_at(step)

    counters = train(
        model, optimiser, next_batch, cross_entropy, WSD(3, 8, STEPS), folder, first_step=0, last_step=STEPS,
        log_every=2, checkpoint_every_s=every_s, **kwargs,
    )  # fmt: skip
    return model, optimiser, counters


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunStore(tmp_path).prepare("sft", "test", {})


def ledger(counters: Counters) -> dict[str, float]:
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in counters.by]
    fixed = {k: v for k, v in vars(counters).items() if k not in ("wall_s", "device_s", "peak_bytes")}
    return fixed | {"by": rows}


@pytest.mark.parametrize("cfg", [CFG, CFG.with_(tie_embeddings=True)], ids=["untied", "tied"])
@pytest.mark.parametrize("every_s", [-1.0, 1e9], ids=["saved each step", "never saved"])
def test_a_killed_run_ends_as_an_unbroken_one(tmp_path, cfg, every_s):
    whole, broken = (RunStore(tmp_path / name).prepare("sft", "test", {}) for name in ("whole", "broken"))
    model, optimiser, counters = run(whole, cfg=cfg)
    for kill_at in (1, 5, 5, 11):
        with pytest.raises(Killed):
            run(broken, kill_at, every_s, cfg=cfg)
    again, optimiser2, counters2 = run(broken, every_s=every_s, cfg=cfg)
    for (name, a), (_, b) in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    state, state2 = optimiser.state(), optimiser2.state()
    assert state.keys() == state2.keys() and all(torch.equal(state[k], state2[k]) for k in state)
    assert ledger(counters) == ledger(counters2)
    assert whole.curve() == broken.curve()
    assert [row["step"] for row in whole.curve("loss")] == [2, 4, 6, 8, 10, 12]


def test_time_is_kept_across_a_kill(folder):
    with pytest.raises(Killed):
        run(folder, 6)
    before = checkpoint.load(folder.path / checkpoint.STATE_FILE, Transformer(CFG))
    assert before["step"] == 6 and before["device_s"] > 0
    assert run(folder)[2].device_s > before["device_s"]


def test_the_ledger_is_exact(folder):
    _, _, counters = run(folder)
    expected = 0.0
    for step in range(STEPS):
        weights = batch_at(step).weights
        n_logits = 20 if weights is None else int(weights.sum()) / 4
        expected += train_flops(CFG, 20, 4, n_logits).total
    spend = counters.spend()
    assert spend.train_flops == pytest.approx(expected, rel=1e-12)
    assert (spend.generate_flops, spend.score_flops) == (10.0 * STEPS, 1.0 * STEPS)
    assert spend.tokens == STEPS * 4 * 20
    assert spend.peak_bytes and spend.device and spend.wall_s and spend.device_s
    last = folder.curve("loss")[-1]
    assert (last["train_flops"], last["tokens"]) == (spend.train_flops, spend.tokens)


def test_passes_by_purpose_and_model_are_whole_after_a_kill(tmp_path):
    def next_batch(step: int, kill_at: int | None) -> Batch:
        if step == kill_at:
            raise Killed
        batch = batch_at(step)
        if step == 0:  # work before the loop, which every start does again
            batch.ledger.post("teacher", "t", 1000, 5e6, 0.5)
        batch.ledger.post("reference", "base", 80, 7.0, 0.25)
        return batch

    def go(name: str, kill_at: int | None = None) -> Counters:
        model, folder = Transformer(CFG).initialise(3), RunStore(tmp_path / name).prepare("rl", "test", {})
        return train(
            model, Optimiser(model, Rates()), lambda step: next_batch(step, kill_at), cross_entropy,
            lambda step: 1.0, folder, first_step=0, last_step=STEPS, checkpoint_every_s=-1.0,
            evaluate=lambda step: {"val_accuracy": 0.5, "evaluate_flops": 3.0, "evaluate_tokens": 9},
            evaluate_at={4, STEPS},
        )  # fmt: skip

    whole = go("whole")
    for kill_at in (1, 5, 9):
        with pytest.raises(Killed):
            go("broken", kill_at)
    broken = go("broken")
    assert ledger(whole) == ledger(broken)
    spend = broken.spend()
    rows = {row["kind"]: row for row in spend.by}
    assert {k: (r["tokens"], r["flops"]) for k, r in rows.items() if k != "train"} == {
        "teacher": (1000, 5e6), "reference": (80 * STEPS, 7.0 * STEPS), "evaluate": (18, 6.0),
        "sample": (None, 10.0 * STEPS), "score": (None, float(STEPS)),
    }  # fmt: skip
    assert rows["reference"]["seconds"] == 0.25 * STEPS and rows["teacher"]["model"] == "t"
    assert rows["train"]["model"] == RunStore(tmp_path / "broken").prepare("rl", "test", {}).id
    assert rows["train"]["tokens"] == spend.tokens and rows["train"]["seconds"] > 0
    assert spend.score_flops == sum(rows[k]["flops"] for k in ("teacher", "reference", "score"))
    curve = RunStore(tmp_path / "broken").prepare("rl", "test", {}).curve("val_accuracy")
    assert [sorted(row) for row in curve] == [sorted([
        "step", "train_flops", "generate_flops", "score_flops", "tokens", "val_accuracy"
    ])] * 2  # fmt: skip


def test_counters_from_before_there_were_rows_keep_their_totals():
    counters = Counters(**{"step": 3, "train_flops": 5.0, "score_flops": 2.0, "tokens": 9})
    counters.post("train", "run", 1, 1.0)
    assert (counters.train_flops, counters.generate_flops, counters.score_flops) == (6.0, 0.0, 2.0)


def test_a_batch_without_signal_costs_what_it_cost(folder):
    model = Transformer(CFG).initialise(0)
    before = [p.clone() for p in model.parameters()]
    one = torch.zeros(1, 1, dtype=torch.int64)
    empty = Batch(one, one, torch.zeros(1, 1), generate_flops=5.0, info={"reward": 0.25})
    counters = train(
        model, Optimiser(model, Rates()), lambda step: empty if step else None, cross_entropy,
        lambda step: 1.0, folder, first_step=0, last_step=3, log_every=1,
    )  # fmt: skip
    assert (counters.generate_flops, counters.train_flops, counters.tokens) == (10.0, 0.0, 0)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert [row["reward"] for row in folder.curve("reward")] == [0.25, 0.25]


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number(folder, poison):
    def objective(model, batch):
        loss, _ = cross_entropy(model, batch)
        return (loss * poison if len(seen) == 4 else loss), {}

    seen: list[int] = []

    def next_batch(step: int) -> Batch:
        seen.append(step)
        return batch_at(0)

    model = Transformer(CFG).initialise(0)
    with pytest.raises(FlopwiseError, match=r"loss is (nan|inf) at step 3; lower the learning rate") as e:
        train(
            model, Optimiser(model, Rates()), next_batch, objective, lambda step: 1.0, folder,
            first_step=0, last_step=9,
        )  # fmt: skip
    assert "\n" not in str(e.value)
    assert all(p.isfinite().all() for p in model.parameters())


def test_a_gradient_that_is_no_number_leaves_the_weights(folder):
    """A finite loss whose slope is not: the root of zero."""

    def objective(model, batch):
        loss, _ = cross_entropy(model, batch)
        return loss + (0.0 * model.head.weight.sum()).sqrt(), {}

    model = Transformer(CFG).initialise(0)
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(FlopwiseError, match="gradient norm is nan at step 0; lower the learning rate"):
        train(
            model, Optimiser(model, Rates()), lambda step: batch_at(0), objective, lambda step: 1.0, folder,
            first_step=0, last_step=1,
        )  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def damage(path: Path, how: str) -> None:
    whole = path.read_bytes()
    if how == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "garbled":
        path.write_bytes(b"\xff" * len(whole))
    else:
        tensors = load_file(path)
        counters = {"counters": json.dumps({"step": 1})}
        if how == "no counters":
            save_file(tensors, path)
        elif how == "counters are no JSON":
            save_file(tensors, path, {"counters": "{"})
        elif how == "a tensor is missing":
            tensors.pop("model.norm.weight")
            save_file(tensors, path, counters)
        elif how == "momentum is missing":
            save_file({k: t for k, t in tensors.items() if "muon" not in k}, path, counters)
        else:
            tensors["model.norm.weight"] = torch.ones(99)
            save_file(tensors, path, counters)


@pytest.mark.parametrize(
    "how",
    ["cut", "empty", "garbled", "no counters", "counters are no JSON", "a tensor is missing",
     "momentum is missing", "another shape"],
)  # fmt: skip
def test_a_damaged_state_is_named_and_training_starts_over_without_it(tmp_path, how):
    whole, broken = (RunStore(tmp_path / name).prepare("sft", "test", {}) for name in ("whole", "broken"))
    run(whole)
    with pytest.raises(Killed):
        run(broken, 6)
    state = broken.path / checkpoint.STATE_FILE
    damage(state, how)
    with pytest.raises(DamagedFile, match="cannot be read") as e:
        run(broken)
    assert e.value.path == state and "\n" not in str(e.value)
    state.unlink()  # what the launcher does with `path`, before it starts the step again
    run(broken)
    assert whole.curve() == broken.curve()


def test_a_kill_while_saving_leaves_the_old_state(folder, monkeypatch):
    with pytest.raises(Killed):
        run(folder, 6)
    state = folder.path / checkpoint.STATE_FILE
    before = state.read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError):
        run(folder)
    assert state.read_bytes() == before


def test_evaluations_are_logged_with_what_had_been_spent(folder):
    asked = []

    def evaluate(step: int) -> dict[str, float]:
        asked.append(step)
        return {"val_accuracy": step / 10}

    run(folder, evaluate=evaluate, evaluate_at={3, 12})
    assert asked == [3, 12]
    rows = folder.curve("val_accuracy")
    assert [(r["step"], r["val_accuracy"], r["tokens"]) for r in rows] == [(3, 0.3, 240), (12, 1.2, 960)]


def test_progress_rises_to_one(folder):
    seen: list[float] = []
    run(folder, progress=seen.append)
    assert seen == sorted(seen) and len(seen) == STEPS and seen[-1] == 1.0


def test_it_learns():
    """A scorer and a language model both get a rule that they can only have learned."""
    rows = torch.randint(40, (64, 9), generator=seeded(1))

    class Nowhere:
        path = Path("/nonexistent")

        def log(self, **row) -> None: ...
        def rewind(self, step: int) -> None: ...

    def fit(model, batch, objective) -> float:
        train(
            model, Optimiser(model, Rates()), lambda step: batch, objective, lambda step: 1.0, Nowhere(),
            first_step=0, last_step=60, checkpoint_every_s=1e9,
        )  # fmt: skip
        with torch.no_grad():
            return objective(model, batch)[0].item()

    doubled = torch.cat([rows, rows], 1)
    weights = (torch.arange(17) >= 9).float().repeat(64, 1)
    batch = Batch(doubled[:, :-1], doubled[:, 1:], weights)
    assert fit(Transformer(CFG).initialise(0), batch, cross_entropy) < 1.0  # log 40 is 3.7

    labels = (rows[:, 3] > 20).float()
    batch = Batch(rows, labels=labels, last=torch.full((64,), 8))
    assert fit(Transformer(CFG, n_scores=1).initialise(0), batch, outcome_reward) < 0.2  # log 2 is 0.69
