"""Rewards of roll-outs: sums, scales, judges, what is logged of them, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flopwise.errors import FlopwiseError
from flopwise.flops.ledger import Ledger
from flopwise.posttrain.bench import Bench, load_model
from flopwise.posttrain.rl import loss_of, settings_of
from flopwise.posttrain.rl_rewards import Rewards
from flopwise.posttrain.rollouts import Rollouts
from flopwise.posttrain.settings import METHODS
from flopwise.records.store import RunStore
from flopwise.train.rl_objectives import REFERENCE, kl_terms, policy_gradient

SIZE = {"steps": 4, "problems_per_step": 5, "group_size": 4, "max_tokens": 14}


@pytest.fixture
def make(tiny_run: Path, tmp_path: Path) -> Any:
    """make(method, parents=..., **settings): roll-outs by the finished fine-tuned model."""

    def rollouts(method: str = "grpo", with_reference: bool = False, **settings: Any) -> Rollouts:
        store = RunStore(tiny_run)
        runs = {"data": store.folder("data"), "init": store.folder("sft")}
        weights = settings.get("rewards", {})
        if "reward" in weights:
            runs["reward"] = store.folder("reward")
        if "judge" in weights:
            spec = METHODS["judge"].section(flip=0.0).spec()
            runs["judge"] = RunStore(tmp_path).prepare("reward", "judge", spec, {}, 0, "judge")
        spec = METHODS[method].section(**SIZE | settings).spec()
        folder = RunStore(tmp_path).prepare("rl", method, spec, {}, 3, "rl")
        bench = Bench.open(folder, runs)
        found = settings_of(spec)
        reference = (load_model(runs["init"]), runs["init"].id) if with_reference else None
        return Rollouts(bench, found, Rewards(found, bench, runs), reference)

    return rollouts


def answers(rollouts: Rollouts) -> Any:
    return rollouts._sample(rollouts.problems(0), 5, Ledger())


def test_a_weighted_sum(make: Any) -> None:
    rollouts = make(rewards={"verifier": 1.0, "reward": 0.5, "length": -0.01})
    got, ledger = answers(rollouts), Ledger()
    rewarded = rollouts.rewards(got, ledger)
    scores = rewarded.parts["reward"]
    assert np.allclose(rewarded.total, got.right + 0.5 * scores - 0.01 * got.lengths)
    assert np.allclose(rewarded.proxy, 0.5 * scores) and len(np.unique(scores)) > 5
    assert [(r["kind"], r["model"]) for r in ledger.rows()] == [("reward", rollouts.rewards.scorer_id)]
    assert ledger.total("score_flops") > 0


def test_learned_rewards_are_scaled_and_clipped_before_they_are_weighed(make: Any) -> None:
    plain = make(rewards={"reward": 2.0})
    got = answers(plain)
    scores = plain.rewards(got, Ledger()).total / 2
    whitened = make(rewards={"reward": 2.0}, reward_scale="whiten", reward_clip=1.0)
    total = whitened.rewards(got, Ledger()).total
    assert np.allclose(total, 2 * ((scores - scores.mean()) / scores.std()).clip(-1, 1))
    centred = make(rewards={"reward": 2.0}, reward_scale="centre").rewards(got, Ledger())
    assert np.allclose(centred.total, 2 * (scores - scores.mean())) and np.allclose(centred.proxy, 2 * scores)


def test_a_judge_that_is_never_wrong_is_the_verifier(make: Any) -> None:
    rollouts = make(rewards={"judge": 1.0})
    got, ledger = answers(rollouts), Ledger()
    assert np.array_equal(rollouts.rewards(got, ledger).total, got.right)
    assert ledger.rows()[0]["kind"] == "judge"


def test_proxy_and_gold_are_logged_with_errors_and_parts(make: Any) -> None:
    rollouts = make(rewards={"reward": 1.0, "length": -0.1})
    info = rollouts(0).info
    assert {"proxy", "proxy_se", "gold", "gold_se", "reward_reward", "reward_length"} <= set(info)
    assert info["reward"] == pytest.approx(info["reward_reward"] - 0.1 * info["mean_tokens"])
    plain = make()(0).info
    assert "proxy" not in plain and "reward_verifier" not in plain


def test_a_resumed_monitor_knows_what_was_logged(make: Any) -> None:
    rollouts = make(rewards={"reward": 1.0}, alarm_window=2, alarm_z=3.0)
    said: list[str] = []
    rollouts.on_alarm = said.append
    rows = [{"proxy": float(t), "proxy_se": 0.1, "gold": 0.5 - 0.1 * t, "gold_se": 0.02} for t in range(4)]
    for t, row in enumerate(rows[:3]):
        rollouts.bench.folder.log(step=t + 1, **row)
    rollouts._watch(3, rows[3])
    assert rollouts.alarmed and len(rollouts.monitor.rows) == 4 and rows[3]["alarm"] == 1.0
    assert len(said) == 1 and said[0].startswith("alarm at roll-out 4")
    again = make(rewards={"reward": 1.0}, alarm_window=2, alarm_z=3.0)
    again.bench.folder.log(step=4, **rows[3])
    again.on_alarm = said.append
    again._watch(4, {"proxy": 4.0, "proxy_se": 0.1, "gold": 0.1, "gold_se": 0.02})
    assert again.alarmed and len(said) == 1  # it was said before


def test_only_a_learned_reward_is_watched(make: Any) -> None:
    assert make().monitor is None and make(rewards={"reward": 1.0}, alarm=False).monitor is None
    assert make(rewards={"reward": 1.0}).monitor is not None


def test_kl_in_the_loss_is_zero_at_the_reference(make: Any) -> None:
    rollouts = make(with_reference=True, kl=0.1, rewards={"length": -1.0}, zero_variance="keep")
    batch = rollouts(0)
    assert batch.info["kl"] == pytest.approx(0.0, abs=1e-3)
    _, logs = policy_gradient(loss_of(rollouts.settings))(rollouts.bench.model, batch)
    assert logs["kl_loss"] == pytest.approx(0.0, abs=1e-5)
    kinds = [r["kind"] for r in batch.ledger.rows()]
    assert kinds == ["sample", "reference"]


def test_kl_in_the_reward_is_taken_off_before_the_baseline(make: Any) -> None:
    """With another model as reference, an answer's advantage falls by its own divergence."""
    settings = {
        "advantage": "group",
        "scale_by_std": False,
        "kl": 0.2,
        "kl_in": "reward",
        "kl_estimator": "k1",
    }
    rollouts = make(with_reference=True, rewards={"length": -1.0}, zero_variance="keep", **settings)
    torch.manual_seed(0)
    with torch.no_grad():
        for p in rollouts.reference[0].parameters():
            p.add_(0.05 * torch.randn_like(p))
    batch = rollouts(0)
    terms = kl_terms(batch.old_logprobs, batch.extra[REFERENCE], "k1") * batch.weights
    rewards = (-batch.weights.sum(1) - 0.2 * terms.sum(1)).reshape(5, 4)
    want = (rewards - rewards.mean(1, keepdim=True)).flatten()
    for row in range(20):
        here = batch.weights[row] > 0
        assert torch.allclose(batch.advantages[row][here], want[row], atol=1e-3)
    assert batch.info["kl"] != 0 and batch.info["kl_reward"] == pytest.approx(
        -0.2 * terms.sum(1).mean().item()
    )


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"rewards": {"verifier": 0.0}}, "all weighed 0"),
        ({"rewards": {"taste": 1.0}}, "rewards"),
        ({"advantage": "gae"}, "method ppo"),
        ({"advantage": "batch"}, "zero_variance must be keep"),
        ({"minibatches": 21}, "minibatches 21 are more than the 20 answers"),
        ({"overlong": 14}, "must be below max_tokens 14"),
        ({"group_size": 1}, "group_size"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises((FlopwiseError, ValueError), match=message):
        make(**settings)


def test_a_weight_needs_its_run_and_a_run_its_weight() -> None:
    section = METHODS["grpo"].section
    assert "name the run: reward: RUN" in str(section(steps=1, rewards={"reward": 1.0}).lacks({"init": "a"}))
    assert "give it no weight" in str(section(steps=1).lacks({"init": "a", "judge": "b"}))
    assert section(steps=1).lacks({"init": "a"}) is None


def test_a_policy_is_no_reward_model(make: Any, tiny_run: Path) -> None:
    rollouts = make()
    sft = RunStore(tiny_run).folder("sft")
    settings = settings_of({"steps": 1, "rewards": {"reward": 1.0}})
    with pytest.raises(FlopwiseError, match="run sft has no score head"):
        Rewards(settings, rollouts.bench, {"reward": sft})
