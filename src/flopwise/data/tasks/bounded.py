"""Judges that are other people's programs, run in a process of their own with a limit of time and memory.

Scorers of `math-verify` and `reasoning-gym` parse what a model wrote with computer algebra, which can take
for ever on a few letters. The process that takes longer than the limit is ended, and its answer is no.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from flopwise.errors import FlopwiseError, one_line

SECONDS = 5.0
"""Limit of one verdict."""
START_SECONDS = 120.0
"""Limit of starting: the packages take seconds to load."""
MEMORY = 4 << 30
"""Bytes of address space a judge may take."""


class Judge:
    """A function `module:name` in its own process: called with keyword arguments, it gives a JSON value.

    Started at the first call, ended with the program. Calls of several threads wait for each other.
    """

    def __init__(self, target: str):
        self.target = target
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def __call__(self, seconds: float = SECONDS, **arguments: Any) -> Any:
        """The verdict; None if it took too long, or the function failed.

        Raises:
            FlopwiseError: the process does not start.
        """
        with self._lock:
            process = self._started()
            try:
                self._send(process, arguments)
                answer = self._read(process, seconds)
            except (OSError, ValueError):
                answer = None
            if answer is None:
                self.close()
                return None
            return answer.get("value")

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    if pipe is not None:
                        pipe.close()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.close()
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, self.target],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )  # fmt: skip
        atexit.register(self.close)
        ready = self._read(self._process, START_SECONDS)
        if ready is None or not ready.get("ready"):
            said = one_line((ready or {}).get("error", "it took too long"), 120)
            self.close()
            raise FlopwiseError(f"judge {self.target} does not start: {said}")
        return self._process

    @staticmethod
    def _send(process: subprocess.Popen[bytes], arguments: dict[str, Any]) -> None:
        assert process.stdin is not None
        process.stdin.write(json.dumps(arguments).encode() + b"\n")
        process.stdin.flush()

    @staticmethod
    def _read(process: subprocess.Popen[bytes], seconds: float) -> dict[str, Any] | None:
        """One line of JSON within the limit; None if none comes."""
        assert process.stdout is not None
        end, line = time.monotonic() + seconds, b""
        while not line.endswith(b"\n"):
            left = end - time.monotonic()
            if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
                return None
            more = os.read(process.stdout.fileno(), 65_536)
            if not more:
                return None
            line += more
        found = json.loads(line)
        return found if isinstance(found, dict) else None


def serve(target: str) -> None:
    """Answer calls on standard input until it ends; the other side of `Judge`."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a package prints is no answer
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    except (ImportError, ValueError, OSError):
        pass  # a system without such limits still has the one of time
    module, _, name = target.partition(":")
    try:
        function: Callable[..., Any] = getattr(importlib.import_module(module), name)
        function(warm=True)
    except Exception as e:
        print(json.dumps({"error": repr(e)}), file=out, flush=True)
        return
    print(json.dumps({"ready": True}), file=out, flush=True)
    for line in sys.stdin:
        try:
            value = function(**json.loads(line))
        except Exception:  # whatever somebody's scorer raises on somebody's text
            value = None
        print(json.dumps({"value": value}), file=out, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1])
