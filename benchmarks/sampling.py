"""Tokens per second of sampling: `LocalEngine` against `transformers`' generate, in one process, interleaved.

Both hold the same checkpoint in float32 and sample 16 completions of each of 64 countdown prompts at
temperature 1, untruncated, with the same limit and stop token, on one thread. The model has the demo's shape
(width 64, depth 2) and is fine-tuned for a few hundred steps first, because a random one never stops and the
lengths decide how much there is to gain from dropping finished samples. A second row switches the stop token
off: all samples run to the limit, so that nothing can be dropped.

Counted are the tokens up to the stop token, over processor time. The peer is given its KV cache, SDPA, no
gradient, no scores to collect and the faster of two batch sizes; ours returns log-probabilities as well.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

N_PROMPTS, N_SAMPLES, MAX_TOKENS, REPEATS = 64, 16, 64, 5
PEER_PROMPTS = (64, 32)
"""Prompts per call of generate that are tried: 1024 and 512 samples at once."""


Call = Callable[[int], tuple[int, float]]
"""Samples once with a seed; gives tokens and FLOPs."""


def make_model(folder: Path, steps: int = 300) -> tuple[Any, Any, list[str]]:
    """Fine-tune and save the demo's shape; returns the model, its tokenizer and prompts it has not seen."""
    from flopwise.data.tasks import countdown
    from flopwise.data.tokenizer import train_bpe
    from flopwise.models import hf
    from flopwise.models.config import ModelConfig
    from flopwise.models.transformer import Transformer
    from flopwise.posttrain.examples import Example, epochs
    from flopwise.records.store import RunStore
    from flopwise.train.loop import train
    from flopwise.train.objectives import cross_entropy
    from flopwise.train.optim import Optimiser, Rates
    from flopwise.train.schedule import Linear

    parts = countdown.split(0, demos=2000, test=N_PROMPTS)
    pairs = [(p.prompt, countdown.demonstration(p, 0)) for p in parts["demos"]]
    tokenizer = train_bpe((a + b for a, b in pairs), 512)
    examples = [
        Example(tuple(tokenizer.encode(a)), (*tokenizer.encode(b), tokenizer.eos_id)) for a, b in pairs
    ]
    model = Transformer(ModelConfig.from_width(64, 2, 512, 128)).initialise(0)
    train(
        model, Optimiser(model, Rates()), epochs(examples, 32, tokenizer.pad_id, 0), cross_entropy,
        Linear(10, steps, 0.0), RunStore(folder).prepare("sft", "bench", {}), first_step=0, last_step=steps,
    )  # fmt: skip
    hf.save(model, folder / "model", tokenizer)
    return model.eval(), tokenizer, [p.prompt for p in parts["test"]]


def ours(model: Any, tokenizer: Any, prompts: list[str], stop: bool) -> Call:
    """By `LocalEngine`."""
    from flopwise.infer.local import LocalEngine

    engine, ids = LocalEngine(model), tokenizer.encode_batch(prompts)
    ends = [tokenizer.eos_id] if stop else []

    def call(seed: int) -> tuple[int, float]:
        out = engine.sample(ids, N_SAMPLES, MAX_TOKENS, ends, seed=seed)
        return int(out.lengths.sum()), out.usage.flops

    return call


def peer(folder: Path, tokenizer: Any, prompts: list[str], stop: bool, at_once: int) -> Call:
    """By `transformers`; FLOPs are left at 0."""
    import torch
    from transformers import LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = LlamaForCausalLM.from_pretrained(folder, attn_implementation="sdpa", dtype=torch.float32).eval()
    rows = tokenizer.encode_batch(prompts)
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), tokenizer.pad_id)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, longest - len(row) :] = torch.tensor(row)
        mask[i, longest - len(row) :] = 1
    eos = tokenizer.eos_id

    @torch.inference_mode()
    def call(seed: int) -> tuple[int, float]:
        torch.manual_seed(seed)
        n_tokens = 0
        for a in range(0, len(rows), at_once):
            out = model.generate(
                ids[a : a + at_once], attention_mask=mask[a : a + at_once], do_sample=True, temperature=1.0,
                top_k=0, top_p=1.0, num_return_sequences=N_SAMPLES, max_new_tokens=MAX_TOKENS,
                eos_token_id=eos if stop else None, pad_token_id=tokenizer.pad_id, use_cache=True,
            )[:, longest:]  # fmt: skip
            if stop:
                ended = out == eos
                whole = torch.full((len(out),), out.shape[1])
                n_tokens += int(torch.where(ended.any(1), ended.int().argmax(1) + 1, whole).sum())
            else:
                n_tokens += out.numel()
        return n_tokens, 0.0

    return call


def measure(contenders: dict[str, Call]) -> tuple[dict[str, list[tuple[float, float]]], float]:
    """Tokens and FLOPs per second of processor time, by contender and repeat; they take turns.

    Beside them the matmul peak, taken in between: the best of all.
    """
    from flopwise.flops.hardware import matmul_peak

    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    peak = 0.0
    for call in contenders.values():
        call(0)
    for repeat in range(REPEATS):
        # Small enough to finish within one slice of a busy machine's time.
        peak = max(peak, matmul_peak(size=256))
        for name, call in contenders.items():
            start = time.process_time()
            tokens, flops = call(repeat + 1)
            seconds = time.process_time() - start
            rates[name].append((tokens / seconds, flops / seconds))
    return rates, peak


def run(checkpoint: Path | None = None) -> list[dict[str, Any]]:
    """One row per setting: name, unit, ours, peer, ratio (median of repeats; its range), peer_name, setup.

    `checkpoint`: a model folder of one's own, for example of a demo's run, in place of the one made here.
    """
    import torch

    from flopwise.data.tasks.countdown import generate
    from flopwise.data.tokenizer import Tokenizer
    from flopwise.flops.hardware import keep_freed_memory
    from flopwise.models import hf

    # As the workers of an experiment do; the peer has the same of it.
    keep_freed_memory()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as temporary:
            if checkpoint is None:
                folder = Path(temporary) / "model"
                model, tokenizer, prompts = make_model(Path(temporary))
            else:
                folder, model, tokenizer = checkpoint, hf.load(checkpoint).eval(), Tokenizer.load(checkpoint)
                prompts = [p.prompt for p in generate(N_PROMPTS, 0)]
            return [_row(folder, model, tokenizer, prompts, stop) for stop in (True, False)]
    finally:
        torch.set_num_threads(before)


def _row(folder: Path, model: Any, tokenizer: Any, prompts: list[str], stop: bool) -> dict[str, Any]:
    calls = {"ours": ours(model, tokenizer, prompts, stop)}
    calls |= {str(k): peer(folder, tokenizer, prompts, stop, k) for k in PEER_PROMPTS}
    mean_tokens = calls["ours"](0)[0] / (N_PROMPTS * N_SAMPLES)
    rates, peak = measure(calls)
    speed = {name: statistics.median(tokens for tokens, _ in rates[name]) for name in rates}
    best = max((name for name in rates if name != "ours"), key=lambda name: speed[name])
    ratios = [a / b for (a, _), (b, _) in zip(rates["ours"], rates[best], strict=True)]
    flops = statistics.median(f for _, f in rates["ours"])
    shape = f"width {model.cfg.d_model}, depth {model.cfg.n_layers}, vocabulary {model.cfg.vocab_size}"
    return {
        "name": "sampling" if stop else "sampling, no stop token",
        "unit": "tokens/s of processor time",
        "ours": speed["ours"],
        "peer": speed[best],
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "peer_name": "transformers generate",
        "setup": f"{shape}; {N_PROMPTS} prompts x {N_SAMPLES} samples, at most {MAX_TOKENS} tokens "
        f"(mean {mean_tokens:.0f}), float32, one thread; peer {best} prompts at once",
        "matmul_peak_flop_s": peak,
        "flop_s": flops,
        "share_of_peak": flops / peak,
        "peer_share_of_peak": flops / peak * speed[best] / speed["ours"],
    }


def main(argv: list[str]) -> None:
    """Print the rows; an argument is a model folder to measure on."""
    for row in run(Path(argv[0]) if argv else None):
        print(
            f"{row['name']}: {row['ours']:,.0f} against {row['peer']:,.0f} {row['unit']} by "
            f"{row['peer_name']}, ratio {row['ratio']:.2f} ({row['ratio_low']:.2f} to "
            f"{row['ratio_high']:.2f}); {row['flop_s'] / 1e9:.1f} GFLOP/s, {row['share_of_peak']:.0%} of "
            f"the matmul peak\n  {row['setup']}"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
