"""A run that is killed twice and started again, beside one that was not: for the tests of every method."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from flopwise.records.folder import RunFolder
from flopwise.train.loop import train

CarryOut = Callable[[RunFolder, Callable[[float], None]], object]


class Stopped(BaseException):
    """As sudden as a kill: no step may catch it."""


def kill_and_finish(
    run: RunFolder, carry_out: CarryOut, at: Sequence[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stop a run at some fractions of its way, with a checkpoint after every step, then let it end."""
    assert train.__kwdefaults__ is not None
    monkeypatch.setitem(train.__kwdefaults__, "checkpoint_every_s", 0.0)
    for stop in at:

        def progress(fraction: float, stop: float = stop) -> None:
            if fraction >= stop:
                raise Stopped

        with pytest.raises(Stopped):
            carry_out(run, progress)
        assert not run.done
    carry_out(run, lambda _: None)


def assert_alike(whole: RunFolder, killed: RunFolder) -> None:
    """Metrics, curve and ledger (but for seconds) of both are the same."""
    one, two = whole.record(), killed.record()
    assert (one.metrics, one.extra, one.data) == (two.metrics, two.extra, two.data)
    assert whole.curve() == killed.curve()
    rows = [[(r["kind"], r["model"], r["tokens"], r["flops"]) for r in x.spend.by] for x in (one, two)]
    assert rows[0] == rows[1]
