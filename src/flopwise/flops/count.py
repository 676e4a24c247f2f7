"""Parameters, FLOPs and bytes of a decoder transformer, per module.

B batch, T sequence, d width, H query heads, K key-value heads, D head width, F feed-forward width,
V vocabulary, W attention window. A multiply-add is 2 FLOPs. Counted: every matrix product, attention scores
included. Not counted: norms, activations, rotary turns, softmax, the embedding look-up, sorting tokens by
expert: all O(d) per token, under 1% of the products. Scores are counted dense, T x T, as PyTorch's counter
reports them; kernels skip some of what the causal mask hides. With a window each query is counted with
min(T, W) keys, also the first W queries of a sequence, which see fewer.

A mixture of experts counts what a token passes through: the router, `experts_per_token` experts and the
shared expert. The parameters of all experts are in `total`, of those that are active in `active`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from flopwise.models.config import ModelConfig


@dataclass(frozen=True)
class ParamCount:
    """Parameters by group. Kaplan et al. (arXiv 2001.08361) fit in non-embedding ones, Hoffmann et al.
    (arXiv 2203.15556) in all: always say which. The output matrix counts as embedding. `active` ones take
    part in one token's forward pass: all but the experts it does not go to."""

    total: int
    active: int
    non_embedding: int
    embedding: int
    active_non_embedding: int
    by_module: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class FlopCount:
    """FLOPs by module; `scores` is attention's sequence term (queries times keys, weights times values);
    `mlp` holds experts and the shared expert, `router` what chooses between them."""

    embedding: float = 0.0
    attention: float = 0.0
    scores: float = 0.0
    mlp: float = 0.0
    output: float = 0.0
    router: float = 0.0

    @property
    def total(self) -> float:
        """Sum over modules."""
        return sum(self._parts())

    def __add__(self, other: FlopCount) -> FlopCount:
        return FlopCount(*(a + b for a, b in zip(self._parts(), other._parts(), strict=True)))

    def __mul__(self, factor: float) -> FlopCount:
        return FlopCount(*(a * factor for a in self._parts()))

    __rmul__ = __mul__

    def _parts(self) -> tuple[float, ...]:
        return (self.embedding, self.attention, self.scores, self.mlp, self.output, self.router)


def count_params(cfg: ModelConfig) -> ParamCount:
    """Parameters of the model. The selection bias of `balance: bias` is no parameter: no gradient moves it.

    >>> c = count_params(ModelConfig.from_width(64, depth=2, vocab_size=512))
    >>> c.non_embedding, c.embedding, c.total
    (92480, 65536, 158016)
    >>> c = count_params(ModelConfig.from_width(64, 2, 512, expansion=8))
    >>> c.active_non_embedding, c.non_embedding
    (93504, 566592)
    """
    d = cfg.d_model
    sparse = _expert_layers(cfg)
    routers = sparse * cfg.n_experts * d
    mlp = (
        3 * d * ((cfg.n_layers - sparse) * cfg.d_ff + sparse * (cfg.d_shared + cfg.n_experts * cfg.d_expert))
    )
    norms = (2 * cfg.n_layers + 1) * d + (2 * cfg.n_layers * cfg.head_dim if cfg.qk_norm else 0)
    table = cfg.vocab_size * d
    modules = {
        "embedding": table,
        "attention": cfg.n_layers * _attention_weights(cfg),
        "mlp": mlp,
        "norms": norms,
        "output": 0 if cfg.tie_embeddings else table,
        "router": routers,
    }
    total = sum(modules.values())
    embedding = table + modules["output"]
    idle = 3 * d * sparse * (cfg.n_experts - cfg.experts_per_token) * cfg.d_expert
    return ParamCount(total, total - idle, total - embedding, embedding, total - embedding - idle, modules)


def _expert_layers(cfg: ModelConfig) -> int:
    return sum(cfg.has_experts(layer) for layer in range(cfg.n_layers))


def _attention_weights(cfg: ModelConfig) -> int:
    """Of one layer."""
    return 2 * cfg.d_model * (cfg.n_heads + cfg.n_kv_heads) * cfg.head_dim


def _body(cfg: ModelConfig, tokens: float, pairs: float, logits: float) -> FlopCount:
    """FLOPs of `tokens` through all layers, `pairs` query-key pairs per head, `logits` rows of the output."""
    d, sparse = cfg.d_model, _expert_layers(cfg)
    active = (cfg.n_layers - sparse) * cfg.d_ff
    active += sparse * (cfg.experts_per_token * cfg.d_expert + cfg.d_shared)
    return FlopCount(
        attention=2 * tokens * cfg.n_layers * _attention_weights(cfg),
        scores=2 * cfg.n_layers * 2 * pairs * cfg.n_heads * cfg.head_dim,
        mlp=2 * tokens * 3 * d * active,
        output=2 * logits * d * cfg.vocab_size,
        router=2 * tokens * sparse * d * cfg.n_experts,
    )


def _seen(cfg: ModelConfig, context: float) -> float:
    """Keys that a query with `context` positions, itself included, is multiplied with."""
    return context if cfg.sliding_window is None else min(context, cfg.sliding_window)


def decode_pairs(cfg: ModelConfig, prompt_len: float, passes: float) -> float:
    """Query-key pairs per head of `passes` decoded tokens, at contexts prompt_len + 1, prompt_len + 2, ..."""
    growing = passes
    if cfg.sliding_window is not None:
        growing = min(max(cfg.sliding_window - prompt_len, 0), passes)
    full = (passes - growing) * (cfg.sliding_window or 0)
    return growing * prompt_len + growing * (growing + 1) / 2 + full


def forward_flops(
    cfg: ModelConfig, seq_len: int, batch: float = 1, n_logits: float | None = None
) -> FlopCount:
    """One forward pass of `batch` sequences; the head is applied to `n_logits` positions of each on average
    (default: all)."""
    logits = seq_len if n_logits is None else n_logits
    return _body(cfg, batch * seq_len, batch * seq_len * _seen(cfg, seq_len), batch * logits)


def train_flops(cfg: ModelConfig, seq_len: int, batch: float = 1, n_logits: float | None = None) -> FlopCount:
    """Forward and backward: each product has two products behind it, so 3x the forward pass."""
    return 3 * forward_flops(cfg, seq_len, batch, n_logits)


def prefill_flops(cfg: ModelConfig, prompt_len: int, n_logits: int = 1) -> FlopCount:
    """Read one prompt; only the last position needs logits."""
    return forward_flops(cfg, prompt_len, 1, n_logits)


def decode_flops(cfg: ModelConfig, context_len: int) -> FlopCount:
    """One new token that attends to `context_len` positions, itself included."""
    return _body(cfg, 1, _seen(cfg, context_len), 1)


def generate_flops(cfg: ModelConfig, prompt_len: int, lengths: Sequence[float]) -> FlopCount:
    """One prompt and its samples of `lengths` new tokens: the prefill is shared.

    A sample's first token comes from the prefill, so `length - 1` decode passes follow, at contexts
    prompt_len + 1, ..., prompt_len + length - 1.
    """
    passes = sum(max(0, n - 1) for n in lengths)
    pairs = sum(decode_pairs(cfg, prompt_len, n - 1) for n in lengths if n > 1)
    return prefill_flops(cfg, prompt_len) + _body(cfg, passes, pairs, passes)


def score_flops(cfg: ModelConfig, seq_len: int, batch: float = 1, n_logits: float | None = None) -> FlopCount:
    """Log-probabilities of given sequences: a forward pass and nothing else."""
    return forward_flops(cfg, seq_len, batch, n_logits)


def six_nd(cfg: ModelConfig, tokens: float) -> float:
    """The rule of thumb C = 6 N D in non-embedding parameters (Kaplan et al., arXiv 2001.08361, section 2.1),
    of a mixture of experts the active ones.

    Shown beside the measured count, never used in its place: at small width the head and the scores that
    it leaves out are most of the work.
    """
    return 6.0 * count_params(cfg).active_non_embedding * tokens


def weight_bytes(cfg: ModelConfig, bytes_per_weight: float = 4) -> float:
    """Memory of the weights."""
    return count_params(cfg).total * bytes_per_weight


def kv_cache_bytes(cfg: ModelConfig, context_len: int, batch: int = 1, bytes_per_value: float = 4) -> float:
    """Memory of keys and values that `batch` sequences of `context_len` tokens need; a window needs W."""
    context_len = int(_seen(cfg, context_len))
    return 2.0 * cfg.n_layers * cfg.n_kv_heads * cfg.head_dim * context_len * batch * bytes_per_value
