"""Revision, refinement, chains side by side and thinking budgets, on texts that are written down."""

from __future__ import annotations

from dataclasses import replace

import pytest
from toy_search import CFG, Letters, Scripted, ThinkingLetters, make_room

from flopwise.errors import FlopwiseError
from flopwise.infer.room import Room
from flopwise.infer.strategies import make
from flopwise.infer.strategies.base import Acting, Outcome


def solve(room: Room, name: str, n: int) -> Outcome:
    strategy = make(name)
    assert isinstance(strategy, Acting)
    return strategy.run(room, [0], n, 0)[0]


def asked(room: Room) -> list[str]:
    assert isinstance(room.engine, Scripted)
    return [text for call in room.engine.asked for text in call]


def answers(outcome: Outcome) -> list[str]:
    return [c.text for c in outcome.candidates]


def test_a_revision_is_asked_for_after_the_last_answers() -> None:
    again = "\n\n0:"
    follow = {"": ["x!$"], f"x!{again}": ["y!$"], f"x!{again}y!{again}": ["Z!$"], "*": ["w!$"]}
    room = make_room(follow, {"x!": 0.2, "y!": 0.4, "Z!": 0.9})
    outcome = solve(room, "revise", 3)
    assert asked(room) == ["", f"x!{again}", f"x!{again}y!{again}"]
    # What stands before an answer is no part of it: not to its judge, nor to its length.
    assert answers(outcome) == ["x!", "y!", "Z!"] and [c.tokens for c in outcome.candidates] == [3, 3, 3]
    assert [c.steps for c in outcome.candidates] == [(0.2,), (0.2, 0.4), (0.2, 0.4, 0.9)]
    assert outcome.chosen is not None and outcome.chosen.answer == "Z" and outcome.tokens == 9
    assert [s.kind for s in outcome.trace[:5]] == ["sample", "extend", "revise", "extend", "revise"]
    short = make_room(follow, {}, max_tokens=3)
    assert len(solve(short, "revise:window=1", 3).candidates) == 3
    assert asked(short)[2] == f"y!{again}"


def test_a_trace_that_can_be_gone_on_from_is() -> None:
    follow = {"": ["x!$"], "x?": ["y!$"], "x?y?": ["Z!$"]}
    room = make_room(follow, task=ThinkingLetters(), max_tokens=3)
    outcome = solve(room, "revise:none:final=last", 3)
    assert answers(outcome) == ["x!", "x?y!", "x?y?Z!"] and outcome.flops["score"] == 0
    assert outcome.chosen is not None and outcome.chosen.answer == "Z" and outcome.chosen.correct
    assert outcome.tokens == 9
    votes = solve(make_room(follow, task=ThinkingLetters()), "revise:none", 3)
    assert votes.choice.votes == {"x": 1, "y": 1, "Z": 1} and votes.choice.tied == 3


def test_chains_are_revised_side_by_side_and_chosen_in_two_steps() -> None:
    follow = {"": ["x!$", "Z!$"], "x?": ["y!$"], "Z?": ["w!$"]}
    values = {"x!": 0.5, "x?y!": 0.6, "Z!": 0.55, "Z?w!": 0.1}
    room = make_room(follow, values, task=ThinkingLetters())
    outcome = solve(room, "mixed", 4)
    assert isinstance(room.engine, Scripted) and room.engine.asked == [["", ""], ["x?", "Z?"]]
    assert sorted(answers(outcome)) == ["Z!", "Z?w!", "x!", "x?y!"]
    # Of the first chain y (0.6) remains, of the second Z (0.55).
    assert outcome.choice.votes == pytest.approx({"y": 0.6, "Z": 0.55})
    assert outcome.chosen is not None and outcome.chosen.text == "x?y!"
    uneven = solve(make_room({"*": ["x!$"]}, {}), "mixed:chains=2", 5)
    assert len(uneven.candidates) == 5


def test_a_checker_sends_back_to_the_first_wrong_step() -> None:
    room = make_room({"": ["A;b;c!$"], "A;": ["B;c!$"], "A;B;": ["Z!$"]})
    outcome = solve(room, "refine:checker", 4)
    assert asked(room)[0] == "" and "A;" in asked(room) and asked(room)[-1] == "A;B;"
    assert answers(outcome) == ["A;b;c!", "A;B;c!", "A;B;Z!"]
    assert outcome.chosen is not None and outcome.chosen.correct
    assert [s.note for s in outcome.trace if s.kind == "cut"] == ["step 2 looks wrong", "step 3 looks wrong"]
    assert [s.note for s in outcome.trace if s.kind == "revise"][-1] == "no step looks wrong"
    assert outcome.tokens == 7 + 5 + 3  # only what was wrong is written again


def test_a_process_reward_model_is_a_critic_and_is_paid() -> None:
    values = {"A;": 0.9, "A;b;": 0.3, "A;b;c!": 0.2, "A;B;": 0.8, "A;B;c!": 0.7}
    room = make_room({"": ["A;b;c!$"], "A;": ["B;c!$"]}, values)
    outcome = solve(room, "refine", 4)
    assert answers(outcome) == ["A;b;c!", "A;B;c!"] and outcome.flops["score"] == 20.0
    assert [c.scores["value"] for c in outcome.candidates] == [0.2, 0.7]
    kept = solve(make_room({"": ["A;b;c!$"]}, values), "refine:process:threshold=0.1", 4)
    assert answers(kept) == ["A;b;c!"]


def test_refinement_ends_with_its_budget() -> None:
    room = make_room({"*": ["b;c!$"]})
    outcome = solve(room, "refine:checker", 3)
    assert answers(outcome) == ["b;c!"] * 3 and outcome.tokens == 15
    assert len(solve(make_room({"*": ["b;c!$"]}), "refine:checker", 1).candidates) == 1


def test_a_model_criticises_itself_in_words() -> None:
    room = make_room({"": ["x!$"], "*": ["Hm!$", "Z!$"]}, max_tokens=10)
    outcome = solve(room, "refine:self", 3)
    assert len(asked(room)) == 3 and asked(room)[1].startswith("x!\n\nFeedback on this solution")
    assert "Hm!" in asked(room)[2] and answers(outcome)[0] == "x!" and len(outcome.candidates) == 2
    assert [s.note for s in outcome.trace if s.kind == "score"] == ["feedback"]
    assert len(solve(make_room({"*": ["x!$"]}), "refine:self", 2).candidates) == 1


def test_thinking_is_forced_until_the_budget_is_spent() -> None:
    follow = {"": ["x!$"], "x?": ["y!$"], "x?y?": ["Z!$"], "x?y?Z?": ["W!$"]}
    plain = solve(make_room(follow, task=ThinkingLetters()), "budget", 1)
    assert answers(plain) == ["x!"] and plain.tokens == 3
    room = make_room(follow, task=ThinkingLetters())
    outcome = solve(room, "budget", 3)
    assert asked(room) == ["", "x?", "x?y?"] and answers(outcome) == ["x?y?Z!"]
    assert outcome.tokens == 9 and outcome.chosen is not None and outcome.chosen.correct
    forced = [s for s in outcome.trace if s.kind == "extend"]
    assert [(s.text, s.note) for s in forced] == [("?", "thinks on")] * 2


def test_thinking_is_cut_with_an_early_answer() -> None:
    follow = {"": ["A;B;Z;Y!$"]}
    for tokens, text in [(2, "A!"), (3, "A;B!"), (6, "A;B;Z!"), (9, "A;B;Z;Y!")]:
        room = make_room(follow, task=ThinkingLetters())
        outcome = solve(room, f"budget:tokens={tokens}", 1)
        assert answers(outcome) == [text] and outcome.tokens == tokens
        cuts = [s.note for s in outcome.trace if s.kind == "cut"]
        assert cuts == (["answers now"] if tokens < 9 else [])
    twice = solve(make_room(follow, task=ThinkingLetters()), "budget:tokens=3", 2)
    assert answers(twice) == ["A;B;Z!"] and twice.tokens == 6


def test_an_answer_that_was_opened_is_written_by_the_model() -> None:
    class Opening(ThinkingLetters):
        def answer_now(self, completion: str) -> str | None:
            return completion.rpartition("?")[0] + "?"

    room = make_room({"": ["a;b?c;d!$"], "a;b?": ["Z!$"]}, task=Opening())
    outcome = solve(room, "budget:tokens=6:answer=5", 1)
    assert answers(outcome) == ["a;b?Z!"] and outcome.tokens == 9
    endless = make_room({"": ["a;b?c;d!$"], "*": ["c;"]}, task=Opening(), max_tokens=20)
    lost = solve(endless, "budget:tokens=6:answer=2", 1)
    assert lost.choice.index is None and lost.tokens == 6 + 4 * 2


def test_every_step_can_be_thought_on() -> None:
    class Checked(ThinkingLetters):
        def think_on(self, completion: str) -> str | None:
            return None if completion.endswith("?;") else completion.rstrip(";!") + "?"

    room = make_room({"": ["A;"], "A?": [";"], "A?;": ["Z!$"], "A?;Z?": ["!$"]}, task=Checked())
    outcome = solve(room, "budget:tokens=8:at=step", 1)
    assert asked(room)[:3] == ["", "A?", "A?;"]
    assert outcome.chosen is not None and outcome.chosen.answer is not None


def test_a_task_that_says_nothing_of_thinking_is_refused() -> None:
    room = make_room({"*": ["Z!$"]}, task=Letters())
    with pytest.raises(FlopwiseError, match="task letters has no continuation and no early answer; take a"):
        solve(room, "budget", 2)
    for name, says in [
        ("budget:tokens=-1", "tokens is -1"), ("budget:at=word", "at is 'word'"),
        ("revise:window=0", "window is 0"),
        ("refine:reward", "by is 'reward', must be one of process, checker, self"),
        ("mixed:chains=-1", "chains is -1"), ("revise:nobody", "must be one of reward, process"),
    ]:  # fmt: skip
        with pytest.raises(FlopwiseError, match=says):
            make(name)


@pytest.mark.parametrize("name", ["revise:none", "mixed:none", "refine:checker", "refine:self"])
@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_a_budget_of_n_is_the_tokens_of_n_samples(name: str, n: int) -> None:
    outcome = solve(make_room({"*": ["a;b!$"]}), name, n)
    assert outcome.tokens <= 5 * n and outcome.candidates


def test_the_room_is_left_as_it_was() -> None:
    room = make_room({"*": ["a;b!$"]}, max_tokens=17)
    solve(room, "revise:none", 3)
    assert room.max_tokens == 17


def test_a_trace_is_not_forced_on_where_it_would_have_to_be_cut() -> None:
    follow = {"": ["x;y!$"], "x;y?": ["a;b;c!$"], "x;y?a;b;c?": ["a;b!$"]}
    outcome = solve(make_room(follow, task=ThinkingLetters(), max_tokens=60), "budget", 3)
    # The first answer takes 5 tokens, so 10 are left; the next takes 7, and 3 are too few for another.
    assert answers(outcome) == ["x;y?a;b;c!"] and outcome.tokens == 12


def test_thinking_leaves_room_to_answer() -> None:
    room = make_room({"*": ["A;"]}, task=ThinkingLetters(), max_tokens=300)
    assert isinstance(room.engine, Scripted)
    room.engine.cfg = replace(CFG, max_seq_len=100)
    outcome = solve(room, "budget:tokens=500", 1)
    assert outcome.tokens == 100 - 2 - 48 and outcome.chosen is not None and outcome.chosen.answer == "A"
