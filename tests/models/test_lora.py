"""Adapters: what they compute, what they leave alone, and that PEFT and a resumed run agree with them."""

from __future__ import annotations

import doctest
import json
import math
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from safetensors import safe_open  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from flopwise.errors import FlopwiseError  # noqa: E402
from flopwise.models import hf, lora, stock  # noqa: E402
from flopwise.models.adapters import CONFIG_FILE, TARGETS, WEIGHTS_FILE, LoRA, weights_sha256  # noqa: E402
from flopwise.models.config import ModelConfig  # noqa: E402
from flopwise.models.transformer import Transformer  # noqa: E402
from flopwise.train import checkpoint  # noqa: E402
from flopwise.train.loop import train  # noqa: E402
from flopwise.train.objectives import Batch, cross_entropy  # noqa: E402
from flopwise.train.optim import Optimiser, Rates  # noqa: E402

CFG = ModelConfig.from_width(32, 2, 96, max_seq_len=64)
TIED = ModelConfig(96, 24, 2, 4, 1, 40, max_seq_len=64, tie_embeddings=True)
SOME = [
    LoRA(4, 8.0), LoRA(16, 16.0, rslora=True), LoRA(3, 5.0, ("q", "v")), LoRA(2, 2.0, ("up", "k", "down")),
    LoRA(16, 32.0, ("k", "gate")),
]  # fmt: skip


def base(cfg: ModelConfig = CFG, n_scores: int = 0) -> Transformer:
    """A model whose head is not zero, so that everything has a gradient."""
    model = Transformer(cfg, n_scores).initialise(3)
    with torch.no_grad():
        model.head.weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    return model


def moved(model: Transformer, settings: LoRA) -> Transformer:
    """With adapters that do something."""
    lora.attach(model, settings, seed=5)
    rng = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for linear in lora.adapted(model):
            linear.B.copy_(torch.randn(linear.B.shape, generator=rng) * 0.1)
    return model


def batch(step: int = 0, cfg: ModelConfig = CFG) -> Batch:
    rng = torch.Generator().manual_seed(100 + step)
    ids = torch.randint(cfg.vocab_size, (4, 21), generator=rng)
    return Batch(ids[:, :-1].contiguous(), targets=ids[:, 1:].contiguous())


@pytest.mark.parametrize("settings", SOME)
def test_fresh_adapters_change_nothing_and_disabled_ones_neither(settings):
    ids = batch().ids
    plain = base()(ids)
    assert torch.equal(lora.attach(base(), settings, seed=0)(ids), plain)
    model = moved(base(), settings)
    assert not torch.allclose(model(ids), plain, atol=1e-3)
    with lora.disabled(model):
        assert torch.equal(model(ids), plain)
    assert not torch.allclose(model(ids), plain, atol=1e-3)


@pytest.mark.parametrize("settings", SOME)
@pytest.mark.parametrize("by_torch", [False, True])
def test_gradients_are_those_through_the_merged_matrices(settings, by_torch, monkeypatch):
    monkeypatch.setattr(stock, "wanted", lambda x: by_torch)
    model = moved(base(), settings).double()
    whole = lora.merged(moved(base(), settings)).double()
    wholes = dict(whole.named_parameters())
    cross_entropy(model, batch())[0].backward()
    cross_entropy(whole, batch())[0].backward()
    for name, module in model.named_modules():
        if not isinstance(module, lora.LoRALinear):
            continue
        to_weight = wholes[f"{name}.weight"].grad
        for s in module.spans:
            to_map = to_weight[s.out] * settings.scale
            assert torch.allclose(module.A.grad[s.a], module.B[s.b].T @ to_map, atol=1e-6)
            assert torch.allclose(module.B.grad[s.b], to_map @ module.A[s.a].T, atol=1e-6)
    frozen = [n for n, p in model.named_parameters() if p.grad is None]
    assert len(frozen) == len(wholes)


@pytest.mark.parametrize("settings", [LoRA(16, 32.0), LoRA(16, 32.0, ("q", "o"))])
def test_no_product_is_made_for_frozen_weights(settings):
    model, b = moved(base(), settings), batch()
    N, cfg = b.ids.numel(), CFG
    with FlopCounterMode(display=False) as forward:
        loss, _ = cross_entropy(model, b)
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    weights = [m for block in model.blocks for m, _ in block.matrices()]
    maps = settings.maps(cfg) * cfg.n_layers
    head = 2 * N * cfg.d_model * cfg.vocab_size
    products = 2 * N * sum(w.numel() for w in weights)
    low = 2 * N * settings.rank * sum(m.n_in + m.n_out for m in maps)
    counted = forward.get_flop_counts()["Global"], backward.get_flop_counts()["Global"]
    found = [c.get(torch.ops.aten.mm, 0) + c.get(torch.ops.aten.addmm, 0) for c in counted]
    assert found[0] == head + products + low
    # The first layer's queries, keys and values need no gradient to their input: what lies below is frozen.
    qkv = model.blocks[0].attn.qkv
    spared = 2 * N * qkv.weight.numel() + 2 * N * qkv.A.numel()
    assert found[1] == head + products - spared + 2 * low


@pytest.mark.parametrize("cfg", [CFG, TIED])
def test_a_saved_adapter_comes_back_and_merges(cfg, tmp_path):
    model = base(cfg)
    hf.save(model, tmp_path / "base")
    trained = moved(model, LoRA(4, 8.0))
    lora.save(trained, tmp_path / "run" / "adapter", tmp_path / "base")
    ids = batch(cfg=cfg).ids
    again = lora.load(tmp_path / "run" / "adapter")
    assert again.lora == trained.lora and torch.equal(again(ids), trained(ids))
    whole = hf.load(tmp_path / "run" / "adapter")
    assert whole.lora is None and torch.allclose(whole(ids), trained(ids), atol=1e-4)
    hf.save(trained, tmp_path / "merged")
    assert torch.equal(hf.load(tmp_path / "merged")(ids), whole(ids))
    (tmp_path / "run").rename(tmp_path / "elsewhere")  # both moved together, or the base named anew
    with pytest.raises(FlopwiseError, match="SHA-256"):
        hf.save(base(cfg).initialise(9), tmp_path / "other")
        lora.load(tmp_path / "elsewhere" / "adapter", tmp_path / "other")
    assert torch.equal(lora.load(tmp_path / "elsewhere" / "adapter")(ids), trained(ids))


def test_an_adapter_on_an_adapter(tmp_path):
    hf.save(base(), tmp_path / "base")
    first = moved(base(), LoRA(4, 8.0))
    lora.save(first, tmp_path / "one", tmp_path / "base")
    second = moved(hf.load(tmp_path / "one"), LoRA(2, 8.0, ("q", "v")))
    lora.save(second, tmp_path / "two", tmp_path / "one")
    assert torch.equal(lora.load(tmp_path / "two")(batch().ids), second(batch().ids))


def test_peft_computes_the_same(tmp_path):
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    for i, settings in enumerate(SOME):
        folder = tmp_path / str(i)
        hf.save(base(), folder / "base")
        trained = moved(base(), settings)
        lora.save(trained, folder / "adapter", folder / "base")
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder / "base")
        theirs = peft.PeftModel.from_pretrained(theirs, folder / "adapter").eval()
        ids = batch().ids
        with torch.no_grad():
            assert torch.allclose(theirs(ids).logits, trained(ids), atol=1e-4)
        theirs.save_pretrained(folder / "back")
        back = lora.load(folder / "back", folder / "base")
        assert torch.equal(back(ids), trained(ids)) and back.lora == settings


def test_peft_reads_a_scorer(tmp_path):
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    hf.save(base(), tmp_path / "base")
    trained = moved(lora.scorer(base()), LoRA(4, 8.0))
    with torch.no_grad():
        trained.head.weight.fill_(0.1)
    lora.save(trained, tmp_path / "adapter", tmp_path / "base")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1)
    theirs.config.pad_token_id = 95
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    ids = batch().ids.clamp(max=90)
    with torch.no_grad():
        assert torch.allclose(theirs(ids).logits, trained(ids)[:, -1], atol=1e-4)
    assert torch.equal(lora.load(tmp_path / "adapter")(ids), trained(ids))


class Folder:
    """As much of a run's folder as the loop asks for."""

    def __init__(self, path):
        self.path = path
        path.mkdir()

    def log(self, **row):
        pass

    def rewind(self, step):
        pass


def fit(folder, stop_at: int | None, n_scores: int = 0) -> Transformer:
    model = lora.attach(base(), LoRA(4, 8.0), seed=7)

    def next_batch(step: int) -> Batch:
        if step == stop_at:
            raise KeyboardInterrupt
        return batch(step)

    train(
        model, Optimiser(model, Rates()), next_batch, cross_entropy, lambda step: 1.0, folder,
        first_step=0, last_step=8, checkpoint_every_s=0,
    )  # fmt: skip
    return model


def test_training_learns_resumes_bit_for_bit_and_keeps_only_adapters(tmp_path):
    straight = fit(Folder(tmp_path / "a"), None)
    stopped = Folder(tmp_path / "b")
    with pytest.raises(KeyboardInterrupt):
        fit(stopped, 5)
    with safe_open(stopped.path / checkpoint.STATE_FILE, framework="pt") as f:
        names = [n for n in f.keys() if n.startswith("model.")]  # noqa: SIM118
    assert names and all(n.endswith((".A", ".B")) for n in names)
    resumed = fit(stopped, None)
    for (name, a), (_, b) in zip(straight.named_parameters(), resumed.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    untouched = dict(base().named_parameters())
    for name, p in straight.named_parameters():
        if name in untouched:
            assert torch.equal(p, untouched[name])
    start = base()
    assert cross_entropy(straight, batch(7))[0] < cross_entropy(start, batch(7))[0] - 0.02


def test_a_scorers_head_is_trained_with_its_adapters():
    model = lora.attach(lora.scorer(base()), LoRA(4, 8.0), seed=7)
    optimiser = Optimiser(model, Rates())
    names = {n for n, p in model.named_parameters() if p.requires_grad}
    assert "head.weight" in names and len(names) == 1 + 8 * CFG.n_layers
    model.head(model.hidden(batch().ids)).sum().backward()
    optimiser.step(1.0)
    assert model.head.weight.abs().max() > 0


@pytest.mark.parametrize("cfg", [CFG, TIED, CFG.with_(head_dim_override=6)])
def test_parameters_are_those_counted(cfg):
    for settings in SOME:
        model = lora.attach(base(cfg), settings, seed=0)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert trained == settings.n_params(cfg)
        bound = max(m.A.abs().max() * math.sqrt(m.in_features) for m in lora.adapted(model))
        assert 0.8 < bound <= 1


def test_experts_stay_frozen_while_their_attention_is_adapted():
    cfg = ModelConfig.from_width(32, 2, 96, 64, expansion=4, granularity=2)
    model = base(cfg)
    with pytest.raises(FlopwiseError, match="only its attention"):
        lora.attach(model, LoRA(), seed=0)
    moved(model, LoRA(4, 8.0, ("q", "k", "v", "o")))
    cross_entropy(model, batch())[0].backward()
    assert all((p.grad is None) == (not n.endswith((".A", ".B"))) for n, p in model.named_parameters())


def test_settings_are_checked():
    assert LoRA(targets=["v", "q"]) == LoRA(targets=("q", "v")) and LoRA().targets == TARGETS
    assert LoRA(4, 8.0).scale == 2 and LoRA(4, 8.0, rslora=True).scale == 4
    for wrong in (
        {"rank": 0},
        {"alpha": 0},
        {"alpha": float("nan")},
        {"targets": ()},
        {"targets": ("head",)},
    ):
        with pytest.raises(FlopwiseError, match="lora:"):
            LoRA(**wrong)
    with pytest.raises(FlopwiseError, match="already"):
        lora.attach(lora.attach(base(), LoRA(2), seed=0), LoRA(2), seed=0)


def test_adapters_that_cannot_be_read_are_refused(tmp_path):
    hf.save(base(), tmp_path / "base")
    lora.save(moved(base(), LoRA(4, 8.0)), tmp_path / "adapter", tmp_path / "base")
    path = tmp_path / "adapter" / CONFIG_FILE
    good = json.loads(path.read_text())
    for change, said in [
        ({"use_dora": True}, "use_dora"), ({"peft_type": "IA3"}, "IA3"), ({"bias": "all"}, "biases"),
        ({"target_modules": "all-linear"}, "target_modules"), ({"r": "x"}, "rank"), ({"r": 5}, "shape"),
        ({"target_modules": ["q_proj"]}, "no place"), ({"base_model_name_or_path": "gone"}, "not here"),
        ({"modules_to_save": ["lm_head"]}, "whole layers"),
    ]:  # fmt: skip
        path.write_text(json.dumps(good | change))
        with pytest.raises(FlopwiseError, match=said):
            lora.load(tmp_path / "adapter")
    path.write_text("{")
    with pytest.raises(FlopwiseError, match=CONFIG_FILE):
        hf.load(tmp_path / "adapter")
    path.write_text(json.dumps(good))
    (tmp_path / "adapter" / WEIGHTS_FILE).write_bytes(b"x" * 40)
    with pytest.raises(FlopwiseError, match=WEIGHTS_FILE):
        lora.load(tmp_path / "adapter")


def test_half_precision_bases_take_adapters_and_nothing_else(tmp_path):
    hf.save(base(), tmp_path / "base")
    model = hf.load(tmp_path / "base", dtype=torch.bfloat16)
    exact = base()(batch().ids)
    got = model(batch().ids)
    assert got.dtype == torch.bfloat16 and (got - exact).abs().mean() < 0.02 * exact.abs().mean()
    with pytest.raises(FlopwiseError, match="bfloat16"):
        Optimiser(model, Rates())
    moved(model, LoRA(4, 8.0))
    optimiser = Optimiser(model, Rates())
    before = [m.A.detach().clone() for m in lora.adapted(model)]
    cross_entropy(model, batch())[0].backward()
    optimiser.step(1.0)
    assert all(m.A.dtype == torch.float32 for m in lora.adapted(model))
    assert all(not torch.equal(a, m.A) for a, m in zip(before, lora.adapted(model), strict=True))


def test_the_hash_of_weights_is_of_their_content(tmp_path):
    hf.save(base(), tmp_path / "one")
    hf.save(base(), tmp_path / "two")
    hf.save(base().initialise(4), tmp_path / "three")
    one, two, three = (weights_sha256(tmp_path / n) for n in ("one", "two", "three"))
    assert one == two != three and len(one) == 64
    with pytest.raises(FlopwiseError, match=r"model\.safetensors"):
        weights_sha256(tmp_path)


def test_the_pages_examples_run():
    page = Path(__file__).parents[2] / "docs" / "hub_models.md"
    done = doctest.testfile(str(page), module_relative=False)
    assert done.attempted >= 10 and done.failed == 0
