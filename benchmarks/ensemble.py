"""Many small models at once: an ensemble of E against E models one after the other, in one process.

Both sides make whole updates (forward, backward, clipping, Muon and AdamW) on random tokens, in turns of 8
members' updates each; processor time is counted, so that other work on the machine slows both alike. The
ratio is separate over together: above 1 the ensemble is faster. Median over turns, with its range.

    python -m benchmarks.ensemble [--save] [--widths 16,32]
"""

from __future__ import annotations

import argparse
import statistics
import sys
from typing import Any

WIDTHS, DEPTH, VOCAB = (16, 32, 48, 64, 96), 2, 512
BATCHES = ((4, 64), (8, 128), (16, 128))
TURNS = 5


def run(widths: tuple[int, ...] = WIDTHS) -> list[dict[str, Any]]:
    """One row per batch, width and size of the ensemble."""
    import torch

    from flopwise.flops.hardware import keep_freed_memory

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    keep_freed_memory()  # as worker processes do
    try:
        rows: list[dict[str, Any]] = []
        for B, T in BATCHES:
            for width in widths:
                rows += (new := _rows(width, B, T))
                print(table(new), file=sys.stderr, flush=True)
        return rows
    finally:
        torch.set_num_threads(before)


def _rows(width: int, B: int, T: int) -> list[dict[str, Any]]:
    from flopwise.models.config import ModelConfig
    from flopwise.models.native_build import library
    from flopwise.train.group_size import SIZES, choose, seconds_per_update

    cfg = ModelConfig.from_width(width, DEPTH, VOCAB, T)
    turns = seconds_per_update(cfg, B, T, [1, *SIZES], lambda spent, done: done < TURNS)
    best = choose({size: min(values) for size, values in turns.items()}, max(SIZES))
    kernels = "compiled kernels" if library() else "torch's kernels"
    out = []
    for size in SIZES:
        ratios = [a / b for a, b in zip(turns[1], turns[size], strict=True)]
        alone, together = (B * T / statistics.median(turns[n]) for n in (1, size))
        out.append(
            {
                "name": f"ensemble of {size}, width {width}, batch {B} x {T}",
                "unit": "tokens/s of processor time",
                "ours": together,
                "peer": alone,
                "ratio": statistics.median(ratios),
                "ratio_low": min(ratios),
                "ratio_high": max(ratios),
                "peer_name": "one by one",
                "setup": f"depth {DEPTH}, vocabulary {VOCAB}, float32, one thread, {kernels}",
                "chosen": size == best,
            }
        )
    return out


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as `docs/results/ensemble.md` shows them: a line per batch and width, the chosen size in bold."""
    lines: dict[str, list[str]] = {}
    for row in rows:
        width, batch = row["name"].partition(", width ")[2].split(", batch ")
        cell = f"{row['ratio']:.2f} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})"
        line = lines.setdefault(f"| {batch} | {width} | {row['peer']:,.0f}", [])
        line.append(f"**{cell}**" if row["chosen"] else cell)
    return "\n".join(f"{start} | {' | '.join(cells)} |" for start, cells in lines.items())


if __name__ == "__main__":
    from benchmarks.run import save, show

    parser = argparse.ArgumentParser(prog="python -m benchmarks.ensemble")
    parser.add_argument("--save", action="store_true", help="also write benchmarks/results/ensemble.json")
    parser.add_argument("--widths", default=",".join(map(str, WIDTHS)), help="comma-separated")
    options = parser.parse_args()
    rows = run(tuple(int(w) for w in options.widths.split(",")))
    if options.save:
        save("ensemble", rows)
    show(rows)
