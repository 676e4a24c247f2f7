import numpy as np
import pytest
import torch
from tiny_models import V, make_model

from flopwise.errors import FlopwiseError
from flopwise.flops.count import generate_flops, score_flops
from flopwise.infer.local import LocalEngine
from flopwise.models import hf

PROMPTS = [[3, 4, 5], [7], [9, 8, 7, 6, 5, 4, 3], [1, 2]]


def greedy_by_forward(model, prompt, n):
    ids = list(prompt)
    for _ in range(n):
        with torch.inference_mode():
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


def test_greedy_is_the_argmax_of_full_forward_passes_whatever_the_padding(model, engine):
    out = engine.sample(PROMPTS, max_tokens=12, temperature=0.0)
    for i, prompt in enumerate(PROMPTS):
        assert out.ids[i].tolist() == greedy_by_forward(model, prompt, 12)


def test_greedy_is_that_of_transformers(model, engine, tmp_path):
    transformers = pytest.importorskip("transformers")
    hf.save(model, tmp_path)
    peer = transformers.LlamaForCausalLM.from_pretrained(tmp_path).eval()
    out = engine.sample(PROMPTS, max_tokens=10, temperature=0.0)
    for i, prompt in enumerate(PROMPTS):
        theirs = peer.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False, max_new_tokens=10, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        assert out.ids[i].tolist() == theirs[0, len(prompt) :].tolist()


def test_samples_follow_the_models_distribution(model, engine):
    n = 20_000
    out = engine.sample([PROMPTS[0]], n=n, max_tokens=1, seed=3)
    with torch.inference_mode():
        p = model(torch.tensor([PROMPTS[0]]))[0, -1].double().softmax(-1).numpy()
    seen = np.bincount(out.ids[:, 0], minlength=V)
    chi2 = ((seen - n * p) ** 2 / (n * p)).sum()
    # 39 degrees of freedom: mean 39, standard deviation 8.8.
    assert chi2 < 39 + 4 * 8.8


def test_second_tokens_follow_it_too(model, engine):
    n = 20_000
    out = engine.sample([PROMPTS[2]], n=n, max_tokens=2, seed=4)
    first = np.bincount(out.ids[:, 0]).argmax()
    rows = out.ids[out.ids[:, 0] == first, 1]
    with torch.inference_mode():
        p = model(torch.tensor([[*PROMPTS[2], int(first)]]))[0, -1].double().softmax(-1).numpy()
    chi2 = ((np.bincount(rows, minlength=V) - len(rows) * p) ** 2 / (len(rows) * p)).sum()
    assert len(rows) > 1000
    assert chi2 < 39 + 4 * 8.8


@pytest.mark.parametrize(
    "setting", [{}, {"temperature": 0.5, "top_k": 5}, {"top_p": 0.6}, {"temperature": 0.0}]
)
def test_logprobs_are_those_of_score_whatever_the_sampling(engine, setting):
    out = engine.sample(PROMPTS, n=3, max_tokens=15, stop=[2, 11], seed=5, **setting)
    whole = [PROMPTS[p] + c for p, c in zip(out.prompt_index, out.completions(strip_stop=False), strict=True)]
    scored = engine.score(whole, [len(PROMPTS[p]) for p in out.prompt_index])
    for i, expected in enumerate(scored):
        assert np.allclose(out.logprobs[i, : out.lengths[i]], expected, atol=1e-4)
        assert (out.logprobs[i, out.lengths[i] :] == 0).all()


def test_the_batch_a_sample_falls_into_does_not_matter(model, engine):
    a = engine.sample(PROMPTS, n=6, max_tokens=20, stop=[2], seed=7)
    for max_batch in (1, 5, 13):
        b = LocalEngine(model, max_batch).sample(PROMPTS, n=6, max_tokens=20, stop=[2], seed=7)
        assert (a.ids == b.ids).all()
        assert np.allclose(a.logprobs, b.logprobs, atol=1e-5)
    fewer = engine.sample(PROMPTS[:2], n=6, max_tokens=20, stop=[2], seed=7)
    assert (fewer.ids == a.ids[:12]).all()
    assert (engine.sample(PROMPTS, n=6, max_tokens=20, stop=[2], seed=8).ids != a.ids).any()


def test_rows_end_at_a_stop_token_or_at_the_limit(engine):
    stop = [2, 11, 30]
    out = engine.sample(PROMPTS, n=20, max_tokens=12, stop=stop, seed=1)
    assert out.finished.any() and not out.finished.all()
    for i in range(len(out.lengths)):
        row, length = out.ids[i], out.lengths[i]
        assert (row[length:] == -1).all() and (row[:length] >= 0).all()
        assert not np.isin(row[: length - 1], stop).any()
        assert np.isin(row[length - 1], stop) == out.finished[i]
        assert out.finished[i] or length == 12
    stripped = out.completions()
    assert all(len(c) == n - f for c, n, f in zip(stripped, out.lengths, out.finished, strict=True))


def test_finished_rows_leave_the_batch(model, monkeypatch):
    engine = LocalEngine(model)
    sizes = []
    step = engine._step
    monkeypatch.setattr(engine, "_step", lambda token, *rest: sizes.append(len(token)) or step(token, *rest))
    out = engine.sample(PROMPTS, n=50, max_tokens=30, stop=list(range(0, V, 4)), seed=2)
    running = [(out.lengths > i + 1).sum() for i in range(len(sizes))]
    assert sizes[0] < 200 and sizes[-1] < 20
    assert all(alive <= size <= alive / 0.8 + 1 for alive, size in zip(running, sizes, strict=True))


def test_flops_are_those_of_generate_flops(engine):
    out = engine.sample(PROMPTS, n=4, max_tokens=14, stop=[2, 11], seed=9)
    expected = sum(
        generate_flops(engine.cfg, len(prompt), out.lengths[out.prompt_index == i].tolist()).total
        for i, prompt in enumerate(PROMPTS)
    )
    assert out.usage.flops == pytest.approx(expected, rel=1e-12)
    assert out.usage.prefill_tokens == sum(map(len, PROMPTS))
    assert out.usage.decode_tokens == out.lengths.sum()


def test_a_sample_goes_on_from_its_prefix_as_if_never_stopped(engine):
    whole = engine.sample(PROMPTS, n=3, max_tokens=16, seed=6)
    start = engine.sample(PROMPTS, n=3, max_tokens=5, seed=6)
    assert (start.ids == whole.ids[:, :5]).all()
    rest = engine.sample(PROMPTS, n=3, max_tokens=11, seed=6, prefix_tokens=start.completions())
    assert (rest.ids == whole.ids[:, 5:]).all()
    assert np.allclose(rest.logprobs, whole.logprobs[:, 5:], atol=1e-5)
    # All that was written is read again, by each sample on its own.
    assert rest.usage.prefill_tokens == sum(3 * (len(p) + 5) for p in PROMPTS)
    with pytest.raises(FlopwiseError, match="2 prefixes for 12 samples"):
        engine.sample(PROMPTS, n=3, prefix_tokens=[[1], [2]])


def test_progress_reaches_one(model):
    seen = []
    LocalEngine(model, 4).sample(PROMPTS, n=2, max_tokens=3, on_progress=seen.append)
    assert seen == sorted(seen) and seen[-1] == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": [[1, 2], []]}, "a prompt is empty"),
        ({"prompts": []}, "a prompt is empty"),
        ({"prompts": [[1] * 40], "max_tokens": 20}, "context of 48; lower max_tokens to 8"),
        ({"prompts": [[1] * 60]}, "shorten the prompt"),
        ({"prompts": [[V]]}, f"token {V} is beyond the vocabulary of {V}"),
        ({"prompts": [[-1]]}, "token -1"),
        ({"n": 0}, "n=0"),
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_k": 0}, "top_k=0"),
        ({"top_p": 0.0}, "top_p=0.0"),
    ],
)
def test_bad_input_is_one_line(engine, arguments, message):
    with pytest.raises(FlopwiseError, match=message) as caught:
        engine.sample(**({"prompts": PROMPTS, "max_tokens": 4} | arguments))
    assert "\n" not in str(caught.value)


def test_damaged_weights_are_named():
    model = make_model()
    with torch.no_grad():
        model.blocks[0].mlp.down.weight[0, 0] = float("nan")
    with pytest.raises(FlopwiseError, match="logits are not finite"):
        LocalEngine(model).sample([[1, 2]], max_tokens=4)


def test_score_is_the_forward_pass_in_any_order_of_lengths(model, engine):
    sequences = [[5, 6, 7, 8], [1, 2], [9] * 30, [3, 4, 5]]
    out = engine.score(sequences, [1, 1, 10, 2])
    for s, first, got in zip(sequences, [1, 1, 10, 2], out, strict=True):
        with torch.inference_mode():
            logp = model(torch.tensor([s]))[0].log_softmax(-1)
        expected = [float(logp[t - 1, s[t]]) for t in range(first, len(s))]
        assert np.allclose(got, expected, atol=1e-5)
    with pytest.raises(FlopwiseError, match="sequence of 60 tokens"):
        engine.score([[1] * 60], [1])


def test_reward_is_the_score_at_the_last_token():
    scorer = make_model(n_scores=1)
    sequences = [[5, 6, 7], [1], [4] * 20]
    got, flops = LocalEngine(scorer).reward(sequences)
    with torch.inference_mode():
        expected = [float(scorer(torch.tensor([s]))[0, -1, 0]) for s in sequences]
    assert np.allclose(got, expected, atol=1e-5)
    assert flops == pytest.approx(sum(score_flops(scorer.cfg, len(s), n_logits=0).total for s in sequences))
    with pytest.raises(FlopwiseError, match="no score head"):
        LocalEngine(make_model()).reward(sequences)


def test_keys_and_values_of_a_batch_stay_within_their_bytes(monkeypatch):
    from flopwise.infer import local

    model = make_model()
    engine = LocalEngine(model)
    prompts = [[1, 2, 3], [4, 5]]
    whole = engine.sample(prompts, 6, 8, seed=3)
    tokens, cfg = 3 + 8, model.cfg
    row = 2 * cfg.n_layers * cfg.n_kv_heads * cfg.head_dim * 4 * tokens
    monkeypatch.setattr(local, "CACHE_BYTES", 4 * row + 1)
    assert engine.rows_at_once(tokens, 4) == 4
    again = engine.sample(prompts, 6, 8, seed=3)
    assert (whole.ids == again.ids).all()
    monkeypatch.setattr(local, "CACHE_BYTES", 1)
    assert engine.rows_at_once(tokens, 4) == 1
