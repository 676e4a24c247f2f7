"""The data step of a ladder: all kinds in one vocabulary, splits that stay, one line where it cannot be."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tokenizers")

from flopwise.data import text
from flopwise.data.build import build, run_step, vocab_size
from flopwise.data.documents import TextStream
from flopwise.data.prepared import PreparedData, check_fits
from flopwise.data.sources import Document
from flopwise.data.vocabulary import vocabulary
from flopwise.errors import FlopwiseError
from flopwise.models.config import ModelConfig
from flopwise.records.store import RunStore


def words(seed: int, n: int = 120) -> str:
    return " ".join(f"word{i}" for i in np.random.default_rng(seed).integers(0, 400, n))


TEXTS = [words(i) for i in range(200)]


def write_lines(path: Path, texts: list[str]) -> str:
    with gzip.open(path, "wt") as out:
        out.writelines(json.dumps({"text": t}) + "\n" for t in texts)
    return str(path)


@pytest.fixture(scope="module")
def section(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("own")
    own = write_lines(folder / "mine.jsonl.gz", [*TEXTS, TEXTS[7].upper(), "", words(7)])
    images = folder / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    for i in range(30):
        pixels = rng.integers(0, 256, (4, 4), dtype=np.uint8)
        np.save(images / f"{i}.npy", pixels)
    return {
        "sources": [
            {"corpus": "stdlib", "max_bytes": 150_000, "name": None, "options": {}},
            {"path": own, "corpus": None, "field": "text"},
            {"path": str(images), "modality": "image", "options": {"levels": 8}},
        ],
        "tokenizer": {"kind": "bpe", "vocab_size": 400, "path": None},
        "heldout_fraction": 0.1,
        "deduplicate": True,
    }


def run(root: Path, section: dict, seed: int = 0) -> Path:
    folder = RunStore(root).prepare("data", "corpus", section, {}, seed)
    (folder.path / ".text-left-by-a-kill.tmp").write_text("x")
    seen: list[float] = []
    run_step(folder, {}, seen.append)
    assert seen == sorted(seen) and 0 < seen[-1] < 1
    return folder.path


@pytest.fixture(scope="module")
def prepared(section, tmp_path_factory) -> PreparedData:
    return PreparedData(run(tmp_path_factory.mktemp("runs"), section))


def test_one_vocabulary_for_all(prepared, section):
    assert prepared.corpora == ["stdlib", "mine", "images"]
    assert prepared.vocab_size == vocab_size(section) == 408 and (prepared.eos_id, prepared.pad_id) == (0, 1)
    assert prepared.of_modality("text") == ["stdlib", "mine"] and prepared.of_modality("image") == ["images"]
    shown = prepared.mixture({"text": 0.5, "images": 0.5}).batch(0, 8, 16, seed=0)
    assert (shown[:4] < 400).all() and ((shown[4:] >= 400) | (shown[4:] == 0)).all()
    # Pixels and texts come back.
    assert prepared.raw("mine", prepared.heldout("mine", 64, 64)[0][0]) in " ".join(TEXTS)
    row = prepared.mixture({"images": 1.0}).batch(0, 1, 40, seed=0)[0]
    first = np.split(row, np.flatnonzero(row == 0))[1][1:]
    pixels = prepared.raw("images", first)
    assert pixels.shape == (4, 4) and (pixels == np.round((first - 400) * 255 / 7).reshape(4, 4)).all()


def test_entries_say_what_happened(prepared):
    mine = prepared.about["corpora"][1]
    assert mine["duplicates_removed"] == 2 and mine["skipped"]["empty"]["documents"] == 1
    assert mine["documents"] + mine["heldout_documents"] == 200
    train = sum(len(t) for t in TEXTS) - mine["bytes"]
    assert mine["bytes_per_token"] == mine["bytes"] / mine["tokens"]
    assert mine["heldout_bytes_per_token"] == pytest.approx(train / mine["heldout_tokens"])
    assert prepared.about["corpora"][2]["heldout_documents_copied"] == 0
    record = json.loads((prepared.path / "run.json").read_text())
    assert record["data"] == {
        "corpus": "stdlib+mine+images", "modality": "image+text", "tokens_seen": None,
        "tokens_unique": sum(e["tokens"] for e in prepared.about["corpora"]),
    }  # fmt: skip
    assert record["metrics"]["documents_skipped"]["value"] == 1
    assert record["metrics"]["duplicates_removed"]["value"] == 2
    assert not [p for p in prepared.path.iterdir() if p.name.startswith(".")]


def test_same_spec_same_bytes(prepared, section, tmp_path):
    again = run(tmp_path, section)
    names = {p.name for p in prepared.path.iterdir()} - {"run.json"}
    assert names == {p.name for p in again.iterdir()} - {"run.json"}
    for name in names:
        assert (again / name).read_bytes() == (prepared.path / name).read_bytes(), name


def held_out(texts: list[str], folder: Path, seed: int = 0, **options) -> set[str]:
    stream = TextStream("x", iter([Document(str(i), t) for i, t in enumerate(texts)]))
    part = text.read(stream, folder, seed=seed, heldout_fraction=0.1, **options)
    try:
        held, train = list(part.texts(held=True)), list(part.texts())
        assert part.n_documents(held=True) == len(held) and part.n_documents() == len(train)
        assert not set(held) & set(train)
        assert part.n_bytes() == sum(len(t.encode()) for t in train)
        return set(held)
    finally:
        part.close()


def test_the_split_does_not_depend_on_what_comes_after(tmp_path):
    few = held_out(TEXTS[:100], tmp_path)
    more = held_out(TEXTS, tmp_path)
    shuffled = held_out(TEXTS[::-1], tmp_path)
    assert few == more & set(TEXTS[:100]) and shuffled == more and 8 <= len(more) <= 34
    assert held_out(TEXTS, tmp_path, seed=1) != more
    assert not list(tmp_path.iterdir())


def test_twins_stay_on_one_side_even_when_kept(tmp_path):
    held = held_out([*TEXTS, *TEXTS], tmp_path, deduplicate=False)
    assert held == held_out(TEXTS, tmp_path)


def test_held_out_text_in_another_source_is_told(tmp_path):
    """Sources that share texts: what one holds out the other trains on."""
    own = {name: write_lines(tmp_path / f"{name}.jsonl.gz", TEXTS[:120]) for name in ("a", "b")}
    alone, copied = (
        build({"sources": [{"path": own[n]} for n in names], "heldout_fraction": 0.1}, tmp_path)["corpora"][0]
        for names in (("a",), ("a", "b"))
    )
    assert alone["heldout_ngram_overlap"] == 0 == alone["heldout_documents_copied"]
    assert copied["heldout_ngram_overlap"] == 0  # the same text lies on the same side in both
    own["c"] = write_lines(tmp_path / "c.jsonl.gz", [f"{t} and some more" for t in TEXTS[:120]])
    section = {"sources": [{"path": own["a"]}, {"path": own["c"]}], "heldout_fraction": 0.1}
    for entry in build(section, tmp_path)["corpora"]:
        assert entry["heldout_ngram_overlap"] > 0.5 and entry["heldout_documents_copied"] > 0


@pytest.mark.parametrize(
    ("n", "fraction", "held"), [(4, 0.01, 2), (4, 0.99, 2), (30, 0.001, 2), (30, 0.9999, 28)]
)
def test_some_are_always_held_out_and_some_trained_on(n, fraction, held):
    hashes = np.random.default_rng(0).integers(0, 2**64, n, dtype=np.uint64)
    kept = np.ones(n, dtype=bool)
    assert text.split(hashes, kept, fraction).sum() == held
    kept[: n - 3] = False
    with pytest.raises(FlopwiseError, match="3 documents of data are too few to hold some out"):
        text.split(hashes, kept, fraction)


def test_removed_documents_are_never_held_out():
    rng = np.random.default_rng(1)
    hashes, kept = rng.integers(0, 2**64, 500, dtype=np.uint64), rng.random(500) < 0.3
    for fraction in (1e-9, 0.1, 0.999999):
        held = text.split(hashes, kept, fraction)
        assert not (held & ~kept).any() and 2 <= held.sum() <= kept.sum() - 2


def config(vocab: int) -> ModelConfig:
    return ModelConfig.from_width(32, 1, vocab, 64)


def test_a_model_that_does_not_fit_is_told_so(prepared):
    check_fits(prepared, config(408))
    check_fits(prepared, config(512))  # rows to spare
    with pytest.raises(FlopwiseError, match=r"a vocabulary of 300, the data in .* have 408"):
        check_fits(prepared, config(300))
    with pytest.raises(FlopwiseError, match="another tokenizer made them"):
        check_fits(prepared, config(50_257))


def test_what_cannot_run_is_found_before(prepared, section, tmp_path):
    everything = dict.fromkeys(prepared.corpora, 1 / 3)
    prepared.check(everything, 9, 12, unique_tokens=400, model=config(408))
    for arguments, message in (
        (({"nope": 1.0}, 4, 12), "'nope' is unknown; there are text, image, stdlib, mine, images"),
        ((everything, 2, 12), "less than one row in a batch of 2"),
        ((everything, 3000, 12), "source images: a batch takes 1,000 rows of 12 tokens"),
        (({"images": 1.0}, 4, 32), "heldout-images: the longest document has 17 tokens, a window needs 33"),
        (({"mine": 1.0}, 4, 64, 60), "60 tokens (unique_tokens), a row needs 65"),
    ):
        with pytest.raises(FlopwiseError) as error:
            prepared.check(*arguments)
        assert message in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(FlopwiseError, match="have 408"):
        prepared.check(everything, 9, 12, model=config(64))
    damaged = run(tmp_path, section)
    shard = damaged / "train-mine-00000.bin"
    content = bytearray(shard.read_bytes())
    content[1001] ^= 4
    shard.write_bytes(content)
    with pytest.raises(FlopwiseError, match="train-mine is damaged"):
        PreparedData(damaged).check({"mine": 1.0}, 4, 16)


def test_data_without_text_have_no_tokenizer(section, tmp_path):
    only = {**section, "sources": section["sources"][2:]}
    assert vocab_size(only) == 10  # two special ids
    build(only, tmp_path)
    data = PreparedData(tmp_path)
    assert data.tokenizer is None and data.vocab_size == 10 and data.task is None
    assert not (tmp_path / "tokenizer.json").exists()
    with pytest.raises(FlopwiseError, match="prepared without a task"):
        data.problems("test")


def test_copies_among_held_out_images_are_told(tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(40):
        np.save(tmp_path / "images" / f"{i}.npy", np.full((4, 4), 80 * (i % 2), dtype=np.uint8))
    source = {"path": str(tmp_path / "images"), "modality": "image", "options": {"levels": 8}}
    (entry,) = build({"sources": [source], "heldout_fraction": 0.2}, tmp_path)["corpora"]
    assert entry["heldout_documents_copied"] == entry["heldout_documents"] == 8


def test_alike_sources_share_their_ids():
    def ranges(*sources: dict) -> list[tuple[tuple[str, ...], int, int]]:
        whole = vocabulary({"sources": sources, "tokenizer": {"kind": "byte"}})
        return [(r.sources, r.offset, r.size) for r in whole.ranges]

    image = {"modality": "image", "options": {"levels": 8}}
    assert ranges({"path": "a", **image}, {"path": "t.txt"}, {"path": "b", **image}, {"path": "u.txt"}) == [
        (("t", "u"), 0, 258),
        (("a", "b"), 258, 8),
    ]
    classes = {"modality": "image", "options": {"levels": 8, "label": True}}
    assert ranges({"path": "a", **classes}, {"path": "b", **classes}) == [(("a",), 2, 18), (("b",), 20, 18)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer": {"kind": "words"}}, "must be one of byte, bpe, hub"),
        ({"tokenizer": {"kind": "bpe", "vocab_size": 9}}, "vocab_size is 9, must be 258"),
        ({"sources": [{"corpus": "nothing"}]}, "'nothing' is unknown"),
        ({"sources": [{"path": "/nowhere/a.txt"}]}, "no file, folder or pattern"),
        ({"sources": [{"path": "x", "modality": "smell"}]}, "'smell' is unknown"),
        ({"sources": [{"corpus": "stdlib", "max_bytes": 100}]}, "too few to hold some out"),
    ],
)
def test_bad_sections_are_one_line_and_leave_nothing(section, tmp_path, changes, message):
    with pytest.raises(FlopwiseError, match=message) as error:
        build({**section, **changes}, tmp_path)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_the_size_of_the_vocabulary_needs_no_torch(section):
    code = """if True:
        import json, sys
        from flopwise.data.build import vocab_size
        import flopwise.data.prepared
        print(vocab_size(json.loads(sys.argv[1])), {"torch", "tokenizers", "duckdb"} & set(sys.modules))
    """
    command = [sys.executable, "-c", code, json.dumps(section)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert shown.split(maxsplit=1) == ["408", "set()\n"]
