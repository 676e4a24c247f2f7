"""Recipes: YAML files, checked before anything runs; every mistake is one line with its place."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from flopwise.errors import FlopwiseError
from flopwise.launch.sections import (
    DataSection,
    LadderSection,
    LawSection,
    PlanSection,
    PosttrainSection,
    Section,
    TestTimeSection,
)

SHIPPED = Path(__file__).parent.parent / "recipes"


class Recipe(Section):
    """A three-laws experiment."""

    name: str
    title: str = ""
    seed: int = 0
    workers: Annotated[int, Field(ge=0, le=256)] = min(2, os.cpu_count() or 1)
    data: DataSection
    ladder: LadderSection
    law: LawSection = LawSection()
    posttrain: PosttrainSection
    testtime: TestTimeSection = TestTimeSection()
    plan: PlanSection


def find(recipe: str | Path) -> Path:
    """A recipe by path, or by name among those that ship with the package."""
    path = Path(recipe)
    if path.is_file():
        return path
    shipped = SHIPPED / f"{path.name.removesuffix('.yaml')}.yaml"
    if path.name == str(recipe) and shipped.is_file():
        return shipped
    names = ", ".join(sorted(p.stem for p in SHIPPED.glob("*.yaml")))
    raise FlopwiseError(f"recipe {str(recipe)!r} is neither a file nor a shipped recipe ({names})")


def load(recipe: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read and check a recipe; `overrides` are `key.key=value` with a YAML value.

    Raises:
        FlopwiseError: no such file, malformed YAML (with line), unknown key (with the closest one), bad value.
    """
    import yaml

    path = find(recipe)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise FlopwiseError(f"recipe {path}{where}: not valid YAML ({getattr(e, 'problem', None) or type(e).__name__})") from e
    except (OSError, UnicodeDecodeError) as e:
        raise FlopwiseError(f"recipe {path} cannot be read ({type(e).__name__})") from e
    if not isinstance(content, dict):
        raise FlopwiseError(f"recipe {path} holds {type(content).__name__}, must be a mapping; see the shipped demo recipe")
    for override in overrides or []:
        _override(content, override)
    try:
        return Recipe.model_validate(content)
    except ValidationError as e:
        raise FlopwiseError(f"recipe {path}: {_explain(e, Recipe)}") from None


def _override(content: dict[str, Any], override: str) -> None:
    import yaml

    key, sign, value = override.partition("=")
    if not sign or not key:
        raise FlopwiseError(f"--set {override!r}: write it as key.key=value")
    *path, last = key.split(".")
    place = content
    for part in path:
        if not isinstance(place.setdefault(part, {}), dict):
            raise FlopwiseError(f"--set {override!r}: {part} is not a section")
        place = place[part]
    try:
        place[last] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise FlopwiseError(f"--set {override!r}: the value is not valid YAML") from None


def _explain(error: ValidationError, model: type[BaseModel]) -> str:
    """The first mistake in one line; an unknown key gets the nearest known one."""
    first = error.errors()[0]
    place = ".".join(str(p) for p in first["loc"])
    if first["type"] == "extra_forbidden":
        known = _keys(model, first["loc"][:-1])
        close = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(sorted(known))}"
        return f"unknown key {place!r}; {hint}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        return f"{place} is missing"
    given = first.get("input")
    return f"{place or 'recipe'} is {str(given)[:60]!r}: {message}" if not isinstance(given, dict) else f"{place}: {message}"


def _keys(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """Keys that a section knows."""
    for part in path:
        field = model.model_fields.get(str(part))
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return []
        model = field.annotation
    return list(model.model_fields)
