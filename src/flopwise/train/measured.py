"""Facts about this machine that were measured once: kept in the cache folder, by machine and question."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from flopwise.data.corpora import cache_folder
from flopwise.records.folder import atomic_write


def machine(device: str = "cpu") -> str:
    """What measurements depend on: processor or accelerator, version of torch, threads."""
    import torch

    from flopwise.flops.hardware import device_name

    name = torch.cuda.get_device_name() if device == "cuda" else device_name()
    return f"{name}, torch {torch.__version__}, {torch.get_num_threads()} threads"


def remembered(where: str, question: dict[str, Any], measure: Callable[[], Any]) -> Any:
    """The answer (anything JSON takes) to `question` on the machine `where`: from the cache, or measured now.

    A cache that cannot be read or written is no error: then it is measured each time.
    """
    path = cache_folder() / "measured.json"
    key = f"{where}: {json.dumps(question, sort_keys=True)}"
    known = _read(path)
    if key in known:
        return known[key]
    answer = measure()
    with suppress(OSError):
        os.makedirs(path.parent, exist_ok=True)
        # Read again: another process may have learned something meanwhile.
        atomic_write(path, json.dumps({**_read(path), key: answer}, indent=1) + "\n")
    return answer


def _read(path: Path) -> dict[str, Any]:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
