"""Schedules: factors by step, in [0, 1]."""

from __future__ import annotations

import pytest

from flopwise.train.schedule import WSD, Linear


def test_a_trunk_never_decays():
    trunk = WSD(warmup_steps=4)
    assert [trunk(i) for i in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert trunk(10**9) == 1.0


def test_a_branch_follows_its_trunk_until_it_decays():
    trunk, branch = WSD(4), WSD(4, 20, 30)
    assert all(trunk(i) == branch(i) for i in range(21))
    tail = [branch(i) for i in range(20, 31)]
    assert tail == sorted(tail, reverse=True) and tail[0] == 1.0 and tail[-1] == 0.0
    assert branch(25) == pytest.approx(1 - 0.5**0.5)
    assert branch(1000) == 0.0


def test_linear_ends_at_its_final_rate_and_stays():
    line = Linear(0, 10, final=0.1)
    assert line(0) == 1.0 and line(5) == pytest.approx(0.55)
    assert line(10) == line(500) == pytest.approx(0.1)


@pytest.mark.parametrize("schedule", [WSD(0, 0, 1), WSD(3, 3, 3), Linear(0, 0), Linear(5, 5), Linear(5, 2)])
def test_degenerate_lengths_stay_within_bounds(schedule):
    assert all(0.0 <= schedule(i) <= 1.0 for i in range(10))
