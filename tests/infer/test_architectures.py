"""The engine on windows, normalised heads and experts: samples have the training forward's probabilities."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from flopwise.flops.count import decode_flops, generate_flops
from flopwise.infer.local import LocalEngine
from flopwise.models.config import ModelConfig
from flopwise.models.transformer import Transformer

V = 40
PROMPTS = [[3, 4, 5], [7], [9, 8, 7, 6, 5, 4, 3], [1, 2]]
OPTIONS = {
    "window": {"sliding_window": 4},
    "window of one token": {"sliding_window": 1},
    "normed heads": {"qk_norm": True, "tie_embeddings": True},
    "one expert per token": {"expansion": 8},
    "shared expert and bias": {"expansion": 4, "granularity": 4, "shared_experts": 1, "balance": "bias"},
    "everything": {
        "expansion": 4, "granularity": 4, "shared_experts": 2, "qk_norm": True, "sliding_window": 5,
    },
}  # fmt: skip


def build(name: str) -> Transformer:
    model = Transformer(ModelConfig.from_width(32, 2, V, 48, **OPTIONS[name])).initialise(0)
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.rand(p.shape, generator=rng) * (1.0 if p.ndim == 1 else 0.1))
        for moe in model.experts():
            moe.bias.add_(torch.rand(moe.bias.shape, generator=rng) * 0.2)
    return model


@pytest.fixture(params=OPTIONS)
def model(request: pytest.FixtureRequest) -> Transformer:
    return build(request.param)


def test_logprobs_are_those_of_the_forward_pass(model):
    engine = LocalEngine(model)
    out = engine.sample(PROMPTS, n=3, max_tokens=20, stop=[2, 11], seed=5)
    for i, completion in enumerate(out.completions(strip_stop=False)):
        prompt = PROMPTS[out.prompt_index[i]]
        with torch.no_grad():
            logprobs = model(torch.tensor([prompt + completion]))[0].log_softmax(-1)
        places = torch.arange(len(prompt) - 1, len(prompt) + len(completion) - 1)
        expected = logprobs[places, torch.tensor(completion)].numpy()
        assert np.allclose(out.logprobs[i, : out.lengths[i]], expected, atol=1e-4)
    assert out.lengths.max() > 8


def test_the_batch_a_sample_falls_into_does_not_matter(model):
    a = LocalEngine(model).sample(PROMPTS, n=6, max_tokens=20, stop=[2], seed=7)
    b = LocalEngine(model, max_batch=5).sample(PROMPTS, n=6, max_tokens=20, stop=[2], seed=7)
    assert (a.ids == b.ids).all()


def test_flops_are_those_of_the_counts(model):
    out = LocalEngine(model).sample([PROMPTS[2]], n=2, max_tokens=9, stop=[2], seed=1)
    assert out.usage.flops == pytest.approx(generate_flops(model.cfg, 7, out.lengths.tolist()).total)

    def seen(n: int) -> float:
        with FlopCounterMode(display=False) as counter:
            LocalEngine(model).sample([PROMPTS[2]], max_tokens=n, temperature=0.0)
        return counter.get_total_flops()

    decoded = sum(decode_flops(model.cfg, 7 + i).total for i in range(1, 30))
    assert decoded == pytest.approx(seen(30) - seen(1), rel=0.02)


def test_sampling_is_no_training(model):
    model.train()
    LocalEngine(model).sample(PROMPTS, max_tokens=3)
    LocalEngine(model).score(PROMPTS, [1] * 4)
    assert model.auxiliary_loss() is None
    assert not any(moe.load.any() for moe in model.experts())
