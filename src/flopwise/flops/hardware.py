"""The machine: what it is called, how fast it multiplies."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import sys
import time
from dataclasses import dataclass
from typing import Any

from flopwise.errors import FlopwiseError


@functools.cache
def device_name() -> str:
    """The processor's (or, where torch has one in use, the accelerator's) name."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as f:
            for line in f:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "unknown processor"


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int | None:
    """Physical memory, or None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def keep_freed_memory() -> None:
    """Have glibc keep freed buffers instead of returning them to the system (nothing elsewhere).

    By default it maps each buffer of more than a few MB afresh, so that a training step pays for zeroed pages
    again and again: an update on 400 x 50 tokens takes a tenth to a sixth less time with this. The
    price is that memory once used stays with the process until it ends.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return  # another C library
    m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
    mallopt(m_mmap_threshold, 1 << 30)
    mallopt(m_trim_threshold, (1 << 31) - 1)


def matmul_peak(dtype: str = "float32", threads: int = 1, size: int = 512, seconds: float = 0.3) -> float:
    """Fastest matrix product seen, in FLOP/s: the ceiling that training and decoding are compared with.

    Uses torch where installed, else numpy (float32 only). Best of the products that fit into `seconds`;
    each takes a few milliseconds, so that on a busy machine some run without being interrupted.

    Raises:
        FlopwiseError: a dtype other than float32 without torch, or one that torch does not know.
    """
    try:
        import torch
    except ImportError:
        if dtype != "float32":
            raise FlopwiseError(
                f"matmul_peak: {dtype} needs torch, which is not installed: pip install 'flopwise[train]'"
            ) from None
        import numpy as np

        a = np.random.default_rng(0).standard_normal((size, size), dtype=np.float32)
        return _best_rate(lambda: a @ a, size, seconds)
    kind = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype):
        raise FlopwiseError(f"matmul_peak: dtype is {dtype!r}, must be float32 or bfloat16")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        x = torch.randn(size, size).to(kind)
        out = torch.empty_like(x)
        return _best_rate(lambda: torch.mm(x, x, out=out), size, seconds)
    finally:
        torch.set_num_threads(before)


def _best_rate(product: Any, size: int, seconds: float) -> float:
    product()
    best, until = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < until:
        start = time.perf_counter()
        product()
        best = max(best, 2.0 * size**3 / (time.perf_counter() - start))
    return best


def describe() -> dict[str, Any]:
    """Name, cores, memory and one core's measured matrix-product rate."""
    return {
        "device": device_name(),
        "cores": cores(),
        "memory_bytes": memory_bytes(),
        "matmul_peak_flop_s": matmul_peak(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


@dataclass(frozen=True)
class Profile:
    """An accelerator as its maker describes it: what plans turn FLOPs into hours, money and carbon with."""

    name: str
    peak: float
    """Dense matrix products in bfloat16, FLOP/s."""
    bandwidth: float
    """Reading its memory, bytes/s."""
    memory: float
    """Bytes."""
    watts: float
    """Maximal board power."""


PROFILES = {
    p.name: p
    for p in (
        Profile("a100", 312e12, 2.039e12, 80e9, 400.0),
        Profile("h100", 989e12, 3.35e12, 80e9, 700.0),
        Profile("h200", 989e12, 4.8e12, 141e9, 700.0),
        Profile("b200", 2250e12, 8.0e12, 192e9, 1000.0),
        Profile("mi300x", 1307e12, 5.3e12, 192e9, 750.0),
        Profile("l40s", 362e12, 0.864e12, 48e9, 350.0),
    )
}
"""Published by the makers (data sheets of the SXM, OAM or PCIe board, without sparsity)."""


def profile(name: str) -> Profile:
    """A profile by name.

    Raises:
        FlopwiseError: there is none of this name.
    """
    found = PROFILES.get(name.casefold())
    if found is None:
        raise FlopwiseError(f"hardware {name[:40]!r} is unknown; there are {', '.join(PROFILES)}")
    return found
