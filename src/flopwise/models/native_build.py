"""Compile the `native*.cpp` once per machine and load them, or say that they cannot be had.

A compiler (`g++`, `clang++` or what CXX names) is all it needs. It takes two seconds once; the library stays
in the cache folder under a name made of source, flags, compiler and processor. Without one, on Windows,
or with FLOPWISE_NATIVE=0, `library` gives None and `kernels.py` does the same in torch.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from flopwise.data.carriers import cache_folder

HERE = Path(__file__).parent
TRAINING = tuple(HERE / name for name in ("native.cpp", "native_moe.cpp", "native.h"))
INFERENCE = tuple(HERE / name for name in ("native_infer.cpp", "native.h"))
"""A library of its own: who trains need not wait for it, and its changes leave trained bits alone."""
FLAGS = (
    "-std=c++20", "-O3", "-march=native", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math",
    "-fPIC", "-shared",
)  # fmt: skip
"""Without errno and traps loops with a choice in them are vectorised. Sums keep their order."""

TIME_LIMIT_S = 60
"""Of the compiler, which needs two seconds on the machine where this was measured."""


@functools.cache
def library(sources: tuple[Path, ...] = TRAINING) -> ctypes.CDLL | None:
    """The compiled kernels; None where they cannot be had, which is found out once per process."""
    if os.environ.get("FLOPWISE_NATIVE") == "0" or sys.platform == "win32":
        return None
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX") or "g++", "clang++", "c++"))), None)
    if compiler is None:
        return None
    try:
        path = cache_folder() / "native" / f"{_fingerprint(compiler, sources)}.so"
        if not path.exists():
            _build(compiler, path, sources)
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError):
        return None


def _fingerprint(compiler: str, sources: tuple[Path, ...]) -> str:
    """Changes with whatever the compiled code depends on: a home folder may be shared by unlike machines."""
    parts = [*(path.read_bytes() for path in sources), repr(FLAGS).encode(), compiler.encode()]
    parts.append(repr(os.stat(compiler).st_mtime_ns).encode())
    try:
        with open("/proc/cpuinfo", "rb") as f:
            parts.append(next((line for line in f if line.startswith((b"flags", b"Features"))), b""))
    except OSError:
        parts.append(str(os.uname()).encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:24]


def _build(compiler: str, path: Path, sources: tuple[Path, ...]) -> None:
    """Compile beside `path` and rename into place, so that processes that start together do not meet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        subprocess.run(
            [compiler, *FLAGS, "-o", str(made), *(str(path) for path in sources if path.suffix == ".cpp")],
            check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            timeout=TIME_LIMIT_S,
        )  # fmt: skip
        os.replace(made, path)
