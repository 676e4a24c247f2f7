"""Search over steps: guided by the checker or by a reward model, kept open as a tree or cut to a beam."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flopwise.data.prepare import PreparedData
from flopwise.data.tasks.countdown import Problem, attempts, verify
from flopwise.errors import FlopwiseError
from flopwise.flops.ledger import Ledger
from flopwise.infer.engine import SampleBatch, Usage
from flopwise.infer.steps import step_tokens
from flopwise.posttrain import search_traces
from flopwise.posttrain.bench import Bench
from flopwise.posttrain.rejection import read_rows
from flopwise.posttrain.search_traces import Searcher
from flopwise.posttrain.settings.synthetic import SearchSection
from flopwise.records.store import RunStore

PROBLEM = Problem((7, 3, 3), 24)
"""One way alone: 7*3=21,21+3=24."""


class Writer:
    """In place of an engine: writes the next step that `next_step(text so far, i)` gives as its sample i."""

    def __init__(self, tokenizer: Any, next_step: Callable[[str, int], str], value: Callable[[str], float]):
        self.tokenizer, self.next_step, self.value = tokenizer, next_step, value
        self.asked: list[str] = []
        self.cfg = type("Cfg", (), {"max_seq_len": 96})

    def sample(
        self, prompts: Any, n: int, limit: int, stop: Any, temperature: float, seed: int
    ) -> SampleBatch:
        rows = []
        for prompt in prompts:
            text = self.tokenizer.decode(prompt)
            self.asked.append(text)
            for i in range(n):
                step = self.next_step(text, i)
                ids = self.tokenizer.encode(step.removesuffix("$"))
                rows.append([*ids, self.tokenizer.eos_id] if step.endswith("$") else ids)
        lengths = np.array([len(r) for r in rows])
        ids = np.full((len(rows), lengths.max()), -1, dtype=np.int32)
        for row, whole in zip(ids, rows, strict=True):
            row[: len(whole)] = whole
        return SampleBatch(
            ids, lengths, np.zeros(ids.shape, np.float32), np.repeat(np.arange(len(prompts)), n),
            np.tile(np.arange(n), len(prompts)), np.array([r[-1] in stop for r in rows]), Usage(1, 2, 10.0),
        )  # fmt: skip

    def reward(self, whole: Sequence[Sequence[int]]) -> tuple[np.ndarray, float]:
        return np.array([self.value(self.tokenizer.decode(w)) for w in whole]), 5.0


@pytest.fixture
def search(rare_store: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """search(next_step, value=None, ...): traces of PROBLEM, the writer, and the ledger."""

    def run(
        next_step: Callable[[str, int], str], value: Callable[[str], float] | None = None, **settings: Any
    ) -> tuple[list[str], Writer, Ledger]:
        data, init = rare_store.folder("data"), rare_store.folder("init")
        writer = Writer(PreparedData(data.path).tokenizer, next_step, value or (lambda text: 0.0))
        monkeypatch.setattr(search_traces, "LocalEngine", lambda model: writer)
        spec = SearchSection.model_validate(settings).spec()
        folder = RunStore(tmp_path).prepare("synthesize", "search-traces", spec, {}, 0, "s")
        parents = {"data": data, "init": init} | ({"reward": init} if value else {})
        ledger = Ledger()
        found = Searcher(Bench.open(folder, parents), parents, ledger).search([PROBLEM], 0)
        return found[0], writer, ledger

    return run


def every_way(text: str, i: int) -> str:
    """The i-th of all first steps, or of all that may follow one."""
    written = text.partition(":")[2]
    ways = sorted({way for way, _ in attempts(PROBLEM.key[0])})
    if not written:
        firsts = sorted({way.split(",")[0] for way in ways})
        return firsts[i % len(firsts)] + ","
    lasts = [way.split(",")[1] for way in ways if way.startswith(written)] or ["1+1=2"]
    return lasts[i % len(lasts)] + "!$"


def test_a_wide_beam_finds_the_only_way(search: Any) -> None:
    found, _, ledger = search(every_way, width=9, branch=9, max_steps=2)
    assert found == ["7*3=21,21+3=24!"]
    assert [(r["kind"], r["flops"]) for r in ledger.rows()] == [("sample", 20.0)]


def test_the_checker_goes_on_from_steps_that_hold(search: Any) -> None:
    def next_step(text: str, i: int) -> str:
        if text.endswith(":"):
            return "7*3=22," if i == 0 else "7*3=21,"
        return "21+3=24!$"

    found, writer, _ = search(next_step, width=1, branch=2)
    assert found == ["7*3=21,21+3=24!"]
    assert writer.asked == ["7 3 3=24:", "7 3 3=24:7*3=21,"]  # never from the wrong step


def misled(text: str) -> float:
    """A reward model that likes the first step of a dead end best."""
    return {"7+3=10": 2.0, "7*3=21": 1.0}.get(text.partition(":")[2].split(",")[0], 0.0)


def test_a_tree_comes_back_where_a_beam_is_lost(search: Any) -> None:
    settings = {"width": 1, "branch": 9, "max_steps": 4}
    assert search(every_way, misled, search="beam", **settings)[0] == []
    found, writer, ledger = search(every_way, misled, search="tree", **settings)
    assert found == ["7*3=21,21+3=24!"]
    assert writer.asked[1].endswith("7+3=10,") and writer.asked[2].endswith("7*3=21,")
    assert ledger.total("score_flops") > 0 and {r["kind"] for r in ledger.rows()} == {"sample", "reward"}


def test_it_stops_where_enough_is_found_or_nothing_is_open(search: Any) -> None:
    many, writer, _ = search(
        lambda text, i: "7*3=21,21+3=24!$" if i % 2 else "3*7=21,21+3=24!$", branch=4, keep_per_problem=1
    )
    assert len(many) == 1 and writer.asked == ["7 3 3=24:"]
    none, writer, _ = search(lambda text, i: "1", branch=2, max_steps=5)  # no step comes to its end
    assert none == [] and len(writer.asked) == 1


def test_traces_do_not_grow_beyond_their_limit(search: Any) -> None:
    found, writer, _ = search(lambda text, i: "7+3=10?", width=1, branch=1, max_steps=50, max_tokens=20)
    assert found == [] and len(writer.asked) <= 4


def test_the_step_keeps_distinct_verified_traces(
    step: Any, rare_store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = PreparedData(rare_store.folder("data").path).tokenizer

    def next_step(text: str, i: int) -> str:
        problem = Problem.parse(text.split(":")[0])
        ways = problem.solutions
        return ways[i % len(ways)] + "!$"

    monkeypatch.setattr(
        search_traces, "LocalEngine", lambda model: Writer(tokenizer, next_step, lambda text: 0.0)
    )
    folder = step("search-traces", init="init", problems=8, branch=6, keep_per_problem=2)
    rows, record = read_rows(folder), folder.record()
    assert all(verify(Problem.parse(r["prompt"]), r["completion"]) for r in rows)
    assert len({(r["prompt"], r["completion"]) for r in rows}) == len(rows) >= 8
    assert record.metrics["solved"].value == 1 and record.metrics["kept"].value == len(rows)
    with pytest.raises(FlopwiseError, match="none of 3 problems was solved"):
        monkeypatch.setattr(
            search_traces, "LocalEngine", lambda m: Writer(tokenizer, lambda t, i: "1!$", lambda t: 0.0)
        )
        step("search-traces", init="init", problems=3)


def test_a_real_engine_writes_steps(step: Any) -> None:
    """An untrained model solves nothing; that this is said shows that its steps were read and judged."""
    with pytest.raises(FlopwiseError, match="none of 4 problems"):
        step("search-traces", init="init", problems=4, width=2, branch=2, max_steps=3, seed=1)


def test_steps_end_at_tokens_that_end_them(rare_store: RunStore) -> None:
    tokenizer = PreparedData(rare_store.folder("data").path).tokenizer
    ids = step_tokens(tokenizer, ",?")
    assert {tokenizer.encode(",")[0], tokenizer.encode("?")[0]} <= set(ids)
    assert tokenizer.encode("7")[0] not in ids
    with pytest.raises(FlopwiseError, match="no token ends in any of"):
        step_tokens(tokenizer, "\u2603")
