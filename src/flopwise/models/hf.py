"""Hugging Face layout in and out: `config.json`, `model.safetensors`, tokenizer. Nothing is unpickled."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from flopwise.errors import FlopwiseError
from flopwise.models.config import ModelConfig
from flopwise.models.transformer import Block, Transformer
from flopwise.records.folder import atomic_write


class SavesItself(Protocol):
    """A tokenizer that can write its files."""

    def save(self, folder: Path) -> None: ...


def state_to_hf(model: Transformer) -> dict[str, Tensor]:
    """Tensors under the names of `transformers`' Llama: fused matrices taken apart."""
    cfg = model.cfg
    kv = cfg.n_kv_heads * cfg.head_dim
    out = {"model.embed_tokens.weight": model.embed.weight, "model.norm.weight": model.norm.weight}
    for i, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        q, k, v = block.attn.qkv.weight.split([cfg.n_heads * cfg.head_dim, kv, kv])
        gate, up = block.mlp.gate_up.weight.chunk(2)
        parts = {
            "self_attn.q_proj": q, "self_attn.k_proj": k, "self_attn.v_proj": v,
            "self_attn.o_proj": block.attn.out.weight,
            "mlp.gate_proj": gate, "mlp.up_proj": up, "mlp.down_proj": block.mlp.down.weight,
            "input_layernorm": block.attn_norm.weight, "post_attention_layernorm": block.mlp_norm.weight,
        }  # fmt: skip
        out |= {f"model.layers.{i}.{name}.weight": tensor for name, tensor in parts.items()}
    if model.n_scores:
        out["score.weight"] = model.head.weight
    elif not cfg.tie_embeddings:
        out["lm_head.weight"] = model.head.weight
    return {name: t.detach().contiguous() for name, t in out.items()}


def state_from_hf(cfg: ModelConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `state_to_hf`, for `Transformer.load_state_dict` (KeyError: a tensor is missing)."""
    out = {"embed.weight": tensors["model.embed_tokens.weight"], "norm.weight": tensors["model.norm.weight"]}
    for i in range(cfg.n_layers):

        def get(name: str, layer: int = i) -> Tensor:
            return tensors[f"model.layers.{layer}.{name}.weight"]

        out |= {
            f"blocks.{i}.attn.qkv.weight": torch.cat([get(f"self_attn.{p}_proj") for p in "qkv"]),
            f"blocks.{i}.attn.out.weight": get("self_attn.o_proj"),
            f"blocks.{i}.mlp.gate_up.weight": torch.cat([get("mlp.gate_proj"), get("mlp.up_proj")]),
            f"blocks.{i}.mlp.down.weight": get("mlp.down_proj"),
            f"blocks.{i}.attn_norm.weight": get("input_layernorm"),
            f"blocks.{i}.mlp_norm.weight": get("post_attention_layernorm"),
        }
    if "score.weight" in tensors:
        out["head.weight"] = tensors["score.weight"]
    else:
        out["head.weight"] = out["embed.weight"] if cfg.tie_embeddings else tensors["lm_head.weight"]
    return out


def save(model: Transformer, folder: Path, tokenizer: SavesItself | None = None) -> None:
    """Write a model so that `transformers` loads it as it is; the weights are renamed into place last."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = model.cfg.to_hf("LlamaForSequenceClassification" if model.n_scores else "LlamaForCausalLM")
    if model.n_scores:
        # Without a padding id the sequence classifier of `transformers` cannot find the last token.
        config |= {
            "id2label": {str(i): f"SCORE_{i}" for i in range(model.n_scores)},
            "num_labels": model.n_scores,
        }
        config["pad_token_id"] = 1
    atomic_write(folder / "config.json", json.dumps(config, indent=1))
    if tokenizer is not None:
        tokenizer.save(folder)
    temporary = folder / f".model.safetensors.{os.getpid()}.tmp"
    try:
        save_file(state_to_hf(model), temporary, metadata={"format": "pt"})
        os.replace(temporary, folder / "model.safetensors")
    finally:
        temporary.unlink(missing_ok=True)


def load(folder: Path) -> Transformer:
    """Read a Llama-family folder, sharded or not.

    Raises:
        FlopwiseError: a file is missing or damaged, the family is not supported, or shapes disagree with
            the config.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        cfg = ModelConfig.from_hf(_read_json(folder, "config.json"))
        tensors: dict[str, Tensor] = {}
        for path in _weight_files(folder):
            tensors |= load_file(path)
        scores = tensors["score.weight"].shape[0] if "score.weight" in tensors else 0
        model = Transformer(cfg, n_scores=scores)
        model.load_state_dict(state_from_hf(cfg, {name: t.float() for name, t in tensors.items()}))
    except KeyError as e:
        raise FlopwiseError(f"model {folder}: {e.args[0]!r} is missing from its files") from e
    except (SafetensorError, OSError, RuntimeError) as e:
        lines = str(e).splitlines()
        reason = next((line.strip() for line in lines if "mismatch" in line), lines[0])[:160]
        raise FlopwiseError(
            f"model {folder}: weights cannot be read ({reason}); fetch or train it again"
        ) from e
    return model


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    try:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FlopwiseError(
            f"model {folder}: there is no {name}; give a folder in Hugging Face layout"
        ) from None
    except (ValueError, OSError) as e:
        raise FlopwiseError(f"model {folder}: {name} cannot be read ({type(e).__name__})") from e
    if not isinstance(content, dict):
        raise FlopwiseError(f"model {folder}: {name} holds a {type(content).__name__}, must be a JSON object")
    return content


def _weight_files(folder: Path) -> list[Path]:
    """One file, or the shards of an index; names that point outside the folder are refused."""
    index = "model.safetensors.index.json"
    if not (folder / index).exists():
        return [folder / "model.safetensors"]
    shards = _read_json(folder, index).get("weight_map")
    if not isinstance(shards, dict):
        raise FlopwiseError(f"model {folder}: {index} has no weight_map; fetch the model again")
    names = list(dict.fromkeys(shards.values()))
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise FlopwiseError(f"model {folder}: {index}: {name!r:.80} is not a plain file name; not read")
    return [folder / name for name in names]
