"""A training state in one file: model, optimiser, counters. Written atomically, read without pickles."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from torch import Tensor

from flopwise.errors import DamagedFile, one_line
from flopwise.models.transformer import Transformer
from flopwise.train.optim import Optimiser

STATE_FILE = "state.safetensors"


def save(path: Path, model: Transformer, optimiser: Optimiser, counters: dict[str, Any]) -> None:
    """Write tensors and `counters` (anything JSON takes) to `path`; a kill leaves the old file or the new."""
    from safetensors.torch import save_file

    tensors = {f"model.{name}": t.detach().contiguous() for name, t in model.state_dict().items()}
    if model.head.weight is model.embed.weight:
        tensors.pop("model.head.weight", None)
    tensors |= {f"optim.{name}": t.contiguous() for name, t in optimiser.state().items()}
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file(tensors, temporary, metadata={"counters": json.dumps(counters)})
        with open(temporary, "rb") as f:
            os.fsync(f.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: Path, model: Transformer, optimiser: Optimiser | None = None) -> dict[str, Any]:
    """Read a state into model and optimiser; returns the counters.

    Raises:
        DamagedFile: the file is cut, garbled or belongs to another shape.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as f:
            counters = json.loads((f.metadata() or {})["counters"])
            tensors: dict[str, Tensor] = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
        weights = {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
        if model.head.weight is model.embed.weight:
            weights["head.weight"] = weights["embed.weight"]
        model.load_state_dict(weights)
        if optimiser is not None:
            optimiser.load_state(
                {n.removeprefix("optim."): t for n, t in tensors.items() if n.startswith("optim.")}
            )
    except (SafetensorError, KeyError, RuntimeError, TypeError, ValueError, OSError) as e:
        raise DamagedFile(path, f"checkpoint {path} cannot be read ({one_line(e, 200)})") from e
    return counters
