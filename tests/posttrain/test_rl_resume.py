"""Every kind of reinforcement learning, killed twice, ends with the weights and the ledger of a whole run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from killing import Stopped, assert_alike, kill_and_finish
from safetensors.torch import load

from flopwise.launch.worker import limit_threads
from flopwise.posttrain.rl import run_step
from flopwise.posttrain.settings import METHODS
from flopwise.records.folder import RunFolder
from flopwise.records.store import RunStore

SIZE = {"steps": 4, "problems_per_step": 4, "group_size": 3, "max_tokens": 14, "curve_points": 2}
BY_LENGTH = {"rewards": {"verifier": 1.0, "length": -0.05}}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "mini-batches, KL, entropy": (
        "grpo",
        BY_LENGTH | {"epochs": 2, "minibatches": 2, "kl": 0.1, "entropy": 0.01, "zero_variance": "keep"},
    ),
    "dynamic sampling": ("dapo", BY_LENGTH | {"refills": 2}),
    "a reward model": ("rloo", {"rewards": {"reward": 1.0}, "reward_scale": "whiten", "track_kl": True}),
    "KL in the reward": ("reinforce++", BY_LENGTH | {"kl": 0.1}),
    "PPO, one trunk": ("ppo", BY_LENGTH | {"kl": 0.1}),
    "adapters, KL to the model under them": ("grpo", BY_LENGTH | {"kl": 0.1, "lora": {"rank": 2}}),
    "PPO, two models": ("ppo", BY_LENGTH | {"critic": "model", "epochs": 1}),
}


def prepare(tiny_run: Path, root: Path, method: str, settings: dict[str, Any]) -> Any:
    """A new run among links to the finished ones, and its parents."""
    root.mkdir()
    store = RunStore(tiny_run)
    parents = {"data": store.folder("data"), "init": store.folder("sft")}
    if "reward" in settings.get("rewards", {}):
        parents["reward"] = store.folder("reward")
    for run in tiny_run.iterdir():
        if run.is_dir():
            (root / run.name).symlink_to(run)
    spec = METHODS[method].section(**SIZE | settings).spec()
    spec |= {"rates": store.folder("sft").spec["rates"], "val_problems": 4}
    ids = {role: run.id for role, run in parents.items()}
    return RunStore(root).prepare("rl", method, spec, ids, 1, "rl"), parents


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_twice_it_ends_as_if_it_had_not_been(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    limit_threads(1)
    whole, parents = prepare(tiny_run, tmp_path / "whole", *KINDS[kind])
    run_step(whole, parents, lambda _: None)
    killed, parents = prepare(tiny_run, tmp_path / "killed", *KINDS[kind])

    def carry_out(run: RunFolder, progress: Callable[[float], None]) -> None:
        try:
            run_step(run, parents, progress)
        except Stopped:
            assert (run.path / "state.safetensors").exists()
            raise

    kill_and_finish(killed, carry_out, (0.4, 0.85), monkeypatch)
    same(whole, killed)
    assert whole.record().extra["steps"] == SIZE["steps"]


def same(a: RunFolder, b: RunFolder) -> None:
    assert_alike(a, b)
    name = "adapter_model.safetensors" if "lora" in a.spec else "model.safetensors"
    made, other = ((run.path / "model" / name).read_bytes() for run in (a, b))
    if "lora" in a.spec:
        # What a file of adapters says of itself comes in any order; its tensors do not.
        tensors, again = load(made), load(other)
        assert tensors.keys() == again.keys() and all(t.equal(again[key]) for key, t in tensors.items())
        moved = [t for key, t in tensors.items() if "lora_B" in key]
        assert moved and all(t.any() for t in moved)
    else:
        assert made == other
        assert made != (a.path.parent / a.roles["init"] / "model" / name).read_bytes()
