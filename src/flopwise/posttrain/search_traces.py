"""Search as a teacher: beam or best-first tree search over solution steps; the traces that hold are kept.

A step is written by the model; a value says which steps to go on from: a process reward model's chance that
the answer will be right, as the guide of tree search in arXiv 2406.03816 (Zhang et al., ReST-MCTS*) and of
beams in arXiv 2408.03314 (Snell et al., section 5.2), or how many written steps the task's own checker finds
wrong.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.flops.ledger import Ledger
from flopwise.flops.spend import Stopwatch
from flopwise.infer.local import LocalEngine
from flopwise.infer.steps import step_tokens
from flopwise.posttrain.bench import Bench, Progress, load_model, model_fields
from flopwise.posttrain.rejection import pool, write_rows

if TYPE_CHECKING:
    from flopwise.records.folder import RunFolder

BLOCK = 256
"""Problems searched together."""


@dataclass(frozen=True)
class Node:
    """What has been written so far for a problem: token ids, their log-probability, and how good it looks."""

    problem: int
    tokens: tuple[int, ...] = ()
    logprob: float = 0.0
    value: float = 0.0


Valuer = Callable[[Sequence[Node]], Sequence[float]]


def run_step(folder: RunFolder, parents: dict[str, RunFolder], progress: Progress) -> None:
    """Search for solutions of training problems with parent `init`, guided by parent `reward` (a process
    reward model) or by the task's checker; keep up to `keep_per_problem` distinct verified traces of each.

    Raises:
        FlopwiseError: no problem was solved.
    """
    from flopwise.records.record import Metric

    watch, ledger = Stopwatch(), Ledger()
    bench = Bench.open(folder, parents)
    spec = bench.spec
    searcher = Searcher(bench, parents, ledger)
    problems = pool(bench)
    rows, solved = [], 0
    for start in range(0, len(problems), BLOCK):
        part = problems[start : start + BLOCK]
        found = searcher.search(part, bench.folder.seed * 1_000_003 + start)
        for problem, texts in zip(part, found, strict=True):
            solved += bool(texts)
            rows += [{"prompt": problem.prompt, "completion": text} for text in texts]
        progress(min(0.99, (start + BLOCK) / len(problems)))
    if not rows:
        raise FlopwiseError(
            f"search-traces: none of {len(problems)} problems was solved; start from a better model, or "
            "raise width, branch or max_steps"
        )
    write_rows(folder, rows)
    p, n = solved / len(problems), len(problems)
    folder.finish(
        metrics={
            "solved": Metric(value=p, se=(p * (1 - p) / n) ** 0.5, n=n),
            "kept": Metric(value=len(rows), n=n),
            "steps_written": Metric(value=searcher.written, n=n),
        },
        spend=watch.spend(ledger, tokens=sum(r["tokens"] for r in ledger.rows())),
        model=model_fields(bench.model),
        data={"corpus": bench.asked.task, "tokens_seen": 0, "tokens_unique": None, "modality": "text"},
        extra={"sampled_from": parents["init"].id, "search": spec["search"]},
    )  # fmt: skip


class Searcher:
    """Searches many problems side by side: each round, every problem goes on from its best open nodes.

    A beam forgets the nodes it does not go on from; a tree keeps them open and may come back (best first).
    """

    def __init__(self, bench: Bench, parents: dict[str, RunFolder], ledger: Ledger):
        self.bench, self.spec, self.ledger, self.parents = bench, bench.spec, ledger, parents
        self.task = bench.asked.open_task()
        self.engine = LocalEngine(bench.model.eval())
        self.scorer = LocalEngine(load_model(parents["reward"]).eval()) if "reward" in parents else None
        self.ends = step_tokens(bench.tokenizer, self.spec["step_ends"])
        self.written = 0

    def search(self, problems: Sequence[Any], seed: int) -> list[list[str]]:
        """Verified traces of each problem."""
        spec, prompts = self.spec, self.bench.prompts(problems)
        open_nodes = [[Node(p)] for p in range(len(problems))]
        found: list[list[str]] = [[] for _ in problems]
        for step in range(spec["max_steps"]):
            chosen: list[Node] = []
            for p, nodes in enumerate(open_nodes):
                if len(found[p]) < spec["keep_per_problem"]:
                    nodes.sort(key=lambda n: (-n.value, -n.logprob, n.tokens))
                    chosen += nodes[: spec["width"]]
                    rest = nodes[spec["width"] :] if spec["search"] == "tree" else []
                    open_nodes[p] = rest
                else:
                    open_nodes[p] = []
            if not chosen:
                break
            begun, ended = self._write(prompts, chosen, seed * 31 + step)
            for node in ended:
                text = self.bench.tokenizer.decode(node.tokens)
                texts = found[node.problem]
                full = len(texts) == spec["keep_per_problem"]
                if not full and text not in texts and self.task.verify(problems[node.problem], text):
                    texts.append(text)
            for node, value in zip(begun, self._values(problems, prompts, begun), strict=True):
                valued = Node(node.problem, node.tokens, node.logprob, value)
                open_nodes[node.problem].append(valued)
        return found

    def _write(
        self, prompts: Sequence[Sequence[int]], nodes: Sequence[Node], seed: int
    ) -> tuple[list[Node], list[Node]]:
        """`branch` next steps of each node: those that go on, and answers that came to their end."""
        spec, eos = self.spec, self.bench.tokenizer.eos_id
        whole = [[*prompts[n.problem], *n.tokens] for n in nodes]
        room = self.engine.cfg.max_seq_len - max(map(len, whole))
        limit = min(spec["step_tokens"], room)
        if limit < 1:
            return [], []
        out = self.engine.sample(
            whole, spec["branch"], limit, [eos, *self.ends], spec["temperature"], seed=seed
        )
        self.ledger.used("sample", self.parents["init"].id, out.usage)
        self.written += len(out.lengths)
        begun: dict[tuple[int, tuple[int, ...]], Node] = {}
        ended: dict[tuple[int, tuple[int, ...]], Node] = {}
        for i in np.flatnonzero(out.finished).tolist():
            node, ids = nodes[int(out.prompt_index[i])], out.ids[i, : out.lengths[i]].tolist()
            tokens = node.tokens + tuple(ids[:-1] if ids[-1] == eos else ids)
            if len(tokens) > spec["max_tokens"]:
                continue
            grown = Node(node.problem, tokens, node.logprob + float(out.logprobs[i].sum()))
            (ended if ids[-1] == eos else begun).setdefault((node.problem, tokens), grown)
        return list(begun.values()), list(ended.values())

    def _values(
        self, problems: Sequence[Any], prompts: Sequence[Sequence[int]], nodes: Sequence[Node]
    ) -> list[float]:
        """How good each node looks: log-odds of the reward model, or minus the steps that are wrong."""
        if not nodes:
            return []
        if self.scorer is None:
            texts = self.bench.tokenizer.decode_batch([n.tokens for n in nodes])
            return [
                -float(sum(not s.ok for s in self.task.steps(text.rstrip(",; \n"), problems[n.problem])))
                for n, text in zip(nodes, texts, strict=True)
            ]
        start = time.perf_counter()
        whole = [[*prompts[n.problem], *n.tokens] for n in nodes]
        values, flops = self.scorer.reward(whole)
        read = sum(map(len, whole))
        self.ledger.post("reward", self.parents["reward"].id, read, flops, time.perf_counter() - start)
        return [float(v) for v in values]
