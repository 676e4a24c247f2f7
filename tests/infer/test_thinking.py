"""Length against accuracy: the confound by hard problems is taken out, and told."""

import numpy as np
import pytest

from flopwise.errors import FlopwiseError
from flopwise.infer.thinking import thinking


def samples(gain, problems=200, n=32, hard=-0.15, seed=0):
    """Accuracy changes by `gain` for twice the tokens within a problem; hard problems are longer."""
    rng = np.random.default_rng(seed)
    typical = rng.normal(8, 1.0, problems)
    logs = typical[:, None] + rng.normal(0, 0.8, (problems, n))
    chance = 0.5 + hard * (typical[:, None] - 8) + gain * (logs - typical[:, None])
    right = rng.random((problems, n)) < np.clip(chance, 0, 1)
    return np.maximum(2**logs, 1).ravel(), right.ravel(), np.repeat(np.arange(problems), n)


def test_thinking_helps_though_the_pool_says_the_contrary():
    found = thinking(*samples(0.08))
    within, pooled = found["slope"]["within"], found["slope"]["pooled"]
    assert within["low"] < 0.08 < within["high"] and within["low"] > 0
    assert pooled["high"] < 0 and found["slope"]["between"]["high"] < 0
    assert "rises" in found["verdict"] and "pooled over problems it seems -" in found["verdict"]
    values = [p["value"] for p in found["points"]]
    assert values[-1] > values[0] + 0.1 and len(values) == 8
    assert all(p["low"] <= p["value"] <= p["high"] for p in found["points"])
    assert found["law"]["name"] in ("thinking_length", "thinking_overlong")


def test_thinking_that_does_nothing_is_not_said_to_hurt():
    found = thinking(*samples(0.0, seed=1))
    within = found["slope"]["within"]
    assert within["low"] < 0 < within["high"] and found["slope"]["pooled"]["high"] < 0
    assert "neither" in found["verdict"]


def test_what_cannot_be_told_is_refused():
    tokens, right, groups = samples(0.0)
    with pytest.raises(FlopwiseError, match="0 tokens in row 3"):
        thinking(np.where(np.arange(len(tokens)) == 2, 0, tokens), right, groups)
    with pytest.raises(FlopwiseError, match="19 problems have 8 samples"):
        thinking(tokens[: 19 * 32], right[: 19 * 32], groups[: 19 * 32])
    with pytest.raises(FlopwiseError, match="one length"):
        thinking(np.full(len(tokens), 5.0), right, groups)
