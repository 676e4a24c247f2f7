"""`flopwise tasks`, `strategies`, `solve`, `eval`: test-time compute, on own models and behind servers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from flopwise.cli.answers import parts, printable, show_answer, show_comparison
from flopwise.cli.probe import probe as fit_probe
from flopwise.cli.shared import Bar, settle

MODEL_HELP = "A Hugging Face folder, a run's folder, or RUNS/NAME; with --endpoint its name for the server."
Model = Annotated[str, typer.Argument(help=MODEL_HELP)]
N = Annotated[int, typer.Option("-n", help="Samples per prompt, or a budget of as many (greedy takes one).")]
By = Annotated[
    str | None, typer.Option("--by", help="The strategy's judge, as best_of_n:reward also says it.")
]
Reward = Annotated[str | None, typer.Option("--reward", help="Reward model of answers, named like MODEL.")]
Process = Annotated[str | None, typer.Option("--process", help="Reward model of steps, named like MODEL.")]
Probe = Annotated[str | None, typer.Option("--probe", help="Folder that `flopwise probe` wrote.")]
Judge = Annotated[
    str | None, typer.Option("--judge", help="A run of method judge, or a model that grades by a rubric.")
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
EndpointUrl = Annotated[
    str | None,
    typer.Option(
        "--endpoint",
        help="OpenAI-compatible server, as http://localhost:8000/v1; the key is read from OPENAI_API_KEY.",
    ),
]
TokenizerOf = Annotated[
    str | None,
    typer.Option("--tokenizer", help="Whose tokens a server's texts are counted in; by default bytes."),
]
StoreFolder = Annotated[
    Path | None,
    typer.Option("--store", help="Folder of samples: what is there is not drawn again, new ones are added."),
]
Precision = Annotated[
    str, typer.Option("--precision", help="Of the model's weights: float32, bfloat16, int8 or int4.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("tasks")(tasks)
    app.command("strategies")(list_strategies)
    app.command("solve")(solve)
    app.command("eval")(evaluate)
    app.command("probe")(fit_probe)


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
            typer.echo(f"{'':<16}{printable(t.example)}")
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
    typer.echo(f"{printable(one.name)}: {printable(one.about)}")
    typer.echo(f"slices: {printable(', '.join(one.slices))}")
    for row in shown:
        typer.echo(printable(f"{row['prompt']}{row['demonstration']}"))


def list_strategies(as_json: Json = False) -> None:
    """Ways to answer a question with more compute: what `solve` and `eval` take as --strategy."""
    from flopwise.infer.strategies import describe

    rows = describe()
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    for row in rows:
        typer.echo(f"{row['name']:<18}{row['about']}")
        how = "chooses among samples" if row["kind"] == "chooses" else "decides what is written next"
        shown = ", ".join(f"{key}={value}" for key, value in row["settings"].items())
        typer.echo(f"{'':<18}{how}" + (f"; settings {shown}" if shown else ""))
    typer.echo("write NAME, NAME:JUDGE or NAME:key=value, several by commas; see docs/test-time.md")


def solve(
    model: Model,
    prompt: Annotated[
        list[str], typer.Option("-p", "--prompt", help="A problem, as '7, 3, 3 = 24'; repeatable.")
    ],
    task: TaskName = None,
    strategy: Annotated[
        str, typer.Option("--strategy", help="As best_of_n or beam:width=4; see `flopwise strategies`.")
    ] = "best_of_n",
    n: N = 16,
    by: By = None,
    reward: Reward = None,
    process: Process = None,
    probe: Probe = None,
    judge: Judge = None,
    temperature: Temperature = 1.0,
    max_tokens: MaxTokens = None,
    style: Style = "plain",
    shots: Shots = 4,
    seed: Seed = 0,
    runs: Runs = None,
    endpoint: EndpointUrl = None,
    tokenizer: TokenizerOf = None,
    store: StoreFolder = None,
    precision: Precision = "float32",
    trace: Annotated[
        bool, typer.Option("--trace", help="Show all that the strategy did, step by step.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Answer problems: the answer, its steps marked right or wrong, how it was chosen, what it cost."""
    from flopwise.infer.solving import solve as run

    settle()
    if strategy == "best_of_n" and by is None:
        # Naming a judge means going by it.
        given = {"reward": reward, "process": process, "probe": probe, "judge": judge}
        by = next((name for name, judge_of in given.items() if judge_of), None)
    bar = Bar("sampling", quiet=as_json)
    solution = run(
        model, prompt, strategy, n, by, task=task, seed=seed, on_progress=bar, reward=reward, process=process,
        probe=probe, judge=judge, temperature=temperature, max_tokens=max_tokens, style=style, shots=shots,
        runs=runs, endpoint=endpoint, tokenizer=tokenizer, store=store, precision=precision,
    )  # fmt: skip
    bar.close()
    if as_json:
        typer.echo(json.dumps(solution.to_dict(), indent=1))
        return
    for answer in solution.answers:
        show_answer(answer, trace)
    if solution.flops_known:
        typer.echo(f"{sum(solution.flops.values()):.3g} FLOPs in all, {parts(solution.flops)}")
    else:
        tokens = sum(a.tokens for a in solution.answers)
        typer.echo(f"{tokens:,} tokens in all; what a server computes is not known")


def evaluate(
    model: Model,
    task: TaskName = None,
    strategy: Annotated[
        str,
        typer.Option("--strategy", help="One or several by commas; differences are to the first."),
    ] = "greedy",
    n: N = 16,
    problems: Annotated[int, typer.Option("--problems", help="Held-out problems to ask.")] = 500,
    data: Annotated[
        str | None, typer.Option("--data", help="Data run (RUNS/NAME or folder) with the problems.")
    ] = None,
    reward: Reward = None,
    process: Process = None,
    probe: Probe = None,
    judge: Judge = None,
    temperature: Temperature = 1.0,
    max_tokens: MaxTokens = None,
    style: Style = "plain",
    shots: Shots = 4,
    seed: Seed = 0,
    runs: Runs = None,
    endpoint: EndpointUrl = None,
    tokenizer: TokenizerOf = None,
    store: StoreFolder = None,
    precision: Precision = "float32",
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="Folder for comparison.json, samples.npz, figure .svg and .html."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare strategies on held-out problems: accuracy with its interval, FLOPs and seconds a question."""
    from flopwise.infer.assess import assess

    settle()
    bar = Bar("sampling", quiet=as_json)
    result = assess(
        model, strategy, n, problems, data, task, seed, bar, reward=reward, process=process, probe=probe,
        judge=judge, temperature=temperature, max_tokens=max_tokens, style=style, shots=shots, runs=runs,
        endpoint=endpoint, tokenizer=tokenizer, store=store, precision=precision,
    )  # fmt: skip
    bar.close()
    if out is not None:
        from flopwise.infer.compare import write
        from flopwise.report.figure_files import write_figures

        write(out, result.comparison, result.about())
        write_figures(out, result.to_dict())
    if as_json:
        typer.echo(json.dumps(result.to_dict(), indent=1))
        return
    show_comparison(result)
    if out is not None:
        typer.echo(f"written to {out}: comparison.json, samples.npz, comparison.svg, comparison.html")
