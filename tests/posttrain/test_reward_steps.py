"""The steps of the rewards' family, from a small model that knows some answers by heart."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from killing import assert_alike, kill_and_finish

from flopwise.data import instruct, prepare
from flopwise.data.prepared import PreparedData
from flopwise.errors import FlopwiseError
from flopwise.flops.spend import Spend
from flopwise.infer.local import LocalEngine
from flopwise.infer.steps import HOW, aggregate, step_ends, text_ends
from flopwise.launch.posttrain_recipe import PosttrainData
from flopwise.laws.fitting import fit
from flopwise.models import hf
from flopwise.models.config import ModelConfig
from flopwise.models.transformer import Transformer
from flopwise.posttrain.judge import NoisyVerifier, open_judge
from flopwise.posttrain.process_reward import Trace, collate_steps
from flopwise.posttrain.settings import METHODS
from flopwise.records.folder import RunFolder
from flopwise.records.store import RunStore
from flopwise.train.objectives import Batch, outcome_reward
from flopwise.train.reward_objectives import bradley_terry, pair_loss, step_reward

SETTINGS: dict[str, dict[str, Any]] = {
    "sft": {"steps": 95, "batch_size": 8, "rate_factor": 2.0},
    "pairs": {"problems": 24, "n": 8},
    "thumbs": {"problems": 24, "n": 8},
    "reward-samples": {"problems": 18, "test_problems": 6, "n": 8, "steps": 12, "batch_size": 8},
    "reward-pairs": {"steps": 12, "batch_size": 4, "heldout": 0.3},
    "reward-thumbs": {"steps": 12, "batch_size": 8, "heldout": 0.3},
    "process-reward": {
        "problems": 18, "test_problems": 6, "n": 2, "test_n": 4, "rollouts": 3, "steps": 12, "batch_size": 8,
    },
    "judge": {"problems": 16, "n": 4, "flip": 0.2},
    "overoptimise": {"problems": 16, "n": 8, "split": "val", "bootstrap": 200},
}  # fmt: skip
Step = Callable[..., RunFolder]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    """Data whose problems are those of the demonstrations, and a base."""
    store = RunStore(tmp_path_factory.mktemp("runs"))
    section = PosttrainData(
        corpora=[], task="countdown-small", demonstrations=24, rl_problems=24, val_problems=16,
        test_problems=16, vocab_size=300,
    )  # fmt: skip
    data = store.prepare("data", "countdown-small", section.model_dump(), {}, 0, "data")
    prepare.run_step(data, {}, lambda _: None)
    opened = PreparedData(data.path)
    task = opened.open_task()
    rows = [json.dumps(task.to_row(task.parse(d.prompt))) for d in opened.demos()]
    for name, size in (("rl", 24), ("val", 16)):
        (data.path / f"{name}.jsonl").write_text("\n".join(rows[:size]) + "\n")
    base = store.prepare("pretrain", "base", {}, {"data": data.id}, 0, "base")
    model = Transformer(ModelConfig.from_width(32, 1, opened.vocab_size, 96)).initialise(0)
    hf.save(model, base.path / "model", opened.tokenizer)
    base.finish(metrics={}, spend=Spend(train_flops=5.0))
    return store


@pytest.fixture
def step(store: RunStore) -> Step:
    """step(method, role=run, ...): a run, made once; other settings are the method's."""

    def made(method: str, **more: Any) -> RunFolder:
        run = start(store, method, **more)
        return run if run.done else carry_out(run)

    return made


def start(store: RunStore, method: str, data: str | None = None, **more: Any) -> RunFolder:
    roles = {r: more.pop(r).id for r in ("init", "pairs", "thumbs", "reward", "model") if r in more}
    if method == "sft":
        roles["init"] = store.folder("base").id
    section = METHODS[method].section.model_validate({**SETTINGS[method], **more})
    assert section.lacks(roles) is None
    rates = {"muon": 0.02, "embed": 0.01, "head": 0.004}
    spec = {"rates": rates, "val_problems": 8, **section.spec()}
    roles = {"data": data or store.folder("data").id, **roles}
    return store.prepare(METHODS[method].kind, method, spec, roles, 3, f"{method}-{len(roles)}")


def carry_out(run: RunFolder, progress: Callable[[float], None] = lambda _: None) -> RunFolder:
    module, _, function = METHODS[run.method].run.partition(":")
    parents = {role: RunFolder(run.path.parent / i) for role, i in run.roles.items()}
    getattr(importlib.import_module(module), function)(run, parents, progress)
    return run


@pytest.fixture
def made(step: Step) -> dict[str, RunFolder]:
    """What the methods are made from."""
    init = step("sft")
    return {"init": init, "pairs": step("pairs", init=init), "thumbs": step("thumbs", init=init)}


def of(made: dict[str, RunFolder], *roles: str) -> dict[str, RunFolder]:
    return {role: made[role] for role in roles}


@pytest.mark.parametrize(
    ("method", "roles"),
    [
        ("reward-samples", ("init",)), ("reward-pairs", ("init", "pairs")),
        ("reward-thumbs", ("init", "thumbs")), ("process-reward", ("init",)),
    ],
)  # fmt: skip
def test_killed_twice_a_scorer_ends_the_same(
    store: RunStore, step: Step, made: dict[str, RunFolder], monkeypatch: pytest.MonkeyPatch,
    method: str, roles: tuple[str, ...], tmp_path: Path,
) -> None:  # fmt: skip
    whole = step(method, **of(made, *roles))
    for run in store.root.iterdir():
        if run.is_dir() and run.name != whole.id:
            (tmp_path / run.name).symlink_to(run)
    new = start(RunStore(tmp_path), method, **of(made, *roles))
    assert new.id == whole.id and not new.done
    kill_and_finish(new, carry_out, (0.2, 0.7), monkeypatch)
    assert_alike(whole, new)
    files = [run.path / "model" / "model.safetensors" for run in (whole, new)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_reward_model_learns_and_says_how_well(step: Step, made: dict[str, RunFolder]) -> None:
    record = step("reward-samples", **of(made, "init")).record()
    assert {"auc_within", "auc_pooled", "accuracy", "brier", "calibration_error"} <= set(record.metrics)
    found = record.extra["calibration"]
    assert found["temperature"] > 0 and sum(row["n"] for row in found["reliability"]) == 6 * 8
    by = {row["kind"] for row in record.spend.by}
    assert {"sample", "train"} <= by and record.model is not None
    scorer = hf.load(step("reward-samples", **of(made, "init")).path / "model")
    assert scorer.n_scores == 1 and LocalEngine(scorer.eval()).reward([[5, 6, 7]])[0].shape == (1,)


def test_pairs_and_thumbs_leave_what_was_held_out_to_judge_by(step: Step, made: dict[str, RunFolder]) -> None:
    pairs = step("reward-pairs", **of(made, "init", "pairs")).record()
    kept = made["pairs"].record().metrics["kept"].value
    assert pairs.extra["learned_from"] + pairs.extra["held_out"] == kept
    assert pairs.metrics["accuracy"].n == pairs.extra["held_out"]
    assert any("pair_accuracy" in row for row in RunFolder(made["pairs"].path.parent / pairs.id).curve())
    thumbs = step("reward-thumbs", **of(made, "init", "thumbs")).record()
    assert {"accuracy", "auc_within", "brier"} <= set(thumbs.metrics)


def test_thumbs_that_all_point_up_are_refused(
    store: RunStore, step: Step, made: dict[str, RunFolder]
) -> None:
    rows = [json.loads(line) for line in (made["thumbs"].path / "thumbs.jsonl").read_text().splitlines()]
    up = store.prepare("synthesize", "thumbs", {"up": 1}, {"init": made["init"].id}, 0, "up")
    (up.path / "thumbs.jsonl").write_text("".join(json.dumps(r | {"label": True}) + "\n" for r in rows))
    up.finish(metrics={}, spend=Spend())
    with pytest.raises(FlopwiseError, match=r"all \d+ thumbs are up; there is nothing to tell"):
        step("reward-thumbs", init=made["init"], thumbs=up)


def test_a_process_reward_model_is_judged_by_steps_and_by_what_it_chooses(
    step: Step, made: dict[str, RunFolder]
) -> None:
    outcome = step("reward-samples", **of(made, "init"))
    record = step("process-reward", init=made["init"], reward=outcome).record()
    names = {f"best_of_4_{how}" for how in (*HOW, "outcome")} | {f"{how}_over_outcome" for how in HOW}
    assert names | {"pass_at_1", "accuracy", "brier", "auc_within"} <= set(record.metrics)
    assert [p["n"] for p in record.extra["best_of_n"]["min"]] == [1, 2, 4]
    one = [curve[0]["value"] for curve in record.extra["best_of_n"].values()]
    assert one == pytest.approx([record.metrics["pass_at_1"].value] * 4)
    by = {row["kind"]: row["flops"] for row in record.spend.by}
    assert {"sample", "evaluate", "train"} <= set(by)
    assert record.spend.generate_flops == by["sample"]  # roll-outs that judge are shown, not spent


def test_somebody_s_labelled_steps_and_pairs_are_learned_from(
    store: RunStore, step: Step, made: dict[str, RunFolder], tmp_path: Path
) -> None:
    demos = PreparedData(store.folder("data").path).demos() * 3
    steps = [
        {"prompt": d.prompt, "completions": d.completion.split(","), "labels": [True, i % 2 == 0]}
        for i, d in enumerate(demos)
    ]
    pairs = [{"prompt": d.prompt, "chosen": d.completion, "rejected": "1+1=2!"} for d in demos]
    for method, rows, kind in (("process-reward", steps, "steps"), ("reward-pairs", pairs, "pairs")):
        file = tmp_path / f"{kind}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        spec = {"path": str(file), "heldout_fraction": 0.3}
        data = store.prepare("data", "instructions", spec, {"init": made["init"].id}, 0, kind)
        instruct.run_step(data, {"init": made["init"]}, lambda _: None)
        record = step(method, data=data.id, init=made["init"]).record()
        assert record.metrics["accuracy"].n and record.spend.generate_flops == 0
        if kind == "steps":
            assert 0.5 <= record.extra["mean_value"] <= 1 and "best_of_n" not in record.extra


def test_adapters_make_a_scorer_too(step: Step, made: dict[str, RunFolder]) -> None:
    run = step("reward-pairs", lora={"rank": 2}, **of(made, "init", "pairs"))
    assert (run.path / "model" / "adapter_config.json").exists()
    scorer = hf.load(run.path / "model")
    assert scorer.n_scores == 1 and scorer.head.weight.any()
    full = step("reward-pairs", **of(made, "init", "pairs")).record()
    assert run.record().spend.train_flops < full.spend.train_flops


def test_a_judge_is_measured_before_it_is_learned_from(
    step: Step, made: dict[str, RunFolder], store: RunStore
) -> None:
    run = step("judge", **of(made, "init"))
    record = run.record()
    accuracy = record.metrics["accuracy"]
    assert accuracy.value is not None and 0.6 < accuracy.value < 0.95 and record.spend.total_flops == 0
    opened = open_judge(run, PreparedData(store.folder("data").path).open_task())
    assert isinstance(opened, NoisyVerifier) and opened.flip == 0.2
    tok = PreparedData(store.folder("data").path).tokenizer
    longer = store.prepare("pretrain", "longer", {}, {}, 0, "longer")
    model = Transformer(ModelConfig.from_width(16, 1, tok.vocab_size, 800)).initialise(0)
    hf.save(model, longer.path / "model", tok)
    longer.finish(metrics={}, spend=Spend())
    own = step("judge", by="local", flip=0.0, scale=2, init=made["init"], model=longer)
    assert {"orders_agree", "pair_accuracy"} <= set(own.record().metrics)
    assert own.record().extra["usage"]["flops"] > 0 and own.record().extra["judge"] == longer.id
    with pytest.raises(FlopwiseError, match="exceeds the context of 96"):
        step("judge", by="local", flip=0.0, scale=2, init=made["init"])


def test_over_optimisation_leaves_a_curve_that_the_laws_can_fit(
    store: RunStore, step: Step, made: dict[str, RunFolder]
) -> None:
    outcome = step("reward-samples", **of(made, "init"))
    run = step("overoptimise", init=made["init"], reward=outcome)
    found = json.loads((run.path / "overoptimisation.json").read_text())["best_of_n"]
    curve = found["curve"]
    assert [p["n"] for p in curve] == [1, 2, 3, 4, 6, 8]
    proxy = [p["proxy"] for p in curve]
    assert proxy == sorted(proxy) and all(p["gold"] <= p["oracle"] + 1e-9 for p in curve)
    assert all(p["kl_samples"] is None or p["kl_samples"] <= p["kl_bound"] + 1e-9 for p in curve)
    assert run.record().metrics["pass_at_1"].value == pytest.approx(curve[0]["gold"])
    law = fit("overoptimisation_best_of_n", str(run.path / "curve.jsonl"), loss="squared")
    assert law.n == 6 and run.record().spend.score_flops > 0
    rl = store.prepare("rl", "grpo", {}, {"init": made["init"].id}, 0, "rl")
    rl.finish(metrics={}, spend=Spend())
    parents = {r: RunFolder(store.root / i) for r, i in run.roles.items()} | {"rl": rl}
    again = store.prepare("evaluate", "overoptimise", run.spec, run.roles | {"rl": rl.id}, 0, "again")
    module = importlib.import_module("flopwise.posttrain.overoptimise")
    with pytest.raises(FlopwiseError, match="logged 0 steps with proxy, gold and kl"):
        module.run_step(again, parents, lambda _: None)
    for i in range(20):
        rl.log(step=i, proxy=0.1 * i, gold=0.4 + 0.01 * i - 0.001 * i * i, gold_se=0.02, kl=0.05 * i)
    module.run_step(again, parents, lambda _: None)
    assert again.record().extra["rl"]["rl"]["fit"]["beta"]["value"] is not None


def test_steps_end_where_the_task_says() -> None:
    from flopwise.data.tasks import task
    from flopwise.data.tokenizer import ByteTokenizer, train_bpe

    countdown = task("countdown")
    text = "7+3=10,10+3=13?7*3=21,21+3=24!"
    ends = text_ends(countdown, text)
    pieces = [text[a:b] for a, b in zip([0, *ends], ends, strict=False)]
    assert pieces == ["7+3=10,", "10+3=13?", "7*3=21,", "21+3=24!"]
    for tok in (ByteTokenizer(), train_bpe([text] * 9, 280)):
        ids = tok.encode(text)
        finished = step_ends(countdown, [*ids, tok.eos_id], tok)
        assert [tok.decode(ids[: e + 1]) for e in finished[:-1]] == [text[:b] for b in ends[:-1]]
        assert finished[-1] == len(ids)  # the last step is through when the answer is
        cut = ids[:-3]
        assert step_ends(countdown, cut, tok, finished=False) == [*finished[:-1], len(cut) - 1]
    assert text_ends(None, "one\ntwo") == [4, 7] and text_ends(countdown, "") == [0]
    assert step_ends(countdown, [0], ByteTokenizer()) == [0]
    umlauts = ByteTokenizer().encode("ä=ö\nü")
    assert step_ends(None, umlauts, ByteTokenizer(), finished=False) == [5, 7]


def test_answers_are_summed_up_as_said() -> None:
    values = [np.array([1.0, -2.0, 0.5]), np.array([3.0])]
    assert aggregate(values, "min").tolist() == [-2.0, 3.0]
    assert aggregate(values, "last").tolist() == [0.5, 3.0]
    chance = 1 / (1 + np.exp(-values[0]))
    assert aggregate(values, "product")[0] == pytest.approx(np.log(chance.prod()))
    with pytest.raises(FlopwiseError, match="min, last, product"):
        aggregate(values, "mean")


def test_pairs_are_learned_by_their_difference() -> None:
    chosen, rejected = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])
    expected = (np.log1p(np.exp(-1.0)) + np.log1p(np.exp(2.0))) / 2
    assert pair_loss(chosen, rejected).item() == pytest.approx(expected, rel=1e-6)
    assert pair_loss(chosen + 5, rejected + 5).item() == pytest.approx(expected, rel=1e-6)
    centred = pair_loss(chosen, rejected, 0.1).item()
    assert centred == pytest.approx(expected + 0.1 * (1 + 4) / 2, rel=1e-6)


def scorer() -> Transformer:
    model = Transformer(ModelConfig.from_width(16, 1, 64, 32), n_scores=1).initialise(0)
    model.head.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    return model


def test_objectives_read_scores_where_they_should() -> None:
    from flopwise.posttrain.examples import Example
    from flopwise.posttrain.reward import collate_outcomes

    model = scorer()
    good, bad = Example((3, 4), (5, 2)), Example((3, 4), (7, 8, 9, 2))
    scores = LocalEngine(model.eval()).reward([e.prompt + e.completion for e in (good, bad)])[0]
    batch = collate_outcomes([good, bad], np.array([1.0, 0.0]), 1)
    loss, logs = bradley_terry()(model, batch)
    assert loss.item() == pytest.approx(np.log1p(np.exp(-(scores[0] - scores[1]))), rel=1e-5)
    assert logs["margin"] == pytest.approx(scores[0] - scores[1], abs=1e-5)
    # One step that is the whole answer is an outcome.
    traces = [Trace(e, (len(e.prompt + e.completion) - 1,), (v,)) for e, v in ((good, 1.0), (bad, 0.0))]
    assert step_reward(model, collate_steps(traces, 1))[0].item() == pytest.approx(
        outcome_reward(model, batch)[0].item(), rel=1e-5
    )
    trace = Trace(bad, (2, 5), (0.25, 1.0))
    places, _ = LocalEngine(model).rewards_at([bad.prompt + bad.completion], [trace.ends])
    value = np.array(trace.values)
    expected = np.mean(np.logaddexp(0, places[0]) - value * places[0])
    together: Batch = collate_steps([trace], 1)
    assert step_reward(model, together)[0].item() == pytest.approx(expected, rel=1e-5)
