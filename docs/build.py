"""Write the pages that are made from the code: laws.md from the catalogue, cli.md from the commands' help.

`make docs` runs it; a test fails where a page is not what it would write.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent

OWN_LAW = """\
import numpy as np
import flopwise as fw
from flopwise.laws import Law, Parameter, register

register(Law(
    name="my_shifted", regime="pretraining", formula="loss = E + A * (D + s)^-b",
    parameters=(
        Parameter("E", (0.1, 3.0)), Parameter("A"), Parameter("b", (0.05, 1.0)),
        Parameter("s", (0.01, 1.0), unit="D"),
    ),
    source="my notebook", status="own", needs="token budgets over two decades",
))

D = np.geomspace(1e6, 1e9, 12)
table = {"D": D, "loss": 1.7 + 90 * (D + 2e6) ** -0.3}
fit = fw.fit("my_shifted", table)
print({name: round(value, 3) for name, value in fit.params.items()})
print(round(fit.predict(D=1e10).value, 4), fw.backtest("my_shifted", table, by="D").rms < 1e-6)
"""

LAWS = """\
# Laws

Made from the catalogue by `make docs`; `flopwise laws` prints it, `flopwise laws NAME` all about one. A law is
fitted to a table whose columns are named as its variables and target; `--map` renames them:

    flopwise fit runs.csv --law chinchilla --map N=n_params,loss=val_loss

How a fit works and how sure it is: [fitting.md](fitting.md). Which law to take: [choosing.md](choosing.md). What
came out of published data: [reproductions.md](reproductions.md).

A formula or a published value is *checked* (against the authors' code or data), from a *summary* (or a transcript
of the paper), *unverified* (from memory), or our *own*. Exponents depend on units and on whether a floor is
fitted: never compare them across papers. Parameters in **bold** are linear given the others, and solved for.

{contents}

{laws}
## A law of your own

On the command line a formula will do; its names that are no columns of the table are positive parameters:

    flopwise fit runs.csv --law "loss = E + A / D^b"

In Python, ten lines give it bounds, starts, units and a name; it gets derivatives, fitting, intervals,
back-tests, comparison and plots for free. Parameters are searched as logarithms (positive) unless `log=False`;
`start` is where searches begin (with `unit`, in multiples of that variable's geometric mean).

```python
{own}```
"""


def laws_page() -> str:
    """docs/laws.md."""
    from flopwise.laws.law import REGIMES, laws

    entries, contents = [], []
    for regime in REGIMES:
        entries.append(f"## {regime.capitalize()}\n")
        names = [law.name for law in laws(regime)]
        contents.append(f"**{regime.capitalize()}**: " + ", ".join(f"[`{n}`](#{n})" for n in names) + "\n")
        entries += [_law(law) for law in laws(regime)]
    return LAWS.format(laws="\n".join(entries), contents="\n".join(contents), own=OWN_LAW)


def _law(law: Any) -> str:
    columns = dict.fromkeys((*law.columns, *law.variables, law.target))
    lines = [
        f"### `{law.name}`\n", f"    {law.formula}\n",
        *([f"$${law.latex}$$\n"] if law.function is None else []),
        "- columns: " + "; ".join(f"`{c}` {law.unit(c)}" for c in columns),
        "- parameters: " + ", ".join(f"**`{p}`**" if p in law.linear else f"`{p}`" for p in law.names),
        f"- needs {law.needs}", f"- source: {law.source} ({law.status})",
    ]  # fmt: skip
    if law.from_counts:
        lines.append("- fitted by the likelihood of counts")
    for p in law.published:
        values = ", ".join(f"{name} {value:g}" for name, value in p.values.items())
        lines.append(f"- published: {values} ({p.source}; {p.status}{f'; {p.note}' if p.note else ''})")
    return "\n".join(lines) + "\n"


def cli_page() -> str:
    """docs/cli.md."""
    import typer

    from flopwise.cli import command_line

    group: Any = typer.main.get_command(command_line())
    parts = [
        "# Commands\n\nMade from the commands' own help by `make docs`. Numbers come with `--json`; exit "
        "code 0 on success, 2 on bad input with one line that says what to do.\n"
    ]
    for name, command in group.commands.items():
        parts.append(f"## `flopwise {name}`\n\n{' '.join((command.help or '').split())}\n")
        shown = [row for p in command.params if (row := _row(p))]
        if shown:
            parts.append("\n".join(["| | | default |", "|---|---|---|", *shown]) + "\n")
    return "\n".join(parts)


def _row(p: Any) -> str:
    if getattr(p, "hidden", False) or p.name == "help":
        return ""
    name = (p.metavar or p.name.upper()) if p.param_type_name == "argument" else ", ".join(p.opts)
    default = "" if p.default in (None, False) or callable(p.default) or p.required else f"`{p.default}`"
    text = getattr(p, "help", None) or ""
    return f"| `{name}` | {text.replace('|', '&#124;')} | {default} |"


def methods_page() -> str:
    """docs/methods.md: what is written between the marks comes from the registry."""
    from flopwise.posttrain.settings import METHODS

    rows = ["| method | makes | reads | |", "|---|---|---|---|"]
    for m in METHODS.values():
        reads = ", ".join(f"`{r}`" if needed else f"[`{r}`]" for r, needed in m.roles.items())
        rows.append(f"| `{m.name}` | {m.makes} | {reads} | {m.about} |")
    page = (DOCS / "methods.md").read_text(encoding="utf-8")
    before, _, rest = page.partition(MARKS[0])
    return before + "\n\n".join([MARKS[0], "\n".join(rows), MARKS[1]]) + rest.partition(MARKS[1])[2]


MARKS = "<!-- methods: made by docs/build.py -->", "<!-- end of methods -->"
PAGES = {"laws.md": laws_page, "cli.md": cli_page, "methods.md": methods_page}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")
        print(f"docs/{name}")
