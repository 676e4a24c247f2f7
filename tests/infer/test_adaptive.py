"""Adaptive stopping in a room: rounds, each prompt by itself, what is paid, and agreement with the replay."""

from __future__ import annotations

import pytest
from toy_search import Scripted, make_room

from flopwise.errors import FlopwiseError
from flopwise.infer.strategies import make
from flopwise.infer.strategies.base import Acting, Outcome

SURE = {"*": ["Z!$"]}


def solve(room, name: str, n: int, problems: int = 1) -> list[Outcome]:
    strategy = make(name)
    assert isinstance(strategy, Acting)
    return strategy.run(room, list(range(problems)), n, 0)


def test_agreement_stops_a_prompt_early():
    room = make_room(SURE)
    outcome = solve(room, "adaptive:dial=0.95", 16)[0]
    # Four samples agree: 1 - 2^-5 is above .95.
    assert len(outcome.candidates) == 4 and outcome.tokens == 4 * 3
    assert outcome.chosen is not None and outcome.chosen.correct
    last = outcome.trace[-1]
    assert last.kind == "stop" and last.note == "beta:0.95 after 4 of 16"
    assert [s.kind for s in outcome.trace[:4]] == ["sample"] * 4


def test_prompts_stop_by_themselves_and_the_others_go_on():
    engine_rows = {"0:": ["Z!$"], "1:": ["Y!$", "Z!$"]}

    class ByPrompt(Scripted):
        def write(self, whole, text, limit, stop):
            self.follow = {"*": engine_rows[whole]}
            return super().write(whole, text, limit, stop)

    room = make_room(SURE, problems=2)
    room.engine = ByPrompt({})
    first, second = solve(room, "adaptive", 10, 2)
    assert len(first.candidates) == 4 and len(second.candidates) == 10
    assert second.choice.votes == {"Y": 5.0, "Z": 5.0} and second.trace[-1].note == "all 10 samples taken"
    assert [len(call) for call in room.engine.asked] == [2] * 4 + [1] * 6
    # The prompt is read once, whatever the rounds.
    assert first.flops["prefill"] == second.flops["prefill"] > 0
    assert second.flops["decode"] == pytest.approx(2.5 * first.flops["decode"])


def test_the_verifier_takes_the_first_right_answer():
    room = make_room({"*": ["Y!$", "X!$", "Z!$", "W!$"]})
    outcome = solve(room, "adaptive:rule=accept", 12)[0]
    assert [c.answer for c in outcome.candidates] == ["Y", "X", "Z"]
    assert outcome.chosen is not None and outcome.chosen.answer == "Z" and outcome.flops["score"] == 0


def test_a_judge_is_paid_and_its_threshold_stops():
    values = {"Y!": 0.3, "X!": 0.8, "Z!": 0.95}
    room = make_room({"*": ["Y!$", "X!$", "Z!$"]}, values)
    strategy = "adaptive:process_last:rule=accept:dial=0.75"
    outcome = solve(room, strategy, 12)[0]
    assert [c.answer for c in outcome.candidates] == ["Y", "X"] and outcome.choice.index == 1
    assert outcome.flops["score"] == 2 * 10.0
    assert make(strategy).name == strategy and make(strategy).judges == ("process",)


def test_scores_stop_where_another_sample_is_not_worth_its_price():
    values = {"Y!": 0.3, "X!": 0.8, "Z!": 0.95}
    # By one's own belief, uniform values: after .3, .5 * .7^2 / 2 = .12; after .8, .33 * .2^2 / 2 = .007.
    for price, took in ((0.2, 1), (0.05, 2), (0.005, 3)):
        room = make_room({"*": ["Y!$", "X!$", "Z!$"]}, values)
        assert len(solve(room, f"adaptive:process_last:rule=score:dial={price}", 12)[0].candidates) == took


def test_rounds_are_as_large_as_asked_for():
    room = make_room(SURE)
    outcome = solve(room, "adaptive:every=3", 16)[0]
    assert len(outcome.candidates) == 6 and [len(call) for call in room.engine.asked] == [3, 3]
    assert len(solve(make_room(SURE), "adaptive:rule=window:dial=4:every=2", 16)[0].candidates) == 4
    assert len(solve(make_room(SURE), "adaptive:every=5", 3)[0].candidates) == 3
    assert len(solve(make_room(SURE), "adaptive:rule=votes:dial=0.05", 16)[0].candidates) < 4


@pytest.mark.parametrize(
    ("name", "says"),
    [("adaptive:rule=luck", "must be one of beta"), ("adaptive:dial=2", "confidence is 2"),
     ("adaptive:every=0", "every is 0"), ("adaptive:rule=score:by=logprob", "no chance to be right"),
     ("adaptive:rule=accept:by=taste", "by is 'taste'")],
)  # fmt: skip
def test_bad_settings_are_one_line(name, says):
    with pytest.raises(FlopwiseError, match=says):
        make(name)
    with pytest.raises(FlopwiseError, match="n is 0"):
        solve(make_room(SURE), "adaptive", 0)
    with pytest.raises(FlopwiseError, match="process"):
        solve(make_room(SURE), "adaptive:process_last:rule=accept", 4)
