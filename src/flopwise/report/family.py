"""The family tree: every model under what it was made from, its own FLOPs and its lineage's, and its gain."""

from __future__ import annotations

from typing import Any

from flopwise.records.family import Family, Gain, Member
from flopwise.records.outline import Group, Line, View, outline
from flopwise.records.pairing import Pairing
from flopwise.report.format import flop, ratio
from flopwise.report.runs import Runs, number

LINES, DEPTH = 1000, 40
"""What a page takes: so many lines, so many steps below a root; the rest is in groups of siblings alike."""
PAIRED = 300
"""So many members, first shown first, have their gains compared problem by problem: that reads files."""
ALL_OPEN = 150
"""A tree of so many lines is shown whole; of a larger one the first steps, and the rest on request."""


def collect_family(runs: Runs) -> dict[str, Any]:
    """The `family` part of the results (keys: see `collect`)."""
    family = Family(runs.done.values())
    lines = outline(family, View(depth=DEPTH, lines=LINES))
    shown = [line.member for line in lines if line.member is not None]
    Pairing(runs.root, family).refine(shown[:PAIRED])
    missing = [] if lines else ["No model has been finished in this folder."]
    bases = [
        {
            "id": b.id, "name": b.name, "base_flops": b.flops, "unknown": b.unknown, "derived": b.derived,
            "derived_flops": b.derived_flops, "at_least": b.at_least, "ratio": b.multiple,
        }
        for b in family.bases
    ]  # fmt: skip
    return {
        "trees": _nested(family, lines, runs), "bases": bases, "members": len(family.members),
        "shown": len(lines), "all_open": len(lines) <= ALL_OPEN, "missing": missing,
    }  # fmt: skip


def family_headline(results: dict[str, Any]) -> dict[str, Any]:
    """What a folder of very many models says first: how many, and what they cost beside their bases."""
    f = results["family"]
    first = next((b for b in f.get("bases", []) if b["ratio"] is not None), None)
    answer = f"{f.get('members', 0):,} models, {flop(results['overview']['total_flops'])} in all"
    expects = None
    if first:
        times = ratio(first["ratio"])
        expects = f"The {first['derived']:,} made of {first['name']} cost {times} what it cost itself."
    return {"answer": answer, "expects": expects, "findings": []}


def _nested(family: Family, lines: list[Line], runs: Runs) -> list[dict[str, Any]]:
    """Roots with their children; each line hangs under the last one that is a step higher."""
    levels: list[list[dict[str, Any]]] = [[]]
    for line in lines:
        node = _member(family, line.member, runs) if line.member else _group(line.group)
        del levels[line.depth + 1 :]
        levels[line.depth].append(node | {"depth": line.depth})
        levels.append(levels[line.depth][-1]["children"])
    return levels[0]


def _member(family: Family, m: Member, runs: Runs) -> dict[str, Any]:
    record = m.record
    judged = runs.samples.get(m.id)
    accuracy = judged.metrics.get("greedy") if judged else None
    loss = record.metrics.get("loss")
    return {
        "id": m.id,
        "name": record.name,
        "kind": record.kind,
        "method": record.method,
        "seed": record.seed,
        "n_params": number((record.model or {}).get("n_params_total")),
        "width": record.extra.get("width"),
        "own_flops": m.own_flops,
        "lineage_flops": m.lineage_flops,
        "at_least": m.at_least,
        "loss": loss.value if loss else None,
        "accuracy": accuracy.value if accuracy else None,
        "gain": _gain(m.gain) if m.gain else None,
        "gains": [_gain(g) for g in m.gains],
        "roles": {role: family.names[p] for role, p in m.roles.items() if role != "data"},
        "held_out": bool(record.extra.get("held_out")),
        "size": m.size,
        "total_flops": m.total_flops,
        "children": [],
    }


def _gain(g: Gain) -> dict[str, Any]:
    return {**vars(g), "share": g.metric != "loss"}


def _group(g: Group | None) -> dict[str, Any]:
    assert g is not None
    return {
        "group": g.count, "below": g.below, "kinds": [{"kind": kind, "runs": n} for kind, n in g.kinds],
        "total_flops": g.total_flops, "own": g.own, "lineage": g.lineage, "gain_range": g.gain,
        "metric": g.metric, "share": g.metric != "loss", "size": g.count + g.below, "children": [],
    }  # fmt: skip
