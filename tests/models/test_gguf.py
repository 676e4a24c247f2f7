"""GGUF files and shipped models: the logits of what was put in, whole folders or none, one clear line."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
gguf_package = pytest.importorskip("gguf")

from typer.testing import CliRunner  # noqa: E402

from flopwise.cli import command_line  # noqa: E402
from flopwise.data.tokenizer import Tokenizer  # noqa: E402
from flopwise.errors import FlopwiseError  # noqa: E402
from flopwise.infer.resolve import find_model  # noqa: E402
from flopwise.models import gguf, hf, lora, shipped  # noqa: E402
from flopwise.models.adapters import LoRA  # noqa: E402
from flopwise.models.config import ModelConfig  # noqa: E402
from flopwise.models.renaming import state_to_hf  # noqa: E402
from flopwise.models.transformer import Transformer  # noqa: E402

LETTERS = [chr(c) for c in range(0x21, 0x7F)] + ["Ġ", "Ċ"]
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *LETTERS, "Ġt", "he", "Ġthe", "12", "in"]
MERGES = ["Ġ t", "h e", "Ġt he", "1 2", "i n"]
CFG = ModelConfig(
    len(TOKENS), 64, 2, 4, 2, 96, max_seq_len=128, rope_theta=1e5, norm_eps=1e-5, tie_embeddings=True
)


def source(cfg: ModelConfig = CFG) -> Transformer:
    model = Transformer(cfg).initialise(1)
    rng = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1:
                p.copy_(1 + 0.2 * torch.randn(p.shape, generator=rng))
        if not cfg.tie_embeddings:
            model.head.weight.normal_(0, 0.1, generator=rng)
    return model


def turned(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows as llama.cpp keeps them: of each head unit 0, unit D/2, unit 1, unit D/2 + 1, ..."""
    D = len(weight) // heads
    order = [h * D + half * D // 2 + i for h in range(heads) for i in range(D // 2) for half in (0, 1)]
    return weight[order]


def write(path: Path, model: Transformer, kind: str = "F32", **changes) -> None:
    """A GGUF file of a model, tokenizer and all; `changes` are fields that replace or (None) drop others."""
    cfg = model.cfg
    writer = gguf_package.GGUFWriter(path, changes.pop("architecture", "llama"))
    numbers = {
        "block_count": cfg.n_layers, "context_length": cfg.max_seq_len, "embedding_length": cfg.d_model,
        "feed_forward_length": cfg.d_ff, "attention.head_count": cfg.n_heads,
        "attention.head_count_kv": cfg.n_kv_heads,
    }  # fmt: skip
    for name, value in numbers.items():
        writer.add_uint32(f"llama.{name}", value)
    writer.add_float32("llama.rope.freq_base", cfg.rope_theta)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", cfg.norm_eps)
    writer.add_string("tokenizer.ggml.model", changes.pop("tokenizer", "gpt2"))
    writer.add_string("tokenizer.ggml.pre", "smollm")
    writer.add_array("tokenizer.ggml.tokens", TOKENS)
    writer.add_array("tokenizer.ggml.token_type", [3] * 3 + [1] * (len(TOKENS) - 3))
    writer.add_array("tokenizer.ggml.merges", MERGES)
    for name, i in (("bos", 1), ("eos", 2), ("unknown", 0), ("padding", 2)):
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", i)
    writer.add_string("tokenizer.chat_template", "{{ messages[0]['content'] }}")
    there = {ours: name for name, ours in gguf.LAYER.items()} | {v: k for k, v in gguf.WHOLE.items()}
    for name, tensor in state_to_hf(model).items():
        parts = name.removesuffix(".weight").split(".")
        layer = f"blk.{parts[2]}." if parts[1:2] == ["layers"] else ""
        short = layer + there[".".join(parts[3:]) if layer else ".".join(parts)]
        values = tensor.numpy()
        if short.endswith(("attn_q", "attn_k")):
            values = turned(values, cfg.n_heads if short.endswith("q") else cfg.n_kv_heads)
        chosen = gguf_package.GGMLQuantizationType["F32" if values.ndim == 1 else kind]
        writer.add_tensor(f"{short}.weight", gguf_package.quantize(values, chosen), raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("cfg", [CFG, CFG.with_(tie_embeddings=False, n_kv_heads=4)])
def test_the_logits_are_those_of_what_was_put_in(cfg, tmp_path):
    model, ids = source(cfg), torch.arange(40)[None] % cfg.vocab_size
    write(tmp_path / "m.gguf", model)
    gguf.convert(tmp_path / "m.gguf", tmp_path / "out")
    again = hf.load(tmp_path / "out")
    assert again.cfg == cfg
    assert torch.allclose(again(ids), model(ids), atol=1e-5)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["eos_token_id"], config["pad_token_id"], config["bos_token_id"]) == (2, 2, 1)
    for coarse in ("Q8_0", "Q4_1"):
        write(tmp_path / f"{coarse}.gguf", model, coarse)
        gguf.convert(tmp_path / f"{coarse}.gguf", tmp_path / coarse)
        off = (hf.load(tmp_path / coarse)(ids) - model(ids)).abs().mean() / model(ids).abs().mean()
        assert 1e-4 < off < (0.02 if coarse == "Q8_0" else 0.3)


def test_transformers_reads_the_folder_and_digits_stay_single(tmp_path):
    transformers = pytest.importorskip("transformers")
    model, ids = source(), torch.arange(40)[None]
    write(tmp_path / "m.gguf", model)
    gguf.convert(tmp_path / "m.gguf", tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        assert torch.allclose(theirs(ids).logits, model(ids), atol=1e-4)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.tokenize("in the 12<|im_end|>") == ["in", "Ġthe", "Ġ", "1", "2", "<|im_end|>"]
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.chat_template.startswith("{{")
    ours = Tokenizer.load(tmp_path / "out")
    assert ours.encode("in the 12") == tokenizer("in the 12").input_ids and ours.eos_id == 2
    assert ours.vocab_size == len(TOKENS)
    ours.save(tmp_path)  # as with a model that is tuned from this one
    again = Tokenizer.load(tmp_path)
    assert again.chat_template == ours.chat_template == tokenizer.chat_template


@pytest.mark.parametrize(
    ("changes", "said"), [({"architecture": "gpt2"}, "KeyError|family"), ({"tokenizer": "llama"}, "byte BPE")]
)
def test_what_cannot_be_read_is_refused_and_leaves_nothing(changes, said, tmp_path):
    write(tmp_path / "m.gguf", source(), **changes)
    with pytest.raises(FlopwiseError, match=said):
        gguf.convert(tmp_path / "m.gguf", tmp_path / "out")
    (tmp_path / "cut.gguf").write_bytes((tmp_path / "m.gguf").read_bytes()[:3000])
    with pytest.raises(FlopwiseError, match="cannot be read as a GGUF"):
        gguf.convert(tmp_path / "cut.gguf", tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cut.gguf", "m.gguf"]


@pytest.fixture
def pinned(tmp_path, monkeypatch) -> Path:
    """A cache that holds the carrier of a small shipped model, `tiny`."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("FLOPWISE_CACHE", str(cache))
    write(tmp_path / "m.gguf", source())
    package = cache / "wheels" / "llm-tiny-1.0.whl"
    package.parent.mkdir(parents=True)
    with zipfile.ZipFile(package, "w") as z:
        z.write(tmp_path / "m.gguf", "llm_tiny/tiny.gguf")
    digest = hashlib.sha256(package.read_bytes()).hexdigest()
    wheel = shipped.ModelWheel("llm-tiny", "1.0", digest, 0.1, "MIT", "tiny", "llm_tiny/tiny.gguf")
    monkeypatch.setitem(shipped.MODELS, "tiny", wheel)
    return cache


def test_a_shipped_model_is_fetched_once_and_found_by_name(pinned, monkeypatch):
    with pytest.raises(FlopwiseError, match=r"fetch it with: flopwise get tiny"):
        find_model("tiny")
    result = CliRunner().invoke(command_line(), ["get", "tiny", "--json"])
    assert result.exit_code == 0, result.exception
    (row,) = json.loads(result.stdout)
    assert row["modality"] == "model" and row["cached"] and row["license"] == "MIT"
    found = find_model("tiny")
    assert found.folder == Path(row["path"]) and found.run is None
    assert torch.equal(hf.load(found.folder)(torch.arange(9)[None]), source()(torch.arange(9)[None]))
    monkeypatch.setattr(gguf, "convert", None)  # nothing is done again
    assert shipped.fetch("tiny") == found.folder
    assert [p.name for p in (pinned / "models").iterdir()] == ["tiny"]
    table = CliRunner().invoke(command_line(), ["get", "--list"]).stdout
    assert "smollm2-135m-instruct" in table


def test_a_conversion_that_fails_leaves_no_folder(pinned, monkeypatch):
    def stop(path, folder):
        folder.mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(gguf, "convert", stop)
    with pytest.raises(KeyboardInterrupt):
        shipped.fetch("tiny")
    assert not list((pinned / "models").iterdir()) and shipped.cached("tiny") is None


def test_merge_makes_a_folder_that_needs_no_base(pinned, tmp_path):
    base = shipped.fetch("tiny")
    model = lora.attach(hf.load(base), LoRA(4, 8.0), seed=0)
    with torch.no_grad():
        for linear in lora.adapted(model):
            linear.B.fill_(0.05)
    lora.save(model, tmp_path / "adapter", base)
    run = lambda *args: CliRunner().invoke(command_line(), ["merge", *map(str, args)])  # noqa: E731
    done = run(tmp_path / "adapter", "-o", tmp_path / "out")
    assert done.exit_code == 0, done.exception
    ids = torch.arange(20)[None]
    assert torch.allclose(hf.load(tmp_path / "out")(ids), model(ids), atol=1e-4)
    assert Tokenizer.load(tmp_path / "out").eos_id == 2
    assert find_model(tmp_path / "adapter").folder == tmp_path / "adapter"
    assert "holds a model already" in str(run(tmp_path / "adapter", "-o", tmp_path / "out").exception)
    assert "nothing to merge" in str(run(base, "-o", tmp_path / "b").exception)
    hf.save(source().initialise(7), tmp_path / "other")
    wrong = run(tmp_path / "adapter", "-o", tmp_path / "c", "--base", tmp_path / "other")
    assert "SHA-256" in str(wrong.exception) and not (tmp_path / "c").exists()
