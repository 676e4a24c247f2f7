"""Sampling from a model behind an OpenAI-compatible server (vLLM, SGLang, llama.cpp, hosted ones)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from flopwise.errors import FlopwiseError, one_line
from flopwise.infer.endpoint import Endpoint
from flopwise.infer.engine import SampleBatch, Usage

if TYPE_CHECKING:
    from flopwise.data.tokenizer import Tokenizer

Prompt = str | list[dict[str, str]]
"""A text to go on from, or the messages of a conversation."""


@dataclass(frozen=True)
class Completion:
    """One answer of a server.

    `tokens` holds the server's tokens with their log-probabilities, `top` for each token the likeliest ones;
    both are empty where the server gave none.
    """

    text: str
    finished: bool
    tokens: list[tuple[str, float]]
    top: list[dict[str, float]]


def complete(
    endpoint: Endpoint, prompts: Sequence[Prompt], n: int = 1, max_tokens: int = 64, temperature: float = 1.0,
    seed: int = 0, top: int | None = None, progress: Callable[[float], None] | None = None,
    keys: Sequence[int] | None = None, first: int = 0, **more: Any,
) -> tuple[list[list[Completion]], Usage]:  # fmt: skip
    """n answers to each prompt: a text goes to /completions, messages go to /chat/completions.

    A server that gives fewer than n at a time is asked again, with another seed. `top` asks for the
    log-probabilities of the tokens and of that many others; `keys` name the prompts' random streams, by
    default their places, `first` is the index of the first answer; `more` (stop, top_p, ...) goes to the
    server as it is, if it is not None.

    Raises:
        FlopwiseError: the server cannot be reached or refuses, or its answer holds no text.
    """
    start = time.perf_counter()
    found: list[list[Completion]] = [[] for _ in prompts]
    usage = Usage(unknown=f"{endpoint.name} does not say what it computes")
    while todo := [i for i, answers in enumerate(found) if len(answers) < n]:
        asked: dict[str, list[tuple[int, dict[str, Any]]]] = {}
        for i in todo:
            have = len(found[i])
            question = {
                "model": endpoint.model, "n": n - have, "max_tokens": max_tokens, "temperature": temperature,
                "seed": (seed * 1_000_003 + (i if keys is None else keys[i]) * 4099 + first + have) % 2**31,
                **{name: value for name, value in more.items() if value is not None},
            }  # fmt: skip
            prompt = prompts[i]
            if isinstance(prompt, str):
                asked.setdefault("/completions", []).append(
                    (i, question | {"prompt": prompt} | ({} if top is None else {"logprobs": top}))
                )
            else:
                extra = {} if top is None else {"logprobs": True, "top_logprobs": top}
                asked.setdefault("/chat/completions", []).append((i, question | {"messages": prompt} | extra))
        for path, questions in asked.items():
            answers = endpoint.ask(path, [q for _, q in questions], progress)
            for (i, _), answer in zip(questions, answers, strict=True):
                choices = _choices(endpoint, answer)
                found[i] += choices[: n - len(found[i])]
                counted = answer.get("usage")
                counted = counted if isinstance(counted, dict) else {}
                usage.prefill_tokens += _count(counted.get("prompt_tokens"))
                # llama.cpp counts the last of several answers alone.
                shown = sum(len(c.tokens) for c in choices)
                usage.decode_tokens += max(_count(counted.get("completion_tokens")), shown)
    usage.seconds = time.perf_counter() - start
    return found, usage


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value >= 0 else 0


def _choices(endpoint: Endpoint, answer: dict[str, Any]) -> list[Completion]:
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices or not all(isinstance(c, dict) for c in choices):
        raise FlopwiseError(
            f"{endpoint.name} answered without choices ({one_line(answer, 80)}); is it OpenAI-compatible?"
        )
    return [_choice(endpoint, c) for c in choices]


def _choice(endpoint: Endpoint, choice: dict[str, Any]) -> Completion:
    message = choice.get("message")
    text = message.get("content") if isinstance(message, dict) else choice.get("text")
    if text is None and isinstance(message, dict):
        text = ""  # all of it was thinking, or a refusal
    if not isinstance(text, str):
        raise FlopwiseError(f"{endpoint.name} answered without text; is it OpenAI-compatible?")
    tokens, top = _logprobs(choice.get("logprobs"))
    return Completion(text, choice.get("finish_reason") == "stop", tokens, top)


def _logprobs(said: Any) -> tuple[list[tuple[str, float]], list[dict[str, float]]]:
    """Both protocols' ways to write them; nothing where they are not as they should be."""
    try:
        if isinstance(said.get("content"), list):
            rows = said["content"]
            tokens = [(str(r["token"]), float(r["logprob"])) for r in rows]
            return tokens, [
                {str(t["token"]): float(t["logprob"]) for t in r.get("top_logprobs") or []} for r in rows
            ]
        values = [float("nan") if v is None else float(v) for v in said["token_logprobs"]]
        tokens = list(zip(map(str, said["tokens"]), values, strict=True))
        return tokens, [{str(t): float(v) for t, v in (d or {}).items()} for d in said["top_logprobs"] or []]
    except (AttributeError, KeyError, TypeError, ValueError):
        return [], []


def shortest(texts: set[str]) -> list[str]:
    """The stop texts that are needed: a text that holds another one is reached after it. Servers take few.

    >>> shortest({"", "\\n", ".\\n", "\\n\\n", ";"})
    ['\\n', ';']
    """
    found: list[str] = []
    for text in sorted(texts - {""}, key=lambda t: (len(t), t)):
        if not any(known in text for known in found):
            found.append(text)
    return found


class RemoteEngine:
    """`infer.engine.Engine` over a server: prompts go as text, completions come back as ids of `tokenizer`.

    Log-probabilities are NaN where the server gives none or its tokens are not the tokenizer's; FLOPs are not
    known (`Usage.unknown`), tokens are counted by the server.

    Args:
        chat: send each prompt as a user's message instead of a text to go on from.
        logprobs: ask for log-probabilities, which some servers refuse.
    """

    def __init__(self, endpoint: Endpoint, tokenizer: Tokenizer, chat: bool = False, logprobs: bool = False):
        self.endpoint, self.tokenizer, self.chat, self.logprobs = endpoint, tokenizer, chat, logprobs

    def sample(
        self, prompts: Sequence[Sequence[int]], n: int = 1, max_tokens: int = 64, stop: Sequence[int] = (),
        temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None, seed: int = 0,
        prefix_tokens: Sequence[Sequence[int]] | None = None,
        on_progress: Callable[[float], None] | None = None, keys: Sequence[int] | None = None, first: int = 0,
    ) -> SampleBatch:  # fmt: skip
        """n completions of each prompt (`infer.engine.Engine.sample`).

        Where a completion was finished, the first of `stop` ends it. The server's own end of text always
        stops; other stop tokens are sent as texts.

        Raises:
            FlopwiseError: bad settings, prefixes to a chat, or a server that fails.
        """
        if not len(prompts) or n < 1 or max_tokens < 1 or not temperature >= 0:
            raise FlopwiseError(
                f"sample: {len(prompts)} prompts, n={n} and max_tokens={max_tokens} must be at least 1, "
                f"temperature={temperature} at least 0"
            )
        prompt_index, sample_index = (
            np.repeat(np.arange(len(prompts)), n),
            np.tile(np.arange(first, first + n), len(prompts)),
        )
        whole = [list(p) for p in prompts]
        if prefix_tokens is not None:
            if self.chat:
                raise FlopwiseError("sample: a chat cannot go on from a prefix; use chat: false")
            if len(prefix_tokens) != len(prompts) * n:
                raise FlopwiseError(
                    f"sample: {len(prefix_tokens)} prefixes for {len(prompts) * n} samples; one for each"
                )
            whole = [whole[i] + list(p) for i, p in zip(prompt_index.tolist(), prefix_tokens, strict=True)]
            if keys is not None:
                places = zip(prompt_index.tolist(), sample_index.tolist(), strict=True)
                keys, first = [keys[i] * 4099 + s for i, s in places], 0
            n = 1
        texts = self.tokenizer.decode_batch(whole)
        asked: list[Prompt] = [[{"role": "user", "content": t}] for t in texts] if self.chat else list(texts)
        words = shortest({self.tokenizer.decode([t]) for t in stop})
        found, usage = complete(
            self.endpoint, asked, n, max_tokens, temperature, seed, 1 if self.logprobs else None, on_progress,
            keys, first, stop=words or None, top_k=top_k, top_p=top_p,
        )  # fmt: skip
        flat = [c for answers in found for c in answers]
        ids = self.tokenizer.encode_batch([c.text for c in flat])
        rows = [r + list(stop[:1]) if c.finished else r for r, c in zip(ids, flat, strict=True)]
        lengths = np.array([len(r) for r in rows], dtype=np.int64)
        # Some servers count the last of several answers alone.
        usage.decode_tokens = max(usage.decode_tokens, sum(map(len, ids)))
        out = SampleBatch(
            ids=np.full((len(rows), max(1, int(lengths.max()))), -1, dtype=np.int32), lengths=lengths,
            logprobs=np.zeros((len(rows), max(1, int(lengths.max()))), dtype=np.float32),
            prompt_index=prompt_index, sample_index=sample_index,
            finished=np.array([c.finished for c in flat], dtype=bool), usage=usage,
        )  # fmt: skip
        for i, (row, completion) in enumerate(zip(rows, flat, strict=True)):
            out.ids[i, : len(row)] = row
            out.logprobs[i, : len(row)] = self._aligned(row, completion)
        return out

    def score(self, sequences: Sequence[Sequence[int]], prompt_lengths: Sequence[int]) -> list[np.ndarray]:
        """Servers do not score given text.

        Raises:
            FlopwiseError: always.
        """
        raise FlopwiseError(
            f"{self.endpoint.name} cannot score given text: the protocol has no such call; use a local model"
        )

    def _aligned(self, row: list[int], completion: Completion) -> np.ndarray:
        """Log-probabilities of our tokens where the server's are the same; NaN where not, or not given."""
        values = np.full(len(row), np.nan, dtype=np.float32)
        body = len(row) - completion.finished
        pieces = [self.tokenizer.decode([i]) for i in row[:body]]
        if len(completion.tokens) - body in (0, 1) and pieces == [t for t, _ in completion.tokens[:body]]:
            given = [min(value, 0.0) for _, value in completion.tokens[: len(row)]]
            values[: len(given)] = given
        return values
