"""How a run is carried out: device, precision, compiler, processes, checkpoints. Imports no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from flopwise.errors import FlopwiseError

CHOICES: dict[str, tuple[str, ...]] = {
    "precision": ("auto", "fp32", "bf16"),
    "compile": ("auto", "on", "off"),
    "parallel": ("ddp", "fsdp", "ep"),
    "device": ("auto", "cpu", "cuda"),
}


@dataclass(frozen=True)
class Settings:
    """The `train:` section of a recipe.

    `processes` train one run together, `parallel` says how: "ddp" (every process holds the whole model),
    "fsdp" (weights, gradients and optimiser are split by rows), "ep" (the experts of each mixture layer are
    split, the rest is held by all). `keep` says which checkpoints stay beside the newest: "last" (none), a
    number (so many of the newest), {"every": steps}, or "best" (the one of the lowest loss so far).
    """

    precision: str = "auto"
    compile: str = "auto"
    processes: int = 1
    parallel: str = "ddp"
    keep: str | int | dict[str, int] = "last"
    device: str = "auto"

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise FlopwiseError(
                    f"train.{name} is {getattr(self, name)!r:.40}, must be one of {', '.join(known)}"
                )
        if not _count(self.processes):
            raise FlopwiseError(
                f"train.processes is {self.processes!r:.40}, must be a whole number of at least 1"
            )
        keep = self.keep
        every = isinstance(keep, dict) and set(keep) == {"every"} and _count(keep["every"])
        if not (keep in ("last", "best") or _count(keep) or every):
            raise FlopwiseError(
                f"train.keep is {keep!r:.40}, must be last, best, a number of checkpoints or {{every: steps}}"
            )

    @classmethod
    def from_dict(cls, section: dict[str, Any] | None) -> Settings:
        """Read the section; absent or empty, a run is carried out plainly: float32, processor, no compiler.

        Raises:
            FlopwiseError: an unknown key, or a value outside its limits.
        """
        if not section:
            return PLAIN
        if unknown := sorted(set(section) - set(cls.__dataclass_fields__)):
            raise FlopwiseError(
                f"train.{unknown[0]} is unknown; there are {', '.join(cls.__dataclass_fields__)}"
            )
        return cls(**section)

    def to_dict(self) -> dict[str, Any]:
        """All fields, as JSON takes them."""
        return asdict(self)


def _count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


PLAIN = Settings(precision="fp32", compile="off", device="cpu")
"""What happens where nothing is asked for."""
