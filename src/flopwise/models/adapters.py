"""Low-rank adapters in numbers and in PEFT's `adapter_config.json`. Imports no torch.

LoRA (Hu et al., arXiv 2106.09685, section 4.1): a frozen map W [n_out, n_in] is used as W + s B A, with A
[r, n_in] and B [n_out, r] alone being trained and s = alpha / r; or s = alpha / sqrt(r), under which the size
of what is learned does not shrink with the rank (rsLoRA: Kalajdzievski, arXiv 2312.03732, section 3).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flopwise.data.checksums import sha256
from flopwise.errors import FlopwiseError
from flopwise.models.config import ModelConfig

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
FUSED = {
    "attn.qkv": ("q", "k", "v"), "attn.out": ("o",), "mlp.gate_up": ("gate", "up"), "mlp.down": ("down",),
}  # fmt: skip
"""Our matrices of a block, and the maps that each holds, in order."""
TARGETS = tuple(target for targets in FUSED.values() for target in targets)
"""All linear maps of a dense block; neither embedding nor head."""
PEFT_NAMES = {t: f"{'self_attn' if t in 'qkvo' else 'mlp'}.{t}_proj" for t in TARGETS}
"""What `transformers` calls them below a layer."""
UNSUPPORTED = (
    "use_dora", "rank_pattern", "alpha_pattern", "layers_to_transform", "exclude_modules",
    "target_parameters", "trainable_token_indices", "fan_in_fan_out", "use_qalora",
    "alora_invocation_tokens", "megatron_config",
)  # fmt: skip
"""Fields of PEFT's configuration that change what an adapter computes, in ways that this package has not."""


@dataclass(frozen=True)
class Map:
    """One linear map of a layer: what LoRA calls it, and its size."""

    target: str
    n_in: int
    n_out: int


@dataclass(frozen=True)
class LoRA:
    """Settings of the adapters of a model.

    `targets` are the adapted maps of every layer, of `TARGETS`. A mixture of experts takes them in its
    attention alone (q, k, v, o).

    Raises:
        FlopwiseError: a rank below 1, an alpha that is not above 0, an unknown target or none.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = TARGETS
    rslora: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.rank, int) or isinstance(self.rank, bool) or self.rank < 1:
            raise FlopwiseError(f"lora: rank is {self.rank!r:.40}, must be a whole number of at least 1")
        number = isinstance(self.alpha, int | float) and not isinstance(self.alpha, bool)
        if not number or not 0 < self.alpha < math.inf:
            raise FlopwiseError(f"lora: alpha is {self.alpha!r:.40}, must be a number above 0")
        wanted = [self.targets] if isinstance(self.targets, str) else list(self.targets)
        unknown = [t for t in wanted if t not in TARGETS]
        if unknown or not wanted:
            what = f"target {unknown[0]!r:.40} is unknown" if unknown else "no target is named"
            raise FlopwiseError(f"lora: {what}; choose from {', '.join(TARGETS)}")
        # One order, whatever was typed, so that equal settings are equal and train to the same bits.
        object.__setattr__(self, "targets", tuple(t for t in TARGETS if t in wanted))

    @property
    def scale(self) -> float:
        """s, the factor before B A."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def maps(self, cfg: ModelConfig) -> list[Map]:
        """The adapted maps of one layer; all layers are alike.

        Raises:
            FlopwiseError: a feed-forward map of a mixture of experts.
        """
        if cfg.n_experts and set(self.targets) - set(FUSED["attn.qkv"] + FUSED["attn.out"]):
            raise FlopwiseError(
                f"lora: targets {', '.join(self.targets)} on a mixture of experts; only its attention can be "
                "adapted: choose from q, k, v, o"
            )
        return [m for m in all_maps(cfg) if m.target in self.targets]

    def n_params(self, cfg: ModelConfig) -> int:
        """Parameters of all adapters."""
        return cfg.n_layers * sum(self.rank * (m.n_in + m.n_out) for m in self.maps(cfg))

    def to_peft(self, base: str, scorer: bool) -> dict[str, Any]:
        """Content of `adapter_config.json`."""
        return {
            "peft_type": "LORA", "task_type": "SEQ_CLS" if scorer else "CAUSAL_LM",
            "base_model_name_or_path": base, "r": self.rank, "lora_alpha": self.alpha, "lora_dropout": 0.0,
            "use_rslora": self.rslora, "target_modules": [f"{t}_proj" for t in self.targets], "bias": "none",
            "modules_to_save": ["score"] if scorer else None, "init_lora_weights": True,
            "fan_in_fan_out": False, "inference_mode": True,
        }  # fmt: skip

    @classmethod
    def from_peft(cls, config: dict[str, Any]) -> LoRA:
        """Read `adapter_config.json`, whoever made it.

        Raises:
            FlopwiseError: it is no LoRA, or has parts that this package does not have.
        """
        if config.get("peft_type") != "LORA":
            raise FlopwiseError(f"adapter: kind {config.get('peft_type')!r:.40} cannot be loaded, only LORA")
        for field in UNSUPPORTED:
            if config.get(field):
                raise FlopwiseError(f"adapter: {field} is set, which is not supported")
        if config.get("bias", "none") != "none":
            raise FlopwiseError("adapter: it has biases, which is not supported")
        if set(config.get("modules_to_save") or []) - {"score"}:
            raise FlopwiseError("adapter: modules_to_save names whole layers, which is not supported")
        named = config.get("target_modules")
        if not isinstance(named, list) or not all(isinstance(n, str) for n in named):
            raise FlopwiseError(
                "adapter: target_modules is no list of names; save it again with current PEFT"
            )
        targets = tuple(dict.fromkeys(n.rpartition(".")[2].removesuffix("_proj") for n in named))
        try:
            return cls(config["r"], float(config["lora_alpha"]), targets, bool(config.get("use_rslora")))
        except (KeyError, TypeError, ValueError) as e:
            raise FlopwiseError(
                f"adapter: {CONFIG_FILE} has no readable r or lora_alpha ({type(e).__name__}); save it again"
            ) from e


def all_maps(cfg: ModelConfig) -> list[Map]:
    """The linear maps of one dense layer, in the order of `TARGETS`."""
    d, heads, kv = cfg.d_model, cfg.n_heads * cfg.head_dim, cfg.n_kv_heads * cfg.head_dim
    sizes = {
        "q": (d, heads), "k": (d, kv), "v": (d, kv), "o": (heads, d),
        "gate": (d, cfg.d_ff), "up": (d, cfg.d_ff), "down": (cfg.d_ff, d),
    }  # fmt: skip
    return [Map(target, *sizes[target]) for target in TARGETS]


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and not a whole model."""
    return (folder / CONFIG_FILE).is_file() and not (folder / "config.json").is_file()


def find_base(folder: Path, named: str) -> Path:
    """The folder of an adapter's base model: what its configuration names, seen from the adapter's own
    folder first, then from here, then as the name of a shipped model.

    Raises:
        FlopwiseError: there is no such folder.
    """
    for place in (folder / named, Path(named)):
        if (place / "config.json").is_file() or is_adapter(place):
            # Not resolved: a run's folder may be reached through a link, beside which its parents lie.
            return Path(os.path.normpath(place))
    from flopwise.models import shipped

    if named in shipped.MODELS:
        return shipped.here(named)
    raise FlopwiseError(f"adapter {folder}: its base model {named!r:.120} is not here; name its folder")


def weights_sha256(folder: Path) -> str:
    """SHA-256 of a model's weights: of the one file, or of the hashes of its shards in order of their names.

    Raises:
        FlopwiseError: there are none.
    """
    whole = [folder / name for name in ("model.safetensors", WEIGHTS_FILE)]
    files = [path for path in whole if path.is_file()][:1] or sorted(folder.glob("model-*.safetensors"))
    if not files:
        raise FlopwiseError(
            f"model {folder}: there is no model.safetensors; give a folder in Hugging Face layout"
        )
    hashes = [sha256(path) for path in files]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def read_config(folder: Path) -> dict[str, Any]:
    """Content of a folder's `adapter_config.json`.

    Raises:
        FlopwiseError: it is absent or damaged.
    """
    try:
        content = json.loads((folder / CONFIG_FILE).read_bytes())
        if isinstance(content, dict) and isinstance(content.get("base_model_name_or_path"), str | None):
            return content
    except (OSError, ValueError, RecursionError) as e:
        raise FlopwiseError(f"adapter {folder}: {CONFIG_FILE} cannot be read ({type(e).__name__})") from e
    raise FlopwiseError(f"adapter {folder}: {CONFIG_FILE} is no JSON object that names a base model")
