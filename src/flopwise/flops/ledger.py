"""The ledger of one run: every pass a model made, by purpose and by the model that made it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from flopwise.errors import FlopwiseError

KINDS: dict[str, str | None] = {
    "train": "train_flops",
    "sample": "generate_flops",
    "reference": "score_flops",
    "teacher": "score_flops",
    "reward": "score_flops",
    "judge": "score_flops",
    "value": "score_flops",
    "policy": "score_flops",
    "score": "score_flops",
    "evaluate": None,
}
"""What a pass was for, and the total it is part of. `value` is a critic's pass, `policy` the learning model's
own log-probabilities taken anew, `score` scoring that says no more of itself. Evaluation is no spend: it
makes no model better, and is shown only."""

TOTALS = ("train_flops", "generate_flops", "score_flops")


class Used(Protocol):
    """What an engine says a call cost (`infer.engine.Usage`)."""

    prefill_tokens: int
    decode_tokens: int
    flops: float
    seconds: float
    unknown: str | None


class Ledger:
    """Rows of {kind, model, tokens, flops, seconds}, one for each kind and model.

    A number is None where some of it is not known: the FLOPs of a model behind an interface that does not
    say what it is, the tokens or the seconds where nobody counted.

    >>> ledger = Ledger()
    >>> ledger.post("teacher", "a1", tokens=10, flops=4e6)
    >>> ledger.post("teacher", "a1", tokens=5, flops=2e6)
    >>> ledger.total("score_flops"), ledger.rows()[0]["tokens"]
    (6000000.0, 15)
    """

    def __init__(self, rows: Iterable[dict[str, Any]] = ()):
        self._rows: dict[tuple[str, str], dict[str, Any]] = {}
        for row in rows:
            self.post(row["kind"], row["model"], row["tokens"], row["flops"], row["seconds"])

    def post(
        self, kind: str, model: str, tokens: float | None, flops: float | None,
        seconds: float | None = None,
    ) -> None:  # fmt: skip
        """Enter passes of `model` (the id of the run that made it, or a server's name for it).

        Raises:
            FlopwiseError: an unknown kind.
        """
        if kind not in KINDS:
            raise FlopwiseError(f"ledger: kind {kind!r:.40} must be one of {', '.join(KINDS)}")
        row = self._rows.get((kind, model))
        if row is None:
            row = {"kind": kind, "model": model, "tokens": 0, "flops": 0.0, "seconds": 0.0}
            self._rows[kind, model] = row
        given = {"tokens": None if tokens is None else int(tokens), "flops": flops, "seconds": seconds}
        for name, value in given.items():
            row[name] = None if value is None or row[name] is None else row[name] + value

    def used(self, kind: str, model: str, usage: Used) -> None:
        """Enter what a call to an engine cost."""
        flops = None if usage.unknown else usage.flops
        self.post(kind, model, usage.prefill_tokens + usage.decode_tokens, flops, usage.seconds)

    def add(self, other: Ledger) -> None:
        """Enter all of another ledger."""
        for row in other._rows.values():
            self.post(**row)

    def rows(self) -> list[dict[str, Any]]:
        """Copies of the rows, in the order in which each kind and model first came up."""
        return [dict(row) for row in self._rows.values()]

    def total(self, name: str) -> float:
        """One of `TOTALS`: the sum of the known rows that are part of it, in their order."""
        parts = (r["flops"] for r in self._rows.values() if KINDS[r["kind"]] == name)
        return sum((flops for flops in parts if flops is not None), 0.0)

    @property
    def unknown(self) -> str | None:
        """What was spent but cannot be counted, in words; None where all is known."""
        rows = [r for r in self._rows.values() if r["flops"] is None and KINDS[r["kind"]]]
        what = ", ".join(f"{r['kind']} passes of {r['model']}" for r in rows)
        return f"not counted: {what}" if what else None

    def __bool__(self) -> bool:
        return bool(self._rows)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ledger) and self.rows() == other.rows()

    __hash__ = None  # type: ignore[assignment]
