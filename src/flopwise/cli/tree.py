"""`flopwise tree`: the family of a folder of runs, its compute and what each model gained."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flopwise.cli.shared import number
from flopwise.errors import FlopwiseError, one_line

if TYPE_CHECKING:
    from flopwise.records.family import Base, Family, Gain, Member
    from flopwise.records.outline import Group, Line

SORTS = ("compute", "gain", "name")
NAME_WIDTH, ROLES_WIDTH = 44, 60
SHOWN_TASKS, SHOWN_KINDS, SHOWN_BASES = 3, 3, 10
PAIRED = 1000
"""So many members at most are compared with their parents problem by problem, which reads files of both."""


def tree(
    folder: Annotated[Path, typer.Argument(help="Folder of runs.")] = Path("demo"),
    root: Annotated[str | None, typer.Option(help="Only this model (name or id) and its family.")] = None,
    depth: Annotated[int | None, typer.Option(help="Steps below a root that are shown.")] = None,
    sort: Annotated[str, typer.Option(help="Order of siblings: compute, gain or name.")] = "compute",
    kind: Annotated[str | None, typer.Option(help="Only models of this kind, or method, and above.")] = None,
    top: Annotated[int | None, typer.Option(help="Siblings alike shown one by one (default: fits).")] = None,
    base_flops: Annotated[
        str | None, typer.Option("--base-flops", help="Assumed FLOPs of a base that are not known, as 1e21.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """The family: every model under what it was made from, its compute, what it gained, and what all
    derivatives of a base cost as a multiple of the base."""
    from flopwise.records.family import Family
    from flopwise.records.outline import View, outline
    from flopwise.records.pairing import Pairing
    from flopwise.records.store import RunStore

    if sort not in SORTS:
        raise FlopwiseError(f"sort {sort!r:.40} must be one of {', '.join(SORTS)}")
    store = RunStore(folder)
    family = Family(store.records(), None if base_flops is None else number(base_flops, "C"))
    for line in store.problems:
        typer.echo(f"flopwise: left out {one_line(line)}", err=True)
    if as_json and top is None:
        top = len(family.members)
    lines = outline(family, View(root, depth, sort, kind, top))  # type: ignore[arg-type]
    shown = [line.member for line in lines if line.member is not None]
    if len(shown) <= PAIRED:
        Pairing(folder, family).refine(shown)
    if as_json:
        typer.echo(_json(family, lines))
        return
    if not lines:
        typer.echo(f"no model in {folder}; see `flopwise runs {folder}`")
        return
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 1000
    for text in [*_table(family, lines), "", *_account(family, shown)]:
        typer.echo(text if len(text) <= width else text[: width - 1] + "…")


def _table(family: Family, lines: list[Line]) -> list[str]:
    """The lines in columns, with the branches of the tree before their names."""
    rows: list[tuple[str, ...]] = [("", "model", "kind", "own", "with ancestors", "gain", "also from")]
    open_: list[bool] = []  # at each depth, whether siblings follow below
    for line in lines:
        del open_[line.depth :]
        guide = "".join("│  " if more else "   " for more in open_[1:])
        open_.append(not line.last)
        branch = "" if not line.depth else guide + ("└─ " if line.last else "├─ ")
        cells = _member(family, line.member) if line.member else _group(line.group)  # type: ignore[arg-type]
        rows.append((branch, *cells))
    names = [branch + name for branch, name, *_ in rows]
    rest = [row[2:] for row in rows]
    first = max(map(len, names))
    widths = [max(len(cell) for cell in column) for column in zip(*rest, strict=True)]
    out = []
    for name, cells in zip(names, rest, strict=True):
        kind, own, lineage, gain, roles = cells
        text = (
            f"{name:<{first}}  {kind:<{widths[0]}}  {own:>{widths[1]}}  {lineage:>{widths[2]}}  "
            f"{gain:<{widths[3]}}  {roles}"
        )
        out.append(text.rstrip())
    return out


def _member(family: Family, m: Member) -> tuple[str, ...]:
    from flopwise.records.outline import kind_of

    record = m.record
    kind = kind_of(record)
    if record.status != "done":
        kind += f" ({record.status})"
    others = [(role, p) for role, p in m.roles.items() if role != "data"]
    roles = ", ".join(f"{role} {family.names[p]}" for role, p in others)
    best = {g.task: g for g in reversed(m.gains)}  # of each task the metric that counts first
    tasks = [_gain(g, len(best) > 1) for g in reversed(list(best.values()))]
    more = f", {len(tasks) - SHOWN_TASKS} more" if len(tasks) > SHOWN_TASKS else ""
    lineage = _flops(m.lineage_flops, m.at_least)
    own = _flops(m.own_flops, record.spend.at_least)
    cells = kind, own, lineage, ", ".join(tasks[:SHOWN_TASKS]) + more, one_line(roles, ROLES_WIDTH)
    return one_line(m.name, NAME_WIDTH), *map(one_line, cells)


def _group(g: Group) -> tuple[str, ...]:
    kinds = [kind if len(g.kinds) == 1 else f"{n:,} {kind}" for kind, n in g.kinds]
    kind = ", ".join(kinds[:SHOWN_KINDS]) + (", ..." if len(kinds) > SHOWN_KINDS else "")
    below = f", {g.below:,} below" if g.below else ""
    gain = ""
    if g.gain is not None:
        scale, places = _units(g.metric)
        low, high = (f"{scale * value:+.{places}f}" for value in g.gain)
        gain = f"{g.metric} {low} to {high}"
    name = f"… {g.count:,} more{below}, {g.total_flops:.2e} in all"
    return name, *(one_line(cell) for cell in (kind, _range(g.own), _range(g.lineage), gain, ""))


def _range(values: tuple[float, float] | None) -> str:
    if values is None:
        return "-"
    low, high = (f"{v:.1e}" for v in values)
    return low if low == high else f"{low} to {high}"


def _flops(value: float | None, at_least: bool) -> str:
    if value is None or (at_least and not value):
        return "unknown"
    return f"{'≥ ' if at_least else ''}{value:.2e}"


def _gain(g: Gain, with_task: bool) -> str:
    """A change of a share in points, of a loss in nats; an asterisk where it is not of paired answers."""
    scale, places = _units(g.metric)
    error = "" if g.se is None else f" ± {scale * g.se:.{places}f}{'' if g.paired else '*'}"
    task = f"{g.task} " if with_task else ""
    return f"{task}{g.metric} {scale * g.value:+.{places}f}{error}"


def _units(metric: str | None) -> tuple[int, int]:
    """Shares in points with one place, losses as they are with three."""
    return (1, 3) if metric == "loss" else (100, 1)


def _account(family: Family, shown: list[Member]) -> Iterable[str]:
    """What the derivatives of each base cost beside it, and what the numbers above are."""
    for base in family.bases[:SHOWN_BASES]:
        yield _base(base)
    if len(family.bases) > SHOWN_BASES:
        yield f"and {len(family.bases) - SHOWN_BASES} more bases; see --json"
    broken = [m for m in family.members.values() if m.record.status != "done"]
    if broken:
        yield f"{len(broken)} runs that failed or have not ended are shown and not counted"
    if any(m.gains for m in shown):
        yield "gain: over the model it was made from, in points of accuracy or nats of loss, ± standard error"
    if any(g.se is not None and not g.paired for m in shown for g in m.gains):
        yield "* not compared problem by problem: the error is that of independent measurements"


def _base(base: Base) -> str:
    runs = f"{base.derived:,} run{'s' if base.derived != 1 else ''}"
    cost = f"{'at least ' if base.at_least else ''}{base.derived_flops:.2e} FLOPs"
    name = one_line(base.name, NAME_WIDTH)
    if base.multiple is None or base.flops is None:
        why = one_line(base.unknown or "it was not recorded", 80)
        return f"{name}: {runs} made of it cost {cost}; its own are unknown ({why}): try --base-flops"
    own = f"the {base.flops:.2e} {'assumed for it' if base.assumed else 'of the base itself'}"
    return f"{name}: {runs} made of it cost {cost}, {base.multiple:,.3g} times {own}"


def _json(family: Family, lines: list[Line]) -> str:
    """Roots with nested `children`; put together line by line, however deep the tree is."""
    bases = {b.id: b for b in family.bases}
    parts = ["["]
    for i, line in enumerate(lines):
        if i and line.depth <= lines[i - 1].depth:
            parts.append("]}" * (lines[i - 1].depth - line.depth + 1) + ",")
        values = _values(line.member, bases) if line.member else {"group": vars(line.group)}
        text = json.dumps(values, allow_nan=False, default=str)
        parts.append(f'\n{" " * (line.depth + 1)}{text[:-1]}, "children": [')
    depth = lines[-1].depth + 1 if lines else 0
    return "".join(parts) + "]}" * depth + "\n]"


def _values(m: Member, bases: dict[str, Base]) -> dict[str, Any]:
    record, base = m.record, bases.get(m.id)
    out: dict[str, Any] = {
        "id": m.id, "name": record.name, "kind": record.kind, "method": record.method,
        "status": record.status, "roles": m.roles, "own_flops": m.own_flops, "lineage_flops": m.lineage_flops,
        "at_least": m.at_least, "unknown": record.spend.unknown, "runs": m.size, "total_flops": m.total_flops,
        "gains": [vars(g) for g in m.gains],
    }  # fmt: skip
    if base is not None:
        out["derived"] = {
            "runs": base.derived, "flops": base.derived_flops, "at_least": base.at_least,
            "base_flops": base.flops, "assumed": base.assumed, "multiple": base.multiple,
        }  # fmt: skip
    return out
