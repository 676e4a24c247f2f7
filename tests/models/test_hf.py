"""Checkpoints: `transformers` loads them as they are; we load what is sound and say what is not."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402

from flopwise.data.tokenizer import train_bpe  # noqa: E402
from flopwise.errors import FlopwiseError  # noqa: E402
from flopwise.models import families, hf  # noqa: E402
from flopwise.models.config import ModelConfig  # noqa: E402
from flopwise.models.transformer import Transformer  # noqa: E402


def dial(**options) -> ModelConfig:
    return ModelConfig.from_width(32, 2, 128, **options)


SHAPES = {
    "dial": ModelConfig.from_width(64, 2, 512),
    "plain heads": ModelConfig(96, 32, 2, 4, 4, 80, max_seq_len=64),
    "one key head, tied": ModelConfig(300, 40, 3, 4, 1, 112, tie_embeddings=True),
    "wide heads, far base": ModelConfig(
        64, 32, 1, 2, 1, 48, rope_theta=5e5, norm_eps=1e-6, head_dim_override=24
    ),
    "window": dial(sliding_window=7),
    "normed queries and keys": dial(qk_norm=True, tie_embeddings=True),
    "both": dial(qk_norm=True, sliding_window=7),
    "experts": dial(expansion=4, granularity=4),
    "experts, window": dial(expansion=4, granularity=2, sliding_window=7, tie_embeddings=True),
    "one expert per token": dial(expansion=8),
    "one expert per token, window": dial(expansion=8, sliding_window=7),
    "experts, normed": dial(expansion=4, granularity=4, qk_norm=True, sliding_window=7),
    "one expert per token, normed": dial(expansion=8, qk_norm=True),
    "shared expert": dial(expansion=4, granularity=4, shared_experts=1),
    "balance by bias": dial(expansion=4, granularity=4, balance="bias"),
    "one expert per token, bias": dial(expansion=4, balance="bias"),
    "shared, bias, normed, window": dial(
        expansion=4, granularity=4, shared_experts=2, balance="bias", qk_norm=True, sliding_window=7
    ),
    "bias, normed": dial(expansion=4, granularity=4, balance="bias", qk_norm=True, tie_embeddings=True),
    "experts of odd width": ModelConfig.from_width(64, 1, 128, expansion=2, granularity=16, shared_experts=1),
    "dense layer first": dial(expansion=4, granularity=4).with_(n_dense_layers=1),
    "dense layer first, shared": dial(expansion=4, granularity=4, shared_experts=1, qk_norm=True).with_(
        n_dense_layers=1, routed_scale=2.5
    ),
}


@pytest.fixture(params=SHAPES.values(), ids=SHAPES.keys())
def model(request: pytest.FixtureRequest) -> Transformer:
    return noisy(Transformer(request.param))


def noisy(model: Transformer) -> Transformer:
    """All weights off their initial values, norms too."""
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=rng) * (0.3 if p.ndim == 1 else 0.2) + (p.ndim == 1))
        for moe in model.experts():
            if families.family(model.cfg) in families.SIGMOID:
                moe.bias.copy_(torch.randn(moe.bias.shape, generator=rng) * 0.3)
    return model.eval()


def ids(model: Transformer, B: int = 3, T: int = 60):
    return torch.randint(model.cfg.vocab_size, (B, T), generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def test_transformers_computes_the_same_logits(model, tmp_path):
    hf.save(model, tmp_path)
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert type(theirs).__name__ == families.CLASSES[families.family(model.cfg)] + "ForCausalLM"
    assert (model(ids(model)) - theirs.eval()(ids(model)).logits).abs().max() < 1e-4


@torch.no_grad()
def test_transformers_computes_the_same_scores(tmp_path):
    model = noisy(Transformer(SHAPES["dial"], n_scores=1))
    hf.save(model, tmp_path)
    theirs = transformers.LlamaForSequenceClassification.from_pretrained(tmp_path).eval()
    x = ids(model).clamp_min(2)  # 1 is the padding token
    assert (model(x)[:, -1] - theirs(x).logits).abs().max() < 1e-4
    # Right-padded: the score stands at the last real token.
    padded = torch.cat([x, torch.ones(len(x), 4, dtype=x.dtype)], 1)
    mask = (padded != 1).long()
    assert (model(x)[:, -1] - theirs(padded, attention_mask=mask).logits).abs().max() < 1e-4
    back = hf.load(tmp_path)
    assert back.n_scores == 1 and torch.equal(back(x), model(x))


def test_what_is_saved_loads_bit_for_bit(model, tmp_path):
    hf.save(model, tmp_path)
    back = hf.load(tmp_path)
    assert back.cfg == model.cfg
    for (name, a), (_, b) in zip(model.state_dict().items(), back.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


BASE = dict(
    vocab_size=100, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64,
)  # fmt: skip
EXPERTS = dict(num_experts_per_tok=2, moe_intermediate_size=24, norm_topk_prob=True)
MANY = dict(n_routed_experts=8, n_shared_experts=2, routed_scaling_factor=2.5, first_k_dense_replace=1)
OTHERS = {
    "Llama": {},
    "Mistral": dict(sliding_window=5),
    "Qwen3": dict(head_dim=16),
    "Mixtral": dict(num_local_experts=6, num_experts_per_tok=2),
    "Qwen2Moe": dict(num_experts=6, qkv_bias=False, shared_expert_intermediate_size=0, **EXPERTS)
    | {"norm_topk_prob": False},
    "Qwen3Moe": dict(num_experts=6, mlp_only_layers=[0], head_dim=16, **EXPERTS),
    "Glm4Moe": dict(partial_rotary_factor=1.0, head_dim=8, num_nextn_predict_layers=0, **MANY, **EXPERTS),
    "Dots1": dict(**MANY, **EXPERTS),
}


WINDOW = {"use_sliding_window": True, "sliding_window": 4}


@torch.no_grad()
@pytest.mark.parametrize("name", OTHERS)
def test_what_transformers_saves_loads_here(name, tmp_path):
    config = getattr(transformers, f"{name}Config")(**BASE | OTHERS[name])
    theirs = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    rng = torch.Generator().manual_seed(0)
    for key, t in theirs.state_dict().items():
        t.add_(torch.rand(t.shape, generator=rng) * (0.5 if "bias" in key else 0.1))
    theirs.save_pretrained(tmp_path / "one")
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    for folder in ("one", "shards"):
        model = hf.load(tmp_path / folder).eval()
        assert families.CLASSES[families.family(model.cfg)] == name
        assert (model(ids(model)) - theirs(ids(model)).logits).abs().max() < 1e-4


def test_load_balancing_is_that_of_transformers():
    """They count a token k times, which the coefficient that is written to `config.json` makes up for."""
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    model = Transformer(SHAPES["experts"]).initialise(0).train()
    logits = []
    for moe in model.experts():
        moe.router.weight.data.mul_(20)
        moe.router.register_forward_hook(lambda m, inputs, out: logits.append(out.detach()))
    model(ids(model))
    config = families.to_hf(model.cfg)
    theirs = [load_balancing_loss_func((x,), config["num_local_experts"], 4) for x in logits]
    ours = [moe.auxiliary.item() for moe in model.experts()]
    assert [x.item() * config["router_aux_loss_coef"] for x in theirs] == pytest.approx(ours, rel=1e-5)


def test_half_precision_weights_are_widened(tmp_path):
    model = noisy(Transformer(SHAPES["plain heads"]))
    hf.save(model, tmp_path)
    path = tmp_path / "model.safetensors"
    save_file({k: t.bfloat16() for k, t in load_file(path).items()}, path)
    assert hf.load(tmp_path).embed.weight.dtype == torch.float32


def test_auto_tokenizer_loads_ours(tmp_path):
    tokenizer = train_bpe(["the cat sat on the mat; 12+7=19, 3*4=12\n"] * 20, 300)
    hf.save(Transformer(ModelConfig(tokenizer.vocab_size, 16, 1, 2, 1, 16)), tmp_path, tokenizer)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "the mat sat; 4*3=12, 107?"
    assert theirs.encode(text) == tokenizer.encode(text)
    assert theirs.decode(theirs.encode(text)) == text
    assert (theirs.eos_token_id, theirs.pad_token_id) == (tokenizer.eos_id, tokenizer.pad_id)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    hf.save(Transformer(SHAPES["plain heads"]).initialise(0), tmp_path)
    return tmp_path


def one_line(folder: Path, match: str) -> None:
    with pytest.raises(FlopwiseError, match=match) as e:
        hf.load(folder)
    assert "\n" not in str(e.value) and len(str(e.value)) < 400


def edit(folder: Path, **changes) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v != "gone"}))


def test_missing_files(folder):
    one_line(folder / "nowhere", "no config.json")
    (folder / "model.safetensors").unlink()
    one_line(folder, "model.safetensors")


def test_damaged_weights(folder):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for damaged in (whole[:-100], whole[: len(whole) // 2], b"", b"\x00" * 64, b"\xff" * 64):
        path.write_bytes(damaged)
        one_line(folder, "fetch or train it again")


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "\x00", '"llama"'])
def test_damaged_config(folder, text):
    (folder / "config.json").write_text(text)
    one_line(folder, "config.json")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"model_type": "gpt2"}, "family 'gpt2'"),
        ({"model_type": "gone"}, "family None"),
        ({"attention_bias": True}, "biases"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rotary scaling 'llama3'"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"hidden_size": "gone"}, "hidden_size"),
        ({"hidden_size": "wide"}, "wide"),
        ({"hidden_size": -4}, "-4"),
        ({"num_attention_heads": 0}, "0"),
        ({"num_key_value_heads": 3}, "multiple"),
        ({"head_dim": 7}, "odd"),
        ({"rope_theta": "far"}, "far"),
        ({"intermediate_size": 81}, "mismatch"),
        ({"num_hidden_layers": 3}, "layers.2"),
        ({"vocab_size": 97}, "mismatch"),
    ],
)
def test_odd_config(folder, changes, match):
    edit(folder, **changes)
    one_line(folder, match)


@pytest.mark.parametrize(
    ("name", "changes", "match"),
    [
        ("Qwen3", {"layer_types": ["sliding_attention", "full_attention"]} | WINDOW, "some of its layers"),
        ("Qwen3", {"layer_types": "gone", "max_window_layers": 1} | WINDOW, "some of its layers"),
        ("Qwen2Moe", {"layer_types": "gone"} | WINDOW, "every other layer"),
        ("Qwen2Moe", {"qkv_bias": True}, "biases"),
        ("Qwen2Moe", {"qkv_bias": "gone"}, "biases"),
        ("Qwen2Moe", {"shared_expert_intermediate_size": 16}, "a gate"),
        ("Qwen3Moe", {"decoder_sparse_step": 2}, "between those with experts"),
        ("Qwen3Moe", {"mlp_only_layers": [1]}, "between those with experts"),
        ("Qwen3Moe", {"num_experts_per_tok": 7}, "7 experts per token of 6"),
        ("Qwen3Moe", {"num_experts": 0}, "need n_experts above 0"),
        ("Qwen3Moe", {"num_experts": 9}, "experts.6"),
        ("Qwen3Moe", {"moe_intermediate_size": 0}, "d_expert is 0"),
        ("Qwen3Moe", {"moe_intermediate_size": 25}, "mismatch"),
        ("Mixtral", {"num_local_experts": "gone"}, "num_local_experts"),
        ("Mixtral", {"num_local_experts": "six"}, "six"),
        ("Llama", {"num_experts_per_tok": 2}, "dense family"),
        ("Glm4Moe", {"partial_rotary_factor": 0.5}, "a part"),
        ("Glm4Moe", {"n_group": 4, "topk_group": 2, "partial_rotary_factor": 1.0}, "by groups"),
        ("Dots1", {"n_routed_experts": "gone"}, "n_routed_experts"),
        ("Dots1", {"first_k_dense_replace": 2}, "no layer"),
    ],
)
def test_families_with_parts_that_are_not_supported(name, changes, match, tmp_path):
    config = getattr(transformers, f"{name}Config")(**BASE | OTHERS[name])
    getattr(transformers, f"{name}ForCausalLM")(config).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    held = {k: v for k, v in json.loads(path.read_text()).items() if k != "rope_parameters"}
    path.write_text(json.dumps(held))
    edit(tmp_path, **changes)
    one_line(tmp_path, match)


def test_shards_outside_the_folder_are_refused(folder):
    index = folder / "model.safetensors.index.json"
    for name in ("../model.safetensors", "/etc/passwd", "a/b.safetensors"):
        index.write_text(json.dumps({"weight_map": {"lm_head.weight": name}}))
        one_line(folder, "not a plain file name")
    for text in ("{", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}'):
        index.write_text(text)
        one_line(folder, "model.safetensors.index.json")


def test_a_pickle_is_never_read(folder):
    trap = folder / "trap"

    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(trap),)

    (folder / "model.safetensors").unlink()
    torch.save({"a": Trap()}, folder / "pytorch_model.bin")
    one_line(folder, "model.safetensors")
    assert not trap.exists()


def test_a_failed_save_leaves_the_old_weights(folder, monkeypatch):
    before = (folder / "model.safetensors").read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError):
        hf.save(Transformer(SHAPES["plain heads"]).initialise(1), folder)
    assert (folder / "model.safetensors").read_bytes() == before
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]
