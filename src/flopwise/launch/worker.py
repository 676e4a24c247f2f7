"""A worker process: takes steps from a pipe, runs them one after another, dies with its parent."""

from __future__ import annotations

import importlib
import os
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from flopwise.errors import FlopwiseError
from flopwise.records.folder import RunFolder


def run_one(task: dict[str, Any], progress: Any) -> str | None:
    """Run a step in its folder; returns None or the one-line reason why it failed (also recorded)."""
    folder = RunFolder(Path(task["path"]))
    parents = {role: RunFolder(folder.path.parent / run) for role, run in task["inputs"].items()}
    try:
        module, _, function = task["run"].partition(":")
        getattr(importlib.import_module(module), function)(folder, parents, progress)
        return None
    except FlopwiseError as e:
        reason = str(e)
    except OSError as e:
        reason = f"{e.strerror or type(e).__name__}" + (": free some space and start again" if e.errno == 28 else "")
    except Exception as e:  # a defect in a step must not take the others down
        lines = str(e).splitlines() or [""]
        reason = f"{type(e).__name__}: {lines[0]}"
    try:
        folder.fail(reason)
    except OSError:
        pass  # the disk is full: the reason still reaches the person
    return " ".join(reason.split())


def main(pipe: Connection, threads: int) -> None:
    """Serve tasks until the pipe closes. A thread watches for the parent's death, which may be a kill -9."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    import torch

    torch.set_num_threads(threads)
    last = 0.0

    def progress(fraction: float) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > 0.2:
            last = now
            pipe.send(("progress", fraction))

    try:
        while True:
            task = pipe.recv()
            pipe.send(("done", run_one(task, progress)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
