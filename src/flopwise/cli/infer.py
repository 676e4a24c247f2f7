"""`flopwise tasks`, `solve`, `eval`, `score`: test-time compute, on own models and on anybody's samples."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flopwise.cli.shared import Bar, read
from flopwise.cli.tables import Where, heard
from flopwise.errors import FlopwiseError

if TYPE_CHECKING:
    from flopwise.infer.solving import Answer

MODEL_HELP = "A Hugging Face folder, a run's folder, or RUNS/NAME, as demo/grpo."
Model = Annotated[str, typer.Argument(help=MODEL_HELP)]
Strategy = Annotated[str, typer.Option("--strategy", help="greedy, self_consistency or best_of_n.")]
N = Annotated[int, typer.Option("-n", help="Samples per prompt (greedy takes one).")]
By = Annotated[str, typer.Option("--by", help="Judge of best_of_n: verifier, reward or logprob.")]
Reward = Annotated[
    str | None, typer.Option("--reward", help="Reward model, named like MODEL; implies --by reward.")
]
Temperature = Annotated[float, typer.Option("--temperature", help="Of sampling; 0 is greedy.")]
MaxTokens = Annotated[
    int | None,
    typer.Option("--max-tokens", help="Limit of a completion; by default what the task's solutions need."),
]
TaskName = Annotated[
    str | None,
    typer.Option(
        "--task",
        help="Which problems: see `flopwise tasks`; by default those of the model's data, or countdown.",
    ),
]
Style = Annotated[
    str,
    typer.Option(
        "--style",
        help="How it is asked: plain, few_shot (after worked problems), chat (the model's template).",
    ),
]
Shots = Annotated[int, typer.Option("--shots", help="Worked problems before each in the style few_shot.")]
Seed = Annotated[int, typer.Option("--seed", help="The same seed gives the same samples.")]
Runs = Annotated[Path | None, typer.Option("--runs", help="Folder of runs in which MODEL is a name.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("tasks")(tasks)
    app.command("solve")(solve)
    app.command("eval")(evaluate)
    app.command("score")(score)


def tasks(
    name: Annotated[
        str | None, typer.Argument(help="Show problems of this one: a name, table:FILE or gym:NAME.")
    ] = None,
    n: Annotated[int, typer.Option("-n", help="How many problems to show.")] = 3,
    seed: Annotated[int, typer.Option("--seed", help="Another seed shows others.")] = 0,
    as_json: Json = False,
) -> None:
    """The problems a program can judge: what there is, or one of them with worked solutions."""
    from flopwise.data.tasks import TASKS, task

    if name is None:
        rows = [
            {"task": t.name, "about": t.about, "example": t.example, "slices": t.slices}
            for t in TASKS.values()
        ]
        if as_json:
            typer.echo(json.dumps(rows, indent=1))
            return
        for t in TASKS.values():
            typer.echo(f"{t.name:<16}{t.about}")
            typer.echo(f"{'':<16}{_printable(t.example)}")
        typer.echo("table:FILE      your own rows; gym:NAME  those of reasoning-gym; see docs/tasks.md")
        return
    one = task(name)
    shown = [
        {
            "prompt": p.prompt, "slice": one.slice_of(p), "chat": one.prompt_for(p, "chat"),
            "demonstration": one.demonstration(p, seed),
        }
        for p in one.generate(n, seed)
    ]  # fmt: skip
    about = {"task": one.name, "about": one.about, "slices": one.slices, "max_tokens": one.max_tokens}
    if as_json:
        typer.echo(json.dumps({**about, "problems": shown}, indent=1))
        return
    typer.echo(f"{_printable(one.name)}: {_printable(one.about)}")
    typer.echo(f"slices: {_printable(', '.join(one.slices))}")
    for row in shown:
        typer.echo(_printable(f"{row['prompt']}{row['demonstration']}"))


def solve(
    model: Model,
    prompt: Annotated[
        list[str], typer.Option("-p", "--prompt", help="A problem, as '7, 3, 3 = 24'; repeatable.")
    ],
    task: TaskName = None,
    strategy: Strategy = "best_of_n",
    n: N = 16,
    by: By = "verifier",
    reward: Reward = None,
    temperature: Temperature = 1.0,
    max_tokens: MaxTokens = None,
    style: Style = "plain",
    shots: Shots = 4,
    seed: Seed = 0,
    runs: Runs = None,
    as_json: Json = False,
) -> None:
    """Answer problems: the answer, its steps marked right or wrong, how it was chosen, what it cost."""
    from flopwise.infer.solving import solve as run

    _settle()
    bar = Bar("sampling", quiet=as_json)
    solution = run(
        model,
        prompt,
        strategy,
        n,
        _judge(by, reward),
        reward,
        temperature,
        max_tokens,
        seed,
        runs,
        on_progress=bar,
        task=task,
        style=style,
        shots=shots,
    )
    bar.close()
    if as_json:
        typer.echo(json.dumps(solution.to_dict(), indent=1))
        return
    for answer in solution.answers:
        _show(answer)
    typer.echo(f"{sum(solution.flops.values()):.3g} FLOPs in all, {_parts(solution.flops)}")


def evaluate(
    model: Model,
    task: TaskName = None,
    strategy: Strategy = "greedy",
    n: N = 16,
    problems: Annotated[int, typer.Option("--problems", help="Held-out problems to ask.")] = 500,
    data: Annotated[
        str | None, typer.Option("--data", help="Data run (RUNS/NAME or folder) with the problems.")
    ] = None,
    by: By = "verifier",
    reward: Reward = None,
    temperature: Temperature = 1.0,
    max_tokens: MaxTokens = None,
    style: Style = "plain",
    shots: Shots = 4,
    seed: Seed = 0,
    runs: Runs = None,
    as_json: Json = False,
) -> None:
    """Accuracy of a strategy on held-out problems, with its interval, and FLOPs per question."""
    from flopwise.infer.solving import accuracy

    _settle()
    bar = Bar("sampling", quiet=as_json)
    result = accuracy(
        model, problems, data, runs, strategy=strategy, n=n, by=_judge(by, reward), reward=reward,
        temperature=temperature, max_tokens=max_tokens, seed=seed, on_progress=bar, task=task,
        style=style, shots=shots,
    )  # fmt: skip
    bar.close()
    if as_json:
        typer.echo(json.dumps(result, indent=1))
        return
    each = result["flops_per_question"]
    typer.echo(
        f"accuracy {result['value']:.3f} (standard error {result['se']:.3f}, 95% {result['low']:.3f} to "
        f"{result['high']:.3f}) on {result['n_problems']} problems, {result['abstained']} without an answer"
    )
    typer.echo(f"{each['total']:.3g} FLOPs per question, {_parts(each)}")
    asked = f"{result['task']}, {result['style']}, {result['problems_from']}"
    typer.echo(f"problems: {_printable(asked)}")
    if result["maybe_seen"]:
        typer.echo(
            "flopwise: these problems were generated and may have been in the model's training; "
            "name held-out ones with --data",
            err=True,
        )


def score(
    samples: Annotated[
        Path, typer.Argument(help="CSV, JSON lines or Parquet: problem, correct[, answer][, score].")
    ],
    k: Annotated[str, typer.Option("--k", help="Sample counts, as 1,2,4,8.")] = "1,2,4,8",
    mapping: Annotated[
        list[str] | None,
        typer.Option("--map", help="Where columns have other names: score=prm_score,problem=id"),
    ] = None,
    where: Where = None,
    as_json: Json = False,
) -> None:
    """pass@k, majority@k and best-of-n@k of judged samples, exact over subsets, with intervals."""
    from flopwise.infer.scoring import score as run

    try:
        sizes = [int(part) for part in k.split(",")]
    except ValueError:
        raise FlopwiseError(f"score: --k is {k[:60]!r}, must be whole numbers, as 1,2,4,8") from None
    with heard():
        table = read(samples, mapping, where)
    result = run(table, sizes)
    if as_json:
        typer.echo(json.dumps(result, indent=1))
        return
    typer.echo(f"{result['n_samples']} samples of {result['n_problems']} problems; value (95% over problems)")
    for key, title in (("pass_at_k", "pass@k"), ("majority_at_k", "majority@k"), ("best_of_n", "best of n")):
        for size, entry in result.get(key, {}).items():
            typer.echo(f"{title:<11}{size:>6}  {_entry(entry)}")


def _judge(by: str, reward: str | None) -> str:
    """Naming a reward model means going by it."""
    return "reward" if reward is not None and by == "verifier" else by


def _entry(entry: dict[str, Any]) -> str:
    if entry["value"] is None:
        return f"none: {entry.get('reason', 'not a number')}"
    span = f" ({entry['low']:.3f} to {entry['high']:.3f})" if entry["low"] is not None else " (one problem)"
    drawn = f"  subsets drawn, error {entry['mc_se']:.4f}" if entry.get("mc_se") else ""
    return f"{entry['value']:.3f}{span}{drawn}"


def _show(answer: Answer) -> None:
    """One prompt's answer, for people."""
    choice, n = answer.choice, len(answer.candidates)
    verdict = "right" if answer.correct else "wrong"
    given = f"{_printable(answer.answer)}  {verdict}" if answer.answer else f"no answer from {n} sample(s)"
    typer.echo(f"{answer.prompt}  {given}")
    for step in answer.steps:
        mark = "right" if step.ok else "wrong"
        typer.echo(
            f"    {mark}  {_printable(step.text)}" + (f"  ({_printable(step.why)})" if step.why else "")
        )
    if choice.votes:
        shown = ", ".join(f"{_printable(a)} {count}" for a, count in list(choice.votes.items())[:5])
        more = f", {len(choice.votes) - 5} more" if len(choice.votes) > 5 else ""
        silent = n - sum(choice.votes.values())
        typer.echo(f"    votes of {n}: {shown}{more}; {silent} abstain")
    if choice.scores and choice.index is not None:
        typer.echo(
            f"    sample {choice.index + 1} of {n} scored {choice.scores[choice.index]:.4g}, "
            f"the lowest {min(choice.scores):.4g}"
        )
    if choice.tied > 1:
        typer.echo(f"    {choice.tied} were level; one was drawn")
    typer.echo(f"    {sum(answer.flops.values()):.3g} FLOPs, {_parts(answer.flops)}")


def _parts(flops: dict[str, float]) -> str:
    return f"{flops['prefill']:.2g} prefill + {flops['decode']:.2g} decode + {flops['score']:.2g} scoring"


def _printable(text: str) -> str:
    """Text of a model or a path without what could steer a terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _settle() -> None:
    """One thread unless OMP_NUM_THREADS says otherwise: models this small lose by more on a busy machine."""
    import torch

    from flopwise.flops.hardware import keep_freed_memory

    keep_freed_memory()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
