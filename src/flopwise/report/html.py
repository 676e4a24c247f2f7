"""Results to one HTML file: nothing to fetch, nothing that runs but our own script, all text escaped."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from flopwise.report import (
    figures,
    figures_ladder,
    figures_posttraining,
    figures_questions,
    figures_rungs,
    figures_testtime,
    format,
    ladder_headline,
)
from flopwise.report.runs import MISSHAPEN, misshapen

TEMPLATES = Path(__file__).parent / "templates"
RESULTS_FILE = "results.json"
PARTS = {
    "laws": {
        "head": "", "law1": "Pretraining", "law2": "Post-training", "law3": "Test time",
        "exchange": "Exchange rates", "plan": "Plan", "family": "Family tree", "numbers": "Numbers",
    },
    "ladder": {
        "ladder_head": "", "ladder_laws": "Laws", "ladder_compare": "Comparisons",
        "ladder_rungs": "Rungs", "ladder_numbers": "Numbers",
    },
    "family": {"family_head": "", "family": "Family tree", "numbers": "Numbers"},
    "posttrain": {
        "post_head": "", "post_methods": "Methods", "post_testtime": "Test time", "family": "Family tree",
        "numbers": "Numbers",
    },
}  # fmt: skip
"""Sections of the page by kind of experiment, with their names in the page's navigation."""
SCRIPTS = ("script.js", "whatif.js")
FILTERS = (
    "count", "flop", "flop_range", "general", "percent", "percent_range", "plain", "points", "ratio",
    "rounded", "seconds", "with_error",
)  # fmt: skip


def build(runs: str | Path, out: str | Path) -> Path:
    """Write the report of a folder of runs to `out`, and `results.json` beside it; returns `out`.

    Works on unfinished experiments: a section says what is missing and why.

    Raises:
        FlopwiseError: there is no such folder, or no run in it.
        OSError: `out` cannot be written.
    """
    from flopwise.records.folder import atomic_write
    from flopwise.report.collect import collect

    results, out = collect(runs), Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(out.with_name(RESULTS_FILE), json.dumps(results, indent=1) + "\n")
    atomic_write(out, render(results))
    return out


def render(results: dict[str, Any]) -> str:
    """The page. Text from models, records and people is hostile: it is escaped wherever it is put, and a
    policy in the page lets no script run but the one with this hash."""
    from jinja2 import ChainableUndefined, Environment, FileSystemLoader

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=ChainableUndefined,
    )
    environment.filters |= {name: getattr(format, name) for name in FILTERS}
    script = "".join((TEMPLATES / name).read_text(encoding="utf-8") for name in SCRIPTS)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    parts = PARTS[results.get("kind", "laws")]
    return environment.get_template("report.html.j2").render(
        r=results,
        parts=[_part(environment, name, results) for name in parts],
        sections={name: words for name, words in parts.items() if words},
        script=_inline(script),
        script_hash=digest,
        style=_inline((TEMPLATES / "style.css").read_text(encoding="utf-8")),
    )


def _part(environment: Any, name: str, results: dict[str, Any]) -> Any:
    """One section of the page; if what it shows has an unexpected shape, that is what it says."""
    from jinja2 import TemplateError

    shown = {
        "r": results, "fig": figures, "ask": figures_questions, "lad": figures_ladder,
        "rung": figures_rungs, "post": figures_posttraining, "tt": figures_testtime,
        "said": ladder_headline.value,
        "nothing": format.NOTHING,
    }  # fmt: skip
    try:
        return _inline(environment.get_template(f"{name}.html.j2").render(**shown))
    except (*MISSHAPEN, TemplateError) as e:
        return _inline(environment.get_template("broken.html.j2").render(name=name, **misshapen(name, e)))


def _inline(ours: str) -> Any:
    """Our own file, or what a template has escaped already, put into the page as it is."""
    from markupsafe import Markup

    return Markup(ours)
