"""Hugging Face datasets and tokenizers: saved ones are read, absent ones are one clear line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from flopwise.data import hub
from flopwise.data.build import build, vocab_size
from flopwise.data.documents import open_text
from flopwise.data.files import Skipped
from flopwise.data.prepared import PreparedData
from flopwise.data.tokenizer import ByteTokenizer, Tokenizer, hub_tokenizer, train_bpe
from flopwise.errors import FlopwiseError

TEXTS = [f"text {i} " + " ".join(f"w{i * 3 + k}" for k in range(20)) for i in range(50)]


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def test_what_means_a_dataset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub.is_id("hub:org/name") and hub.is_id("org/name") and hub.is_id("hub:name")
    assert not any(map(hub.is_id, ["name", "org/name.jsonl", "a/b/c", "/org/name", "./org", "org/*"]))
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert not hub.is_id("org/name") and not hub.is_saved("org/name")
    (tmp_path / "org" / "name" / "state.json").write_text("{}")
    assert hub.is_saved("org/name")


def test_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(FlopwiseError, match=r"needs datasets.*pip install 'flopwise\[hub\]'"):
        list(open_text({"path": "org/name"}).documents)


def test_saved_datasets_are_read(tmp_path, offline):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"text": [*TEXTS, "", None], "n": [*range(50), 1, 2]})
    rows.save_to_disk(str(tmp_path / "one"))
    skipped = Skipped()
    found = list(hub.read(str(tmp_path / "one"), "text", {}, skipped))
    assert [d.text for d in found] == TEXTS and skipped.counts == {"empty": 2}
    splits = datasets.DatasetDict({"train": rows, "test": rows.select(range(5))})
    splits.save_to_disk(str(tmp_path / "splits"))
    path = str(tmp_path / "splits")
    assert len(list(hub.read(path, "text", {}, Skipped()))) == 50
    assert len(list(hub.read(path, "text", {"split": "test"}, Skipped()))) == 5
    for field, options, message in (
        ("text", {"split": "nope"}, "no split 'nope'; it has train, test"),
        ("body", {}, "no field, first .*no 'body' among text, n"),
        ("n", {}, "no text in 52 rows"),
        ("text", {"levels": 3}, "option 'levels' .* there are split, config"),
    ):
        with pytest.raises(FlopwiseError, match=message) as error:
            list(hub.read(path, field, options, Skipped()))
        assert "\n" not in str(error.value)
    with pytest.raises(FlopwiseError, match="which does not answer"):
        list(hub.read("org/name", "text", {}, Skipped()))
    (tmp_path / "one" / "dataset_info.json").write_text("{")
    with pytest.raises(FlopwiseError, match="cannot be opened"):
        list(hub.read(str(tmp_path / "one"), "text", {}, Skipped()))


@pytest.fixture
def foreign(tmp_path) -> Path:
    """A tokenizer as others save it: its end-of-text token has another name and stands last."""
    pytest.importorskip("tokenizers")
    from tokenizers import Tokenizer as HF
    from tokenizers import decoders, models, pre_tokenizers, trainers

    inner = HF(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        ),
    )
    inner.add_special_tokens(["<|endoftext|>"])
    folder = tmp_path / "foreign"
    folder.mkdir()
    inner.save(str(folder / "tokenizer.json"))
    return folder


def test_foreign_tokenizers_keep_their_ids_and_special_tokens(foreign, tmp_path):
    own = hub_tokenizer(str(foreign))
    assert own.eos_id == own.pad_id == own.vocab_size - 1  # nothing else pads
    assert own.decode(own.encode("w3 <|endoftext|> w4")) == "w3 <|endoftext|> w4"
    assert own.eos_id not in own.encode("w3 <|endoftext|> w4")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
    section = {
        "sources": [{"path": str(tmp_path / "a.jsonl")}],
        "tokenizer": {"kind": "hub", "path": str(foreign / "tokenizer.json")},
    }
    (tmp_path / "data").mkdir()
    build(section, tmp_path / "data")
    data = PreparedData(tmp_path / "data")
    assert data.vocab_size == own.vocab_size == vocab_size(section) and data.eos_id == own.eos_id
    assert (data.tokenizer.eos_id, data.tokenizer.pad_id) == (own.eos_id, own.pad_id)
    row = data.mixture({"a": 1.0}).batch(0, 1, 200, 0)[0]
    documents = np.split(row, np.flatnonzero(row == data.eos_id))
    assert any(data.tokenizer.decode(d.tolist()) in TEXTS for d in documents)


def test_special_tokens_are_those_the_files_name(foreign):
    (foreign / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": {"content": "text"}, "pad_token": "<|endoftext|>"})
    )
    found = hub_tokenizer(str(foreign))
    assert found.eos == "text" and found.pad == "<|endoftext|>"
    text = (foreign / "tokenizer.json").read_text().replace("<|endoftext|>", "<|other|>")
    (foreign / "tokenizer.json").write_text(text)
    (foreign / "tokenizer_config.json").unlink()
    with pytest.raises(FlopwiseError, match="no end-of-text token is known"):
        hub_tokenizer(str(foreign))


def test_hub_ids_without_a_network_are_one_quick_line(offline):
    pytest.importorskip("huggingface_hub")
    with pytest.raises(FlopwiseError, match="the hub does not answer; check the network") as error:
        vocab_size({"sources": [{"corpus": "stdlib"}], "tokenizer": {"kind": "hub", "path": "org/name"}})
    assert "\n" not in str(error.value)
    with pytest.raises(FlopwiseError, match="no hub id"):
        hub_tokenizer("not an id")


def test_bytes_are_a_tokenizer_that_transformers_reads(tmp_path):
    ours = ByteTokenizer()
    ours.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert isinstance(loaded, ByteTokenizer) and loaded.vocab_size == 258
    text = "ünï ♞\n\x00 12,5"
    assert loaded.decode(ours.encode(text)) == text
    assert [ids.tolist() for ids in ours.encode_arrays([text, "a"])] == ours.encode_batch([text, "a"])
    assert ours.decode([0, 99, 1]) == "a"
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    assert theirs.encode(text, add_special_tokens=False) == ours.encode(text)
    assert theirs.decode(ours.encode(text)) == text and len(theirs) == 258
    assert (theirs.eos_token_id, theirs.pad_token_id) == (0, 1)


def test_large_vocabularies_are_trained_and_stored_wide(tmp_path):
    pytest.importorskip("tokenizers")
    assert train_bpe(TEXTS, 70_000).vocab_size < 5000  # little text gives few merges
    section = {"sources": [{"corpus": "stdlib", "max_bytes": 50_000}]}
    assert vocab_size({**section, "tokenizer": {"kind": "bpe", "vocab_size": 70_000}}) == 70_000
    (tmp_path / "d").mkdir()
    build({**section, "tokenizer": {"kind": "bpe", "vocab_size": 70_000}}, tmp_path / "d")
    assert json.loads((tmp_path / "d" / "train-stdlib.json").read_text())["dtype"] == "uint32"
