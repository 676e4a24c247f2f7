"""Search as a teacher: beam or best-first tree search over solution steps; the traces that hold are kept.

A step is written by the model; a value says which steps to go on from: a process reward model's chance that
the answer will be right, as the guide of tree search in arXiv 2406.03816 (Zhang et al., ReST-MCTS*) and of
beams in arXiv 2408.03314 (Snell et al., section 5.2), or how many written steps the task's own checker finds
wrong.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.flops.ledger import Ledger
from flopwise.flops.spend import Stopwatch
from flopwise.infer.local import LocalEngine
from flopwise.infer.steps import step_tokens
from flopwise.infer.tree import Frontier, Judge, Node, Piece, Search, Tree, Write, distinct, drive
from flopwise.posttrain.bench import Bench, Progress, load_model, model_fields
from flopwise.posttrain.rejection import pool, write_rows

if TYPE_CHECKING:
    from flopwise.records.folder import RunFolder

BLOCK = 256
"""Problems searched together."""


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
        prompts = self.bench.prompts(problems)
        found: list[list[str]] = [[] for _ in problems]
        searches = [self._rounds(Tree(p), problem, found[p]) for p, problem in enumerate(problems)]
        drive(
            searches,
            lambda asked, step: self._write(prompts, asked, seed * 31 + step),
            lambda asked: self._values(problems, prompts, asked),
        )
        return found

    def _rounds(self, tree: Tree, problem: Any, found: list[str]) -> Search:
        """Go on from the best open nodes of a problem until enough traces are found."""
        spec = self.spec
        frontier = Frontier([tree.root], keep=spec["search"] == "tree")
        for _ in range(spec["max_steps"]):
            if len(found) == spec["keep_per_problem"]:
                return
            children = yield from tree.grow(frontier.take(spec["width"]), spec["branch"], judged=False)
            for node in children:
                text = self.bench.tokenizer.decode(node.tokens)
                full = len(found) == spec["keep_per_problem"] or node.state != "done"
                if not full and text not in found and self.task.verify(problem, text):
                    found.append(text)
            frontier.add((yield from tree.judge(distinct([n for n in children if n.state == "open"]))))

    def _write(
        self, prompts: Sequence[Sequence[int]], asked: Sequence[Write], seed: int
    ) -> list[list[Piece]]:
        """Next steps of all nodes that were asked for; those that came to no end, or grew too long, are left
        out."""
        spec, eos = self.spec, self.bench.tokenizer.eos_id
        nodes = [(i, at, node) for i, a in enumerate(asked) for at, node in enumerate(a.nodes)]
        whole = [[*prompts[n.problem], *n.tokens] for _, _, n in nodes]
        pieces: list[list[Piece]] = [[] for _ in asked]
        room = self.engine.cfg.max_seq_len - max(map(len, whole))
        limit = min(spec["step_tokens"], room)
        if limit < 1:
            return pieces
        out = self.engine.sample(
            whole, spec["branch"], limit, [eos, *self.ends], spec["temperature"], seed=seed
        )
        self.ledger.used("sample", self.parents["init"].id, out.usage)
        self.written += len(out.lengths)
        for row in np.flatnonzero(out.finished).tolist():
            i, at, node = nodes[int(out.prompt_index[row])]
            ids = out.ids[row, : out.lengths[row]].tolist()
            new = tuple(ids[:-1] if ids[-1] == eos else ids)
            if len(node.tokens) + len(new) <= spec["max_tokens"]:
                logprob = float(out.logprobs[row].sum())
                pieces[i].append(Piece(at, new, logprob, ended=ids[-1] == eos))
        return pieces

    def _values(
        self, problems: Sequence[Any], prompts: Sequence[Sequence[int]], asked: Sequence[Judge]
    ) -> list[list[float]]:
        """How good each node looks: log-odds of the reward model, or minus the steps that are wrong."""
        nodes = [node for a in asked for node in a.nodes]
        found = iter(self._checked(problems, nodes) if self.scorer is None else self._rated(prompts, nodes))
        return [[next(found) for _ in a.nodes] for a in asked]

    def _checked(self, problems: Sequence[Any], nodes: Sequence[Node]) -> list[float]:
        texts = self.bench.tokenizer.decode_batch([n.tokens for n in nodes])
        return [
            -float(sum(not s.ok for s in self.task.steps(text.rstrip(",; \n"), problems[n.problem])))
            for n, text in zip(nodes, texts, strict=True)
        ]

    def _rated(self, prompts: Sequence[Sequence[int]], nodes: Sequence[Node]) -> list[float]:
        assert self.scorer is not None
        start = time.perf_counter()
        whole = [[*prompts[n.problem], *n.tokens] for n in nodes]
        values, flops = self.scorer.reward(whole)
        read = sum(map(len, whole))
        self.ledger.post("reward", self.parents["reward"].id, read, flops, time.perf_counter() - start)
        return [float(v) for v in values]
