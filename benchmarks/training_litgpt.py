"""litgpt's `pretrain` as a contender of `training.py`; run by the Python of an environment that has litgpt.

A script, not a module of the package: it must not need this project. litgpt compiles its model with
torch.compile by default, and that is how it runs here; compiling is done before the first counted step.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from litgpt.args import EvalArgs, TrainArgs
from litgpt.config import Config
from litgpt.data import DataModule
from litgpt.pretrain import setup

from training_turns import Turns, read_spec


class Rows(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
    """Rows [T + 1] without end; asking for a batch after the first tells that a step has ended."""

    def __init__(self, spec: dict[str, Any], turns: Turns | None):
        self.spec, self.turns = spec, turns

    def __iter__(self) -> Any:
        spec = self.spec
        rng = torch.Generator().manual_seed(0)
        rows = torch.randint(spec["vocab"], (64 * spec["batch"], spec["length"] + 1), generator=rng)
        at = 0
        while True:
            if self.turns is not None and at and at % spec["batch"] == 0:
                self.turns.tick()
            yield rows[at % len(rows)]
            at += 1


class Data(DataModule):
    """What litgpt asks for rows."""

    def __init__(self, spec: dict[str, Any], turns: Turns):
        self.spec, self.turns = spec, turns
        self.seq_length = spec["length"]

    def connect(self, *args: Any, **kwargs: Any) -> None:
        """Nothing depends on the tokenizer."""

    def train_dataloader(self) -> Any:
        """Timed."""
        return torch.utils.data.DataLoader(Rows(self.spec, self.turns), batch_size=self.spec["batch"])

    def val_dataloader(self) -> Any:
        """litgpt looks at two batches before it starts."""
        return torch.utils.data.DataLoader(Rows(self.spec, None), batch_size=self.spec["batch"])


def main() -> None:
    """Train until the benchmark hangs up."""
    spec = read_spec()
    torch.set_num_threads(1)
    config = Config(
        name="peer", block_size=spec["length"], n_layer=spec["depth"], n_embd=spec["width"],
        n_head=spec["heads"], n_query_groups=spec["kv_heads"], head_size=spec["head_dim"],
        rotary_percentage=1.0, parallel_residual=False, bias=False, norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP", intermediate_size=spec["d_ff"], vocab_size=spec["vocab"],
        padded_vocab_size=spec["vocab"],
    )  # fmt: skip
    turns = Turns(spec["steps"], spec["skip"])
    with tempfile.TemporaryDirectory() as folder:
        setup(
            "peer", model_config=config, out_dir=Path(folder), precision="32-true", devices=1,
            logger_name="csv", data=Data(spec, turns),
            train=TrainArgs(
                global_batch_size=spec["batch"], micro_batch_size=spec["batch"], log_interval=100,
                max_tokens=10**12, max_norm=1.0, lr_warmup_steps=10, save_interval=None,
                max_seq_length=spec["length"],
            ),
            eval=EvalArgs(interval=10**9, max_iters=2, final_validation=False),
        )  # fmt: skip


if __name__ == "__main__":
    main()
