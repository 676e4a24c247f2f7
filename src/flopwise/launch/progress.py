"""How far it is: what runs, what is done, how long it still takes. Estimates bend to the speed that is seen."""

from __future__ import annotations

import sys
import time

from flopwise.launch.steps import Step


class Display:
    """One line that is rewritten on a terminal; one line per finished step elsewhere."""

    def __init__(self, steps: list[Step], quiet: bool = False, workers: int = 2):
        self.cost = {s.name: s.seconds for s in steps}
        self.fraction = dict.fromkeys(self.cost, 0.0)
        self.running: dict[str, float] = {}
        self.paid = 0.0
        """Estimated seconds of work that this process did (not found done)."""
        self.quiet, self.workers = quiet, workers
        self.started_at = self.shown_at = time.monotonic()
        self.live = sys.stderr.isatty()

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.live and not self.quiet:
            sys.stderr.write("\r\x1b[2K")

    def seconds_left(self) -> float:
        """Remaining estimate, scaled by how fast the work so far went against its own estimate."""
        left = sum(c * (1 - self.fraction[n]) for n, c in self.cost.items())
        paid = self.paid + sum(self.cost[n] * self.fraction[n] for n in self.running)
        elapsed = time.monotonic() - self.started_at
        speed = paid / elapsed if paid > 5 else min(self.workers, len(self.cost))
        return left / max(speed, 1e-6)

    def cached(self, name: str) -> None:
        """Found done."""
        self.fraction[name] = 1.0

    def started(self, name: str) -> None:
        """A worker has it."""
        self.running[name] = time.monotonic()
        self._show()

    def progress(self, name: str, fraction: float) -> None:
        """A running step's share done."""
        self.fraction[name] = min(fraction, 1.0)
        if time.monotonic() - self.shown_at > (0.2 if self.live else 15):
            self._show()

    def finished(self, name: str, reason: str | None) -> None:
        """It ended, well or not."""
        seconds = time.monotonic() - self.running.pop(name, time.monotonic())
        self.fraction[name] = 1.0
        self.paid += self.cost[name]
        if self.quiet:
            return
        mark, words = ("failed", f": {reason}") if reason else ("done", "")
        lead = "\r\x1b[2K" if self.live else ""
        sys.stderr.write(f"{lead}{mark:>7} {name} ({seconds:.0f} s){words}\n")
        self._show()

    def _show(self) -> None:
        self.shown_at = time.monotonic()
        if self.quiet:
            return
        n_done = sum(f >= 1.0 for f in self.fraction.values())
        now = ", ".join(f"{n} {self.fraction[n]:.0%}" for n in self.running)
        minutes, seconds = divmod(round(self.seconds_left()), 60)
        line = f"{n_done}/{len(self.cost)} steps, {minutes}:{seconds:02d} left; {now}"
        sys.stderr.write(f"\r\x1b[2K{line[:150]}" if self.live else f"        {line}\n")
        sys.stderr.flush()
