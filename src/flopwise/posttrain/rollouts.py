"""Roll-outs as batches: sample from the current model, reward, weigh, hand out in parts."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from flopwise.errors import FlopwiseError
from flopwise.flops.ledger import Ledger
from flopwise.models import lora
from flopwise.posttrain.advantages import gae, group_advantages, leave_one_out, normalised, to_go
from flopwise.posttrain.alarm import Monitor, mean_of_groups
from flopwise.posttrain.bench import Bench, completion_ids, logprobs_of
from flopwise.posttrain.examples import Example, collate
from flopwise.posttrain.rl_rewards import Answers, Rewarded, Rewards
from flopwise.posttrain.settings.rl import PpoSection, RlSection
from flopwise.train.objectives import Batch
from flopwise.train.rl_objectives import REFERENCE, RETURNS, VALUES, kl_terms

if TYPE_CHECKING:
    from flopwise.models.transformer import Transformer
    from flopwise.posttrain.critic import Critic

PROBLEMS, REFILL, ORDER = 77, 78, 79
"""Streams of random numbers, apart by purpose."""


class Rollouts:
    """Makes the batch of every update.

    A roll-out depends on its number, the seed and the model's weights alone; the updates on it follow each
    other (checkpoints are held back until they are through), so a resumed run repeats it exactly.

    Args:
        reference: with its run's id, where the divergence from it counts or is to be tracked; none where the
            bench's model is the reference, its adapters switched off.
        critic: of PPO.
        on_alarm: told when the learned reward and the verifier part.
    """

    def __init__(
        self,
        bench: Bench,
        settings: RlSection,
        rewards: Rewards,
        reference: tuple[Transformer | None, str] | None = None,
        critic: Critic | None = None,
        on_alarm: Callable[[str], None] = lambda text: None,
    ):
        self.bench, self.settings, self.rewards = bench, settings, rewards
        self.reference, self.critic, self.on_alarm = reference, critic, on_alarm
        self.pool = bench.data.problems("rl")
        wanted = settings.problems_per_step
        if len(self.pool) < wanted:
            raise FlopwiseError(
                f"{bench.folder.method}: {wanted} problems per step, but only {len(self.pool)} exist; "
                "ask for fewer"
            )
        self.updates = settings.epochs * settings.minibatches
        self.monitor: Monitor | None = None
        if settings.alarm and rewards.learned and bench.data.task is not None:
            self.monitor = Monitor(settings.alarm_window, settings.alarm_z)
        self.batch: Batch | None = None

    @property
    def alarmed(self) -> bool:
        """Whether the alarm has gone off."""
        return self.monitor is not None and self.monitor.alarm is not None

    def problems(self, index: int) -> list[Any]:
        """Of a roll-out: a fresh permutation of the pool each epoch."""
        k = self.settings.problems_per_step
        per_epoch = len(self.pool) // k
        epoch, slot = divmod(index, per_epoch)
        order = np.random.default_rng((self.bench.folder.seed, PROBLEMS, epoch)).permutation(len(self.pool))
        return [self.pool[i] for i in order[slot * k : (slot + 1) * k]]

    def __call__(self, step: int) -> Batch:
        """The batch of an update; the first one of each roll-out makes it, and carries what it cost."""
        index, update = divmod(step, self.updates)
        if update == 0:
            self.batch = self._roll(index)
        assert self.batch is not None
        return self.batch if self.updates == 1 else self._part(self.batch, index, update)

    def _roll(self, index: int) -> Batch:
        s, ledger = self.settings, Ledger()
        answers = self._sample(self.problems(index), self.bench.folder.seed * 1_000_003 + index, ledger)
        rewarded = self.rewards(answers, ledger)
        info = self._info(answers, rewarded)
        self._watch(index, info)
        if s.zero_variance == "resample":
            answers, rewarded, rounds = self._refill(index, answers, rewarded, ledger)
            info["rounds"] = float(rounds)
        by_token = s.advantage in ("batch", "group-batch", "gae") or (s.kl > 0 and s.kl_in == "reward")
        batch = (self._whole if by_token else self._kept)(answers, rewarded, info, ledger)
        self.bench.model.train()
        batch.ledger, batch.info = ledger, info
        return batch

    def _sample(self, problems: list[Any], seed: int, ledger: Ledger) -> Answers:
        s, bench = self.settings, self.bench
        samples = bench.sample(problems, s.group_size, seed, s.temperature, s.max_tokens)
        ledger.used("sample", bench.folder.id, samples.usage)
        if bench.data.task is None:
            right = np.full(len(samples.lengths), np.nan)
        else:
            right = bench.verify(problems, samples).astype(np.float64)
        logprobs = [row[:length] for row, length in zip(samples.logprobs, samples.lengths, strict=True)]
        return Answers(
            problems, s.group_size, bench.prompts(problems), completion_ids(samples), logprobs,
            samples.finished, right,
        )  # fmt: skip

    def _info(self, answers: Answers, rewarded: Rewarded) -> dict[str, float]:
        """What is logged of a roll-out, before anything is left out or replaced."""
        info = {
            "reward": float(answers.by_group(rewarded.total).mean()),
            "signal": float(np.repeat(_varied(answers, rewarded), answers.n).mean()),
            "mean_tokens": float(answers.lengths.mean()), "finished": float(answers.finished.mean()),
        }  # fmt: skip
        if rewarded.proxy is not None:
            for name, values in (("proxy", rewarded.proxy), ("gold", answers.right)):
                if not np.isnan(values).any():
                    info[name], info[f"{name}_se"] = mean_of_groups(answers.by_group(values))
        if len(rewarded.parts) > 1:
            info |= {f"reward_{name}": float(values.mean()) for name, values in rewarded.parts.items()}
        return info

    def _watch(self, index: int, info: dict[str, float]) -> None:
        """Show the alarm's monitor a roll-out, after all that were logged before this process began."""
        if self.monitor is None:
            return
        names = ("proxy", "proxy_se", "gold", "gold_se")
        if index and not self.monitor.rows:
            for row in self.bench.folder.curve(*names):
                self.monitor.observe(*(row[name] for name in names))
        alarm = self.monitor.observe(*(info[name] for name in names))
        if alarm is not None:
            self.on_alarm(str(alarm))
        if self.alarmed:
            info["alarm"] = 1.0

    def _refill(
        self, index: int, answers: Answers, rewarded: Rewarded, ledger: Ledger
    ) -> tuple[Answers, Rewarded, int]:
        """Replace groups without a signal by new problems' (DAPO, arXiv 2503.14476, section 3.2).

        Each round asks for as many problems as should fill the gap at the rate seen so far. Also returns the
        rounds taken.
        """
        k, rounds = self.settings.problems_per_step, 1
        found = np.flatnonzero(_varied(answers, rewarded))
        asked = {p.key for p in answers.problems}
        kept, totals, drawn = answers.of(found), answers.by_group(rewarded.total)[found], k
        while len(kept.problems) < k and rounds <= self.settings.refills:
            rate = max(len(kept.problems), 1) / drawn
            wanted = min(k, math.ceil((k - len(kept.problems)) / rate))
            rng = np.random.default_rng((self.bench.folder.seed, REFILL, index, rounds))
            order = (self.pool[i] for i in rng.permutation(len(self.pool)))
            problems = [p for p in order if p.key not in asked][:wanted]
            if not problems:
                break
            asked |= {p.key for p in problems}
            more = self._sample(problems, int(rng.integers(2**62)), ledger)
            got = self.rewards(more, ledger)
            found = np.flatnonzero(_varied(more, got))
            kept += more.of(found)
            totals = np.concatenate([totals, more.by_group(got.total)[found]])
            drawn, rounds = drawn + len(problems), rounds + 1
        chosen = np.arange(min(k, len(kept.problems)))
        return kept.of(chosen), Rewarded(totals[chosen].ravel(), None, {}), rounds

    def _kept(self, answers: Answers, rewarded: Rewarded, info: dict[str, float], ledger: Ledger) -> Batch:
        """One advantage for each answer; what carries none is left out before anything is computed."""
        s = self.settings
        rewards = answers.by_group(rewarded.total)
        flat = self._advantages(rewards).ravel()
        keep = np.ones(len(flat), dtype=bool)
        if s.zero_variance != "keep":
            keep &= np.repeat(_varied(answers, rewarded), answers.n)
        if s.mask_overlong:
            keep &= answers.finished
        rows = np.flatnonzero(keep)
        if not len(rows):
            return nothing()
        batch = self._collate(answers, rows)
        assert batch.weights is not None
        batch.advantages = batch.weights * torch.from_numpy(flat[rows].astype(np.float32))[:, None]
        if self.reference is not None:
            self._refer(batch, info, ledger)
        return batch

    def _advantages(self, rewards: np.ndarray) -> np.ndarray:
        """Of rewards [problems, n], within their groups."""
        if self.settings.advantage == "leave-one-out":
            return leave_one_out(rewards)
        return group_advantages(rewards, self.settings.scale_by_std)

    def _whole(self, answers: Answers, rewarded: Rewarded, info: dict[str, float], ledger: Ledger) -> Batch:
        """An advantage for each token of all answers: rewards of tokens, a critic's values, or both."""
        s, lengths = self.settings, answers.lengths
        batch = self._collate(answers, np.arange(len(lengths)))
        assert batch.old_logprobs is not None and batch.weights is not None
        mask = np.arange(lengths.max()) < lengths[:, None]
        penalty = np.zeros(mask.shape)
        if self.reference is not None:
            self._refer(batch, info, ledger)
        if s.kl and s.kl_in == "reward":
            terms = kl_terms(batch.old_logprobs, batch.extra[REFERENCE], s.kl_estimator)
            penalty = -s.kl * self._ragged(terms, batch, mask)
            info["kl_reward"] = float(penalty.sum(1).mean())
        last = np.zeros(mask.shape)
        total = rewarded.total
        if s.advantage == "group-batch":
            total = group_advantages(answers.by_group(total), by_std=False).ravel()
        last[np.arange(len(lengths)), lengths - 1] = total
        if isinstance(s, PpoSection):
            assert self.critic is not None
            values = self._ragged(self.critic.judge(self.bench.model, batch, ledger), batch, mask)
            raw = gae(penalty + last, values, lengths, s.gamma, s.lam)
            batch.extra[VALUES] = self._aligned(values, batch, mask)
            batch.extra[RETURNS] = self._aligned(raw + values, batch, mask)
            info |= {"value": float(values[mask].mean()), "explained": _explained(values[mask], raw[mask])}
            advantages = normalised(raw, mask)
        elif s.advantage in ("batch", "group-batch"):
            advantages = normalised(to_go(penalty + last), mask)
        else:
            rewards = answers.by_group(total + penalty.sum(1))
            advantages = self._advantages(rewards).reshape(-1, 1) * mask
        batch.advantages = self._aligned(advantages, batch, mask)
        if s.mask_overlong:
            batch = _rows(batch, torch.from_numpy(np.flatnonzero(answers.finished)))
        return batch if batch.ids.numel() else nothing()

    def _collate(self, answers: Answers, rows: np.ndarray) -> Batch:
        group = answers.group
        examples = [Example(tuple(answers.prompts[group[i]]), tuple(answers.completions[i])) for i in rows]
        return collate(examples, self.bench.tokenizer.pad_id, [answers.logprobs[i] for i in rows])

    def _refer(self, batch: Batch, info: dict[str, float], ledger: Ledger) -> None:
        """The reference's log-probabilities, and how far the policy is from it, in nats a sequence."""
        assert self.reference is not None and batch.weights is not None and batch.old_logprobs is not None
        model, run = self.reference
        with lora.disabled(self.bench.model) if model is None else nullcontext(model) as start:
            batch.extra[REFERENCE], flops = logprobs_of(start, batch)
        ledger.post("reference", run, batch.ids.numel(), flops)
        distance = (batch.old_logprobs - batch.extra[REFERENCE]) * batch.weights
        info["kl"] = float(distance.sum(1).mean())

    @staticmethod
    def _ragged(values: Tensor, batch: Batch, mask: np.ndarray) -> np.ndarray:
        """Values [B, T] of targets, as float64 [N, L] of each answer's tokens."""
        assert batch.weights is not None
        out = np.zeros(mask.shape)
        out[mask] = values[batch.weights > 0].double().numpy()
        return out

    @staticmethod
    def _aligned(values: np.ndarray, batch: Batch, mask: np.ndarray) -> Tensor:
        """The way back: [N, L] to float32 [B, T]."""
        assert batch.weights is not None
        out = torch.zeros_like(batch.weights)
        out[batch.weights > 0] = torch.from_numpy(values[mask].astype(np.float32))
        return out

    def _part(self, batch: Batch, index: int, update: int) -> Batch:
        """The mini-batch of an update: each epoch a fresh order of the roll-out's answers."""
        epoch, slot = divmod(update, self.settings.minibatches)
        rng = np.random.default_rng((self.bench.folder.seed, ORDER, index, epoch))
        order = rng.permutation(len(batch.ids))
        rows = np.sort(np.array_split(order, self.settings.minibatches)[slot])
        part = _rows(batch, torch.from_numpy(rows)) if len(rows) else nothing()
        if update == 0:
            part.ledger, part.info = batch.ledger, batch.info
        if self.critic is not None and len(rows):
            part.ledger.add(self.critic.training(self.bench.model, part))
        return part


def nothing() -> Batch:
    """A batch that nothing is learned from."""
    empty = torch.zeros(1, 1, dtype=torch.int64)
    return Batch(empty, empty, torch.zeros(1, 1))


def _varied(answers: Answers, rewarded: Rewarded) -> np.ndarray:
    """[problems] bool: whether a group's rewards differ, so that there is something to tell apart."""
    spread: np.ndarray = np.ptp(answers.by_group(rewarded.total), axis=1) > 0
    return spread


def _rows(batch: Batch, rows: Tensor) -> Batch:
    """Some rows of a roll-out, without the columns that none of them fills."""
    assert batch.weights is not None and batch.targets is not None
    assert batch.advantages is not None and batch.old_logprobs is not None
    used = batch.weights[rows].any(0).nonzero()
    width = int(used[-1]) + 1 if len(used) else 0

    def cut(t: Tensor) -> Tensor:
        return t[rows, :width]

    return Batch(
        cut(batch.ids), cut(batch.targets), cut(batch.weights), cut(batch.advantages),
        cut(batch.old_logprobs), extra={name: cut(t) for name, t in batch.extra.items()},
    )  # fmt: skip


def _explained(values: np.ndarray, error: np.ndarray) -> float:
    """Share of the returns' variance that the critic explains: 1 - var(error) / var(values + error)."""
    spread = (values + error).var()
    return float(1 - error.var() / spread) if spread > 0 else 0.0
