"""A tokenizer and the task's data from the shortened demo, and a bench over a small untrained model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flopwise.data.prepare import PreparedData
from flopwise.models.config import ModelConfig
from flopwise.models.transformer import Transformer
from flopwise.posttrain.bench import Bench
from flopwise.records.folder import RunFolder
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


@pytest.fixture(scope="session")
def rare_store(tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    """Data of the task with a rare slice, and an untrained model of its vocabulary, `init`."""
    from flopwise.data import prepare
    from flopwise.flops.spend import Spend
    from flopwise.models import hf
    from flopwise.posttrain.bench import model_fields

    store = RunStore(tmp_path_factory.mktemp("synthetic"))
    spec = {
        "corpora": [], "max_chars": 1000, "vocab_size": 300, "heldout_fraction": 0.1,
        "task": "countdown-rare", "demonstrations": 200, "rl_problems": 300, "val_problems": 100,
        "test_problems": 100, "slice_problems": 40,
    }  # fmt: skip
    data = store.prepare("data", "countdown-rare", spec, name="data")
    prepare.run_step(data, {}, lambda fraction: None)
    tokenizer = PreparedData(data.path).tokenizer
    model = Transformer(ModelConfig.from_width(16, 1, tokenizer.vocab_size, 96)).initialise(0)
    init = store.prepare("sft", "sft", {}, {"data": data.id}, name="init")
    hf.save(model, init.path / "model", tokenizer)
    init.finish(metrics={}, spend=Spend(), model=model_fields(model))
    return store


@pytest.fixture
def step(rare_store: RunStore) -> Any:
    """step(method, seed, ...): the folder of a finished step; settings that are roles name other runs."""
    from flopwise.launch.worker import find
    from flopwise.posttrain.settings import METHODS

    def make(method: str, seed: int = 0, **settings: Any) -> RunFolder:
        kind, store = METHODS[method], rare_store
        roles = {r: store.folder(settings.pop(r)).id for r in kind.roles if r in settings}
        section = kind.section.model_validate(settings)
        assert section.lacks(roles) is None
        rates = {"muon": 0.02, "embed": 0.01, "head": 0.004}
        spec = {"rates": rates, "val_problems": 20, **section.spec()}
        roles = {"data": store.folder("data").id, **roles}
        folder = store.prepare(kind.kind, method, spec, roles, seed, f"{method}-{len(store.records())}")
        parents = {r: RunFolder(store.root / i) for r, i in roles.items()}
        find(kind.run)(folder, parents, lambda fraction: None)
        return folder

    return make


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> Any:
    """writes(f): the model writes f(problem, i) as its sample i, whatever it is."""

    def set_writer(text: Any) -> None:
        import numpy as np

        from flopwise.infer.engine import SampleBatch

        def sample(self: Bench, problems: list[Any], n: int, *args: Any, **more: Any) -> Any:
            eos = self.tokenizer.eos_id
            rows = [[*self.tokenizer.encode(text(p, i)), eos] for p in problems for i in range(n)]
            lengths = np.array([len(r) for r in rows])
            ids = np.full((len(rows), lengths.max()), -1, dtype=np.int32)
            for row, whole in zip(ids, rows, strict=True):
                row[: len(whole)] = whole
            return SampleBatch(
                ids, lengths, np.zeros(ids.shape, np.float32), np.repeat(np.arange(len(problems)), n),
                np.tile(np.arange(n), len(problems)), np.ones(len(rows), dtype=bool),
            )  # fmt: skip

        monkeypatch.setattr(Bench, "sample", sample)

    return set_writer
