"""The page on commands is what their help says; the README names no command or option that does not exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

from flopwise.cli import command_line

ROOT = Path(__file__).parents[2]


def test_the_page_is_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import build

    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == build.cli_page(), "run `make docs`"


def test_the_readme_uses_real_commands_and_options() -> None:
    group = typer.main.get_command(command_line())
    lines = re.findall(r"^flopwise (\w+)(.*?)(?:#.*)?$", (ROOT / "README.md").read_text(), re.M)
    assert len(lines) > 8
    for name, rest in lines:
        command = group.commands[name]  # type: ignore[attr-defined]
        known = {option for p in command.params for option in p.opts}
        assert set(re.findall(r"(?<=\s)--?[a-z][a-z-]*", rest)) <= known, name


def test_the_readme_points_at_files_that_exist() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text())
    assert links
    for link in links:
        assert (ROOT / link).exists(), link
