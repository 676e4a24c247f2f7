"""The beat that contenders of the training benchmark keep: one trains at a time, the others wait.

Each contender runs in a process of its own, trains without end and calls `Turns.tick` after every step. A
turn begins with a line on standard input and ends with a line of JSON on standard output: seconds of
processor time and of the clock for the counted steps. Only the standard library is imported here, because a
peer may live in an environment where this project does not.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from typing import Any


class Turns:
    """`steps` per turn, of which the first `skip` are not counted: they warm caches that others have used."""

    def __init__(self, steps: int, skip: int):
        self.steps, self.skip, self.done = steps, skip, 0
        self.out, sys.stdout = sys.stdout, sys.stderr  # a chatty peer does not get between the lines
        self._wait()

    def _wait(self) -> None:
        if not sys.stdin.readline():
            raise SystemExit(0)
        self.cpu, self.wall = time.process_time(), time.perf_counter()

    def tick(self, *args: Any, **kwargs: Any) -> None:
        """A step ended (of what, does not matter)."""
        self.done += 1
        if self.done == self.skip:
            self.cpu, self.wall = time.process_time(), time.perf_counter()
        elif self.done == self.steps:
            spent = {"cpu": time.process_time() - self.cpu, "wall": time.perf_counter() - self.wall}
            print(json.dumps(spent), file=self.out, flush=True)
            self.done = 0
            self._wait()


def race(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> dict[str, Any]:
    """What turns of both say: steps a second of processor time, and the ratio turn by turn."""
    ratios = {
        clock: [a[clock] / b[clock] for a, b in zip(ours, theirs, strict=True)] for clock in ("cpu", "wall")
    }
    return {
        "ours": statistics.median(turn["cpu"] for turn in ours),
        "peer": statistics.median(turn["cpu"] for turn in theirs),
        "ratio": statistics.median(ratios["cpu"]),
        "ratio_low": min(ratios["cpu"]),
        "ratio_high": max(ratios["cpu"]),
        "ratio_wall": statistics.median(ratios["wall"]),
        "turns": len(ours),
    }


def read_spec() -> dict[str, Any]:
    """What the benchmark asks for: the first argument, JSON."""
    spec: dict[str, Any] = json.loads(sys.argv[1])
    return spec
