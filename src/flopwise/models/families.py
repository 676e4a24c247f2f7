"""The families of `transformers` whose mathematics are ours: `config.json` in and out. Imports no torch.

| ours                                         | family                                   |
|----------------------------------------------|------------------------------------------|
| dense                                        | `llama`; `mistral` with a window         |
| dense, qk_norm                               | `qwen3`                                  |
| experts, softmax scores                      | `mixtral`, or `qwen2_moe` (see `family`) |
| experts, softmax scores, qk_norm             | `qwen3_moe`                              |
| experts, sigmoid scores (shared, bias)       | `glm4_moe`                               |
| experts, sigmoid scores (shared, bias), qk_norm | `dots1`                               |
"""

from __future__ import annotations

from typing import Any

from flopwise.errors import FlopwiseError
from flopwise.models.config import ModelConfig

CLASSES = {
    "llama": "Llama", "mistral": "Mistral", "qwen3": "Qwen3", "mixtral": "Mixtral", "qwen2_moe": "Qwen2Moe",
    "qwen3_moe": "Qwen3Moe", "glm4_moe": "Glm4Moe", "dots1": "Dots1",
}  # fmt: skip
"""What the names of a family's classes begin with."""
QK_NORM = ("qwen3", "qwen3_moe", "dots1")
"""Families that always normalise queries and keys; `glm4_moe` says so in its configuration."""
SIGMOID = ("glm4_moe", "dots1")
TRAINING = ("balance", "aux_loss", "router_z_loss", "bias_rate")
"""What only training needs: kept under a name of our own in `config.json`, which `transformers` ignores."""
DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"max_position_embeddings": 2048},
    "mistral": {"max_position_embeddings": 131072, "sliding_window": 4096},
    "qwen3": {"max_position_embeddings": 32768, "head_dim": 128, "max_window_layers": 28},
    "mixtral": {"max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 1e6},
    "qwen2_moe": {
        "max_position_embeddings": 32768, "qkv_bias": True, "shared_expert_intermediate_size": 5632,
    },
    "qwen3_moe": {"max_position_embeddings": 32768},
    "glm4_moe": {
        "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "partial_rotary_factor": 0.5,
        "first_k_dense_replace": 1, "norm_topk_prob": True,
    },
    "dots1": {"max_position_embeddings": 2048, "sliding_window": 4096, "max_window_layers": 62},
}  # fmt: skip
"""What a family means by a field that its `config.json` leaves out, where that is not what most mean."""


def family(cfg: ModelConfig) -> str:
    """`model_type` of the family that computes what this model computes.

    `mixtral` always divides the weights by their sum and has experts in every layer; what it cannot hold goes
    into a `qwen2_moe` whose shared expert has no units.
    """
    if not cfg.n_experts:
        return "qwen3" if cfg.qk_norm else "mistral" if cfg.sliding_window else "llama"
    if cfg.scoring == "sigmoid":
        return "dots1" if cfg.qk_norm else "glm4_moe"
    if cfg.qk_norm:
        return "qwen3_moe"
    return "mixtral" if cfg.norm_topk and not cfg.n_dense_layers else "qwen2_moe"


def to_hf(cfg: ModelConfig, head: str = "ForCausalLM") -> dict[str, Any]:
    """The `config.json` that `transformers` reads for this shape; `head` ends the name of the class."""
    kind = family(cfg)
    out = {
        "architectures": [CLASSES[kind] + head],
        "model_type": kind,
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.d_model,
        "intermediate_size": cfg.d_ff,
        "num_hidden_layers": cfg.n_layers,
        "num_attention_heads": cfg.n_heads,
        "num_key_value_heads": cfg.n_kv_heads,
        "head_dim": cfg.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": cfg.max_seq_len,
        "rms_norm_eps": cfg.norm_eps,
        "rope_theta": cfg.rope_theta,
        "rope_scaling": None,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": cfg.tie_embeddings,
        "torch_dtype": "float32",
    }
    window = cfg.sliding_window
    if kind not in ("llama", "glm4_moe"):
        out["sliding_window"] = window
    if kind in ("qwen3", "qwen2_moe", "qwen3_moe", "dots1"):
        out |= {
            "use_sliding_window": window is not None,
            "max_window_layers": 0 if window else cfg.n_layers,
            "layer_types": ["sliding_attention" if window else "full_attention"] * cfg.n_layers,
        }
    return out | _experts_to_hf(cfg, kind) if cfg.n_experts else out


def _experts_to_hf(cfg: ModelConfig, kind: str) -> dict[str, Any]:
    out: dict[str, Any] = {
        "num_experts_per_tok": cfg.experts_per_token,
        "moe_intermediate_size": cfg.d_expert,
        "norm_topk_prob": cfg.norm_topk,
        # Theirs counts each token k times.
        "router_aux_loss_coef": cfg.aux_loss / cfg.experts_per_token if cfg.balance == "aux" else 0.0,
        "flopwise": {name: getattr(cfg, name) for name in TRAINING},
    }
    if cfg.d_expert % 8 or cfg.d_model % 8:
        # Their grouped products want rows of a multiple of 16 bytes: 8 numbers in half precision.
        out["experts_implementation"] = "eager"
    if kind == "mixtral":
        del out["moe_intermediate_size"], out["norm_topk_prob"]
        return out | {"num_local_experts": cfg.n_experts, "intermediate_size": cfg.d_expert}
    if kind in ("qwen2_moe", "qwen3_moe"):
        out |= {
            "num_experts": cfg.n_experts, "decoder_sparse_step": 1,
            "mlp_only_layers": list(range(cfg.n_dense_layers)),
        }  # fmt: skip
        return out | (
            {"qkv_bias": False, "shared_expert_intermediate_size": 0} if kind == "qwen2_moe" else {}
        )
    out |= {
        "n_routed_experts": cfg.n_experts, "n_shared_experts": cfg.d_shared // cfg.d_expert,
        "first_k_dense_replace": cfg.n_dense_layers, "routed_scaling_factor": cfg.routed_scale,
        "n_group": 1, "topk_group": 1,
    }  # fmt: skip
    if kind == "glm4_moe":
        out |= {"use_qk_norm": False, "partial_rotary_factor": 1.0, "num_nextn_predict_layers": 0}
    return out


def from_hf(config: dict[str, Any]) -> ModelConfig:
    """Read the `config.json` of a supported family, whoever made the model.

    Raises:
        FlopwiseError: another family, a part that this model does not have (biases, rotary scaling, another
            activation, windows in some layers only, ...), or a field that is missing or no number.
    """
    kind = config.get("model_type")
    if kind not in CLASSES:
        raise FlopwiseError(
            f"model: family {kind!r:.60} cannot be loaded; supported are {', '.join(CLASSES)}"
        )
    try:
        return _read(kind, DEFAULTS[kind] | {name: v for name, v in config.items() if v is not None})
    except KeyError as e:
        raise FlopwiseError(f"model: config.json has no {e.args[0]}; fetch the model again") from None
    except (TypeError, ValueError, ZeroDivisionError, AttributeError) as e:
        raise FlopwiseError(f"model: config.json has a field of the wrong kind ({e!s:.100})") from e


def _refuse(part: str) -> FlopwiseError:
    return FlopwiseError(f"model: this checkpoint has {part}, which is not supported")


def _read(kind: str, config: dict[str, Any]) -> ModelConfig:
    if config.get("attention_bias") or config.get("mlp_bias") or config.get("qkv_bias"):
        raise _refuse("biases in its linear layers")
    if config.get("hidden_act", "silu") != "silu":
        raise FlopwiseError(f"model: activation {config['hidden_act']!r:.40} is not supported, only 'silu'")
    rope = config.get("rope_parameters") or {}
    scaling = config.get("rope_scaling") or {}
    rotary = scaling.get("rope_type") or scaling.get("type") or rope.get("rope_type") or "default"
    if rotary != "default":
        raise FlopwiseError(f"model: rotary scaling {rotary!r:.40} is not supported, only 'default'")
    turned = rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    if turned != 1:
        raise _refuse(f"rotary positions in a part ({turned}) of each head")
    heads, width = config["num_attention_heads"], config["hidden_size"]
    head_dim = config.get("head_dim") or width // heads
    return ModelConfig(
        vocab_size=config["vocab_size"],
        d_model=width,
        n_layers=config["num_hidden_layers"],
        n_heads=heads,
        n_kv_heads=config.get("num_key_value_heads") or heads,
        max_seq_len=config["max_position_embeddings"],
        rope_theta=float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0),
        norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        tie_embeddings=bool(config.get("tie_word_embeddings", False)),
        head_dim_override=None if head_dim * heads == width else head_dim,
        qk_norm=kind in QK_NORM or bool(config.get("use_qk_norm")),
        sliding_window=_window(kind, config),
        **(
            _experts(kind, config)
            if "num_experts_per_tok" in config
            else {"d_ff": config["intermediate_size"]}
        ),
    )


def _window(kind: str, config: dict[str, Any]) -> int | None:
    """The window of all layers, None where they see everything."""
    window = config.get("sliding_window")
    if kind in ("llama", "glm4_moe") or not window:
        return None
    if kind.startswith("qwen") and not config.get("use_sliding_window"):
        return None
    layers = config["num_hidden_layers"]
    types = config.get("layer_types")
    if types is None and kind in ("qwen3", "dots1"):
        first = config["max_window_layers"]
        types = ["sliding_attention" if i >= first else "full_attention" for i in range(layers)]
    elif types is None and kind == "qwen2_moe":
        raise _refuse("windows in every other layer")
    if types is None or set(types) == {"sliding_attention"}:
        return int(window)
    if set(types) == {"full_attention"}:
        return None
    raise _refuse("windows in some of its layers only")


def _experts(kind: str, config: dict[str, Any]) -> dict[str, Any]:
    """The fields of a mixture of experts."""
    if kind in ("llama", "mistral", "qwen3"):
        raise _refuse("experts in a dense family")
    known = config.get("flopwise", {})
    k = config["num_experts_per_tok"]
    out = {
        "experts_per_token": k,
        "norm_topk": bool(config.get("norm_topk_prob", False)),
        "scoring": "sigmoid" if kind in SIGMOID else "softmax",
        "balance": "bias" if kind in SIGMOID else "aux",
        **{name: known[name] for name in TRAINING if name in known},
    }
    if kind == "mixtral":
        inner = config["intermediate_size"]
        return out | {
            "n_experts": config["num_local_experts"], "d_expert": inner, "d_ff": k * inner, "norm_topk": True
        }  # fmt: skip
    out |= {"d_expert": config["moe_intermediate_size"], "d_ff": config["intermediate_size"]}
    if kind in SIGMOID:
        groups = config.get("n_group", 1)
        if groups != config.get("topk_group", groups):
            raise _refuse("experts chosen by groups")
        return out | {
            "n_experts": config["n_routed_experts"], "routed_scale": config.get("routed_scaling_factor", 1.0),
            "d_shared": config.get("n_shared_experts", 0) * config["moe_intermediate_size"],
            "n_dense_layers": config.get("first_k_dense_replace", 0),
        }  # fmt: skip
    dense = config.get("mlp_only_layers", [])
    if config.get("decoder_sparse_step", 1) != 1 or sorted(dense) != list(range(len(dense))):
        raise _refuse("dense layers between those with experts")
    if config.get("shared_expert_intermediate_size"):
        raise _refuse("a shared expert with a gate")
    return out | {
        "n_experts": config.get("num_experts", config.get("num_local_experts", 0)),
        "n_dense_layers": len(dense),
    }
