"""Our tensors under the names of `transformers`, and back: fused matrices come apart and together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flopwise.models import families
from flopwise.models.config import ModelConfig
from flopwise.models.moe import MoE
from flopwise.models.transformer import Block, Transformer

MLP_NAMES = ("gate_proj", "up_proj", "down_proj")
MIXTRAL_NAMES = ("w1", "w3", "w2")


def state_to_hf(model: Transformer) -> dict[str, Tensor]:
    """Tensors under the names of the model's family in `transformers`: fused matrices taken apart."""
    cfg, kind = model.cfg, families.family(model.cfg)
    kv = cfg.n_kv_heads * cfg.head_dim
    out = {"model.embed_tokens.weight": model.embed.weight, "model.norm.weight": model.norm.weight}
    for i, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        at = f"model.layers.{i}."
        q, k, v = block.attn.qkv.weight.split([cfg.n_heads * cfg.head_dim, kv, kv])
        out |= {
            f"{at}self_attn.q_proj.weight": q, f"{at}self_attn.k_proj.weight": k,
            f"{at}self_attn.v_proj.weight": v, f"{at}self_attn.o_proj.weight": block.attn.out.weight,
            f"{at}input_layernorm.weight": block.attn_norm.weight,
            f"{at}post_attention_layernorm.weight": block.mlp_norm.weight,
        }  # fmt: skip
        if cfg.qk_norm:
            out |= {
                f"{at}self_attn.q_norm.weight": block.attn.q_norm.weight,
                f"{at}self_attn.k_norm.weight": block.attn.k_norm.weight,
            }
        if isinstance(block.mlp, MoE):
            out |= _experts_to_hf(block.mlp, at, kind)
        else:
            out |= _mlp_to_hf(f"{at}mlp.", block.mlp.gate_up.weight, block.mlp.down.weight)
    if model.n_scores:
        out["score.weight"] = model.head.weight
    elif not cfg.tie_embeddings:
        out["lm_head.weight"] = model.head.weight
    return {name: t.detach().contiguous() for name, t in out.items()}


def _mlp_to_hf(at: str, gate_up: Tensor, down: Tensor, names: Sequence[str] = MLP_NAMES) -> dict[str, Tensor]:
    parts = (*gate_up.chunk(2), down)
    return {f"{at}{name}.weight": part for name, part in zip(names, parts, strict=True)}


def _experts_to_hf(moe: MoE, at: str, kind: str) -> dict[str, Tensor]:
    """One layer's experts, each under its own name, as all versions of `transformers` read them."""
    at += "block_sparse_moe." if kind == "mixtral" else "mlp."
    names = MIXTRAL_NAMES if kind == "mixtral" else MLP_NAMES
    out = {f"{at}gate.weight": moe.router.weight}
    for e, (gate_up, down) in enumerate(zip(moe.gate_up, moe.down, strict=True)):
        out |= _mlp_to_hf(f"{at}experts.{e}.", gate_up, down, names)
    if kind in families.SIGMOID:
        out[f"{at}gate.e_score_correction_bias"] = moe.bias
    width = moe.cfg.d_model
    if moe.shared is not None:
        out |= _mlp_to_hf(f"{at}shared_experts.", moe.shared.gate_up.weight, moe.shared.down.weight)
    elif kind in families.SIGMOID or kind == "qwen2_moe":
        # These families always have a shared expert; one without units adds nothing.
        shared = "shared_expert." if kind == "qwen2_moe" else "shared_experts."
        out |= _mlp_to_hf(at + shared, moe.bias.new_empty(0, width), moe.bias.new_empty(width, 0))
    if kind == "qwen2_moe":
        out[f"{at}shared_expert_gate.weight"] = moe.bias.new_zeros(1, width)
    return out


def state_from_hf(cfg: ModelConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `state_to_hf`, for `Transformer.load_state_dict` (KeyError: a tensor is missing).

    Experts may be single matrices or stacked, as newer versions of `transformers` hold them.
    """
    out = {"embed.weight": tensors["model.embed_tokens.weight"], "norm.weight": tensors["model.norm.weight"]}
    for i in range(cfg.n_layers):
        at, here = f"model.layers.{i}.", f"blocks.{i}."
        out |= {
            f"{here}attn.qkv.weight": torch.cat([tensors[f"{at}self_attn.{p}_proj.weight"] for p in "qkv"]),
            f"{here}attn.out.weight": tensors[f"{at}self_attn.o_proj.weight"],
            f"{here}attn_norm.weight": tensors[f"{at}input_layernorm.weight"],
            f"{here}mlp_norm.weight": tensors[f"{at}post_attention_layernorm.weight"],
        }
        if cfg.qk_norm:
            out |= {f"{here}attn.{n}_norm.weight": tensors[f"{at}self_attn.{n}_norm.weight"] for n in "qk"}
        if cfg.has_experts(i):
            out |= _experts_from_hf(cfg, tensors, at, f"{here}mlp.")
        else:
            gate_up, down = _mlp_from_hf(tensors, f"{at}mlp.")
            out |= {f"{here}mlp.gate_up.weight": gate_up, f"{here}mlp.down.weight": down}
    if "score.weight" in tensors:
        out["head.weight"] = tensors["score.weight"]
    else:
        out["head.weight"] = out["embed.weight"] if cfg.tie_embeddings else tensors["lm_head.weight"]
    return out


def _mlp_from_hf(
    tensors: dict[str, Tensor], at: str, names: Sequence[str] = MLP_NAMES
) -> tuple[Tensor, Tensor]:
    gate, up, down = (tensors[f"{at}{name}.weight"] for name in names)
    return torch.cat([gate, up]), down


def _experts_from_hf(cfg: ModelConfig, tensors: dict[str, Tensor], at: str, here: str) -> dict[str, Tensor]:
    old_mixtral = f"{at}block_sparse_moe.gate.weight" in tensors
    at += "block_sparse_moe." if old_mixtral else "mlp."
    names = MIXTRAL_NAMES if old_mixtral else MLP_NAMES
    if f"{at}experts.gate_up_proj" in tensors:
        gate_up, down = tensors[f"{at}experts.gate_up_proj"], tensors[f"{at}experts.down_proj"]
    else:
        pairs = [_mlp_from_hf(tensors, f"{at}experts.{e}.", names) for e in range(cfg.n_experts)]
        gate_up, down = (torch.stack(parts) for parts in zip(*pairs, strict=True))
    router = tensors[f"{at}gate.weight"]
    out = {
        f"{here}router.weight": router, f"{here}gate_up": gate_up, f"{here}down": down,
        f"{here}bias": tensors.get(f"{at}gate.e_score_correction_bias", router.new_zeros(len(router))),
    }  # fmt: skip
    if cfg.d_shared:
        shared = _mlp_from_hf(tensors, f"{at}shared_experts.")
        out |= {f"{here}shared.gate_up.weight": shared[0], f"{here}shared.down.weight": shared[1]}
    return out
