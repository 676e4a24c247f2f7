"""Which device, and in which precision: bfloat16 products where the hardware is faster with them.

Weights, their gradients and the optimiser stay in float32 throughout (master weights); under bfloat16 only
the inputs of matrix products are rounded, while norms, softmax and the loss are taken in float32
(mixed precision: Micikevicius et al., arXiv 1710.03740, section 3; bfloat16 needs no loss scaling:
Kalamkar et al., arXiv 1905.12322, section 3).
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch

from flopwise.errors import FlopwiseError
from flopwise.flops.hardware import matmul_peak
from flopwise.train.measured import machine, remembered

WORTH = 1.3
"""So many times as fast must bfloat16 products be: below that the conversions eat the gain."""
PROBE_SIZE, PROBE_SECONDS = 256, 0.05


def choose_device(wanted: str = "auto", local_rank: int = 0) -> torch.device:
    """The accelerator where there is one, else the processor.

    Raises:
        FlopwiseError: cuda is asked for and torch finds none.
    """
    found = torch.cuda.is_available()
    if wanted == "cuda" and not found:
        raise FlopwiseError("train.device is cuda, but torch finds no such device here; use auto or cpu")
    if wanted == "cpu" or not found:
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise FlopwiseError(
            f"train.processes needs a device each, but there are {torch.cuda.device_count()}; lower it"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def choose_precision(wanted: str, device: torch.device) -> tuple[str, str]:
    """ "fp32" or "bf16", and why, in words for the record."""
    if wanted != "auto":
        return wanted, "asked for"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", "the accelerator multiplies bfloat16 in hardware"
        return "fp32", "the accelerator has no bfloat16"
    ratio = bf16_speedup()
    if ratio >= WORTH:
        return "bf16", f"bfloat16 products are {ratio:.3g} times as fast as float32 here"
    return (
        "fp32",
        f"bfloat16 products are {ratio:.2g} times as fast as float32 here, {WORTH} would be worth it",
    )


def bf16_speedup() -> float:
    """Rate of bfloat16 products over float32 on this processor: measured once, in a tenth of a second."""

    def measure() -> float:
        threads = torch.get_num_threads()
        rates = [matmul_peak(dtype, threads, PROBE_SIZE, PROBE_SECONDS) for dtype in ("bfloat16", "float32")]
        return rates[0] / rates[1]

    return float(remembered(machine(), {"bf16 speedup": PROBE_SIZE}, measure))


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """The context of a forward pass."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
