"""TRL as the one who trains, for large models of the hub: the same recipe, data, records and ledger.

`backend: trl` (extra `trl`) hands a step of SFT, DPO, KTO, reward modelling, GRPO or RLOO to TRL's trainer
(von Werra et al., github.com/huggingface/trl), on one process or, under torchrun, on several by accelerate.
What it executes is counted by hooks (`trl_meter`). Settings mean what they mean for our own
trainer; those TRL has no word for are refused.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from typing import TYPE_CHECKING, Any

from flopwise.errors import FlopwiseError, MissingExtra

if TYPE_CHECKING:
    from flopwise.posttrain.bench import Bench, Progress
    from flopwise.records.folder import RunFolder

METHODS = ("sft", "dpo", "kto", "reward-pairs", "grpo", "dr-grpo", "dapo", "rloo")
CHECKPOINTS = "trl"
"""Folder of TRL's own checkpoints, dropped at the end."""
REFUSED: dict[str, Any] = {
    "anchor": 0.0, "pack": None, "keep": "last", "patience": 0, "advantage": ("group", "leave-one-out"),
    "surrogate": "clip", "zero_variance": "keep", "overlong": 0, "entropy": 0.0, "kl_in": "loss",
    "minibatches": 1, "loss": ("sigmoid", "ipo"), "per_token": False,
}  # fmt: skip
"""Settings that only our own trainer knows, with the value at which they ask for nothing."""


def check(method: str, settings: dict[str, Any]) -> str | None:
    """Why a run cannot be TRL's; None where it can."""
    if method not in METHODS:
        return f"backend trl has no {method}; it has {', '.join(METHODS)}"
    for name, neutral in REFUSED.items():
        allowed = neutral if isinstance(neutral, tuple) else (neutral,)
        if name in settings and settings[name] not in allowed:
            return (
                f"backend trl knows no {name}: {settings[name]}; leave it out"
                if allowed == (None,)
                else f"backend trl knows no {name}: {settings[name]}; give {name}: {allowed[0]}"
            )
    return None


def run_step(folder: RunFolder, parents: dict[str, RunFolder], progress: Progress) -> None:
    """Train parent `init` by TRL on the data of the bench.

    Raises:
        MissingExtra: TRL is not installed.
        FlopwiseError: a setting that TRL does not know.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        import trl
    except ModuleNotFoundError as e:
        raise MissingExtra(e.name or "trl", "trl", "backend trl") from None
    _hush()
    from flopwise.posttrain.bench import Bench

    if reason := check(folder.method, folder.spec):
        raise FlopwiseError(reason)
    bench = Bench.open(folder, parents)
    training = Training(trl, bench, parents)
    started = time.monotonic(), time.process_time()
    training.run(progress)
    training.finish(*started)


class Training:
    """One step by TRL."""

    def __init__(self, trl: Any, bench: Bench, parents: dict[str, RunFolder]):
        from flopwise.posttrain.trl_meter import Meter

        self.trl, self.bench, self.parents, self.meter = trl, bench, parents, Meter()
        self.folder, self.spec, self.method = bench.folder, bench.spec, bench.folder.method
        self.leads = int(os.environ.get("RANK", "0")) == 0
        self.model = self.load(parents["init"], 1 if self.method == "reward-pairs" else 0)
        self.tokenizer = self.load_tokenizer(parents["init"])
        cfg, trained = bench.model.cfg, None
        if self.spec.get("lora"):
            from flopwise.flops.count import Trained

            trained = Trained((), lora=bench.model.lora)
        head = 1 if self.method == "reward-pairs" else None
        idle = "policy" if self.method in ("grpo", "dr-grpo", "dapo", "rloo") else "reference"
        # Before there is a trainer: some take the reference's log-probabilities while they are made.
        self.meter.watch(self.model, cfg, self.folder.id, idle, trained, head)
        self.trainer = self.make()
        reference = getattr(self.trainer, "ref_model", None)
        if reference is not None and reference is not self.model:
            self.meter.watch(reference, cfg, parents["init"].id, "reference")

    def load(self, run: RunFolder, n_scores: int) -> Any:
        """The start, as `transformers` has it; never pickled weights."""
        import transformers

        kind = (
            transformers.AutoModelForSequenceClassification if n_scores else transformers.AutoModelForCausalLM
        )
        more = {"num_labels": n_scores} if n_scores else {}
        model = kind.from_pretrained(run.path / "model", use_safetensors=True, dtype="float32", **more)
        return model

    def load_tokenizer(self, run: RunFolder) -> Any:
        """The start's tokenizer, with the special tokens that our own has."""
        import transformers

        ours = self.bench.tokenizer
        tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(run.path / "model")
        tokenizer.pad_token, tokenizer.eos_token = ours.pad, ours.eos
        tokenizer.padding_side = "right"
        self.model.config.pad_token_id, self.model.config.eos_token_id = ours.pad_id, ours.eos_id
        if getattr(self.model, "generation_config", None) is not None:
            self.model.generation_config.pad_token_id = ours.pad_id
            self.model.generation_config.eos_token_id = ours.eos_id
        return tokenizer

    def make(self) -> Any:
        """TRL's trainer with its configuration and data."""
        from datasets import Dataset

        rows = self.rows()
        if not rows:
            raise FlopwiseError(f"{self.method}: there is nothing to learn from")
        dataset, adapters = Dataset.from_list(rows), self.adapters()
        common: dict[str, Any] = {
            "model": self.model,
            "train_dataset": dataset,
            "processing_class": self.tokenizer,
        }
        if adapters is not None:
            common["peft_config"] = adapters
        spec, t = self.spec, self.trl
        if self.method == "sft":
            return t.SFTTrainer(
                args=t.SFTConfig(**self.common(), max_length=None, completion_only_loss=True), **common
            )
        if self.method == "dpo":
            args = t.DPOConfig(
                **self.common(), beta=spec["beta"], loss_type=[spec["loss"]], max_length=None,
                label_smoothing=spec["label_smoothing"],
                precompute_ref_log_probs=spec["reference"] == "cached",
            )  # fmt: skip
            return t.DPOTrainer(args=args, **common)
        if self.method == "kto":
            args = t.KTOConfig(
                **self.common(), beta=spec["beta"], max_length=None,
                desirable_weight=spec.get("up_weight") or 1.0,
                undesirable_weight=spec.get("down_weight") or 1.0,
                precompute_ref_log_probs=spec["reference"] == "cached",
            )  # fmt: skip
            return t.KTOTrainer(args=args, **common)
        if self.method == "reward-pairs":
            args = t.RewardConfig(
                **self.common(), max_length=None, center_rewards_coefficient=spec["centre"] or None
            )
            return t.RewardTrainer(args=args, **common)
        return self.reinforcement(common)

    def reinforcement(self, common: dict[str, Any]) -> Any:
        """GRPO and its kin, or RLOO: rewarded by the verifier."""
        spec, t = self.spec, self.trl
        if set(spec["rewards"]) != {"verifier"}:
            raise FlopwiseError("backend trl: reinforcement is rewarded by the verifier alone here")
        shared = self.common() | {
            "per_device_train_batch_size": spec["problems_per_step"] * spec["group_size"] // self.processes(),
            "num_generations": spec["group_size"], "max_completion_length": spec["max_tokens"],
            "temperature": spec["temperature"], "beta": spec["kl"], "num_iterations": spec["epochs"],
            "epsilon": spec["clip_low"], "epsilon_high": spec["clip_high"],
        }  # fmt: skip
        if self.method == "rloo":
            trainer, args = t.RLOOTrainer, t.RLOOConfig(**shared)
        else:
            loss = {"token": "dapo", "sequence": "grpo", "constant": "dr_grpo"}[spec["normalise"]]
            scale = "group" if spec["scale_by_std"] else "none"
            trainer, args = t.GRPOTrainer, t.GRPOConfig(**shared, loss_type=loss, scale_rewards=scale)
        made: Any = trainer(args=args, reward_funcs=self.reward(), **common)
        return made

    def reward(self) -> Any:
        """The verifier as TRL calls it: an answer that did not end is wrong."""
        problems = {p.prompt: p for p in self.bench.problems("rl")}
        task, eos = self.bench.asked.open_task(), self.bench.tokenizer.eos_id

        def verified(prompts: list[str], completions: list[str], **more: Any) -> list[float]:
            ids = more.get("completion_ids") or [[eos]] * len(completions)
            return [
                float(eos in row and task.verify(problems[p], c))
                for p, c, row in zip(prompts, completions, ids, strict=True)
            ]

        return verified

    def rows(self) -> list[dict[str, Any]]:
        """The data in TRL's formats."""
        from flopwise.posttrain.bench import own_rows
        from flopwise.posttrain.pairs import PAIRS_FILE, THUMBS_FILE

        own = own_rows(self.bench.data)
        if own is not None:
            text = (own.path / "train.jsonl").read_text(encoding="utf-8")
            return [json.loads(line) for line in text.splitlines()]
        if self.method == "sft":
            return [{"prompt": d.prompt, "completion": d.completion} for d in self.bench.data.demos()]
        if self.method in ("dpo", "reward-pairs", "kto"):
            role, name = ("thumbs", THUMBS_FILE) if "thumbs" in self.parents else ("pairs", PAIRS_FILE)
            text = (self.parents[role].path / name).read_text(encoding="utf-8")
            keys = ("prompt", "chosen", "rejected", "completion", "label")
            return [{k: v for k, v in json.loads(line).items() if k in keys} for line in text.splitlines()]
        return [{"prompt": p.prompt} for p in self.bench.problems("rl")]

    def adapters(self) -> Any:
        """PEFT's configuration of the adapters, if there are to be any."""
        if not (given := self.spec.get("lora")):
            return None
        from peft import LoraConfig

        names = [f"{target}_proj" for target in given["targets"]]
        return LoraConfig(
            r=given["rank"], lora_alpha=given["alpha"], target_modules=names, use_rslora=given["rslora"],
            lora_dropout=0.0, task_type="SEQ_CLS" if self.method == "reward-pairs" else "CAUSAL_LM",
        )  # fmt: skip

    def processes(self) -> int:
        """Of this training."""
        return int(os.environ.get("WORLD_SIZE", "1"))

    def common(self) -> dict[str, Any]:
        """What all of TRL's configurations share. The rate is that of our hidden matrices under AdamW:
        `rates.adam` at the model's width times `rate_factor`; of adapters `rates.lora` times it."""
        import torch

        spec, rates = self.spec, self.spec["rates"]
        base = (
            rates.get("lora", 0.005)
            if spec.get("lora")
            else rates["adam"] * 64 / self.bench.model.cfg.d_model
        )
        cuda = torch.cuda.is_available()
        if spec.get("steps") is None:
            raise FlopwiseError("backend trl: give steps")
        return {
            "output_dir": str(self.folder.path / CHECKPOINTS), "max_steps": spec["steps"],
            "learning_rate": base * spec["rate_factor"], "warmup_steps": spec["warmup_steps"],
            "lr_scheduler_type": "linear", "seed": self.folder.seed, "data_seed": self.folder.seed,
            "per_device_train_batch_size": max(1, spec.get("batch_size", 1) // self.processes()),
            "report_to": [], "logging_steps": 5, "save_strategy": "steps", "use_cpu": not cuda, "bf16": cuda,
            "save_steps": max(10, spec["steps"] // 5), "save_total_limit": 1, "disable_tqdm": True,
            "gradient_checkpointing": False,
        }  # fmt: skip

    def run(self, progress: Progress) -> None:
        """Train, going on from TRL's last checkpoint where there is one."""
        from transformers import PrinterCallback, TrainerCallback
        from transformers.trainer_utils import get_last_checkpoint

        training = self

        class Watch(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
                progress(0.97 * state.global_step / max(1, state.max_steps))

            def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
                if training.leads and logs and ("loss" in logs or "reward" in logs):
                    named = {k: float(v) for k, v in logs.items() if isinstance(v, int | float)}
                    totals = {
                        n: training.meter.ledger.total(n)
                        for n in ("train_flops", "generate_flops", "score_flops")
                    }
                    training.folder.log(step=state.global_step, **named, **totals)

            def on_save(self, args: Any, state: Any, control: Any, **more: Any) -> None:
                if training.leads:
                    from flopwise.records.folder import atomic_write

                    path = training.folder.path / CHECKPOINTS / "ledger.json"
                    row = {
                        "step": state.global_step,
                        "rows": training.meter.ledger.rows(),
                        "tokens": training.meter.tokens,
                    }
                    atomic_write(path, json.dumps(row))

        self.trainer.remove_callback(PrinterCallback)
        self.trainer.add_callback(Watch())
        saved = self.folder.path / CHECKPOINTS
        last = get_last_checkpoint(str(saved)) if saved.is_dir() else None
        if last is not None:
            self.resume(last)
        elif self.leads:
            self.folder.rewind(0)
        self.trainer.train(resume_from_checkpoint=last)

    def resume(self, last: str) -> None:
        """The ledger and the log as they were at the checkpoint."""
        from flopwise.flops.ledger import Ledger

        step = int(last.rpartition("-")[2])
        try:
            said = json.loads((self.folder.path / CHECKPOINTS / "ledger.json").read_bytes())
        except (OSError, ValueError):
            said = {"rows": [], "tokens": 0}
        self.meter.ledger.add(Ledger(said["rows"]))
        self.meter.tokens = int(said["tokens"])
        if self.leads:
            self.folder.rewind(step)

    def finish(self, wall: float, cpu: float) -> None:
        """The trained model in our layout, judged by our validation, and the record."""
        from flopwise.flops.spend import Spend
        from flopwise.models import hf
        from flopwise.posttrain.bench import model_fields
        from flopwise.records.record import Metric

        self.meter.close()
        inner = self.trainer.accelerator.unwrap_model(self.trainer.model)
        if not self.leads:
            return
        folder, bench = self.folder, self.bench
        path = folder.path / "model"
        inner.save_pretrained(path, safe_serialization=True)
        bench.tokenizer.save(path)
        if self.spec.get("lora"):
            self.name_base(path)
        bench.model = hf.load(path)
        row = {} if self.method == "reward-pairs" else bench.validate(self.spec["steps"])
        metrics: dict[str, Metric] = {}
        if "val_accuracy" in row:
            metrics["val_accuracy"] = Metric(value=row["val_accuracy"], se=row["val_se"], n=int(row["val_n"]))
        if "val_loss" in row:
            metrics["val_loss"] = Metric(value=row["val_loss"], se=row["val_loss_se"], n=int(row["val_rows"]))
        ledger = self.meter.ledger
        spend = Spend(
            ledger.total("train_flops"), ledger.total("generate_flops"), ledger.total("score_flops"),
            tokens=self.meter.tokens, wall_s=time.monotonic() - wall, device_s=time.process_time() - cpu,
            device=_device(), by=tuple(ledger.rows()),
        )  # fmt: skip
        folder.log(
            step=self.spec["steps"], **row, **{n: ledger.total(n) for n in ("train_flops", "generate_flops")}
        )
        shutil.rmtree(folder.path / CHECKPOINTS, ignore_errors=True)
        folder.finish(
            metrics=metrics, spend=spend, model=model_fields(bench.model),
            data={
                "corpus": bench.asked.task, "modality": "text", "tokens_seen": self.meter.tokens,
                "tokens_unique": None,
            },
            extra={
                "width": bench.model.cfg.d_model, "backend": f"trl {self.trl.__version__}",
                "steps": self.spec["steps"],
            },
        )  # fmt: skip

    def name_base(self, path: Any) -> None:
        """Where an adapter's base lies, relative to the adapter, so that the store can be moved."""
        from flopwise.models.adapters import CONFIG_FILE
        from flopwise.records.folder import atomic_write

        config = json.loads((path / CONFIG_FILE).read_text(encoding="utf-8"))
        config["base_model_name_or_path"] = os.path.relpath(self.parents["init"].path / "model", path)
        atomic_write(path / CONFIG_FILE, json.dumps(config, indent=1))


def _hush() -> None:
    """No bars and tables between our own lines; what is logged is in the run's folder."""
    import warnings

    import datasets
    import transformers

    warnings.filterwarnings("ignore", category=FutureWarning)
    datasets.disable_progress_bars()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def _device() -> str:
    import torch

    from flopwise.flops.hardware import device_name

    return torch.cuda.get_device_name() if torch.cuda.is_available() else device_name()
