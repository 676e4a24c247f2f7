"""A model from elsewhere as a run: the root of the family of what is made from it."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flopwise.errors import FlopwiseError
from flopwise.flops.spend import Stopwatch
from flopwise.infer.resolve import find_model
from flopwise.launch.steps import Step
from flopwise.models.adapters import CONFIG_FILE, find_base, is_adapter, read_config, weights_sha256

if TYPE_CHECKING:
    from collections.abc import Callable

    from flopwise.records.folder import RunFolder

UNKNOWN = "made elsewhere: its compute is not known"
"""Why the spend of such a model is a lower bound."""
TEXT_FILES = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "chat_template.jinja", "model.safetensors.index.json",
)  # fmt: skip
"""Files that are copied; weights are linked."""


def spec_of(model: str | Path) -> dict[str, Any]:
    """What is asked of the step: the model as it was named, and the SHA-256 of its content.

    With the content in the spec a run's id says which weights it descends from, whatever lies under that name
    later.

    Raises:
        FlopwiseError: there is no such model here.
    """
    return {"model": str(model), "sha256": content_sha256(find_model(model).folder)}


def step(model: str | Path, name: str = "base", seed: int = 0) -> Step:
    """The step that brings a model into a store."""
    spec, run = spec_of(model), "flopwise.posttrain.base:run_step"
    return Step(name=name, kind="base", method="import", run=run, spec=spec, seed=seed, seconds=3.0)


def content_sha256(folder: Path) -> str:
    """SHA-256 of what a model answers by: weights, configuration, tokenizer; of an adapter also its base."""
    whole = hashlib.sha256(weights_sha256(folder).encode())
    for name in (CONFIG_FILE, *TEXT_FILES):
        if (folder / name).is_file():
            whole.update(name.encode() + hashlib.sha256((folder / name).read_bytes()).digest())
    if is_adapter(folder):
        base = find_base(folder, read_config(folder).get("base_model_name_or_path") or "")
        whole.update(content_sha256(base).encode())
    return whole.hexdigest()


def run_step(folder: RunFolder, parents: dict[str, RunFolder], progress: Callable[[float], None]) -> None:
    """Bring the model `spec["model"]` into the store: its weights are linked, never copied; an adapter is
    merged.

    What making it cost is unknown, except where it is a run of another store: then its record says.

    Raises:
        FlopwiseError: there is no such model, it cannot be loaded, or it is not the one of `spec["sha256"]`.
    """
    from flopwise.models import hf
    from flopwise.posttrain.bench import model_fields

    watch, spec = Stopwatch(), folder.spec
    found = find_model(spec["model"])
    sha256 = content_sha256(found.folder)
    if sha256 != spec["sha256"]:
        raise FlopwiseError(
            f"model {spec['model']}: its content has SHA-256 {sha256[:12]}..., when the run was planned it "
            f"was {str(spec['sha256'])[:12]}...; start again to take it as it is now"
        )
    progress(0.3)
    model = hf.load(found.folder)
    progress(0.8)
    target = folder.path / "model"
    if is_adapter(found.folder):
        hf.copy_tokenizer(found.folder, target)
        hf.save(model, target)
    else:
        link(found.folder, target)
    extra: dict[str, Any] = {"width": model.cfg.d_model, "source": spec["model"]}
    if found.run is not None and found.run.done:
        lineage = found.run.record().lineage_spend
        extra |= {"stated_flops": lineage.total_flops, "stated_by": f"the record of run {found.run.id}"}
    folder.finish(
        metrics={}, spend=watch.spend(unknown=UNKNOWN), model=model_fields(model), data=None, extra=extra
    )


def link(source: Path, target: Path) -> None:
    """The model of `source` in `target`: small files copied, weights linked (by a symbolic link where they
    lie on another disk). A killed call can be made again."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in TEXT_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    for path in sorted(source.glob("model*.safetensors")):
        real = path.resolve()
        try:
            os.link(real, target / path.name)
        except OSError:
            (target / path.name).symlink_to(real)
