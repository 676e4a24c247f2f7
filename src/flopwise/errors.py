"""The one kind of error a user is meant to read."""

from __future__ import annotations

from pathlib import Path


class FlopwiseError(Exception):
    """Bad input or an unmet limit: one clear line that names the value, the limit and the next step.

    The command line prints the message alone and exits with code 2; a traceback is a defect.
    """


class DamagedFile(FlopwiseError):
    """A file that flopwise wrote is cut or garbled; the launcher sets `path` aside and starts over."""

    def __init__(self, path: Path, message: str):
        super().__init__(message)
        self.path = path


class MissingExtra(FlopwiseError):
    """An optional dependency is absent; the message is the exact install command."""

    def __init__(self, package: str, extra: str, needed_for: str):
        super().__init__(
            f"{needed_for} needs {package}, which is not installed: pip install 'flopwise[{extra}]'"
        )


def one_line(text: object, limit: int = 500) -> str:
    """Text from anywhere as one line that is safe to print: no breaks, no codes that a terminal would obey.

    >>> one_line("a\\n  b\\x1b[31m")
    'a b?[31m'
    """
    return "".join(c if c.isprintable() else "?" for c in " ".join(str(text).split()))[:limit]
