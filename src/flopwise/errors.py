"""The one kind of error a user is meant to read."""

from __future__ import annotations


class FlopwiseError(Exception):
    """Bad input or an unmet limit: one clear line that names the value, the limit and the next step.

    The command line prints the message alone and exits with code 2; a traceback is a defect.
    """


class MissingExtra(FlopwiseError):
    """An optional dependency is absent; the message is the exact install command."""

    def __init__(self, package: str, extra: str, needed_for: str):
        super().__init__(f"{needed_for} needs {package}, which is not installed: pip install 'flopwise[{extra}]'")
