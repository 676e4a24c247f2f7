"""Beam, lookahead, DVTS, REBASE, particles and MCTS on trees that are written down: each keeps its rule."""

from __future__ import annotations

from math import log, sqrt
from typing import Any

import numpy as np
import pytest
from toy_search import CFG, Scripted, Worth, make_room

from flopwise.errors import FlopwiseError
from flopwise.flops.count import generate_flops
from flopwise.infer.room import Room
from flopwise.infer.strategies import make
from flopwise.infer.strategies.base import Acting, Outcome
from flopwise.infer.strategies.mcts import Visits
from flopwise.infer.strategies.particle import resampled
from flopwise.infer.strategies.rebase import shares
from flopwise.infer.tree import Node

TREE = {
    "": ["A;", "B;", "C;", "D;"],
    "B;": ["X!$", "Y;"], "C;": ["Z;", "W;"], "A;": ["P;"], "D;": ["Q;"],
    "B;Y;": ["Y!$"], "C;Z;": ["Z!$"], "C;W;": ["W!$"], "A;P;": ["P!$"], "D;Q;": ["Q!$"],
}  # fmt: skip
VALUES = {
    "A;": 0.1, "B;": 0.9, "C;": 0.5, "D;": 0.2, "B;X!": 0.6, "B;Y;": 0.3, "C;Z;": 0.8, "C;W;": 0.4,
    "C;Z;Z!": 0.9, "C;W;W!": 0.2, "B;Y;Y!": 0.1,
}  # fmt: skip


def solve(room: Room, name: str, n: int, seed: int = 0) -> Outcome:
    strategy = make(name)
    assert isinstance(strategy, Acting)
    return strategy.run(room, [0], n, seed)[0]


def asked(room: Room) -> list[list[str]]:
    assert isinstance(room.engine, Scripted)
    return room.engine.asked


def answers(outcome: Outcome) -> list[str]:
    return [c.text for c in outcome.candidates]


def test_a_beam_keeps_the_best_n_over_m_steps() -> None:
    room = make_room(TREE, VALUES)
    outcome = solve(room, "beam:width=2", 4)
    # Four first steps; the two best go on in two ways; one ends, so three places are left for the two best.
    assert asked(room) == [[""] * 4, ["B;", "B;", "C;", "C;"], ["C;Z;", "C;Z;", "C;W;"]]
    assert answers(outcome) == ["B;X!", "C;Z;Z!", "C;Z;Z!", "C;W;W!"]
    assert outcome.choice.votes == pytest.approx({"Z": 1.8, "X": 0.6, "W": 0.2})
    assert outcome.chosen is not None and outcome.chosen.answer == "Z" and outcome.chosen.correct
    assert outcome.chosen.steps == (0.5, 0.8, 0.9)


def test_a_search_pays_for_every_token_prefix_and_value() -> None:
    room = make_room(TREE, VALUES)
    outcome = solve(room, "beam:width=2", 4)
    steps = [len(s.text) + s.text.endswith("!") for s in outcome.trace if s.kind == "step"]
    assert outcome.tokens == sum(steps) == 4 * 2 + (3 + 3 * 2) + 3 * 3
    assert outcome.flops["score"] == 10.0 * 10  # Z! was written twice and is valued once
    one = make_room({"": ["A;"], "A;": ["B;"], "A;B;": ["Z!$"]}, {})
    found = solve(one, "beam", 1)
    # A single beam is one sample: the prompt once, then each token once.
    plain = generate_flops(CFG, len(one.asked.ids[0]), [7]).total
    assert found.flops["prefill"] + found.flops["decode"] == pytest.approx(plain, rel=0.01)
    assert found.tokens == 7


def test_the_trace_is_the_tree() -> None:
    outcome = solve(make_room(TREE, VALUES), "beam:width=2", 4)
    steps = {s.id: s for s in outcome.trace}
    leaf = next(s for s in outcome.trace if s.text == "Z!")
    assert leaf.value == 0.9 and leaf.parent is not None
    above = steps[leaf.parent]
    assert (above.text, above.value) == ("Z;", 0.8) and steps[above.parent or 0].text == "C;"
    assert [s.kind for s in outcome.trace[-4:]] == ["vote", "vote", "vote", "stop"]
    assert outcome.trace[-1].parent == leaf.id


@pytest.mark.parametrize(
    ("final", "answer"), [("best", "Z"), ("weighted", "Z"), ("vote", "Z"), ("last", "W")]
)
def test_answers_are_chosen_as_asked(final: str, answer: str) -> None:
    outcome = solve(make_room(TREE, VALUES), f"beam:width=2:final={final}", 4)
    assert outcome.chosen is not None and outcome.chosen.answer == answer


def test_steps_written_alike_are_one_in_a_beam() -> None:
    room = make_room({"": ["B;", "B;", "B;", "C;"], "*": ["Z!$"]}, VALUES)
    solve(room, "beam:width=2", 4)
    assert sorted(asked(room)[1]) == ["B;", "B;", "C;", "C;"]


def test_subtrees_of_dvts_do_not_compete() -> None:
    room = make_room(TREE, VALUES)
    outcome = solve(room, "dvts:width=2", 4)
    # B beats A in the first tree, C beats D in the second; X ends, so the first tree has one place left.
    assert asked(room) == [[""] * 4, ["B;", "B;", "C;", "C;"], ["B;Y;", "C;Z;", "C;Z;"]]
    assert sorted(answers(outcome)) == ["B;X!", "B;Y;Y!", "C;Z;Z!", "C;Z;Z!"]
    greedy = make_room(TREE, VALUES | {"C;": 0.95, "D;": 0.94, "B;": 0.1, "A;": 0.2})
    solve(greedy, "dvts:width=2", 4)
    assert asked(greedy)[1] == ["A;", "A;", "C;", "C;"]  # a beam would have kept C and D
    uneven = make_room(TREE, VALUES)
    assert len(solve(uneven, "dvts:width=4", 6).candidates) == 6


def test_lookahead_goes_by_what_comes_of_a_step() -> None:
    values = {"A;": 0.9, "B;": 0.1, "A;P;": 0.1, "B;X!": 0.7}
    room = make_room(TREE, values)
    outcome = solve(room, "lookahead:width=2", 4)  # n / (k + 1) = 2 beams
    assert isinstance(room.engine, Scripted)
    assert asked(room)[:3] == [["", ""], ["A;", "B;"], ["B;", "B;"]]
    assert room.engine.temperatures[:3] == [1.0, 0.0, 1.0]
    ahead = [s.text for s in outcome.trace if s.note == "looks ahead"]
    assert ahead[:2] == ["P;", "X!"]
    kept = {s.text: s.value for s in outcome.trace if s.parent is None and s.kind == "step"}
    assert kept == {"A;": 0.1, "B;": 0.7}
    assert len(solve(make_room(TREE, values), "lookahead", 1).candidates) == 1  # no budget to look ahead


def test_shares_follow_the_softmax_of_values() -> None:
    assert shares([0.9, 0.5, 0.1], 8, 0.2) == [7, 1, 0]
    assert shares([0.5, 0.5], 8, 0.2) == [4, 4] and shares([0.7], 3, 0.1) == [3] and shares([], 3, 1.0) == []
    for values in np.random.default_rng(0).random((20, 6)):
        counts = shares(sorted(values, reverse=True), 16, 0.5)
        assert sum(counts) == 16 and counts == sorted(counts, reverse=True)


def test_rebase_shares_out_what_is_left() -> None:
    room = make_room(TREE, VALUES)
    outcome = solve(room, "rebase:heat=0.4", 4)
    # exp(v / 0.4) of B, C, D, A is 9.49, 3.49, 1.65, 1.28: of 4 places 2.4 -> 3, then 1 x .54 -> 1.
    assert asked(room)[1] == ["B;", "B;", "B;", "C;"]
    # B gave X, Y, X: two have ended and two places are left for Z (0.8) and Y (0.3): 2 x 0.78 -> 2.
    assert asked(room)[2] == ["C;Z;", "C;Z;"]
    assert answers(outcome) == ["B;X!", "B;X!", "C;Z;Z!", "C;Z;Z!"]


def test_particles_are_drawn_by_their_log_odds() -> None:
    nodes = [Node(0, value=v, id=i) for i, v in enumerate((0.5, 0.8, 0.5))]
    rng = np.random.default_rng(0)
    drawn = np.array([[p.id for p in resampled(nodes, 1.0, rng)] for _ in range(4000)])
    # Odds are 1 to 4 to 1.
    assert np.bincount(drawn.ravel()) / drawn.size == pytest.approx([1 / 6, 4 / 6, 1 / 6], abs=0.015)
    room = make_room(TREE, VALUES)
    outcome = solve(room, "particle:heat=0.01", 3)
    assert asked(room) == [[""] * 3, ["B;"] * 3, ["B;Y;"]] or asked(room)[2:] == []
    # X (0.6) against Y (0.3) at this heat: only X is drawn, and X has ended.
    assert answers(outcome) == ["B;X!"] * 3 and outcome.chosen is not None
    assert outcome.chosen.answer == "X"


def test_a_judge_that_is_wrong_early_is_not_final_for_particles() -> None:
    values = {"A;": 0.6, "B;": 0.4, "A;x!": 0.01, "B;Z!": 0.99}
    tree = {"": ["A;", "B;"], "A;": ["x!$"], "B;": ["Z!$"]}
    beams = solve(make_room(tree, values), "beam:width=2:final=best", 2)
    assert beams.chosen is not None and beams.chosen.answer == "x"
    found = [solve(make_room(tree, values), "particle", 8, seed) for seed in range(5)]
    assert all(o.chosen is not None and o.chosen.answer == "Z" for o in found)


def test_visits_are_counted_and_scored_as_uct_and_puct_say() -> None:
    root = Node(0)
    a, b = Node(0, (1,), -1.0, 0.8, id=1, parent=0), Node(0, (2,), -2.0, 0.4, id=2, parent=0)
    visits = Visits(0.5, "uct")
    visits.add(root, [a, b])
    assert visits.leaf(root) == a and visits.counts == {0: 2, 1: 1, 2: 1}
    assert visits.score(root, a, [a, b]) == pytest.approx(0.8 + 0.5 * sqrt(log(2)))
    visits.add(a, [Node(0, (1, 3), -2.0, 0.1, id=3, parent=1), Node(0, (1, 4), -2.0, 0.3, "done", 4, 1)])
    assert visits.counts == {0: 4, 1: 3, 2: 1, 3: 1, 4: 1}
    assert visits.sums[1] == pytest.approx(0.8 + 0.1 + 0.3) and visits.sums[0] == pytest.approx(1.6)
    # a: 0.4 + 0.5 sqrt(ln 4 / 3) = 0.74; b: 0.4 + 0.5 sqrt(ln 4) = 0.99
    assert visits.leaf(root) == b
    visits.rule = "puct"
    prior = 1 / (1 + np.exp(-1))
    assert visits.score(root, a, [a, b]) == pytest.approx(0.4 + 0.5 * prior * 2 / 4)
    visits.add(b, [Node(0, (2, 5), value=0.9, state="done", id=5, parent=2)])
    assert 2 in visits.closed and visits.leaf(root) is not None and visits.leaf(root).id == 3  # type: ignore


def test_mcts_grows_where_the_score_is_largest() -> None:
    room = make_room(TREE, VALUES)
    outcome = solve(room, "mcts:width=2", 6)
    # The first sample (A) is written whole; then the tree: B and C, of which B (0.9) goes on, to X and Y.
    # B: 0.6 + 0.5 sqrt(ln 4 / 3) = 0.94; C: 0.5 + 0.5 sqrt(ln 4) = 1.09, so C goes on, to Z and W.
    # B: 0.6 + 0.5 sqrt(ln 6 / 3) = 0.99; C: 0.57 + 0.39 = 0.95, so B again, where X has ended.
    assert asked(room)[:5] == [[""], ["", ""], ["B;", "B;"], ["C;", "C;"], ["B;Y;", "B;Y;"]]
    assert outcome.chosen is not None and outcome.chosen.answer == "Z"
    assert outcome.trace[0].kind == "sample"
    assert len(solve(make_room(TREE, VALUES), "mcts", 1).candidates) == 1


def test_mcts_ends_where_all_is_closed() -> None:
    outcome = solve(make_room({"": ["Z!$"]}, {}), "mcts:width=2", 30)
    assert answers(outcome) == ["Z!"] * 3


@pytest.mark.parametrize("name", ["beam", "dvts", "lookahead", "rebase", "particle", "mcts"])
@pytest.mark.parametrize("n", [1, 2, 5, 16])
def test_a_budget_of_n_is_the_tokens_of_n_samples(name: str, n: int) -> None:
    rng = np.random.default_rng(n)
    follow = {"*": ["A;", "B;", "C;"]}
    texts = [""]
    for _ in range(3):  # all answers have three steps and two tokens more
        texts = [t + s for t in texts for s in ("A;", "B;", "C;")]
    follow |= {text: ["Z!$"] for text in texts}
    values = {t[: 2 * k]: float(rng.random()) for t in texts for k in (1, 2, 3)}
    room = make_room(follow, values)
    outcome = solve(room, name, n)
    assert 0 < outcome.tokens <= n * 9 * (1.15 if name == "mcts" else 1.0)
    assert outcome.candidates and outcome.tokens == room.tokens[0]
    if name in ("beam", "dvts", "rebase", "particle"):
        assert len(outcome.candidates) == n and (name == "particle" or outcome.tokens == n * 9)


@pytest.mark.parametrize("name", ["beam", "rebase", "particle", "mcts", "lookahead"])
def test_what_comes_to_no_end_abstains(name: str) -> None:
    room = make_room({"*": ["A;"]}, {}, max_tokens=9)
    outcome = solve(room, name, 2)
    assert outcome.choice.index is None and outcome.candidates
    assert all(c.answer is None and not c.correct for c in outcome.candidates)
    assert outcome.trace[-1].note == "abstains" and outcome.tokens <= 2 * 9


def test_settings_and_rooms_that_do_not_fit_are_told() -> None:
    room = make_room(TREE)
    with pytest.raises(FlopwiseError, match=r"beam goes by process, .*--process RUN"):
        solve(room, "beam", 4)
    with pytest.raises(FlopwiseError, match="rebase: n is 0"):
        solve(make_room(TREE, {}), "rebase", 0)
    for name, says in [
        ("beam:width=0", "width is 0, must be at least 1"), ("beam:final=most", "final is 'most'"),
        ("dvts:luck", "by is 'luck'"), ("particle:heat=0", "heat is 0"), ("rebase:heat=nan", "heat is nan"),
        ("mcts:rule=ucb", "rule is 'ucb'"), ("lookahead:ahead=-1", "ahead is -1"),
    ]:  # fmt: skip
        with pytest.raises(FlopwiseError, match=says):
            make(name)
    checked = solve(room, "beam:checker", 2)  # the task's own checker takes no scorer
    assert checked.flops["score"] == 0.0 and checked.candidates


def test_names_say_what_is_not_as_by_default() -> None:
    for name in (
        "beam:process",
        "beam:reward:final=best:width=2",
        "particle:process:heat=0.5",
        "mcts:checker",
    ):
        assert make(name).name == make(make(name).name).name
    assert make("beam:width=2").name == "beam:process:width=2"
    strategy: Any = make("beam:reward")
    assert strategy.judges == ("reward",) and make("beam:checker").judges == ()  # type: ignore


def test_problems_are_searched_side_by_side() -> None:
    room = make_room(TREE, VALUES, problems=3)
    strategy = make("rebase")
    assert isinstance(strategy, Acting)
    outcomes = strategy.run(room, [2, 0, 1], 4, 7)
    assert [answers(o) for o in outcomes] == [answers(outcomes[0])] * 3
    assert len(asked(room)) == 3 and len(asked(room)[0]) == 12  # one call a round for all
    assert isinstance(room.scorers["process"], Worth)
    assert [o.tokens for o in outcomes] == [int(room.tokens[p]) for p in (2, 0, 1)]
