"""Parameters, FLOPs and bytes of a decoder transformer, per module.

B batch, T sequence, d width, H query heads, K key-value heads, D head width, F feed-forward width,
V vocabulary, W attention window. A multiply-add is 2 FLOPs. Counted: every matrix product, attention scores
included. Not counted: norms, activations, rotary turns, softmax, the embedding look-up, sorting tokens by
expert: all O(d) per token, under 1% of the products. Scores are counted dense, T x T, as PyTorch's counter
reports them; kernels skip some of what the causal mask hides. With a window each query is counted with
min(T, W) keys, also the first W queries of a sequence, which see fewer.

A mixture of experts counts what a token passes through: the router, `experts_per_token` experts and the
shared expert. The parameters of all experts are in `total`, of those that are active in `active`.

Where a part is frozen, the gradient still passes through it to whatever learns below, but none is taken to
its weights; a low-rank adapter (Hu et al., arXiv 2106.09685) is two small products beside the frozen one.
Sequences packed into one row are counted as the one long sequence that the attention is computed for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flopwise.errors import FlopwiseError
from flopwise.models.config import ModelConfig

if TYPE_CHECKING:
    from flopwise.models.adapters import LoRA

PARTS = ("embedding", "attention", "mlp", "router", "norms", "output")


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


@dataclass(frozen=True)
class Trained:
    """What of a model learns.

    `parts` names the model's own weights that do, in layers from `from_layer` on; above 0 the embedding is
    frozen too. `lora` are the adapters, in the same layers. Nothing below the lowest of all these is walked
    back through.

    >>> Trained(("output",), from_layer=2).parts
    ('output',)
    """

    parts: tuple[str, ...] = PARTS
    from_layer: int = 0
    lora: LoRA | None = None

    def __post_init__(self) -> None:
        wrong = [p for p in self.parts if p not in PARTS]
        if wrong or self.from_layer < 0:
            raise FlopwiseError(
                f"trained: {wrong[0]!r:.40} is no part of a model; parts are {', '.join(PARTS)}"
                if wrong
                else f"trained: from_layer is {self.from_layer}, must be at least 0"
            )


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


def _body(
    cfg: ModelConfig, tokens: float, pairs: float, logits: float,
    head: int | None = None, lora: LoRA | None = None, from_layer: int = 0,
) -> FlopCount:  # fmt: skip
    """FLOPs of `tokens` through all layers, `pairs` query-key pairs per head, `logits` rows of the output."""
    d, sparse = cfg.d_model, _expert_layers(cfg)
    active = (cfg.n_layers - sparse) * cfg.d_ff
    active += sparse * (cfg.experts_per_token * cfg.d_expert + cfg.d_shared)
    whole = FlopCount(
        attention=2 * tokens * cfg.n_layers * _attention_weights(cfg),
        scores=2 * cfg.n_layers * 2 * pairs * cfg.n_heads * cfg.head_dim,
        mlp=2 * tokens * 3 * d * active,
        output=2 * logits * d * (cfg.vocab_size if head is None else head),
        router=2 * tokens * sparse * d * cfg.n_experts,
    )
    on_attention, on_mlp = (sum(_adapters(cfg, lora, on)) for on in (QKV + OUT, GATE_UP + DOWN))
    passes = 2 * tokens * max(0, cfg.n_layers - from_layer)
    return whole + passes * FlopCount(attention=on_attention, mlp=on_mlp)


QKV, OUT, GATE_UP, DOWN = ("q", "k", "v"), ("o",), ("gate", "up"), ("down",)


def _adapters(cfg: ModelConfig, lora: LoRA | None, targets: tuple[str, ...]) -> tuple[float, float]:
    """Weights of a layer's adapters on `targets`: of those that read the maps' inputs, those that write."""
    maps = [m for m in lora.maps(cfg) if m.target in targets] if lora else []
    rank = lora.rank if lora else 0
    return float(rank * sum(m.n_in for m in maps)), float(rank * sum(m.n_out for m in maps))


def _backward(
    cfg: ModelConfig, tokens: float, pairs: float, logits: float, trained: Trained, head: int | None
) -> FlopCount:
    """FLOPs of the backward pass: the gradient to a product's input, where anything below learns, and to its
    weights, where they learn, cost as much as the product itself each."""
    d, D, first = cfg.d_model, cfg.head_dim, trained.from_layer
    learns = {part: part in trained.parts for part in PARTS}
    flows = learns["embedding"] and not first  # whether what comes up from below has a gradient to take
    heads = cfg.n_heads + 2 * cfg.n_kv_heads

    def product(weights: float, part: str, below: bool, targets: tuple[str, ...] = ()) -> tuple[float, bool]:
        """Multiply-adds per token of a map's way back, if there is one; `below`: to its input too."""
        own = learns[part]
        reads, writes = _adapters(cfg, trained.lora, targets)
        above = below or own or writes > 0
        # An adapter: dB and the gradient to its middle; dA, and where it is wanted the gradient to the input.
        small = 2 * writes + (1 + below) * reads
        return (below + own) * weights + small if above else 0.0, above

    total = FlopCount()
    for layer in range(min(first, cfg.n_layers), cfg.n_layers):
        qkv, above = product(d * heads * D, "attention", flows or learns["norms"], QKV)
        scores = 4 * 2 * pairs * cfg.n_heads * D if above or (cfg.qk_norm and learns["norms"]) else 0.0
        out, above = product(cfg.n_heads * D * d, "attention", scores > 0, OUT)
        flows = flows or above
        below = flows or learns["norms"]
        sparse = cfg.has_experts(layer)
        inner = cfg.experts_per_token * cfg.d_expert + cfg.d_shared if sparse else cfg.d_ff
        router, routed = product(d * cfg.n_experts if sparse else 0.0, "router", below)
        gate_up, above = product(2 * d * inner, "mlp", below, GATE_UP)
        # What scales an expert's result is taken to its input here, so the router needs the whole way back.
        down, above = product(d * inner, "mlp", above or (sparse and routed), DOWN)
        flows = flows or above
        total += FlopCount(
            attention=2 * tokens * (qkv + out), scores=scores,
            mlp=2 * tokens * (gate_up + down), router=2 * tokens * router,
        )  # fmt: skip
    own = learns["output"] or (cfg.tie_embeddings and head is None and learns["embedding"] and not first)
    width = cfg.vocab_size if head is None else head
    return total + FlopCount(output=2 * logits * d * width * (own + (flows or learns["norms"])))


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
    cfg: ModelConfig, seq_len: int, batch: float = 1, n_logits: float | None = None,
    *, head: int | None = None, lora: LoRA | None = None,
) -> FlopCount:  # fmt: skip
    """One forward pass of `batch` sequences.

    Args:
        n_logits: positions of each sequence, on average, that the head is applied to (default: all).
        head: outputs of the head where it is not the vocabulary: 1 of a reward model or a critic.
        lora: adapters that are not merged into the weights.
    """
    logits = seq_len if n_logits is None else n_logits
    return _body(cfg, batch * seq_len, batch * seq_len * _seen(cfg, seq_len), batch * logits, head, lora)


def train_flops(
    cfg: ModelConfig, seq_len: int, batch: float = 1, n_logits: float | None = None,
    trained: Trained | None = None, *, head: int | None = None,
) -> FlopCount:  # fmt: skip
    """Forward and backward; where all learns each product has two products behind it: 3x the forward pass.

    A preference pair is two sequences; its reference's pass, where it is not cached, is `score_flops`.
    """
    if trained is None:
        return 3 * forward_flops(cfg, seq_len, batch, n_logits, head=head)
    rows, tokens = batch * (seq_len if n_logits is None else n_logits), batch * seq_len
    size = cfg, tokens, tokens * _seen(cfg, seq_len), rows
    return _body(*size, head, trained.lora, trained.from_layer) + _backward(*size, trained, head)


def head_flops(cfg: ModelConfig, rows: float, outputs: int = 1, learns: bool = True) -> FlopCount:
    """A linear head more, on `rows` hidden states: a policy's value head (PPO, arXiv 1707.06347, eq. 9)."""
    return (3 if learns else 1) * FlopCount(output=2 * rows * cfg.d_model * outputs)


def prefill_flops(
    cfg: ModelConfig, prompt_len: int, n_logits: int = 1, *, lora: LoRA | None = None
) -> FlopCount:
    """Read one prompt; only the last position needs logits."""
    return forward_flops(cfg, prompt_len, 1, n_logits, lora=lora)


def decode_flops(cfg: ModelConfig, context_len: int, *, lora: LoRA | None = None) -> FlopCount:
    """One new token that attends to `context_len` positions, itself included."""
    return _body(cfg, 1, _seen(cfg, context_len), 1, lora=lora)


def generate_flops(
    cfg: ModelConfig, prompt_len: int, lengths: Sequence[float], *, lora: LoRA | None = None
) -> FlopCount:
    """One prompt and its samples of `lengths` new tokens: the prefill is shared.

    A sample's first token comes from the prefill, so `length - 1` decode passes follow, at contexts
    prompt_len + 1, ..., prompt_len + length - 1.
    """
    passes = sum(max(0, n - 1) for n in lengths)
    pairs = sum(decode_pairs(cfg, prompt_len, n - 1) for n in lengths if n > 1)
    return prefill_flops(cfg, prompt_len, lora=lora) + _body(cfg, passes, pairs, passes, lora=lora)


def score_flops(
    cfg: ModelConfig, seq_len: int, batch: float = 1, n_logits: float | None = None,
    *, head: int | None = None, lora: LoRA | None = None,
) -> FlopCount:  # fmt: skip
    """Judging given sequences: a forward pass and nothing else.

    The log-probabilities of a reference, a teacher's top-k or whole distribution (the products are the same)
    and a judge's verdict take the vocabulary's head; a reward model and a critic take `head` 1.
    """
    return forward_flops(cfg, seq_len, batch, n_logits, head=head, lora=lora)


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
