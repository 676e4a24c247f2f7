"""The one interface to sampling: strategies, RL roll-outs, distillation and evaluation all go through it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np


@dataclass
class Usage:
    """What sampling cost. FLOPs count real rows and real context lengths, padding left out.

    `unknown` says why there was more than `flops`: a model behind a server that does not say what it is.
    """

    prefill_tokens: int = 0
    decode_tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    unknown: str | None = None

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prefill_tokens + other.prefill_tokens,
            self.decode_tokens + other.decode_tokens,
            self.flops + other.flops,
            self.seconds + other.seconds,
            self.unknown or other.unknown,
        )


@dataclass
class SampleBatch:
    """N samples, prompt-major: all samples of prompt 0, then of prompt 1, ...

    `logprobs` are those of the sampled tokens under the model itself (temperature 1, nothing cut off), in
    nats, whatever temperature they were drawn at; columns beyond a row's length hold -1 in `ids` and 0 here.
    """

    ids: np.ndarray
    """[N, L] int32, the stop token included."""
    lengths: np.ndarray
    """[N] int64."""
    logprobs: np.ndarray
    """[N, L] float32."""
    prompt_index: np.ndarray
    """[N] int64."""
    sample_index: np.ndarray
    """[N] int64."""
    finished: np.ndarray
    """[N] bool: whether a stop token was drawn within the limit."""
    usage: Usage = field(default_factory=Usage)

    def completions(self, strip_stop: bool = True) -> list[list[int]]:
        """Ragged ids, by default without the stop token."""
        ends = self.lengths - (self.finished if strip_stop else 0)
        return [row[:end].tolist() for row, end in zip(self.ids, ends, strict=True)]


class Engine(Protocol):
    """Anything that samples and scores."""

    def sample(
        self, prompts: Sequence[Sequence[int]], n: int = 1, max_tokens: int = 64, stop: Sequence[int] = (),
        temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None, seed: int = 0,
        prefix_tokens: Sequence[Sequence[int]] | None = None,
        on_progress: Callable[[float], None] | None = None, keys: Sequence[int] | None = None, first: int = 0,
    ) -> SampleBatch:  # fmt: skip
        """n completions of each prompt, going on from `prefix_tokens`; temperature 0 is greedy.

        `keys` name the prompts' random streams (below 2**63; by default their places): with a key of its own
        a prompt gets the same samples whatever else is asked beside it. `first` is the index of the first
        sample, where those before it are there already.
        """
        ...

    def score(self, sequences: Sequence[Sequence[int]], prompt_lengths: Sequence[int]) -> list[np.ndarray]:
        """Log-probabilities of each sequence's tokens after its prompt."""
        ...


def streams(seed: int, prompt: np.ndarray, sample: np.ndarray) -> np.ndarray:
    """One random stream per row [N] uint64, which depends on (seed, prompt, sample) alone, not on batching.

    Counter-based: splitmix64's finaliser (Steele, Lea and Flood 2014) over the mixed counters.

    >>> a = uniforms(streams(1, np.array([0, 5]), np.array([2, 3])), 7)
    >>> bool(a[1] == uniforms(streams(1, np.array([5]), np.array([3])), 7)[0])
    True
    """
    with np.errstate(over="ignore"):
        x = _mix(np.array([seed & (2**64 - 1)], np.uint64) + np.uint64(0x9E3779B97F4A7C15))
        x = _mix(x ^ prompt.astype(np.uint64) * np.uint64(0xD1342543DE82EF95))
        return _mix(x ^ sample.astype(np.uint64) * np.uint64(0xDABA0B6EB09322E3))


def uniforms(stream: np.ndarray, position: int | np.ndarray) -> np.ndarray:
    """Each stream's number in [0, 1) at a position (one for all, or one each): float64 [N]."""
    with np.errstate(over="ignore"):
        x = _mix(stream + (np.asarray(position, np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15))
    return (x >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
