"""The data step as a whole: splits, shards and checks, reproducible, read back by PreparedData."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tokenizers")

from flopwise.data import prepare
from flopwise.data.corpora import Corpus
from flopwise.data.prepare import PreparedData, run_step
from flopwise.data.sources import Document
from flopwise.data.tasks import countdown
from flopwise.errors import FlopwiseError
from flopwise.records.store import RunStore

SPEC = {
    "corpora": ["stdlib"], "max_chars": 300_000, "vocab_size": 300, "heldout_fraction": 0.1,
    "task": "countdown", "demonstrations": 300, "rl_problems": 100, "val_problems": 50, "test_problems": 80,
}  # fmt: skip


def run(root: Path, **changes) -> tuple[Path, list[float]]:
    folder = RunStore(root).prepare("data", "countdown", {**SPEC, **changes}, {}, 0)
    seen: list[float] = []
    run_step(folder, {}, seen.append)
    return folder.path, seen


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> PreparedData:
    path, progress = run(tmp_path_factory.mktemp("runs"))
    assert progress == sorted(progress) and progress[-1] < 1
    return PreparedData(path)


def test_sets_are_disjoint_and_clean(prepared):
    sets = {name: {p.key for p in prepared.problems(name)} for name in ("rl", "val", "test")}
    sets["demos"] = {countdown.Problem.parse(d.prompt).key for d in prepared.demos()}
    assert {name: len(keys) for name, keys in sets.items()} == {
        "rl": 100,
        "val": 50,
        "test": 80,
        "demos": 300,
    }
    assert len(set.union(*sets.values())) == 530
    for d in prepared.demos():
        assert countdown.verify(countdown.Problem.parse(d.prompt), d.completion)
    assert (
        prepared.about["contamination"]["n_hits"] == 0 and prepared.about["contamination"]["n_prompts"] >= 300
    )


def test_shards_hold_the_demonstrations_and_the_text(prepared):
    tok = prepared.tokenizer
    batch = prepared.mixture({"task": 1.0}).batch(0, 2, 64, seed=0)
    lines = tok.decode_batch(np.split(batch[0], np.flatnonzero(batch[0] == tok.eos_id)))
    whole = {d.prompt + d.completion for d in prepared.demos()}
    assert len(lines) > 1 and all(line in whole for line in lines[1:-1])
    mix = prepared.mixture({"text": 0.75, "task": 0.25})
    assert mix.batch(3, 16, 32, seed=1).shape == (16, 33)
    entry = prepared.about["corpora"][0]
    assert mix.tokens_unique == entry["tokens"] + prepared.about["demonstration_tokens"]
    assert entry["bytes_per_token"] > 1.2
    assert batch.max() < tok.vocab_size


def test_heldout_text_is_not_in_training(prepared):
    rows, docs = prepared.heldout("stdlib", n_tokens=4000, seq_len=64)
    entry = prepared.about["corpora"][0]
    assert rows.shape[1] == 65 and len(rows) == len(docs) <= 4000 // 64
    assert 2 <= len(set(docs.tolist())) <= entry["heldout_documents"]
    train = prepare.shards.Shards(prepared.path / "train-stdlib").parts[0].tobytes()
    assert not any(row.astype("<u2").tobytes() in train for row in rows)
    assert entry["heldout_ngram_overlap"] < 0.2


def test_record_says_what_was_made(prepared):
    record = json.loads((prepared.path / "run.json").read_text())
    assert record["status"] == "done" and record["data"]["corpus"] == "stdlib"
    assert record["metrics"]["train_tokens"]["value"] == record["data"]["tokens_unique"]
    assert record["metrics"]["contamination_hits"]["value"] == 0
    assert record["spend"]["tokens"] is None and record["spend"]["device_s"] > 0


def test_same_spec_same_bytes(prepared, tmp_path):
    again, _ = run(tmp_path)
    names = {p.name for p in prepared.path.iterdir()} - {"run.json"}
    assert names == {p.name for p in again.iterdir()} - {"run.json"} and len(names) > 10
    for name in names:
        assert (again / name).read_bytes() == (prepared.path / name).read_bytes(), name


def test_near_duplicates_and_leaks_in_text(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    texts = [" ".join(f"word{i}" for i in rng.integers(0, 500, 400)) for _ in range(40)]
    problems, _ = prepare.make_problems(SPEC, 0)

    def corpus(*extra: str):
        documents = [Document(f"x/{i}", text) for i, text in enumerate([*texts, *texts[:5], *extra])]
        return lambda *args, **kwargs: ([Corpus("stdlib", documents, "none", "test")], "a note")

    monkeypatch.setattr(prepare.corpora, "load_with_fallback", corpus())
    path, _ = run(tmp_path)
    about = PreparedData(path).about
    assert about["corpora"][0]["duplicates_removed"] == 5 and about["note"] == "a note"
    leaks = [f"leaked: {p.prompt} and words {i}" for i, p in enumerate(problems["test"])]
    monkeypatch.setattr(prepare.corpora, "load_with_fallback", corpus(*leaks))
    with pytest.raises(FlopwiseError, match="give held-out problems away"):
        run(tmp_path, max_chars=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "chess"}, "must be one of countdown"),
        ({"corpora": ["nope"]}, "'nope' is unknown"),
        ({"max_chars": 10}, "too few to hold some out"),
        ({"rl_problems": 13_000}, "13,301 exist"),
        ({"vocab_size": 100}, "258 to 1,000,000"),
    ],
)
def test_bad_specs_are_one_line(tmp_path, changes, message):
    with pytest.raises(FlopwiseError, match=message):
        run(tmp_path, **changes)


def test_unknown_names_and_damaged_folders(prepared, tmp_path):
    for call in (
        lambda: prepared.mixture({"nope": 1.0}),
        lambda: prepared.heldout("../x", 10, 8),
        lambda: prepared.problems("../../etc/passwd"),
    ):
        with pytest.raises(FlopwiseError, match="there are"):
            call()
    with pytest.raises(FlopwiseError, match="run its step again"):
        PreparedData(tmp_path)
    (tmp_path / "about.json").write_text("[]")
    with pytest.raises(FlopwiseError, match="run its step again"):
        PreparedData(tmp_path)
