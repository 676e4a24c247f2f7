"""What several groups of commands need: numbers as people write them, a bar for what takes long."""

from __future__ import annotations

import math
import re
import sys
import time

from flopwise.errors import FlopwiseError

_SUFFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}


def number(text: str, name: str) -> float:
    """A positive number as people write sizes and budgets.

    >>> number("7B", "N"), number("1.4T", "D"), number("5e13", "C"), number("750_000", "D")
    (7000000000.0, 1400000000000.0, 50000000000000.0, 750000.0)
    """
    match = re.fullmatch(r"([0-9.,_]+(?:e[+-]?[0-9]+)?)\s*([kmbgt]?)", text.strip().lower())
    try:
        value = float(match[1].replace(",", "").replace("_", "")) * _SUFFIXES[match[2]] if match else math.nan
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise FlopwiseError(f"{name} is {text[:40]!r}, must be a number above 0, as 7e9, 7B or 1.4T")
    return value


class Bar:
    """How far one long call is, with the time left: shown on stderr once it has taken two seconds."""

    def __init__(self, what: str, quiet: bool = False):
        self.what, self.quiet = what, quiet
        self.started = time.monotonic()
        self.shown = self.started + 1.8

    def __call__(self, fraction: float) -> None:
        """`fraction` of the work is done."""
        now = time.monotonic()
        live = sys.stderr.isatty()
        if self.quiet or fraction <= 0 or now - self.shown < (0.2 if live else 15):
            return
        self.shown = now
        left = (now - self.started) * (1 - fraction) / fraction
        line = f"{self.what} {fraction:.0%}, {left // 60:.0f}:{left % 60:02.0f} left"
        sys.stderr.write(f"\r\x1b[2K{line}" if live else f"{line}\n")
        sys.stderr.flush()

    def close(self) -> None:
        """Take the bar away."""
        if self.shown > self.started + 1.8 and sys.stderr.isatty():
            sys.stderr.write("\r\x1b[2K")
