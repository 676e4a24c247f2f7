"""Run a graph of steps over worker processes: what is done stays done, what fails fails alone."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import signal
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

from flopwise.errors import FlopwiseError, MissingExtra
from flopwise.launch.gang import LIMIT, Job, offer, serve
from flopwise.launch.steps import Step
from flopwise.launch.worker import limit_threads, main
from flopwise.records.store import RunStore, run_id


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
    def left_out(self, name: str) -> None: ...
    def started(self, name: str) -> None: ...
    def progress(self, name: str, fraction: float) -> None: ...
    def note(self, name: str, text: str) -> None: ...
    def finished(self, name: str, reason: str | None) -> None: ...
    def tick(self) -> None: ...


def step_ids(steps: list[Step]) -> dict[str, str]:
    """The id of each step's run, by the step's name: known before any runs, since specs and ancestors decide.

    Raises:
        FlopwiseError: two steps share a name, or one needs what does not come before it.
    """
    ids: dict[str, str] = {}
    for step in steps:
        if step.name in ids:
            raise FlopwiseError(f"steps: two are named {step.name!r}; a size, budget or seed is listed twice")
        for need in sorted(step.needs - set(ids)):
            raise FlopwiseError(f"step {step.name} needs {need!r}, which does not come before it")
        parents = {role: ids[name] for role, name in step.parents.items()}
        references = {role: ids[name] for role, name in step.references.items()}
        ids[step.name] = run_id(step.kind, step.method, step.spec, step.seed, parents, references)
    return ids


def finished(steps: list[Step], store: RunStore) -> set[str]:
    """Names of the steps that need not be run again."""
    return {name for name, run in step_ids(steps).items() if store.done(run)}


class _Worker:
    def __init__(self, threads: int):
        if importlib.util.find_spec("torch") is None:
            raise MissingExtra("torch", "train", "running experiments")
        # Read when the worker loads its linear algebra, which torch's own limit does not reach.
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
        context = multiprocessing.get_context("spawn")
        self.pipe: Connection
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=main, args=(theirs, threads, os.getpid()), daemon=True)
        # Ctrl-C reaches the whole process group: a worker must not see it even while it starts.
        resource_tracker.ensure_running()  # which would lift the mask, were it started below
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        self.steps: list[Step] = []
        """What it runs now."""

    def give(self, steps: list[Step], job: Job) -> bool:
        """Hand over a job; False where the process has died meanwhile."""
        try:
            self.pipe.send(job)
        except OSError:
            return False
        self.steps = steps
        return True


def run_steps(
    steps: list[Step], store: RunStore, display: Display, workers: int = 2, threads: int = 1
) -> Summary:
    """Run all steps that are not done. `workers` 0 runs them one after another in this process.

    A step is ready when all it needs is done; among ready ones the one with the longest way to the end goes
    first, and takes along others of its gang that are ready. A failed step takes its descendants with it and
    nothing else. A worker that dies costs its step one retry; a group is then run one by one.

    Raises:
        FlopwiseError: the steps are no graph, or another process runs in the same folder.
        OSError: the folder cannot be written; what is done stays done.
    """
    graph = _Graph(steps, store, display)
    with _Lock(store.root):
        return _run_here(graph, threads) if workers == 0 else _run_in_pool(graph, workers, threads)


def _run_here(graph: _Graph, threads: int) -> Summary:
    while steps := graph.next():
        job = graph.start(steps)
        limit_threads(threads)
        serve(job, partial(graph.hear, steps))
    return graph.summary


def _run_in_pool(graph: _Graph, workers: int, threads: int) -> Summary:
    pool: list[_Worker] = []
    died: set[str] = set()
    try:
        while True:
            idle = [w for w in pool if not w.steps]
            while (free := len(idle) + workers - len(pool)) > 0 and (steps := graph.next(free)):
                job = graph.start(steps)
                while idle and not idle[-1].give(steps, job):
                    pool.remove(idle.pop())
                if idle:
                    idle.pop()
                else:
                    pool.append(_Worker(threads))
                    pool[-1].give(steps, job)
                    pool[-1].steps = steps
            busy = {w.pipe: w for w in pool if w.steps}
            if not busy:
                return graph.summary
            for pipe in wait(list(busy), timeout=1.0):
                worker = busy[pipe]  # type: ignore[index]
                try:
                    message = worker.pipe.recv()
                except (EOFError, ConnectionResetError):
                    worker.process.join(5)
                    pool.remove(worker)
                    graph.bury(worker.steps, died, worker.process.exitcode)
                    continue
                graph.hear(worker.steps, *message)
            graph.display.tick()
    finally:
        for worker in pool:
            worker.process.kill()
        for worker in pool:
            worker.process.join(5)


class _Graph:
    """Which steps are ready, running, done."""

    def __init__(self, steps: list[Step], store: RunStore, display: Display):
        self.store, self.display = store, display
        self.summary = Summary(ids=step_ids(steps))
        self.waiting = list(steps)
        self.running: set[str] = set()
        self.settled: set[str] = set()
        """Names of steps whose runs are done."""
        self.limits: dict[str, int] = {}
        """How many of a gang are best run together, where a worker has said so."""
        self.alone: set[str] = set()
        """Names of steps that are not run in a group again."""
        self.way: dict[str, float] = {}
        for step in reversed(steps):
            self.way[step.name] = self.way.get(step.name, 0.0) + step.seconds
            for need in step.needs:
                self.way[need] = max(self.way.get(need, 0.0), self.way[step.name])

    def next(self, free: int = 1) -> list[Step]:
        """Take the ready step with the longest way to the end, and with it others of its gang, so many that
        each of `free` workers has something to do; none where nothing is ready.

        Notes what is done, leaves out what cannot run.
        """
        while True:
            self._leave_out()
            ready = self._ready()
            if not ready:
                return []
            step = ready[0]
            if not self._found_done(step):
                break
        alike = [s for s in ready[1:] if self._may_join(s, step) and not self._found_done(s)]
        others = sum(s.gang != step.gang for s in ready[1:]) if alike else 0
        limit = self.limits.get(step.gang or "", LIMIT)
        steps = offer(step, alike, free, others, limit)
        for taken in steps:
            self.waiting.remove(taken)
        return steps

    def _ready(self) -> list[Step]:
        """Steps that could start now, the longest way to the end first; one of each run.

        Two names can be one and the same run: the second waits until the first is done.
        """
        ids = self.summary.ids
        ready = [s for s in self.waiting if s.needs <= self.settled and ids[s.name] not in self.running]
        ready.sort(key=lambda s: -self.way[s.name])
        firsts: dict[str, Step] = {}
        for step in ready:
            firsts.setdefault(ids[step.name], step)
        return list(firsts.values())

    def _may_join(self, step: Step, first: Step) -> bool:
        return (
            bool(first.gang and first.run_group)
            and step.gang == first.gang
            and not ({step.name, first.name} & self.alone)
        )

    def _found_done(self, step: Step) -> bool:
        if not self.store.done(self.summary.ids[step.name]):
            return False
        self.waiting.remove(step)
        self.settled.add(step.name)
        self.summary.cached.append(step.name)
        self.display.cached(step.name)
        return True

    def _leave_out(self) -> None:
        for step in list(self.waiting):
            broken = sorted(step.needs & set(self.summary.failed))
            if broken:
                self.waiting.remove(step)
                self.summary.failed[step.name] = f"left out, because {broken[0]} failed"
                self.display.left_out(step.name)

    def start(self, steps: list[Step]) -> Job:
        """The job for a worker, who keeps at least the first step; the steps' folders are made."""
        tasks = {step.name: self._task(step) for step in steps}
        self.display.started(steps[0].name)
        return Job(tasks, steps[0].run_group, steps[0].group_size)

    def _task(self, step: Step) -> dict[str, Any]:
        ids = self.summary.ids
        folder = self.store.prepare(
            step.kind, step.method, step.spec, {r: ids[n] for r, n in step.parents.items()}, step.seed,
            step.name, {r: ids[n] for r, n in step.references.items()},
        )  # fmt: skip
        self.running.add(folder.id)
        return {"path": str(folder.path), "run": step.run, "inputs": {**folder.roles, **folder.references}}

    def hear(self, steps: list[Step], what: str, name: str, value: Any) -> None:
        """Note what a worker tells (`launch.gang.Tell`); ended steps leave `steps`, those that it has."""
        if what == "progress":
            self.display.progress(name, value)
        elif what == "note":
            self.display.note(name, value)
        elif what == "keeps":
            for step in [s for s in steps if s.name not in value]:
                steps.remove(step)
                self._put_back(step)
                self.limits[step.gang or ""] = len(value)
            for step in steps[1:]:
                self.display.started(step.name)
        else:
            step = next(s for s in steps if s.name == name)
            steps.remove(step)
            self._finish(step, value)

    def bury(self, steps: list[Step], died: set[str], code: int | None) -> None:
        """The process that ran `steps` died: they are tried once more, those of a group alone."""
        for step in steps:
            if len(steps) > 1:
                self.alone.add(step.name)
            elif step.name in died:
                why = f"its process died twice (exit code {code}); it may lack memory: try --workers 1"
                self._finish(step, why)
                continue
            else:
                died.add(step.name)
            self._put_back(step)

    def _put_back(self, step: Step) -> None:
        self.running.discard(self.summary.ids[step.name])
        self.waiting.append(step)

    def _finish(self, step: Step, reason: str | None) -> None:
        """Note how it ended."""
        self.running.discard(self.summary.ids[step.name])
        if reason is None:
            self.settled.add(step.name)
            self.summary.done.append(step.name)
        else:
            self.summary.failed[step.name] = reason
        self.display.finished(step.name, reason)


class _Lock:
    """One scheduler per folder of runs. The lock is the kernel's: it falls with the process."""

    def __init__(self, root: Path):
        self.path = root / ".lock"

    def __enter__(self) -> None:
        import fcntl

        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file = open(self.path, "a+", encoding="utf-8")
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.file.seek(0)
            raise FlopwiseError(
                f"another flopwise (process {self.file.read(20).strip() or 'unknown'}) is running in "
                f"{self.path.parent}; wait for it, or choose another --out"
            ) from None
        self.file.truncate(0)
        self.file.write(str(os.getpid()))
        self.file.flush()

    def __exit__(self, *exc: object) -> None:
        self.file.close()
