"""GGUF files (llama.cpp's) of the Llama family to a folder in Hugging Face layout, weights in float32.

Two things are not as they seem in such a file: the rows of query and key heads are in the order in which
llama.cpp turns them (pairs side by side), and what splits text before the merges is a name only.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from flopwise.errors import FlopwiseError, MissingExtra
from flopwise.models import families
from flopwise.models.config import ModelConfig
from flopwise.records.folder import atomic_write

LAYER = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
"""Names of tensors, there and in `transformers`."""
CONTROL = (3, 4)
"""Kinds of token that are no text: control, and defined by the user (`gguf.TokenType`)."""


def convert(path: Path, folder: Path) -> None:
    """Write the model of a GGUF file as `config.json`, `model.safetensors` and a tokenizer's files.

    `folder` must not exist; it appears whole or not at all.

    Raises:
        FlopwiseError: another family, a tokenizer that is no byte-level BPE, or a damaged file.
        MissingExtra: the package `gguf` is not installed.
    """
    try:
        import gguf
    except ModuleNotFoundError as e:
        raise MissingExtra(e.name or "gguf", "train", "reading a GGUF file") from None
    from safetensors.numpy import save_file

    try:
        reader = gguf.GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
        cfg = _config(fields, {t.name for t in reader.tensors})
        tensors = {}
        for t in reader.tensors:
            if t.name != "rope_freqs.weight":
                values = gguf.dequantize(t.data, t.tensor_type).astype(np.float32, copy=False)
                tensors[_name(t.name)] = np.ascontiguousarray(_unturned(t.name, values, cfg))
        tokenizer = _tokenizer(fields)
    except (KeyError, ValueError, IndexError, TypeError, OSError, NotImplementedError) as e:
        raise FlopwiseError(f"{path} cannot be read as a GGUF model ({type(e).__name__}: {e!s:.100})") from e
    special = {n: fields.get(f"tokenizer.ggml.{n}_token_id") for n in ("bos", "eos", "padding")}
    ids = {f"{'pad' if n == 'padding' else n}_token_id": i for n, i in special.items() if i is not None}
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        atomic_write(temporary / "config.json", json.dumps(families.to_hf(cfg) | ids, indent=1))
        for name, content in tokenizer.items():
            atomic_write(temporary / name, content)
        save_file(tensors, temporary / "model.safetensors", metadata={"format": "pt"})
        os.rename(temporary, folder)
    finally:
        for left in temporary.glob("*"):
            left.unlink()
        if temporary.exists():
            temporary.rmdir()


def _config(fields: dict[str, Any], tensors: set[str]) -> ModelConfig:
    kind = fields["general.architecture"]
    if kind != "llama" or fields.get("llama.expert_count"):
        raise FlopwiseError(f"GGUF: family {kind!r:.40} cannot be loaded; only dense llama")
    if fields.get("llama.rope.scaling.type", "none") != "none" or "rope_freqs.weight" in tensors:
        raise FlopwiseError("GGUF: this model has rotary scaling, which is not supported")
    heads, width = fields["llama.attention.head_count"], fields["llama.embedding_length"]
    head_dim = fields.get("llama.rope.dimension_count", width // heads)
    return ModelConfig(
        vocab_size=len(fields["tokenizer.ggml.tokens"]), d_model=width, n_layers=fields["llama.block_count"],
        n_heads=heads, n_kv_heads=fields.get("llama.attention.head_count_kv", heads),
        d_ff=fields["llama.feed_forward_length"], max_seq_len=fields["llama.context_length"],
        rope_theta=float(fields.get("llama.rope.freq_base", 10_000.0)),
        norm_eps=float(f"{fields['llama.attention.layer_norm_rms_epsilon']:.6g}"),  # 9.99999975e-06
        tie_embeddings="output.weight" not in tensors,
        head_dim_override=None if head_dim * heads == width else head_dim,
    )  # fmt: skip


def _name(name: str) -> str:
    """What `transformers` calls a tensor.

    >>> _name("blk.3.ffn_up.weight"), _name("token_embd.weight")
    ('model.layers.3.mlp.up_proj.weight', 'model.embed_tokens.weight')
    """
    stem, kind = name.rsplit(".", 1)
    if kind != "weight":
        raise FlopwiseError(f"GGUF: tensor {name!r:.60} is not supported; linear layers have no biases here")
    if not stem.startswith("blk."):
        return f"{WHOLE[stem]}.weight"
    _, layer, part = stem.split(".")
    return f"model.layers.{int(layer)}.{LAYER[part]}.weight"


def _unturned(name: str, weight: np.ndarray, cfg: ModelConfig) -> np.ndarray:
    """Rows of query and key heads [heads D, d] with the halves that rotary positions pair up apart again."""
    part = name.split(".")[-2]
    if part not in ("attn_q", "attn_k"):
        return weight
    heads = cfg.n_heads if part == "attn_q" else cfg.n_kv_heads
    return weight.reshape(heads, -1, 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def _tokenizer(fields: dict[str, Any]) -> dict[str, str]:
    """Names and contents of the tokenizer's files."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    kind, splits = fields["tokenizer.ggml.model"], fields.get("tokenizer.ggml.pre", "default")
    if kind != "gpt2" or splits not in ("smollm", "gpt-2", "default"):
        raise FlopwiseError(f"GGUF: tokenizer {kind!r:.30}, {splits!r:.30} is not supported, only byte BPE")
    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]
    inner = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = [pre_tokenizers.Digits(individual_digits=True)] if splits == "smollm" else []
    inner.pre_tokenizer = pre_tokenizers.Sequence([*digits, level])
    inner.decoder = decoders.ByteLevel()
    kinds = fields["tokenizer.ggml.token_type"]
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind in CONTROL]
    inner.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False,
        "model_max_length": fields["llama.context_length"],
    }  # fmt: skip
    for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        if (i := fields.get(f"tokenizer.ggml.{theirs}_token_id")) is not None:
            config[f"{ours}_token"] = tokens[i]
    if template := fields.get("tokenizer.chat_template"):
        config["chat_template"] = template
    return {"tokenizer.json": inner.to_str(), "tokenizer_config.json": json.dumps(config, indent=1) + "\n"}
