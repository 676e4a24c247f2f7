"""Run a graph of steps over worker processes: what is done stays done, what fails fails alone."""

from __future__ import annotations

import multiprocessing
import os
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

from flopwise.errors import FlopwiseError
from flopwise.launch.steps import Step
from flopwise.launch.worker import main, run_one
from flopwise.records.folder import RunFolder
from flopwise.records.store import RunStore


@dataclass
class Summary:
    """What became of each step: ids by name, what was found done, what failed or was left out, and why."""

    ids: dict[str, str] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)
    cached: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


class Display(Protocol):
    """Shows how far things are."""

    def cached(self, name: str) -> None: ...
    def started(self, name: str) -> None: ...
    def progress(self, name: str, fraction: float) -> None: ...
    def finished(self, name: str, reason: str | None) -> None: ...


class _Worker:
    def __init__(self, threads: int):
        context = multiprocessing.get_context("spawn")
        self.pipe: Connection
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=main, args=(theirs, threads), daemon=True)
        self.process.start()
        theirs.close()
        self.step: Step | None = None


def run_steps(steps: list[Step], store: RunStore, display: Display, workers: int = 2, threads: int = 1) -> Summary:
    """Run all steps that are not done. `workers` 0 runs them one after another in this process.

    A step is ready when all it needs is done; among ready ones the one with the longest way to the end goes
    first. A failed step takes its descendants with it and nothing else. A worker that dies costs its step one
    retry.
    """
    graph = _Graph(steps, store)
    with _Lock(store.root):
        if workers == 0:
            while step := graph.next():
                task = graph.start(step, display)
                if task is not None:
                    graph.finish(step, run_one(task, lambda f, n=step.name: display.progress(n, f)), display)
            return graph.summary
        pool: list[_Worker] = []
        retried: set[str] = set()
        try:
            while True:
                idle = [w for w in pool if w.step is None]
                while (step := graph.next()) is not None:
                    if not idle and len(pool) >= workers and graph.pending(step):
                        graph.put_back(step)
                        break
                    task = graph.start(step, display)
                    if task is None:
                        continue
                    worker = idle.pop() if idle else _Worker(threads)
                    if worker not in pool:
                        pool.append(worker)
                    worker.step = step
                    worker.pipe.send(task)
                busy = {w.pipe: w for w in pool if w.step is not None}
                if not busy:
                    return graph.summary
                for pipe in wait(list(busy), timeout=1.0):
                    worker = busy[pipe]  # type: ignore[index]
                    assert worker.step is not None
                    try:
                        what, value = worker.pipe.recv()
                    except (EOFError, ConnectionResetError):
                        worker.process.join(5)
                        pool.remove(worker)
                        step, code = worker.step, worker.process.exitcode
                        if step.name not in retried:
                            retried.add(step.name)
                            graph.put_back(step)
                        else:
                            graph.finish(step, f"its process died twice (exit code {code}); it may lack memory", display)
                        continue
                    if what == "progress":
                        display.progress(worker.step.name, value)
                    else:
                        step, worker.step = worker.step, None
                        graph.finish(step, value, display)
        finally:
            for worker in pool:
                worker.process.kill()


class _Graph:
    """Which steps are ready, running, done."""

    def __init__(self, steps: list[Step], store: RunStore):
        self.store, self.summary = store, Summary()
        self.by_name = {s.name: s for s in steps}
        if len(self.by_name) != len(steps):
            raise FlopwiseError("steps: two have the same name")
        for step in steps:
            for need in step.needs - set(self.by_name):
                raise FlopwiseError(f"step {step.name} needs {need!r}, which does not exist")
        self.waiting = list(steps)
        self.way: dict[str, float] = {}
        children: dict[str, list[Step]] = {}
        for step in steps:
            for need in step.needs:
                children.setdefault(need, []).append(step)
        for step in reversed(steps):
            self.way[step.name] = step.seconds + max((self.way.get(c.name, 0.0) for c in children.get(step.name, [])), default=0.0)

    def next(self) -> Step | None:
        """Take the ready step with the longest way to the end; steps with a failed need fail here."""
        for step in list(self.waiting):
            broken = sorted(step.needs & set(self.summary.failed))
            if broken:
                self.waiting.remove(step)
                self.summary.failed[step.name] = f"left out, because {broken[0]} failed"
        ready = [s for s in self.waiting if s.needs <= set(self.summary.ids) and s.needs <= self._finished()]
        if not ready:
            return None
        step = max(ready, key=lambda s: self.way[s.name])
        self.waiting.remove(step)
        return step

    def _finished(self) -> set[str]:
        return {*self.summary.done, *self.summary.cached}

    def folder(self, step: Step) -> RunFolder:
        """The step's folder; its parents' ids are known by now."""
        ids = self.summary.ids
        return self.store.prepare(
            step.kind, step.method, step.spec, {r: ids[n] for r, n in step.parents.items()}, step.seed, step.name,
            {r: ids[n] for r, n in step.references.items()},
        )  # fmt: skip

    def pending(self, step: Step) -> bool:
        """Whether it still has to be run."""
        return not self.folder(step).done

    def put_back(self, step: Step) -> None:
        """It was taken but cannot start now."""
        self.waiting.append(step)

    def start(self, step: Step, display: Display) -> dict[str, Any] | None:
        """The task for a worker, or None when the run is already done."""
        folder = self.folder(step)
        self.summary.ids[step.name] = folder.id
        if folder.done:
            self.summary.cached.append(step.name)
            display.cached(step.name)
            return None
        display.started(step.name)
        return {"path": str(folder.path), "run": step.run, "inputs": {**folder.roles, **folder.references}}

    def finish(self, step: Step, reason: str | None, display: Display) -> None:
        """Note how it ended."""
        if reason is None:
            self.summary.done.append(step.name)
        else:
            self.summary.failed[step.name] = reason
        display.finished(step.name, reason)


class _Lock:
    """One scheduler per folder of runs. The lock is the kernel's: it falls with the process, however it dies."""

    def __init__(self, root: Path):
        self.path = root / ".lock"

    def __enter__(self) -> None:
        import fcntl

        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file = open(self.path, "a+", encoding="utf-8")  # noqa: SIM115
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.file.seek(0)
            raise FlopwiseError(
                f"another flopwise (process {self.file.read().strip() or 'unknown'}) is running in {self.path.parent}; "
                "wait for it, or choose another --out"
            ) from None
        self.file.truncate(0)
        self.file.write(str(os.getpid()))
        self.file.flush()

    def __exit__(self, *exc: object) -> None:
        self.file.close()
