"""One run of a ladder: a piece of trunk, or a cooldown branch with the held-out loss at its end."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flopwise.flops.count import count_params, six_nd
from flopwise.models.config import ModelConfig

if TYPE_CHECKING:
    from flopwise.data.mixture import Mixture
    from flopwise.data.prepared import PreparedData
    from flopwise.models.transformer import Transformer
    from flopwise.pretrain.evaluate import HeldOutLoss
    from flopwise.records.folder import RunFolder
    from flopwise.records.record import Metric
    from flopwise.train.loop import Counters
    from flopwise.train.objectives import Batch
    from flopwise.train.optim import Optimiser
    from flopwise.train.parallel import Team
    from flopwise.train.schedule import WSD


@dataclass
class Run:
    """A piece made ready to train: everything but the steps themselves."""

    folder: RunFolder
    cfg: ModelConfig
    data: PreparedData
    mixture: Mixture
    team: Team
    model: Transformer
    optimiser: Optimiser
    rate_factor: float

    def next_batch(self, step: int) -> Batch:
        """The global batch of a step, which depends on the step and the seed alone."""
        import torch

        from flopwise.train.objectives import Batch

        spec = self.folder.spec
        rows = self.mixture.batch(step, spec["batch_size"], spec["seq_len"], self.folder.seed)
        ids = torch.from_numpy(rows)
        return Batch(ids[:, :-1], ids[:, 1:])

    @property
    def schedule(self) -> WSD:
        """Constant along the trunk, falling along a branch."""
        from flopwise.train.schedule import WSD

        spec = self.folder.spec
        falls = spec.get("decay_from")
        return WSD(spec["warmup_steps"], falls, None if falls is None else spec["last_step"])


def prepare(folder: RunFolder, parents: dict[str, RunFolder]) -> Run:
    """Model, optimiser and data of a piece, with the state that its trunk left.

    Raises:
        FlopwiseError: data and model do not fit each other, or the model does not fit this machine.
    """
    from flopwise.data.prepared import PreparedData, check_fits
    from flopwise.models.transformer import Transformer
    from flopwise.pretrain.tuning import tuned_factor
    from flopwise.train import checkpoint
    from flopwise.train.optim import Optimiser, Rates
    from flopwise.train.parallel import Team
    from flopwise.train.settings import Settings

    spec = folder.spec
    cfg, settings = ModelConfig(**spec["model"]), Settings.from_dict(spec.get("train"))
    data = PreparedData(parents["data"].path)
    check_fits(data, cfg)
    if not spec["first_step"]:  # what cannot be measured at the end is not begun
        for name in _measured(data, spec):
            data.heldout(name, spec["seq_len"], spec["seq_len"])
    factor = spec["rate_factor"] * tuned_factor(parents.get("tuning"), cfg.d_model)
    rates = Rates(**spec["rates"], optimiser=spec["optimiser"]).scaled(factor)
    team = Team.join(settings)
    model, optimiser = team.place(
        Transformer(cfg).initialise(folder.seed), lambda placed: Optimiser(placed, rates)
    )
    if "init" in parents:
        checkpoint.load(parents["init"].path / checkpoint.STATE_FILE, model, optimiser)
    mixture = data.mixture(spec["mixture"], spec["unique_tokens"])
    return Run(folder, cfg, data, mixture, team, model, optimiser, factor)


def run_step(folder: RunFolder, parents: dict[str, RunFolder], progress: Callable[[float], None]) -> None:
    """Train one piece of trunk or one cooldown branch; branches are evaluated on held-out data."""
    from flopwise.train.loop import train
    from flopwise.train.objectives import language_model

    run, spec = prepare(folder, parents), folder.spec
    counters = train(
        run.model, run.optimiser, run.next_batch, language_model(spec["z_loss"]), run.schedule, folder,
        first_step=spec["first_step"], last_step=spec["last_step"], progress=lambda f: progress(0.97 * f),
        team=run.team,
    )  # fmt: skip
    conclude(run, counters)


def run_group(
    folders: list[RunFolder], parents: list[dict[str, RunFolder]], progress: Callable[[int, float], None]
) -> Iterator[tuple[int, Exception | None]]:
    """Pieces of one shape, trained together as a batched model; each ends as it would alone, to the bit."""
    from flopwise.train.ensemble import Member, train_group

    runs = [prepare(folder, inputs) for folder, inputs in zip(folders, parents, strict=True)]
    members = [
        Member(
            run.model, run.optimiser, run.next_batch, run.schedule, run.folder,
            run.folder.spec["first_step"], run.folder.spec["last_step"],
        )
        for run in runs
    ]  # fmt: skip
    z_loss = folders[0].spec["z_loss"]
    for ended in train_group(members, z_loss=z_loss, progress=lambda i, f: progress(i, 0.97 * f)):
        if ended.error is None:
            conclude(runs[ended.index], ended.counters, ended.together)
        yield ended.index, ended.error


def group_size(spec: dict[str, Any], n: int) -> int:
    """How many of `n` such pieces this machine trains faster together; 1: none, as beside the processor."""
    from flopwise.train.group_size import best_size
    from flopwise.train.parallel import Team
    from flopwise.train.settings import Settings

    team = Team(Settings.from_dict(spec.get("train")))
    if team.device.type != "cpu" or team.precision != "fp32":
        return 1
    return best_size(ModelConfig(**spec["model"]), spec["batch_size"], spec["seq_len"], n)


def conclude(run: Run, counters: Counters, together: int = 1) -> None:
    """What a trained piece leaves: its state for the pieces after it, or its model and the held-out loss."""
    from flopwise.models import hf
    from flopwise.train import checkpoint

    folder, cfg, spec = run.folder, run.cfg, run.folder.spec
    metrics: dict[str, Metric] = {}
    extra: dict[str, Any] = {}
    state = folder.path / checkpoint.STATE_FILE
    if folder.method != "cooldown":
        # Children start from optimiser and weights alike.
        checkpoint.save(state, run.model, run.optimiser, vars(counters))
    model = run.team.whole(run.model)
    if not run.team.leads:
        return
    if folder.method == "cooldown":
        metrics, extra = measure(model, run.data, spec)
        hf.save(model, folder.path / "model", run.data.tokenizer)
        state.unlink(missing_ok=True)
    params = count_params(cfg)
    B, T, first, last = (spec[key] for key in ("batch_size", "seq_len", "first_step", "last_step"))
    folder.finish(
        metrics=metrics,
        spend=counters.spend(),
        model={
            "n_params_total": params.total, "n_params_active": params.active,
            "n_params_non_embedding": params.non_embedding,
            "n_params_active_non_embedding": params.active_non_embedding, "architecture": cfg.to_dict(),
        },
        data=data_seen(run.data, run.mixture, spec),
        extra={
            "width": cfg.d_model, "variant": spec["variant"], "batch_size": B, "seq_len": T,
            "rate_factor": run.rate_factor, "optimiser": spec["optimiser"],
            "six_nd": six_nd(cfg, (last - first) * B * T), "held_out": spec["held_out"],
            "unique_tokens": spec["unique_tokens"], "mixture": spec["mixture"],
            "epochs": run.mixture.epochs(last, B, T),
            "training": run.team.disclosed(), **({"trained_together": together} if together > 1 else {}),
            **extra,
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
    losses = heldout_losses(model, data, spec["heldout_tokens"], T, _measured(data, spec))
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


def _measured(data: PreparedData, spec: dict[str, Any]) -> list[str]:
    """Sources whose held-out loss is measured: those the model reads."""
    return [name for name in data.corpora if name in spec["mixture"]] or data.corpora


def _metric(loss: HeldOutLoss) -> Metric:
    from flopwise.records.record import Metric

    return Metric(value=loss.value, se=loss.se, n=loss.n_documents)
