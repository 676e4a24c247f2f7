"""Recipes: YAML files, checked before anything runs; every mistake is one line with its place."""

from __future__ import annotations

import copy
import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError, model_validator

from flopwise.errors import FlopwiseError, one_line
from flopwise.launch.basics import Section
from flopwise.launch.ladder_sections import (
    CorpusSection,
    LadderSection,
    LawEntry,
    Name,
    TrainSection,
    TuningSection,
)
from flopwise.launch.posttrain_recipe import PosttrainRecipe
from flopwise.launch.sections import (
    DataSection,
    DemoLadder,
    LawSection,
    PlanSection,
    PosttrainSection,
    TestTimeSection,
)

SHIPPED = Path(__file__).parent.parent / "recipes"


LONGEST_PROMPT = 16
"""Tokens of the task's longest prompt, `20 20 20=100:` and the like, digit by digit."""


class Experiment(Section):
    """What every recipe has."""

    name: str
    title: str = ""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    workers: Annotated[int, Field(ge=0, le=256)] = min(2, os.cpu_count() or 1)


class LadderRecipe(Experiment):
    """A pretraining experiment: ladders of some variants, the laws asked of them, a run held out."""

    kind: Literal["ladder"]
    data: CorpusSection
    ladder: LadderSection
    variants: dict[Name, dict[str, Any]] = Field(default={})
    """By name, what each changes of `ladder` and, under the key `data`, of the data; none: one, `base`."""
    tuning: TuningSection | None = None
    laws: list[LawEntry] = Field(default=[])
    train: TrainSection = TrainSection()

    def variant(self, name: str) -> tuple[LadderSection, CorpusSection]:
        """Ladder and data of a variant.

        Raises:
            FlopwiseError: what it changes does not exist or does not fit.
        """
        changes = dict(self.variants[name]) if self.variants else {}
        data = changes.pop("data", {})
        ladder = _merged(LadderSection, self.ladder, changes, f"variants.{name}")
        return ladder, _merged(CorpusSection, self.data, data, f"variants.{name}.data")

    @property
    def names(self) -> list[str]:
        """Of the variants."""
        return list(self.variants) or ["base"]

    @model_validator(mode="after")
    def _names_exist(self) -> LadderRecipe:
        for i, law in enumerate(self.laws):
            for name in (*law.variants, *law.held_out, *([law.against] if law.against else [])):
                if name not in self.names:
                    raise ValueError(f"laws.{i} names variant {name!r}; there are {', '.join(self.names)}")
        if len({law.name for law in self.laws}) < len(self.laws):
            raise ValueError("two laws have the same name; give each its own")
        for name in self.names:
            ladder, data = self.variant(name)
            known = [s.label for s in data.sources]
            if wrong := [source for source in ladder.mixture if source not in known]:
                raise ValueError(f"ladder.mixture names {wrong[0]!r:.60}, must be among {', '.join(known)}")
        return self


class Recipe(Experiment):
    """A three-laws experiment."""

    data: DataSection
    ladder: DemoLadder
    law: LawSection = LawSection()
    posttrain: PosttrainSection
    testtime: TestTimeSection = TestTimeSection()
    plan: PlanSection

    @model_validator(mode="after")
    def _answers_fit(self) -> Recipe:
        tokens = max(self.testtime.max_tokens, self.posttrain.grpo.max_tokens)
        if tokens + LONGEST_PROMPT > self.ladder.seq_len:
            raise ValueError(
                f"ladder.seq_len is {self.ladder.seq_len}, must be at least {tokens + LONGEST_PROMPT}: "
                f"answers of max_tokens {tokens} follow prompts of up to {LONGEST_PROMPT} tokens"
            )
        return self

    @model_validator(mode="after")
    def _sources_exist(self) -> Recipe:
        known = dict.fromkeys(("text", "task", *self.data.corpora))
        if wrong := [name for name in self.ladder.mixture if name not in known]:
            raise ValueError(
                f"ladder.mixture names {wrong[0]!r:.60}, must be among {', '.join(known)}; "
                "corpora are named in data.corpora"
            )
        return self

    @model_validator(mode="after")
    def _held_out_is_kept_out(self) -> Recipe:
        for key, rung in self.posttrain.rungs.items():
            if (rung.width, rung.tokens) == (self.ladder.held_out.width, self.ladder.held_out.tokens):
                raise ValueError(f"posttrain.{key} is {rung}: that is ladder.held_out, which no fit may see")
        return self

    @model_validator(mode="after")
    def _problems_suffice(self) -> Recipe:
        data, post, reward = self.data, self.posttrain, self.posttrain.reward
        wanted = (
            ("testtime.problems", self.testtime.problems, "test_problems"),
            ("posttrain.val_problems", post.val_problems, "val_problems"),
            ("posttrain.grpo.problems_per_step", post.grpo.problems_per_step, "rl_problems"),
            ("posttrain.reward for training and test", reward.problems + reward.test_problems, "rl_problems"),
        )
        for key, number, pool in wanted:
            if number > getattr(data, pool):
                raise ValueError(
                    f"{key} asks for {number:,} problems, data.{pool} is {getattr(data, pool):,}"
                )
        return self


S = TypeVar("S", bound=Section)


def _merged(kind: type[S], section: S, changes: dict[str, Any], place: str) -> S:
    """The section with some keys changed, however deep."""

    def merge(old: Any, new: Any) -> Any:
        if isinstance(old, dict) and isinstance(new, dict):
            return old | {key: merge(old.get(key), value) for key, value in new.items()}
        return new

    if not isinstance(changes, dict):
        raise FlopwiseError(f"{place} is {changes!r:.40}, must be a mapping of what it changes")
    content = section.model_dump(exclude_unset=True)
    budgets = ("budgets", "isoflop", "per_parameter")
    if any(name in changes for name in budgets):  # another kind of budget takes the place of the first
        content = {key: value for key, value in content.items() if key not in budgets}
    try:
        return kind.model_validate(merge(content, changes))
    except ValidationError as e:
        raise FlopwiseError(f"{place}: {_explain(e, kind)}") from None


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


AnyRecipe = Recipe | LadderRecipe | PosttrainRecipe
KINDS: dict[Any, type[AnyRecipe]] = {None: Recipe, "ladder": LadderRecipe, "posttrain": PosttrainRecipe}
"""Recipes by their `kind`; one without is a three-laws experiment."""


def load(recipe: str | Path | Mapping[str, Any], overrides: list[str] | None = None) -> AnyRecipe:
    """Read and check a recipe; `overrides` are `key.key=value` with a YAML value.

    Raises:
        FlopwiseError: no such file, malformed YAML (with line), unknown key (with the nearest), bad value.
    """
    if isinstance(recipe, Mapping):
        place, content = "recipe", copy.deepcopy(dict(recipe))
    else:
        path = find(recipe)
        place, content = f"recipe {path}", _read(path)
    for override in overrides or []:
        _override(content, override)
    kind = content.get("kind")
    if kind is not None and kind not in tuple(KINDS):
        raise FlopwiseError(
            f"{place}: kind is {kind!r:.40}, must be ladder or posttrain, or absent for the three laws in one"
        )
    form = KINDS[kind]
    try:
        return form.model_validate(content)
    except ValidationError as e:
        raise FlopwiseError(f"{place}: {_explain(e, form)}") from None


def _read(path: Path) -> dict[str, Any]:
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise FlopwiseError(f"recipe {path} cannot be read ({type(e).__name__})") from e
    try:
        content = yaml.load(text, _loader())
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        mark = getattr(e, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = one_line(getattr(e, "problem", None) or type(e).__name__, 100)
        raise FlopwiseError(f"recipe {path}{where}: not valid YAML ({problem})") from e
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise FlopwiseError(f"recipe {path} holds {kind}, must be a mapping; see the shipped demo recipe")
    return content


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
    except (yaml.YAMLError, ValueError, RecursionError):
        raise FlopwiseError(f"--set {override!r:.80}: the value is not valid YAML") from None


def _loader() -> type[Any]:
    """YAML's safe loader, but a key that stands twice is an error rather than a silent choice."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    def mapping(loader: Any, node: Any) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key.value!r:.40} stands twice", key.start_mark
                )
            seen.add(str(key.value))
        return loader.construct_mapping(node, deep=True)

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    return Loader


def _explain(error: ValidationError, model: type[BaseModel]) -> str:
    """The first mistake in one line; an unknown key gets the nearest known one."""
    # A misspelt key shows as unknown and as missing: the first helps more.
    first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
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
    if isinstance(given, dict | BaseModel):
        return f"{place}: {message}" if place else message
    return f"{place or 'recipe'} is {str(given)[:60]!r}: {message}"


def _keys(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """Keys that a section knows."""
    for part in path:
        field = model.model_fields.get(str(part))
        if field is None or not (
            isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        ):
            return []
        model = field.annotation
    return list(model.model_fields)
