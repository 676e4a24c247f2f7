"""FLOPs of what post-training does, against what PyTorch's counter sees: adapters, frozen parts, scorers,
pairs, a value head, packed rows, the passes of references and teachers."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from flopwise.errors import FlopwiseError  # noqa: E402
from flopwise.flops import Trained, forward_flops, head_flops, score_flops, train_flops  # noqa: E402
from flopwise.flops.count import generate_flops  # noqa: E402
from flopwise.models import kernels, lora, native  # noqa: E402
from flopwise.models.adapters import TARGETS, LoRA  # noqa: E402
from flopwise.models.config import ModelConfig  # noqa: E402
from flopwise.models.transformer import Transformer  # noqa: E402
from flopwise.train.loop import trained_of, update_flops  # noqa: E402
from flopwise.train.objectives import Batch, cross_entropy, token_logprobs  # noqa: E402

DENSE = ModelConfig.from_width(64, 3, 512)
GROUPED = ModelConfig(200, 48, 3, 6, 2, 128, qk_norm=True)
TIED = ModelConfig(300, 40, 2, 4, 2, 112, tie_embeddings=True)
SPARSE = ModelConfig.from_width(48, 2, 300, expansion=4, granularity=8, shared_experts=2)
ATTENTION = ("q", "k", "v", "o")
RANKS = {
    "all maps": LoRA(4), "large rank": LoRA(32), "queries and values": LoRA(4, targets=("q", "v")),
    "outputs": LoRA(8, targets=("o", "down")), "feed-forward": LoRA(8, targets=("gate", "up", "down")),
    "down alone": LoRA(8, targets=("down",)),
}  # fmt: skip


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products that PyTorch sees; attention in one span: dense, as it is counted; of thin adapters no zeros,
    which are multiplied where that is faster and are not counted."""
    monkeypatch.setattr(native, "library", lambda: None)
    monkeypatch.setattr(lora, "THIN", 0)
    monkeypatch.setattr(kernels, "SPAN", 256)


def counted(work) -> float:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def batch(cfg: ModelConfig, B: int = 4, T: int = 48, learned: int | None = None) -> Batch:
    x = torch.randint(cfg.vocab_size, (B, T + 1), generator=torch.Generator().manual_seed(0))
    weights = None if learned is None else (torch.arange(T) >= T - learned).float().repeat(B, 1)
    return Batch(x[:, :-1], x[:, 1:], weights)


def model_of(cfg: ModelConfig, n_scores: int = 0) -> Transformer:
    model = Transformer(cfg, n_scores).initialise(0)
    with torch.no_grad():
        model.head.weight.normal_(0, 0.1)
    return model


def updated(model: Transformer, b: Batch) -> float:
    return counted(lambda: cross_entropy(model, b)[0].backward())


@pytest.mark.parametrize("settings", RANKS.values(), ids=RANKS.keys())
@pytest.mark.parametrize("cfg", [DENSE, GROUPED, TIED], ids=["dense", "grouped", "tied"])
def test_adapters(cfg, settings):
    model, b = lora.attach(model_of(cfg), settings, 0), batch(cfg, learned=20)
    seen = updated(model, b)
    assert trained_of(model) == Trained((), 0, settings)
    assert update_flops(model, b) == train_flops(cfg, 48, 4, 20, Trained((), lora=settings)).total
    assert update_flops(model, b) == pytest.approx(seen, rel=0.02)


def test_adapters_beside_experts():
    settings = LoRA(4, targets=ATTENTION)
    model, b = lora.attach(model_of(SPARSE), settings, 0), batch(SPARSE)
    assert update_flops(model, b) == pytest.approx(updated(model, b), rel=0.02)


def test_adapters_that_are_not_merged_cost_a_forward_pass_too():
    settings = LoRA(16, targets=TARGETS)
    model, b = lora.attach(model_of(DENSE), settings, 0), batch(DENSE)
    with torch.no_grad():
        seen = counted(lambda: model(b.ids))
    assert forward_flops(DENSE, 48, 4, lora=settings).total == pytest.approx(seen, rel=0.02)
    extra = [generate_flops(DENSE, 20, [10], lora=x).total for x in (settings, None)]
    per_token = 2 * settings.n_params(DENSE)
    assert extra[0] - extra[1] == pytest.approx(per_token * (20 + 9))


FROZEN = {
    "head alone": (("output",), 3), "last layer and head": (("attention", "mlp", "norms", "output"), 2),
    "feed-forward of the upper layers": (("mlp",), 1), "norms": (("norms",), 0),
    "all but the embedding": (("attention", "mlp", "norms", "output"), 0),
    "embedding alone": (("embedding",), 0), "attention": (("attention",), 0),
}  # fmt: skip


@pytest.mark.parametrize(("parts", "first"), FROZEN.values(), ids=FROZEN.keys())
@pytest.mark.parametrize("cfg", [DENSE, GROUPED], ids=["dense", "grouped"])
def test_frozen_parts(cfg, parts, first):
    words = {
        "embedding": "embed", "attention": "attn.", "mlp": "mlp.", "norms": "norm", "output": "head.",
    }  # fmt: skip
    model = model_of(cfg)
    for name, weight in model.named_parameters():
        part = next(p for p in ("norms", *words) if words[p] in name)
        layer = int(name.split(".")[1]) if name.startswith("blocks.") else cfg.n_layers
        weight.requires_grad_(part in parts and (layer >= first or part == "embedding"))
    told = trained_of(model)
    assert told is not None and set(told.parts) == set(parts) and told.lora is None
    b = batch(cfg)
    # The stock products: what is written out in one node computes the head's gradients together.
    seen = counted(lambda: F.cross_entropy(model(b.ids).flatten(0, 1), b.targets.flatten()).backward())
    assert update_flops(model, b) == pytest.approx(seen, rel=0.02)


def test_all_learning_is_three_forward_passes():
    for cfg in (DENSE, GROUPED, TIED, SPARSE):
        whole = train_flops(cfg, 48, 4, 20, Trained())
        assert whole.total == pytest.approx(train_flops(cfg, 48, 4, 20).total, rel=1e-12)
        assert whole.scores == 3 * forward_flops(cfg, 48, 4, 20).scores
    assert trained_of(model_of(DENSE)) is None


def test_a_reward_model_with_adapters_and_its_passes():
    settings = LoRA(8)
    model = lora.attach(model_of(DENSE, 1), settings, 0)
    b = batch(DENSE)

    def update() -> None:
        model.head(model.hidden(b.ids)[:, -1]).square().mean().backward()

    assert trained_of(model) == Trained(("output",), 0, settings)
    assert update_flops(model, b) == pytest.approx(counted(update), rel=0.02)
    with torch.no_grad():
        seen = counted(lambda: model.head(model.hidden(b.ids)[:, -1]))
    assert score_flops(DENSE, 48, 4, 1, head=1, lora=settings).total == pytest.approx(seen, rel=0.02)


@pytest.mark.parametrize("cached", [True, False], ids=["cached reference", "reference pass"])
def test_preference_pairs(cached):
    policy, reference, pairs = model_of(DENSE), model_of(DENSE), 3
    b = batch(DENSE, 2 * pairs, learned=16)  # rows alternate chosen, rejected

    def step() -> None:
        with torch.no_grad():
            before = torch.zeros(2 * pairs) if cached else token_logprobs(reference, b).sum(1)
        margin = (token_logprobs(policy, b).sum(1) - before).view(pairs, 2)
        (-F.logsigmoid(margin[:, 0] - margin[:, 1])).mean().backward()

    spent = train_flops(DENSE, 48, 2 * pairs, 16).total
    spent += 0.0 if cached else score_flops(DENSE, 48, 2 * pairs, 16).total
    assert spent == pytest.approx(counted(step), rel=0.02)


def test_a_teachers_top_k_costs_its_logits():
    teacher, b = model_of(GROUPED), batch(GROUPED, learned=16)

    def look() -> None:
        with torch.no_grad():
            hidden = teacher.hidden(b.ids)[b.weights > 0]
            (hidden @ teacher.head.weight.T).log_softmax(-1).topk(8)

    assert score_flops(GROUPED, 48, 4, 16).total == pytest.approx(counted(look), rel=0.02)


def test_a_value_head_beside_the_policys():
    policy, b = model_of(DENSE), batch(DENSE, learned=20)
    value = torch.nn.Linear(DENSE.d_model, 1, bias=False)

    def step() -> None:
        learned = policy.hidden(b.ids)[b.weights > 0]
        logits = learned @ policy.head.weight.T
        (F.cross_entropy(logits, b.targets[b.weights > 0]) + value(learned).square().mean()).backward()

    spent = train_flops(DENSE, 48, 4, 20) + head_flops(DENSE, 4 * 20)
    assert spent.total == pytest.approx(counted(step), rel=1e-3)
    assert head_flops(DENSE, 80, learns=False).total * 3 == head_flops(DENSE, 80).total == 3 * 2 * 80 * 64


def test_packed_rows_are_counted_as_the_long_rows_they_are_computed_as():
    model, b = model_of(DENSE), batch(DENSE, 2, 64)
    segments = torch.arange(4).repeat_interleave(16).expand(2, -1)

    def step() -> None:
        hidden = model.hidden(b.ids, segments)
        F.cross_entropy(model.head(hidden).flatten(0, 1), b.targets.flatten()).backward()

    assert train_flops(DENSE, 64, 2).total == pytest.approx(counted(step), rel=0.02)


def test_what_is_no_part_is_refused():
    with pytest.raises(FlopwiseError, match="'heads' is no part"):
        Trained(("heads",))
    with pytest.raises(FlopwiseError, match="at least 0"):
        Trained(from_layer=-1)
