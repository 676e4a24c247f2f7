"""What a step that reads somebody's dataset can be told. Imports no torch: checked before anything starts."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from flopwise.errors import FlopwiseError, one_line
from flopwise.launch.basics import Count, Section

Kind = Literal["auto", "text", "demos", "pairs", "unpaired", "problems", "steps"]


class InstructSpec(Section):
    """Settings of `data.instruct.run_step`; `docs/datasets.md` explains them."""

    path: str
    """File, folder, pattern, saved dataset, or hub id (org/name, hub:org/name)."""
    format: Kind = "auto"
    """How rows are read; auto tells it by the columns of the first one."""
    split: str | None = None
    """Of a saved or hub dataset; None: train, or the only one."""
    config: str | None = None
    """Of a hub dataset: the name of its part."""
    heldout_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.05
    max_length: Annotated[int, Field(ge=2)] | None = None
    """Tokens of prompt and completion together; None: the model's context."""
    over_long: Literal["error", "drop", "truncate"] = "error"
    """What becomes of longer ones. Texts are always cut into windows."""
    bad_rows: Literal["error", "drop"] = "error"
    as_chat: bool = False
    """Plain prompts and completions become turns of user and assistant."""
    max_rows: Count | None = None
    task: str | None = None
    """Name of the task whose verifier judges answers."""
    sha256: str | None = None
    """Of the files, as `data.instruct_rows.source_sha256` gives it: a changed file then is an error."""


def checked(spec: dict[str, Any]) -> InstructSpec:
    """A spec's settings.

    Raises:
        FlopwiseError: one is unknown or out of its limits.
    """
    try:
        return InstructSpec.model_validate(spec)
    except ValidationError as e:
        first = e.errors()[0]
        name = ".".join(map(str, first["loc"])) or "spec"
        raise FlopwiseError(
            f"dataset: {name} is {one_line(repr(first['input']), 60)}: {first['msg'].lower()}; see "
            "docs/datasets.md"
        ) from e
