"""What a ladder will be, before it is: every rung with its parameters, tokens, FLOPs, time and memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flopwise.flops.count import count_params, train_flops
from flopwise.launch.costs import train_seconds_of
from flopwise.laws.plotting.figure import short
from flopwise.models.config import ModelConfig
from flopwise.train.settings import Settings

if TYPE_CHECKING:
    from flopwise.launch.steps import Step


@dataclass
class Rung:
    """All runs of one variant, width and seed: one trunk with its branches, or runs of their own."""

    variant: str
    width: int
    seed: int
    model: ModelConfig
    batch_size: int
    seq_len: int
    held_out: bool
    train: dict[str, Any] = field(default_factory=dict)
    budgets: list[int] = field(default_factory=list)
    """Tokens of each finished model."""
    tokens: int = 0
    """Tokens processed for all of them: a branched trunk is paid for once."""
    flops: float = 0.0
    flops_6nd: float = 0.0
    seconds: float = 0.0
    """Estimated, on one core."""
    memory_bytes: float | None = None

    @property
    def separate_flops(self) -> float:
        """What a run of its own for every budget would cost."""
        return sum(self.budgets) / self.seq_len * train_flops(self.model, self.seq_len).total

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        params = count_params(self.model)
        return {
            "variant": self.variant, "width": self.width, "seed": self.seed, "held_out": self.held_out,
            "n_params_total": params.total, "n_params_active": params.active,
            "n_params_non_embedding": params.non_embedding, "n_params_embedding": params.embedding,
            "budgets": self.budgets, "tokens": self.tokens, "flops": self.flops, "flops_6nd": self.flops_6nd,
            "flops_if_separate": self.separate_flops, "seconds": round(self.seconds, 1),
            "memory_bytes": self.memory_bytes,
        }  # fmt: skip


def rungs(steps: list[Step], measured: bool = False) -> list[Rung]:
    """The rungs of an experiment's steps; `measured`: a short probe of each shape gives the time."""
    found: dict[tuple[Any, ...], Rung] = {}
    time_of: dict[tuple[Any, ...], float] = {}
    for step in steps:
        if step.kind != "pretrain":
            continue
        spec = step.spec
        key = (spec["variant"], spec["model"]["d_model"], step.seed, spec["batch_size"], spec["rate_factor"],
               spec["held_out"])  # fmt: skip
        cfg = ModelConfig(**spec["model"])
        rung = found.setdefault(
            key,
            Rung(key[0], key[1], step.seed, cfg, spec["batch_size"], spec["seq_len"], spec["held_out"],
                 spec.get("train", {})),
        )  # fmt: skip
        rung.flops += step.flops
        rung.flops_6nd += step.flops_6nd or 0.0
        rung.tokens += step.tokens or 0
        if step.method == "cooldown":
            rung.budgets.append(spec["last_step"] * spec["batch_size"] * spec["seq_len"])
    for rung in found.values():
        rung.memory_bytes = _memory(rung)
        shape = (rung.model, rung.batch_size, rung.seq_len)
        if measured:
            if shape not in time_of:
                time_of[shape] = _probe(rung) / (rung.batch_size * rung.seq_len)
            rung.seconds = rung.tokens * time_of[shape]
        else:
            rung.seconds = train_seconds_of(rung.model, rung.tokens)
    return list(found.values())


def check(steps: list[Step]) -> None:
    """Refuse what cannot run here, before anything does.

    Raises:
        FlopwiseError: a model with its batch does not fit this machine's memory.
    """
    from flopwise.train.memory import check_memory

    shapes = {
        (ModelConfig(**s.spec["model"]), s.spec["batch_size"], s.spec["seq_len"]): s.spec.get("train")
        for s in steps
        if s.kind == "pretrain"
    }
    for shape, train in shapes.items():
        check_memory(*shape, Settings.from_dict(train))


def _probe(rung: Rung) -> float:
    from flopwise.train.probe import probe

    return probe(rung.model, rung.batch_size, rung.seq_len, Settings.from_dict(rung.train))


def _memory(rung: Rung) -> float:
    from flopwise.train.memory import estimate_memory

    return float(
        estimate_memory(rung.model, rung.batch_size, rung.seq_len, Settings.from_dict(rung.train)).total
    )


def grid(found: list[Rung]) -> list[str]:
    """The ladder as a drawing: sizes up, tokens to the right, a dot for a run, a ring for the one held out.

    A dot with a number stands for so many repeats and variants of that size and budget.
    """
    marks: dict[tuple[int, int], list[bool]] = {}
    for rung in found:
        for tokens in rung.budgets:
            marks.setdefault((rung.width, tokens), []).append(rung.held_out)
    columns = sorted({tokens for _, tokens in marks})
    if len(columns) > 12:  # budgets that follow from FLOPs differ by width: equal places on a log axis
        return _log_grid(marks)
    lines = []
    for width in sorted({w for w, _ in marks}, reverse=True):
        cells = [_mark(marks.get((width, tokens), [])) for tokens in columns]
        lines.append(f"{'width ' + str(width):>11} " + "".join(f"{cell:^8}" for cell in cells))
    lines.append(" " * 12 + "".join(f"{short(tokens, 3):^8}" for tokens in columns) + " tokens")
    return lines


def _log_grid(marks: dict[tuple[int, int], list[bool]], places: int = 56) -> list[str]:
    import math

    low, high = (math.log(f(t for _, t in marks)) for f in (min, max))
    lines = []
    for width in sorted({w for w, _ in marks}, reverse=True):
        cells = [" "] * (places + 1)
        for (w, tokens), kinds in marks.items():
            if w == width:
                cells[round((math.log(tokens) - low) / max(high - low, 1e-9) * places)] = _mark(kinds)[0]
        lines.append(f"{'width ' + str(width):>11} " + "".join(cells))
    ends = short(math.exp(low), 3), short(math.exp(high), 3)
    lines.append(" " * 12 + ends[0] + " " * (places - len(ends[0]) - len(ends[1]) + 1) + ends[1] + " tokens")
    return lines


def _mark(kinds: list[bool]) -> str:
    if not kinds:
        return "·"
    return ("○" if all(kinds) else "●") + (str(len(kinds)) if len(kinds) > 1 else "")
