"""The engine over other weights than plain float32: adapters folded in, half precision; large tables."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import make_model

from flopwise.infer import judging
from flopwise.infer.local import LocalEngine
from flopwise.models import lora
from flopwise.models.adapters import LoRA

PROMPTS = [[3, 4, 5], [7], [9, 8, 7, 6, 5, 4, 3], [1, 2]]


@pytest.mark.parametrize("targets", [("q", "v"), ("k", "o", "up", "down")])
def test_adapters_take_part(targets):
    model = lora.attach(make_model(), LoRA(4, 8.0, targets), seed=0)
    with torch.no_grad():
        for linear in lora.adapted(model):
            linear.B.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    plain = LocalEngine(make_model()).sample(PROMPTS, n=2, max_tokens=8, seed=3)
    ours = LocalEngine(model).sample(PROMPTS, n=2, max_tokens=8, seed=3)
    merged = LocalEngine(lora.merged(model)).sample(PROMPTS, n=2, max_tokens=8, seed=3)
    assert np.array_equal(ours.ids, merged.ids) and not np.array_equal(ours.ids, plain.ids)
    rows = [PROMPTS[i] + c for i, c in zip(ours.prompt_index, ours.completions(), strict=True)]
    scored = LocalEngine(model).score(rows, [len(PROMPTS[i]) for i in ours.prompt_index])
    assert np.allclose(np.stack(scored), ours.logprobs, atol=1e-4)


def test_half_precision_says_nearly_the_same():
    model = make_model()
    exact = LocalEngine(model).next_logprobs(PROMPTS, range(40))[0]
    for engine in (LocalEngine(model, dtype=torch.bfloat16), LocalEngine(make_model().to(torch.bfloat16))):
        rough = engine.next_logprobs(PROMPTS, range(40))[0]
        kl = (np.exp(exact) * (exact - rough)).sum(1)
        assert np.all(kl > -1e-6) and kl.max() < 0.01
        out = engine.sample(PROMPTS, n=3, max_tokens=8, seed=1)
        assert out.logprobs.dtype == np.float32 and np.all(out.logprobs <= 1e-6)
        rows = [PROMPTS[i] + c for i, c in zip(out.prompt_index, out.completions(), strict=True)]
        scored = engine.score(rows, [len(PROMPTS[i]) for i in out.prompt_index])
        assert np.abs(np.stack(scored) - out.logprobs).mean() < 0.1


def test_a_large_vocabulary_is_scored_in_smaller_parts(monkeypatch):
    engine, rows = LocalEngine(make_model()), [PROMPTS[2]] * 9
    whole = engine.score(rows, [1] * 9)
    monkeypatch.setattr(judging, "SCORED_LOGITS", 40 * 20)  # two rows at once
    parts = list(engine._padded(rows))
    assert max(len(r) for _, r in parts) == 2
    assert np.allclose(np.stack(engine.score(rows, [1] * 9)), np.stack(whole), atol=1e-6)
