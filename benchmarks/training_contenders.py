"""`python -m benchmarks.training_contenders SPEC`: one contender of `training.py` trains, turn by turn."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.training_turns import Turns, read_spec

FOREVER = 10**6
"""Steps; the benchmark ends first."""


def make_rows(spec: dict[str, Any]) -> torch.Tensor:
    """Token rows [64 batches, T + 1]; their content does not matter to the time."""
    rng = torch.Generator().manual_seed(0)
    return torch.randint(spec["vocab"], (64 * spec["batch"], spec["length"] + 1), generator=rng)


def batch_of(spec: dict[str, Any]) -> Callable[[int], torch.Tensor]:
    """Rows [B, T + 1] of a step."""
    rows, size = make_rows(spec), spec["batch"]
    return lambda step: rows[step % 64 * size :][:size]


class Folder:
    """Where our loop logs and saves: the part of a run's folder that it needs."""

    def __init__(self, path: Path):
        self.path = path

    def log(self, **row: Any) -> None:
        """Append a row, as a run's folder does."""
        import json

        with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as f:
            f.write(json.dumps(row, default=float) + "\n")

    def rewind(self, step: int) -> None:
        """A turn starts afresh: there is nothing to drop."""


def flopwise(spec: dict[str, Any], turns: Turns, folder: Path) -> None:
    """Our loop as the worker processes of a run call it, with checkpoints, logs and ledger."""
    from flopwise.flops.hardware import keep_freed_memory
    from flopwise.models import hf
    from flopwise.train.loop import train
    from flopwise.train.objectives import Batch, cross_entropy
    from flopwise.train.optim import Optimiser, Rates

    keep_freed_memory()  # as `launch.worker` does
    model, rows = hf.load(Path(spec["checkpoint"])), batch_of(spec)

    def next_batch(step: int) -> Batch:
        part = rows(step)
        return Batch(part[:, :-1], part[:, 1:])

    train(
        model, Optimiser(model, Rates(optimiser=spec["optimiser"])), next_batch, cross_entropy,
        lambda step: 0.1, Folder(folder), first_step=0, last_step=FOREVER, progress=turns.tick,
    )  # fmt: skip


def trainer(spec: dict[str, Any], turns: Turns, folder: Path) -> None:
    """`transformers.Trainer` as a careful user sets it up: no evaluation, checkpoints, reports or bars."""
    from transformers import LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    rows = make_rows(spec)

    class Rows(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return len(rows)

        def __getitem__(self, i: int) -> dict[str, Any]:
            return {"input_ids": rows[i, :-1], "labels": rows[i, :-1]}

    class Ticks(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            turns.tick()

    arguments = TrainingArguments(
        str(folder), max_steps=FOREVER, per_device_train_batch_size=spec["batch"], learning_rate=1e-4,
        lr_scheduler_type="constant", save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    model = LlamaForCausalLM.from_pretrained(spec["checkpoint"], dtype=torch.float32)
    job = Trainer(model, arguments, train_dataset=Rows(), callbacks=[Ticks()])
    job.train()


def plain(spec: dict[str, Any], turns: Turns, folder: Path) -> None:
    """The bare loop over the GPT of `training_plain.py`, without log or checkpoint."""
    import torch.nn.functional as F

    from benchmarks.training_plain import GPT

    torch.manual_seed(0)
    model = GPT(
        spec["vocab"], spec["length"], spec["width"], spec["depth"], spec["heads"], spec["plain_hidden"]
    )
    adam = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.99), fused=True)
    rows = batch_of(spec)
    for step in range(FOREVER):
        part = rows(step)
        loss = F.cross_entropy(model(part[:, :-1]).flatten(0, 1), part[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        adam.zero_grad(set_to_none=True)
        turns.tick()


CONTENDERS = {"flopwise": flopwise, "trainer": trainer, "plain": plain}


def main() -> None:
    """Train until the benchmark hangs up."""
    spec = read_spec()
    torch.set_num_threads(1)
    turns = Turns(spec["steps"], spec["skip"])
    with tempfile.TemporaryDirectory() as folder:
        CONTENDERS[spec["contender"]](spec, turns, Path(folder))


if __name__ == "__main__":
    main()
