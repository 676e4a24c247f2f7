import numpy as np
import pytest
import torch

from flopwise.infer.draw import Draw, invert
from flopwise.infer.engine import streams, uniforms


@pytest.mark.parametrize("vocab", [1, 2, 5, 32, 40, 512, 1000])
def test_invert_draws_in_proportion_and_never_what_has_no_chance(vocab):
    rng = np.random.default_rng(vocab)
    p = rng.random(vocab) * (rng.random(vocab) < 0.7)
    p[0] = 0.5
    n = 20_000
    u = torch.linspace(0, 1, n)
    places = invert(torch.tensor(p, dtype=torch.float32).expand(n, -1).contiguous(), u).numpy()
    seen = np.bincount(places, minlength=vocab)
    # Evenly spaced numbers: each place is met in proportion but for its two ends.
    assert np.abs(seen - n * p / p.sum()).max() < 3
    assert (seen[p == 0] == 0).all()


def test_invert_survives_extremes():
    p = torch.zeros(3, 512)
    p[0, 511], p[1, 0], p[2, 37] = 1e-30, 1e30, 1.0
    for u in (0.0, 0.5, 1.0):
        assert invert(p, torch.full((3,), u)).tolist() == [511, 0, 37]


LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0, -2.0, -3.0]])
EVEN = torch.linspace(0, 1, 5001)


def share(draw):
    tokens, _ = draw(LOGITS.expand(len(EVEN), -1).contiguous(), EVEN)
    return torch.bincount(tokens, minlength=6).double() / len(EVEN)


def test_temperature_divides_logits():
    for t in (0.3, 1.0, 2.0):
        expected = (LOGITS[0].double() / t).softmax(-1)
        assert torch.allclose(share(Draw(temperature=t)), expected, atol=1e-3)
    assert share(Draw(temperature=0.0))[0] == 1
    assert share(Draw(temperature=1e-6))[0] == 1


def test_top_k_keeps_k_and_renormalises():
    expected = LOGITS[0, :2].double().softmax(-1)
    got = share(Draw(top_k=2))
    assert torch.allclose(got[:2], expected, atol=1e-3) and (got[2:] == 0).all()
    assert share(Draw(top_k=1))[0] == 1
    assert torch.allclose(share(Draw(top_k=100)), share(Draw()), atol=1e-3)


def test_top_p_keeps_the_smallest_set_that_reaches_p():
    p = LOGITS[0].double().softmax(-1)
    for top_p in (0.1, 0.6, 0.7, 0.9, 0.999):
        kept = int((p.cumsum(0) < top_p).sum()) + 1
        got = share(Draw(top_p=top_p))
        assert (got[:kept] > 0).all() and (got[kept:] == 0).all()
        assert torch.allclose(got[:kept], p[:kept] / p[:kept].sum(), atol=1e-3)
    assert torch.allclose(share(Draw(top_p=1.0)), p, atol=1e-3)


def test_logprobs_are_the_models_own():
    logits = torch.randn(50, 300, generator=torch.Generator().manual_seed(0)) * 5
    for draw in (Draw(), Draw(0.0), Draw(0.5, 10, 0.8)):
        token, logprob = draw(logits, torch.linspace(0, 1, 50))
        expected = logits.log_softmax(-1).gather(1, token[:, None]).squeeze(1)
        assert torch.allclose(logprob, expected, atol=1e-5)


def test_streams_are_even_and_differ_by_all_that_names_them():
    prompt, sample = (a.ravel() for a in np.meshgrid(np.arange(50), np.arange(40)))
    u = np.stack([uniforms(streams(s, prompt, sample), t) for s in (0, 1) for t in (0, 1)])
    assert len(np.unique(u)) == u.size
    assert abs(u.mean() - 0.5) < 0.01 and abs(u.var() - 1 / 12) < 0.005
    assert np.abs(np.corrcoef(u) - np.eye(4)).max() < 0.06
    positions = np.arange(len(prompt))
    each = uniforms(streams(0, prompt, sample), positions)
    assert each[17] == uniforms(streams(0, prompt, sample)[17:18], 17)[0]
    assert streams(-1, prompt, sample)[0] != streams(0, prompt, sample)[0]
