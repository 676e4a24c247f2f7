"""`flopwise sft` and its sisters: one method on one model, without a recipe."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flopwise import cli
from flopwise.cli.posttrain import GROUPS
from flopwise.errors import FlopwiseError
from flopwise.launch.posttrain import expand_posttrain
from flopwise.launch.recipe import load
from flopwise.posttrain.settings import METHODS

torch = pytest.importorskip("torch")

Said = tuple[int | str | None, str, str]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A very small untrained model with a tokenizer, in the layout of Hugging Face."""
    from flopwise.data.tokenizer import train_bpe
    from flopwise.models import hf
    from flopwise.models.config import ModelConfig
    from flopwise.models.transformer import Transformer

    tokenizer = train_bpe(["1 2 3=6: 1+2+3 is the answer, said the fox to the hen."] * 3, 300)
    cfg = ModelConfig.from_width(16, 1, tokenizer.vocab_size, 128)
    folder = tmp_path_factory.mktemp("model") / "small"
    hf.save(Transformer(cfg).initialise(0), folder, tokenizer)
    return folder


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    text = [{"prompt": f"{i} plus {i}: ", "completion": f"{2 * i}"} for i in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in text))
    return path


@pytest.fixture
def flopwise(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """flopwise("sft", ...): exit code, stdout, stderr, in this process."""

    def run(*words: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["flopwise", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capsys.readouterr()
        return stopped.value.code, out, err

    return run


def planned(flopwise: Any, *words: object) -> dict[str, dict[str, Any]]:
    """Steps of a dry run by name."""
    code, out, err = flopwise(*words, "--dry-run", "--json")
    assert not code, err
    return {step["name"]: step for step in json.loads(out)}


def test_rows_of_ones_own_are_learned_by_adapters_and_found_done(
    flopwise: Any, model: Path, rows: Path, tmp_path: Path
) -> None:
    out = tmp_path / "runs"
    words = ["sft", model, rows, "--steps", 5, "--lora", 4, "--batch-size", 4, "--out", out, "--workers", 0]
    code, _, err = flopwise(*words, "--json")
    assert not code, err
    from flopwise.records.store import RunStore

    record = RunStore(out).folder("sft-s0").record()
    assert (record.status, record.kind, record.method) == ("done", "sft", "sft")
    spec = RunStore(out).folder("sft-s0").spec
    assert (spec["steps"], spec["batch_size"], spec["lora"]["rank"]) == (5, 4, 4)
    assert record.spend.train_flops > 0 and (out / "report.html").is_file()
    code, text, err = flopwise(*words)
    assert not code and "0 steps run, 3 found done, 0 failed" in text, err
    assert "Traceback" not in err and "The report: " in text


def test_a_task_is_judged_and_a_dataset_may_come_beside_it(flopwise: Any, model: Path, rows: Path) -> None:
    alone = planned(flopwise, "sft", model, "--task", "countdown-small", "--steps", 5)
    assert list(alone) == ["base", "data", "sft-s0", "eval-sft-s0"]
    both = planned(flopwise, "sft", model, rows, "--task", "countdown-small", "--seed", 3, "--seed", 4)
    assert set(both) == {
        "base", "data", "rows-for-base", "sft-s3", "sft-s4", "eval-sft-s3", "eval-sft-s4",
    }  # fmt: skip
    assert "eval-sft-s0" not in planned(flopwise, "sft", model, rows)


def test_a_teacher_makes_first_what_its_student_reads(flopwise: Any, model: Path) -> None:
    task = ["--task", "countdown-small", "--steps", 5, "--from", f"teacher={model}"]
    direct = planned(flopwise, "distill", model, *task)
    assert {"base", "teacher", "distill-on-policy-s0"} <= set(direct)
    written = planned(flopwise, "distill", model, *task, "--method", "distill-sequences")
    assert written["samples-s0"]["method"] == "verified-samples" and "eval-distill-sequences-s0" in written
    cached = planned(flopwise, "distill", model, *task, "--method", "distill-logits")
    assert cached["logits-s0"]["method"] == "teacher-logits"


def test_a_method_without_a_start_takes_the_model_as_what_it_needs(flopwise: Any, model: Path) -> None:
    steps = planned(flopwise, "synthesize", model, "--task", "countdown-small", "--method", "teacher-logits")
    assert steps["teacher-logits-s0"]["kind"] == "synthesize"


def test_a_role_may_take_several_models(flopwise: Any, model: Path) -> None:
    from flopwise.cli.posttrain import _recipe

    both = [f"candidate={model}"] * 2
    recipe = _recipe(
        "synthesize", "verified-samples", ("synthesize",), str(model), [], "countdown", both, {}, [0]
    )  # fmt: skip
    step = next(s for s in expand_posttrain(load(recipe)) if s.name == "verified-samples-s0")  # type: ignore[arg-type]
    assert step.references == {"candidate": "candidate", "candidate2": "candidate2"}


def test_settings_add_to_what_options_say(flopwise: Any, model: Path, tmp_path: Path) -> None:
    from flopwise.cli.posttrain import _change

    settings: dict[str, Any] = {"steps": 5, "lora": {"rank": 4}}
    _change(settings, ["lora.alpha=8", "keep=best", "steps=7"])
    assert settings == {"steps": 7, "lora": {"rank": 4, "alpha": 8}, "keep": "best"}
    with pytest.raises(FlopwiseError, match="steps is not a section"):
        _change(settings, ["steps.x=1"])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["sft", "MODEL"], "sft: give DATA (rows of your own) or --task"),
        (["sft", "MODEL", "ROWS", "ROWS"], "sft: one dataset, not 2"),
        (["sft", "MODEL", "none.jsonl"], "none.jsonl is no file, folder or pattern"),
        (["sft", "MODEL", "ROWS", "--from", "teacher=x"],
         "--from 'teacher=x' must be ROLE=RUN; roles of sft: match"),
        (["sft", "MODEL", "ROWS", "--from", "init=x"], "--from 'init=x' must be ROLE=RUN"),
        (["distill", "MODEL", "ROWS", "--from", "x"], "roles of distill-on-policy: teacher, samples"),
        (["distill", "MODEL", "--task", "countdown"], "distill-on-policy.teacher is missing"),
        (["distill", "MODEL", "--task", "countdown", "--method", "distill-logits", "--from", "x=y"],
         "roles of distill-logits: logits, teacher"),
        (["distill", "MODEL", "--task", "countdown", "--from", "teacher=a/b", "--steps", "3"], "'a/b'"),
        (["sft", "MODEL", "ROWS", "--set", "beta"], "--set 'beta': write it as"),
        (["sft", "MODEL", "ROWS", "--set", "steps=[1"], "the value is not valid YAML"),
        (["sft", "MODEL", "ROWS", "--set", "steps.x=[1]", "--steps", "3"], "steps is not a section"),
        (["sft", "MODEL", "ROWS", "--set", "stesp=3"], "unknown key 'stesp'; did you mean 'steps'?"),
        (["sft", "MODEL", "ROWS", "--set", "method=dpo"], "method is no setting"),
        (["sft", "MODEL", "ROWS", "--steps", "0"], "'--steps'"),
        (["sft", "MODEL", "ROWS", "--lora", "x"], "'--lora'"),
        (["sft", "MODEL", "ROWS", "--seed", "1", "--seed", "1"], "the same seed twice is one run"),
        (["sft", "MODEL", "ROWS", "--method", "dpo"], "sft: method dpo is of another kind; there are sft"),
        (["sft", "MODEL", "ROWS", "--method", "sftt"], "method 'sftt' is unknown; did you mean 'sft'?"),
        (["sft", "MODEL", "--task", "countdwn"], "data.task is 'countdwn'"),
        (["sft", "/no/model", "ROWS"], "/no/model"),
        (["prefer", "MODEL", "--task", "countdown", "--steps", "3"], "runs.dpo"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(
    flopwise: Any, model: Path, rows: Path, tmp_path: Path, words: list[str], says: str
) -> None:
    given = [{"MODEL": str(model), "ROWS": str(rows)}.get(word, word) for word in words]
    code, _, err = flopwise(*given, "--out", tmp_path / "runs", "--workers", 0)
    assert code == 2 and says in err
    assert err.startswith("flopwise: ") and err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("command", GROUPS)
def test_help_lists_the_methods_and_the_default_is_one_of_them(flopwise: Any, command: str) -> None:
    default, kinds, _ = GROUPS[command]
    assert METHODS[default].kind in kinds
    code, out, _ = flopwise(command, "--help")
    assert not code and f"(default {default})" in out
    assert all(f"{m.name}: " in out for m in METHODS.values() if m.kind in kinds)


def test_the_list_of_commands_does_not_wait_for_the_methods() -> None:
    code = (
        "import atexit, sys; from flopwise.cli import main; sys.argv[1:] = ['--help']; "
        "atexit.register(lambda: print('loaded', 'pydantic' in sys.modules)); main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout.splitlines()[-1] == "loaded False" and "synthesize" in done.stdout
