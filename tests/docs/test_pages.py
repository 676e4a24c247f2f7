"""The pages on the laws: every block marked python or console runs, and prints what the page says.

`python tests/docs/test_pages.py [PAGE...]` runs the pages and writes what was printed into them.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGES = (
    "choosing", "pitfalls", "pretraining", "post-training", "test-time", "fitting", "planning", "next",
    "scoring", "search", "policies",
)  # fmt: skip
REGIMES = ("pretraining", "post-training", "test-time")
FENCE = re.compile(
    r"^```(?P<kind>python|console)\n(?P<code>.*?)^```\n(?P<shown>\n```text\n.*?^```\n)?", re.M | re.S
)
"""A block that runs; a text block after one of python holds what it prints."""
NUMBER = re.compile(r"(?<![A-Za-z_])[-+±]?\d[\d_]*\.?\d*(?:e[-+]?\d+)?")


def run_page(text: str) -> str:
    """The page with what its blocks print now, in the working directory; blocks of one page share names."""
    names: dict[str, Any] = {}

    def block(found: re.Match[str]) -> str:
        code = found["code"]
        if found["kind"] == "console":
            return f"```console\n{_console(code)}```\n{found['shown'] or ''}"
        printed = _said(lambda: exec(compile(code, "a block of the page", "exec"), names))
        said = f"\n```text\n{printed}```\n" if printed else ""
        return f"```python\n{code}```\n{said}"

    return FENCE.sub(block, text)


def _console(code: str) -> str:
    """Each command of a block with what it prints; only flopwise's own commands may be there."""
    out = ""
    for line in re.findall(r"^\$ (?:.*\\\n)*.*\n", code, re.M):
        words = shlex.split(line.replace("\\\n", " ")[2:])
        assert words[0] == "flopwise", f"{line!r} is no command of flopwise"
        out += line + _said(lambda words=words: _command(words))
    return out


def _command(words: list[str]) -> None:
    from flopwise.cli import main

    sys.argv = words
    with contextlib.suppress(SystemExit):
        main()


def _said(call: Any) -> str:
    """What a call prints, on either stream, as a terminal shows it."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: print(f"warning: {message}")  # type: ignore[assignment]
        warnings.simplefilter("always", UserWarning)
        try:
            call()
        except Exception as e:
            if type(e).__name__ != "FlopwiseError":
                traceback.print_exc(file=sys.__stderr__)
                raise
            print(f"{type(e).__name__}: {e}")
    return "".join(f"{line.rstrip()}\n" for line in out.getvalue().splitlines())


def differences(page: str, now: str) -> list[str]:
    """Lines that differ by more than rounding: words must be the same, numbers within 2% or a last digit."""
    old, new = page.splitlines(), now.splitlines()
    out = [f"- {a}\n+ {b}" for a, b in zip(old, new, strict=False) if not _alike(a, b)]
    return out or ([f"{len(old)} lines, now {len(new)}"] if len(old) != len(new) else [])


def _alike(a: str, b: str) -> bool:
    if NUMBER.sub("#", " ".join(a.split())) != NUMBER.sub("#", " ".join(b.split())):
        return False
    pairs = zip(NUMBER.findall(a), NUMBER.findall(b), strict=True)
    return all(_close(x.lstrip("±"), y.lstrip("±")) for x, y in pairs)


def _close(a: str, b: str) -> bool:
    digits, _, power = a.lower().partition("e")
    last = 10.0 ** (int(power or 0) - len(digits.partition(".")[2]))
    return abs(float(a) - float(b)) <= max(0.02 * abs(float(a)), 1.5 * last)


def rerun(page: str) -> str:
    """A page run in a process and a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, __file__, "--print", str(DOCS / f"{page}.md")], cwd=folder, text=True,
            capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1", "NO_COLOR": "1"},
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("page", PAGES)
def test_every_block_prints_what_the_page_says(page):
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    found = differences(text, rerun(page))
    assert not found, "\n".join([*found[:10], f"run: python tests/docs/test_pages.py {page}"])


@pytest.mark.parametrize("regime", REGIMES)
def test_every_law_is_on_the_page_of_its_regime(regime):
    from flopwise.laws.law import laws

    text = (DOCS / f"{regime}.md").read_text(encoding="utf-8")
    missing = [law.name for law in laws(regime) if f"(laws.md#{law.name})" not in text]
    assert not missing, f"{regime}.md does not name {', '.join(missing)}"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    from flopwise.laws.law import laws

    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    names = {law.name for law in laws()}
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", text):
        if target.startswith("http"):
            continue
        path = DOCS / (target or f"{page}.md")
        assert path.exists(), f"{page}.md links to {target}, which is not there"
        if target == "laws.md" and anchor:
            assert anchor in names, f"{page}.md links to the law {anchor}, which is not in the catalogue"
        elif anchor:
            assert anchor in _anchors(path.read_text(encoding="utf-8")), f"{page}.md: no {target}#{anchor}"


def _anchors(text: str) -> set[str]:
    """Of a page's headings, as code hosts make them."""
    heads = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


def test_a_changed_word_or_number_is_seen():
    assert differences("a 1.00 b\n", "a 1.01 b\n") == []
    assert differences("a 1.00 b\n", "a 1.20 b\n")
    assert differences("a 1.00 b\n", "a 1.00 c\n")
    assert differences("a\n", "a\nb\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--print"]:
        sys.stdout.write(run_page(Path(sys.argv[2]).read_text(encoding="utf-8")))
    else:
        for name in sys.argv[1:] or PAGES:
            made = rerun(name)
            (DOCS / f"{name}.md").write_text(made, encoding="utf-8")
            print(f"docs/{name}.md")
