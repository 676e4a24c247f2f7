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
