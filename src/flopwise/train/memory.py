"""How much memory a run takes, before it is made: weights, gradients, optimiser, activations.

The formulas count what `train` and the compiled kernels keep (`docs/training.md` states them and compares
them with measured peaks). Buffers of a matrix product, the allocator's slack and the data are not counted.
Imports no torch.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from flopwise.errors import FlopwiseError
from flopwise.flops.count import count_params
from flopwise.flops.hardware import memory_bytes
from flopwise.models.config import ModelConfig
from flopwise.train.settings import PLAIN, Settings

FLOAT = 4
INTERPRETER = 340e6
"""Resident memory of a process that has loaded torch and this package; measured, see `docs/training.md`."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one process at its largest; `processes` of them run at once."""

    weights: float
    gradients: float
    optimiser: float
    activations: float
    """Kept for the backward pass."""
    passing: float
    """While an update is made, when activations are gone: directions, their orthogonal factors."""
    base: float = INTERPRETER
    processes: int = 1

    @property
    def per_process(self) -> float:
        """The peak: an update and a backward pass never overlap."""
        lasting = self.base + self.weights + self.gradients + self.optimiser
        return lasting + max(self.activations, self.passing)

    @property
    def total(self) -> float:
        """Of all processes."""
        return self.per_process * self.processes


def estimate_memory(
    cfg: ModelConfig, batch_size: int, seq_len: int, settings: Settings = PLAIN, optimiser: str = "muon"
) -> MemoryEstimate:
    """Memory of training `cfg` on batches of `batch_size` sequences of `seq_len` tokens.

    `optimiser`: "muon" (one float per weight of the hidden matrices, two of the rest) or "adamw" (two each).
    """
    params, n = count_params(cfg), settings.processes
    experts = _expert_weights(cfg)
    tables = params.embedding
    matrices = params.total - tables - params.by_module["norms"]
    held = float(params.total)
    gathered = 0.0
    if n > 1 and settings.parallel == "fsdp":
        held /= n
        # A block's weights and gradient and, until the backward pass ends, the tables' are whole.
        gathered = 2.0 * FLOAT * (matrices / cfg.n_layers + tables)
    elif n > 1 and settings.parallel == "ep":
        held -= experts * (1 - 1 / n)
    ours = held / params.total
    moments = 2.0 * (held if optimiser == "adamw" else held - matrices * ours)
    if optimiser == "muon":
        moments += matrices * ours
    rows = -(-batch_size // n)
    buckets = held if n > 1 and settings.parallel != "fsdp" else 0.0
    # Directions, their transpose or copy, the product and the new iterate.
    passing = 4.0 * matrices * ours if optimiser == "muon" else 0.0
    return MemoryEstimate(
        weights=FLOAT * held,
        gradients=FLOAT * (held + buckets),
        optimiser=FLOAT * moments,
        activations=FLOAT * rows * seq_len * activation_floats(cfg, settings) + gathered,
        passing=FLOAT * passing,
        processes=n,
    )


def activation_floats(cfg: ModelConfig, settings: Settings = PLAIN) -> float:
    """Floats kept per token between forward and backward pass, the output's logits included.

    Per layer: two norms keep argument and result (4 d), attention its argument and result, SwiGLU its
    argument and result (3 F); once, what the widest layer's way back holds beside them. Under bfloat16 the
    rounded copies of what products read come on top.
    """
    d, hd = cfg.d_model, cfg.head_dim
    heads = (2 * cfg.n_heads + 2 * cfg.n_kv_heads) * hd
    if cfg.qk_norm:
        heads += 2 * (cfg.n_heads + cfg.n_kv_heads) * hd
    k = cfg.experts_per_token
    sparse = k * (d + 3 * cfg.d_expert) + 3 * cfg.d_shared + 3 * cfg.n_experts
    layers = sum(
        4 * d + heads + (sparse if cfg.has_experts(layer) else 3 * cfg.d_ff) for layer in range(cfg.n_layers)
    )
    low = 0.5 if settings.precision == "bf16" else 0.0
    way_back = 2 * d + max(3 * cfg.d_ff, sparse)
    return layers * (1 + low) + 4 * d + way_back + cfg.vocab_size * (1 + low)


def check_memory(
    cfg: ModelConfig, batch_size: int, seq_len: int, settings: Settings = PLAIN, optimiser: str = "muon"
) -> MemoryEstimate:
    """The estimate, if the machine has so much free.

    Raises:
        FlopwiseError: it has not; what is needed, what there is, and what to lower.
    """
    need = estimate_memory(cfg, batch_size, seq_len, settings, optimiser)
    free = accelerator_bytes() if settings.device == "cuda" else available_bytes()
    wanted = need.per_process - need.base if settings.device == "cuda" else need.total
    if free is None or wanted <= free:
        return need
    largest = max(("activations", need.activations), ("state", need.weights * 4), key=lambda item: item[1])
    advice = "batch_size or seq_len" if largest[0] == "activations" else "the width"
    raise FlopwiseError(
        f"memory: width {cfg.d_model} at {batch_size} x {seq_len} tokens needs about {_gb(wanted)}, "
        f"{_gb(free)} are free; lower {advice}" + (" or train.processes" if settings.processes > 1 else "")
    )


def available_bytes() -> int | None:
    """Memory that new processes can have without swapping, within the limits of a container."""
    free = memory_bytes()
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
    with suppress(OSError, ValueError):
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8"))
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="utf-8"))
        # The page cache counts as used but gives way; what it takes is not known here.
        free = min(free or limit, max(limit - used, limit // 2))
    return free


def accelerator_bytes() -> int | None:
    """Free memory of the first accelerator, where torch is installed and finds one."""
    with suppress(ImportError):
        import torch

        if torch.cuda.is_available():
            return int(torch.cuda.mem_get_info()[0])
    return None


def _expert_weights(cfg: ModelConfig) -> float:
    layers = sum(cfg.has_experts(layer) for layer in range(cfg.n_layers))
    return 3.0 * layers * cfg.n_experts * cfg.d_expert * cfg.d_model


def _gb(n: float) -> str:
    return f"{n / 1e9:.2g} GB" if n < 10e9 else f"{n / 1e9:.0f} GB"
