"""Where a model is: a Hugging Face folder, a run's folder, or a run's name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flopwise.errors import FlopwiseError
from flopwise.models import shipped
from flopwise.models.adapters import is_adapter
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

    In this order: a folder in Hugging Face layout, or with an adapter as PEFT saves it; a run's folder;
    `RUNS/NAME`, as in `demo/grpo`, where the name may also be an id or its unambiguous start; with `runs`, a
    name in that folder; the name of a shipped model.

    Raises:
        FlopwiseError: nothing is there, the run is not finished, it made no model, or the shipped model has
            not been fetched.
    """
    path = Path(model)
    if _is_model(path):
        inside = path.name == "model" and (path.parent / SPEC_FILE).is_file()
        return Found(path, RunFolder(path.parent) if inside else None)
    if (path / SPEC_FILE).is_file():
        return _of_run(RunFolder(path))
    if path.name and path.parent != Path() and path.parent.is_dir():
        return _of_run(RunStore(path.parent).folder(path.name))
    shipped_name = str(model) in shipped.MODELS
    if runs is not None and not shipped_name:
        return _of_run(RunStore(runs).folder(str(model)))
    if shipped_name:
        return Found(shipped.here(str(model)), None)
    raise FlopwiseError(
        f"model {str(model)[:120]!r} is no folder with a config.json, no run and no shipped model "
        f"({', '.join(shipped.MODELS)}); give a Hugging Face folder or RUNS/NAME, for example demo/grpo"
    )


def _is_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() or is_adapter(folder)


def _of_run(run: RunFolder) -> Found:
    folder = run.path / "model"
    if not _is_model(folder):
        why = "made no model" if run.done else "has not finished"
        raise FlopwiseError(
            f"run {run.name or run.id} {why}; see others with `flopwise runs {run.path.parent}`"
        )
    return Found(folder, run)
