"""The command line as a whole: wrong words are one line and exit code 2, and help comes at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flopwise import cli

HEAVY = ("torch", "numpy", "scipy", "matplotlib", "duckdb", "tokenizers", "transformers")


def refusal(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that these words get."""
    monkeypatch.setattr(sys, "argv", ["flopwise", *words])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    out, err = capsys.readouterr()
    assert stopped.value.code == 2 and out == ""
    assert err.startswith("flopwise: ") and err.count("\n") == 1 and "\x1b" not in err
    return err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["solve", "X", "-p", "1", "-n", "abc"], ("'abc'", "'-n'", "see flopwise solve --help")),
        (
            ["solve", "X", "-p", "1", "-n", "\x1b[31m\n[bold]x"],
            ("[bold]x", "'-n'", "see flopwise solve --help"),
        ),
        (["fit", "t.csv", "--law", "kaplan", "--seed", "-1"], ("'--seed'", "0", "see flopwise fit --help")),
        (["solve", "--nonsense"], ("no such option: --nonsense", "see flopwise solve --help")),
        (["nonsense"], ("no such command 'nonsense'", "see flopwise --help")),
        (["fit"], ("missing argument 'TABLE'", "see flopwise fit --help")),
        (["backtest", "t.csv"], ("missing option '--law'", "see flopwise backtest --help")),
        (["laws", "a", "more"], ("(more)", "see flopwise laws --help")),
        (["runs", "--json=3"], ("'--json' does not take a value", "see flopwise --help")),
    ],
)
def test_wrong_words_are_one_line(
    words: list[str],
    says: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = refusal(words, monkeypatch, capsys)
    assert all(part in said for part in says), said


def test_a_missing_extra_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    said = refusal(["solve", str(tmp_path), "-p", "1, 2, 3 = 6"], monkeypatch, capsys)
    assert "torch" in said and "pip install 'flopwise[train]'" in said


def test_no_words_are_a_call_for_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["flopwise"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    out, err = capsys.readouterr()
    assert not stopped.value.code and err == "" and "demo" in out and "backtest" in out


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import atexit, sys; from flopwise.cli import main; sys.argv[1:] = ['--help']; "
        f"atexit.register(lambda: print('loaded', sorted(set({HEAVY}) & set(sys.modules)))); main()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "loaded []"


def test_a_letter_that_the_terminal_lacks_is_a_question_mark(tmp_path: Path) -> None:
    code = "from flopwise.cli import main; main()"
    words = ["query", "SELECT 'l\u00e4ufe' AS name", "--runs", str(tmp_path)]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    result = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, env=environment)
    assert (result.returncode, result.stderr) == (0, b"") and b"l?ufe" in result.stdout
