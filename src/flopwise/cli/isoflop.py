"""`flopwise isoflop`: compute-optimal sizes from isoFLOP curves, or from the envelope of training curves."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flopwise.cli.shared import number
from flopwise.cli.tables import Json, Map, Seed, Source, Sql, Where, console, heard, table_of
from flopwise.errors import FlopwiseError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flopwise.laws.envelope import Envelope
    from flopwise.laws.isoflop import Isoflop
    from flopwise.laws.isoflop_lines import PowerLaw

METHOD_HELP = (
    "parabola or akima: the minimum of a curve in log N through the runs of each budget. envelope: the "
    "lowest of all training curves (checkpoints of --run) at each C."
)
OVER_HELP = "First take the best run over this column (a learning rate) at each N and D."
WINDOW_HELP = "Only sizes within this factor of the best one, as 8; a parabola is good near its minimum."


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command("isoflop")(isoflop)


def isoflop(
    table: Source, method: Annotated[str, typer.Option("--method", help=METHOD_HELP)] = "parabola",
    at: Annotated[list[str] | None, typer.Option("--at", help="Also tell N, D and loss at this C.")] = None,
    mapping: Map = None, where: Where = None, sql: Sql = None,
    scale: Annotated[str, typer.Option("--scale", help="Curves of the log of the loss, or plain.")] = "log",
    window: Annotated[float | None, typer.Option("--window", help=WINDOW_HELP)] = None,
    tolerance: Annotated[
        float, typer.Option("--tolerance", help="Runs within this share of C are one budget.")
    ] = 0.1,
    noise: Annotated[
        float | None, typer.Option("--noise", help="Scatter of a loss by seed, relative, as 0.003.")
    ] = None,
    repeats: Annotated[
        str, typer.Option("--repeats", help="Runs of one size and budget: mean (seeds) or min (a sweep).")
    ] = "mean",
    best_over: Annotated[str | None, typer.Option("--best-over", help=OVER_HELP)] = None,
    run: Annotated[str, typer.Option("--run", help="Column that tells runs apart, for envelope.")] = "run",
    smooth: Annotated[
        float, typer.Option("--smooth", help="With envelope: average checkpoints within this factor of C.")
    ] = 1.0,
    bias: Annotated[
        bool, typer.Option("--bias/--no-bias", help="Tell what the method gets wrong on a known law.")
    ] = True,
    seed: Seed = 0, as_json: Json = False,
) -> None:  # fmt: skip
    """The best model size for each compute budget, and how it grows with compute.

    The table has one run a row: N (parameters), D (tokens) or C (training FLOPs), and loss. Runs of equal C
    make a curve of loss against size; its minimum is the best size, and a line through the minima of all
    budgets is N* = G C^a. Train four or more sizes at each of four or more budgets, on both sides of the
    best.
    """
    columns, _ = table_of(table, mapping, where, sql, None)
    budgets = [number(text, "--at in FLOPs") for text in at or []]
    if best_over is not None:
        from flopwise.laws.tuning import best_of

        columns = best_of(columns, over=best_over)
    if method == "envelope":
        from flopwise.laws.envelope import envelope

        made: Envelope | Isoflop = envelope(columns, run=run, smooth=smooth, seed=seed)
    else:
        from flopwise.laws.isoflop import isoflop as find
        from flopwise.laws.isoflop_minimum import METHODS

        if method not in METHODS:
            raise FlopwiseError(
                f"isoflop: method {method!r} is unknown; there are {', '.join(METHODS)}, envelope"
            )
        with heard():
            made = find(
                columns, method, scale, window, tolerance, noise, repeats, bias=bias, seed=seed
            )  # fmt: skip
    laws = _laws(made)
    if budgets and not laws:
        raise FlopwiseError(f"isoflop: --at needs power laws; {made.warnings[0]}")
    told = [_at(laws, C) for C in budgets]
    if as_json:
        typer.echo(json.dumps(made.to_dict() | {"at": told}, indent=1))
        return
    _show(made, told)


def _laws(made: Envelope | Isoflop) -> dict[str, PowerLaw]:
    """The power laws to predict with; none where there are too few minima."""
    from flopwise.laws.isoflop import Isoflop

    if isinstance(made, Isoflop):
        return made.laws.get("weighted") or made.laws.get("plain", {})
    return made.laws


def _at(laws: Mapping[str, PowerLaw], C: float) -> dict[str, Any]:
    """N, D and loss at a budget, each with its interval."""
    out: dict[str, Any] = {"C": C}
    for name, law in laws.items():
        value, low, high = law.predict(C=C)
        out[name] = {"value": value, "interval": [low, high]}
    return out


def _show(made: Envelope | Isoflop, told: list[dict[str, Any]]) -> None:
    from rich.table import Table

    from flopwise.laws.isoflop import Isoflop

    out = console()
    if isinstance(made, Isoflop):
        out.print(f"{made.method}; {made.grouping}")
        out.print(_budgets(made))
        kinds: dict[str, dict[str, PowerLaw]] = made.laws
    else:
        out.print(
            f"envelope of {made.runs} training curves, {made.holders} of them somewhere lowest",
        )
        kinds = {"envelope": made.laws}
    lines = Table("power law", "exponent", "95% from", "to", "fit", box=None, pad_edge=False)
    for kind, laws in kinds.items():
        for law in laws.values():
            ends = law.interval("C")
            lines.add_row(law.formula, f"{law.exponents['C']:.4f}", *(f"{e:.4f}" for e in ends), kind)
    out.print(lines)
    for row in told:
        parts = []
        for name in ("N", "D", "loss"):
            low, high = row[name]["interval"]
            parts.append(f"{name} {row[name]['value']:.4g} ({low:.4g} to {high:.4g})")
        out.print(f"at C = {row['C']:.4g}: {', '.join(parts)}")
    if isinstance(made, Isoflop) and made.bias:
        _show_bias(out, made)
    for warning in made.warnings:
        out.print(f"mind: {warning}")


def _budgets(made: Isoflop) -> Any:
    from rich.table import Table

    table = Table("C", "runs", "N*", "D*", "loss*", "error of N*", "", box=None, pad_edge=False)
    for b in made.budgets:
        values = ["-"] * 4
        if b.N is not None and b.D is not None:
            values = [f"{b.N:.4g}", f"{b.D:.4g}", f"{b.loss:.4g}", f"{b.se:.1%}"]
        table.add_row(f"{b.C:.3g}", str(b.n), *values, b.warning)
    return table


def _show_bias(out: Any, made: Isoflop) -> None:
    """What the method returns for a law that is known."""
    assert made.bias is not None
    kind = "weighted" if "weighted" in made.bias.found else "plain"
    off = [f"{m - 1:+.1%}" for m in made.bias.minima if m is not None]
    out.print(
        f"bias: on noise-free losses of the Chinchilla law fitted to this table the same method finds "
        f"the exponent {made.bias.found[kind]:.4f} where {made.bias.true:.4f} is true, and N* off by "
        f"{', '.join(off)}; exponent less bias {made.bias.corrected[kind]:.4f}",
    )
