"""Rules of a ladder: values that follow their formulas, and what the trainer does with them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from flopwise.errors import FlopwiseError
from flopwise.flops.count import count_params
from flopwise.models.config import ModelConfig
from flopwise.pretrain.rules import REFERENCE_WIDTH, RULES, WHAT, RuleSet, describe

RATES = {"muon": 0.02, "adam": 0.008, "embed": 0.01, "head": 0.004, "weight_decay": 0.1}
RUN = {"tokens": 2e6, "batch_size": 16, "seq_len": 128, "rates": RATES}


def model(width: int, depth: int = 2) -> ModelConfig:
    return ModelConfig.from_width(width, depth, 512, 128)


def test_every_rule_says_what_it_is_and_where_it_comes_from():
    for rule in RULES:
        assert rule.what in WHAT and rule.formula and rule.source
        known = ("read", "second hand", "measured", "as given", "unverified")
        assert rule.checked.split(";")[0].split(" (")[0] in known
    assert len({(r.what, r.name) for r in RULES}) == len(RULES)


@pytest.mark.parametrize("rate", ["spectral", "mup"])
def test_rates_follow_width_as_the_rule_says(rate):
    for width in (32, 64, 256):
        adam = RuleSet(rate=rate).values(model(width), optimiser="adamw", **RUN)
        muon = RuleSet(rate=rate).values(model(width), **RUN)
        assert adam.effective["hidden"] == pytest.approx(0.008 * 64 / width)
        assert muon.effective["hidden"] == 0.02  # the update's spectral norm is the optimiser's doing
        for made in (adam, muon):
            assert made.effective["head"] == pytest.approx(0.004 * 64 / width)
            assert made.effective["embed"] == made.effective["norm"] == 0.01
            # The optimiser scales head and hidden AdamW rates itself.
            assert made.rates["head"] == pytest.approx(0.004) and made.rates["adam"] == pytest.approx(0.008)
        assert adam.residual == adam.residual_init == 1


def test_the_control_undoes_what_the_optimiser_does_by_itself():
    made = RuleSet(rate="constant").values(model(256), optimiser="adamw", **RUN)
    assert made.effective == {"hidden": 0.008, "embed": 0.01, "head": 0.004, "norm": 0.01}
    assert made.rates["head"] == pytest.approx(0.004 * 4) and made.rates["adam"] == pytest.approx(0.008 * 4)


def test_the_reference_width_is_the_optimiser_s():
    optim = pytest.importorskip("flopwise.train.optim")
    assert optim.REFERENCE_WIDTH == REFERENCE_WIDTH


def test_completep_is_mup_at_its_reference_depth_and_folds_the_multiplier_beyond():
    rules = RuleSet(rate="completep", options={"rate.depth": 4})
    flat, deep = (
        rules.values(model(128, depth), optimiser="adamw", scales_outputs=True, **RUN) for depth in (4, 16)
    )
    with pytest.raises(FlopwiseError, match="which the trainer cannot give them"):
        rules.values(model(128, 16), optimiser="adamw", **RUN)
    assert flat == RuleSet(rate="mup").values(model(128, 4), optimiser="adamw", **RUN)
    assert deep.residual == 4 / 16 and deep.effective == flat.effective
    # A branch's output is multiplier x init: 1/depth in all, of which the init has 1/sqrt(2 depth) already.
    assert deep.residual_init * deep.init["mlp_down"] == pytest.approx(flat.init["mlp_down"] * 4 / 16)


def test_step_law_values_and_its_refusal_under_another_optimiser():
    cfg = model(64)
    made = RuleSet(rate="step_law", batch="step_law").values(cfg, optimiser="adamw", **RUN)
    lr = 1.79 * count_params(cfg).non_embedding ** -0.713 * 2e6**0.307
    assert made.effective["hidden"] == pytest.approx(lr)
    assert made.effective["embed"] == pytest.approx(0.01 * lr / 0.008)
    assert made.batch_size == round(0.58 * 2e6**0.571 / 128)
    with pytest.raises(FlopwiseError, match="published constants are for AdamW; refit"):
        RuleSet(rate="step_law").values(cfg, **RUN)
    refitted = RuleSet(rate="step_law", options={"rate.c": 0.5, "rate.a": 0.3, "rate.b": 0.0})
    assert refitted.values(cfg, **RUN).effective["hidden"] == pytest.approx(
        0.5 * count_params(cfg).non_embedding ** -0.3
    )


def test_the_timescale_rule_keeps_decay_times_rate_times_steps():
    rules = RuleSet(weight_decay="timescale", rate="mup", options={"weight_decay.tau": 0.25})
    for width, tokens in ((32, 1e6), (256, 4e6)):
        made = rules.values(model(width), optimiser="adamw", **{**RUN, "tokens": tokens})
        steps = tokens / (16 * 128)
        assert made.rates["weight_decay"] * made.effective["hidden"] * steps == pytest.approx(4)
    assert rules.uses_tokens == ["weight_decay"] and RuleSet().uses_tokens == []
    with pytest.raises(FlopwiseError, match=r"timescale needs the constant weight_decay\.tau"):
        RuleSet(weight_decay="timescale")


def test_warm_up_and_critical_batch():
    share = RuleSet(warmup="share", options={"warmup.share": 0.1}).values(model(64), **RUN)
    assert share.warmup_steps == round(0.1 * 2e6 / 2048)
    by_size = RuleSet(warmup="parameters").values(model(64), **RUN)
    assert by_size.warmup_steps == round(count_params(model(64)).non_embedding / 2048)
    critical = RuleSet(batch="critical", options={"batch.loss": 3.0}).values(model(64), **RUN)
    assert critical.batch_size == round(2e8 / 3.0 ** (1 / 0.21) / 128)
    assert RuleSet().values(model(64), **RUN, warmup_steps=7, z_loss=1e-4).z_loss == 1e-4


def test_shape_rules_give_a_model():
    assert RuleSet().config(64, 512, 128, 3) == model(64, 3)
    deep = RuleSet(shape="aspect", options={"shape.ratio": 16}).config(64, 512, 128, 2)
    assert deep == model(64, 4)


def test_init_is_what_the_model_draws():
    pytest.importorskip("torch")
    from flopwise.models.transformer import Transformer

    cfg = model(64)
    built = Transformer(cfg).initialise(0)
    init = RuleSet().values(cfg, **RUN).init
    block = built.blocks[0]
    assert float(block.attn.qkv.weight.detach().std()) == pytest.approx(init["hidden"], rel=0.05)
    assert float(block.attn.out.weight.detach().std()) == pytest.approx(init["attention_out"], rel=0.05)
    assert float(block.mlp.down.weight.detach().std()) == pytest.approx(init["mlp_down"], rel=0.05)
    assert float(built.embed.weight.detach().std()) == pytest.approx(init["embed"], rel=0.05)
    assert float(built.head.weight.detach().abs().max()) == init["head"] == 0


@pytest.mark.parametrize(
    ("rules", "match"),
    [
        ({"rate": "mupp"}, "rate 'mupp' is unknown; there are spectral, mup, completep, step_law, constant"),
        ({"options": {"rate.c": 1.0}}, "'rate.c' is no constant of the rules named"),
        ({"options": {"init.gain": math.inf}}, "init.gain is inf, must be a number"),
        ({"options": [1]}, "options are"),
        ({"batch": "critical"}, "batch critical needs the constant batch.loss"),
    ],
)
def test_bad_rules_are_told_in_one_line(rules, match):
    with pytest.raises(FlopwiseError, match=match) as e:
        RuleSet(**rules)
    assert "\n" not in str(e.value)


def test_description_lists_all_questions_with_values():
    rows = describe(RuleSet(rate="mup"), model(128), optimiser="adamw", **RUN)
    assert [r["what"] for r in rows] == list(WHAT)
    rate = next(r for r in rows if r["what"] == "rate")
    assert (
        rate["value"] == "hidden 0.004, embed 0.01, head 0.002, norm 0.01" and "2203.03466" in rate["source"]
    )
    assert all(not r["value"] for r in describe(RuleSet()))


def test_values_of_an_unknown_optimiser_are_refused():
    with pytest.raises(FlopwiseError, match="optimiser 'sgd' is unknown"):
        RuleSet().values(model(64), optimiser="sgd", **RUN)
    assert RuleSet().values(model(64), rate_factor=2.0, **RUN).rates["muon"] == 0.04


def test_the_page_on_ladders_lists_every_rule():
    text = (Path(__file__).parents[2] / "docs" / "ladders.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    for rule in RULES:
        row = [r for r in rows if r.startswith(f"| {rule.what} | `{rule.name}` |")]
        assert len(row) == 1, f"docs/ladders.md has {len(row)} rows for {rule.what} {rule.name}"
        assert rule.formula in row[0] and rule.source in row[0] and rule.checked in row[0]
