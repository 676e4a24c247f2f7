"""The alarm: how often it cries wolf, how soon it sees a decline, and what it takes no notice of.

The rule is written a second time here, over many runs at once, and the monitor held against it.
"""

from __future__ import annotations

import numpy as np
import pytest

from flopwise.posttrain.alarm import Monitor, mean_of_groups

WINDOW, Z = 8, 4.5
Series = tuple[np.ndarray, np.ndarray]


def judged(gold: np.ndarray, problems: int, runs: int, seed: int = 0) -> Series:
    """Means [runs, roll-outs] of eight verdicts on each of so many problems, and the means' variances.

    A problem's own chance of a right answer varies a good deal around the mean: Beta with two counts.
    """
    rng = np.random.default_rng(seed)
    a, b = np.maximum(2 * gold, 1e-3), np.maximum(2 * (1 - gold), 1e-3)
    chance = rng.beta(a[None, :, None], b[None, :, None], (runs, len(gold), problems))
    share = rng.binomial(8, chance) / 8
    return share.mean(2), share.var(2, ddof=1) / problems


def first_alarms(gold: Series, window: int = WINDOW, z: float = Z) -> np.ndarray:
    """Roll-out [runs] of the first alarm where the proxy rises all the time; 0 where there is none."""
    means, variances = (np.lib.stride_tricks.sliding_window_view(g, window, 1).mean(2) for g in gold)
    variances = variances / window
    out = np.zeros(len(means), dtype=int)
    for now in range(window, means.shape[1]):
        then = slice(0, now - window + 1)
        fall = means[:, then] - means[:, now : now + 1]
        error = np.sqrt(variances[:, then] + variances[:, now : now + 1])
        sure = np.divide(fall, error, out=np.zeros_like(fall), where=error > 0).max(1)
        out = np.where((out == 0) & (sure > z), now + window, out)
    return out


DECLINE = np.r_[np.full(16, 0.4), np.linspace(0.4, 0.0, 25), np.zeros(19)]
TURN_OVER = np.r_[np.linspace(0.4, 0.5, 40), np.linspace(0.5, 0.35, 60), np.full(40, 0.35)]


@pytest.mark.parametrize("problems", [8, 32])
def test_the_monitor_follows_the_rule(problems: int) -> None:
    gold = judged(DECLINE, problems, 3)
    want = first_alarms(gold)
    for run in range(3):
        monitor = Monitor(WINDOW, Z)
        for t, (mean, variance) in enumerate(zip(gold[0][run], gold[1][run], strict=True)):
            alarm = monitor.observe(0.1 * t, 0.05, mean, variance**0.5)
            assert (alarm is not None) == (t + 1 == want[run])
        assert monitor.alarm is not None and monitor.alarm.step == want[run]
        assert monitor.alarm.gold[1] < monitor.alarm.gold[0] and monitor.alarm.z > Z
        assert monitor.alarm.proxy[1] > monitor.alarm.proxy[0]
        assert f"alarm at roll-out {want[run]}" in str(monitor.alarm)


@pytest.mark.parametrize("accuracy", [0.05, 0.4, 0.8])
@pytest.mark.parametrize("problems", [8, 32])
def test_false_alarms_are_rare(accuracy: float, problems: int) -> None:
    """While the proxy rises and the truth stands still: at most one run of 60 roll-outs in a hundred."""
    alarms = first_alarms(judged(np.full(60, accuracy), problems, 600))
    assert (alarms > 0).mean() <= 0.01


def test_a_decline_is_seen_soon() -> None:
    """Accuracy .4 falls to 0 over roll-outs 17 to 41."""
    for problems, by in ((8, 36), (32, 30)):
        alarms = first_alarms(judged(DECLINE, problems, 200))
        assert (alarms > 16).all() and np.median(alarms) <= by


def test_a_turn_over_is_seen() -> None:
    """Accuracy rises from .4 to .5 and then falls to .35, which is lower than where it began."""
    alarms = first_alarms(judged(TURN_OVER, 32, 200))
    assert (alarms > 40).mean() > 0.95


def observe_all(proxy: np.ndarray, gold: np.ndarray, error: float = 0.01) -> Monitor:
    monitor = Monitor(WINDOW, Z)
    for p, g in zip(proxy, gold, strict=True):
        monitor.observe(p, error, g, error)
    return monitor


def test_without_a_rising_proxy_there_is_no_alarm() -> None:
    """Both fall (training goes wrong), both rise, or the first roll-outs alone are seen."""
    up, down = np.linspace(0, 1, 40), np.linspace(1, 0, 40)
    assert observe_all(down, down).alarm is None and observe_all(up, up).alarm is None
    assert observe_all(up[:15], down[:15]).alarm is None
    first = observe_all(up, down).alarm
    assert first is not None and first.step == 16
    assert set(first.to_dict()) == {"step", "then", "window", "proxy", "gold", "z"}


def test_a_collapse_without_any_scatter_is_seen_by_the_scatter_before_it() -> None:
    monitor = Monitor(WINDOW, Z)
    for t in range(16):
        monitor.observe(t, 0.1, 0.5 if t < 8 else 0.0, 0.05 if t < 8 else 0.0)
    assert monitor.alarm is not None


def test_errors_are_over_problems_not_over_answers() -> None:
    same = np.repeat(np.array([[1.0], [0.0]]), 50, axis=1)
    assert mean_of_groups(same) == (0.5, 0.5)
    assert mean_of_groups(np.array([[1.0, 0.0]])) == (0.5, 0.5)
