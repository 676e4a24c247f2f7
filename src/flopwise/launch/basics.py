"""What all sections of a recipe share: no unknown keys, no infinite numbers, limits as types."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def one_of(known: Collection[str]) -> AfterValidator:
    """Accepts these names alone."""

    def check(name: str) -> str:
        if name not in known:
            raise ValueError(f"must be one of {', '.join(known)}")
        return name

    return AfterValidator(check)


Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, lt=1)]


class Section(BaseModel):
    """A part of a recipe; unknown keys are errors, and so are infinite numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Rung(Section):
    """A size and a token budget."""

    width: Count
    tokens: Count

    def __str__(self) -> str:
        return f"width {self.width} at {self.tokens:,} tokens"
