"""The recipe of a post-training experiment (`kind: posttrain`): runs by name, made by methods from others."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError, field_validator, model_validator

from flopwise.errors import FlopwiseError
from flopwise.launch.basics import Count, Section
from flopwise.launch.compare_section import CompareSection
from flopwise.launch.ladder_sections import LadderSection, Name, RatesSection
from flopwise.launch.sections import DataSection
from flopwise.posttrain.settings import METHODS, method
from flopwise.posttrain.settings.method import Method
from flopwise.posttrain.settings.tuning import expand_rounds

Weight = Annotated[float, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


def differ(seeds: list[int]) -> list[int]:
    """The seeds, each of them named once.

    Raises:
        ValueError: one stands twice.
    """
    if len(set(seeds)) < len(seeds):
        raise ValueError("the same seed twice is one run, not two; name each once")
    return seeds


class PosttrainData(DataSection):
    """The task and, where the base is pretrained here, what it reads."""

    corpora: list[str] = Field(default=[])
    slice_problems: Count | None = None
    """Validation and as many test problems of each slice of the task; None: no more than chance gives."""


class DatasetSection(Section):
    """Somebody's own rows, see `data.instruct`."""

    path: str
    options: dict[str, Any] = Field(default={})


class BaseSection(Section):
    """Where all runs start: a model of some size pretrained here, or one from elsewhere."""

    width: Count | None = None
    depth: Count = 2
    tokens: Count | None = None
    mixture: dict[str, Weight] = Field(default={"text": 0.75, "task": 0.25}, min_length=1)
    batch_size: Count = 16
    seq_len: Count = 128
    context: Count | None = None
    model: str | None = None
    """A folder, a run, or the name of a model that `flopwise get` fetches."""

    @model_validator(mode="after")
    def _one_of_two(self) -> BaseSection:
        if (self.model is None) == (self.width is None or self.tokens is None):
            raise ValueError("give width and tokens (pretrained here), or model (from elsewhere)")
        return self

    def ladder(self, rates: RatesSection) -> LadderSection:
        """The ladder of one rung that makes this base."""
        assert self.width is not None and self.tokens is not None
        steps = self.tokens // (self.batch_size * self.seq_len)
        return LadderSection(
            warmup_steps=max(1, min(40, steps // 10)),
            widths=[self.width], depth=self.depth, budgets=[self.tokens], batch_size=self.batch_size,
            seq_len=self.seq_len, mixture=self.mixture,
            rates=RatesSection(**rates.model_dump(include=set(RatesSection.model_fields))),
        )  # fmt: skip


class PosttrainRates(RatesSection):
    """Base rates; `optimiser` none: Muon for bases made here, AdamW where one comes from elsewhere."""

    optimiser: Literal["muon", "adamw"] | None = None
    lora: float = Field(default=0.005, gt=0)


class EvaluateSection(Section):
    """How each policy is judged: a greedy answer and n samples to held-out problems."""

    problems: Annotated[int, Field(ge=10)] = 1000
    n: Count = 16
    max_tokens: Count = 64
    shown_problems: int = Field(default=2, ge=0)
    bases: bool = False
    """Whether the bases are judged too: what they can do before anything is learned."""


class PosttrainLaw(Section):
    """A question to the finished runs; see `posttrain.laws`. With methods `thinking` and `crossover` it is
    put to entries of `compare`, which `runs` then names; see `posttrain.testtime_laws`."""

    name: Name
    method: Literal["final", "curve", "reward", "thinking", "crossover"]
    runs: list[Name] = Field(min_length=1)
    options: dict[str, Any] = Field(default={})

    @property
    def of_comparisons(self) -> bool:
        """Whether `runs` are entries of `compare`."""
        return self.method in ("thinking", "crossover")

    @model_validator(mode="after")
    def _options_exist(self) -> PosttrainLaw:
        from flopwise.posttrain.laws import OPTIONS

        known = OPTIONS[self.method]
        if wrong := [key for key in self.options if key not in known]:
            raise ValueError(f"options has {wrong[0]!r:.60}; method {self.method} knows {', '.join(known)}")
        if self.method == "crossover" and len(self.runs) < 3:
            raise ValueError(
                f"crossover predicts the largest model from the others: name three or more in runs, not "
                f"{len(self.runs)}"
            )
        return self

    @field_validator("options")
    @classmethod
    def _candidates_exist(cls, options: dict[str, Any]) -> dict[str, Any]:
        from flopwise.laws.law import get

        candidates = options.get("candidates", [])
        if not isinstance(candidates, list):
            raise ValueError(f"candidates is {candidates!r:.60}, must be a list of laws by name")
        try:
            for candidate in candidates:
                get(str(candidate))
        except FlopwiseError as e:
            raise ValueError(str(e)) from None
        return options


class RunEntry(Section):
    """One run of the experiment, checked: its method, the runs it reads by role, its settings."""

    method: str
    roles: dict[str, Name]
    data: Name | None = None
    seeds: Annotated[list[Seed], Field(min_length=1)] | None = None
    evaluate: bool = True
    settings: dict[str, Any]

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: list[int] | None) -> list[int] | None:
        return seeds and differ(seeds)

    @property
    def run(self) -> str:
        """Who makes it: "module:function"."""
        trl = self.settings.get("backend") == "trl"
        return "flopwise.posttrain.trl_backend:run_step" if trl else self.kind.run

    @property
    def kind(self) -> Method:
        """The registry's entry."""
        return METHODS[self.method]


class PosttrainRecipe(Section):
    """An experiment of law 2."""

    kind: Literal["posttrain"]
    name: str
    title: str = ""
    seed: Seed = 0
    seeds: list[Seed] = Field(default=[0], min_length=1)
    """Every run is made with each; `seed` is that of data and base, which they share."""
    workers: Annotated[int, Field(ge=0, le=256)] = 2
    data: PosttrainData | None = None
    """The verifiable task that models are judged on; none: they are judged by held-out rows."""
    datasets: dict[Name, DatasetSection] = Field(default={})
    bases: dict[Name, BaseSection] = Field(min_length=1)
    rates: PosttrainRates = PosttrainRates()
    val_problems: Count = 256
    runs: dict[Name, dict[str, Any]] = Field(default={})
    evaluate: EvaluateSection = EvaluateSection()
    compare: list[CompareSection] = Field(default=[])
    laws: list[PosttrainLaw] = Field(default=[])

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: list[int]) -> list[int]:
        return differ(seeds)

    @model_validator(mode="after")
    def _runs_fit(self) -> PosttrainRecipe:
        if not self.runs and not self.compare:
            raise ValueError("there is nothing to do: give runs, or compare strategies on a base")
        entries = self.entries
        if self.data is None:
            if made := [name for name, base in self.bases.items() if base.model is None]:
                raise ValueError(f"bases.{made[0]} is pretrained here, which needs data: give data.task")
            if bare := [name for name, entry in entries.items() if entry.data is None]:
                raise ValueError(f"runs.{bare[0]} has nothing to learn from: give data.task, or its own data")
        else:
            self._problems_suffice(self.data)
            self._mixtures_fit(self.data)
        if "data" in self.bases:
            raise ValueError("bases.data has the name of the step that prepares data; give it another")
        if len({law.name for law in self.laws}) < len(self.laws):
            raise ValueError("two laws have the same name; give each its own")
        self._comparisons_fit(entries)
        for law in self.laws:
            there = [c.name for c in self.compare] if law.of_comparisons else list(entries)
            if wrong := [r for r in law.runs if r not in there]:
                what = "comparison" if law.of_comparisons else "run"
                raise ValueError(
                    f"laws.{law.name} names {what} {wrong[0]!r}; there are {', '.join(there) or 'none'}"
                )
        return self

    def _comparisons_fit(self, entries: dict[str, RunEntry]) -> None:
        """Models answer, scorers score, and there are problems to ask."""
        if len({c.name for c in self.compare}) < len(self.compare):
            raise ValueError("two entries of compare have the same name; give each its own")
        makes = {name: entry.kind.makes for name, entry in entries.items()}
        for c in self.compare:
            at = f"compare.{c.name}"
            if c.model not in self.bases and makes.get(c.model) != "policy":
                answer = [*self.bases, *(name for name, made in makes.items() if made == "policy")]
                raise ValueError(f"{at}.model is {c.model!r}; models that answer are {', '.join(answer)}")
            for role, run in c.scorers.items():
                if makes.get(run) != "scorer":
                    score = ", ".join(name for name, made in makes.items() if made == "scorer") or "none"
                    raise ValueError(f"{at}.{role} is {run!r}; runs that score are {score}")
                if (entries[run].method == "process-reward") != (role == "process"):
                    raise ValueError(
                        f"{at}.{role} is {run!r}, of method {entries[run].method}; process takes one of "
                        "process-reward, reward one that judges whole answers"
                    )
            if c.task is None and self.data is None:
                raise ValueError(f"{at} has no problems to ask: give it a task, or the recipe data.task")
            if c.task is None and self.data is not None and c.problems > self.data.test_problems:
                raise ValueError(
                    f"{at}.problems asks for {c.problems:,}, data.test_problems is "
                    f"{self.data.test_problems:,}"
                )

    def _problems_suffice(self, data: PosttrainData) -> None:
        """Fewer problems than a run says it was judged on would go unseen."""
        if not self.runs and not self.evaluate.bases:
            return
        wanted = (("val_problems", self.val_problems, "val_problems"),
                  ("evaluate.problems", self.evaluate.problems, "test_problems"))  # fmt: skip
        for key, number, pool in wanted:
            if number > getattr(data, pool):
                raise ValueError(
                    f"{key} asks for {number:,} problems, data.{pool} is {getattr(data, pool):,}"
                )

    def _mixtures_fit(self, data: PosttrainData) -> None:
        """What bases read is there, in their own tokens."""
        known = dict.fromkeys(("text", "task", *data.corpora))
        here = {name: base for name, base in self.bases.items() if base.model is None}
        if here and not data.corpora and next(iter(self.bases)) not in here:
            raise ValueError(
                f"bases.{next(iter(here))} would read the task in the tokens of the first base; name it first"
            )
        if here and not data.corpora:
            raise ValueError(
                f"bases.{next(iter(here))} is pretrained here, and its loss is taken on held-out text: name "
                "some in data.corpora"
            )
        for name, base in here.items():
            if wrong := [source for source in base.mixture if source not in known]:
                raise ValueError(
                    f"bases.{name}.mixture names {wrong[0]!r:.60}, must be among {', '.join(known)}"
                )

    @property
    def entries(self) -> dict[str, RunEntry]:
        """The runs, checked, in an order in which each comes after those it reads.

        Raises:
            ValueError: an unknown method, role or setting, a role missing, a circle.
        """
        found: dict[str, RunEntry] = {}
        for name, content in expand_rounds(self.runs).items():
            if name in self.bases:
                raise ValueError(f"runs.{name} is also a base; give the run another name")
            found[name] = self._entry(name, dict(content))
        known = {*self.bases, *found}
        for name, entry in found.items():
            for role, other in entry.roles.items():
                if other not in known:
                    raise ValueError(
                        f"runs.{name}.{role} is {other!r:.60}; there are {', '.join(sorted(known))}"
                    )
        ordered: dict[str, RunEntry] = {}
        while len(ordered) < len(found):
            ready = [
                name for name, entry in found.items()
                if name not in ordered and all(r in ordered or r in self.bases for r in entry.roles.values())
            ]  # fmt: skip
            if not ready:
                left = sorted(set(found) - set(ordered))
                raise ValueError(f"runs {', '.join(left)} wait for each other; break the circle")
            ordered |= {name: found[name] for name in ready}
        return ordered

    def _entry(self, name: str, content: dict[str, Any]) -> RunEntry:
        if "method" not in content:
            raise ValueError(f"runs.{name}.method is missing; there are {', '.join(METHODS)}")
        try:
            kind = method(str(content.pop("method")))
        except FlopwiseError as e:
            raise ValueError(f"runs.{name}: {e}") from None
        roles: dict[str, str] = {}
        for role, needed in kind.roles.items():
            plain = role.rstrip("*")
            given = content.pop(plain, None)
            if given is None and needed:
                raise ValueError(
                    f"runs.{name}.{plain} is missing: the run that method {kind.name} reads as {plain}"
                )
            if given is None:
                continue
            several = given if isinstance(given, list) else [given]
            if len(several) > 1 and not role.endswith("*"):
                raise ValueError(f"runs.{name}.{plain} takes one run, not {len(several)}")
            if not all(isinstance(g, str) for g in several):
                raise ValueError(f"runs.{name}.{plain} is {given!r:.60}, must be the name of a run")
            roles |= {plain if i == 0 else f"{plain}{i + 1}": g for i, g in enumerate(several)}
        shared = {key: content.pop(key) for key in ("data", "seeds", "evaluate") if key in content}
        if (data := shared.get("data")) is not None and str(data) not in self.datasets:
            raise ValueError(
                f"runs.{name}.data is {data!r:.60}; datasets are {', '.join(self.datasets) or 'none'}"
            )
        settings = _checked(kind.section, content, f"runs.{name}")
        if settings.backend == "trl":
            from flopwise.posttrain import trl_backend

            if reason := trl_backend.check(kind.name, settings.spec()):
                raise ValueError(f"runs.{name}: {reason}")
        if lacking := settings.lacks(roles | ({"data": data} if data else {})):
            raise ValueError(f"runs.{name}: {lacking}")
        known = {"method": kind.name, "roles": roles, "settings": settings.spec()}
        return _checked(RunEntry, known | shared, f"runs.{name}")


S = TypeVar("S", bound=Section)


def _checked(form: type[S], content: dict[str, Any], place: str) -> S:
    """A section of this form.

    Raises:
        ValueError: its first mistake, with its place.
    """
    from flopwise.launch.recipe import _explain

    try:
        return form.model_validate(content)
    except ValidationError as e:
        raise ValueError(f"{place}: {_explain(e, form)}") from None
