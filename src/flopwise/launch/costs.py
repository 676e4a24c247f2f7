"""What steps should cost, before anything runs: exact FLOPs where the shape is known, estimated time.

The time model is a cost per token that does not depend on size, and a matrix-product rate, measured on one
core of an EPYC 7003. The progress display corrects it by the speed it sees.
"""

from __future__ import annotations

from flopwise.flops.count import generate_flops, train_flops
from flopwise.models.config import ModelConfig

PROMPT_TOKENS, COMPLETION_TOKENS = 12, 22
"""Typical lengths of the task, for estimates alone; what is recorded is counted."""
TASK_TOKENS = PROMPT_TOKENS + COMPLETION_TOKENS

KERNEL_SECONDS_PER_TOKEN = 5e-6
FLOP_PER_S = 6e10
DECODE_SECONDS_PER_TOKEN = 1.6e-5


def train_seconds(flops: float, tokens: float) -> float:
    """Estimated time of a training phase on one core."""
    return tokens * KERNEL_SECONDS_PER_TOKEN + flops / FLOP_PER_S


def train_seconds_of(cfg: ModelConfig, tokens: float) -> float:
    """Estimated time on one core of training a model on so many tokens of its context's length."""
    return train_seconds(tokens / cfg.max_seq_len * train_flops(cfg, cfg.max_seq_len).total, tokens)


def sample_cost(cfg: ModelConfig, problems: int, n: int) -> tuple[float, float]:
    """Estimated FLOPs and seconds of n samples for each problem."""
    flops = problems * generate_flops(cfg, PROMPT_TOKENS, [COMPLETION_TOKENS] * n).total
    seconds = 0.3 + problems * n * COMPLETION_TOKENS * DECODE_SECONDS_PER_TOKEN
    return flops, seconds


def tuning_cost(cfg: ModelConfig, examples: float, n_logits: int | None = None) -> tuple[float, float]:
    """Estimated FLOPs and seconds of training on so many prompts with completions."""
    flops = train_flops(cfg, TASK_TOKENS, examples, n_logits).total
    return flops, train_seconds(flops, examples * TASK_TOKENS)
