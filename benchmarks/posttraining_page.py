"""`python -m benchmarks.posttraining_page`: write docs/results/posttraining_speed.md from saved rows.

They come from `python -m benchmarks.run posttraining --save`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.posttraining import METHODS, NEW_TOKENS, SHAPES, TUNING_STEPS
from benchmarks.run import RESULTS

PAGE = Path(__file__).parents[1] / "docs" / "results" / "posttraining_speed.md"
GOALS = {"rollout": 3.0}
"""Ratio wanted; of everything else 1."""

INTRO = """# How fast post-training is beside TRL

    pip install 'flopwise[trl]'
    python -m benchmarks.run posttraining --save
    python -m benchmarks.posttraining_page

Milliseconds of processor time for one step, ours and {peer}'s, on the same work: one checkpoint, the same
texts, {length} tokens in every row of training, float32, one thread, AdamW on both sides. The models are
fine-tuned for {tuning} steps first, so that answers end by themselves before the limit of 24 tokens.

Measured on {date}: {device}, {cores} virtual cores, **much other work running on both**; {versions}. Each
side trains in a process of its own and they take turns of two steps, so that other work hits both alike. The
ratio is theirs over ours: the median over {turns} turns after one to warm up, with its range.

"""

NOTES = """
- **Ours** is the whole run that a recipe makes: the collation of each batch, the log, the ledger of FLOPs by
  purpose, and checkpoints. Validation and saving at the end are left out. Our default optimiser is Muon;
  here it is AdamW, to compare like with like.
- **TRL** is its trainer over the model of `transformers`, with the collators and the fused AdamW that it
  brings. It writes no checkpoint and no report and recomputes no activations (`gradient_checkpointing`, on by
  default), and trains in float32 (`bf16` is on by default, also on a processor without it).
- **DPO and KTO** compute the reference's log-probabilities with each batch on both sides. Ours does so once
  before training by default (`reference: cached`), which takes a forward pass out of every step.
- **GRPO** has token means, one update for each roll-out and no reference; groups without a signal are
  learned from on both sides (`zero_variance: keep`), where ours would leave them out.
- **Roll-outs** are the call that TRL makes of `transformers`' `generate` in a step of GRPO, and ours of our
  engine, which also returns the log-probabilities. The engine reads a prompt once for its whole group and
  drops answers that have ended; `generate` does neither.
- A profile of our roll-outs at 0.2M (of a model fine-tuned for 15 steps, which wrote 21 of 24 tokens on
  average): 75% of the time is one token's pass through the layers, 8% drawing, 8% reading prompts. Under so
  tight a limit there is little to drop: in the race answers have {mean:.0f} tokens on average, so that
  at most a factor of {most:.1f} is to be had. With a limit of 64 and a mean of 19 the ratio to `generate`
  was 7.9 (`benchmarks/README.md`).
- Rows of one length are a favour to TRL: with lengths that differ, ours sorts them into batches, so that
  hardly any of the work goes into padding.
"""


def main() -> int:
    """Write the page; returns the exit code."""
    raced = json.loads((RESULTS / "posttraining.json").read_text(encoding="utf-8"))
    PAGE.write_text(page(raced), encoding="utf-8")
    return 0


def page(raced: dict[str, Any]) -> str:
    """The whole page."""
    rows, versions = raced["rows"], raced["versions"]
    intro = INTRO.format(
        peer=rows[0]["peer_name"], length=rows[0]["length"], tuning=TUNING_STEPS, date=raced["date"],
        device=raced["machine"]["device"], cores=raced["machine"]["cores"], turns=rows[0]["turns"],
        versions=", ".join(f"{name} {versions[name]}" for name in ("torch", "numpy") if name in versions),
    )  # fmt: skip
    return intro + table(rows) + "\n" + verdict(rows) + missing(rows) + notes(rows)


def notes(rows: list[dict[str, Any]]) -> str:
    """What the sides are, and why the roll-outs gain what they do."""
    mean = min(rows, key=lambda row: row["parameters"])["mean_new_tokens"]
    return NOTES.format(mean=mean, most=NEW_TOKENS / mean)


def table(rows: list[dict[str, Any]]) -> str:
    """Every size and method."""
    lines = ["| parameters | step | ours, ms | TRL, ms | ratio (range) | goal |", "|---|---|---|---|---|---|"]
    for row in rows:
        lines.append(
            f"| {row['parameters'] / 1e6:.1f}M | {METHODS[row['method']]} | {1e3 / row['ours']:,.0f} "
            f"| {1e3 / row['peer']:,.0f} | {row['ratio']:.2f} ({row['ratio_low']:.2f} to "
            f"{row['ratio_high']:.2f}) | {goal(row):.0f} |"
        )
    return "\n".join(lines) + "\n"


def goal(row: dict[str, Any]) -> float:
    """The ratio wanted."""
    return GOALS.get(row["method"], 1.0)


def verdict(rows: list[dict[str, Any]]) -> str:
    """Which goals are not met."""
    missed = [
        f"{METHODS[row['method']]} at {row['parameters'] / 1e6:.1f}M ({row['ratio']:.2f})"
        for row in rows
        if row["ratio"] < goal(row)
    ]
    return f"Goals **not** met: {'; '.join(missed)}.\n" if missed else "All goals are met.\n"


def missing(rows: list[dict[str, Any]]) -> str:
    """Sizes and methods that the saved rows do not hold: a run that was cut short."""
    have = {(row["width"], row["depth"], row["method"]) for row in rows}
    gaps = {
        f"{width} x {depth}": [m for m in METHODS if (width, depth, m) not in have] for width, depth in SHAPES
    }
    texts = [f"{shape} ({', '.join(methods)})" for shape, methods in gaps.items() if methods]
    return f"\n**Not measured yet**, width x depth: {'; '.join(texts)}.\n" if texts else ""


if __name__ == "__main__":
    sys.exit(main())
