from collections import Counter

import numpy as np
import pytest

from flopwise.errors import FlopwiseError
from flopwise.infer import strategies
from flopwise.infer.strategies import BestOfN, Candidate, Greedy, SelfConsistency


def candidates(answers, logprob=None, correct=None, reward=None):
    n = len(answers)
    columns = zip(answers, logprob or [0.0] * n, correct or [None] * n, reward or [None] * n, strict=True)
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
    with pytest.raises(FlopwiseError, match="must be one of verifier, reward, logprob"):
        BestOfN("guess")
    with pytest.raises(FlopwiseError, match="must be one of greedy, self_consistency, best_of_n"):
        strategies.make("oracle")


def test_every_name_makes_a_strategy_that_chooses():
    seen = candidates(["a", "b"], correct=[False, True])
    for name in strategies.NAMES:
        assert strategies.make(name).choose(seen, rng()).index in (0, 1)
