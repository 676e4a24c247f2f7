"""Tokens per second of training: our loop against `transformers.Trainer`, a plain loop, and litgpt.

Llama-shaped models of six shapes, rows of 128 tokens, 16 to a batch, float32, one thread. Every contender
trains in a process of its own as its users would have it (`training_contenders.py`, `training_litgpt.py`)
and they take turns, so that whatever else runs on the machine hits all alike. The first two start from one
checkpoint and are checked to hold the same model; litgpt has the same shape, the plain loop a GPT of equal
parameters.

All use AdamW; our default, Muon on the hidden matrices, is a row of its own, and so is a mixture of 8
experts of the dense model's active size. Processor time is compared, with the wall clock beside it, from
the end of one step to the end of another: start-up and compiling are left out. litgpt is measured where
LITGPT_PYTHON names the Python of an environment that has it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.training_turns import race

if TYPE_CHECKING:
    from flopwise.models.config import ModelConfig

VOCAB, BATCH, SEQ_LEN = 512, 16, 128
SHAPES = {
    (48, 2): (40, 6), (32, 6): (24, 4),
    (128, 2): (24, 4), (64, 9): (12, 3),
    (288, 2): (10, 3), (576, 2): (5, 2),
}  # fmt: skip
"""Width and depth: steps of a turn, and how many of them are not counted. Of a tenth and half a million
parameters there is a wide and a deep one: the ladder's depth of 2, and one with more calls for the work."""
REPEATS = 5
"""Turns of each contender."""

NAMES = {
    "trainer": "transformers Trainer",
    "plain": "plain loop, GPT of equal parameters",
    "litgpt": "litgpt",
    "muon": "flopwise with Muon",
    "moe": "flopwise, mixture of 8 experts of equal active size",
}
EXPERTS = 8
HERE = Path(__file__).parent


class Contender:
    """A process that trains when told to."""

    def __init__(self, command: list[str], spec: dict[str, Any]):
        environment = {
            **os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore",
            "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "",
        }  # fmt: skip
        self.tokens = (spec["steps"] - spec["skip"]) * spec["batch"] * spec["length"]
        self.process = subprocess.Popen(
            [*command, json.dumps(spec)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True, cwd=HERE.parent, env=environment,
        )  # fmt: skip

    def turn(self) -> dict[str, float]:
        """Tokens per second of processor time and of the clock.

        Raises:
            RuntimeError: the process has ended.
        """
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # said below
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self.process.args} ended with exit code {self.process.wait()}")
        return {clock: self.tokens / seconds for clock, seconds in json.loads(answer).items()}

    def close(self) -> None:
        """Hang up."""
        self.process.communicate()


@contextmanager
def contenders(specs: dict[str, dict[str, Any]]) -> Iterator[dict[str, Contender]]:
    """All of one size, started and closed together."""
    ours = [sys.executable, "-m", "benchmarks.training_contenders"]
    with ExitStack() as stack:
        started = {}
        for name, spec in specs.items():
            other = [os.environ.get("LITGPT_PYTHON", ""), str(HERE / "training_litgpt.py")]
            started[name] = Contender(other if name == "litgpt" else ours, spec)
            stack.callback(started[name].close)
        yield started


def check_same(checkpoint: Path) -> None:
    """Both must hold the same model, or the comparison means nothing."""
    import torch
    from transformers import LlamaForCausalLM

    from flopwise.models import hf

    ids = torch.randint(VOCAB, (4, SEQ_LEN), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        a = hf.load(checkpoint)(ids)
        b = LlamaForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)(ids).logits
    assert torch.allclose(a, b, atol=1e-4), f"logits differ by {(a - b).abs().max():.2g}"


def run() -> list[dict[str, Any]]:
    """Rows for every shape and peer."""
    return [row for shape in SHAPES for row in _rows(*shape)]


def _rows(width: int, depth: int) -> list[dict[str, Any]]:
    import torch

    from benchmarks.training_plain import hidden_width
    from flopwise.flops.count import count_params, train_flops
    from flopwise.flops.hardware import matmul_peak
    from flopwise.models import hf
    from flopwise.models.config import ModelConfig
    from flopwise.models.transformer import Transformer

    cfg = ModelConfig.from_width(width, depth, VOCAB, SEQ_LEN)
    params = count_params(cfg).total
    steps, skip = SHAPES[width, depth]
    with tempfile.TemporaryDirectory() as folder:
        model = Transformer(cfg).initialise(0)
        torch.nn.init.normal_(model.head.weight, std=0.02)  # all-zero logits would be the same by accident
        hf.save(model, Path(folder))
        check_same(Path(folder))
        spec = {
            "steps": steps, "skip": skip, "batch": BATCH, "length": SEQ_LEN, "vocab": VOCAB,
            "checkpoint": folder, "width": width, "depth": depth, "heads": cfg.n_heads,
            "kv_heads": cfg.n_kv_heads, "head_dim": cfg.head_dim, "d_ff": cfg.d_ff, "optimiser": "adamw",
            "plain_hidden": hidden_width(params, VOCAB, SEQ_LEN, width, depth),
        }  # fmt: skip
        specs = {
            "ours": spec | {"contender": "flopwise"},
            "trainer": spec | {"contender": "trainer"},
            "plain": spec | {"contender": "plain"},
            "muon": spec | {"contender": "flopwise", "optimiser": "muon"},
        }
        specs["moe"] = specs["ours"] | {"checkpoint": str(Path(folder) / "moe")}
        experts = ModelConfig.from_width(width, depth, VOCAB, SEQ_LEN, expansion=EXPERTS)
        hf.save(Transformer(experts).initialise(0), Path(folder) / "moe")
        if os.environ.get("LITGPT_PYTHON"):
            specs["litgpt"] = spec
        rates: dict[str, list[dict[str, float]]] = {name: [] for name in specs}
        peak = 0.0
        with contenders(specs) as started:
            for round_ in range(REPEATS + 1):
                for name, contender in started.items():
                    rate = contender.turn()
                    if round_:  # the first has compiled and allocated
                        rates[name].append(rate)
                peak = max(peak, matmul_peak())
    flops = train_flops(cfg, SEQ_LEN).total / SEQ_LEN
    setup = (
        f"width {width}, depth {depth}, vocabulary {VOCAB}, {params:,} parameters; batches of "
        f"{BATCH} x {SEQ_LEN} tokens, float32, one thread, AdamW on both sides"
    )
    return [
        _row(cfg, params, setup, rates["ours"], rates[peer], peer, flops, peak)
        for peer in specs
        if peer != "ours"
    ]


def _row(
    cfg: ModelConfig,
    params: int,
    setup: str,
    ours: list[dict[str, float]],
    theirs: list[dict[str, float]],
    peer: str,
    flops: float,
    peak: float,
) -> dict[str, Any]:
    found = race(ours, theirs)
    return {
        "name": f"training, width {cfg.d_model}, depth {cfg.n_layers}, {peer}",
        "unit": "tokens/s of processor time",
        **found,
        "peer_name": NAMES[peer],
        "setup": setup.replace("AdamW on both sides", "AdamW against Muon") if peer == "muon" else setup,
        "width": cfg.d_model,
        "depth": cfg.n_layers,
        "parameters": params,
        "matmul_peak_flop_s": peak,
        "share_of_peak": flops * found["ours"] / peak,
        # The plain GPT and the router's work are not in these FLOPs.
        "peer_share_of_peak": None if peer in ("plain", "moe") else flops * found["peer"] / peak,
    }
