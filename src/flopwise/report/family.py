"""The family tree: every model under what it was made from, its own FLOPs and its lineage's."""

from __future__ import annotations

from typing import Any

from flopwise.records.record import RunRecord
from flopwise.report.runs import Runs, number

NOT_MODELS = ("data", "fit", "plan", "sample", "evaluate")


def collect_family(runs: Runs) -> dict[str, Any]:
    """The `family` part of the results (keys: see `collect`)."""
    members = {r.id: r for r in runs.done.values() if r.kind not in NOT_MODELS}
    children: dict[str | None, list[RunRecord]] = {}
    for r in members.values():
        children.setdefault(_parent(r, members), []).append(r)
    trees = [_node(r, children, runs) for r in children.get(None, [])]
    trees.sort(key=lambda t: (t["n_params"] or 0.0, t["seed"]))
    missing = [] if trees else ["No model has been finished in this folder."]
    return {"trees": trees, "bases": _bases(members), "missing": missing}


def _parent(record: RunRecord, members: dict[str, RunRecord]) -> str | None:
    """What the tree hangs a run under: the model whose weights it starts from, or that it sampled from."""
    wanted = [record.extra.get("sampled_from"), *(record.roles.get(r) for r in ("init", "model", "samples"))]
    return next((p for p in [*wanted, *record.parents] if p in members), None)


def _node(record: RunRecord, children: dict[str | None, list[RunRecord]], runs: Runs) -> dict[str, Any]:
    made = [_node(c, children, runs) for c in children.get(record.id, [])]
    # The piece a trunk goes on with comes last, so that branches stand beside what they left.
    made.sort(key=lambda n: (n["method"] == "trunk", n["kind"] != "pretrain", n["lineage_flops"]))
    judged = runs.samples.get(record.id)
    accuracy = judged.metrics.get("greedy") if judged else None
    loss = record.metrics.get("loss")
    return {
        "id": record.id,
        "name": record.name,
        "kind": record.kind,
        "method": record.method,
        "seed": record.seed,
        "n_params": number((record.model or {}).get("n_params_total")),
        "width": record.extra.get("width"),
        "own_flops": record.spend.total_flops,
        "lineage_flops": record.lineage_spend.total_flops,
        "loss": loss.value if loss else None,
        "accuracy": accuracy.value if accuracy else None,
        "held_out": bool(record.extra.get("held_out")),
        "size": 1 + sum(c["size"] for c in made),
        "total_flops": record.spend.total_flops + sum(c["total_flops"] for c in made),
        "children": made,
    }


def _bases(members: dict[str, RunRecord]) -> list[dict[str, Any]]:
    """Each pretrained model that others were made from: its lineage's FLOPs against the sum of theirs."""
    out = []
    for base in members.values():
        if base.kind != "pretrain" or base.method == "trunk":
            continue
        made = [r for r in members.values() if r.kind != "pretrain" and base.id in _ancestors(r, members)]
        if made:
            spent = sum(r.spend.total_flops for r in made)
            own = base.lineage_spend.total_flops
            out.append(
                {
                    "id": base.id,
                    "name": base.name,
                    "base_flops": own,
                    "derived": len(made),
                    "derived_flops": spent,
                    "ratio": spent / own if own else None,
                }
            )
    return sorted(out, key=lambda b: -b["derived_flops"])


def _ancestors(record: RunRecord, members: dict[str, RunRecord]) -> set[str]:
    seen: set[str] = set()
    todo = list(record.parents)
    while todo:
        run = todo.pop()
        if run in members and run not in seen:
            seen.add(run)
            todo += members[run].parents
    return seen
