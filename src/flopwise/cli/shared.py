"""What several groups of commands need: numbers as people write them, tables, a bar for what takes long."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flopwise.errors import FlopwiseError, one_line
from flopwise.records.quantities import parse, unit_of


def number(text: str, name: str) -> float:
    """A positive number as people write sizes and budgets (`records.quantities`).

    >>> number("7B", "N"), number("1.4T", "D"), number("5e13", "C"), number("750_000", "D")
    (7000000000.0, 1400000000000.0, 50000000000000.0, 750000.0)

    Raises:
        FlopwiseError: it is none, could be two, or counts something else than `name` does.
    """
    expected = unit_of(name)
    found = parse(text, expected)
    if found is None or not 0 < found.value < math.inf:
        raise FlopwiseError(f"{name} is {text[:40]!r}, must be a number above 0, as 7e9, 7B or 1.4T")
    if found.other is not None:
        raise FlopwiseError(
            f"{name} is {text[:40]!r}, which is {found.value:.10g} or {found.other:.10g}; leave the comma out"
        )
    if found.unit and expected and found.unit != expected:
        raise FlopwiseError(f"{name} is {text[:40]!r}, must be a number of {expected}, as 7e9, 7B or 1.4T")
    return found.value


def pairs(texts: Iterable[str], example: str = "N=n_params") -> dict[str, str]:
    """NAME=VALUE of each text; one text may hold several with a comma between. Commas and equals signs in
    brackets and quotes belong to the value.

    >>> pairs(["N=n_params,loss=least(a, b)", "D=tokens*1e9"])
    {'N': 'n_params', 'loss': 'least(a, b)', 'D': 'tokens*1e9'}

    Raises:
        FlopwiseError: a text is no NAME=VALUE, or a name comes twice.
    """
    out: dict[str, str] = {}
    for text in texts:
        for part in commas(text):
            name, sign, value = (p.strip() for p in part.partition("="))
            if not (sign and name and value):
                raise FlopwiseError(f"{one_line(part, 60)!r} must be NAME=VALUE, as {example}")
            if name in out:
                raise FlopwiseError(
                    f"{one_line(name, 60)!r} is given twice, {out[name][:60]!r} and {value[:60]!r}"
                )
            out[name] = value
    return out


def commas(text: str) -> list[str]:
    """At the commas outside of brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        else:
            depth += (letter in "([{") - (letter in ")]}")
            if letter == "," and depth <= 0:
                parts.append("")
                continue
        parts[-1] += letter
    return text.split(",") if quote or depth else parts


def read(
    source: str | Path, mapping: Iterable[str] | None = None, where: str | None = None, sql: str | None = None
) -> dict[str, Any]:
    """The table a command was given: a file, URL, database or folder, with --map, --where and --sql."""
    from flopwise.records.table import read_table

    return read_table(source, pairs(mapping or ()), where, sql=sql)


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


def settle() -> None:
    """One thread unless OMP_NUM_THREADS says otherwise: models this small lose by more on a busy machine."""
    import torch

    from flopwise.flops.hardware import keep_freed_memory

    keep_freed_memory()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
