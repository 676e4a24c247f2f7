"""Runs that learn from preferences: what they leave, what they cost, and that a kill changes nothing."""

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
from flopwise.data.instruct_spec import InstructSpec
from flopwise.data.prepared import PreparedData
from flopwise.errors import FlopwiseError
from flopwise.flops.count import score_flops
from flopwise.flops.spend import Spend
from flopwise.launch.posttrain_recipe import PosttrainData
from flopwise.models import hf
from flopwise.models.config import ModelConfig
from flopwise.models.transformer import Transformer
from flopwise.posttrain.bench import Bench
from flopwise.posttrain.examples import Example
from flopwise.posttrain.feedback import read
from flopwise.posttrain.preference import mismatched
from flopwise.posttrain.settings import METHODS
from flopwise.records.folder import RunFolder
from flopwise.records.record import Metric
from flopwise.records.store import RunStore

RATES = {"muon": 0.02, "embed": 0.01, "head": 0.004}
PAIRS = 120

Make = Callable[..., RunFolder]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunStore, dict[str, str]]:
    """Data, an untrained model, pairs and thumbs as finished runs: worked solutions against cut ones."""
    store = RunStore(tmp_path_factory.mktemp("runs"))
    section = PosttrainData(
        corpora=[], task="countdown-small", demonstrations=80, rl_problems=60, val_problems=16,
        test_problems=16, vocab_size=300,
    )  # fmt: skip
    data = store.prepare("data", "countdown-small", section.model_dump(), {}, 0, "data")
    prepare.run_step(data, {}, lambda _: None)
    opened = PreparedData(data.path)
    cfg = ModelConfig.from_width(16, 1, opened.vocab_size, 96)
    init = store.prepare("sft", "sft", {}, {"data": data.id}, 0, "init")
    model = Transformer(cfg).initialise(0)
    # A head of zeros would give adapters no gradient.
    torch.nn.init.normal_(model.head.weight, std=0.3, generator=torch.Generator().manual_seed(1))
    hf.save(model, init.path / "model", opened.tokenizer)
    init.finish(metrics={"val_accuracy": Metric(value=0.0, se=0.0, n=16)}, spend=Spend(train_flops=5.0))
    demos = [(d.prompt, d.completion) for d in opened.demos()]
    rows = [demos[i % len(demos)] for i in range(PAIRS)]
    ids = {"data": data.id, "init": init.id}
    for role, content in (
        ("pairs", [{"prompt": p, "chosen": c, "rejected": c[: len(c) // 2], "problem": i // 2,
                    "chosen_cut": False, "rejected_cut": i % 3 == 0}
                   for i, (p, c) in enumerate(rows)]),
        ("thumbs", [{"prompt": p, "completion": c if i % 3 else c[:4], "label": bool(i % 3), "problem": i}
                    for i, (p, c) in enumerate(rows)]),
    ):  # fmt: skip
        run = store.prepare("synthesize", role, {}, {"init": init.id}, 0, role)
        (run.path / f"{role}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
        run.finish(metrics={}, spend=Spend(generate_flops=7.0))
        ids[role] = run.id
    return store, ids


def start(world: tuple[RunStore, dict[str, str]], method: str, feedback: str, **settings: Any) -> RunFolder:
    """A folder for a run, ready to be carried out."""
    store, ids = world
    lora = settings.pop("lora", None)
    section = METHODS[method].section.model_validate(
        {"steps": 8, "batch_size": 4, "curve_points": 2, "rate_factor": 0.2, **settings}
    )
    roles = {role: ids[role] for role in ("data", "init", feedback)}
    spec = {"rates": RATES, "val_problems": 8, **section.spec(), "lora": lora}
    return store.prepare("preference", method, spec, roles, 3, f"{method}-{len(settings)}")


def carry_out(run: RunFolder, progress: Callable[[float], None] = lambda _: None) -> RunFolder:
    module, _, function = METHODS[run.method].run.partition(":")
    parents = {role: RunFolder(run.path.parent / i) for role, i in run.roles.items()}
    getattr(importlib.import_module(module), function)(run, parents, progress)
    return run


@pytest.fixture
def make(world: tuple[RunStore, dict[str, str]]) -> Make:
    """make(method, feedback, **settings): a finished run, made once."""

    def made(method: str, feedback: str, **settings: Any) -> RunFolder:
        run = start(world, method, feedback, **settings)
        return run if run.done else carry_out(run)

    return made


def weights(run: RunFolder) -> dict[str, np.ndarray]:
    return {name: t.numpy() for name, t in hf.load(run.path / "model").state_dict().items()}


@pytest.mark.parametrize(
    ("method", "feedback", "settings"),
    [
        ("dpo", "pairs", {}),
        ("dpo", "pairs", {"reference": "online", "loss": "ipo", "patience": 1, "curve_points": 4}),
        ("kto", "thumbs", {"kl_problems": 4}),
        ("kto", "pairs", {"reference": "online"}),
        ("orpo", "pairs", {"anchor_on": "demonstrations"}),
        ("simpo", "pairs", {"keep": "last"}),
        ("dpo", "pairs", {"lora": {"rank": 2}, "reference": "online"}),
    ],
)
def test_killed_twice_a_run_ends_with_the_same_weights_and_ledger(
    world: tuple[RunStore, dict[str, str]], make: Make, monkeypatch: pytest.MonkeyPatch,
    method: str, feedback: str, settings: dict[str, Any], tmp_path: Path,
) -> None:  # fmt: skip
    whole = make(method, feedback, **settings)
    for run in world[0].root.iterdir():
        if run.is_dir() and run.name != whole.id:
            (tmp_path / run.name).symlink_to(run)
    new = start((RunStore(tmp_path), world[1]), method, feedback, **settings)
    assert new.id == whole.id and not new.done
    kill_and_finish(new, carry_out, (0.2, 0.35), monkeypatch)
    assert_alike(whole, new)
    a, b = weights(whole), weights(new)
    assert a.keys() == b.keys() and all((a[name] == b[name]).all() for name in a)
    assert not (new.path / "reference.safetensors").exists()


def spent(run: RunFolder) -> dict[str, dict[str, Any]]:
    return {row["kind"]: row for row in run.record().spend.by}


def test_a_cached_reference_costs_one_pass_and_changes_nothing(make: Make) -> None:
    cached, online = make("dpo", "pairs"), make("dpo", "pairs", reference="online")
    assert all(
        np.allclose(a, b, atol=1e-5)
        for a, b in zip(weights(cached).values(), weights(online).values(), strict=True)
    )
    once, each = spent(cached)["reference"], spent(online)["reference"]
    assert once["model"] == cached.roles["init"] == each["model"]
    # On the fly it is a forward pass of every batch: a third of what training costs.
    assert each["tokens"] == spent(online)["train"]["tokens"] == online.record().spend.tokens
    assert each["flops"] == pytest.approx(spent(online)["train"]["flops"] / 3)
    rows = cached.record().extra["units"] * 2
    assert once["tokens"] >= rows and cached.record().spend.score_flops == once["flops"]
    assert "policy" not in spent(cached)


def test_kto_counts_the_policys_pass_on_mismatched_answers(make: Make) -> None:
    rows = spent(make("kto", "thumbs", kl_problems=4))
    assert rows["policy"]["model"] not in (None, rows["reference"]["model"])
    assert rows["policy"]["flops"] > 0 and rows["evaluate"]["flops"] > 0
    record = make("kto", "thumbs", kl_problems=4).record()
    assert record.spend.score_flops == pytest.approx(rows["policy"]["flops"] + rows["reference"]["flops"])


def test_what_made_the_feedback_is_part_of_what_the_model_cost(make: Make) -> None:
    record = make("dpo", "pairs").record()
    assert record.lineage_spend.generate_flops == record.spend.generate_flops + 7.0
    assert record.lineage_spend.train_flops == record.spend.train_flops + 5.0


def test_pairs_are_learned_and_the_anchor_keeps_answers_likely(make: Make) -> None:
    settings: dict[str, Any] = {"steps": 60, "batch_size": 16, "rate_factor": 0.5, "keep": "last"}
    anchored = make("dpo", "pairs", **settings)
    alone = make("dpo", "pairs", **settings, anchor=0.0)
    for run in (anchored, alone):
        accuracy = run.record().metrics["val_pair_accuracy"]
        assert accuracy.value == 1.0 and accuracy.n == run.record().extra["heldout_units"] > 0
    first, last = (anchored.curve("chosen_logp")[i] for i in (0, -1))
    assert last["chosen_logp"] > first["chosen_logp"] and last["margin"] > 0.5
    assert last["chosen_logp"] > alone.curve("chosen_logp")[-1]["chosen_logp"] + 0.3


def test_the_anchor_on_demonstrations_learns_rows_that_no_pair_has(make: Make) -> None:
    plain, shown = make("orpo", "pairs"), make("orpo", "pairs", anchor_on="demonstrations")
    assert shown.record().spend.tokens > plain.record().spend.tokens
    assert "score_flops" in spent(plain) or plain.record().spend.score_flops == 0


def test_held_out_problems_are_the_same_for_every_seed_and_share_no_pair(make: Make) -> None:
    record = make("dpo", "pairs").record()
    assert record.extra["units"] + record.extra["heldout_units"] == PAIRS
    assert record.extra["heldout_units"] == 2 * round(0.05 * PAIRS / 2)


def test_an_answer_that_was_cut_has_no_end(world: tuple[RunStore, dict[str, str]]) -> None:
    run = start(world, "dpo", "pairs", heldout=0.0)
    parents = {role: RunFolder(run.path.parent / i) for role, i in run.roles.items()}
    bench = Bench.open(run, parents)
    found, held = read(bench, parents, paired=True)
    assert held is None and len(found) == PAIRS
    ended = [e.completion[-1] == bench.data.eos_id for e in found.rows]
    assert all(ended[0::2]) and ended[1::2] == [i % 3 != 0 for i in range(PAIRS)]


def test_mismatched_answers_are_to_other_prompts_and_fit_the_context() -> None:
    rows = [Example((i % 3, 9), tuple(range(10 + i))) for i in range(12)]
    other = mismatched(rows, 15, 0)
    prompt_of = {e.completion: e.prompt for e in rows}
    for mine, found in zip(rows, other, strict=True):
        assert found.prompt == mine.prompt and len(found) <= 15
        whole = next(c for c in prompt_of if c[: len(found.completion)] == found.completion and len(c) >= 10)
        assert found.completion == whole[: len(found.completion)]
    with pytest.raises(FlopwiseError, match="the same prompt"):
        mismatched([Example((1,), (2,)), Example((1,), (3,))], 9, 0)


@pytest.mark.parametrize(
    ("method", "feedback", "settings", "message"),
    [
        ("dpo", "thumbs", {}, "needs prompt, chosen, rejected"),
        ("kto", "init", {}, "prompt, completion, label"),
    ],
)
def test_feedback_of_the_wrong_kind_is_named(
    world: tuple[RunStore, dict[str, str]], method: str, feedback: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(FlopwiseError, match=message):
        carry_out(start(world, method, feedback, **settings))


def test_a_run_that_made_no_pairs_is_named(world: tuple[RunStore, dict[str, str]]) -> None:
    store, ids = world
    with pytest.raises(FlopwiseError, match=r"holds no pairs\.jsonl; give a run of method pairs"):
        carry_out(start((store, {**ids, "pairs": ids["thumbs"]}), "dpo", "pairs", beta=0.2))


@pytest.mark.parametrize(
    ("method", "roles", "message"),
    [
        ("dpo", {"init": "a"}, "give pairs: RUN, or a dataset as data"),
        ("kto", {"thumbs": "a", "pairs": "b"}, "exclude each other"),
        ("kto", {"init": "a"}, "thumbs: RUN or pairs: RUN"),
        ("pairs", {"judge": "a"}, "by: judge needs"),
    ],
)
def test_settings_say_what_they_lack(method: str, roles: dict[str, str], message: str) -> None:
    assert message in (METHODS[method].section().lacks(roles) or "")
    assert METHODS["dpo"].section().lacks({"pairs": "a"}) is None
    assert METHODS["simpo"].section().lacks({"data": "a"}) is None


def test_reference_passes_are_counted_as_executed(make: Make) -> None:
    online = make("dpo", "pairs", reference="online")
    cfg = hf.load(online.path / "model").cfg
    row = spent(online)["reference"]
    # Between no head at all and a head on every token.
    low = score_flops(cfg, 1, row["tokens"], 0).total
    assert low < row["flops"] < score_flops(cfg, 96, row["tokens"] / 96).total * 1.2


def test_adapters_have_their_base_as_reference(make: Make) -> None:
    online = make("dpo", "pairs", lora={"rank": 2}, reference="online")
    cached = make("dpo", "pairs", lora={"rank": 2})
    assert {f.name for f in (cached.path / "model").iterdir()} >= {"adapter_model.safetensors"}
    a, b = weights(cached), weights(online)
    assert all(np.allclose(a[name], b[name], atol=1e-5) for name in a)
    full = spent(make("dpo", "pairs", reference="online"))
    assert spent(online)["reference"]["flops"] == full["reference"]["flops"]  # of the base, not of adapters
    assert spent(online)["train"]["flops"] < full["train"]["flops"]
    start = hf.load(cached.path.parent / cached.roles["init"] / "model").state_dict()
    same = [np.array_equal(a[name], start[name].numpy()) for name in a]
    assert any(same) and not all(same)


@pytest.mark.parametrize("method", ["dpo", "kto", "simpo"])
def test_somebodys_own_pairs_are_learned_and_judged_on_rows_held_out(
    world: tuple[RunStore, dict[str, str]], tmp_path: Path, method: str
) -> None:
    store, ids = world
    rows = [json.loads(line) for line in (store.folder(ids["pairs"]).path / "pairs.jsonl").open()]
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join(json.dumps({k: r[k] for k in ("prompt", "chosen", "rejected")}) + "\n" for r in rows)
    )
    spec = InstructSpec(path=str(path), heldout_fraction=0.3).model_dump()
    data = store.prepare("data", "instructions", spec, {"init": ids["init"]}, 0, "own")
    if not data.done:
        instruct.run_step(data, {"init": store.folder(ids["init"])}, lambda _: None)
    run = carry_out(start((store, {**ids, "data": data.id}), method, "init", rate_factor=0.3))
    record = run.record()
    assert record.metrics["val_pair_accuracy"].n == record.extra["heldout_units"] > 0
    assert record.metrics["val_accuracy"].value == record.metrics["val_pair_accuracy"].value > 0.5
    assert record.metrics["val_loss"].value > 0
