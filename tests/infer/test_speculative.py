"""Speculative decoding: the large model's distribution whatever the small one is, and its greedy text."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import V, make_model

from flopwise.errors import FlopwiseError
from flopwise.flops.count import decode_flops
from flopwise.infer.draw import Draw
from flopwise.infer.local import LocalEngine
from flopwise.infer.speculative import SpeculativeEngine

PROMPTS = [[3, 4, 5], [7], [9, 8, 7, 6, 5, 4, 3], [1, 2]]


def engines(ahead=3, small_seed=5, **how):
    how = how or {"weights": "float32"}
    large = make_model()
    return LocalEngine(large), SpeculativeEngine(
        LocalEngine(large, **how), LocalEngine(make_model(seed=small_seed, width=16), **how), ahead
    )


@pytest.mark.parametrize("ahead", [1, 2, 5])
@pytest.mark.parametrize("how", [{"weights": "float32"}, {"prefix_cache": 1 << 20}])
def test_greedy_text_is_the_large_models(ahead, how):
    plain, both = engines(ahead, **how)
    for settings in ({"max_tokens": 20}, {"max_tokens": 41, "stop": [2, 11]}, {"max_tokens": 1}):
        one, other = (e.sample(PROMPTS, temperature=0.0, **settings) for e in (plain, both))
        assert (one.ids == other.ids).all() and (one.finished == other.finished).all()
        assert np.allclose(one.logprobs, other.logprobs, atol=1e-4)


@pytest.mark.parametrize("draw", [Draw(), Draw(0.7, 12), Draw(1.0, None, 0.8)])
def test_samples_have_the_large_models_distribution(draw):
    plain, both = engines()
    n = 6000
    out = both.sample(
        [PROMPTS[0]], n=n, max_tokens=3, seed=3, temperature=draw.temperature, top_k=draw.top_k,
        top_p=draw.top_p,
    )  # fmt: skip
    assert (out.lengths == 3).all()
    first = np.bincount(out.ids[:, 0]).argmax()
    for place in range(3):
        prompt = [*PROMPTS[0], *([int(first)] if place else [])]
        rows = out.ids[:, place] if place < 2 else out.ids[:, 1]
        if place:
            rows = rows[out.ids[:, 0] == first]
        with torch.no_grad():
            p = draw.probabilities(plain.model(torch.tensor([prompt]))[:, -1])[0].double().numpy()
        if place == 2:
            # The third token after the likeliest two.
            second = np.bincount(rows).argmax()
            rows = out.ids[(out.ids[:, 0] == first) & (out.ids[:, 1] == second), 2]
            with torch.no_grad():
                ids = torch.tensor([[*prompt, int(second)]])
                p = draw.probabilities(plain.model(ids)[:, -1])[0].double().numpy()
        seen = np.bincount(rows, minlength=V)
        assert len(rows) > 100 and seen[p == 0].sum() == 0
        likely = p * len(rows) >= 5
        p, seen = np.append(p[likely], p[~likely].sum()), np.append(seen[likely], seen[~likely].sum())
        p, seen = p[p > 0], seen[p > 0]
        chi2 = ((seen - len(rows) * p) ** 2 / (len(rows) * p)).sum()
        degrees = max(1, len(p) - 1)
        assert chi2 < degrees + 4 * np.sqrt(2 * degrees)
    assert 0 < both.drafted.rate < 1


def test_the_same_model_as_its_own_draft_keeps_nearly_all():
    large = make_model()
    engine = LocalEngine(large, weights="float32")
    both = SpeculativeEngine(engine, LocalEngine(large, weights="float32"), 4)
    out = both.sample(PROMPTS, n=5, max_tokens=16, stop=[2], seed=1)
    assert both.drafted.rate > 0.99
    scored = engine.score(
        [PROMPTS[i] + c for i, c in zip(out.prompt_index, out.completions(False), strict=True)],
        [len(PROMPTS[i]) for i in out.prompt_index],
    )
    for row, expected in enumerate(scored):
        assert np.allclose(out.logprobs[row, : out.lengths[row]], expected, atol=1e-4)
        assert out.finished[row] == (out.ids[row, out.lengths[row] - 1] == 2)


def test_drafts_that_are_not_kept_are_paid_for():
    _, both = engines()
    out = both.sample([PROMPTS[0]], max_tokens=12, seed=1)
    assert out.usage.decode_tokens == 12 and out.usage.prefill_tokens == 6
    passes = both.drafted.drafted + 1  # of the small model at least; the large one checks as many and more
    least = passes * decode_flops(both.small.cfg, 4).total + passes * decode_flops(both.large.cfg, 4).total
    assert out.usage.flops > least


def test_samples_do_not_depend_on_the_batch_and_go_on_from_prefixes():
    _, both = engines()
    out = both.sample(PROMPTS, n=4, max_tokens=10, stop=[2], seed=7)
    both.large.max_batch = 3
    again = both.sample(PROMPTS, n=4, max_tokens=10, stop=[2], seed=7)
    assert (again.ids == out.ids).all()
    rest = both.sample([[3, 4]], n=2, max_tokens=44, temperature=0.0, prefix_tokens=[[5], [5, 6]])
    assert rest.ids.shape == (2, 44) and (rest.lengths == 44).all()  # to the end of the context


def test_what_cannot_be_is_one_line():
    large = LocalEngine(make_model(), weights="float32")
    with pytest.raises(FlopwiseError, match="vocabularies of 40 and 48"):
        SpeculativeEngine(large, LocalEngine(make_model(vocab=48), weights="float32"))
    with pytest.raises(FlopwiseError, match="made with weights"):
        SpeculativeEngine(large, LocalEngine(make_model()))
    with pytest.raises(FlopwiseError, match="ahead=0"):
        SpeculativeEngine(large, large, 0)
