"""Learning from preferences: DPO, KTO, ORPO, SimPO on pairs or thumbs, with an anchor and early stopping.

The reference of DPO and KTO is where training starts. Its log-probabilities of the data never change, so they
are computed once (`reference: cached`); `online` computes them with each batch, as if they did not fit.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from flopwise.errors import FlopwiseError
from flopwise.models import lora
from flopwise.posttrain import feedback
from flopwise.posttrain.bench import Bench, Progress, load_model, logprobs_of
from flopwise.posttrain.examples import Example, collate, epoch_rows, lengths
from flopwise.posttrain.reward import auc
from flopwise.train import preference_objectives as objectives
from flopwise.train.objectives import Batch, Objective

if TYPE_CHECKING:
    from flopwise.models.transformer import Transformer
    from flopwise.records.folder import RunFolder
    from flopwise.records.record import Metric

REFERENCE_FILE = "reference.safetensors"
"""The reference's log-probabilities, while a run trains."""
CHUNK_TOKENS = 8192
"""Of rows that are scored together outside of training."""


@dataclass(frozen=True)
class Passes:
    """What scoring cost."""

    tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: Passes) -> Passes:
        return Passes(
            self.tokens + other.tokens, self.flops + other.flops, self.seconds + other.seconds
        )  # fmt: skip


def totals(model: Transformer, batch: Batch) -> tuple[torch.Tensor, Passes]:
    """log p of each row's completion [B] under a model that does not learn, and the cost."""
    assert batch.weights is not None
    start = time.perf_counter()
    logprobs, flops = logprobs_of(model, batch)
    found = (logprobs * batch.weights).sum(1)
    return found, Passes(batch.ids.numel(), flops, time.perf_counter() - start)


def score_all(model: Transformer, rows: Sequence[Example], pad_id: int) -> tuple[np.ndarray, Passes]:
    """log p of each completion [R]; rows of like length go together."""
    out, cost = np.zeros(len(rows), dtype=np.float32), Passes()
    sizes = lengths(rows)
    order = np.argsort(sizes, kind="stable")
    at = 0
    while at < len(order):
        end = at + 1
        while end < len(order) and (end + 1 - at) * sizes[order[end]] <= CHUNK_TOKENS:
            end += 1
        some = order[at:end]
        found, passes = totals(model, collate([rows[i] for i in some], pad_id))
        out[some], cost, at = found.numpy(), cost + passes, end
    return out, cost


def mismatched(rows: Sequence[Example], limit: int, seed: int) -> list[Example]:
    """Each prompt with the completion of another one, cut at `limit` tokens: on these KTO takes its KL.

    Raises:
        FlopwiseError: there is one prompt only.
    """
    order = np.random.default_rng((seed, 53)).permutation(len(rows))
    prompts = [rows[i].prompt for i in order]
    if all(p == prompts[0] for p in prompts):
        raise FlopwiseError("kto: all rows have the same prompt; it needs answers to different ones")
    out: list[Example] = [rows[0]] * len(rows)
    for k, i in enumerate(order):
        other = next(j for s in range(1, len(order)) if prompts[j := (k + s) % len(order)] != prompts[k])
        mine, theirs = rows[i], rows[order[other]]
        room = max(1, limit - len(mine.prompt))
        weights = None if theirs.weights is None else theirs.weights[:room]
        out[i] = Example(mine.prompt, theirs.completion[:room], weights)
    return out


class Learning:
    """A run's batches by step, its reference, its validations."""

    def __init__(self, folder: RunFolder, parents: dict[str, RunFolder]):
        self.folder, self.parents = folder, parents
        self.bench = Bench.open(folder, parents)
        self.spec = self.bench.spec
        self.method, self.pad = folder.method, self.bench.data.pad_id
        self.train, self.held = feedback.read(self.bench, parents, paired=self.method != "kto")
        self.sizes = self.train.sizes()
        self.units = epoch_rows(self.sizes, self.spec["batch_size"], folder.seed)
        self.demonstrations: list[Example] = []
        if self.spec["anchor"] and self.spec["anchor_on"] == "demonstrations":
            self.demonstrations = self.bench.demonstrations()
            self.shown = epoch_rows(lengths(self.demonstrations), self.spec["batch_size"], folder.seed + 1)
        self.steps = self.spec.get("steps") or max(
            1, round(self.spec["epochs"] * len(self.train) / self.spec["batch_size"])
        )
        self.cost = Passes()
        self.start: Transformer | None = None
        self.other: list[Example] = []
        self.before: np.ndarray | None = None
        self.before_cost = Passes()
        if self.referenced:
            if self.held is not None:  # the model has not learned yet: it is the reference
                self.before, self.before_cost = score_all(self.bench.model, self.held.rows, self.pad)
            if self.method == "kto":
                limit = self.bench.model.cfg.max_seq_len
                self.other = mismatched(self.train.rows, limit, folder.seed)
            if self.spec["reference"] == "cached":
                self._cache()
            elif self.bench.model.lora is None:
                self.start = load_model(parents["init"])

    @property
    def referenced(self) -> bool:
        """Whether the method has a reference."""
        return "reference" in self.spec

    @contextmanager
    def reference(self) -> Iterator[Transformer]:
        """The model as it was at the start."""
        if self.bench.model.lora is not None:
            with lora.disabled(self.bench.model) as base:
                yield base
        else:
            yield self.start or load_model(self.parents["init"])

    def _cache(self) -> None:
        """Score all data once, before anything is learned; a resumed run reads what it wrote."""
        from safetensors import safe_open
        from safetensors.numpy import save

        from flopwise.records.folder import atomic_write

        path = self.folder.path / REFERENCE_FILE
        if not path.exists():
            model = self.bench.model
            known, cost = score_all(model, self.train.rows, self.pad)
            tensors = {"reference": known}
            if self.other:
                tensors["mismatched"], more = score_all(model, self.other, self.pad)
                cost += more
            atomic_write(path, save(tensors, {"cost": json.dumps(vars(cost))}))
        with safe_open(path, framework="pt") as f:
            self.known = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
            self.cost = Passes(**json.loads(f.metadata()["cost"]))

    def __call__(self, step: int) -> Batch:
        """The batch of a step: it depends on the step, the seed and the model alone."""
        places = self.train.places(self.units(step))
        judged = [self.train.rows[i] for i in places]
        shown = [self.demonstrations[i] for i in self.shown(step)] if self.demonstrations else []
        batch = collate(judged + shown, self.pad)
        sign = np.concatenate([self.train.signs[places], np.zeros(len(shown))])
        batch.extra["sign"] = torch.from_numpy(sign.astype(np.float32))
        if shown:
            assert batch.weights is not None
            batch.extra["anchor"] = batch.weights * (batch.extra["sign"] == 0)[:, None]
        if self.referenced:
            self._refer(batch, collate(judged, self.pad), places)
        if step == 0 and self.cost.tokens:
            self._post(batch, "reference", self.cost)
        return batch

    def _refer(self, batch: Batch, judged: Batch, places: np.ndarray) -> None:
        """What the reference says of the judged rows; how far from it the policy is on mismatched ones."""
        other = collate([self.other[i] for i in places], self.pad) if self.other else None
        if self.spec["reference"] == "cached":
            found = {name: known[places] for name, known in self.known.items()}
        else:
            with self.reference() as model:
                found = {}
                for name, rows in (("reference", judged), ("mismatched", other)):
                    if rows is not None:
                        found[name], cost = totals(model, rows)
                        self._post(batch, "reference", cost)
        if other is not None:
            policy, cost = totals(self.bench.model, other)
            self._post(batch, "policy", cost)
            found["mismatched"] = policy - found["mismatched"]
        self.bench.model.train()
        rest = torch.zeros(len(batch.ids) - len(places))
        batch.extra |= {name: torch.cat([values, rest]) for name, values in found.items()}

    def _post(self, batch: Batch, kind: str, cost: Passes) -> None:
        run = self.folder.id if kind == "policy" else self.parents["init"].id
        batch.ledger.post(kind, run, cost.tokens, cost.flops, cost.seconds)

    def objective(self) -> Objective:
        """What the method minimises."""
        spec = self.spec
        if self.method == "dpo":
            return objectives.dpo(
                spec["beta"], spec["label_smoothing"], spec["loss"], spec["per_token"], spec["anchor"]
            )
        if self.method == "kto":
            return objectives.kto(spec["beta"], *self.class_weights(), spec["anchor"])
        if self.method == "orpo":
            return objectives.orpo(spec["odds_weight"], spec["anchor"])
        return objectives.simpo(spec["beta"], spec["margin"], spec["anchor"])

    def class_weights(self) -> tuple[float, float]:
        """Of thumbs up and down: as told, else so that both classes weigh the same, the larger one 1."""
        up = int((self.train.signs > 0).sum())
        down = len(self.train.signs) - up
        if not up or not down:
            raise FlopwiseError(
                f"kto: all {up + down} answers are {'up' if up else 'down'}; it needs both kinds"
            )
        most = max(up, down)
        told = self.spec.get("up_weight"), self.spec.get("down_weight")
        return most / up if told[0] is None else told[0], most / down if told[1] is None else told[1]

    def validate(self, step: int) -> dict[str, float]:
        """Accuracy on validation problems, on held-out feedback, and the divergence from the start; where no
        task verifies answers, the accuracy on held-out feedback stands for the first."""
        row, cost = Bench.validate(self.bench, step), Passes()
        if self.held is not None:
            accuracy, n, cost = self.held_out(step)
            row["val_pair_accuracy"] = accuracy
            if "val_accuracy" not in row:
                se = math.sqrt(max(accuracy * (1 - accuracy), 0.0) / n)
                row |= {"val_accuracy": accuracy, "val_se": se, "val_n": n}
        if self.spec["kl_problems"]:
            kl, se, more = self.divergence(step)
            row |= {"val_kl": kl, "val_kl_se": se}
            cost += more
        row["evaluate_flops"] = row.get("evaluate_flops", 0.0) + cost.flops
        row["evaluate_tokens"] = row.get("evaluate_tokens", 0) + cost.tokens
        return row

    def held_out(self, step: int) -> tuple[float, int, Passes]:
        """The chance that what is wanted is rewarded more than what is not, within pairs, or over all where
        there are none; how many that is taken over; the cost. The reward is the method's own."""
        assert self.held is not None
        rows, signs = self.held.rows, self.held.signs
        rewards, cost = score_all(self.bench.model, rows, self.pad)
        if self.before is not None:
            rewards = rewards - self.before
            if step == min(self.bench.eval_steps(self.steps)):
                cost += self.before_cost  # entered once, however often a run is resumed
        if not self.referenced or self.spec.get("per_token"):
            rewards = rewards / np.array([len(e.completion) for e in rows])
        if self.held.per_unit == 2:
            gap = rewards[0::2] - rewards[1::2]
            return float((gap > 0).mean() + (gap == 0).mean() / 2), len(gap), cost
        n = int(min((signs > 0).sum(), (signs < 0).sum()))
        return auc(rewards, signs > 0) if n else 0.5, max(n, 1), cost

    def divergence(self, step: int) -> tuple[float, float, Passes]:
        """KL(policy || start) in nats a sequence, its standard error, the cost: one sample for each of
        `kl_problems` validation problems."""
        problems = self.bench.problems("val")[: self.spec["kl_problems"]]
        samples = self.bench.sample(problems, 1, self.folder.seed * 1_000_003 + step)
        usage = samples.usage
        rows = self.bench.sampled_examples(problems, samples)
        with self.reference() as model:
            before, cost = score_all(model, rows, self.pad)
        each = samples.logprobs.sum(1) - before
        passes = Passes(usage.prefill_tokens + usage.decode_tokens, usage.flops, usage.seconds)
        return float(each.mean()), float(each.std(ddof=1) / math.sqrt(len(each))), cost + passes

    def metrics(self) -> dict[str, Metric]:
        """Of the weights that were kept."""
        from flopwise.records.record import Metric

        rows = self.folder.curve("val_accuracy")
        if not rows:
            return {}
        best = max(rows, key=lambda r: r["val_accuracy"]) if self.spec["keep"] == "best" else rows[-1]
        out = {}
        if self.held is not None:
            p, n = best["val_pair_accuracy"], len(self.held)
            out["val_pair_accuracy"] = Metric(value=p, se=math.sqrt(p * (1 - p) / n), n=n)
        if "val_kl" in best:
            out["val_kl"] = Metric(value=best["val_kl"], se=best["val_kl_se"], n=self.spec["kl_problems"])
        return out


def run_step(folder: RunFolder, parents: dict[str, RunFolder], progress: Progress) -> None:
    """Train parent `init` on the pairs or thumbs of a run, or on a dataset of such."""
    learning = Learning(folder, parents)
    bench: Any = learning.bench
    objective = learning.objective()
    bench.validate = learning.validate
    counters = bench.fit(learning, learning.steps, progress, objective)
    extra = {
        "steps": learning.steps, "units": len(learning.train),
        "heldout_units": len(learning.held) if learning.held else 0,
        "epochs": learning.steps * learning.spec["batch_size"] / len(learning.train),
    }  # fmt: skip
    (folder.path / REFERENCE_FILE).unlink(missing_ok=True)
    bench.finish(counters, learning.metrics(), int(learning.sizes.sum()), extra)
