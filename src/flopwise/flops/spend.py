"""What a run spent: FLOPs by purpose, tokens, time, memory. Unknown is None, never 0."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, fields
from typing import Any

from flopwise.flops.ledger import TOTALS, Ledger


@dataclass(frozen=True)
class Spend:
    """The ledger of one run, or of several added up.

    `train_flops`, `generate_flops` and `score_flops` are FLOPs counted from what was executed (a
    multiply-add is 2); `tokens` is how many the run processed; `wall_s` and `device_s` are seconds by the
    clock and of the processor; `peak_bytes` is the largest resident memory. `by` breaks the FLOPs down by
    purpose and model (rows of `flops.ledger.Ledger`); a sum of several has none. `unknown` says why more was
    spent than is counted, as of a model that was made elsewhere: the FLOPs are then a lower bound.

    >>> a = Spend(1.0, 2.0, 0.0, 10, 1.0, 1.0, "cpu", 100)
    >>> (a + a).total_flops, (a + a).peak_bytes
    (6.0, 100)
    """

    train_flops: float = 0.0
    generate_flops: float = 0.0
    score_flops: float = 0.0
    tokens: int | None = None
    wall_s: float | None = None
    device_s: float | None = None
    device: str | None = None
    peak_bytes: int | None = None
    by: tuple[dict[str, Any], ...] = ()
    unknown: str | None = None

    @property
    def total_flops(self) -> float:
        """Training, sampling and scoring together, as far as they are known."""
        return self.train_flops + self.generate_flops + self.score_flops

    @property
    def at_least(self) -> bool:
        """Whether more was spent than is counted."""
        return self.unknown is not None

    def __add__(self, other: Spend) -> Spend:
        def add(a: Any, b: Any) -> Any:
            return b if a is None else a if b is None else a + b

        peaks = [p for p in (self.peak_bytes, other.peak_bytes) if p is not None]
        device = self.device or other.device
        if self.device and other.device and self.device != other.device:
            device = "mixed"
        return Spend(
            self.train_flops + other.train_flops,
            self.generate_flops + other.generate_flops,
            self.score_flops + other.score_flops,
            add(self.tokens, other.tokens),
            add(self.wall_s, other.wall_s),
            add(self.device_s, other.device_s),
            device,
            max(peaks) if peaks else None,
            unknown=self.unknown or other.unknown,
        )

    def to_dict(self) -> dict[str, Any]:
        """All fields, as JSON takes them; of a spend that is unknown, what nothing was counted of is null."""
        out = asdict(self) | {"by": [dict(row) for row in self.by]}
        if self.unknown is not None:
            out |= {name: out[name] or None for name in TOTALS}
        return out

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Spend:
        """Read what `to_dict` gave; unknown keys are ignored, so newer records stay readable."""
        given = {k: v for k, v in values.items() if k in FIELDS}
        given |= {name: 0.0 for name in TOTALS if given.get(name) is None}
        rows = given.get("by")
        given["by"] = tuple(r for r in rows if isinstance(r, dict)) if isinstance(rows, list | tuple) else ()
        return cls(**given)


FIELDS = frozenset(f.name for f in fields(Spend))


def ledger_fields(ledger: Ledger) -> dict[str, Any]:
    """What a ledger says of a `Spend`: the totals, which are the sums of their rows, and the rows."""
    totals: dict[str, Any] = {name: ledger.total(name) for name in TOTALS}
    return totals | {"by": tuple(ledger.rows()), "unknown": ledger.unknown}


class Stopwatch:
    """Times a step from its making on: by the clock, and the processor time of this process."""

    def __init__(self) -> None:
        self._wall, self._device = time.monotonic(), time.process_time()

    def spend(self, ledger: Ledger | None = None, **counted: Any) -> Spend:
        """The time so far on this machine, with what was counted (a ledger, fields of `Spend`)."""
        from flopwise.flops.hardware import device_name

        if ledger:
            counted = ledger_fields(ledger) | counted
        return Spend(
            wall_s=time.monotonic() - self._wall, device_s=time.process_time() - self._device,
            device=device_name(), **counted,
        )  # fmt: skip
