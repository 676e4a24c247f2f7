"""Judged samples as arrays: saved and read, from anybody's table, split, and what they cost."""

import json

import numpy as np
import pytest

from flopwise.errors import FlopwiseError
from flopwise.infer.samples import Samples


def make(P=5, n=4, **more):
    r = np.random.default_rng(0)
    correct = r.random((P, n)) < 0.5
    answers = [["7" if c else None if i % 2 else "8" for i, c in enumerate(row)] for row in correct]
    fields = {
        "logprob": -r.random((P, n)), "tokens": r.integers(1, 9, (P, n)), "finished": r.random((P, n)) < 0.9,
        "prefill_flops": np.arange(P) + 100.0, "decode_flops": r.random((P, n)) * 10,
        "scores": {"reward": r.normal(size=(P, n)), "process_min": r.normal(size=(P, n))},
        "score_flops": {"reward": np.full((P, n), 3.0), "process_min": np.full((P, n), 5.0)},
        "seconds": 1.5, "greedy": correct[:, 0], "greedy_flops": np.full(P, 107.0),
        "texts": [[f"text {p} {i} ☃" for i in range(n)] for p in range(P)],
    }  # fmt: skip
    return Samples([f"problem {p}" for p in range(P)], correct, answers, **(fields | more))


def same(a, b):
    for name, value in vars(a).items():
        other = getattr(b, name)
        if isinstance(value, dict):
            assert value.keys() == other.keys() and all(np.array_equal(value[k], other[k]) for k in value)
        elif isinstance(value, np.ndarray):
            assert np.array_equal(value, other) and value.dtype == other.dtype, name
        else:
            assert value == other, name


def test_what_is_saved_is_read(tmp_path):
    for samples in (make(), make(scores={}, score_flops={}, greedy=None, greedy_flops=None, texts=None)):
        samples.save(tmp_path / "samples.npz", curve_verifier=np.ones((2, 5)))
        same(samples, Samples.load(tmp_path / "samples.npz"))
    with np.load(tmp_path / "samples.npz", allow_pickle=False) as file:
        # The names under which the report and the plan read them.
        assert {"correct", "logprob", "lengths", "curve_verifier"} <= set(file.files)


def test_the_report_finds_greedy_and_reward_under_their_names(tmp_path):
    make().save(tmp_path / "samples.npz")
    with np.load(tmp_path / "samples.npz", allow_pickle=False) as file:
        assert file["greedy"].shape == (5,) and file["reward"].shape == (5, 4)


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04"])
def test_a_damaged_file_is_one_line(tmp_path, content):
    (tmp_path / "s.npz").write_bytes(content)
    with pytest.raises(FlopwiseError, match="holds no samples"):
        Samples.load(tmp_path / "s.npz")
    np.savez(tmp_path / "other.npz", x=np.ones(3))
    with pytest.raises(FlopwiseError, match="holds no samples"):
        Samples.load(tmp_path / "other.npz")


def test_costs_share_the_prompt_and_count_the_judge():
    samples = make()
    each = samples.decode_flops.mean(axis=1)
    assert np.allclose(samples.cost(3), samples.prefill_flops + 3 * each)
    assert np.allclose(samples.cost(3, "reward"), samples.cost(3) + 9)
    assert np.allclose(samples.cost(3, "verifier"), samples.cost(3))


def test_a_split_shares_no_sample():
    first, rest = make().split(1)
    assert (first.n, rest.n, rest.P) == (1, 3, 5)
    assert np.array_equal(np.hstack([first.correct, rest.correct]), make().correct)
    assert [a + b for a, b in zip(first.answers, rest.answers, strict=True)] == make().answers
    assert rest.scores["reward"].shape == (5, 3) and rest.texts[0][0].startswith("text 0 1")
    for m in (0, 4):
        with pytest.raises(FlopwiseError, match="cannot be split off"):
            make().split(m)


def test_some_problems_can_be_taken():
    some = make().take([3, 1])
    assert some.problems == ["problem 3", "problem 1"] and some.seconds is None
    assert np.array_equal(some.scores["reward"], make().scores["reward"][[3, 1]])


def test_judges_rank_by_their_own_scores():
    samples = make()
    assert np.array_equal(samples.score("verifier"), samples.correct)
    assert np.allclose(samples.score("logprob_mean") * samples.tokens, samples.logprob)
    assert samples.score("process_min") is samples.scores["process_min"]
    with pytest.raises(FlopwiseError, match="no score by 'probe', there are verifier, logprob"):
        samples.score("probe")


def test_a_table_of_anybodys_samples():
    table = {
        "problem": ["a", "b", "a", "b", "a"], "correct": [True, "no", False, "yes", True],
        "answer": ["1", None, "2", "3", ""], "score": [0.5, 1, 2, 3, 4], "score_judge": [1, 2, 3, 4, 5],
        "tokens": [10, 20, 30, 40, 50],
    }  # fmt: skip
    table = {name: np.array(column, dtype=object) for name, column in table.items()}
    samples = Samples.from_table(table, n=2)
    assert samples.problems == ["a", "b"] and samples.answers == [["1", "2"], [None, "3"]]
    assert samples.correct.tolist() == [[True, False], [False, True]]
    assert samples.scores["score"].tolist() == [[0.5, 2], [1, 3]] and set(samples.scores) == {
        "score",
        "judge",
    }
    assert samples.unit == "tokens" and samples.cost(2).tolist() == [40, 60]
    with pytest.raises(FlopwiseError, match="have 2 to 3 samples"):
        Samples.from_table(table)
    bare = Samples.from_table({"problem": np.array([1, 2]), "correct": np.array([True, False])})
    assert bare.unit == "samples" and bare.cost(4).tolist() == [4, 4] and bare.answers == [[None], [None]]
    with pytest.raises(FlopwiseError, match="correct"):
        Samples.from_table({"problem": np.array([1])})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logprob": np.zeros((5, 3))}, "logprob has the shape"),
        ({"prefill_flops": np.zeros(4)}, "prefill_flops has 4 rows"),
        ({"scores": {"x": np.zeros(5)}}, "x has the shape"),
        ({"texts": [["a"]] * 5}, "must have 4 answers and texts"),
    ],
)
def test_shapes_must_agree(change, message):
    with pytest.raises(FlopwiseError, match=message):
        make(**change)


def test_texts_are_json_within(tmp_path):
    make().save(tmp_path / "s.npz")
    with np.load(tmp_path / "s.npz", allow_pickle=False) as file:
        assert json.loads(file["about"].tobytes())["texts"][1][2] == "text 1 2 ☃"
