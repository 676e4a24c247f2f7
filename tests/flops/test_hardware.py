"""The machine: its name, its peak, its memory."""

from __future__ import annotations

import subprocess
import sys

import pytest

from flopwise.errors import FlopwiseError
from flopwise.flops import hardware


def test_describe_is_plausible():
    about = hardware.describe()
    assert about["device"] and about["cores"] >= 1
    assert 1e8 < about["matmul_peak_flop_s"] < 1e15
    assert about["memory_bytes"] is None or about["memory_bytes"] > 2**27


def test_peak_restores_the_threads():
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    assert hardware.matmul_peak("bfloat16", threads=2, size=64, seconds=0.01) > 0
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("dtype", ["float99", "nn", "__doc__"])
def test_unknown_dtype(dtype):
    pytest.importorskip("torch")
    with pytest.raises(FlopwiseError, match="must be float32 or bfloat16"):
        hardware.matmul_peak(dtype)


def test_keeping_freed_memory_changes_no_result():
    pytest.importorskip("torch")
    code = (
        "from flopwise.flops.hardware import keep_freed_memory; keep_freed_memory(); import torch; "
        "x = [torch.ones(3_000_000) for _ in range(3)]; del x; print(int(torch.ones(3_000_000).sum()))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "3000000"


def test_flops_imports_no_torch():
    code = "import flopwise.flops, flopwise.flops.hardware, sys; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
