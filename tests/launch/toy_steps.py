"""Steps for the scheduler's tests: they do at once what real ones do in minutes, and fail in every way."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from flopwise.errors import DamagedFile, FlopwiseError
from flopwise.flops.spend import Spend
from flopwise.records.folder import RunFolder
from flopwise.records.record import Metric

Progress = Callable[[float], None]


def good(folder: RunFolder, parents: dict[str, RunFolder], progress: Progress) -> None:
    """One FLOP; the value is one more than the parents' together."""
    progress(0.5)
    value = 1.0 + sum(p.record().metrics["value"].value or 0.0 for p in parents.values())
    folder.log(step=1, value=value)
    folder.finish({"value": Metric(value=value)}, Spend(train_flops=1.0, tokens=1))


def defect(folder: RunFolder, parents: dict[str, RunFolder], progress: Progress) -> None:
    """A bug, with a message that wants to drive the terminal."""
    raise ValueError("first line \x1b[31m[red]\nsecond line")


def refused(folder: RunFolder, parents: dict[str, RunFolder], progress: Progress) -> None:
    """Bad input until the file `allow` exists."""
    if not Path(folder.spec["allow"]).exists():
        raise FlopwiseError("loss is nan at step 3; lower the learning rate or check the data")
    good(folder, parents, progress)


def full(folder: RunFolder, parents: dict[str, RunFolder], progress: Progress) -> None:
    """No space on the disk."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder.path / "model"))


def dies(folder: RunFolder, parents: dict[str, RunFolder], progress: Progress) -> None:
    """The process is killed, `times` times."""
    past = folder.path / "deaths"
    deaths = len(past.read_text()) if past.exists() else 0
    if deaths < folder.spec["times"]:
        past.write_text("x" * (deaths + 1))
        os.kill(os.getpid(), signal.SIGKILL)
    good(folder, parents, progress)


def resumes(folder: RunFolder, parents: dict[str, RunFolder], progress: Progress) -> None:
    """Cannot read its own state."""
    state = folder.path / "state.safetensors"
    if state.exists():
        raise DamagedFile(state, f"checkpoint {state} cannot be read (header too short)")
    good(folder, parents, progress)


def needs_model(folder: RunFolder, parents: dict[str, RunFolder], progress: Progress) -> None:
    """Cannot read what its parent left."""
    raise FlopwiseError(f"model {parents['init'].path / 'model'}: weights cannot be read (header too short)")


def waits(folder: RunFolder, parents: dict[str, RunFolder], progress: Progress) -> None:
    """Notes its process and never ends."""
    (folder.path / "pid").write_text(str(os.getpid()))
    while True:
        progress(0.1)
        time.sleep(0.1)


def three(spec: dict[str, object], n: int) -> int:
    """Groups of three at most."""
    return min(n, 3)


def group(
    folders: list[RunFolder], parents: list[dict[str, RunFolder]], progress: Callable[[int, float], None]
) -> Iterator[tuple[int, Exception | None]]:
    """`good` for several, the last one first; notes who was together. `ends` says how it goes wrong."""
    names = "+".join(str(f.spec["name"]) for f in folders)
    for i, folder in reversed(list(enumerate(folders))):
        progress(i, 0.5)
        (folder.path / "together").write_text(names)
        ends = folder.spec.get("ends")
        if ends == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if ends == "raises":
            raise ValueError("a defect of the group")
        if ends == "left":
            continue
        if ends == "fails":
            yield i, FlopwiseError("loss is nan at step 3")
        elif ends == "damaged":
            yield i, DamagedFile(folder.path / "state.safetensors", "checkpoint cannot be read")
        else:
            good(folder, parents[i], lambda fraction: None)
            yield i, None
