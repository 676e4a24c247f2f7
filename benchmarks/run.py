"""`python -m benchmarks.run [NAME ...] [--save]`: each benchmark in a process of its own, then a table."""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

NAMES = ("peak", "training", "sampling", "loading", "tree")
ON_REQUEST = ("posttraining", "sample_store", "sampling_large")
"""Run when named alone: they need more than the extra `bench`."""
RESULTS = Path(__file__).parent / "results"


def measure(name: str) -> list[dict[str, Any]]:
    """Rows of one benchmark, from a fresh process: no benchmark sees another's memory or threads.

    Raises:
        RuntimeError: it failed; the message is its last line.
    """
    child = subprocess.run(
        [sys.executable, "-m", "benchmarks.run", "--child", name],
        stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1], check=False,
    )  # fmt: skip
    if child.returncode:
        raise RuntimeError(f"benchmark {name} failed with exit code {child.returncode}; its output is above")
    rows: list[dict[str, Any]] = json.loads(child.stdout.splitlines()[-1])
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """The table: what was measured, against what, and the shares of the matmul peak where known."""
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "ours", "peer", "ratio", "share of peak", "setup")
    for row in rows:
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        if row.get("ratio_low") is not None:
            ratio += f" ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})"
        shares = [row.get("share_of_peak"), row.get("peer_share_of_peak")]
        peer = "" if row["peer"] is None else f"{row['peer']:,.4g} {row['peer_name']}"
        table.add_row(
            row["name"], f"{row['ours']:,.4g} {row['unit']}", peer, ratio,
            " / ".join(f"{s:.0%}" for s in shares if s is not None), row["setup"],
        )  # fmt: skip
    Console().print(table, markup=False)


def save(name: str, rows: list[dict[str, Any]]) -> Path:
    """Write rows with the machine and the versions to `results/NAME.json`."""
    from flopwise.flops.hardware import describe
    from flopwise.records.folder import atomic_write, versions

    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    content = {
        "date": datetime.now(UTC).date().isoformat(), "machine": describe(), "versions": versions(),
        "rows": rows,
    }  # fmt: skip
    atomic_write(path, json.dumps(content, indent=1) + "\n")
    return path


def main(argv: list[str] | None = None) -> int:
    """Run what is asked for, or all; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    known = ", ".join(NAMES + ON_REQUEST)
    named = f"any of {known} (default: all but {', '.join(ON_REQUEST)})"
    parser.add_argument("names", nargs="*", metavar="NAME", help=named)
    parser.add_argument("--save", action="store_true", help="also write benchmarks/results/NAME.json")
    parser.add_argument("--child", metavar="NAME", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    unknown = [n for n in [*options.names, options.child or NAMES[0]] if n not in NAMES + ON_REQUEST]
    if unknown:
        print(f"benchmark {unknown[0]!r} does not exist; there are {known}", file=sys.stderr)
        return 2
    if options.child:
        print(json.dumps(importlib.import_module(f"benchmarks.{options.child}").run()))
        return 0
    rows: list[dict[str, Any]] = []
    for name in options.names or NAMES:
        print(f"measuring {name} ...", file=sys.stderr, flush=True)
        try:
            measured = measure(name)
        except RuntimeError as e:
            print(e, file=sys.stderr)
            return 1
        if options.save:
            save(name, measured)
        rows += measured
    show(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
