"""Write docs/reproductions.md: published data, fitted again, beside what was published.

    python docs/reproductions.py [DATA]

DATA is the folder of published tables (default ../shared/data); folders that are not there are left out. It
takes a few minutes on one core.
"""

from __future__ import annotations

import sys
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import reproductions_isoflop
import reproductions_other
import reproductions_pretraining
import reproductions_samples

DOCS = Path(__file__).parent
PAGE = """\
# Published results, computed again

Made by `python docs/reproductions.py DATA` from tables that others published; the tables themselves are not part of
the project. Each row says what was published, what flopwise finds on the same data, its 95% interval, and a verdict.
Where a published value does not come out, the note says why as far as we can tell; some do not, and that is a
result. Intervals are by profile likelihood, by runs where rows share one.

{summary}

{sections}"""


def main(data: Path) -> None:
    """Compute every row and write the page."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in (reproductions_pretraining, reproductions_isoflop, reproductions_other, reproductions_samples):
            for row in module.rows(data):
                found[row["folder"]].append(row)
            print(module.__name__, file=sys.stderr)
    lines = ["| data | results | come out or lie within the interval | do not |", "|---|---|---|---|"]
    for folder, rows in found.items():
        good = sum(_good(r["verdict"]) for r in rows)
        bad = sum(_bad(r["verdict"]) for r in rows)
        lines.append(f"| [`{folder}`](#{folder}) | {len(rows)} | {good} | {bad} |")
    sections = [_section(folder, rows) for folder, rows in found.items()]
    page = PAGE.format(summary="\n".join(lines), sections="\n".join(sections))
    (DOCS / "reproductions.md").write_text(page, encoding="utf-8")


def _good(verdict: str) -> bool:
    return verdict.startswith(("comes out", "within"))


def _bad(verdict: str) -> bool:
    return verdict.startswith(("does not", "differs"))


def _section(folder: str, rows: list[dict[str, Any]]) -> str:
    lines = [f"## {folder}\n", "| what | published | found | 95% interval | verdict | note |", "|---|---|---|---|---|---|"]
    for r in rows:
        cells = (r["what"], r["published"], r["found"], r["interval"], r["verdict"], r["note"])
        lines.append("| " + " | ".join(_cell(c) for c in cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, tuple | list):
        return " to ".join(_cell(v) for v in value)
    if isinstance(value, float) or hasattr(value, "dtype"):
        value = float(value)
        return "open" if abs(value) > 1e60 or 0 < abs(value) < 1e-60 else f"{value:.6g}"
    return str(value).replace("|", "&#124;").replace("\n", " ")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS.parents[1] / "shared" / "data")
