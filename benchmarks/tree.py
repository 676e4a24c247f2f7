"""The family tree of ten thousand derivatives: reading, tree and page, against what one would write at once.

The peer reads each record with `json`, puts the runs into a `networkx` graph, finds every base's descendants
there and draws all of them with `rich`: no checks of the records, no gains, nothing folded. Each side runs
in a process of its own; processor seconds and peak memory are of that process, the median of `TURNS` turns.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

DERIVATIVES, TURNS = 10_000, 3


def run() -> list[dict[str, Any]]:
    """Rows: processor seconds of each part, peak memory, size of the page."""
    from benchmarks.tree_store import make

    with tempfile.TemporaryDirectory() as folder:
        root = make(Path(folder) / "runs", DERIVATIVES)
        setup = f"{DERIVATIVES:,} derivatives, {sum(1 for _ in root.iterdir()):,} runs, one thread"
        sides = {side: [_apart(side, root) for _ in range(TURNS)] for side in ("ours", "peer", "page")}
    middle = {
        side: {name: statistics.median(turn[name] for turn in turns) for name in turns[0]}
        for side, turns in sides.items()
    }
    ours, peer, page = middle["ours"], middle["peer"], middle["page"]
    parts = ("read", "tree", "draw", "all", "memory")
    rows = [
        _row(name, ours[name], "MB" if name == "memory" else "s", setup, peer[name], "json, networkx, rich")
        for name in parts
    ]
    rows.append(_row("lines drawn", ours["lines"], "lines", setup, peer["lines"], "json, networkx, rich"))
    rows += [_row(f"page: {name}", page[name], unit, setup) for name, unit in (("all", "s"), ("size", "MB"))]
    return rows


def _row(
    name: str, ours: float, unit: str, setup: str, peer: float | None = None, peer_name: str | None = None
) -> dict[str, Any]:
    return {
        "name": f"tree: {name}", "ours": ours, "unit": unit, "peer": peer, "peer_name": peer_name,
        "ratio": None if peer is None or not ours else peer / ours, "setup": setup,
    }  # fmt: skip


def _apart(side: str, root: Path) -> dict[str, float]:
    """One turn in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.tree", side, str(root)],
        stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1], check=True,
    )  # fmt: skip
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


class Laps:
    """Processor seconds between calls."""

    def __init__(self) -> None:
        self.start = self.last = time.process_time()
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str) -> None:
        now = time.process_time()
        self.seconds[name], self.last = now - self.last, now

    def end(self, **more: float) -> dict[str, float]:
        """All laps, their sum, and the peak memory of the process in MB."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return {**self.seconds, "all": self.last - self.start, "memory": peak, **more}


def ours(root: Path) -> dict[str, float]:
    """What `flopwise tree` does."""
    from flopwise.cli.tree import _table
    from flopwise.records.family import Family
    from flopwise.records.outline import View, outline
    from flopwise.records.pairing import Pairing
    from flopwise.records.store import RunStore

    lap = Laps()
    records = RunStore(root).records()
    lap("read")
    family = Family(records)
    lap("tree")
    lines = outline(family, View())
    Pairing(root, family).refine([line.member for line in lines if line.member])
    text = _table(family, lines)
    lap("draw")
    return lap.end(lines=len(text))


def peer(root: Path) -> dict[str, float]:
    """The obvious program."""
    import io

    import networkx as nx
    from rich.console import Console
    from rich.tree import Tree

    lap = Laps()
    records = {}
    for path in root.glob("*/run.json"):
        record = json.loads(path.read_text())
        records[record["id"]] = record
    lap("read")
    graph: Any = nx.DiGraph()
    for i, record in records.items():
        if record["kind"] not in ("data", "sample"):
            graph.add_node(i)
            graph.add_edges_from((p, i) for p in record["parents"] if records[p]["kind"] != "data")
    flops = {
        i: sum(r["spend"][f"{part}_flops"] or 0.0 for part in ("train", "generate", "score"))
        for i, r in records.items()
    }
    bases = [i for i in graph if records[i]["kind"] == "base" or records[i]["method"] == "cooldown"]
    multiples = {i: sum(flops[d] for d in nx.descendants(graph, i)) for i in bases}
    lap("tree")
    roots = [i for i in graph if not list(graph.predecessors(i))]
    out = Tree(f"{len(multiples)} bases")
    todo = [(i, out) for i in roots]
    seen = set(roots)
    while todo:
        i, above = todo.pop()
        branch = above.add(f"{records[i]['name']} {records[i]['kind']} {flops[i]:.2e}")
        for child in graph.successors(i):
            if child not in seen:
                seen.add(child)
                todo.append((child, branch))
    drawn = io.StringIO()
    Console(file=drawn, width=200).print(out)
    lap("draw")
    return lap.end(lines=drawn.getvalue().count("\n"))


def page(root: Path) -> dict[str, float]:
    """What `flopwise report` does with such a folder."""
    from flopwise.report.collect import collect
    from flopwise.report.html import render

    lap = Laps()
    results = collect(root)
    lap("collect")
    html = render(results)
    lap("render")
    return lap.end(size=len(html.encode()) / 1e6)


if __name__ == "__main__":
    print(json.dumps({"ours": ours, "peer": peer, "page": page}[sys.argv[1]](Path(sys.argv[2]))))
