"""One run of a ladder: a piece of trunk, or a cooldown branch with the held-out loss at its end."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from flopwise.flops.count import count_params, six_nd
from flopwise.models.config import ModelConfig

if TYPE_CHECKING:
    from flopwise.data.mixture import Mixture
    from flopwise.data.prepare import PreparedData
    from flopwise.models.transformer import Transformer
    from flopwise.pretrain.evaluate import HeldOutLoss
    from flopwise.records.folder import RunFolder
    from flopwise.records.record import Metric


def run_step(folder: RunFolder, parents: dict[str, RunFolder], progress: Callable[[float], None]) -> None:
    """Train one piece of trunk or one cooldown branch; branches are evaluated on held-out data."""
    import torch

    from flopwise.data.prepare import PreparedData
    from flopwise.models import hf
    from flopwise.models.transformer import Transformer
    from flopwise.pretrain.tuning import tuned_factor
    from flopwise.train import checkpoint
    from flopwise.train.loop import train
    from flopwise.train.objectives import Batch, language_model
    from flopwise.train.optim import Optimiser, Rates
    from flopwise.train.schedule import WSD

    spec = folder.spec
    cfg = ModelConfig(**spec["model"])
    data = PreparedData(parents["data"].path)
    seed = folder.seed
    factor = spec["rate_factor"] * tuned_factor(parents.get("tuning"), cfg.d_model)
    rates = Rates(**spec["rates"], optimiser=spec["optimiser"]).scaled(factor)
    model = Transformer(cfg).initialise(seed)
    optimiser = Optimiser(model, rates)
    if "init" in parents:
        checkpoint.load(parents["init"].path / checkpoint.STATE_FILE, model, optimiser)
    mixture = data.mixture(spec["mixture"], spec["unique_tokens"])
    B, T = spec["batch_size"], spec["seq_len"]

    def next_batch(step: int) -> Batch:
        rows = torch.from_numpy(mixture.batch(step, B, T, seed))
        return Batch(rows[:, :-1], rows[:, 1:])

    first, last = spec["first_step"], spec["last_step"]
    schedule = WSD(spec["warmup_steps"], spec.get("decay_from"), last if "decay_from" in spec else None)
    counters = train(
        model, optimiser, next_batch, language_model(spec["z_loss"]), schedule, folder,
        first_step=first, last_step=last, progress=lambda f: progress(0.97 * f),
    )  # fmt: skip
    metrics: dict[str, Metric] = {}
    extra: dict[str, Any] = {}
    if folder.method == "cooldown":
        metrics, extra = measure(model, data, spec)
        hf.save(model, folder.path / "model", data.tokenizer)
        (folder.path / checkpoint.STATE_FILE).unlink(missing_ok=True)
    else:
        # Children start from optimiser and weights alike.
        checkpoint.save(folder.path / checkpoint.STATE_FILE, model, optimiser, vars(counters))
    params = count_params(cfg)
    folder.finish(
        metrics=metrics,
        spend=counters.spend(),
        model={
            "n_params_total": params.total, "n_params_active": params.active,
            "n_params_non_embedding": params.non_embedding, "architecture": cfg.to_dict(),
        },
        data=data_seen(data, mixture, spec),
        extra={
            "width": cfg.d_model, "variant": spec["variant"], "batch_size": B, "rate_factor": factor,
            "optimiser": spec["optimiser"], "six_nd": six_nd(cfg, (last - first) * B * T),
            "held_out": spec["held_out"], "unique_tokens": spec["unique_tokens"],
            "epochs": mixture.epochs(last, B, T), **extra,
        },
    )  # fmt: skip


def data_seen(data: PreparedData, mixture: Mixture, spec: dict[str, Any]) -> dict[str, Any]:
    """The record's account of the data a run has seen from its trunk's start on."""
    seen = spec["last_step"] * spec["batch_size"] * spec["seq_len"]
    kinds = {e.get("modality", "text") for e in data.about["corpora"] if e["name"] in spec["mixture"]}
    return {
        "corpus": "+".join(spec["mixture"]), "tokens_seen": seen,
        "tokens_unique": min(seen, mixture.tokens_unique), "modality": "+".join(sorted(kinds)) or "text",
    }  # fmt: skip


def measure(
    model: Transformer, data: PreparedData, spec: dict[str, Any]
) -> tuple[dict[str, Metric], dict[str, Any]]:
    """Held-out metrics of a finished model, and what else is worth keeping in its record.

    The yardstick costs scoring FLOPs, but it is not part of making the model: it is kept out of spend.
    """
    from flopwise.pretrain.evaluate import heldout_losses, pooled, true_continuations
    from flopwise.records.record import Metric

    T = spec["seq_len"]
    names = [name for name in data.corpora if name in spec["mixture"]]
    losses = heldout_losses(model, data, spec["heldout_tokens"], T, names or data.corpora)
    metrics = {f"loss_{name}": _metric(loss) for name, loss in losses.items()}
    metrics["loss"] = _metric(pooled(losses))
    for entry in data.about["corpora"]:
        size = entry.get("heldout_bytes_per_token") or entry.get("bytes_per_token")
        if (loss := losses.get(entry["name"])) and size:
            per_bit = size * math.log(2)
            metrics[f"bpb_{entry['name']}"] = Metric(
                value=loss.value / per_bit, se=loss.se / per_bit, n=loss.n_documents
            )
    if n := spec["accuracy_questions"]:
        right = true_continuations(model, data, n, T, list(losses))
        metrics["accuracy"] = Metric(value=right.value, se=right.se, n=right.n)
    extra: dict[str, Any] = {}
    if model.cfg.n_experts:
        import torch

        from flopwise.models.moe import expert_load

        windows = data.heldout(next(iter(losses)), 8192, T)[0]
        extra["expert_load"] = expert_load(model, torch.from_numpy(windows[:, :-1]))
    return metrics, extra


def _metric(loss: HeldOutLoss) -> Metric:
    from flopwise.records.record import Metric

    return Metric(value=loss.value, se=loss.se, n=loss.n_documents)
