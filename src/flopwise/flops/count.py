"""Parameters, FLOPs and bytes of a decoder transformer, per module.

B batch, T sequence, d width, H query heads, K key-value heads, D head width, F feed-forward width,
V vocabulary. A multiply-add is 2 FLOPs. Counted: every matrix product, attention scores included. Not
counted: norms, activations, rotary turns, softmax, the embedding look-up: all O(d) per token, under 1% of
the products. Scores are counted dense, T x T, as PyTorch's counter reports them; kernels skip some of what
the causal mask hides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from flopwise.models.config import ModelConfig


@dataclass(frozen=True)
class ParamCount:
    """Parameters by group. Kaplan et al. (arXiv 2001.08361) fit in non-embedding ones, Hoffmann et al.
    (arXiv 2203.15556) in all: always say which. The output matrix counts as embedding."""

    total: int
    active: int
    non_embedding: int
    embedding: int
    by_module: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class FlopCount:
    """FLOPs by module; `scores` is attention's sequence term (queries times keys, weights times values)."""

    embedding: float = 0.0
    attention: float = 0.0
    scores: float = 0.0
    mlp: float = 0.0
    output: float = 0.0

    @property
    def total(self) -> float:
        """Sum over modules."""
        return self.embedding + self.attention + self.scores + self.mlp + self.output

    def __add__(self, other: FlopCount) -> FlopCount:
        return FlopCount(*(a + b for a, b in zip(self._parts(), other._parts(), strict=True)))

    def __mul__(self, factor: float) -> FlopCount:
        return FlopCount(*(a * factor for a in self._parts()))

    __rmul__ = __mul__

    def _parts(self) -> tuple[float, ...]:
        return (self.embedding, self.attention, self.scores, self.mlp, self.output)


def count_params(cfg: ModelConfig) -> ParamCount:
    """Parameters of the model.

    >>> c = count_params(ModelConfig.from_width(64, depth=2, vocab_size=512))
    >>> c.non_embedding, c.embedding, c.total
    (92480, 65536, 158016)
    """
    d, hd = cfg.d_model, cfg.head_dim
    attention = cfg.n_layers * (2 * d * cfg.n_heads * hd + 2 * d * cfg.n_kv_heads * hd)
    mlp = cfg.n_layers * 3 * d * cfg.d_ff
    norms = (2 * cfg.n_layers + 1) * d
    table = cfg.vocab_size * d
    embedding = table if cfg.tie_embeddings else 2 * table
    body = attention + mlp + norms
    modules = {
        "embedding": table,
        "attention": attention,
        "mlp": mlp,
        "norms": norms,
        "output": embedding - table,
    }
    return ParamCount(body + embedding, body + embedding, body, embedding, modules)


def _body(cfg: ModelConfig, tokens: float, pairs: float, logits: float) -> FlopCount:
    """FLOPs of `tokens` through all layers, `pairs` query-key pairs per head, `logits` rows of the output."""
    d, hd = cfg.d_model, cfg.head_dim
    return FlopCount(
        attention=2 * tokens * cfg.n_layers * (2 * d * cfg.n_heads * hd + 2 * d * cfg.n_kv_heads * hd),
        scores=2 * cfg.n_layers * 2 * pairs * cfg.n_heads * hd,
        mlp=2 * tokens * cfg.n_layers * 3 * d * cfg.d_ff,
        output=2 * logits * d * cfg.vocab_size,
    )


def forward_flops(
    cfg: ModelConfig, seq_len: int, batch: float = 1, n_logits: float | None = None
) -> FlopCount:
    """One forward pass of `batch` sequences; the head is applied to `n_logits` positions of each on average
    (default: all)."""
    logits = seq_len if n_logits is None else n_logits
    return _body(cfg, batch * seq_len, batch * seq_len * seq_len, batch * logits)


def train_flops(cfg: ModelConfig, seq_len: int, batch: float = 1, n_logits: float | None = None) -> FlopCount:
    """Forward and backward: each product has two products behind it, so 3x the forward pass."""
    return 3 * forward_flops(cfg, seq_len, batch, n_logits)


def prefill_flops(cfg: ModelConfig, prompt_len: int, n_logits: int = 1) -> FlopCount:
    """Read one prompt; only the last position needs logits."""
    return forward_flops(cfg, prompt_len, 1, n_logits)


def decode_flops(cfg: ModelConfig, context_len: int) -> FlopCount:
    """One new token that attends to `context_len` positions, itself included."""
    return _body(cfg, 1, context_len, 1)


def generate_flops(cfg: ModelConfig, prompt_len: int, lengths: Sequence[float]) -> FlopCount:
    """One prompt and its samples of `lengths` new tokens: the prefill is shared.

    A sample's first token comes from the prefill, so `length - 1` decode passes follow, at contexts
    prompt_len + 1, ..., prompt_len + length - 1.
    """
    passes = sum(max(0, n - 1) for n in lengths)
    pairs = sum((n - 1) * prompt_len + (n - 1) * n / 2 for n in lengths if n > 1)
    return prefill_flops(cfg, prompt_len) + _body(cfg, passes, pairs, passes)


def score_flops(cfg: ModelConfig, seq_len: int, batch: float = 1, n_logits: float | None = None) -> FlopCount:
    """Log-probabilities of given sequences: a forward pass and nothing else."""
    return forward_flops(cfg, seq_len, batch, n_logits)


def six_nd(cfg: ModelConfig, tokens: float) -> float:
    """The rule of thumb C = 6 N D in non-embedding parameters (Kaplan et al., arXiv 2001.08361, section 2.1).

    Shown beside the measured count, never used in its place: at small width the head and the scores that
    it leaves out are most of the work.
    """
    return 6.0 * count_params(cfg).non_embedding * tokens


def weight_bytes(cfg: ModelConfig, bytes_per_weight: float = 4) -> float:
    """Memory of the weights."""
    return count_params(cfg).total * bytes_per_weight


def kv_cache_bytes(cfg: ModelConfig, context_len: int, batch: int = 1, bytes_per_value: float = 4) -> float:
    """Memory of keys and values for `batch` sequences of `context_len` tokens."""
    return 2.0 * cfg.n_layers * cfg.n_kv_heads * cfg.head_dim * context_len * batch * bytes_per_value
