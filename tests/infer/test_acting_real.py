"""Strategies that act, on a small model: equal seeds, equal results, whoever is asked beside; servers too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from toy_search import ThinkingLetters, make_room

from flopwise.data.tasks import task
from flopwise.data.tokenizer import ByteTokenizer
from flopwise.errors import FlopwiseError
from flopwise.infer.asking import Asked
from flopwise.infer.engine import SampleBatch
from flopwise.infer.local import LocalEngine
from flopwise.infer.room import Room
from flopwise.infer.scorers import ProcessScorer
from flopwise.infer.strategies import make
from flopwise.infer.strategies.base import Acting, Outcome
from flopwise.models.config import ModelConfig
from flopwise.models.transformer import Transformer

NAMES = [
    "beam:width=2", "dvts:width=2", "lookahead", "rebase", "particle", "mcts:rule=puct", "revise", "mixed",
    "refine", "budget", "budget:tokens=6", "budget:tokens=6:at=step",
]  # fmt: skip
TOKENIZER = ByteTokenizer()


def model(n_scores: int = 0) -> Transformer:
    made = Transformer(ModelConfig.from_width(16, 1, TOKENIZER.vocab_size, 400), n_scores=n_scores)
    made.initialise(3)
    rng = np.random.default_rng(5)
    head = made.head.weight
    head.data.copy_(torch.from_numpy(rng.normal(size=head.shape) * 0.4))
    if not n_scores:
        # Letters of chains, and ends, come up often enough for steps to be steps.
        for text, more in (("0123456789+-*=>", 3.0), (";?!", 4.0)):
            for i in TOKENIZER.encode(text):
                head.data[i] += (
                    more * head.data.std() * torch.from_numpy(np.sign(rng.normal(size=head.shape[1])))
                )
    return made.eval()


@pytest.fixture(scope="module")
def room() -> Room:
    chain = task("chain")
    problems = chain.generate(3, 0)
    asked = Asked(TOKENIZER.encode_batch([p.prompt for p in problems]), [TOKENIZER.eos_id], "plain")
    scorer = ProcessScorer(LocalEngine(model(1)), chain, TOKENIZER)
    return Room(
        LocalEngine(model()), TOKENIZER, chain, problems, asked, 16, scorers={"process": scorer}
    )  # fmt: skip


def run(room: Room, name: str, problems: list[int], seed: int = 1, n: int = 4) -> list[Outcome]:
    strategy = make(name)
    assert isinstance(strategy, Acting)
    return strategy.run(room.fresh(), problems, n, seed)


def seen(outcome: Outcome) -> Any:
    """All of it; what a judge makes of a text depends on the batch in the last digits."""
    kinds = [(s.parent, s.kind, s.text, s.note) for s in outcome.trace if s.kind != "vote"]
    return kinds, [(c.text, c.tokens) for c in outcome.candidates], outcome.choice.index, outcome.tokens


@pytest.mark.parametrize("name", NAMES)
def test_results_depend_on_seed_and_problem_alone(room: Room, name: str) -> None:
    together = run(room, name, [0, 1, 2])
    assert [seen(o) for o in run(room, name, [2, 1])] == [seen(together[2]), seen(together[1])]
    assert [seen(o) for o in together] != [seen(o) for o in run(room, name, [0, 1, 2], seed=2)]
    for outcome in together:
        assert outcome.flops["prefill"] > 0 and outcome.flops["decode"] > 0 and outcome.candidates
        # Texts that come to no end are not judged, and the budget of thinking never asks a judge.
        assert outcome.flops["score"] > 0 or name.startswith(("revise", "mixed", "budget"))
        assert outcome.tokens < 4 * 16 + 4
        ids = [s.id for s in outcome.trace]
        assert ids == sorted(set(ids)) and all(s.parent is None or s.parent < s.id for s in outcome.trace)


class Server:
    """A server's engine in front of a written-down one: no sizes, no log-probabilities, no stop texts."""

    def __init__(self, inner: Any):
        self.inner = inner

    def sample(
        self, prompts: Any, n: int, limit: int, stop: Any, temperature: float, **rest: Any
    ) -> SampleBatch:
        out = self.inner.sample(prompts, n, limit, stop, temperature)
        for row, (length, done) in enumerate(zip(out.lengths, out.finished, strict=True)):
            if done:
                out.ids[row, length - 1] = stop[0]
        out.logprobs[:] = np.nan
        return out


def test_a_chat_behind_a_server_is_refused() -> None:
    room = make_room({"*": ["Z!$"]}, {})
    room.engine.chat = True  # type: ignore[attr-defined]
    with pytest.raises(FlopwiseError, match="beam: a server's chat cannot go on from what was written"):
        run(room, "beam", [0])


@pytest.mark.parametrize("name", ["beam:width=2", "rebase", "particle", "mcts", "revise", "budget"])
def test_a_server_can_be_searched_with(name: str) -> None:
    follow = {"": ["A;", "B;"], "A;": ["x!$"], "B;": ["Z!$"], "*": ["w!$"]}
    room = make_room(follow, {"A;": 0.1, "B;": 0.9, "B;Z!": 0.9, "A;x!": 0.1}, task=ThinkingLetters())
    room.engine = Server(room.engine)
    outcome = run(room, name, [0], n=6)[0]
    assert outcome.flops["prefill"] == outcome.flops["decode"] == 0.0 and outcome.tokens > 0
    steps = {s.text for s in outcome.trace if s.kind in ("step", "sample", "revise")}
    assert outcome.chosen is not None and steps
    # Pieces are longer than steps; what nobody goes on from is lost, here the rest of three poor answers.
    assert outcome.tokens <= 6 * 5 + 3 * 3
    if name in ("beam:width=2", "rebase", "particle"):
        assert steps <= {"A;", "B;", "Z!", "x!"} and outcome.chosen.answer == "Z"
