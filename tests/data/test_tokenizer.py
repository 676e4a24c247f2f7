"""The tokenizer: reversible on any text, digits and signs single, readable by transformers."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("tokenizers")

from flopwise.data.tasks.countdown import demonstration, generate
from flopwise.data.tokenizer import EOS, PAD, Tokenizer, train_bpe
from flopwise.errors import FlopwiseError

PROSE = [
    "In the beginning God created the heaven and the earth. And the earth was without form, 1611.\n"
] * 50


@pytest.fixture(scope="module")
def tok() -> Tokenizer:
    return train_bpe(PROSE, 300)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=("Cs",))))
def test_round_trip(text):
    tok = _shared()
    assert tok.decode(tok.encode(text)) == text


def _shared(cache: list[Tokenizer] = []) -> Tokenizer:  # noqa: B006
    if not cache:
        cache.append(train_bpe(PROSE, 300))
    return cache[0]


def test_every_character_of_the_task_is_one_token(tok):
    for problem in generate(50, 0):
        text = problem.prompt + demonstration(problem, 0)
        assert len(tok.encode(text)) == len(text)
        assert tok.encode(problem.prompt) + tok.encode(demonstration(problem, 0)) == tok.encode(text)


def test_special_tokens_cannot_be_smuggled_in(tok):
    ids = tok.encode(f"a{EOS}b{PAD}")
    assert tok.eos_id not in ids and tok.pad_id not in ids
    assert tok.decode([*ids, tok.eos_id, tok.pad_id]) == f"a{EOS}b{PAD}"
    assert (tok.eos_id, tok.pad_id) == (0, 1)


def test_batches_agree_with_single_texts(tok):
    texts = ["", "God said", "7 3 3=24:", "ünï ♞"]
    assert tok.encode_batch(texts) == [tok.encode(t) for t in texts]
    assert tok.decode_batch(tok.encode_batch(texts)) == texts


def test_training_is_deterministic_and_merges(tok):
    assert train_bpe(PROSE, 300).encode(PROSE[0]) == tok.encode(PROSE[0])
    assert tok.vocab_size == 300 and len(tok.encode(PROSE[0])) < len(PROSE[0]) / 1.5


def test_files_load_in_transformers(tok, tmp_path):
    transformers = pytest.importorskip("transformers")
    tok.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    for text in ["God created 12 things , and 7*3=21!", "  two  spaces\n"]:
        assert theirs.encode(text, add_special_tokens=False) == tok.encode(text)
        assert theirs.decode(tok.encode(text)) == text
    assert (theirs.eos_token_id, theirs.pad_token_id) == (tok.eos_id, tok.pad_id)
    ours = Tokenizer.load(tmp_path)
    assert ours.encode(PROSE[0]) == tok.encode(PROSE[0]) and ours.vocab_size == len(theirs)


@pytest.mark.parametrize("size", [0, 257, 1_000_001])
def test_vocabulary_out_of_range(size):
    with pytest.raises(FlopwiseError, match=r"vocab_size .* 258 to 1,000,000"):
        train_bpe(PROSE, size)


@pytest.mark.parametrize("content", [None, "", "{", json.dumps({"model": 1}), "\0\0"])
def test_damaged_files_give_one_line(tmp_path, content):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(FlopwiseError, match="cannot be read") as error:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(error.value)
