"""Write the pages that are made from the code: laws.md from the catalogue, cli.md from the commands' help.

`make docs` runs it; a test fails where a page is not what it would write.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent

STATUS = {
    "checked": "formula checked against the authors' code or data",
    "summary": "formula checked against a summary or transcript of the paper",
    "unverified": "formula from memory, to be checked before use",
}

OWN_LAW = """\
import numpy as np
import flopwise as fw
from flopwise.laws import Law, Parameter, register

register(Law(
    name="shifted", regime="pretraining", formula="L = E + A (D + s)^-b", variables=("D",), target="loss",
    parameters=(
        Parameter("E", (0.1, 3.0)), Parameter("A", (1.0, 1e4)), Parameter("b", (0.05, 1.0)),
        Parameter("s", (0.01, 1.0), unit="D"),
    ),
    function=lambda p, x: p["E"] + p["A"] * (x["D"] + p["s"]) ** -p["b"],
    source="my notebook", status="unverified", needs="token budgets over two decades",
))

D = np.geomspace(1e6, 1e9, 12)
table = {"D": D, "loss": 1.7 + 90 * (D + 2e6) ** -0.3}
fit = fw.fit("shifted", table)
print({name: round(value, 3) for name, value in fit.params.items()})
print(fit.predict(D=1e10).value, fw.backtest("shifted", table, by="D").rms)
"""

LAWS = """\
# Laws

Made from the catalogue by `make docs`; `flopwise laws` prints it. A law is fitted to a table whose columns
are named as its variables and target; `--map` renames them:

    flopwise fit runs.csv --law chinchilla --map N=n_params,loss=val_loss

{laws}
## How sure a fit is

- The default loss is the sum over points of Huber's loss of log predicted minus log observed, with limit 1e-3
  (Hoffmann et al. 2022). `--loss log_squared` is the sum of their squares, `--loss squared` that of the
  differences themselves. Accuracies and coverages are always fitted as they are, without logarithm.
- Intervals of parameters are by the delta method and Student's t. With `--cluster COLUMN`, noise between runs
  (trunks) is told apart from noise within them, and t has the degrees of freedom of the part between: few
  runs give wide intervals.
- The interval of a prediction is that of a single new run: parameters and scatter. For a form chosen by
  back-test, the 95% interval is never narrower than twice the error that it made there.
- `--bootstrap n` refits to n resamples of whole runs and takes quantiles instead; with fewer than ten runs it
  understates.
- A law that its data do not identify (a reinforcement curve that ends before its middle) is not extrapolated.

## A law of your own in ten lines

It gets fitting, intervals, back-tests and comparison for free; put into `src/flopwise/laws/`, the command
line too. Parameters are searched as logarithms (positive) unless `log=False`; `start` is where searches begin
(with `unit`, in multiples of a variable's geometric mean). Naming linear parameters and their terms
(`linear`, `terms`, see `laws/pretraining.py`) makes the search surer.

```python
{own}```
"""


def laws_page() -> str:
    """docs/laws.md."""
    from flopwise.laws.law import laws

    entries = []
    for regime in ("pretraining", "post-training", "test-time"):
        entries.append(f"## {regime.capitalize()}\n")
        for law in laws(regime):
            entries.append(
                f"### `{law.name}`\n\n    {law.formula}\n\n"
                f"- columns: {', '.join(f'`{v}`' for v in law.variables)} and `{law.target}`; "
                f"parameters: {', '.join(f'`{p}`' for p in law.names)}\n"
                f"- needs {law.needs}\n- source: {law.source} ({STATUS[law.status]})\n"
            )
    return LAWS.format(laws="\n".join(entries), own=OWN_LAW)


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


PAGES = {"laws.md": laws_page, "cli.md": cli_page}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")
        print(f"docs/{name}")
