"""What one core can do: float32 and bfloat16 matrix products, and reading memory."""

from __future__ import annotations

import time
from typing import Any

READ_BYTES = 512 * 2**20
"""Well above any cache."""


def read_rate(repeats: int = 7) -> float:
    """Bytes per second at which one core sums a long float32 array; best of `repeats`."""
    import torch

    x = torch.ones(READ_BYTES // 4)
    best = 0.0
    for _ in range(repeats):
        start = time.perf_counter()
        x.sum()
        best = max(best, READ_BYTES / (time.perf_counter() - start))
    return best


def run() -> list[dict[str, Any]]:
    """Three rows without a peer: the limits that shares of peak refer to."""
    import torch

    from flopwise.flops.hardware import device_name, matmul_peak

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        setup = f"{device_name()}, one thread, best seen"
        values = [
            ("matmul float32", "FLOP/s", matmul_peak("float32", seconds=2.0)),
            ("matmul bfloat16", "FLOP/s", matmul_peak("bfloat16", seconds=2.0)),
            ("reading memory", "bytes/s", read_rate()),
        ]
    finally:
        torch.set_num_threads(before)
    return [
        {
            "name": name,
            "unit": unit,
            "ours": v,
            "peer": None,
            "peer_name": None,
            "ratio": None,
            "setup": setup,
        }
        for name, unit, v in values
    ]
