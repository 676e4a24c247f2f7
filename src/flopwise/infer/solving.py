"""`fw.solve`: prompts in, answers out, with how they came about and what they cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flopwise.data.tasks import SHOTS, Problem, Step, Task
from flopwise.data.tasks import task as task_of
from flopwise.errors import FlopwiseError
from flopwise.flops.count import generate_flops, prefill_flops, score_flops
from flopwise.flops.spend import Spend, Stopwatch
from flopwise.infer import strategies
from flopwise.infer.asking import Asked
from flopwise.infer.estimators import mean_interval
from flopwise.infer.resolve import Found, find_model
from flopwise.infer.strategies import Candidate, Choice

if TYPE_CHECKING:
    from flopwise.data.tokenizer import Tokenizer
    from flopwise.infer.engine import SampleBatch
    from flopwise.infer.local import LocalEngine
    from flopwise.models.config import ModelConfig

MOST_SAMPLES = 500_000
"""Per call, so that what is kept of each fits into memory."""
UNSEEN_SEED = 20_260
"""Seed of problems for a model whose own held-out ones are not at hand."""
DEFAULT_TASK = "countdown"


@dataclass(frozen=True)
class Answer:
    """What one prompt got.

    `answer` is the chosen sample's, in canonical form, None where all samples abstain; `correct` is the
    verifier's word on it; `steps` are its steps, each judged; `flops` is by purpose.
    """

    prompt: str
    answer: str | None
    correct: bool
    completion: str
    steps: list[Step]
    choice: Choice
    candidates: list[Candidate]
    flops: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)


@dataclass(frozen=True)
class Solution:
    """Answers in the order of the prompts; `flops` of all by purpose (prefill, decode, score); the spend; of
    which task, asked in which style."""

    answers: list[Answer]
    flops: dict[str, float]
    spend: Spend
    task: str
    style: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {
            "answers": [a.to_dict() for a in self.answers],
            "flops": self.flops | {"total": sum(self.flops.values())},
            "spend": self.spend.to_dict(),
            "task": self.task,
            "style": self.style,
        }


def solve(
    model: str | Path,
    prompts: str | Problem | Sequence[str | Problem],
    strategy: str = "best_of_n",
    n: int = 16,
    by: str = "verifier",
    reward: str | Path | None = None,
    temperature: float = 1.0,
    max_tokens: int | None = None,
    seed: int = 0,
    runs: str | Path | None = None,
    on_progress: Callable[[float], None] | None = None,
    task: str | None = None,
    style: str = "plain",
    shots: int = SHOTS,
) -> Solution:
    """Answer problems of a task by a strategy.

    Args:
        model: a Hugging Face folder, a run's folder, or a run by name (`infer.resolve.find_model`).
        prompts: problems as people type them, "7, 3, 3 = 24"; one or several.
        strategy: greedy (one sample at temperature 0), self_consistency, best_of_n.
        n: samples per prompt.
        by: judge of best_of_n: verifier (exact, no model FLOPs), reward, logprob.
        reward: the reward model that `by="reward"` goes by, resolved like `model`.
        max_tokens: limit of a completion; one that reaches it is unfinished and abstains. By default what
            the task's solutions need, as far as the model's context reaches.
        task: which task's problems they are (`data.tasks`); by default the one of the model's data, or
            countdown.
        style: how the model is asked: plain, few_shot (after `shots` worked problems), chat (by the model's
            own template).

    Raises:
        FlopwiseError: a prompt, model or setting that cannot be used.
    """

    watch = Stopwatch()
    chosen = strategies.make(f"{strategy}:{by}" if strategy == "best_of_n" else strategy)
    assert isinstance(chosen, strategies.Choosing)
    if (strategy == "best_of_n" and by == "reward") != (reward is not None):
        raise FlopwiseError("solve: best_of_n by reward and a reward model go together; give both or neither")
    if chosen.temperature is not None:
        temperature, n = chosen.temperature, 1
    listed = _listed(prompts)
    if not listed:
        raise FlopwiseError("solve: there is no prompt; give one, for example '7 3 3 = 24'")
    if len(listed) * n > MOST_SAMPLES:
        raise FlopwiseError(
            f"solve: {len(listed)} prompts x {n:,} samples exceed {MOST_SAMPLES:,}; lower n or ask in parts"
        )
    # Without a name the task is that of the model's data; with one, mistakes are told before a model is read.
    found = find_model(model, runs) if task is None else None
    exercise = task_of(task or (found and _own_task(found)) or DEFAULT_TASK)
    problems = [exercise.parse(p) if isinstance(p, str) else p for p in listed]
    found = found or find_model(model, runs)
    engine, tokenizer = _open(found)
    judge = None if reward is None else _open_judge(find_model(reward, runs), found)
    asked = Asked.of(exercise, problems, style, shots, tokenizer, found.folder)
    ids = asked.ids
    if max_tokens is None:
        max_tokens = max(1, min(exercise.max_tokens, engine.cfg.max_seq_len - max(map(len, ids))))
    share = 1.0 if judge is None else 0.7
    samples = engine.sample(
        ids, n, max_tokens, asked.stop, temperature, seed=seed,
        on_progress=None if on_progress is None else lambda f: on_progress(share * f),
    )  # fmt: skip
    rewards = None
    if judge is not None:
        whole = [ids[p] + c for p, c in zip(samples.prompt_index, samples.completions(False), strict=True)]
        rewards = judge.reward(whole)[0]
    texts = tokenizer.decode_batch(samples.completions())
    answers = []
    for i, problem in enumerate(problems):
        rows = range(i * n, (i + 1) * n)
        candidates = [_candidate(exercise, problem, texts[r], r, samples, rewards) for r in rows]
        choice = chosen.choose(candidates, np.random.default_rng((abs(seed), i)))
        lengths = samples.lengths[i * n : (i + 1) * n].tolist()
        flops = _flops(engine.cfg, None if judge is None else judge.cfg, len(ids[i]), lengths)
        answers.append(_answer(exercise, problem, candidates, choice, flops))
    total = {key: sum(a.flops[key] for a in answers) for key in ("prefill", "decode", "score")}
    spend = watch.spend(
        generate_flops=total["prefill"] + total["decode"], score_flops=total["score"],
        tokens=samples.usage.prefill_tokens + samples.usage.decode_tokens,
    )  # fmt: skip
    return Solution(answers, total, spend, exercise.name, asked.style)


def accuracy(
    model: str | Path,
    n_problems: int = 500,
    data: str | Path | None = None,
    runs: str | Path | None = None,
    task: str | None = None,
    **how: Any,
) -> dict[str, Any]:
    """Accuracy of a strategy on held-out problems, with its standard error and interval over problems.

    Args:
        data: the data run (its folder, or its name) whose test problems are asked; by default that of the
            run the model came from, if it is of the task. Without any, problems are generated, and
            `maybe_seen` is true: training may have held some of them.
        task: what is asked; by default the task of the data, or countdown.
        how: `strategy`, `n` and so on, as `solve` takes them.

    Returns:
        value, low, high (95%), se, n_problems, abstained, flops_per_question, problems_from, maybe_seen,
        task, style.
    """
    if n_problems < 2:
        raise FlopwiseError(f"eval: {n_problems} problems asked for, an interval takes at least 2")
    named = None if task is None else task_of(task)
    found = find_model(model, runs)
    folder = found.data if data is None else _data_folder(data, runs)
    own = None if folder is None else _task_name(folder)
    if data is not None and (own is None or task not in (None, own)):
        raise FlopwiseError(
            f"eval: {folder} holds problems of {own or 'no task'}, not of {task or DEFAULT_TASK}; "
            "give other data, or leave --data out"
        )
    exercise = named or task_of(own or DEFAULT_TASK)
    if folder is not None and exercise.name == own:
        from flopwise.data.prepare import PreparedData

        problems = PreparedData(folder).problems("test")
        if n_problems > len(problems):
            raise FlopwiseError(
                f"eval: {n_problems} problems asked for, {folder} has {len(problems)}; ask for fewer"
            )
        problems = problems[:n_problems]
    else:
        folder = None
        problems = exercise.generate(n_problems, UNSEEN_SEED)
    solution = solve(found.folder, problems, runs=runs, task=exercise.name, **how)
    right = np.array([a.correct for a in solution.answers], dtype=float)
    per_question = {key: flops / len(problems) for key, flops in solution.flops.items()}
    return {
        **mean_interval(right),
        "n_problems": len(problems),
        "abstained": sum(a.answer is None for a in solution.answers),
        "flops_per_question": per_question | {"total": sum(per_question.values())},
        "problems_from": f"test split of {folder}" if folder else f"generated with seed {UNSEEN_SEED}",
        "maybe_seen": folder is None,
        "task": solution.task,
        "style": solution.style,
    }


def _listed(prompts: str | Problem | Sequence[str | Problem]) -> list[str | Problem]:
    return [prompts] if isinstance(prompts, str) or hasattr(prompts, "prompt") else list(prompts)  # type: ignore


def _own_task(found: Found) -> str | None:
    """The task of the data that a model was made from."""
    return None if found.data is None else _task_name(found.data)


def _task_name(folder: Path) -> str | None:
    """The task of a data folder."""
    from flopwise.data.prepare import PreparedData

    return PreparedData(folder).task


def _open(found: Found) -> tuple[LocalEngine, Tokenizer]:
    from flopwise.data.tokenizer import Tokenizer
    from flopwise.infer.local import LocalEngine
    from flopwise.models import hf

    model = hf.load(found.folder).eval()
    if model.n_scores:
        raise FlopwiseError(
            f"model {found.folder} is a reward model, which writes nothing; take a language model"
        )
    return LocalEngine(model), Tokenizer.load(found.folder)


def _open_judge(found: Found, policy: Found) -> LocalEngine:
    """A reward model that reads what the policy writes."""
    from flopwise.infer.local import LocalEngine
    from flopwise.models import hf

    engine = LocalEngine(hf.load(found.folder).eval())
    texts = [_bytes(folder / "tokenizer.json") for folder in (found.folder, policy.folder)]
    if texts[0] != texts[1]:
        raise FlopwiseError(f"reward model {found.folder} has another tokenizer than the model it judges")
    return engine


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise FlopwiseError(f"{path} cannot be read ({e.strerror}); save the model with its tokenizer") from e


def _data_folder(data: str | Path, runs: str | Path | None) -> Path:
    """A data folder itself, or a run by name."""
    from flopwise.data.prepare import ABOUT_FILE
    from flopwise.records.store import RunStore

    path = Path(data)
    if (path / ABOUT_FILE).is_file():
        return path
    if runs is None and not path.parent.is_dir():
        raise FlopwiseError(f"data {str(data)[:120]!r} is no data run's folder; give one, or RUNS/NAME")
    return (
        RunStore(runs).folder(str(data)) if runs is not None else RunStore(path.parent).folder(path.name)
    ).path


def _candidate(
    task: Task[Any], problem: Any, text: str, row: int, samples: SampleBatch, rewards: np.ndarray | None
) -> Candidate:
    """A sample judged; one cut short at the limit neither votes nor counts as right."""
    whole = bool(samples.finished[row])
    return Candidate(
        text,
        task.answer(text) if whole else None,
        float(samples.logprobs[row].sum()),
        int(samples.lengths[row]),
        whole and task.verify(problem, text),
        {} if rewards is None else {"reward": float(rewards[row])},
    )


def _answer(
    task: Task[Any], problem: Any, candidates: list[Candidate], choice: Choice, flops: dict[str, float]
) -> Answer:
    if choice.index is None:
        return Answer(problem.prompt, None, False, "", [], choice, candidates, flops)
    best = candidates[choice.index]
    steps = task.steps(best.text, problem)
    return Answer(
        problem.prompt, best.answer, bool(best.correct), best.text, steps, choice, candidates, flops
    )


def _flops(cfg: ModelConfig, judge: ModelConfig | None, prompt: int, lengths: list[int]) -> dict[str, float]:
    """By purpose, for one prompt. Scoring applies the judge to every sample; a verifier takes no model."""
    prefill = prefill_flops(cfg, prompt).total
    decode = generate_flops(cfg, prompt, lengths).total - prefill
    scoring = (
        0.0
        if judge is None
        else sum(score_flops(judge, prompt + length, n_logits=0).total for length in lengths)
    )
    return {"prefill": prefill, "decode": decode, "score": scoring}
