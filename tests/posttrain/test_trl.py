"""Loss and gradient of ours and of TRL's on the same batch; TRL as the one who trains (extra `trl`)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
trl = pytest.importorskip("trl", reason="the extra trl is not installed")
datasets = pytest.importorskip("datasets")
import transformers  # noqa: E402
from torch import Tensor  # noqa: E402

from flopwise.data.tokenizer import train_bpe  # noqa: E402
from flopwise.errors import FlopwiseError  # noqa: E402
from flopwise.models import hf  # noqa: E402
from flopwise.models.config import ModelConfig  # noqa: E402
from flopwise.models.renaming import state_from_hf  # noqa: E402
from flopwise.models.transformer import Transformer  # noqa: E402
from flopwise.posttrain.trl_backend import check  # noqa: E402
from flopwise.train import preference_objectives, reward_objectives, rl_objectives  # noqa: E402
from flopwise.train.objectives import Batch, Objective, cross_entropy, token_logprobs  # noqa: E402

os.environ.setdefault("HF_HUB_OFFLINE", "1")
pytestmark = pytest.mark.slow
TOLERANCE = 1e-4
PAIRS = [
    {"prompt": "7 3 3=24:", "chosen": "7*3=21,21+3=24!", "rejected": "7+3=10,10+3=13!"},
    {"prompt": "1 2 3=9:", "chosen": "2+1=3,3*3=9!", "rejected": "3*2=6,6+1=7!"},
    {"prompt": "10 2 5=25:", "chosen": "10*2=20,20+5=25!", "rejected": "10+2=12,12*5=60!"},
    {"prompt": "4 4 4=12:", "chosen": "4+4=8,8+4=12!", "rejected": "4*4=16,16-4=12?"},
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A policy, a reference and a scorer of one small shape, in Hugging Face layout."""
    tokenizer = train_bpe([" ".join(r.values()) for r in PAIRS] * 20, 270)
    config = ModelConfig.from_width(32, 2, tokenizer.vocab_size, 96)
    out = {}
    for seed, name in enumerate(("policy", "reference", "scorer")):
        model = Transformer(config.with_(tie_embeddings=False), n_scores=int(name == "scorer")).initialise(
            seed
        )
        with torch.no_grad():
            rng = torch.Generator().manual_seed(9 + seed)
            model.head.weight.copy_(torch.randn(model.head.weight.shape, generator=rng) * 0.2)
        out[name] = tmp_path_factory.mktemp("models") / name
        hf.save(model, out[name], tokenizer)
    return out


def theirs(path: Path, scorer: bool = False, attn: str = "sdpa") -> Any:
    kind = transformers.AutoModelForSequenceClassification if scorer else transformers.AutoModelForCausalLM
    model = kind.from_pretrained(
        path, dtype="float32", attn_implementation=attn, **({"num_labels": 1} if scorer else {})
    )
    model.config.pad_token_id = 1
    return model


def tokenizer_of(path: Path) -> Any:
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(path)
    tokenizer.eos_token, tokenizer.pad_token = "<eos>", "<pad>"
    return tokenizer


def settings(tmp_path: Path, rows: int) -> dict[str, Any]:
    return {
        "output_dir": str(tmp_path), "report_to": [], "use_cpu": True, "per_device_train_batch_size": rows,
        "max_steps": 1, "disable_tqdm": True, "gradient_checkpointing": False, "bf16": False,
    }  # fmt: skip


def common(saved: dict[str, Path], rows: list[dict[str, Any]], scorer: bool = False) -> dict[str, Any]:
    path = saved["scorer" if scorer else "policy"]
    return {
        "model": theirs(path, scorer), "train_dataset": datasets.Dataset.from_list(rows),
        "processing_class": tokenizer_of(path),
    }  # fmt: skip


def their_step(trainer: Any, inputs: dict[str, Any] | None = None) -> tuple[dict[str, Any], float]:
    """The batch and loss of TRL, its gradients left in the model."""
    batch = inputs or next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=None)
    loss.backward()
    return batch, float(loss)


def ours_on(batch: dict[str, Any], **more: Any) -> Batch:
    """TRL's right-padded batch as ours: targets one to the left, weights where the completion is."""
    ids, mask = batch["input_ids"], batch["completion_mask"]
    return Batch(ids[:, :-1], ids[:, 1:], mask[:, 1:].float(), **more)


def agree(path: Path, objective: Objective, batch: Batch, trainer: Any, loss: float) -> None:
    """Our loss and every gradient lie within the tolerance of theirs."""
    model = hf.load(path)
    model.train()
    found, _ = objective(model, batch)
    found.backward()
    assert float(found) == pytest.approx(loss, abs=TOLERANCE)
    grads = {n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None}
    expected = state_from_hf(model.cfg, grads)
    assert len(expected) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert float((parameter.grad - expected[name]).abs().max()) < TOLERANCE, name


@torch.no_grad()
def logprobs(path: Path, batch: Batch) -> Tensor:
    return token_logprobs(hf.load(path).eval(), batch)


def test_fine_tuning(saved: dict[str, Path], tmp_path: Path) -> None:
    rows = [{"prompt": r["prompt"], "completion": r["chosen"]} for r in PAIRS]
    args = trl.SFTConfig(**settings(tmp_path, 4), max_length=None, completion_only_loss=True)
    trainer = trl.SFTTrainer(args=args, **common(saved, rows))
    inputs = next(iter(trainer.get_train_dataloader()))
    _, loss = their_step(trainer, dict(inputs))
    ids, labels = inputs["input_ids"], inputs["labels"]
    batch = Batch(ids[:, :-1], ids[:, 1:], (labels[:, 1:] != -100).float())
    agree(saved["policy"], cross_entropy, batch, trainer, loss)


@pytest.mark.parametrize("kind", ["sigmoid", "ipo"])
def test_dpo(saved: dict[str, Path], tmp_path: Path, kind: str) -> None:
    args = trl.DPOConfig(**settings(tmp_path, 4), max_length=None, beta=0.3, loss_type=[kind])
    trainer = trl.DPOTrainer(args=args, ref_model=theirs(saved["reference"]), **common(saved, PAIRS))
    inputs, loss = their_step(trainer)
    half = len(inputs["input_ids"]) // 2  # all chosen first
    batch = ours_on(inputs)
    sign = torch.tensor([1.0] * half + [-1.0] * half)
    assert batch.weights is not None
    reference = (logprobs(saved["reference"], batch) * batch.weights).sum(1)
    batch.extra |= {"sign": sign, "reference": reference}
    if kind == "ipo":  # theirs divides the log-ratios by the lengths, as the authors of IPO later said
        objective = preference_objectives.dpo(0.3, loss="ipo", per_token=True)
    else:
        objective = preference_objectives.dpo(0.3)
    agree(saved["policy"], objective, batch, trainer, loss)


def test_kto(saved: dict[str, Path], tmp_path: Path) -> None:
    rows = [
        {"prompt": r["prompt"], "completion": r[side], "label": side == "chosen"}
        for r in PAIRS
        for side in ("chosen", "rejected")
    ]
    args = trl.KTOConfig(**settings(tmp_path, 8), max_length=None, beta=0.3, undesirable_weight=1.5)
    trainer = trl.KTOTrainer(args=args, ref_model=theirs(saved["reference"]), **common(saved, rows))
    inputs, loss = their_step(trainer)
    batch, other = ours_on(inputs), ours_on({k: inputs[f"KL_{k}"] for k in ("input_ids", "completion_mask")})
    assert batch.weights is not None and other.weights is not None
    ratio = logprobs(saved["policy"], other) - logprobs(saved["reference"], other)
    batch.extra |= {
        "sign": torch.where(inputs["label"].bool(), 1.0, -1.0),
        "reference": (logprobs(saved["reference"], batch) * batch.weights).sum(1),
        "mismatched": (ratio * other.weights).sum(1),
    }
    agree(saved["policy"], preference_objectives.kto(0.3, 1.0, 1.5), batch, trainer, loss)


def test_reward_of_pairs(saved: dict[str, Path], tmp_path: Path) -> None:
    args = trl.RewardConfig(**settings(tmp_path, 4), max_length=None, center_rewards_coefficient=0.02)
    trainer = trl.RewardTrainer(args=args, **common(saved, PAIRS, scorer=True))
    inputs, loss = their_step(trainer)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    half = len(ids) // 2
    order = torch.arange(len(ids)).view(2, half).T.flatten()  # ours alternate
    batch = Batch(ids[order], last=mask[order].sum(1) - 1)
    model = hf.load(saved["scorer"])
    found, _ = reward_objectives.bradley_terry(0.02)(model, batch)
    found.backward()
    assert float(found) == pytest.approx(loss, abs=TOLERANCE)
    their_head = trainer.model.score.weight.grad
    assert model.head.weight.grad is not None
    assert float((model.head.weight.grad - their_head).abs().max()) < TOLERANCE


@pytest.mark.parametrize(
    "loss_type,how",
    [
        ("dapo", {"normalise": "token"}),
        ("grpo", {"normalise": "sequence"}),
        # Theirs cuts ratios at epsilon_high itself, ours at 1 more.
        ("cispo", {"normalise": "token", "surrogate": "cispo", "clip_low": 1.0, "clip_high": 0.28 - 1}),
    ],
)
def test_policy_gradients(
    saved: dict[str, Path], tmp_path: Path, loss_type: str, how: dict[str, Any]
) -> None:
    args = trl.GRPOConfig(
        **settings(tmp_path, 4), beta=0.05, epsilon=0.2, epsilon_high=0.28, loss_type=loss_type,
        num_generations=4, max_completion_length=16, use_bias_correction_kl=False,
    )  # fmt: skip
    trainer = trl.GRPOTrainer(
        args=args, reward_funcs=lambda completions, **_: [0.0] * len(completions),
        **common(saved, [{"prompt": r["prompt"]} for r in PAIRS]),
    )  # fmt: skip
    tokenizer = tokenizer_of(saved["policy"])
    prompts = [tokenizer(r["prompt"])["input_ids"] for r in PAIRS]
    answers = [tokenizer(r["chosen"] + "<eos>")["input_ids"] for r in PAIRS]
    rows = [p + a for p, a in zip(prompts, answers, strict=True)]
    # Theirs wants prompts padded on the left, ours pads on the right; positions are relative, so both agree.
    wide, long = max(map(len, prompts)), max(map(len, answers))
    left = torch.tensor([[1] * (wide - len(p)) + p for p in prompts])
    right = torch.tensor([a + [1] * (long - len(a)) for a in answers])
    mask = torch.tensor([[1] * len(a) + [0] * (long - len(a)) for a in answers])
    length = max(map(len, rows))
    ids = torch.tensor([r + [1] * (length - len(r)) for r in rows])
    weights = torch.zeros(len(rows), length - 1)
    for i, (p, a) in enumerate(zip(prompts, answers, strict=True)):
        weights[i, len(p) - 1 : len(p) - 1 + len(a)] = 1.0
    batch = Batch(ids[:, :-1], ids[:, 1:], weights)
    rng = torch.Generator().manual_seed(4)
    advantages = torch.randn(len(rows), generator=rng)
    now = logprobs(saved["policy"], batch)
    batch.old_logprobs = (now + 0.4 * torch.randn(now.shape, generator=rng)) * weights
    reference = logprobs(saved["reference"], batch)
    batch.advantages = advantages[:, None] * weights

    def cut(values: Tensor) -> Tensor:
        """The answers' columns, as theirs has them."""
        out = torch.zeros(len(rows), long)
        for i, (p, a) in enumerate(zip(prompts, answers, strict=True)):
            out[i, : len(a)] = values[i, len(p) - 1 : len(p) - 1 + len(a)]
        return out

    inputs = {
        "prompt_ids": left, "prompt_mask": (left != 1).long(), "completion_ids": right,
        "completion_mask": mask, "advantages": advantages, "old_per_token_logps": cut(batch.old_logprobs),
        "ref_per_token_logps": cut(reference), "num_items_in_batch": mask.sum(),
    }  # fmt: skip
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    settings_of_ours = rl_objectives.PolicyLoss(kl=0.05, **{"clip_low": 0.2, "clip_high": 0.28, **how})

    def objective(model: Transformer, given: Batch) -> tuple[Tensor, dict[str, float]]:
        assert given.weights is not None and given.advantages is not None and given.old_logprobs is not None
        found = token_logprobs(model, given)
        return rl_objectives.policy_loss(
            settings_of_ours, found, given.old_logprobs, given.advantages, given.weights, reference
        )

    agree(saved["policy"], objective, batch, trainer, float(loss))


def test_settings_that_trl_has_no_word_for_are_refused() -> None:
    assert check("ppo", {}) and "has no ppo" in str(check("ppo", {}))
    assert check("dpo", {"anchor": 1.0}) == "backend trl knows no anchor: 1.0; give anchor: 0.0"
    assert check("sft", {"pack": 64}) == "backend trl knows no pack: 64; leave it out"
    assert check("dpo", {"anchor": 0.0, "keep": "last"}) is None


def test_a_step_by_trl_counts_what_it_executes(saved: dict[str, Path]) -> None:
    """The meter beside PyTorch's counter, over a pass with gradients and one without."""
    from torch.utils.flop_counter import FlopCounterMode

    from flopwise.posttrain.trl_meter import Meter

    # PyTorch's counter leaves the scores of a fused attention on the CPU out.
    model, cfg = theirs(saved["policy"], attn="eager"), hf.load(saved["policy"]).cfg
    meter = Meter()
    meter.watch(model, cfg, "run")
    ids = torch.randint(2, 200, (4, 24))
    model.train()
    with FlopCounterMode(display=False) as counted:
        model(input_ids=ids, use_cache=False).logits.sum().backward()
    assert meter.ledger.total("train_flops") == pytest.approx(counted.get_total_flops(), rel=0.02)
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        model(input_ids=ids, use_cache=False)
    assert meter.ledger.total("score_flops") == pytest.approx(counted.get_total_flops(), rel=0.02)
    model.eval()
    with FlopCounterMode(display=False) as counted:
        model.generate(input_ids=ids, max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=1)
    assert meter.ledger.total("generate_flops") == pytest.approx(counted.get_total_flops(), rel=0.02)
    meter.close()
    model(input_ids=ids)
    assert [row["tokens"] for row in meter.ledger.rows()] == [96, 96, 96 + 5 * 4]


def test_without_trl_the_command_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from flopwise.posttrain import trl_backend

    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(FlopwiseError, match=r"pip install 'flopwise\[trl\]'"):
        trl_backend.run_step(None, {}, lambda f: None)  # type: ignore[arg-type]
