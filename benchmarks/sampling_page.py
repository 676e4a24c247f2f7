"""`python -m benchmarks.sampling_page`: write docs/results/sampling_speed.md from saved rows.

They come from `python -m benchmarks.sampling_large` and `python -m benchmarks.run sampling --save`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.run import RESULTS

PAGE = Path(__file__).parents[1] / "docs" / "results" / "sampling_speed.md"
WANTED = {"64": ("float32", 4.0), "small": ("float32", 3.0)}
"""Ratio to generate that is wanted of a part's contender."""
SHARE_OF_PEAK, SHARE_OF_READING = 0.65, 0.7
PARTS = {
    "1": "SmolLM2-135M, one sample", "stream": "SmolLM2-135M, one sample of a prompt that is known already",
    "16": "SmolLM2-135M, 16 samples", "64": "SmolLM2-135M, 64 samples",
    "256": "SmolLM2-135M, 256 samples", "small": "A million parameters, 256 samples",
}  # fmt: skip
LABELS = {
    "waves": "flopwise, torch's products (default)", "float32": "flopwise, `weights` float32",
    "bfloat16": "flopwise, bfloat16", "int8": "flopwise, int8", "int4": "flopwise, int4",
    "drafts": "flopwise, float32 with int4 drafts", "generate float32": "`transformers` generate, float32",
    "generate bfloat16": "`transformers` generate, bfloat16 (4 new tokens)", "llama.cpp": "llama.cpp, Q4_1",
}  # fmt: skip

INTRO = """# How fast a model writes

    LLAMA_PYTHON=ENV/bin/python python -m benchmarks.sampling_large
    python -m benchmarks.run sampling --save
    python -m benchmarks.sampling_page

New tokens per second of processor time, one thread. SmolLM2-135M-Instruct: samples of one prompt of {prompt}
tokens, {new} new tokens each, temperature 1, no stop token; time to read the prompt is in it. Contenders
take turns within one process (llama.cpp behind its server, whose processor time counts); a ratio is the
median over turns, with its range.

Measured on {date}: {device}, {cores} virtual cores, **much other work running on both**, which shares
caches and memory: numbers are low, and ratios say more than they do. {versions}.
The processor has AVX2 and neither AVX-512 nor bfloat16 products: best float32 product {peak:.0f} GFLOP/s on
one core, bfloat16 {half:.1f} by torch (`results/peak.json`).

"""

NOTES = """
- **flopwise** with `weights`: `LocalEngine(model, weights=...)`, compiled code. Reading a prompt once for all
  its samples is part of it; `generate` reads it for every sample.
- **float32 with int4 drafts**: `SpeculativeEngine`, four drafts at a time; its samples have the float32
  model's distribution.
- **llama.cpp**: its server through `xllamacpp`, the same model in the 4-bit file that the checkpoint comes
  from, as many slots as samples.
- Share of peak: FLOPs as the ledger counts them over the best float32 product of 256 x 256 in between.
  Share of reading: bytes of the weights per token over the rate at which one core reads a long array.
- vLLM's CPU build was not measured here: it needs 3.5 GB in an environment of its own. Measured elsewhere,
  on hardware with bfloat16 products: 174 tokens a core-second at 64 samples, beside 100 of `generate`.
"""


def main() -> int:
    """Write the page; returns the exit code."""
    saved = json.loads((RESULTS / "sampling_large.json").read_text(encoding="utf-8"))
    toy = json.loads((RESULTS / "sampling.json").read_text(encoding="utf-8"))
    PAGE.write_text(page(saved, toy), encoding="utf-8")
    return 0


def page(saved: dict[str, Any], toy: dict[str, Any]) -> str:
    """The whole page."""
    rows, versions = saved["rows"], saved["versions"]
    raced = [r for r in rows if r["part"] in PARTS]
    limits = json.loads((RESULTS / "peak.json").read_text(encoding="utf-8"))
    peaks = {r["name"]: r["ours"] for r in limits["rows"]}
    intro = INTRO.format(
        prompt=raced[0]["prompt"], new=raced[0]["new"], date=saved["date"], device=saved["machine"]["device"],
        cores=saved["machine"]["cores"], versions=", ".join(f"{n} {versions[n]}" for n in ("torch", "numpy")),
        peak=max(r["matmul_peak_flop_s"] for r in raced) / 1e9,
        half=peaks["matmul bfloat16"] / 1e9,
    )  # fmt: skip
    parts = [table(part, [r for r in raced if r["part"] == part]) for part in PARTS]
    return intro + "".join(parts) + verdict(raced) + NOTES + rounding(rows) + small(toy["rows"])


def table(part: str, rows: list[dict[str, Any]]) -> str:
    """One batch size."""
    if not rows:
        return ""
    lines = [
        f"## {PARTS[part]}\n", "| | tokens/s (range) | ratio to `generate` | of peak | of reading | turns |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for r in rows:
        ratio = ""
        if r["ratio"] is not None and r["name"] != r["peer_name"]:
            ratio = f"{r['ratio']:.2f} ({r['ratio_low']:.2f} to {r['ratio_high']:.2f})"
        reading = percent(r["share_of_reading"] if part == "stream" else None)
        lines.append(
            f"| {LABELS[r['name']]} | {r['ours']:,.0f} ({r['low']:,.0f} to {r['high']:,.0f}) | {ratio} "
            f"| {percent(r['share_of_peak'])} | {reading} | {r['turns']} |"
        )
    return "\n".join(lines) + "\n\n"


def percent(share: float | None) -> str:
    """Or nothing."""
    return "" if share is None else f"{share:.0%}"


def verdict(rows: list[dict[str, Any]]) -> str:
    """Which goals are met, which not, which were not measured."""
    by = {(r["part"], r["name"]): r for r in rows}
    goals: list[tuple[str, float | None, float]] = []
    for part, (name, wanted) in WANTED.items():
        r = by.get((part, name))
        goals.append((f"{wanted:.0f} times generate, {PARTS[part]}", r["ratio"] if r else None, wanted))
    full = by.get(("256", "float32"))
    goals.append(("65% of the peak at 256 samples", full["share_of_peak"] if full else None, SHARE_OF_PEAK))
    single = [
        r["share_of_reading"] for (part, name), r in by.items() if part == "stream" and name[:3] == "int"
    ]
    goals.append(
        ("70% of the reading limit, one sample in 8 or 4 bits", max(single, default=None), SHARE_OF_READING)
    )
    met = [f"{what} ({value:.2f})" for what, value, least in goals if value is not None and value >= least]
    missed = [f"{what} ({value:.2f})" for what, value, least in goals if value is not None and value < least]
    unknown = [what for what, value, _ in goals if value is None]
    beside = by.get(("64", "generate float32"))
    ours = by.get(("64", "float32"))
    if ours and beside:
        needed = WANTED["64"][1] * beside["ours"] / ours["ours"] * ours["share_of_peak"]
        missed.append(
            f"the first would take {needed:.0%} of the peak here, where both sides multiply in float32; it "
            "was set on hardware with bfloat16 products"
        )
    text = f"Goals met: {'; '.join(met) or 'none'}.\n\nGoals **not** met: {'; '.join(missed) or 'none'}.\n"
    return text + (f"\nNot measured: {'; '.join(unknown)}.\n" if unknown else "")


def rounding(rows: list[dict[str, Any]]) -> str:
    """What fewer bits do."""
    found = [r for r in rows if r["part"] == "rounding"]
    if not found:
        return ""
    lines = [
        "\n## What fewer bits do\n",
        f"Kullback-Leibler divergence from float32 in nats, at {found[0]['places']} places of texts that the "
        "model wrote,\nread one token at a time.\n",
        "| weights | mean | highest | weights alone | same likeliest token |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for r in found:
        alone = "" if r["weights_alone"] is None else f"{r['weights_alone']:.5f}"
        lines.append(
            f"| {r['name']} | {r['ours']:.5f} | {r['highest']:.4f} | {alone} | {r['same_likeliest']:.1%} |"
        )
    return "\n".join(lines) + (
        "\n\nThe checkpoint was made from 4-bit weights in the same groups, so int4 finds its grid again: "
        "on other\nmodels 4 bits cost more.\n"
    )


def small(rows: list[dict[str, Any]]) -> str:
    """The demo's model, in waves."""
    lines = [
        "\n## The demo's model\n",
        "Width 64, depth 2, 64 prompts x 16 samples, float32, in waves (the default).\n",
        "| | ours | `generate` | ratio (range) |", "|---|---|---|---|",
    ]  # fmt: skip
    lines += [
        f"| {r['name']} | {r['ours']:,.0f} | {r['peer']:,.0f} "
        f"| {r['ratio']:.1f} ({r['ratio_low']:.1f} to {r['ratio_high']:.1f}) |"
        for r in rows
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
