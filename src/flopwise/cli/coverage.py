"""`flopwise coverage`: from samples per problem to pass@k, measured and forecast."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from flopwise.cli.shared import Bar, number
from flopwise.cli.tables import Json, Map, Seed, Source, Sql, Where, console, heard, table_of
from flopwise.errors import FlopwiseError, one_line

if TYPE_CHECKING:
    from flopwise.laws.coverage import Forecast

K_HELP = "Numbers of samples, as 1,10,100,10k; those beyond the samples drawn are forecast."
BY_HELP = "Column, or several with a comma between, that names groups: a forecast for each model."
OVER_HELP = "Whether the interval is for the same problems, or for new ones like them."


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command("coverage")(coverage)


def coverage(
    table: Source, k: Annotated[str, typer.Option("--k", help=K_HELP)],
    by: Annotated[str | None, typer.Option("--by", help=BY_HELP)] = None,
    mapping: Map = None, where: Where = None, sql: Sql = None,
    over: Annotated[str, typer.Option("--over", help=OVER_HELP)] = "same",
    level: Annotated[float, typer.Option("--level", help="Of the interval.")] = 0.95,
    seed: Seed = 0, as_json: Json = False,
) -> None:  # fmt: skip
    """pass@k: the share of problems that at least one of k samples solves, measured and forecast.

    Give a table with one row per problem: n (samples drawn) and c (how many were right); n may differ. Or one
    row per sample: problem and correct. Or, where each problem was tried until it was solved: attempts and
    solved. Up to the samples drawn, pass@k is measured, without bias. Beyond, a law fitted to the counts
    says how many of the unsolved problems will fall. Draw 100 samples or more of 100 problems or more, and do
    not ask for more than 100 times what was drawn.

    Example: flopwise coverage counts.csv --k 1,100,10k --by model
    """
    from flopwise.laws.counts import check_ks
    from flopwise.laws.coverage import forecast
    from flopwise.laws.coverage_table import read_counts

    ks = [int(x) for x in check_ks(sorted({number(text, "--k") for text in k.split(",")}))]
    columns, _ = table_of(table, mapping, where, sql, None)
    names = [name.strip() for name in by.split(",") if name.strip()] if by else []
    with heard():
        groups = read_counts(columns, names)
    bar, made = Bar("coverage", quiet=as_json), []
    for i, (group, counts) in enumerate(groups.items()):
        try:
            one = forecast(counts, ks, seed, level=level, over=over)
        except FlopwiseError as e:
            if not group:
                raise
            raise FlopwiseError(f"{e} ({', '.join(map(one_line, group))})") from e
        made.append((group, one))
        bar((i + 1) / len(groups))
    bar.close()
    if as_json:
        rows = [dict(zip(names, group, strict=True)) | one.to_dict() for group, one in made]
        typer.echo(json.dumps(rows if names else rows[0], indent=1))
        return
    for group, one in made:
        _show(", ".join(map(one_line, group)), one)


def _show(group: str, made: Forecast) -> None:
    from rich.table import Table

    from flopwise.laws.coverage_forms import FORMS

    out = console()
    heading = f"{group}: " if group else ""
    out.print(f"{heading}{made.problems} problems, {made.n} samples of each (median), {made.solved} solved")
    shown = Table("k", "pass@k", f"{made.level:.0%} from", "to", "", box=None, pad_edge=False)
    for p in made.points:
        shown.add_row(
            f"{p.k}",
            f"{p.value:.4f}",
            f"{p.low:.4f}",
            f"{p.high:.4f}",
            "measured" if p.measured else "forecast",
        )
    out.print(shown)
    whom = "these problems" if made.over == "same" else "new problems like these"
    out.print(f"intervals are for {whom}")
    if made.points[-1].measured:
        return
    params = ", ".join(f"{name} = {value:.4g}" for name, value in made.params.items())
    out.print(f"form {made.form}: {FORMS[made.form].formula}; {params}")
    others = ", ".join(f"{name} {value:.3f}" for name, value in made.forms.items() if name != made.form)
    out.print(f"pass@{made.k} by its own curve {made.forms[made.form]:.3f}; by the others {others}")
    trial = ", ".join(f"{name} {error:+.3f}" for name, error in made.trial.items())
    out.print(f"tried on the first quarter of the samples, error at all of them: {trial}")
    for warning in made.warnings:
        out.print(f"mind: {warning}")
