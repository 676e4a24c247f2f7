"""What a decoder transformer is, in numbers. Imports no torch, so laws, flops and plans can use it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from flopwise.errors import FlopwiseError


def _whole(name: str, value: object, least: int, note: str = "") -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise FlopwiseError(f"model: {name} is {value!r}, must be a whole number of at least {least}{note}")


BALANCES = ("aux", "bias", "none")
SCORINGS = ("softmax", "sigmoid")


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a decoder transformer of the Llama family: RMSNorm, rotary positions, SwiGLU, grouped queries.

    All widths are in units (floats), `max_seq_len` and `sliding_window` in tokens. `n_kv_heads` divides
    `n_heads`; `head_dim` is even, because rotary positions (RoFormer, arXiv 2104.09864, eq. 34) turn pairs.

    With `n_experts` above 0 the feed-forward part of every layer after the first `n_dense_layers` is a
    mixture of experts (`models.moe`): each token goes to `experts_per_token` of `n_experts` experts of width
    `d_expert`, and always to a shared expert of width `d_shared` (0: none). `balance` keeps the experts
    evenly used: by an auxiliary loss of weight `aux_loss`, by a bias on the selection that moves by
    `bias_rate` per step, or not at all. `scoring` turns router logits into scores; `norm_topk` divides the
    chosen ones by their sum, and `routed_scale` multiplies them.
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
    qk_norm: bool = False
    sliding_window: int | None = None
    n_experts: int = 0
    experts_per_token: int = 0
    d_expert: int = 0
    d_shared: int = 0
    balance: str = "aux"
    aux_loss: float = 0.01
    router_z_loss: float = 0.0
    bias_rate: float = 0.001
    scoring: str = "softmax"
    norm_topk: bool = True
    routed_scale: float = 1.0
    n_dense_layers: int = 0

    def __post_init__(self) -> None:
        for name in ("vocab_size", "d_model", "n_layers", "n_heads", "n_kv_heads", "d_ff", "max_seq_len"):
            _whole(name, getattr(self, name), 1)
        for name in ("n_experts", "experts_per_token", "d_expert", "d_shared", "n_dense_layers"):
            _whole(name, getattr(self, name), 0)
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
        if self.sliding_window is not None:
            _whole("sliding_window", self.sliding_window, 1, " (null for no window)")
        if self.balance not in BALANCES:
            raise FlopwiseError(f"model: balance {self.balance!r:.40} must be one of {', '.join(BALANCES)}")
        if self.scoring not in SCORINGS:
            raise FlopwiseError(f"model: scoring {self.scoring!r:.40} must be one of {', '.join(SCORINGS)}")
        for name in ("aux_loss", "router_z_loss", "bias_rate"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise FlopwiseError(f"model: {name} is {value!r}, must be a number of at least 0")
        if self.n_experts:
            self._check_experts()
        elif self.experts_per_token or self.d_expert or self.d_shared or self.n_dense_layers:
            raise FlopwiseError(
                "model: experts_per_token, d_expert, d_shared and n_dense_layers need n_experts above 0"
            )

    def _check_experts(self) -> None:
        if not 1 <= self.experts_per_token <= self.n_experts:
            raise FlopwiseError(
                f"model: {self.experts_per_token} experts per token of {self.n_experts}; "
                f"must be between 1 and {self.n_experts}"
            )
        if self.d_expert < 1:
            raise FlopwiseError(f"model: d_expert is {self.d_expert}, must be at least 1 with n_experts set")
        if self.d_shared % self.d_expert:
            raise FlopwiseError(
                f"model: d_shared {self.d_shared} is not a multiple of d_expert {self.d_expert}; change one"
            )
        if self.n_dense_layers >= self.n_layers:
            raise FlopwiseError(
                f"model: n_dense_layers {self.n_dense_layers} leaves no layer of {self.n_layers} for experts"
            )
        if self.scoring == "softmax" and (self.d_shared or self.balance == "bias" or self.routed_scale != 1):
            raise FlopwiseError(
                "model: shared experts, balance: bias and routed_scale need scoring: sigmoid (DeepSeek-V3)"
            )
        if self.scoring == "sigmoid" and self.sliding_window and not self.qk_norm:
            raise FlopwiseError(
                "model: sliding_window with sigmoid scoring (shared experts, balance by bias) needs qk_norm: "
                "true; no family of transformers holds the model without it"
            )

    @property
    def head_dim(self) -> int:
        """Units per attention head."""
        return self.head_dim_override or self.d_model // self.n_heads

    def has_experts(self, layer: int) -> bool:
        """Whether this layer's feed-forward part is a mixture of experts."""
        return bool(self.n_experts) and layer >= self.n_dense_layers

    @classmethod
    def from_width(
        cls,
        width: int,
        depth: int,
        vocab_size: int,
        max_seq_len: int = 256,
        *,
        tie_embeddings: bool = False,
        qk_norm: bool = False,
        sliding_window: int | None = None,
        expansion: int = 1,
        granularity: int = 1,
        shared_experts: int = 0,
        balance: str = "aux",
    ) -> ModelConfig:
        """One dial for size: the width, at a fixed depth.

        Four heads up to width 128, then heads of 32 units; one key-value head per two query heads;
        `d_ff` is 8/3 of the width (SwiGLU at the cost of a 4x MLP: Shazeer, arXiv 2002.05202),
        rounded up to a multiple of 16. Fixed depth because depth and tokens interact at small scale.

        `expansion` E above 1 makes a mixture of experts with E times the feed-forward parameters, all active
        ones as many as in the dense model; `granularity` G cuts its experts G times finer (Krajewski et al.,
        arXiv 2402.07871, section 3): width d_ff / G, E G of them, G per token, of which `shared_experts` are
        always on and merged into one. E = 1 is the dense model. One expert per token keeps its score as the
        weight, since dividing it by itself would leave the router without a gradient. Scores are a softmax;
        with shared experts or balance by bias sigmoids, as in DeepSeek-V3 (arXiv 2412.19437, eq. 15).
        """
        _whole("width", width, 8)
        if width % 8:
            raise FlopwiseError(
                f"model: width {width} is not a multiple of 8; the next is {width + 8 - width % 8}"
            )
        n_heads = max(4, width // 32)
        while width % n_heads or (width // n_heads) % 2:
            n_heads -= 1
        n_kv_heads = n_heads // 2 if n_heads % 2 == 0 else n_heads
        d_ff = -(-8 * width // 3) // 16 * 16 + (16 if (-(-8 * width // 3)) % 16 else 0)
        _whole("expansion", expansion, 1)
        _whole("granularity", granularity, 1)
        _whole("shared_experts", shared_experts, 0)
        experts: dict[str, Any] = {}
        if expansion > 1:
            if d_ff % granularity:
                raise FlopwiseError(
                    f"model: feed-forward width {d_ff} (of width {width}) cannot be cut into granularity "
                    f"{granularity}; take a divisor, such as {math.gcd(d_ff, granularity)}"
                )
            if shared_experts >= granularity:
                raise FlopwiseError(
                    f"model: shared_experts {shared_experts} must be below granularity {granularity}, "
                    "the number of active experts; raise granularity"
                )
            experts = {
                "n_experts": expansion * granularity - shared_experts,
                "experts_per_token": granularity - shared_experts,
                "d_expert": d_ff // granularity,
                "d_shared": shared_experts * (d_ff // granularity),
                "scoring": "sigmoid" if shared_experts or balance == "bias" else "softmax",
                "norm_topk": granularity - shared_experts > 1,
            }
        return cls(
            vocab_size, width, depth, n_heads, n_kv_heads, d_ff, max_seq_len,
            tie_embeddings=tie_embeddings, qk_norm=qk_norm, sliding_window=sliding_window, balance=balance,
            **experts,
        )  # fmt: skip

    def with_(self, **changes: Any) -> ModelConfig:
        """A copy with some fields changed."""
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """All fields, as JSON takes them."""
        return asdict(self)
