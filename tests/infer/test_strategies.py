from collections import Counter

import numpy as np
import pytest

from flopwise.errors import FlopwiseError
from flopwise.infer import strategies
from flopwise.infer.samples import Samples
from flopwise.infer.strategies import Candidate, Choosing, make, make_all, trace_of
from flopwise.infer.strategies.best_of_n import BestOfN
from flopwise.infer.strategies.greedy import Greedy
from flopwise.infer.strategies.self_consistency import SelfConsistency
from flopwise.infer.strategies.voting import candidates_of
from flopwise.infer.strategies.weighted import Weighted, chances


def candidates(answers, logprob=None, correct=None, reward=None):
    n = len(answers)
    scores = [{} if reward is None else {"reward": r} for r in (reward or [0.0] * n)]
    columns = zip(answers, logprob or [0.0] * n, [2] * n, correct or [None] * n, scores, strict=True)
    return [Candidate("text", *row) for row in columns]


def rng(seed=0):
    return np.random.default_rng(seed)


def test_greedy_takes_what_it_gets():
    assert Greedy().choose(candidates([None]), rng()).index == 0
    assert Greedy().temperature == 0


def test_majority_counts_and_abstentions():
    choice = SelfConsistency().choose(candidates(["a", None, "b", "b", None, None]), rng())
    assert (choice.index, choice.votes, choice.tied) == (2, {"b": 2, "a": 1}, 1)
    assert SelfConsistency().choose(candidates([None, None]), rng()).index is None


def test_majority_draws_ties_evenly_and_repeatably():
    tied = candidates(["a", "b", "b", "a", "c"])
    picks = Counter(SelfConsistency().choose(tied, rng(s)).index for s in range(400))
    assert set(picks) == {0, 1} and min(picks.values()) > 150
    assert SelfConsistency().choose(tied, rng(5)) == SelfConsistency().choose(tied, rng(5))
    assert SelfConsistency().choose(tied, rng()).tied == 2


@pytest.mark.parametrize(("by", "index"), [("verifier", 1), ("reward", 2), ("logprob", 0)])
def test_each_judge_goes_by_its_own_word(by, index):
    seen = candidates(
        "abc", correct=[False, True, False], reward=[-1.0, 0.0, 1.0], logprob=[-1.0, -2.0, -3.0]
    )
    choice = BestOfN(by).choose(seen, rng())
    assert choice.index == index and len(choice.scores) == 3 and choice.tied == 1


def test_best_of_n_draws_ties():
    seen = candidates("abcd", correct=[False, True, True, False])
    picks = Counter(BestOfN("verifier").choose(seen, rng(s)).index for s in range(400))
    assert set(picks) == {1, 2} and min(picks.values()) > 150


def test_what_cannot_be_judged_is_an_error():
    with pytest.raises(FlopwiseError, match="no reward to go by"):
        BestOfN("reward").choose(candidates("ab", correct=[True, False]), rng())
    with pytest.raises(FlopwiseError, match="must be one of verifier, logprob"):
        BestOfN("guess")
    with pytest.raises(FlopwiseError, match="must be one of greedy, self_consistency, best_of_n"):
        make("oracle")
    with pytest.raises(FlopwiseError, match="must name one of greedy"):
        make_all(" , ")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("best_of_n", "best_of_n:verifier"),
        ("best_of_n:process", "best_of_n:process_last"),
        ("weighted:by=reward", "weighted:reward"),
        ("self_consistency:threshold=0.5:weight=logprob", "self_consistency:threshold=0.5:weight=logprob"),
        (" greedy ", "greedy"),
    ],
)
def test_a_name_says_what_a_strategy_is(text, name):
    made = make(text)
    assert made.name == name and make(made.name) == made and isinstance(made, Choosing)


@pytest.mark.parametrize(
    "text", ["greedy:by=x", "best_of_n:luck", "self_consistency:threshold=2", "self_consistency:weight=luck",
             "self_consistency:threshold=nan", "weighted:", "a" * 500],
)  # fmt: skip
def test_bad_settings_are_one_line(text):
    with pytest.raises(FlopwiseError) as caught:
        make(text)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250


def test_several_are_named_by_commas_each_once():
    assert [s.name for s in make_all("greedy,best_of_n,best_of_n:verifier,")] == [
        "greedy",
        "best_of_n:verifier",
    ]


def test_every_name_makes_a_strategy():
    for row in strategies.describe():
        made = make(row["name"])
        assert made.name.split(":")[0] == row["name"] and row["about"]
        assert isinstance(made, Choosing) == (row["kind"] == "chooses")


def test_a_threshold_makes_a_thin_majority_abstain():
    seen = candidates(["a", "a", "b", None])
    assert SelfConsistency(0.5).choose(seen, rng()).index == 0
    choice = SelfConsistency(0.6).choose(seen, rng())
    assert choice.index is None and choice.votes == {"a": 2, "b": 1}


def test_votes_weighted_by_probability_overturn_a_majority():
    seen = candidates(["a", "a", "b"], logprob=[-5.0, -5.0, -1.0])
    choice = SelfConsistency(weight="logprob").choose(seen, rng())
    assert choice.index == 2 and list(choice.votes) == ["b", "a"]
    assert choice.votes["a"] == pytest.approx(2 * np.exp(-4))
    # Without log-probabilities nobody has a vote.
    unknown = candidates(["a", "b"], logprob=[float("nan")] * 2)
    assert SelfConsistency(weight="logprob").choose(unknown, rng()).index is None


def test_a_weighted_vote_sums_chances_and_names_the_heaviest_sample():
    seen = candidates("aab", reward=[0.0, 1.0, 1.5])
    choice = Weighted("reward").choose(seen, rng())
    assert choice.index == 1
    sigma = 1 / (1 + np.exp(-np.array([0.0, 1.0, 1.5])))
    assert choice.votes == pytest.approx({"a": sigma[:2].sum(), "b": sigma[2]})
    assert BestOfN("reward").choose(seen, rng()).index == 2
    assert chances([-3.0, -1.0], "process_product").tolist() == pytest.approx([np.exp(-2), 1.0])
    assert chances([0.25, 1.0], "judge").tolist() == [0.25, 1.0]


def test_a_trace_holds_samples_scores_votes_and_the_decision():
    seen = candidates(["a", None, "b", "b"])
    trace = trace_of(seen, SelfConsistency().choose(seen, rng()))
    assert [t.kind for t in trace] == ["sample"] * 4 + ["vote"] * 2 + ["stop"]
    assert trace[4].text == "b" and trace[4].parent == 2 and trace[-1].text == "b"
    assert len({t.id for t in trace}) == len(trace)
    nobody = candidates([None])
    assert trace_of(nobody, SelfConsistency().choose(nobody, rng()))[-1].note == "abstains"


def samples(P=40, n=8, seed=3):
    r = np.random.default_rng(seed)
    answers = [[str(a) if a < 4 else None for a in row] for row in r.integers(0, 5, (P, n))]
    correct = np.array([[a == "0" for a in row] for row in answers])
    reward = correct + r.normal(0, 1, (P, n))
    return Samples(
        [str(p) for p in range(P)], correct, answers, -r.exponential(5, (P, n)), r.integers(3, 9, (P, n)),
        np.ones((P, n), bool), np.full(P, 10.0), np.full((P, n), 2.0), {"reward": reward},
        {"reward": np.full((P, n), 1.0)}, greedy=correct[:, 0], greedy_flops=np.full(P, 12.0),
    )  # fmt: skip


REPLAYED = (
    "greedy", "self_consistency", "self_consistency:threshold=0.4", "best_of_n", "best_of_n:reward",
    "best_of_n:logprob_mean", "weighted:reward",
)  # fmt: skip


@pytest.mark.parametrize("text", REPLAYED)
@pytest.mark.parametrize("k", [1, 3, 8])
def test_a_replay_is_what_choosing_among_random_subsets_comes_to(text, k):
    seen, strategy, r = samples(), make(text), rng(k)
    right, rounds = np.zeros(seen.P), 60
    for p in range(seen.P):
        every = candidates_of(seen, p)
        for _ in range(rounds):
            picks = r.choice(seen.n, k, replace=False) if strategy.temperature is None else [0]
            index = strategy.choose([every[i] for i in picks], r).index
            right[p] += index is not None and seen.correct[p, picks[index]]
    error = np.abs((right / rounds).mean() - strategy.replay(seen, k).mean())
    assert error < 4 * 0.5 / np.sqrt(rounds * seen.P) + 4 * 0.5 / np.sqrt(64 * seen.P)
    if strategy.temperature is None:
        assert np.isnan(strategy.replay(seen, seen.n + 1)).all()
