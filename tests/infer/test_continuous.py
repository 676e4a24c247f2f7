"""The continuous engine: the same samples as in waves, whatever runs beside them, and nothing read twice."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_architectures import OPTIONS, build
from tiny_models import make_model

from flopwise.errors import FlopwiseError
from flopwise.flops.count import generate_flops, prefill_flops
from flopwise.infer.continuous import Continuous
from flopwise.infer.local import LocalEngine
from flopwise.models import lora
from flopwise.models.adapters import LoRA

PROMPTS = [[3, 4, 5], [7], [9, 8, 7, 6, 5, 4, 3], [1, 2]]
SETTINGS = {"n": 6, "max_tokens": 20, "stop": [2, 11], "seed": 7}


def same(a, b, atol=1e-5):
    assert (a.ids == b.ids).all() and (a.finished == b.finished).all()
    assert np.allclose(a.logprobs, b.logprobs, atol=atol)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("how", [{"weights": "float32"}, {"prefix_cache": 1 << 20}])
def test_the_same_samples_as_in_waves(name, how):
    model = build(name)
    waves = LocalEngine(model).sample(PROMPTS, **SETTINGS)
    for max_batch in (1024, 5, 1):
        same(LocalEngine(model, max_batch, **how).sample(PROMPTS, **SETTINGS), waves)
    greedy = {"max_tokens": 12, "temperature": 0.0}
    same(LocalEngine(model, 3, **how).sample(PROMPTS, **greedy), LocalEngine(model).sample(PROMPTS, **greedy))


def test_adapters_take_part():
    model = lora.attach(make_model(), LoRA(4, 8.0, ("q", "o", "up")), seed=0)
    with torch.no_grad():
        for linear in lora.adapted(model):
            linear.B.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    same(
        LocalEngine(model, weights="float32").sample(PROMPTS, **SETTINGS),
        LocalEngine(model).sample(PROMPTS, **SETTINGS),
    )


def test_rows_enter_where_others_end(monkeypatch):
    engine = LocalEngine(make_model(), max_batch=16, weights="float32")
    sizes = []
    kind = type(engine.reader.forward)
    forward = kind.__call__
    monkeypatch.setattr(
        kind, "__call__", lambda self, ids, *rest: sizes.append(len(ids)) or forward(self, ids, *rest)
    )
    entered = []
    enter = Continuous._enter
    monkeypatch.setattr(Continuous, "_enter", lambda self: entered.append(len(self.free)) or enter(self))
    seen = []
    out = engine.sample(
        PROMPTS, n=50, max_tokens=30, stop=list(range(0, 40, 4)), seed=2, on_progress=seen.append
    )
    assert len(entered) > 10 and min(entered) >= 2
    running = [n for n in sizes if n <= 16][5:-5]
    assert max(running) <= 16 and np.mean(running) > 10
    assert seen == sorted(seen) and seen[-1] == 1.0
    waves = LocalEngine(make_model())
    same(out, waves.sample(PROMPTS, n=50, max_tokens=30, stop=list(range(0, 40, 4)), seed=2))


def test_what_was_read_or_written_is_not_read_again():
    model = make_model()
    engine, plain = LocalEngine(model, weights="float32"), LocalEngine(model)
    shared = list(range(1, 21))
    prompts = [[*shared, 30], [*shared, 31, 32], [*shared, 31, 33]]
    first = engine.sample(prompts, n=2, max_tokens=6, seed=1)
    same(first, plain.sample(prompts, n=2, max_tokens=6, seed=1))
    # The shared beginning once, then what each adds.
    assert first.usage.prefill_tokens == 20 + 1 + 2 + 2
    again = engine.sample(prompts, n=2, max_tokens=6, seed=1)
    same(again, first)
    assert again.usage.prefill_tokens == 3  # the last token of each: its logits are wanted
    prefixes = first.completions()
    rest = engine.sample(prompts, n=2, max_tokens=5, seed=1, prefix_tokens=prefixes)
    expected = plain.sample(prompts, n=2, max_tokens=5, seed=1, prefix_tokens=prefixes)
    same(rest, expected)
    # A sample's last token was drawn, not read.
    assert rest.usage.prefill_tokens == 6
    assert rest.usage.flops < expected.usage.flops / 3
    scores, usage = engine.next_logprobs(prompts, range(40))
    assert np.allclose(scores, plain.next_logprobs(prompts, range(40))[0], atol=1e-5)
    assert usage.prefill_tokens == 3


def test_flops_are_those_of_generate_flops_where_nothing_is_known():
    engine = LocalEngine(make_model(), weights="float32", prefix_cache=0)
    out = engine.sample(PROMPTS, n=4, max_tokens=14, stop=[2, 11], seed=9)
    expected = sum(
        generate_flops(engine.cfg, len(prompt), out.lengths[out.prompt_index == i].tolist()).total
        for i, prompt in enumerate(PROMPTS)
    )
    assert out.usage.flops == pytest.approx(expected, rel=1e-12)
    assert out.usage.prefill_tokens == sum(map(len, PROMPTS))
    assert out.usage.decode_tokens == out.lengths.sum()
    twice = engine.sample([PROMPTS[2]] * 2, max_tokens=1, seed=0)
    assert twice.usage.flops == pytest.approx(prefill_flops(engine.cfg, 7).total)


@pytest.mark.parametrize("limit", [0, 3000, 20_000])
def test_a_small_prefix_cache_changes_nothing_but_work(limit):
    model = make_model()
    engine = LocalEngine(model, 4, weights="float32", prefix_cache=limit)
    prompts = [[*range(1, 15), i] for i in range(20, 26)]
    for seed in (1, 2):
        settings = {"n": 3, "max_tokens": 8, "seed": seed}
        same(engine.sample(prompts, **settings), LocalEngine(model).sample(prompts, **settings))
        assert engine.reader.tree.bytes <= limit


def test_threads_share_rows_out():
    model, before = make_model(), torch.get_num_threads()
    one = LocalEngine(model, weights="float32").sample(PROMPTS, **SETTINGS)
    torch.set_num_threads(3)
    try:
        same(LocalEngine(model, weights="float32").sample(PROMPTS, **SETTINGS), one)
    finally:
        torch.set_num_threads(before)


def test_damaged_weights_are_named():
    model = make_model()
    with torch.no_grad():
        model.blocks[0].mlp.down.weight[0, 0] = float("nan")
    for how in ({"weights": "float32"}, {"prefix_cache": 1000}):
        with pytest.raises(FlopwiseError, match="logits are not finite"):
            LocalEngine(model, **how).sample([[1, 2]], max_tokens=4)
    with pytest.raises(FlopwiseError, match="not all are finite"):
        LocalEngine(model, weights="int8")
