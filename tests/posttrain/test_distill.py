"""Distillation: what is written once, read back whole, learned, refused, and counted where it happens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from killing import assert_alike, kill_and_finish

from flopwise.data.tasks import task
from flopwise.data.tokenizer import ByteTokenizer
from flopwise.errors import FlopwiseError
from flopwise.flops.count import score_flops
from flopwise.models import hf
from flopwise.models.transformer import Transformer
from flopwise.posttrain import distill, teacher
from flopwise.posttrain.bench import Bench
from flopwise.posttrain.examples import Example, collate
from flopwise.posttrain.rejection import read_examples, read_rows
from flopwise.posttrain.teacher import TeacherLogits, Writer, fingerprint
from flopwise.records.folder import RunFolder
from flopwise.records.store import RunStore

TASK = task("countdown-rare")
TRAIN = {"steps": 6, "batch_size": 8, "curve_points": 1}


@pytest.fixture
def taught(rare_store: RunStore, step: Any) -> RunStore:
    """The store with another untrained model, `other`, to teach: both have given a zero head some weight."""
    if "other" not in {r.name for r in rare_store.records()}:
        init = rare_store.folder("init")
        other = rare_store.prepare(
            "sft", "sft", {"n": 1}, {"data": rare_store.folder("data").id}, name="other"
        )
        model = hf.load(init.path / "model")
        torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(1))
        tokenizer = Bench.open(init, {"data": rare_store.folder("data"), "init": init}).tokenizer
        hf.save(model, other.path / "model", tokenizer)
        record = init.record()
        other.finish(metrics={}, spend=record.spend, model=record.model)
    return rare_store


def same_weights(a: RunFolder, b: RunFolder) -> bool:
    weights = "model/model.safetensors"
    return (a.path / weights).read_bytes() == (b.path / weights).read_bytes()


@pytest.mark.parametrize("precision", ["float16", "float32"])
def test_a_cache_holds_what_the_teacher_says(taught: RunStore, step: Any, precision: str) -> None:
    folder = step("teacher-logits", teacher="other", top_k=5, precision=precision, temperature=2.0)
    cache = TeacherLogits(folder.path)
    model = hf.load(taught.folder("other").path / "model").eval()
    bench = Bench.open(folder, {"data": taught.folder("data"), "init": taught.folder("other")})
    examples = bench.demonstrations()
    assert len(cache) == len(examples) == 200
    for i in (0, 57, 199):
        found = cache.example(i)
        assert (found.prompt, found.completion) == (examples[i].prompt, examples[i].completion)
    rows = np.array([3, 199, 40])
    batch = cache.batch(rows, pad_id=1)
    whole = collate([examples[i] for i in rows], pad_id=1)
    assert torch.equal(batch.ids, whole.ids) and torch.equal(batch.weights, whole.weights)  # type: ignore[arg-type]
    with torch.no_grad():
        logprobs = F.log_softmax(model(batch.ids) / 2.0, -1)
    learned = whole.weights.bool()  # type: ignore[union-attr]
    got = batch.extra["teacher_logprobs"][learned]
    assert torch.allclose(
        got,
        logprobs.gather(-1, batch.extra["teacher_ids"])[learned],
        atol=1e-5 if precision == "float32" else 1e-2,
    )
    assert (got[:, :-1] >= got[:, 1:]).all() and not batch.extra["teacher_logprobs"][~learned].any()
    mass = got.exp().sum(-1) + batch.extra["teacher_rest"][learned].exp()
    assert torch.allclose(mass, torch.ones_like(mass), atol=2e-2)
    record = folder.record()
    assert record.metrics["bytes"].value == (folder.path / teacher.LOGITS_FILE).stat().st_size
    assert record.spend.score_flops > 0 and record.spend.train_flops == record.spend.generate_flops == 0
    assert [(r["kind"], r["model"]) for r in record.spend.by] == [("teacher", taught.folder("other").id)]


def test_the_file_is_safetensors(taught: RunStore, step: Any) -> None:
    from safetensors.numpy import load_file

    folder = step("teacher-logits", teacher="other", top_k=3)
    arrays = load_file(folder.path / teacher.LOGITS_FILE)
    n = int(folder.record().metrics["tokens"].value)  # type: ignore[arg-type]
    assert arrays["ids"].shape == arrays["logprobs"].shape == (n, 3) and arrays["rest"].shape == (n,)


def test_weights_of_tokens_are_kept(tmp_path: Path) -> None:
    examples = [Example((3, 4), (5, 6, 7), (1.0, 0.0, 0.5)), Example((3,), (8, 2))]
    writer = Writer(tmp_path, examples, 2, "float32", 100)
    ids = np.arange(8).reshape(4, 2)
    writer.put(np.array([1, 0]), ids, -ids.astype(float), np.full(4, -3.0))
    writer.finish({"temperature": 1.0, "vocabulary": "x"})
    cache = TeacherLogits(tmp_path)
    assert cache.example(0) == examples[0] and cache.example(1).weights == (1.0, 1.0)
    batch = cache.batch([0, 1], pad_id=1)
    assert batch.weights is not None and batch.weights.tolist() == [[0, 1, 0, 0.5], [1, 1, 0, 0]]
    assert batch.extra["teacher_ids"][batch.weights > 0].tolist() == [[4, 5], [6, 7], [0, 1], [2, 3]]


def test_a_damaged_or_missing_cache_is_one_line(taught: RunStore, step: Any, tmp_path: Path) -> None:
    with pytest.raises(FlopwiseError, match="give a run of method teacher-logits"):
        TeacherLogits(taught.folder("init").path)
    folder = step("teacher-logits", teacher="other", top_k=2)
    for name in (teacher.LOGITS_FILE, teacher.ABOUT_FILE):
        (tmp_path / name).write_bytes((folder.path / name).read_bytes())
    content = bytearray((tmp_path / teacher.LOGITS_FILE).read_bytes())
    content[-1] ^= 1
    (tmp_path / teacher.LOGITS_FILE).write_bytes(content)
    with pytest.raises(FlopwiseError, match=r"is damaged .SHA-256 differs.; delete"):
        TeacherLogits(tmp_path)
    (tmp_path / teacher.ABOUT_FILE).write_text("{")
    with pytest.raises(FlopwiseError, match="cannot be read"):
        TeacherLogits(tmp_path)


def test_nothing_half_written_is_left(tmp_path: Path) -> None:
    with pytest.raises(FlopwiseError, match="no sequence to read"):
        Writer(tmp_path, [], 2, "float16", 100)
    Writer(tmp_path, [Example((3,), (4,))], 2, "float16", 100).discard()
    assert not list(tmp_path.iterdir())


def test_students_come_closer_to_the_teacher(taught: RunStore, step: Any) -> None:
    logits = step("teacher-logits", teacher="other", top_k=300)
    run = {**TRAIN, "steps": 40}
    for settings in ({}, {"beta": 1.0}, {"beta": 0.5, "hard_weight": 0.2}):
        folder = step("distill-logits", init="init", logits=logits.name, **run, **settings)
        rows = folder.curve("divergence")
        assert rows[-1]["divergence"] < 0.8 * rows[0]["divergence"]
    record = folder.record()
    assert record.spend.train_flops > 0 and record.spend.score_flops == 0  # the teacher was paid for once
    assert record.lineage_spend.score_flops == logits.record().spend.score_flops


def test_on_policy_counts_samples_and_teacher(taught: RunStore, step: Any) -> None:
    folder = step("distill-on-policy", init="init", teacher="other", max_tokens=8, **TRAIN)
    by = {(r["kind"], r["model"]) for r in folder.record().spend.by}
    assert {("sample", folder.id), ("teacher", taught.folder("other").id)} < by
    given = step("distill-on-policy", init="init", teacher="other", on_policy=0.0, **TRAIN)
    assert given.record().spend.generate_flops == 0 and given.record().spend.score_flops > 0


def lessons(store: RunStore, tmp_path: Path, **spec: Any) -> distill.Lessons:
    plain = {
        "on_policy": 1.0, "batch_size": 4, "top_k": 300, "teacher_temperature": 1.0, "temperature": 1.0,
        "max_tokens": 8,
    }  # fmt: skip
    folder = RunStore(tmp_path).prepare("distill", "d", plain | spec, {}, 3, "d")
    parents = {r: store.folder(n) for r, n in (("data", "data"), ("init", "init"), ("teacher", "other"))}
    return distill.Lessons(Bench.open(folder, parents), parents)


def test_a_lesson_repeats_itself_and_counts_the_teacher_s_pass(taught: RunStore, tmp_path: Path) -> None:
    one, two = lessons(taught, tmp_path), lessons(taught, tmp_path)
    one(1)
    a, b = one(5), two(5)
    assert torch.equal(a.ids, b.ids) and torch.equal(a.extra["teacher_rest"], b.extra["teacher_rest"])
    B, T = a.ids.shape
    logits = int(torch.count_nonzero(a.weights)) / B  # type: ignore[arg-type]
    flops = {r["kind"]: r["flops"] for r in a.ledger.rows()}
    assert flops["teacher"] == score_flops(one.teacher.cfg, T, B, logits).total
    per_epoch = len(one.pool) // 4
    seen = [p.key for s in range(per_epoch) for p in one.problems(s)]
    assert len(seen) == len(set(seen))


def test_half_on_policy_mixes_both(taught: RunStore, tmp_path: Path) -> None:
    half = lessons(taught, tmp_path, on_policy=0.5)
    kinds = ["sample" in {r["kind"] for r in half(s).ledger.rows()} for s in range(24)]
    assert 5 < sum(kinds) < 19


def test_other_vocabularies_are_refused_for_token_ids(
    taught: RunStore, step: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = step("teacher-logits", teacher="other", top_k=2)
    monkeypatch.setattr(Bench, "tokenizer", ByteTokenizer())
    with pytest.raises(FlopwiseError, match=r"different vocabularies.*distill-sequences"):
        step("distill-logits", init="init", logits=logits.name, **TRAIN, seed=5)
    monkeypatch.undo()
    monkeypatch.setattr(distill, "fingerprint", lambda t, seen=[]: seen.append(1) or str(len(seen)))
    with pytest.raises(FlopwiseError, match="cannot read the student's tokens"):
        lessons(taught, tmp_path)


def test_a_fingerprint_goes_by_what_ids_mean(taught: RunStore) -> None:
    init, data = taught.folder("init"), taught.folder("data")
    own = Bench.open(init, {"data": data, "init": init}).tokenizer
    from flopwise.data.tokenizer import Tokenizer

    assert fingerprint(own) == fingerprint(Tokenizer.load(init.path / "model"))
    assert fingerprint(own) != fingerprint(ByteTokenizer())


def test_sequences_cross_tokenizers(taught: RunStore, step: Any, writes: Any) -> None:
    """A student of bytes learns, and is judged by, the texts of a teacher of merged tokens."""
    writes(lambda p, i: TASK.demonstration(p, i))
    made = step("verified-samples", init="init", problems=12, n=1)
    if "bytes" not in {r.name for r in taught.records()}:
        data = taught.folder("data")
        student = taught.prepare("sft", "sft", {"n": 2}, {"data": data.id}, name="bytes")
        cfg = hf.load(taught.folder("init").path / "model").cfg.with_(vocab_size=258)
        hf.save(Transformer(cfg).initialise(0), student.path / "model", ByteTokenizer())
        record = taught.get("init")
        student.finish(metrics={}, spend=record.spend, model=record.model)
    folder = step("distill-sequences", init="bytes", samples=made.name, with_demonstrations=False, **TRAIN)
    assert folder.record().extra["examples"] == 12
    parents = {"data": taught.folder("data"), "init": folder}
    bench = Bench.open(folder, parents)
    assert bench.tokenizer.vocab_size == 258
    row = read_rows(made)[0]
    found = read_examples(bench, made)[0]
    assert bench.tokenizer.decode(found.prompt) == row["prompt"] and len(found.prompt) == len(row["prompt"])
    assert found.completion[-1] == bench.tokenizer.eos_id


@pytest.mark.parametrize("verify", [True, False])
def test_unverified_samples_say_which_are_right(step: Any, writes: Any, verify: bool) -> None:
    writes(lambda p, i: TASK.demonstration(p, i) if i == 0 else f"{i}+1={i + 1}!")
    folder = step("verified-samples", init="init", problems=10, n=3, keep_per_problem=3, verify=verify)
    rows, record = read_rows(folder), folder.record()
    assert record.metrics["accept_rate"].value == pytest.approx(1 / 3)
    if verify:
        assert len(rows) == 10 and all(set(r) == {"prompt", "completion"} for r in rows)
    else:
        assert len(rows) == 30 and sum(r["right"] for r in rows) == 10
        assert record.metrics["kept_right"].value == pytest.approx(1 / 3)


def test_best_of_n_by_the_verifier_takes_the_right_one(step: Any, writes: Any) -> None:
    writes(lambda p, i: TASK.demonstration(p, i) if i == 2 and p.target % 2 else f"{i}+1={i + 1}!")
    folder = step("best-of-n", init="init", problems=20, n=4, by="verifier")
    rows, record = read_rows(folder), folder.record()
    odd = sum(int(r["prompt"].split("=")[1].rstrip(":")) % 2 for r in rows)
    assert len(rows) == 20 and sum(r["right"] for r in rows) == odd
    assert record.metrics["kept_right"].value == odd / 20
    assert record.metrics["kl_bound"].value == pytest.approx(np.log(4) - 3 / 4)


def test_best_of_n_by_a_reward_model_takes_the_highest_score(
    taught: RunStore, step: Any, writes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flopwise.infer.local import LocalEngine

    writes(lambda p, i: "1" * (1 + (p.target + i) % 3) + "!")
    monkeypatch.setattr(
        LocalEngine, "reward", lambda self, whole: (np.array([len(w) for w in whole], float), 7.0)
    )
    folder = step("best-of-n", init="init", reward="other", problems=6, n=3)
    assert all(r["completion"] == "111!" for r in read_rows(folder))
    by = {r["kind"]: r["flops"] for r in folder.record().spend.by}
    assert by["reward"] == 7.0


@pytest.mark.parametrize("method", ["distill-logits", "distill-on-policy"])
def test_killed_it_ends_with_the_same_weights(
    taught: RunStore, step: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    from flopwise.launch.worker import find
    from flopwise.posttrain.settings import METHODS

    roles: dict[str, Any] = {"init": "init"}
    if method == "distill-logits":
        roles["logits"] = step("teacher-logits", teacher="other", top_k=4).name
        more: dict[str, Any] = {}
    else:
        roles["teacher"], more = "other", {"max_tokens": 8, "on_policy": 0.6}
    whole = step(method, seed=9, **roles, **TRAIN, **more)
    for run in taught.root.iterdir():
        if run.is_dir() and run.name != whole.id:
            (tmp_path / run.name).symlink_to(run)
    again = RunStore(tmp_path).prepare(whole.kind, method, whole.spec, whole.roles, 9, whole.name)
    assert again.id == whole.id
    parents = {r: RunFolder(tmp_path / i) for r, i in whole.roles.items()}

    def carry_out(run: RunFolder, progress: Any) -> None:
        find(METHODS[method].run)(run, parents, progress)

    kill_and_finish(again, carry_out, (0.3, 0.7), monkeypatch)
    assert same_weights(whole, again)
    assert_alike(whole, again)
    assert json.dumps(whole.curve()) == json.dumps(again.curve())
