"""A tokenizer and the task's data from the shortened demo, and a bench over a small untrained model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flopwise.data.prepare import PreparedData
from flopwise.models.config import ModelConfig
from flopwise.models.transformer import Transformer
from flopwise.posttrain.bench import Bench
from flopwise.records.store import RunStore


@pytest.fixture(scope="session")
def data(tiny_run: Path) -> PreparedData:
    return PreparedData(RunStore(tiny_run).folder("data").path)


@pytest.fixture
def make_bench(data: PreparedData, tmp_path: Path) -> Any:
    """make_bench(**spec): a bench whose folder holds that spec."""

    def make(**spec: Any) -> Bench:
        model = Transformer(ModelConfig.from_width(16, 1, data.tokenizer.vocab_size, 80)).initialise(0)
        return Bench(RunStore(tmp_path).prepare("rl", "m", spec, {}, 3, "b"), data, model)

    return make


@pytest.fixture
def make_rollouts(make_bench: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """make_rollouts(right, **spec): roll-outs in which answer i to problem p is right where right(p, i)."""
    import numpy as np

    from flopwise.posttrain.rl import settings_of
    from flopwise.posttrain.rl_rewards import Rewards
    from flopwise.posttrain.rollouts import Rollouts

    plain = {"steps": 10, "problems_per_step": 6, "group_size": 4, "max_tokens": 12}

    def make(right: Any, *, method: str = "grpo", **spec: Any) -> Rollouts:
        def verify(self: Bench, problems: Any, samples: Any) -> Any:
            pairs = zip(samples.prompt_index, samples.sample_index, strict=True)
            return np.array([bool(right(p, i)) for p, i in pairs])

        monkeypatch.setattr(Bench, "verify", verify)
        bench = make_bench(**plain | spec)
        bench.folder.method = method
        settings = settings_of(bench.spec)
        return Rollouts(bench, settings, Rewards(settings, bench, {}))

    return make
