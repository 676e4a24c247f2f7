"""Time per step of post-training: our methods against TRL's trainers, and roll-outs alone.

Llama-shaped models of three sizes, fine-tuned a little first so that they come to an end when they answer;
float32, one thread, AdamW on both sides. Every row has as many tokens in training, so nothing is gained by
sorting or packing; both start from one checkpoint and get the same texts. Each side lives in a process of its
own and they take turns, so that whatever else runs on the machine hits both alike. Ours are whole runs as a
recipe makes them, with log, ledger and checkpoints; TRL's trainers write neither checkpoints nor reports
(`posttraining_contenders.py`). Start-up, validation and saving at the end are left out.

Needs TRL: `pip install 'flopwise[trl]'`.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.training import Contender
from benchmarks.training_turns import race

SHAPES = ((64, 4), (128, 4), (320, 4))
"""Width and depth."""
STEPS, TURNS = 2, 5
"""Steps of a turn, and turns that count; one more comes first, to warm up."""
VOCAB, CONTEXT, TUNING_STEPS = 512, 96, 60
NEW_TOKENS, PROBLEMS, GROUP, BATCH = 24, 32, 8, 32
METHODS = {
    "sft": f"SFT, {BATCH} rows",
    "dpo": f"DPO, {BATCH} pairs, reference with each batch",
    "kto": f"KTO, {BATCH} rows, reference with each batch",
    "reward-pairs": f"reward model, {BATCH} pairs",
    "grpo": f"GRPO, {PROBLEMS} problems x {GROUP} answers",
    "rollout": f"roll-outs, {PROBLEMS} problems x {GROUP} answers",
}


def run() -> list[dict[str, Any]]:
    """Rows for every size and method."""
    return list(races())


def races() -> Iterator[dict[str, Any]]:
    """One row after the other.

    Raises:
        MissingExtra: TRL is not installed.
    """
    from flopwise.errors import MissingExtra

    if importlib.util.find_spec("trl") is None:
        raise MissingExtra("trl", "trl", "the benchmark posttraining")
    with tempfile.TemporaryDirectory() as folder:
        jobs = prepare(Path(folder))
        spec = {"steps": STEPS, "skip": 0, "batch": 1, "length": 1, "turns": TURNS + 1, "jobs": jobs}
        path = Path(folder) / "spec.json"
        path.write_text(json.dumps(spec), encoding="utf-8")
        command = [sys.executable, "-m", "benchmarks.posttraining_contenders"]
        sides = {side: Contender([*command, side, str(path)], spec) for side in ("ours", "trl")}
        try:
            for job in jobs:
                found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
                for turn in range(TURNS + 1):
                    for side, contender in sides.items():
                        rate = contender.turn()
                        if turn:
                            found[side].append(rate)
                yield row_of(job, found["ours"], found["trl"])
        finally:
            for contender in sides.values():
                contender.close()


def row_of(
    job: dict[str, Any], ours: list[dict[str, float]], theirs: list[dict[str, float]]
) -> dict[str, Any]:
    """A race as a row; the ratio says how many times as many steps ours takes in the same processor time."""
    import trl

    return {
        "name": f"posttraining, {job['parameters'] / 1e6:.1f}M, {job['method']}",
        "method": job["method"],
        "unit": "steps/s of processor time",
        **race(ours, theirs),
        "peer_name": f"TRL {trl.__version__}",
        "setup": f"width {job['width']}, depth {job['depth']}; {METHODS[job['method']]}; {job['length']} "
        f"tokens a row, at most {NEW_TOKENS} new ones (mean {job['mean_new']:.1f}); float32, one thread, "
        "AdamW",
        "width": job["width"],
        "depth": job["depth"],
        "parameters": job["parameters"],
        "length": job["length"],
        "mean_new_tokens": job["mean_new"],
        "steps": TURNS * STEPS,
    }


def prepare(root: Path) -> list[dict[str, Any]]:
    """Data and models in a store, and the jobs, in their order."""
    from flopwise.data import prepare as data_step
    from flopwise.data.prepare import PreparedData
    from flopwise.flops.spend import Spend
    from flopwise.posttrain.pairs import PAIRS_FILE
    from flopwise.records.store import RunStore

    store = RunStore(root)
    spec = {
        "corpora": [], "max_chars": 1000, "vocab_size": VOCAB, "heldout_fraction": 0.1, "task": "countdown",
        "demonstrations": 4000, "rl_problems": 640, "val_problems": 64, "test_problems": 64,
    }  # fmt: skip
    folder = store.prepare("data", "countdown", spec, name="data")
    data_step.run_step(folder, {}, lambda fraction: None)
    data = PreparedData(folder.path)
    demos = data.demos()
    models = [model_of(store, data, demos, *shape) for shape in SHAPES]
    alike, length = of_one_length(data, demos)
    # From here on all rows are as long; both sides read these files.
    rows = [{"prompt": d.prompt, "completion": d.completion} for d in alike]
    _write(folder.path / "demos.jsonl", rows)
    pairs = store.prepare("pairs", "pairs", {}, {"data": folder.id}, name="pairs")
    answers = [row["completion"] for row in rows]
    made = [
        {"prompt": row["prompt"], "chosen": row["completion"], "rejected": other, "problem": i}
        for i, (row, other) in enumerate(zip(rows, answers[1:] + answers[:1], strict=True))
    ]
    _write(pairs.path / PAIRS_FILE, made)
    thumbs = [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row in made
        for side in ("chosen", "rejected")
    ]
    _write(pairs.path / "thumbs.jsonl", [t | {"problem": i // 2} for i, t in enumerate(thumbs)])
    pairs.finish(metrics={}, spend=Spend())
    common = {"store": str(root), "data": folder.id, "pairs": pairs.id, "length": length}
    return [common | model | {"method": method} for model in models for method in METHODS]


def of_one_length(data: Any, demos: list[Any]) -> tuple[list[Any], int]:
    """The demonstrations of the most frequent lengths of prompt and completion, and their tokens."""
    encoded = [
        data.tokenizer.encode_batch([getattr(d, side) for d in demos]) for side in ("prompt", "completion")
    ]
    sizes = [(len(a), len(b)) for a, b in zip(*encoded, strict=True)]
    ((usual, _),) = Counter(sizes).most_common(1)
    return [d for d, size in zip(demos, sizes, strict=True) if size == usual], sum(usual) + 1


def model_of(store: Any, data: Any, demos: list[Any], width: int, depth: int) -> dict[str, Any]:
    """A model that was fine-tuned for a moment, saved as the run `init` of its width."""
    from flopwise.flops.count import count_params
    from flopwise.flops.spend import Spend
    from flopwise.infer.local import LocalEngine
    from flopwise.models import hf
    from flopwise.models.config import ModelConfig
    from flopwise.models.transformer import Transformer
    from flopwise.posttrain.bench import model_fields, to_examples
    from flopwise.posttrain.examples import epochs
    from flopwise.train.loop import train
    from flopwise.train.objectives import cross_entropy
    from flopwise.train.optim import Optimiser, Rates
    from flopwise.train.schedule import Linear

    cfg = ModelConfig.from_width(width, depth, data.tokenizer.vocab_size, CONTEXT)
    model = Transformer(cfg).initialise(0)
    examples = to_examples(data, [(d.prompt, d.completion) for d in demos])
    run = store.prepare("sft", "sft", {"width": width}, {}, name=f"init-{width}")
    train(
        model, Optimiser(model, Rates()), epochs(examples, BATCH, data.pad_id, 0), cross_entropy,
        Linear(10, TUNING_STEPS, 0.0), run, first_step=0, last_step=TUNING_STEPS,
    )  # fmt: skip
    hf.save(model, run.path / "model", data.tokenizer)
    run.finish(metrics={}, spend=Spend(), model=model_fields(model))
    prompts = data.tokenizer.encode_batch([p.prompt for p in data.problems("rl")[:64]])
    out = LocalEngine(model.eval()).sample(prompts, GROUP, NEW_TOKENS, [data.tokenizer.eos_id], seed=0)
    return {
        "init": run.id, "width": width, "depth": depth, "parameters": count_params(cfg).total,
        "mean_new": float(out.lengths.mean()),
    }  # fmt: skip


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
