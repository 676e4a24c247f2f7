"""The ladder: one warm-up/stable trunk per size, one cooldown branch per token budget.

A branch that decays the rate from a point of the trunk ends where a separate run of that length would
(Haegele et al., arXiv 2405.18392), so three budgets cost little more than the longest. Each piece of trunk
between two branch points is a run of its own: lineage then adds up exactly, and a stopped ladder resumes
at the last piece. Branches of one trunk share its noise: they are one cluster to every fit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from flopwise.errors import FlopwiseError
from flopwise.flops.count import count_params, six_nd, train_flops
from flopwise.launch.steps import Step
from flopwise.models.config import ModelConfig

if TYPE_CHECKING:
    from flopwise.launch.recipe import LadderSection
    from flopwise.records.folder import RunFolder


def ladder_steps(
    ladder: LadderSection,
    vocab_size: int,
    width: int,
    budgets: list[int],
    seed: int,
    *,
    seconds: Callable[[float, float], float],
    held_out: bool = False,
    after: str | None = None,
) -> list[Step]:
    """Trunk pieces and branches of one size. `after` names a step that must be finished before any starts.

    Step names are `trunk-w64-s0-1`, `w64-2.0M-s0`; `seconds(flops, tokens)` estimates time.
    """
    cfg = ModelConfig.from_width(width, ladder.depth, vocab_size, ladder.context)
    tokens_per_step = ladder.batch_size * ladder.seq_len
    flops_per_step = train_flops(cfg, ladder.seq_len, ladder.batch_size).total
    common = {
        "model": cfg.to_dict(), "batch_size": ladder.batch_size, "seq_len": ladder.seq_len,
        "warmup_steps": ladder.warmup_steps, "mixture": ladder.mixture, "rates": ladder.rates.model_dump(),
        "heldout_tokens": ladder.heldout_tokens, "held_out": held_out,
    }  # fmt: skip
    steps: list[Step] = []
    previous, at = None, 0
    for i, budget in enumerate(sorted(budgets), 1):
        total = round(budget / tokens_per_step)
        branch_at = total - max(1, round(total * ladder.decay_fraction))
        if branch_at <= max(at, ladder.warmup_steps):
            raise FlopwiseError(
                f"ladder: a budget of {budget:,} tokens is {total} steps, too short to branch after step "
                f"{max(at, ladder.warmup_steps)}; raise it or lower warmup_steps"
            )
        roles = {"data": "data"} | ({"init": previous} if previous else {})

        def piece(
            name: str, method: str, first: int, last: int, roles: dict[str, str], spec: dict[str, Any]
        ) -> Step:
            flops, tokens = (last - first) * flops_per_step, (last - first) * tokens_per_step
            return Step(
                name=name, kind="pretrain", method=method, parents=roles, seed=seed,
                after=(after,) if after else (),
                spec={**common, "first_step": first, "last_step": last, **spec},
                flops=flops, seconds=seconds(flops, tokens), run="flopwise.pretrain.ladder:run_step",
                n_params=count_params(cfg).non_embedding, tokens=tokens, flops_6nd=six_nd(cfg, tokens),
            )  # fmt: skip

        trunk = f"trunk-w{width}-s{seed}-{i}"
        steps.append(piece(trunk, "trunk", at, branch_at, roles, {}))
        branch_roles = {"data": "data", "init": trunk}
        steps.append(
            piece(
                branch_name(width, budget, seed),
                "cooldown",
                branch_at,
                total,
                branch_roles,
                {"decay_from": branch_at},
            )
        )
        previous, at = trunk, branch_at
    return steps


def branch_name(width: int, budget: int, seed: int) -> str:
    """The step that ends with the model of this width and token budget.

    >>> branch_name(64, 2_000_000, 0), branch_name(64, 750_000, 0)
    ('w64-2.0M-s0', 'w64-0.75M-s0')
    """
    millions = f"{budget / 1e6:.6f}".rstrip("0")  # exact, so that no two budgets share a name
    return f"w{width}-{millions}{'0' if millions.endswith('.') else ''}M-s{seed}"


def run_step(folder: RunFolder, parents: dict[str, RunFolder], progress: Callable[[float], None]) -> None:
    """Train one piece of trunk or one cooldown branch; branches are evaluated on held-out text."""
    import torch

    from flopwise.data.prepare import PreparedData
    from flopwise.models import hf
    from flopwise.models.transformer import Transformer
    from flopwise.pretrain.evaluate import heldout_losses, pooled
    from flopwise.records.record import Metric
    from flopwise.train import checkpoint
    from flopwise.train.loop import train
    from flopwise.train.objectives import Batch, cross_entropy
    from flopwise.train.optim import Optimiser, Rates
    from flopwise.train.schedule import WSD

    spec = folder.spec
    cfg = ModelConfig(**spec["model"])
    data = PreparedData(parents["data"].path)
    seed = folder.seed
    model = Transformer(cfg).initialise(seed)
    optimiser = Optimiser(model, Rates(**spec["rates"]))
    if "init" in parents:
        checkpoint.load(parents["init"].path / checkpoint.STATE_FILE, model, optimiser)
    mixture = data.mixture(spec["mixture"])
    B, T = spec["batch_size"], spec["seq_len"]

    def next_batch(step: int) -> Batch:
        rows = torch.from_numpy(mixture.batch(step, B, T, seed))
        return Batch(rows[:, :-1], rows[:, 1:])

    first, last = spec["first_step"], spec["last_step"]
    schedule = WSD(spec["warmup_steps"], spec.get("decay_from"), last if "decay_from" in spec else None)
    counters = train(
        model, optimiser, next_batch, cross_entropy, schedule, folder,
        first_step=first, last_step=last, progress=lambda f: progress(0.97 * f),
    )  # fmt: skip
    metrics: dict[str, Metric] = {}
    if folder.method == "cooldown":
        losses = heldout_losses(model, data, spec["heldout_tokens"], T)
        for name, loss in losses.items():
            metrics[f"loss_{name}"] = Metric(value=loss.value, se=loss.se, n=loss.n_documents)
        joint = pooled(losses)
        metrics["loss"] = Metric(value=joint.value, se=joint.se, n=joint.n_documents)
        # The yardstick costs scoring FLOPs, but it is not part of making the model: it is kept out of spend.
        hf.save(model, folder.path / "model", data.tokenizer)
        (folder.path / checkpoint.STATE_FILE).unlink(missing_ok=True)
    else:
        # Children start from optimiser and weights alike.
        checkpoint.save(folder.path / checkpoint.STATE_FILE, model, optimiser, vars(counters))
    params = count_params(cfg)
    total_tokens = last * B * T
    folder.finish(
        metrics=metrics,
        spend=counters.spend(),
        model={
            "n_params_total": params.total, "n_params_active": params.active,
            "n_params_non_embedding": params.non_embedding, "architecture": cfg.to_dict(),
        },
        data={
            "corpus": "+".join(spec["mixture"]), "tokens_seen": total_tokens,
            "tokens_unique": min(total_tokens, mixture.tokens_unique), "modality": "text",
        },
        extra={
            "width": cfg.d_model, "six_nd": six_nd(cfg, (last - first) * B * T), "held_out": spec["held_out"],
        },
    )  # fmt: skip
