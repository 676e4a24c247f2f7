"""What roll-outs are rewarded by: the verifier, a reward model, a judge, length, or a weighted sum."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.flops.ledger import Ledger
from flopwise.posttrain.advantages import overlong_penalty
from flopwise.posttrain.settings.rl import LEARNED, RlSection

if TYPE_CHECKING:
    from flopwise.infer.local import LocalEngine
    from flopwise.posttrain.bench import Bench
    from flopwise.posttrain.judge import Judge
    from flopwise.records.folder import RunFolder


@dataclass
class Answers:
    """Sampled answers, flat: row i answers `problems[group[i]]`; `n` rows to each problem, in order."""

    problems: list[Any]
    n: int
    prompts: list[list[int]]
    """[problems] token ids."""
    completions: list[list[int]]
    """[N] token ids, the end-of-text token included."""
    logprobs: list[np.ndarray]
    """[N] of their tokens when sampled, in nats."""
    finished: np.ndarray
    """[N] bool."""
    right: np.ndarray
    """[N] float64, 1 where the verifier says so; NaN where there is none."""

    @property
    def lengths(self) -> np.ndarray:
        """[N] tokens."""
        return np.array([len(c) for c in self.completions])

    @property
    def group(self) -> np.ndarray:
        """[N] index of each row's problem."""
        return np.repeat(np.arange(len(self.problems)), self.n)

    def by_group(self, values: np.ndarray) -> np.ndarray:
        """Values [N] as [problems, n]."""
        return values.reshape(-1, self.n)

    def __add__(self, other: Answers) -> Answers:
        return Answers(
            self.problems + other.problems, self.n, self.prompts + other.prompts,
            self.completions + other.completions, self.logprobs + other.logprobs,
            np.concatenate([self.finished, other.finished]), np.concatenate([self.right, other.right]),
        )  # fmt: skip

    def of(self, groups: np.ndarray) -> Answers:
        """Those to some of the problems."""
        rows = (groups[:, None] * self.n + np.arange(self.n)).ravel().tolist()
        return Answers(
            [self.problems[g] for g in groups], self.n, [self.prompts[g] for g in groups],
            [self.completions[i] for i in rows], [self.logprobs[i] for i in rows],
            self.finished[rows], self.right[rows],
        )  # fmt: skip


@dataclass
class Rewarded:
    """What answers were rewarded with."""

    total: np.ndarray
    """[N] float64: what is learned from."""
    proxy: np.ndarray | None
    """[N]: the learned rewards by their weights, as they came; None where there are none."""
    parts: dict[str, np.ndarray]
    """[N] each, before scale and weight."""


class Rewards:
    """The weighted sum that the settings ask for.

    Raises:
        FlopwiseError: a weight without its run, a reward model that is none or has another vocabulary, data
            without a verifier where it is to reward.
    """

    def __init__(self, settings: RlSection, bench: Bench, parents: dict[str, RunFolder]):
        self.settings, self.bench = settings, bench
        self.weights = {str(name): w for name, w in settings.rewards.items() if w}
        if not self.weights:
            raise FlopwiseError("rewards are all weighed 0; give at least one a weight")
        if lacking := settings.lacks({role: "" for role in parents}):
            raise FlopwiseError(lacking)
        if "verifier" in self.weights and bench.data.task is None:
            raise FlopwiseError("rewards: verifier needs a task that verifies answers; these data have none")
        self.learned = [name for name in LEARNED if name in self.weights]
        if "reward" in self.weights:
            self.scorer, self.scorer_id = _open_scorer(bench, parents["reward"]), parents["reward"].id
        if "judge" in self.weights:
            self.judge = _open_judge(bench, parents["judge"])

    def __call__(self, answers: Answers, ledger: Ledger) -> Rewarded:
        """Reward answers; what it costs goes to the ledger."""
        parts: dict[str, np.ndarray] = {}
        for name in self.weights:
            if name == "verifier":
                parts[name] = answers.right
            elif name == "length":
                parts[name] = answers.lengths.astype(float)
            else:
                parts[name] = (
                    self._scored(answers, ledger) if name == "reward" else self._judged(answers, ledger)
                )
        total = sum((w * self._scaled(name, parts[name]) for name, w in self.weights.items()), np.zeros(()))
        if self.settings.overlong:
            s = self.settings
            total = total + overlong_penalty(answers.lengths, s.max_tokens, s.overlong)
        learned = [self.weights[name] * parts[name] for name in self.learned]
        return Rewarded(total, sum(learned[1:], learned[0]) if learned else None, parts)

    def _scaled(self, name: str, values: np.ndarray) -> np.ndarray:
        """A learned reward, brought to the scale that the settings ask for."""
        if name not in LEARNED:
            return values
        if self.settings.reward_scale != "none":
            values = values - values.mean()
        if self.settings.reward_scale == "whiten" and (spread := values.std()) > 0:
            values = values / spread
        limit = self.settings.reward_clip
        return values if limit is None else values.clip(-limit, limit)

    def _scored(self, answers: Answers, ledger: Ledger) -> np.ndarray:
        start = time.perf_counter()
        sequences = [answers.prompts[g] + c for g, c in zip(answers.group, answers.completions, strict=True)]
        scores, flops = self.scorer.reward(sequences)
        tokens = sum(map(len, sequences))
        ledger.post("reward", self.scorer_id, tokens, flops, time.perf_counter() - start)
        return scores.astype(np.float64)

    def _judged(self, answers: Answers, ledger: Ledger) -> np.ndarray:
        """A cut answer gets 0: no judge may take it for a finished one."""
        tok = self.bench.tokenizer
        stripped = [c[:-1] if f else c for c, f in zip(answers.completions, answers.finished, strict=True)]
        texts = tok.decode_batch(stripped)
        scores, usage = self.judge.score([answers.problems[g] for g in answers.group], texts)
        ledger.used("judge", self.judge.name, usage)
        return np.where(answers.finished, scores, 0.0)


def _open_scorer(bench: Bench, run: RunFolder) -> LocalEngine:
    from flopwise.infer.local import LocalEngine
    from flopwise.posttrain.bench import load_model

    model = load_model(run).eval()
    name = run.name or run.id
    if not model.n_scores:
        raise FlopwiseError(f"rewards: run {name} has no score head; give a run of a reward method")
    if model.cfg.vocab_size != bench.model.cfg.vocab_size:
        raise FlopwiseError(
            f"rewards: {name} reads a vocabulary of {model.cfg.vocab_size}, the policy writes one of "
            f"{bench.model.cfg.vocab_size}; train the reward model from the same base"
        )
    return LocalEngine(model)


def _open_judge(bench: Bench, run: RunFolder) -> Judge:
    from flopwise.posttrain.judge import open_judge

    task = bench.data.open_task() if bench.data.task else None
    return open_judge(run, task, bench.folder.path / "judged")
