"""What every post-training step shares: load the start, sample, judge, train, validate, write the record."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from flopwise.errors import FlopwiseError
from flopwise.flops.count import count_params, score_flops
from flopwise.models import hf, lora
from flopwise.models.adapters import LoRA
from flopwise.models.transformer import Transformer
from flopwise.train.loop import Counters, train, update_flops
from flopwise.train.objectives import Batch, Objective, cross_entropy, token_logprobs
from flopwise.train.optim import Optimiser, Rates
from flopwise.train.parallel import Steps
from flopwise.train.schedule import Linear

if TYPE_CHECKING:
    from flopwise.data.instructions import Instructions
    from flopwise.data.prepare import PreparedData
    from flopwise.infer.engine import SampleBatch
    from flopwise.posttrain.examples import Example
    from flopwise.records.folder import RunFolder
    from flopwise.records.record import Metric

Progress = Callable[[float], None]

BEST_FILE = "best.safetensors"
"""Weights of the validation that was best so far, where a step keeps the best."""
HELDOUT_ROWS = 256
"""Of somebody's own data, that a validation takes the loss on."""


@dataclass
class Bench:
    """One step's workbench: the start model, its data, the spec.

    `data` is what is learned from: a task's data, or somebody's own rows; `questions` is where problems come
    from that can be verified, where that is another folder (input `task`). `validate(step)` gives the columns
    of a curve's row; a method whose model answers no questions replaces it.
    """

    folder: RunFolder
    data: PreparedData
    model: Transformer
    questions: PreparedData | None = None
    base: Path | None = None
    """Folder of the model that adapters are trained on."""

    @classmethod
    def open(cls, folder: RunFolder, parents: dict[str, RunFolder], role: str = "init") -> Bench:
        """Load the model of parent `role`, with adapters where the spec asks for `lora`, and the data."""
        base = parents[role].path / "model"
        model = load_model(parents[role])
        if folder.spec.get("lora"):
            lora.attach(model, LoRA(**folder.spec["lora"]), folder.seed)
        asked = read_by(open_data(parents["task"]), base) if "task" in parents else None
        return cls(folder, read_by(open_data(parents["data"]), base), model, asked, base)

    @property
    def spec(self) -> dict[str, Any]:
        """All the step was asked to do."""
        return self.folder.spec

    @property
    def tokenizer(self) -> Any:
        """The model's own."""
        return self.data.tokenizer

    def demonstrations(self) -> list[Example]:
        """The fixed set of worked examples every method starts from."""
        if rows := own_rows(self.data):
            return list(rows.examples("train"))
        return to_examples(self.data, [(d.prompt, d.completion) for d in self.data.demos()])

    def prompts(self, problems: Sequence[Any]) -> list[list[int]]:
        """Token ids of the problems' prompts."""
        return prompt_ids(self.data, problems)

    @property
    def asked(self) -> PreparedData:
        """The data with the problems that can be verified."""
        return self.questions or self.data

    def problems(self, name: str) -> list[Any]:
        """Problems of the set `rl`, `val` or `test`."""
        return self.asked.problems(name)

    def sample(
        self, problems: list[Any], n: int, seed: int, temperature: float = 1.0, max_tokens: int = 64,
        model: Transformer | None = None,
    ) -> SampleBatch:  # fmt: skip
        """n completions per problem by the model in training, or by another one of its tokenizer."""
        return sample(model or self.model, self.data, problems, n, seed, temperature, max_tokens)

    def verify(self, problems: list[Any], samples: SampleBatch) -> np.ndarray:
        """Whether each sample is right [N], by the task's exact verifier."""
        return np.array(verify_all(self.asked, problems, samples), dtype=bool)

    def sampled_examples(self, problems: list[Any], samples: SampleBatch) -> list[Example]:
        """The samples as training data, in their order."""
        from flopwise.posttrain.examples import Example

        prompts = self.prompts(problems)
        return [
            Example(tuple(prompts[p]), tuple(c))
            for p, c in zip(samples.prompt_index, completion_ids(samples), strict=True)
        ]

    def validate(self, step: int) -> dict[str, float]:
        """Greedy accuracy on the first `val_problems` validation problems, which is no part of the spend;
        with rows of somebody's own also the loss on those held out, in nats per learned token."""
        row = self._heldout_loss()
        if self.asked.task is None:
            return row
        problems = self.problems("val")[: self.spec["val_problems"]]
        if problems:
            limit = self.spec.get("val_max_tokens", 64)
            samples = self.sample(problems, 1, seed=0, temperature=0.0, max_tokens=limit)
            p = float(np.mean(self.verify(problems, samples)))
            row["val_accuracy"], row["val_n"] = p, len(problems)
            row["val_se"] = math.sqrt(p * (1 - p) / len(problems))
        return row

    def _heldout_loss(self) -> dict[str, float]:
        """Mean loss on held-out rows [at most `HELDOUT_ROWS`], with its standard error over rows."""
        rows = own_rows(self.data)
        if rows is None or rows.kind == "problems":
            return {}
        from flopwise.posttrain.examples import collate

        held = rows.examples("heldout")
        losses, weights = [], []
        for start in range(0, min(len(held), HELDOUT_ROWS), 16):
            batch = collate(held[start : start + 16], self.tokenizer.pad_id)
            assert batch.weights is not None
            logprobs, _ = logprobs_of(self.model, batch)
            losses += (-(logprobs * batch.weights).sum(1)).tolist()
            weights += batch.weights.sum(1).tolist()
        if not losses or not sum(weights):
            return {}
        loss = np.sum(losses) / np.sum(weights)
        spread = np.asarray(losses) - loss * np.asarray(weights)
        se = math.sqrt(float(np.square(spread).sum())) / float(np.sum(weights))
        return {"val_loss": float(loss), "val_loss_se": se, "val_rows": len(losses)}

    def eval_steps(self, total: int) -> set[int]:
        """Steps at which the accuracy curve is taken: `curve_points` of them, the last included."""
        k = max(1, self.spec["curve_points"])
        return {round(total * i / k) for i in range(1, k + 1)}

    def fit(
        self, next_batch: Callable[[int], Batch | None], steps: int, progress: Progress,
        objective: Objective = cross_entropy, log_every: int = 20, *, checkpoint_between: int = 1,
        also: Callable[[Optimiser], Steps] | None = None, stop: Callable[[], bool] | None = None,
    ) -> Counters:  # fmt: skip
        """Train with the spec's rates: linear decay after a short warm-up.

        `keep: best` ends with the weights of the best validation, and with `patience: k` training ends after
        k validations in a row that were no better than the best before: early stopping on the true metric.

        Args:
            checkpoint_between: steps that belong together, see `train`.
            also: makes of the model's optimiser one that moves more than the model.
            stop: where it says so, training ends with a last validation.
        """
        rates = Rates(**self.spec["rates"]).scaled(self.spec["rate_factor"])
        optimiser = Optimiser(self.model, rates)
        schedule = Linear(self.spec.get("warmup_steps", 10), steps, self.spec.get("final_rate", 0.0))
        counters = train(
            self.model, also(optimiser) if also else optimiser, next_batch, objective, schedule, self.folder,
            first_step=0, last_step=steps, progress=lambda f: progress(0.97 * f),
            evaluate=self._judge, evaluate_at=_Moments(self.eval_steps(steps), stop), log_every=log_every,
            stop=lambda: self._out_of_patience() or (stop is not None and stop()),
            checkpoint_between=checkpoint_between,
        )  # fmt: skip
        best = self.folder.path / BEST_FILE
        if self.spec.get("keep") == "best" and best.exists():
            from safetensors.torch import load_file

            self.model.load_state_dict(load_file(best))
            best.unlink()
        return counters

    def _judge(self, step: int) -> dict[str, float]:
        """A validation; the best one's weights are kept where the spec asks for them."""
        row = self.validate(step)
        if self._keeps_best and (name := _judge_of(row)):
            before = [_good(r, name) for r in self.folder.curve(name) if r["step"] < step]
            if _good(row, name) > max(before, default=-math.inf):
                from safetensors.torch import save

                from flopwise.records.folder import atomic_write

                weights = {k: t.detach().clone() for k, t in self.model.state_dict().items()}
                atomic_write(self.folder.path / BEST_FILE, save(weights))
        return row

    def _out_of_patience(self) -> bool:
        """Whether the last `patience` validations all failed to beat what came before."""
        if not self.spec.get("patience"):
            return False
        seen = [_good(r, name) for r in self.folder.curve() if (name := _judge_of(r))]
        best = seen.index(max(seen)) if seen else 0
        return bool(seen) and len(seen) - 1 - best >= int(self.spec["patience"])

    def finish(
        self,
        counters: Counters,
        metrics: dict[str, Metric],
        tokens_unique: int | None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        """Save the model, drop the training state, write the record."""
        from flopwise.records.record import Metric
        from flopwise.train.checkpoint import STATE_FILE

        judged = [(r, name) for r in self.folder.curve() if (name := _judge_of(r))]
        if judged:
            row = max(judged, key=lambda j: _good(*j))[0] if self._keeps_best else judged[-1][0]
            if "val_accuracy" in row:
                accuracy = Metric(value=row["val_accuracy"], se=row["val_se"], n=int(row["val_n"]))
                metrics = {"val_accuracy": accuracy, **metrics}
            if "val_loss" in row:
                loss = Metric(value=row["val_loss"], se=row["val_loss_se"], n=int(row["val_rows"]))
                metrics = {"val_loss": loss, **metrics}
        self.save(self.folder.path / "model")
        (self.folder.path / STATE_FILE).unlink(missing_ok=True)
        self.folder.finish(
            metrics=metrics, spend=counters.spend(), model=model_fields(self.model),
            data={
                "corpus": self.data.task or self.asked.task, "modality": "text",
                "tokens_seen": counters.tokens, "tokens_unique": tokens_unique,
            },
            extra={"width": self.model.cfg.d_model, **(extra or {})},
        )  # fmt: skip

    def save(self, path: Path) -> None:
        """The model with its tokenizer and chat template; adapters alone where only they were trained."""
        if self.model.lora is not None:
            assert self.base is not None
            lora.save(self.model, path, self.base, self.tokenizer)
        else:
            hf.save(self.model, path, self.tokenizer)
        if rows := own_rows(self.data):
            rows.chat.save(path)

    @property
    def _keeps_best(self) -> bool:
        return self.spec.get("keep") == "best"


def _judge_of(row: dict[str, Any]) -> str | None:
    """The column a validation is judged by: accuracy where there is a verifier, else the loss."""
    return next((name for name in ("val_accuracy", "val_loss") if name in row), None)


def _good(row: dict[str, Any], name: str) -> float:
    """Larger is better."""
    return -float(row[name]) if name == "val_loss" else float(row[name])


@dataclass(frozen=True)
class _Moments:
    """Steps at which a validation is taken: planned ones, and that at which training is to stop."""

    planned: set[int]
    stop: Callable[[], bool] | None

    def __contains__(self, step: object) -> bool:
        return step in self.planned or (self.stop is not None and self.stop())


def open_data(run: RunFolder) -> Any:
    """The data of a finished data step: a task's, or rows of somebody's own."""
    from flopwise.data.instructions import Instructions, is_dataset
    from flopwise.data.prepare import PreparedData

    return Instructions(run.path) if is_dataset(run.path) else PreparedData(run.path)


def read_by(data: Any, model: Path) -> Any:
    """A task's data as the model in this folder reads them: texts go through its own tokenizer, which may be
    another than the one that the data were prepared with. Rows of somebody's own hold token ids, and stay."""
    from flopwise.data.tokenizer import hub_tokenizer

    own, theirs = model / "tokenizer.json", data.path / "tokenizer.json"
    if own_rows(data) is None and own.exists() and own.read_bytes() != theirs.read_bytes():
        data.tokenizer = hub_tokenizer(str(model))
    return data


def own_rows(data: Any) -> Instructions | None:
    """The data, if they are rows of somebody's own."""
    from flopwise.data.instructions import Instructions

    return data if isinstance(data, Instructions) else None


def prompt_ids(data: PreparedData, problems: Sequence[Any]) -> list[list[int]]:
    """Token ids of prompts; a chat's hold special tokens that their text does not give."""
    if problems and hasattr(problems[0], "prompt_ids"):
        return [list(p.prompt_ids) for p in problems]
    ids: list[list[int]] = data.tokenizer.encode_batch([p.prompt for p in problems])
    return ids


def load_model(run: RunFolder) -> Transformer:
    """The model that a finished run made."""
    return hf.load(run.path / "model")


@torch.no_grad()
def logprobs_of(model: Transformer, batch: Batch) -> tuple[torch.Tensor, float]:
    """log p(target) [B, T] under a model that does not learn (reference, teacher), and the FLOPs of that.

    The head is applied where the batch has weight, as in training.
    """
    model.eval()
    B, T = batch.ids.shape
    logits = T if batch.weights is None else int(torch.count_nonzero(batch.weights)) / B
    return token_logprobs(model, batch), score_flops(model.cfg, T, B, logits).total


def model_fields(model: Transformer) -> dict[str, Any]:
    """The `model` part of a record."""
    params = count_params(model.cfg)
    return {
        "n_params_total": params.total, "n_params_active": params.active,
        "n_params_non_embedding": params.non_embedding, "architecture": model.cfg.to_dict(),
    }  # fmt: skip


def to_examples(data: PreparedData, pairs: list[tuple[str, str]]) -> list[Example]:
    """Tokenise (prompt, completion) texts; the end-of-text token closes each completion."""
    from flopwise.posttrain.examples import Example

    tok = data.tokenizer
    prompts = tok.encode_batch([p for p, _ in pairs])
    completions = tok.encode_batch([c for _, c in pairs])
    return [Example(tuple(p), (*c, tok.eos_id)) for p, c in zip(prompts, completions, strict=True)]


def sample(
    model: Transformer, data: PreparedData, problems: list[Any], n: int, seed: int,
    temperature: float = 1.0, max_tokens: int = 64,
) -> SampleBatch:  # fmt: skip
    """n completions per problem from the local engine."""
    from flopwise.infer.local import LocalEngine

    model.eval()
    stop = getattr(data, "stop_ids", None) or [data.tokenizer.eos_id]
    return LocalEngine(model).sample(
        prompt_ids(data, problems), n=n, max_tokens=max_tokens, stop=stop, temperature=temperature, seed=seed
    )


def verify_all(data: PreparedData, problems: list[Any], samples: SampleBatch) -> list[bool]:
    """Whether each sample is right, by the task's exact verifier. A sample cut before its end is wrong."""
    task = data.open_task()
    if problems and hasattr(problems[0], "prompt_ids"):
        problems = [task.from_row({"prompt": p.prompt, "answer": p.answer}) for p in problems]
    texts = data.tokenizer.decode_batch(completion_ids(samples, strip_stop=True))
    return [
        bool(done) and task.verify(problems[i], text)
        for i, text, done in zip(samples.prompt_index, texts, samples.finished, strict=True)
    ]


def completion_ids(samples: SampleBatch, strip_stop: bool = False) -> list[list[int]]:
    """Ragged token ids of the completions, with or without the final end-of-text token."""
    out = []
    for row, length, done in zip(samples.ids, samples.lengths, samples.finished, strict=True):
        out.append(row[: length - 1 if strip_stop and done else length].tolist())
    return out


def steps_for_flops(model: Transformer, flops: float, batches: list[Batch]) -> int:
    """How many steps on batches like these cost about `flops`: the length of an equal-compute control."""
    per_step = sum(update_flops(model, b) for b in batches) / len(batches)
    steps = round(flops / per_step)
    if steps < 1:
        raise FlopwiseError(
            f"control: {flops:.3g} FLOPs are less than one step of {per_step:.3g}; use a smaller batch"
        )
    return steps
