"""`python -m benchmarks.training_page [--measure]`: write docs/results/training_speed.md from saved rows.

`results/training.json` comes from `python -m benchmarks.run training --save`; `--measure` first times the
parts of a step into `results/training_parts.json`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.run import RESULTS, save

PAGE = Path(__file__).parents[1] / "docs" / "results" / "training_speed.md"
GOALS = {"trainer": (2.0, 1.4), "plain": (1.3, 1.2), "litgpt": (1.5, 1.5)}
"""Ratio wanted of each peer: below a million parameters, and above."""
SHARE = 0.6
"""Share of the matmul peak wanted at 8M parameters."""
LABELS = {
    "trainer": "`transformers` Trainer", "plain": "plain loop", "litgpt": "litgpt",
    "muon": "flopwise with Muon", "moe": "flopwise, 8 experts",
}  # fmt: skip

INTRO = """# How fast a model is trained

    LITGPT_PYTHON=ENV/bin/python python -m benchmarks.run training --save
    python -m benchmarks.training_page --measure

Tokens per second of one process on one thread: our loop (`flopwise.train`, AdamW) against others with
AdamW, in batches of {batch}. Every contender trains in a process of its own, and they take turns, so that
other work on the machine slows all alike. A ratio is the median over {turns} turns, with its range;
processor time counts, and the wall clock's ratio stands beside it. Start-up and compiling are left out.

Measured on {date}: {device}, {cores} virtual cores, **other work running on both**; {versions}. Fastest
float32 product seen in the same run: {peak:.0f} GFLOP/s on one core (bfloat16: no hardware for it).

"""

PEERS = """
- **Trainer**: `transformers.Trainer` over `LlamaForCausalLM` with the same weights (logits are compared
  first), set up carefully: no evaluation, checkpoints, reports or progress bar; fused AdamW, SDPA. Ours
  keeps its own checkpoints, log and ledger, and the allocator setting of our worker processes.
- **plain loop**: a few lines of our own in the manner of nanoGPT (LayerNorm, GELU, learned positions, SDPA,
  fused AdamW), eager, with as many parameters (`benchmarks/training_plain.py`). No log, no checkpoint.
- **litgpt**: its `pretrain` with the same shape, in an environment of its own. It compiles the model with
  `torch.compile`; the time that this takes is not counted.
- **flopwise with Muon** and **8 experts** are no rivals: the rows show what our default optimiser, and a
  mixture of experts of the same active size (balanced by an auxiliary loss), cost in tokens per second.
"""

WHY = """
## Where a step goes

Each part timed alone, in milliseconds of processor time for one step of 2,048 tokens
(`benchmarks/training_parts.py`). "Products" are the linear layers' matrix products by torch (MKL), which
nobody can leave out; "passes" are norms, SwiGLU and the softmax of the loss; "rest" is the optimiser, the
embedding, sums, and calling all of it. Parts timed alone may come to more than the whole.

{parts}

{bound}

## What makes it fast

- **Compiled kernels** (`models/native.cpp`): RMSNorm with the residual sum, SwiGLU, softmax with loss, and
  attention with rotary turns are one pass over memory each, forward and backward. `models/native_build.py`
  compiles these 400 lines of C++ on first use with the machine's own compiler: three seconds, once; the
  library stays in the cache folder under a hash of source, flags, compiler and processor. Without a
  compiler, on Windows, with `FLOPWISE_NATIVE=0`, in float64, on an accelerator, under autocast or
  torch.compile, torch does the same mathematics. A run keeps its bits on one machine; two machines, or one
  with and one without a compiler, differ in the last digits, as they do between versions of BLAS.
- **Attention keeps no weights**: the way back makes them again from one number per query. A tile is 32
  pairs of position and query head, which lie in the vector's lanes, so that softmax, masks and turns fill
  vectors whatever the width of a head.
- **Muon on the small matrix**: for r rows and c > 1.5 r columns Newton-Schulz runs on X X^T with 17 r^3 + 2
  r^2 c multiplications instead of 5 r^3 + 10 r^2 c; the same result to rounding
  (`tests/train/test_optim.py`). Six matrices of 128 x 352 take 7.1 ms instead of 10.1, of 576 x 1536 565
  instead of 807. It costs the same for any batch, and a batch of 2,048 tokens is
  small. Over three seeds (width 64, 160 steps) the final losses of both forms are equal to 1e-5.

Tried and not taken:

- Linear layers in the same compiled code (tiles of 6 x 16, nothing packed) against MKL: 10.9 ms for 11.1 of
  all products of a step at width 48, 18.1 for 17.5 at 64, 65 for 58 at 128.
- Gradients of SwiGLU and attention written over their arguments: no difference.
- Four Newton-Schulz steps with coefficients of their own (best odd quintics on [0.003, 1], after Amsel et
  al. 2025, arXiv 2505.16932) instead of five with Jordan's. They bring all singular values above 0.003 of
  the norm into [0.80, 1.20], the five those above 0.002 into [0.68, 1.20], and a fifth of the time is
  saved. It is other mathematics, so ladders run before would have to be run again; no losses were compared.
"""


def main() -> int:
    """Write the page; returns the exit code."""
    if "--measure" in sys.argv[1:]:
        from benchmarks import training_parts

        save("training_parts", training_parts.run())
    raced, timed = (
        json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("training", "training_parts")
    )
    PAGE.write_text(page(raced, timed), encoding="utf-8")
    return 0


def page(raced: dict[str, Any], timed: dict[str, Any]) -> str:
    """The whole page."""
    rows = raced["rows"]
    versions = raced["versions"]
    intro = INTRO.format(
        batch="16 x 128 tokens", turns=rows[0]["turns"], date=raced["date"],
        device=raced["machine"]["device"], cores=raced["machine"]["cores"],
        versions=", ".join(f"{name} {versions[name]}" for name in ("torch", "numpy") if name in versions),
        peak=max(row["matmul_peak_flop_s"] for row in rows) / 1e9,
    )  # fmt: skip
    parts = WHY.format(parts=parts_table(timed["rows"]), bound=bound(rows, timed["rows"]))
    return intro + race_table(rows) + "\n" + verdict(rows) + PEERS + parts


def shape(row: dict[str, Any]) -> str:
    """Width by depth."""
    return f"{row['width']} x {row['depth']}"


def contender(row: dict[str, Any]) -> str:
    """Whom a raced row is about."""
    return str(row["name"]).rsplit(", ", 1)[1]


def race_table(rows: list[dict[str, Any]]) -> str:
    """Every shape and contender."""
    lines = [
        "| width x depth (parameters) | against | ours, tokens/s | theirs | ratio (range) | by the clock "
        "| goal | share of peak, ours / theirs |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        theirs = row["peer_share_of_peak"]
        lines.append(
            f"| {shape(row)} ({row['parameters']:,}) | {LABELS[contender(row)]} | {row['ours']:,.0f} "
            f"| {row['peer']:,.0f} | {row['ratio']:.2f} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f}) "
            f"| {row['ratio_wall']:.2f} | {goal(row) or ''} "
            f"| {row['share_of_peak']:.0%}{f' / {theirs:.0%}' if theirs else ''} |"
        )
    return "\n".join(lines) + "\n"


def goal(row: dict[str, Any]) -> float | None:
    """The ratio wanted, None where none is."""
    small, large = GOALS.get(contender(row), (None, None))
    return small if row["parameters"] < 1e6 else large


def verdict(rows: list[dict[str, Any]]) -> str:
    """Which goals are met, and which not."""
    met, missed = [], []
    for row in rows:
        wanted = goal(row)
        if wanted is not None:
            text = f"{LABELS[contender(row)]} at {shape(row)} ({row['ratio']:.2f})"
            (met if row["ratio"] >= wanted else missed).append(text)
    largest = max(rows, key=lambda row: row["parameters"])
    share = f"{SHARE:.0%} of the peak at {largest['parameters'] / 1e6:.1f}M ({largest['share_of_peak']:.0%})"
    (met if largest["share_of_peak"] >= SHARE else missed).append(share)
    return (
        f"Goals met: {'; '.join(met) or 'none'}.\n\n"
        f"Goals **not** met: {'; '.join(missed) or 'none'}. Below is what stands in the way.\n"
    )


def parts_table(rows: list[dict[str, Any]]) -> str:
    """Milliseconds of the parts."""
    lines = [
        "| width x depth | products | attention | passes | rest | step | products' share "
        "| step in torch alone | step with Muon |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        rest = row["step"] - row["products"] - row["attention"] - row["passes"]
        times = [*(row[k] for k in ("products", "attention", "passes")), rest, row["step"]]
        lines.append(
            f"| {shape(row)} | {' | '.join(f'{t:.1f}' for t in times)} | {row['products'] / row['step']:.0%} "
            f"| {row['step_in_torch']:.1f} | {row['muon']:.1f} |"
        )
    return "\n".join(lines)


def bound(raced: list[dict[str, Any]], timed: list[dict[str, Any]]) -> str:
    """The ratio to Trainer that a step of nothing but products would have."""
    against = {shape(row): row["ratio"] for row in raced if contender(row) == "trainer"}
    texts = [f"{against[shape(row)] * row['step'] / row['products']:.2f} at {shape(row)}" for row in timed]
    return (
        f"Were everything but the products free, the ratio to Trainer would be {', '.join(texts)}. What a "
        "goal asks beyond that no float32 model of the shape can give on this processor: Trainer spends most "
        "of its time in the same products by the same library."
    )


if __name__ == "__main__":
    sys.exit(main())
