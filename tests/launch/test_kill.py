"""Killed ten times at random moments, a run loses nothing and ends as if it had never been stopped."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flopwise.records.record import RunRecord
from flopwise.records.store import RunStore

KILLS = 10


def start(out: Path, overrides: list[str]) -> subprocess.Popen[bytes]:
    sets = [word for change in overrides for word in ("--set", change)]
    code = "from flopwise.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, "run", "demo", "--out", str(out), *sets],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip


def finished(out: Path) -> dict[str, RunRecord]:
    return {r.id: r for r in RunStore(out).records() if r.status == "done"} if out.is_dir() else {}


def measured(record: RunRecord) -> dict[str, object]:
    """All of a record that does not depend on the clock or the machine's load."""
    spends = {
        name: (s.train_flops, s.generate_flops, s.score_flops, s.tokens)
        for name, s in (("own", record.spend), ("lineage", record.lineage_spend))
    }
    return (
        record.model_dump(include={"id", "name", "kind", "method", "parents", "metrics", "model", "data"})
        | spends
    )


@pytest.mark.slow
def test_ten_kills_lose_nothing(tiny_run: Path, tiny_overrides: list[str], tmp_path: Path) -> None:
    out, rng = tmp_path / "killed", random.Random(7)
    total = len(finished(tiny_run))
    marks = sorted(rng.sample(range(total - 1), KILLS))
    known: dict[str, RunRecord] = {}
    for mark in marks:
        process = start(out, tiny_overrides)
        while process.poll() is None and len(finished(out)) <= mark:
            time.sleep(0.05)
        time.sleep(rng.random())
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        now = finished(out)
        assert {i: r.created for i, r in known.items()} == {i: now[i].created for i in known}
        known = now
    process = start(out, tiny_overrides)
    _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()
    after, whole = finished(out), finished(tiny_run)
    assert {i: r.created for i, r in known.items()} == {i: after[i].created for i in known}
    assert {i: measured(r) for i, r in after.items()} == {i: measured(r) for i, r in whole.items()}
    assert not [p for p in out.rglob(".*") if p.name != ".lock"]
