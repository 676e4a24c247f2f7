"""Where a model is: a Hugging Face folder, a run's folder, or a run's name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flopwise.errors import FlopwiseError
from flopwise.records.folder import SPEC_FILE, RunFolder
from flopwise.records.store import RunStore


@dataclass(frozen=True)
class Found:
    """A model's folder and, where it came out of a run, that run."""

    folder: Path
    run: RunFolder | None

    @property
    def data(self) -> Path | None:
        """The folder of the data run that the model was made from."""
        if self.run is None:
            return None
        seen, todo = set(), [self.run]
        while todo:
            run = todo.pop(0)
            if "data" in run.roles:
                return run.path.parent / run.roles["data"]
            fresh = [p for p in run.parents if p not in seen]
            seen.update(fresh)
            todo += [RunFolder(run.path.parent / p) for p in fresh]
        return None


def find_model(model: str | Path, runs: str | Path | None = None) -> Found:
    """Resolve what a person typed.

    In this order: a folder in Hugging Face layout; a run's folder; `RUNS/NAME`, as in `demo/grpo`, where the
    name may also be an id or its unambiguous start; with `runs`, a name in that folder.

    Raises:
        FlopwiseError: nothing is there, the run is not finished, or it made no model.
    """
    path = Path(model)
    if (path / "config.json").is_file():
        inside = path.name == "model" and (path.parent / SPEC_FILE).is_file()
        return Found(path, RunFolder(path.parent) if inside else None)
    if (path / SPEC_FILE).is_file():
        return _of_run(RunFolder(path))
    if path.name and path.parent != Path() and path.parent.is_dir():
        return _of_run(RunStore(path.parent).folder(path.name))
    if runs is not None:
        return _of_run(RunStore(runs).folder(str(model)))
    raise FlopwiseError(
        f"model {str(model)[:120]!r} is no folder with a config.json and no run; give a Hugging Face folder "
        f"or RUNS/NAME, for example demo/grpo"
    )


def _of_run(run: RunFolder) -> Found:
    folder = run.path / "model"
    if not (folder / "config.json").is_file():
        why = "made no model" if run.done else "has not finished"
        raise FlopwiseError(
            f"run {run.name or run.id} {why}; see others with `flopwise runs {run.path.parent}`"
        )
    return Found(folder, run)
