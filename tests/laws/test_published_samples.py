"""Published samples give the figures that were published with them."""

import numpy as np
import pytest

import flopwise as fw


def scored(rows, seed, first=8):
    """The first samples of a seed."""
    kept = (rows["seed"] == seed) & (rows["sample"] < first)
    return {
        "problem": rows["problem"][kept], "correct": rows["correct"][kept].astype(int),
        "score": rows["prm_score"][kept],
    }  # fmt: skip


def test_oracle_and_best_of_the_first_n_by_a_process_reward_model(published):
    # Repository crucible-ttc, 40 MATH-500 problems, 3 seeds: means over seeds, the first n samples of each.
    rows = published("scored_completions/samples.csv")
    oracle, best = {}, {}
    for n in (1, 2, 4, 8):
        made = [fw.score(scored(rows, seed, n), k=[n]) for seed in range(3)]
        oracle[n] = np.mean([m["pass_at_k"][n]["value"] for m in made])
        best[n] = np.mean([m["best_of_n"][n]["value"] for m in made])
    assert oracle == pytest.approx({1: 0.383, 2: 0.5, 4: 0.617, 8: 0.7}, abs=6e-4)
    assert [best[n] for n in (2, 4, 8)] == pytest.approx([0.45, 0.533, 0.55], abs=6e-4)


def test_best_of_n_over_all_subsets(published):
    rows = published("scored_completions/samples.csv")
    made = [fw.score(scored(rows, seed), k=[2, 4, 8]) for seed in range(3)]
    found = [np.mean([m["best_of_n"][n]["value"] for m in made]) for n in (2, 4, 8)]
    assert found == pytest.approx([0.462, 0.517, 0.55], abs=6e-4)


def test_the_process_reward_model_ranks_within_problems_worse_than_pooled(published):
    rows = published("scored_completions/samples.csv")
    table = {"problem": rows["problem"], "correct": rows["correct"].astype(int), "score": rows["prm_score"]}
    found = fw.score(table, k=[8])["scores"]["score"]["quality"]
    assert found["auc_within"]["high"] < found["auc_pooled"] and found["auc_within"]["low"] > 0.5


def test_coverage_of_ten_thousand_samples(published):
    # Brown et al. 2024, arXiv 2407.21787: Pythia-160M on MATH from 0.27% with one sample to 57% with 10,000.
    rows = published("monkeys_math_pythia/counts.csv")
    kept = rows["model"] == "Pythia 160M"
    out = fw.score({name: rows[name][kept] for name in ("problem", "n", "c")}, k=[1, 10_000])["pass_at_k"]
    assert out[1]["value"] == pytest.approx(0.0027, abs=5e-5)
    assert out[10_000]["value"] == pytest.approx(0.57, abs=5e-3)


def test_every_model_is_unbiased_at_one_and_all_samples(published):
    rows = published("monkeys_math_pythia/counts.csv")
    for model in np.unique(rows["model"]):
        mine = {name: rows[name][rows["model"] == model] for name in ("problem", "n", "c")}
        out = fw.score(mine, k=[1, 10_000])["pass_at_k"]
        assert out[1]["value"] == pytest.approx((mine["c"] / mine["n"]).mean())
        assert out[10_000]["value"] == pytest.approx((mine["c"] > 0).mean())
