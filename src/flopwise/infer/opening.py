"""From what a person names (model or server, task, scorers, store) to a room that strategies work in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flopwise.data.tasks import SHOTS, Task
from flopwise.errors import FlopwiseError
from flopwise.infer.asking import Asked
from flopwise.infer.resolve import Found, find_model
from flopwise.infer.scorers import JudgeScorer, OutcomeScorer, ProcessScorer, Scorer, need, scorer_of
from flopwise.infer.strategies import Acting, Choosing

if TYPE_CHECKING:
    from flopwise.data.tokenizer import Tokenizer
    from flopwise.infer.engine import Engine
    from flopwise.infer.local import LocalEngine
    from flopwise.infer.room import Room


@dataclass(frozen=True)
class Setting:
    """How a model is asked, and what stands beside it.

    Args:
        style: plain, few_shot (after `shots` worked problems) or chat (by the model's own template).
        max_tokens: limit of a completion; one that reaches it is unfinished and abstains. By default what
            the task's solutions need, as far as the model's context reaches.
        reward, process: reward models of answers and of steps, named like the model.
        probe: folder of a probe on the model's hidden states (`infer.probe`).
        judge: a run of method judge, or a model that grades by a rubric.
        endpoint: address of an OpenAI-compatible server, up to and with /v1; the model is its name there.
        tokenizer: folder or model whose tokenizer a server's texts are counted in; by default bytes.
        store: folder of samples that were drawn before and are not drawn again (`infer.store`).
        precision: how the model's weights are kept: float32, bfloat16, int8 or int4 (`infer.weights`).
        runs: folder in which models are names.
    """

    style: str = "plain"
    shots: int = SHOTS
    temperature: float = 1.0
    max_tokens: int | None = None
    reward: str | Path | None = None
    process: str | Path | None = None
    probe: str | Path | None = None
    judge: str | Path | None = None
    endpoint: str | None = None
    tokenizer: str | Path | None = None
    store: str | Path | None = None
    precision: str = "float32"
    runs: str | Path | None = None

    def __post_init__(self) -> None:
        if self.endpoint is not None and self.probe is not None:
            raise FlopwiseError("probe: a server shows no hidden states; leave the probe or the endpoint out")

    @property
    def scorers(self) -> list[str]:
        """Names of the scorers that are given."""
        return [name for name in ("reward", "process", "probe", "judge") if getattr(self, name) is not None]


def needs(strategies: Sequence[Choosing | Acting]) -> dict[str, str]:
    """Scorers that strategies go by, each with the name of one that does."""
    found: dict[str, str] = {}
    for s in strategies:
        judges = ([s.judge] if s.judge else []) if isinstance(s, Choosing) else list(s.judges)
        for judge in judges:
            found.setdefault(scorer_of(judge), s.name)
    return found


def check_scorers(strategies: Sequence[Choosing | Acting], setting: Setting) -> None:
    """Told before a model is read.

    Raises:
        FlopwiseError: a strategy goes by a scorer that is not given.
    """
    for name, strategy in needs(strategies).items():
        need(dict.fromkeys(setting.scorers), name, strategy)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Opened:
    """A model that can be asked; `found` is where it is on this machine, None behind a server."""

    engine: Engine
    tokenizer: Tokenizer
    name: str
    found: Found | None

    @property
    def folder(self) -> Path:
        """With its chat template."""
        return Path() if self.found is None else self.found.folder


def open_model(model: str | Path, setting: Setting, strategies: Sequence[Choosing | Acting] = ()) -> Opened:
    """A local model or one behind a server, with the store in front of it where there is one.

    Raises:
        FlopwiseError: the model is not there, writes nothing, or the address is none.
    """
    if setting.endpoint is None:
        # What acts goes on from what was written: keys and values are kept for it.
        acts = any(not isinstance(s, Choosing) for s in strategies)
        opened = _local(find_model(model, setting.runs), setting, acts)
    else:
        opened = _remote(str(model), setting, strategies)
    if setting.store is None:
        return opened
    from flopwise.infer.store import Store, Stored, model_hash

    source = opened.found.folder if opened.found else f"{setting.endpoint} {model} {setting.style}"
    mark = model_hash(source, setting.precision)
    stored = Stored(opened.engine, Store(Path(setting.store)), mark, opened.name)
    return Opened(stored, opened.tokenizer, opened.name, opened.found)


def open_room(opened: Opened, task: Task[Any], problems: Sequence[Any], setting: Setting) -> Room:
    """Problems asked in the setting's style, with its scorers.

    Raises:
        FlopwiseError: a scorer is not there, or is none for this model.
    """
    from flopwise.infer.room import Room

    if setting.endpoint is not None and setting.style == "chat":
        # The server's own template goes around the words.
        ids = opened.tokenizer.encode_batch([task.question(p) for p in problems])
        asked = Asked(ids, [opened.tokenizer.eos_id], "chat")
    else:
        asked = Asked.of(task, problems, setting.style, setting.shots, opened.tokenizer, opened.folder)
    limit = setting.max_tokens
    if limit is None:
        cfg = getattr(opened.engine, "cfg", None)
        limit = task.max_tokens
        if cfg is not None:
            limit = max(1, min(limit, cfg.max_seq_len - max(map(len, asked.ids))))
    scorers = _scorers(opened, task, setting)
    return Room(
        opened.engine, opened.tokenizer, task, list(problems), asked, limit, setting.temperature, scorers
    )


def _local(found: Found, setting: Setting, acts: bool) -> Opened:
    from flopwise.data.tokenizer import Tokenizer

    engine = _engine(found, setting.precision, acts)
    if engine.model.n_scores:
        raise FlopwiseError(
            f"model {found.folder} is a reward model, which writes nothing; take a language model"
        )
    run = found.run
    name = found.folder.name if run is None else run.name or run.id
    return Opened(engine, Tokenizer.load(found.folder), name, found)


def _remote(model: str, setting: Setting, strategies: Sequence[Choosing | Acting]) -> Opened:
    from flopwise.data.tokenizer import ByteTokenizer, Tokenizer
    from flopwise.infer.endpoint import Endpoint
    from flopwise.infer.remote import RemoteEngine

    assert setting.endpoint is not None
    endpoint = Endpoint(setting.endpoint, model)
    by = {getattr(s, part, "") for s in strategies for part in ("by", "weight")}
    tokenizer: Tokenizer = ByteTokenizer()
    if setting.tokenizer is not None:
        folder = Path(setting.tokenizer)
        there = (folder / "tokenizer.json").is_file()
        tokenizer = Tokenizer.load(folder if there else find_model(folder, setting.runs).folder)
    logprobs = any(str(name).startswith("logprob") for name in by)
    engine = RemoteEngine(endpoint, tokenizer, setting.style == "chat", logprobs)
    return Opened(engine, tokenizer, endpoint.name, None)


def _engine(found: Found, precision: str = "float32", keeps: bool = False) -> LocalEngine:
    from flopwise.infer.local import LocalEngine
    from flopwise.infer.weights import KINDS
    from flopwise.models import hf

    if precision not in KINDS:
        raise FlopwiseError(f"precision is {precision!r:.40}, must be one of {', '.join(KINDS)}")
    weights = precision if keeps or precision != KINDS[0] else None
    return LocalEngine(hf.load(found.folder).eval(), weights=weights)


def _scorers(opened: Opened, task: Task[Any], setting: Setting) -> dict[str, Scorer]:
    found: dict[str, Scorer] = {}
    if setting.reward is not None:
        found["reward"] = OutcomeScorer(_scorer_engine(setting.reward, opened, setting))
    if setting.process is not None:
        engine = _scorer_engine(setting.process, opened, setting)
        found["process"] = ProcessScorer(engine, task, opened.tokenizer)
    if setting.probe is not None:
        from flopwise.infer.probe import Probe

        assert opened.found is not None
        local: Any = opened.engine
        found["probe"] = Probe.load(Path(setting.probe), opened.found.folder, local)
    if setting.judge is not None:
        found["judge"] = _judge(setting.judge, task, setting)
    return found


def _scorer_engine(model: str | Path, opened: Opened, setting: Setting) -> LocalEngine:
    """A reward model that reads what the policy writes."""
    found = find_model(model, setting.runs)
    # Searches value texts that extend each other.
    engine = _engine(found, keeps=True)
    if not engine.model.n_scores:
        raise FlopwiseError(f"model {found.folder} has no score head, so it is no reward model; train one")
    theirs = _bytes(found.folder / "tokenizer.json")
    own = opened.tokenizer.to_str().encode() if opened.found is None else None
    if theirs != (own if own is not None else _bytes(opened.folder / "tokenizer.json")):
        raise FlopwiseError(f"reward model {found.folder} has another tokenizer than the model it judges")
    return engine


def _judge(model: str | Path, task: Task[Any], setting: Setting) -> JudgeScorer:
    """A run of method judge, or any language model with the usual rubric."""
    from flopwise.data.chat import ChatTemplate
    from flopwise.data.tokenizer import hub_tokenizer
    from flopwise.posttrain.judge import LocalReader, ModelJudge, open_judge
    from flopwise.records.folder import SPEC_FILE, RunFolder
    from flopwise.records.store import RunStore

    path = Path(model)
    run = RunFolder(path) if (path / SPEC_FILE).is_file() else None
    if run is None and setting.runs is not None:
        run = RunStore(setting.runs).folder(str(model))
    if run is not None and run.method == "judge":
        return JudgeScorer(open_judge(run, task))
    found = find_model(model, setting.runs)
    tokenizer = hub_tokenizer(str(found.folder))
    chat = ChatTemplate.load(found.folder, tokenizer)
    reader = LocalReader(_engine(found), tokenizer, found.folder.name, chat if chat.own else None)
    return JudgeScorer(ModelJudge(reader))


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise FlopwiseError(f"{path} cannot be read ({e.strerror}); save the model with its tokenizer") from e
