"""How far it is: what runs, what is done, how long it takes. Estimates bend to the speed that is seen."""

from __future__ import annotations

import shutil
import sys
import time

from flopwise.errors import one_line
from flopwise.launch.steps import Step

LIVE_EVERY_S, LOG_EVERY_S = 0.2, 15.0
CLEAR = "\r\x1b[2K"


class Display:
    """One line that is rewritten on a terminal; elsewhere one per finished step and every 15 s."""

    def __init__(self, steps: list[Step], quiet: bool = False, workers: int = 2):
        self.cost = {s.name: s.seconds for s in steps}
        self.fraction = dict.fromkeys(self.cost, 0.0)
        self.running: dict[str, float] = {}
        self.resumed: dict[str, float] = {}
        """Share of a running step that an earlier start had done."""
        self.paid = 0.0
        """Estimated seconds of work that this process did (not found done)."""
        self.quiet, self.workers = quiet, workers
        self.live = sys.stderr.isatty()
        self.started_at = time.monotonic()
        self.shown_at = self.started_at - LOG_EVERY_S

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.live and not self.quiet:
            sys.stderr.write(CLEAR)

    def seconds_left(self) -> float:
        """Remaining estimate, scaled by how fast the work so far went against its own estimate."""
        left = sum(c * (1 - self.fraction[n]) for n, c in self.cost.items())
        paid = self.paid + sum(self._paid(n) for n in self.running)
        elapsed = time.monotonic() - self.started_at
        speed = paid / elapsed if paid > 5 else max(1, min(self.workers, len(self.cost)))
        return left / max(speed, 1e-6)

    def cached(self, name: str) -> None:
        """Found done."""
        self.fraction[name] = 1.0

    def left_out(self, name: str) -> None:
        """It will not run, because something it needs failed."""
        self.fraction[name] = 1.0

    def started(self, name: str) -> None:
        """A worker has it."""
        self.running[name], self.fraction[name] = time.monotonic(), 0.0
        self.tick()

    def progress(self, name: str, fraction: float) -> None:
        """A running step's share done."""
        self.fraction[name] = min(max(fraction, 0.0), 1.0)
        if name not in self.resumed:
            # Much further at the first word than its time allows: it went on from a checkpoint.
            likely = (time.monotonic() - self.running[name]) / max(self.cost[name], 1e-6)
            self.resumed[name] = fraction if fraction > 4 * likely else 0.0
        self.tick()

    def finished(self, name: str, reason: str | None) -> None:
        """It ended, well or not."""
        self.fraction[name] = 1.0
        self.paid += self._paid(name)
        self.resumed.pop(name, None)
        seconds = time.monotonic() - self.running.pop(name)
        why = f": {reason}" if reason else ""
        self._line("failed" if reason else "done", f"{name} ({seconds:.0f} s){why}")
        self.tick()

    def note(self, name: str, text: str) -> None:
        """A step says something that a person should know."""
        self._line("note", f"{name}: {text}")

    def tick(self) -> None:
        """Show how far it is, if that is due."""
        now = time.monotonic()
        if self.quiet or now - self.shown_at < (LIVE_EVERY_S if self.live else LOG_EVERY_S):
            return
        self.shown_at = now
        n_done = sum(f >= 1.0 for f in self.fraction.values())
        current = ", ".join(f"{n} {self.fraction[n]:.0%}" for n in self.running)
        minutes, seconds = divmod(round(self.seconds_left()), 60)
        line = f"{n_done}/{len(self.cost)} steps, {minutes}:{seconds:02d} left; {current}"
        width = shutil.get_terminal_size().columns - 1
        sys.stderr.write(f"{CLEAR}{line[:width]}" if self.live else f"        {line}\n")
        sys.stderr.flush()

    def _paid(self, name: str) -> float:
        return self.cost[name] * (self.fraction[name] - self.resumed.get(name, 0.0))

    def _line(self, mark: str, text: str) -> None:
        if not self.quiet:
            sys.stderr.write(f"{CLEAR if self.live else ''}{mark:>7} {one_line(text)}\n")
            sys.stderr.flush()
            self.shown_at -= LIVE_EVERY_S
