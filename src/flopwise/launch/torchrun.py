"""A step that several processes train together: torchrun as a child, its ranks report to the worker.

    worker  ->  agent (torch.distributed.run)  ->  ranks 0 ... W-1, each calls the step's function

Every link dies with the one before it, so that no kill leaves anything running.
"""

from __future__ import annotations

import importlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

from flopwise.errors import DamagedFile, FlopwiseError, one_line

Report = dict[str, Any]


def processes(spec: dict[str, Any]) -> int:
    """How many processes a step's spec asks for.

    >>> processes({"train": {"processes": 2}}), processes({})
    (2, 1)
    """
    section = spec.get("train")
    return int(section.get("processes", 1)) if isinstance(section, dict) else 1


def run(task: dict[str, Any], count: int, progress: Callable[[float], None], threads: int = 1) -> None:
    """Run a worker's task in `count` processes of `threads` threads each; returns when all are done.

    Raises:
        FlopwiseError: one of them failed or died; all have ended, and what they had saved is kept.
    """
    reports: queue.Queue[Report] = queue.Queue()
    with tempfile.TemporaryDirectory(prefix="flopwise-") as folder:
        address = str(Path(folder) / "reports")
        listener = Listener(address, family="AF_UNIX", backlog=count + 1)
        threading.Thread(target=_listen, args=(listener, reports), daemon=True).start()
        said = Path(folder) / "said"
        with open(said, "wb") as out:
            agent = subprocess.Popen(
                [sys.executable, "-m", __name__, "agent", str(os.getpid()), address, str(count),
                 str(threads), json.dumps(task)],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
        try:
            failures = _follow(agent, reports, progress)
        finally:
            if agent.poll() is None:
                agent.kill()
            agent.wait()
            listener.close()
        if agent.returncode or failures:
            _raise(failures, count, agent.returncode, said.read_text(errors="replace"))


def _listen(listener: Listener, reports: queue.Queue[Report]) -> None:
    """Take connections until the listener closes; a thread reads each."""

    def read(connection: Connection) -> None:
        with suppress(EOFError, OSError):
            while True:
                reports.put(json.loads(connection.recv_bytes()))

    with suppress(OSError):
        while True:
            threading.Thread(target=read, args=(listener.accept(),), daemon=True).start()


def _follow(
    agent: subprocess.Popen[bytes], reports: queue.Queue[Report], progress: Callable[[float], None]
) -> list[Report]:
    """Pass progress on until the agent has ended; returns what ranks said of failures."""
    failures: list[Report] = []
    ended: float | None = None
    while True:
        try:
            report = reports.get(timeout=0.1)
        except queue.Empty:
            if agent.poll() is None:
                continue
            ended = ended or time.monotonic()
            if time.monotonic() - ended > 0.3:  # the last words may still be on their way
                return failures
            continue
        if report["what"] == "progress":
            progress(report["value"])
        else:
            failures.append(report)


def _raise(failures: list[Report], count: int, code: int, said: str) -> None:
    """The one line that says what went wrong: a rank's own reason before what it caused in others."""
    own = [f for f in failures if f["what"] == "refused"]
    if own:
        text, path = own[0]["text"], own[0].get("path")
        raise DamagedFile(Path(path), text) if path else FlopwiseError(text)
    died = [f for f in failures if f["what"] == "died" and f["code"] < 0]
    broken = [f for f in failures if f["what"] == "broken"]
    # A rank that lost a partner breaks, or is ended by torchrun (SIGTERM): neither is the cause.
    if died and (died[0]["code"] != -signal.SIGTERM or not broken):
        number = -died[0]["code"]
        name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
        hint = "; it may lack memory: try fewer processes" if number == signal.SIGKILL else ""
        raise FlopwiseError(
            f"process {died[0]['rank']} of {count} was ended by {name}, so the others were ended too{hint}, "
            "or start again: the run goes on from its last checkpoint"
        )
    if broken:
        raise FlopwiseError(f"process {broken[0]['rank']} of {count} failed: {broken[0]['text']}")
    lines = [line for line in said.splitlines() if line.strip()]
    raise FlopwiseError(
        f"torchrun ended with exit code {code}: {one_line(lines[-1] if lines else 'it said nothing', 300)}"
    )


def _agent(parent: str, address: str, count: str, threads: str, task: str) -> None:
    """torch.distributed.run, told to end with the worker."""
    from flopwise.launch.worker import die_with

    if os.getppid() != int(parent):
        return
    die_with(int(parent))
    os.environ["OMP_NUM_THREADS"] = threads
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    try:
        main([
            "--standalone", "--nproc-per-node", count, "--max-restarts", "0", "-m", __spec__.name, "rank",
            address, threads, task,
        ])  # fmt: skip
    except ChildFailedError as e:
        with Client(address, family="AF_UNIX") as connection:
            # A rank that lost its partner fails too, and torchrun ends (SIGTERM) those that are left: first
            # comes one that was ended otherwise, then one that failed by itself.
            def cause(item: tuple[int, Any]) -> tuple[bool, int]:
                code = item[1].exitcode
                return code == -signal.SIGTERM, code

            rank, failure = min(e.failures.items(), key=cause)
            _tell(connection, what="died", rank=rank, code=failure.exitcode)
        sys.exit(1)


def _rank(address: str, threads: str, task_text: str) -> None:
    """One process of the run: calls the step's function and reports."""
    from flopwise.launch.worker import die_with, limit_threads, reset_peak
    from flopwise.records.folder import RunFolder

    die_with(os.getppid())
    limit_threads(int(threads))
    rank, last = int(os.environ["RANK"]), 0.0
    task = json.loads(task_text)
    folder = RunFolder(Path(task["path"]))
    parents = {role: RunFolder(folder.path.parent / run) for role, run in task["inputs"].items()}
    module, _, function = task["run"].partition(":")
    with Client(address, family="AF_UNIX") as connection:

        def progress(fraction: float) -> None:
            nonlocal last
            now = time.monotonic()
            if rank == 0 and now - last > 0.2:
                last = now
                _tell(connection, what="progress", value=fraction)

        try:
            reset_peak()
            getattr(importlib.import_module(module), function)(folder, parents, progress)
        except FlopwiseError as e:
            path = str(e.path) if isinstance(e, DamagedFile) else None
            _tell(connection, what="refused", rank=rank, text=str(e), path=path)
        except Exception as e:
            _tell(connection, what="broken", rank=rank, text=one_line(f"{type(e).__name__}: {e}", 400))
        else:
            _leave()
            # Nothing is left to do. Python's own way out would take apart what threads of the process group
            # may still hold, and a crash there would have torchrun end a rank that still writes its record.
            os._exit(0)
        # At once: the others wait for this one, and torchrun ends them when it sees it gone.
        os._exit(1)


def _leave() -> None:
    """Wait for the others (the first one evaluates and writes alone), then part."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def _tell(connection: Connection, **report: Any) -> None:
    with suppress(OSError):
        connection.send_bytes(json.dumps(report).encode())


if __name__ == "__main__":
    if sys.argv[1] == "agent":
        _agent(*sys.argv[2:])
    else:
        _rank(*sys.argv[2:])
