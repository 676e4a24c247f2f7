"""A training state in one file: model, optimiser, generators, counters. No pickles, never half-written.

A checkpoint is whole whatever wrote it: shards and experts are gathered, so any number of processes reads it.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from flopwise.errors import DamagedFile, one_line
from flopwise.models.transformer import Transformer
from flopwise.train.shards import load_weights, rank, weights

STATE_FILE = "state.safetensors"
KEPT_FOLDER = "checkpoints"
"""Beside the state: the checkpoints that the `keep` rule lets stay."""


class Stateful(Protocol):
    """An optimiser as checkpoints see it: a flat dict of whole tensors, there and back."""

    def state(self) -> dict[str, Tensor]: ...
    def load_state(self, tensors: dict[str, Tensor]) -> None: ...


def save(path: Path, model: Transformer, optimiser: Stateful, counters: dict[str, Any]) -> None:
    """Write tensors and `counters` (anything JSON takes) to `path`; a kill leaves the old file or the new.

    In a team every process calls this, and the first one writes.

    Raises:
        OSError: the disk is full or the folder cannot be written; the old file is untouched.
    """
    tensors = collect(model, optimiser)
    if rank() == 0:
        _write(path, tensors, counters)


def collect(model: Transformer, optimiser: Stateful, copy: bool = False) -> dict[str, Tensor]:
    """All tensors of the state, whole, on the processor; with `copy` the run may change its own meanwhile.

    Every process of a team calls this, and the first one alone has them.
    """
    tensors = {f"model.{name}": t for name, t in weights(model, everywhere=False).items()}
    tensors |= {f"optim.{name}": t for name, t in optimiser.state().items()}
    if rank():
        return {}
    tensors["rng.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["rng.cuda"] = torch.cuda.get_rng_state()
    out = {}
    for name, tensor in tensors.items():
        moved = tensor.detach().to("cpu", copy=copy and tensor.device.type == "cpu")
        out[name] = moved.contiguous()
    return out


def _write(path: Path, tensors: Mapping[str, Tensor], counters: dict[str, Any], link: str = "") -> None:
    """Write the file at once; `link` names a second entry for it among the kept ones."""
    from safetensors.torch import save_file

    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file(dict(tensors), temporary, metadata={"counters": json.dumps(counters)})
        with open(temporary, "rb") as f:
            os.fsync(f.fileno())
        if link:
            kept = path.parent / KEPT_FOLDER / link
            kept.parent.mkdir(exist_ok=True)
            kept.unlink(missing_ok=True)
            os.link(temporary, kept)  # one file, two names: keeping costs no writing
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class Writer:
    """Writes checkpoints while the loop goes on: a copy is taken at once, a thread puts it on disk.

    `keep` is the rule of `Settings`: what stays in `checkpoints/` beside the newest state.
    """

    def __init__(self, path: Path, keep: str | int | dict[str, int] = "last"):
        self.path, self.keep = path, keep
        self.best: float | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def due(self, step: int) -> bool:
        """Whether the rule asks for a checkpoint after exactly so many steps."""
        return isinstance(self.keep, dict) and step % self.keep["every"] == 0

    def save(
        self, model: Transformer, optimiser: Stateful, counters: dict[str, Any], loss: float | None = None
    ) -> None:
        """Take the state and have it written; waits only where the former one is still on its way.

        `loss` is what "best" judges by. In a team every process calls this, and the first one writes.
        """
        self.wait()
        tensors = collect(model, optimiser, copy=True)
        step = counters["step"]
        link = ""
        if isinstance(self.keep, int) or self.due(step):
            link = f"step-{step:09d}.safetensors"
        elif self.keep == "best" and loss is not None and (self.best is None or loss < self.best):
            self.best, link = loss, "best.safetensors"
        if rank():
            return
        extra = {} if self.best is None else {"best": self.best}
        args = (tensors, {**counters, **extra}, link)
        self._thread = threading.Thread(target=self._run, args=args, name="checkpoint")
        self._thread.start()

    def _run(self, tensors: dict[str, Tensor], counters: dict[str, Any], link: str) -> None:
        try:
            _write(self.path, tensors, counters, link)
            if isinstance(self.keep, int):
                kept = sorted(self.path.parent.joinpath(KEPT_FOLDER).glob("step-*.safetensors"))
                for old in kept[: -self.keep]:
                    old.unlink(missing_ok=True)
        except BaseException as e:  # the loop's thread raises it
            self._error = e

    def wait(self) -> None:
        """Until the last one is on disk.

        Raises:
            OSError: it could not be written; the state before it is untouched.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error


def rewind_kept(path: Path, step: int) -> None:
    """Drop kept checkpoints after `step`: a resumed run makes them again."""
    for kept in path.parent.joinpath(KEPT_FOLDER).glob("step-*.safetensors"):
        with suppress(ValueError):
            if int(kept.stem.removeprefix("step-")) > step:
                kept.unlink(missing_ok=True)


def load(
    path: Path, model: Transformer, optimiser: Stateful | None = None, generators: bool = False
) -> dict[str, Any]:
    """Read a state into model and optimiser, each process its part; returns the counters.

    With `generators` torch's global generators go on where they were: for a run that resumes, not for a run
    that starts from another one's state.

    Raises:
        DamagedFile: the file is cut, garbled or belongs to another shape.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as f:
            counters = json.loads((f.metadata() or {})["counters"])
            tensors: dict[str, Tensor] = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
        load_weights(model, _part(tensors, "model."))
        if optimiser is not None:
            optimiser.load_state(_part(tensors, "optim."))
        if generators:
            _set_generators(_part(tensors, "rng."))
    except (SafetensorError, KeyError, RuntimeError, TypeError, ValueError, OSError) as e:
        raise DamagedFile(path, f"checkpoint {path} cannot be read ({one_line(e, 200)})") from e
    return counters


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _set_generators(states: dict[str, Tensor]) -> None:
    if "cpu" in states:
        torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
