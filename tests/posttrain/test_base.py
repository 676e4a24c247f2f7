"""A model from elsewhere becomes the root of a family: linked, hashed, its cost unknown and said to be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from flopwise.errors import FlopwiseError  # noqa: E402
from flopwise.models import hf, lora  # noqa: E402
from flopwise.models.adapters import LoRA  # noqa: E402
from flopwise.models.config import ModelConfig  # noqa: E402
from flopwise.models.transformer import Transformer  # noqa: E402
from flopwise.posttrain import base  # noqa: E402
from flopwise.records.store import RunStore  # noqa: E402

CFG = ModelConfig.from_width(16, 1, 64, 32)
IDS = torch.arange(10)[None]


@pytest.fixture
def elsewhere(tmp_path) -> Path:
    folder = tmp_path / "elsewhere"
    model = Transformer(CFG).initialise(1)
    with torch.no_grad():
        model.head.weight.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
    hf.save(model, folder)
    (folder / "tokenizer.json").write_text("{}")
    return folder


def imported(tmp_path: Path, model: Path, **changes):
    step = base.step(model)
    folder = RunStore(tmp_path / "runs").prepare(
        step.kind, step.method, step.spec | changes, {}, 0, step.name
    )
    base.run_step(folder, {}, lambda fraction: None)
    return folder


def test_it_is_linked_and_recorded_with_an_unknown_cost(elsewhere, tmp_path):
    folder = imported(tmp_path, elsewhere)
    weights = folder.path / "model" / "model.safetensors"
    assert os.path.samefile(weights, elsewhere / "model.safetensors")
    assert (folder.path / "model" / "tokenizer.json").read_text() == "{}"
    assert torch.equal(hf.load(folder.path / "model")(IDS), hf.load(elsewhere)(IDS))
    record = folder.record()
    assert (record.kind, record.method, record.parents) == ("base", "import", [])
    assert record.model["n_params_total"] == sum(p.numel() for p in Transformer(CFG).parameters())
    assert record.spend.at_least and "elsewhere" in record.spend.unknown
    assert record.spend.to_dict()["train_flops"] is None
    base.run_step(folder, {}, lambda fraction: None)  # as after a kill
    assert folder.record().status == "done"


def test_the_id_is_that_of_the_content(elsewhere, tmp_path):
    first = base.spec_of(elsewhere)
    assert base.spec_of(elsewhere) == first
    (elsewhere / "tokenizer.json").write_text("{ }")
    second = base.spec_of(elsewhere)
    hf.save(Transformer(CFG).initialise(2), elsewhere)
    third = base.spec_of(elsewhere)
    assert len({s["sha256"] for s in (first, second, third)}) == 3
    with pytest.raises(FlopwiseError, match="start again"):
        imported(tmp_path, elsewhere, sha256=first["sha256"])


def test_an_adapter_is_merged(elsewhere, tmp_path):
    model = lora.attach(hf.load(elsewhere), LoRA(2, 4.0), seed=0)
    with torch.no_grad():
        for linear in lora.adapted(model):
            linear.B.fill_(0.1)
    lora.save(model, tmp_path / "adapter", elsewhere)
    folder = imported(tmp_path, tmp_path / "adapter")
    assert torch.allclose(hf.load(folder.path / "model")(IDS), model(IDS), atol=1e-5)
    before = base.content_sha256(tmp_path / "adapter")
    (elsewhere / "tokenizer.json").write_text("{ }")
    assert base.content_sha256(tmp_path / "adapter") != before


def test_a_run_of_another_store_says_what_it_cost(tiny_run, tmp_path):
    source = RunStore(tiny_run).folder("sft")
    folder = imported(tmp_path, source.path)
    extra = folder.record().extra
    assert extra["stated_flops"] == source.record().lineage_spend.total_flops > 0
    assert source.id in extra["stated_by"]


def test_other_disks_get_a_symbolic_link(elsewhere, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("another device")

    monkeypatch.setattr(os, "link", refuse)
    base.link(elsewhere, tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").is_symlink()
    assert torch.equal(hf.load(tmp_path / "model")(IDS), hf.load(elsewhere)(IDS))


def test_no_such_model():
    with pytest.raises(FlopwiseError, match="no run and no shipped model"):
        base.spec_of("nothing-here")
