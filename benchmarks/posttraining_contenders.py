"""`python -m benchmarks.posttraining_contenders SIDE SPEC`: one side of `posttraining.py`, turn by turn.

A side goes through all jobs in one process. A job trains one step more than its turns count, so that what
ends a run falls between two jobs.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.posttraining import BATCH, GROUP, NEW_TOKENS, PROBLEMS
from benchmarks.training_turns import Turns

RATE = 1e-6
"""Of all updates: small, so that the models write answers of the same lengths to the end."""


def ours(job: dict[str, Any], steps: int, turns: Turns) -> None:
    """The run of a recipe, made as a worker makes it."""
    from flopwise.launch.worker import find
    from flopwise.posttrain.settings import METHODS
    from flopwise.records.folder import RunFolder
    from flopwise.records.store import RunStore

    store, name = RunStore(Path(job["store"])), job["method"]
    roles = {"data": job["data"], "init": job["init"]}
    if name == "rollout":
        return roll(job, steps, turns, {r: RunFolder(store.root / run) for r, run in roles.items()})
    settings: dict[str, Any] = {"steps": steps, "curve_points": 1, "rate_factor": RATE}
    if name == "grpo":
        settings |= {
            "problems_per_step": PROBLEMS, "group_size": GROUP, "max_tokens": NEW_TOKENS,
            "zero_variance": "keep",
        }  # fmt: skip
    else:
        settings["batch_size"] = BATCH
    if name in ("dpo", "kto"):
        settings |= {"anchor": 0.0, "keep": "last", "reference": "online"}
    if name in ("dpo", "kto", "reward-pairs"):
        settings["heldout"] = 1e-6  # nothing
        roles["thumbs" if name == "kto" else "pairs"] = job["pairs"]
    method = METHODS[name]
    spec = {
        "rates": {"optimiser": "adamw"}, "val_problems": 1,
        **method.section.model_validate(settings).spec(),
    }  # fmt: skip
    folder = store.prepare(method.kind, method.name, spec, roles, 0, f"{name}-{job['width']}")
    parents = {r: RunFolder(store.root / run) for r, run in roles.items()}
    find(method.run)(folder, parents, lambda fraction: turns.tick())
    return None


def roll(job: dict[str, Any], steps: int, turns: Turns, parents: dict[str, Any]) -> None:
    """Roll-outs as our reinforcement learning asks for them."""
    from flopwise.posttrain.bench import Bench
    from flopwise.records.store import RunStore

    folder = RunStore(Path(job["store"])).prepare("rl", "rollout", {}, {}, 0, f"rollout-{job['width']}")
    bench = Bench.open(folder, parents)
    problems = bench.problems("rl")
    for step in range(steps):
        some = [problems[(step * PROBLEMS + i) % len(problems)] for i in range(PROBLEMS)]
        bench.sample(some, GROUP, step, 1.0, NEW_TOKENS)
        turns.tick()


def theirs(job: dict[str, Any], steps: int, turns: Turns) -> None:
    """TRL's trainer with the same data, without checkpoints, reports and bars."""
    import transformers
    import trl
    from datasets import Dataset

    from flopwise.data.prepare import PreparedData
    from flopwise.posttrain.pairs import PAIRS_FILE

    name, root = job["method"], Path(job["store"])
    data = PreparedData(root / job["data"])
    path, scorer = root / job["init"] / "model", name == "reward-pairs"
    kind = transformers.AutoModelForSequenceClassification if scorer else transformers.AutoModelForCausalLM
    model = kind.from_pretrained(path, dtype="float32", **({"num_labels": 1} if scorer else {}))
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(path)
    tokenizer.pad_token, tokenizer.eos_token = data.tokenizer.pad, data.tokenizer.eos
    for config in (model.config, getattr(model, "generation_config", None)):
        if config is not None:
            config.pad_token_id, config.eos_token_id = data.tokenizer.pad_id, data.tokenizer.eos_id

    def read(file: Path, *keys: str) -> Dataset:
        rows = map(json.loads, file.read_text(encoding="utf-8").splitlines())
        return Dataset.from_list([{k: row[k] for k in keys} for row in rows])

    class Ticks(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            turns.tick()

    with tempfile.TemporaryDirectory() as folder:
        common: dict[str, Any] = {
            "output_dir": folder, "max_steps": steps, "learning_rate": RATE, "save_strategy": "no",
            "report_to": [], "use_cpu": True, "bf16": False, "gradient_checkpointing": False,
            "disable_tqdm": True, "per_device_train_batch_size": BATCH,
        }  # fmt: skip
        more: dict[str, Any] = {"model": model, "processing_class": tokenizer, "callbacks": [Ticks()]}
        made = root / job["pairs"]
        if name == "sft":
            rows = read(root / job["data"] / "demos.jsonl", "prompt", "completion")
            args = trl.SFTConfig(**common, max_length=None, completion_only_loss=True)
            trainer = trl.SFTTrainer(args=args, train_dataset=rows, **more)
        elif name == "dpo":
            rows = read(made / PAIRS_FILE, "prompt", "chosen", "rejected")
            args = trl.DPOConfig(**common, max_length=None)
            trainer = trl.DPOTrainer(args=args, train_dataset=rows, **more)
        elif name == "kto":
            rows = read(made / "thumbs.jsonl", "prompt", "completion", "label")
            args = trl.KTOConfig(**common, max_length=None)
            trainer = trl.KTOTrainer(args=args, train_dataset=rows, **more)
        elif scorer:
            rows = read(made / PAIRS_FILE, "prompt", "chosen", "rejected")
            trainer = trl.RewardTrainer(
                args=trl.RewardConfig(**common, max_length=None), train_dataset=rows, **more
            )
        else:
            trainer = group_trainer(trl, data, common, more)
        trainer.remove_callback(transformers.PrinterCallback)
        if name == "rollout":
            generate(trainer, data, steps, turns)
        else:
            trainer.train()


def group_trainer(trl: Any, data: Any, common: dict[str, Any], more: dict[str, Any]) -> Any:
    """GRPO with the loss and the reward that ours has."""
    from datasets import Dataset

    problems = {p.prompt: p for p in data.problems("rl")}
    task = data.open_task()

    def verified(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
        return [float(task.verify(problems[p], c)) for p, c in zip(prompts, completions, strict=True)]

    args = trl.GRPOConfig(
        **common | {"per_device_train_batch_size": PROBLEMS * GROUP}, num_generations=GROUP,
        max_completion_length=NEW_TOKENS, temperature=1.0, beta=0.0, epsilon=0.2, epsilon_high=0.28,
        loss_type="dapo",
    )  # fmt: skip
    rows = Dataset.from_list([{"prompt": prompt} for prompt in problems])
    return trl.GRPOTrainer(args=args, reward_funcs=verified, train_dataset=rows, **more)


def generate(trainer: Any, data: Any, steps: int, turns: Turns) -> None:
    """Roll-outs by the call that TRL's trainer makes of `transformers`."""
    prompts = data.tokenizer.encode_batch([p.prompt for p in data.problems("rl")])
    for step in range(steps):
        some = [prompts[(step * PROBLEMS + i) % len(prompts)] for i in range(PROBLEMS)]
        rows = [list(p) for p in some for _ in range(GROUP)]
        trainer._generate_single_turn(rows, None, {}, GROUP)
        turns.tick()


def main() -> None:
    """Go through the jobs until the benchmark hangs up."""
    from flopwise.flops.hardware import keep_freed_memory

    os.environ["HF_HUB_DISABLE_TELEMETRY"], os.environ["TOKENIZERS_PARALLELISM"] = "1", "false"
    side, spec = sys.argv[1], json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    keep_freed_memory()  # as our workers do; the peer has the same of it
    turns = Turns(spec["steps"], spec["skip"])
    for job in spec["jobs"]:
        turns.done = 0
        {"ours": ours, "trl": theirs}[side](job, spec["turns"] * spec["steps"] + 1, turns)


if __name__ == "__main__":
    main()
