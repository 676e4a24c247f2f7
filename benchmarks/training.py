"""Tokens per second of training: our loop against `transformers.Trainer`, in one process, interleaved.

Both start from one checkpoint and see the same rows of 128 tokens, 16 to a batch, in float32 on one thread,
with gradient clipping at 1 and a constant rate. Trainer runs as a careful user would set it up: its default
fused AdamW, SDPA, no evaluation, no checkpoints, no reporters, no progress bar. Our loop keeps its own
checkpoints, logs and ledger. Neither has the allocator setting that our worker processes use.

Two rows per width, because the optimiser differs: the loop as it runs in recipes (Muon on the hidden
matrices), and the loop with the peer's own AdamW, which shows the loop and the model alone. Counted is
processor time, from the end of one step to the end of another, so neither pays for its start-up.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WIDTHS, DEPTH, VOCAB = (32, 64, 128), 2, 512
BATCH, SEQ_LEN = 16, 128
STEPS, SKIP, REPEATS = 24, 6, 7
"""Steps of one turn, of which the first `SKIP` are not counted; turns of each contender."""

Turn = Callable[[], float]
"""Trains for `STEPS` steps; returns tokens per second of processor time."""


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


class PlainAdamW:
    """The peer's optimiser behind our loop's interface: one group, Trainer's betas, no decay."""

    def __init__(self, model: Any, lr: float):
        import torch

        self.model, self.lr = model, lr
        self.adam = torch.optim.AdamW(
            model.parameters(), lr=lr, betas=(0.9, 0.999), weight_decay=0.0, fused=True
        )

    def clip(self, limit: float) -> Any:
        """As our own."""
        import torch

        return torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit, foreach=True)

    def step(self, factor: float) -> None:
        """One update."""
        self.adam.param_groups[0]["lr"] = self.lr * factor
        self.adam.step()

    def zero_grad(self) -> None:
        """Drop gradients."""
        self.adam.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Any]:
        """For the loop's checkpoints."""
        return {
            f"{i}.{key}": value
            for i, entry in self.adam.state_dict()["state"].items()
            for key, value in entry.items()
        }


class Clock:
    """Processor time from step `SKIP` on."""

    def __init__(self) -> None:
        self.steps, self.started = 0, 0.0

    def tick(self) -> None:
        """A step ended."""
        self.steps += 1
        if self.steps == SKIP:
            self.started = time.process_time()

    def rate(self) -> float:
        """Tokens per second."""
        return (STEPS - SKIP) * BATCH * SEQ_LEN / (time.process_time() - self.started)


def make_rows() -> Any:
    """Token rows [STEPS * BATCH, SEQ_LEN + 1] for both; their content does not matter to the time."""
    import torch

    return torch.randint(VOCAB, (STEPS * BATCH, SEQ_LEN + 1), generator=torch.Generator().manual_seed(0))


def ours(checkpoint: Path, rows: Any, make_optimiser: Callable[[Any], Any]) -> Turn:
    """By `flopwise.train`."""
    from flopwise.models import hf
    from flopwise.train.loop import train
    from flopwise.train.objectives import Batch, cross_entropy

    def turn() -> float:
        model, clock = hf.load(checkpoint), Clock()

        def next_batch(step: int) -> Batch:
            part = rows[step * BATCH : (step + 1) * BATCH]
            return Batch(part[:, :-1], part[:, 1:])

        with tempfile.TemporaryDirectory() as folder:
            train(
                model, make_optimiser(model), next_batch, cross_entropy, lambda step: 0.1,
                Folder(Path(folder)),
                first_step=0, last_step=STEPS, progress=lambda fraction: clock.tick(),
            )  # fmt: skip
            return clock.rate()

    return turn


def peer(checkpoint: Path, rows: Any) -> Turn:
    """By `transformers.Trainer`."""
    import torch
    from transformers import LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()

    class Rows(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return len(rows)

        def __getitem__(self, i: int) -> dict[str, Any]:
            return {"input_ids": rows[i, :-1], "labels": rows[i, :-1]}

    class Ticks(TrainerCallback):
        def __init__(self, clock: Clock):
            self.clock = clock

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.clock.tick()

    def turn() -> float:
        clock = Clock()
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                folder, max_steps=STEPS, per_device_train_batch_size=BATCH, learning_rate=1e-4,
                lr_scheduler_type="constant", save_strategy="no", report_to=[], use_cpu=True,
                disable_tqdm=True,
            )  # fmt: skip
            model = LlamaForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
            trainer = Trainer(model, arguments, train_dataset=Rows(), callbacks=[Ticks(clock)])
            trainer.pop_callback("PrinterCallback")
            trainer.train()
            return clock.rate()

    return turn


def check_same(checkpoint: Path, rows: Any) -> None:
    """Both must hold the same model, or the comparison means nothing."""
    import torch
    from transformers import LlamaForCausalLM

    from flopwise.models import hf

    with torch.no_grad():
        a = hf.load(checkpoint)(rows[:4, :-1])
        b = LlamaForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)(rows[:4, :-1]).logits
    assert torch.allclose(a, b, atol=1e-4), f"logits differ by {(a - b).abs().max():.2g}"


def run() -> list[dict[str, Any]]:
    """Two rows per width: the loop as recipes run it, and with the peer's optimiser."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [row for width in WIDTHS for row in _rows(width)]
    finally:
        torch.set_num_threads(before)


def _rows(width: int) -> list[dict[str, Any]]:
    import torch

    from flopwise.flops.count import count_params, train_flops
    from flopwise.flops.hardware import matmul_peak
    from flopwise.models import hf
    from flopwise.models.config import ModelConfig
    from flopwise.models.transformer import Transformer
    from flopwise.train.optim import Optimiser, Rates

    cfg = ModelConfig.from_width(width, DEPTH, VOCAB, SEQ_LEN)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, rows = Path(folder), make_rows()
        model = Transformer(cfg).initialise(0)
        torch.nn.init.normal_(model.head.weight, std=0.02)  # all-zero logits would be the same by accident
        hf.save(model, checkpoint)
        check_same(checkpoint, rows)
        turns = {
            "peer": peer(checkpoint, rows),
            "Muon": ours(checkpoint, rows, lambda m: Optimiser(m, Rates())),
            "AdamW": ours(checkpoint, rows, lambda m: PlainAdamW(m, 1e-3)),
        }
        rates: dict[str, list[float]] = {name: [] for name in turns}
        peak = 0.0
        for _ in range(REPEATS):
            for name, turn in turns.items():
                rates[name].append(turn())
            peak = max(peak, matmul_peak())
    flops = train_flops(cfg, SEQ_LEN).total / SEQ_LEN
    params = count_params(cfg).total
    speed = {name: statistics.median(values) for name, values in rates.items()}
    out = []
    for name in ("Muon", "AdamW"):
        ratios = [a / b for a, b in zip(rates[name], rates["peer"], strict=True)]
        out.append(
            {
                "name": f"training, width {width}, {name}",
                "unit": "tokens/s of processor time",
                "ours": speed[name],
                "peer": speed["peer"],
                "ratio": statistics.median(ratios),
                "ratio_low": min(ratios),
                "ratio_high": max(ratios),
                "peer_name": "transformers Trainer (AdamW)",
                "setup": f"width {width}, depth {DEPTH}, vocabulary {VOCAB}, {params:,} parameters; batches "
                f"of {BATCH} x {SEQ_LEN} tokens, float32, one thread",
                "matmul_peak_flop_s": peak,
                "share_of_peak": flops * speed[name] / peak,
                "peer_share_of_peak": flops * speed["peer"] / peak,
            }
        )
    return out
