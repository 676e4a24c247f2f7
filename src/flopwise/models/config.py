"""What a decoder transformer is, in numbers. Imports no torch, so laws, flops and plans can use it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from flopwise.errors import FlopwiseError


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a decoder transformer of the Llama family: RMSNorm, rotary positions, SwiGLU, grouped queries.

    All widths are in units (floats), `max_seq_len` in tokens. `n_kv_heads` divides `n_heads`;
    `head_dim` is even, because rotary positions (RoFormer, arXiv 2104.09864, eq. 34) turn pairs.
    """

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_ff: int
    max_seq_len: int = 256
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    tie_embeddings: bool = False
    head_dim_override: int | None = None

    def __post_init__(self) -> None:
        for name in ("vocab_size", "d_model", "n_layers", "n_heads", "n_kv_heads", "d_ff", "max_seq_len"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise FlopwiseError(f"model: {name} is {value!r}, must be a whole number of at least 1")
        if self.head_dim_override is None and self.d_model % self.n_heads:
            raise FlopwiseError(
                f"model: d_model {self.d_model} is not a multiple of n_heads {self.n_heads}; change one"
            )
        if self.n_heads % self.n_kv_heads:
            raise FlopwiseError(
                f"model: n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}; change one"
            )
        if self.head_dim % 2:
            raise FlopwiseError(
                f"model: head width {self.head_dim} is odd, rotary positions need an even one"
            )

    @property
    def head_dim(self) -> int:
        """Units per attention head."""
        return self.head_dim_override or self.d_model // self.n_heads

    @classmethod
    def from_width(cls, width: int, depth: int, vocab_size: int, max_seq_len: int = 256) -> ModelConfig:
        """One dial for size: the width, at a fixed depth.

        Four heads up to width 128, then heads of 32 units; one key-value head per two query heads;
        `d_ff` is 8/3 of the width (SwiGLU at the cost of a 4x MLP: Shazeer, arXiv 2002.05202),
        rounded up to a multiple of 16. Fixed depth because depth and tokens interact at small scale.
        """
        if width % 8:
            raise FlopwiseError(
                f"model: width {width} is not a multiple of 8; the next is {width + 8 - width % 8}"
            )
        n_heads = max(4, width // 32)
        while width % n_heads or (width // n_heads) % 2:
            n_heads -= 1
        n_kv_heads = n_heads // 2 if n_heads % 2 == 0 else n_heads
        d_ff = -(-8 * width // 3) // 16 * 16 + (16 if (-(-8 * width // 3)) % 16 else 0)
        return cls(vocab_size, width, depth, n_heads, n_kv_heads, d_ff, max_seq_len)

    def with_(self, **changes: Any) -> ModelConfig:
        """A copy with some fields changed."""
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """All fields, as JSON takes them."""
        return asdict(self)

    def to_hf(self, architecture: str = "LlamaForCausalLM") -> dict[str, Any]:
        """The `config.json` that `transformers` reads for this shape."""
        return {
            "architectures": [architecture],
            "model_type": "llama",
            "vocab_size": self.vocab_size,
            "hidden_size": self.d_model,
            "intermediate_size": self.d_ff,
            "num_hidden_layers": self.n_layers,
            "num_attention_heads": self.n_heads,
            "num_key_value_heads": self.n_kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": self.max_seq_len,
            "rms_norm_eps": self.norm_eps,
            "rope_theta": self.rope_theta,
            "rope_scaling": None,
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": self.tie_embeddings,
            "torch_dtype": "float32",
        }

    @classmethod
    def from_hf(cls, config: dict[str, Any]) -> ModelConfig:
        """Read a Llama-family `config.json` (also from hub models).

        Raises:
            FlopwiseError: another family, a part that this model does not have (biases, rotary scaling,
                another activation), or a field that is missing or no number.
        """
        family = config.get("model_type")
        if family != "llama":
            raise FlopwiseError(f"model: family {family!r} cannot be loaded, only 'llama' can so far")
        if config.get("attention_bias") or config.get("mlp_bias"):
            raise FlopwiseError(
                "model: this checkpoint has biases in its linear layers, which is not supported"
            )
        if config.get("hidden_act", "silu") != "silu":
            raise FlopwiseError(
                f"model: activation {config['hidden_act']!r:.40} is not supported, only 'silu'"
            )
        try:
            return cls._read(config)
        except KeyError as e:
            raise FlopwiseError(f"model: config.json has no {e.args[0]}; fetch the model again") from None
        except (TypeError, ValueError, ZeroDivisionError, AttributeError) as e:
            raise FlopwiseError(f"model: config.json has a field of the wrong kind ({e!s:.100})") from e

    @classmethod
    def _read(cls, config: dict[str, Any]) -> ModelConfig:
        rope = config.get("rope_parameters") or {}
        scaling = config.get("rope_scaling") or {}
        kind = scaling.get("rope_type") or scaling.get("type") or rope.get("rope_type") or "default"
        if kind != "default":
            raise FlopwiseError(f"model: rotary scaling {kind!r} is not supported, only 'default'")
        heads, width = config["num_attention_heads"], config["hidden_size"]
        head_dim = config.get("head_dim") or width // heads
        return cls(
            vocab_size=config["vocab_size"],
            d_model=width,
            n_layers=config["num_hidden_layers"],
            n_heads=heads,
            n_kv_heads=config.get("num_key_value_heads") or heads,
            d_ff=config["intermediate_size"],
            max_seq_len=config.get("max_position_embeddings", 2048),
            rope_theta=float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0),
            norm_eps=float(config.get("rms_norm_eps", 1e-5)),
            tie_embeddings=bool(config.get("tie_word_embeddings", False)),
            head_dim_override=None if head_dim * heads == width else head_dim,
        )
