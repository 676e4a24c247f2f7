"""The progress display: what it says, and that its estimate of the time left is never absurd."""

from __future__ import annotations

import re

import pytest

from flopwise.launch import progress
from flopwise.launch.progress import Display
from flopwise.launch.steps import Step


class Clock:
    """Time that passes when told to."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def steps(n: int, seconds: float) -> list[Step]:
    return [Step(f"s{i}", "toy", "toy", "m:f", seconds=seconds) for i in range(n)]


def test_time_left_bends_to_the_speed_that_is_seen(clock: Clock) -> None:
    display = Display(steps(10, 10.0), quiet=True, workers=2)
    assert display.seconds_left() == 50.0  # 100 s of work for two workers
    for i in range(5):
        display.started(f"s{i}")
        clock.now += 40.0  # four times slower than estimated, one at a time
        display.finished(f"s{i}", None)
    assert display.seconds_left() == pytest.approx(200.0)


def test_time_left_is_never_negative_and_ends_at_zero(clock: Clock) -> None:
    display = Display(steps(4, 3.0), quiet=True)
    display.cached("s0")
    display.left_out("s1")
    for name in ("s2", "s3"):
        display.started(name)
        for fraction in (-1.0, 0.4, 2.0, 0.9):
            clock.now += 0.1
            display.progress(name, fraction)
            assert display.seconds_left() >= 0.0
        display.finished(name, None)
    assert display.seconds_left() == 0.0


def test_work_of_an_earlier_start_does_not_count_as_speed(clock: Clock) -> None:
    display = Display(steps(2, 100.0), quiet=True, workers=1)
    display.started("s0")
    clock.now += 2.0
    display.progress("s0", 0.90)  # resumed: 90 s of work were not done in 2 s
    clock.now += 10.0
    display.progress("s0", 1.0)
    display.finished("s0", None)
    assert display.seconds_left() == pytest.approx(100.0 * 12 / 10)


def test_a_retried_step_starts_over(clock: Clock) -> None:
    display = Display(steps(1, 10.0), quiet=True)
    display.started("s0")
    clock.now += 9
    display.progress("s0", 0.9)
    display.started("s0")
    assert display.fraction["s0"] == 0.0 and display.seconds_left() > 5


def test_it_shows_at_once_and_then_every_quarter_minute(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Display(steps(2, 60.0), workers=1) as display:
        display.started("s0")
        assert "0/2 steps, 2:00 left; s0 0%" in capsys.readouterr().err
        for _ in range(16):
            clock.now += 1
            display.tick()
        assert len(capsys.readouterr().err.splitlines()) == 1
        display.finished("s0", None)
        display.left_out("s1")
    assert "done s0 (16 s)" in capsys.readouterr().err


def test_a_line_on_a_terminal_fits_it_and_cannot_drive_it(
    clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    display = Display(steps(20, 60.0))
    display.live = True
    for step in steps(20, 60.0):
        display.started(step.name)
        clock.now += 1
    display.finished("s0", "bad \x1b[2J\nvalue")
    display.note("s1", "\x07bell")
    written = capsys.readouterr().err.replace(progress.CLEAR, "\n")
    assert "\x1b" not in written and "\x07" not in written
    assert "failed s0 (20 s): bad ?[2J value" in written
    shown = [line for line in written.splitlines() if re.search(r"\d left;", line)]
    assert shown and max(map(len, shown)) == 39


def test_quiet_says_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Display(steps(1, 1.0), quiet=True) as display:
        display.started("s0")
        display.finished("s0", "reason")
    assert capsys.readouterr() == ("", "")
