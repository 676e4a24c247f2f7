"""The figure of one comparison of strategies as files of its own: an .svg, and an .html with its table."""

from __future__ import annotations

import base64
import hashlib
from html import escape
from pathlib import Path
from typing import Any

from flopwise.report.figures_testtime import against_cost
from flopwise.report.svg import Plot

TEMPLATES = Path(__file__).parent / "templates"
SVG_FILE, HTML_FILE = "comparison.svg", "comparison.html"
HEAD = ("strategy", "n", "accuracy", "95% interval", "cost", "tokens", "seconds", "minus the first", "")


def write_figures(folder: Path, comparison: dict[str, Any]) -> None:
    """Accuracy against cost per question for people: comparison.svg and comparison.html in a folder.

    Args:
        comparison: as `infer.assess.Assessment.to_dict` gives it.
    """
    from flopwise.records.folder import atomic_write

    name = f"{comparison['model']} on {comparison['task']}"
    plot = against_cost({"name": name, **comparison}, False)
    if plot is not None:
        atomic_write(folder / SVG_FILE, standalone(plot))
        atomic_write(folder / HTML_FILE, _page(name, plot, comparison))


def standalone(plot: Plot) -> str:
    """A plot as an SVG file: it brings its colours, light and dark, and its own size."""
    svg = plot.render()
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    font = "svg.plot { font-family: sans-serif; background: var(--paper); }"
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" width="{plot.width:g}" height="{plot.height:g}" '
    body = svg.replace("<svg ", opening, 1)
    cut = body.index(">") + 1
    return f"{body[:cut]}<style><![CDATA[{style}\n{font}]]></style>{body[cut:]}"


def _page(name: str, plot: Plot, comparison: dict[str, Any]) -> str:
    """One page that fetches nothing and runs nothing but the script that shows a point's numbers."""
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    script = (TEMPLATES / "script.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    head = "".join(f"<th>{word}</th>" for word in HEAD)
    rows = "".join(_row(s["name"], p) for s in comparison["strategies"] for p in s["points"])
    about = (
        f"{comparison['n_problems']} problems, {comparison['style']}, {comparison['problems_from']}; "
        f"temperature {comparison['temperature']:g}, at most {comparison['max_tokens']} tokens. Cost in "
        f"{comparison['unit']} a question, prefill and judges included; * nothing cheaper is as accurate."
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<title>{escape(name)}</title>\n<style>{style}</style>\n</head>\n<body>\n<main>\n"
        f"<h2>{escape(name)}</h2>\n<p>{escape(about)}</p>\n<figure>{plot.render()}</figure>\n"
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>\n</main>\n"
        f'<div id="tip" role="status"></div>\n<script>{script}</script>\n</body>\n</html>\n'
    )


def _row(name: str, p: dict[str, Any]) -> str:
    d = p["difference"]
    cells = (
        name, str(p["n"]), f"{p['value']:.3f}",
        "" if p["low"] is None else f"{p['low']:.3f} to {p['high']:.3f}",
        f"{p['tokens'] if p['flops'] is None else p['flops']:.3g}", f"{p['tokens']:.4g}",
        "" if p["seconds"] is None else f"{p['seconds']:.3g}",
        "" if d is None else f"{d['value']:+.3f} ({d['low']:+.3f} to {d['high']:+.3f})",
        "*" if p["frontier"] else "",
    )  # fmt: skip
    return "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>\n"
