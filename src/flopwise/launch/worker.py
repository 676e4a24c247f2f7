"""A worker process: takes jobs from a pipe, runs them one after another, dies with its parent."""

from __future__ import annotations

import errno
import importlib
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from flopwise.errors import DamagedFile, FlopwiseError, one_line
from flopwise.flops.hardware import keep_freed_memory
from flopwise.launch import torchrun
from flopwise.records.folder import RunFolder


class Report:
    """What a step reports by as it goes: called with the share that is done; `note` says a line on screen."""

    def __init__(self, progress: Callable[[float], None], note: Callable[[str], None]):
        self._progress, self.note = progress, note

    def __call__(self, fraction: float) -> None:
        self._progress(fraction)


def run_one(
    task: dict[str, Any], progress: Callable[[float], None], note: Callable[[str], None]
) -> str | None:
    """Run a step in its folder; returns None or the one-line reason why it failed (also recorded).

    A damaged training state of its own is set aside, and the step starts over: nothing but time is lost.
    """
    path, report = Path(task["path"]), Report(progress, note)
    try:
        folder = RunFolder(path)
        folder.sweep()
        try:
            _call(folder, task, report)
        except DamagedFile as e:
            if e.path.parent != path:
                raise
            aside = e.path.with_name(f"{e.path.name}.damaged")
            e.path.replace(aside)
            note(f"{e}; set aside as {aside.name}, the step starts over")
            _call(folder, task, report)
        return None
    except Exception as e:  # a defect in a step must not take the others down
        return record_failure(e, task)


def _call(folder: RunFolder, task: dict[str, Any], progress: Callable[[float], None]) -> None:
    if (count := torchrun.processes(folder.spec)) > 1:
        import torch

        return torchrun.run(task, count, progress, torch.get_num_threads())
    parents = open_parents(folder, task)
    reset_peak()
    find(task["run"])(folder, parents, progress)


def record_failure(error: Exception, task: dict[str, Any]) -> str:
    """Note in the run's folder why it failed; returns that in one line."""
    reason = one_line(_reason(error, task))
    with suppress(OSError, FlopwiseError):  # on a full disk the reason still reaches the person
        RunFolder(Path(task["path"])).fail(reason)
    return reason


def open_parents(folder: RunFolder, task: dict[str, Any]) -> dict[str, RunFolder]:
    """The folders of the runs that a step is made from, by role."""
    return {role: RunFolder(folder.path.parent / run) for role, run in task["inputs"].items()}


def find(function: str) -> Any:
    """What "module:function" names."""
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)


def _reason(error: Exception, task: dict[str, Any]) -> str:
    """What went wrong and what to do next."""
    text = one_line(error, 400)
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or os.strerror(errno.ENOSPC) in text:
        return f"{text}; free some space and start again, nothing finished is lost"
    if isinstance(error, FlopwiseError):
        # What a finished run left is damaged: only deleting it makes it anew.
        root = Path(task["path"]).parent
        broken = next((run for run in task["inputs"].values() if str(root / run) in text), None)
        return f"{text}; delete {root / broken} and start again" if broken else text
    return f"{type(error).__name__}: {text}"


def reset_peak() -> None:
    """Let the peak of resident memory count from here: a step must not inherit that of the one before it.

    Linux alone can do this (proc(5), clear_refs); elsewhere the peak is the process's so far.
    """
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def limit_threads(threads: int) -> None:
    """One step, so many threads: results do not depend on how many cores a machine has."""
    import torch

    torch.set_num_threads(threads)
    keep_freed_memory()


def die_with(parent: int) -> None:
    """End this process when its parent ends, be it by kill -9: on Linux by the kernel, else by a watch."""
    import ctypes
    import signal

    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))  # PR_SET_PDEATHSIG

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main(pipe: Connection, threads: int, parent: int) -> None:
    """Serve jobs until the pipe closes. Ctrl-C is the parent's business."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with(parent)
    limit_threads(threads)

    from flopwise.launch.gang import serve  # which runs steps by this module

    def tell(what: str, name: str, value: Any) -> None:
        try:
            pipe.send((what, name, value))
        except OSError:
            os._exit(1)  # nobody listens any more; a failed step would be the wrong thing to note

    with suppress(EOFError, ConnectionResetError):
        while True:
            serve(pipe.recv(), tell)
