import numpy as np
import pytest

import flopwise as fw
from flopwise.errors import FlopwiseError


def table(**changes):
    rows = {
        "problem": ["p"] * 4 + ["q"] * 4,
        "correct": [True, True, False, False, False, False, False, True],
        "answer": ["a", "a", "b", None, "x", "x", "y", "z"],
        "score": [0.9, 0.8, 0.7, 0.1, 0.5, 0.4, 0.3, 0.2],
    }
    return rows | changes


def test_keys_and_values():
    out = fw.score(table(), k=[1, 2, 4])
    assert (out["n_problems"], out["n_samples"]) == (2, 8)
    assert out["pass_at_k"][1]["value"] == pytest.approx((0.5 + 0.25) / 2)
    assert out["pass_at_k"][4]["value"] == 1.0
    assert out["majority_at_k"][4]["value"] == pytest.approx(0.5)
    assert out["majority_at_k"][4]["mc_se"] == 0
    assert out["best_of_n"][4]["value"] == pytest.approx(0.5)
    for key in ("pass_at_k", "majority_at_k", "best_of_n"):
        assert list(out[key]) == [1, 2, 4]
        assert {"value", "low", "high", "se"} <= set(out[key][2])
        assert out[key][2]["low"] <= out[key][2]["value"] <= out[key][2]["high"]


def test_without_answers_and_scores_only_coverage():
    out = fw.score({"problem": [1, 1], "correct": [0, 1]}, k=[1])
    assert "majority_at_k" not in out and "best_of_n" not in out


def test_order_of_rows_does_not_matter():
    rows = {name: np.array(values, dtype=object) for name, values in table().items()}
    order = np.random.default_rng(0).permutation(8)
    mixed = fw.score({name: values[order] for name, values in rows.items()}, k=[1, 2, 3, 4])
    straight = fw.score(rows, k=[1, 2, 3, 4])
    for key in ("pass_at_k", "majority_at_k", "best_of_n"):
        for size in (1, 2, 3, 4):
            assert mixed[key][size]["value"] == pytest.approx(straight[key][size]["value"])


@pytest.mark.parametrize("nothing", [None, float("nan"), "", "  "])
def test_an_absent_answer_abstains(nothing):
    one = {"problem": ["p"] * 3, "correct": [False, False, True], "answer": [nothing, nothing, "a"]}
    assert fw.score(one, k=[3])["majority_at_k"][3]["value"] == 1.0


def test_a_k_above_the_samples_is_none_with_a_reason():
    rows = table(problem=["p"] * 5 + ["q"] * 3)
    entry = fw.score(rows, k=[4])["majority_at_k"][4]
    assert entry["value"] is None and entry["low"] is None
    assert entry["reason"] == "1 of 2 problems have fewer than 4 samples, one has 3"
    assert fw.score(rows, k=[3])["pass_at_k"][3]["value"] is not None


@pytest.mark.parametrize(
    ("rows", "k", "message"),
    [
        (table(correct=[1, 0, 1, 0, 1, 0, 2, 1]), [1], "'2' in row 7, must be true or false"),
        (table(correct=[1, 0, None, 0, 1, 0, 1, 1]), [1], "'None' in row 3"),
        (table(correct=[1, 0, 0.5, 0, 1, 0, 1, 1]), [1], "'0.5' in row 3"),
        (table(correct=[1, float("nan"), 0, 0, 1, 0, 1, 1]), [1], "'nan' in row 2"),
        (table(problem=["p", None, *"qqqqqq"]), [1], "'problem' holds nothing in row 2"),
        (table(score=[1, 2, "high", 4, 5, 6, 7, 8]), [1], "'high' in row 3, must be a number"),
        (table(), [0], "k is"),
        (table(), [], "k is"),
        (table(), [1.5], "k is"),
        ({"problem": [1]}, [1], "no column 'correct'"),
        ({"correct": [1]}, [1], "no column 'problem'"),
        ({"problem": [1, 2], "n": [4, 4], "c": [1, 5]}, [1], "row 2 has 5 right of 4"),
        ({"problem": [1, 1], "n": [4, 4], "c": [1, 2]}, [1], "a problem has one row"),
    ],
)
def test_bad_tables_are_refused_with_the_row(rows, k, message):
    with pytest.raises(FlopwiseError, match=message) as caught:
        fw.score(rows, k=k)
    assert "\n" not in str(caught.value)


def test_spellings_of_true_and_hostile_texts_are_only_texts():
    evil = ["<script>alert(1)</script>", "'; DROP TABLE runs; --", "[bold]", "../../etc"]
    evil += ["\x1b[2J", "(.*)+$", "nan", "None"]
    rows = table(correct=["True", "FALSE", "1", "0", "yes", "no", 1.0, 0], answer=evil, problem=["p"] * 8)
    out = fw.score(rows, k=[1, 8])
    assert out["pass_at_k"][1]["value"] == pytest.approx(0.5)
    assert out["majority_at_k"][8]["value"] == pytest.approx(0.5)


def test_from_a_file_with_counts(tmp_path):
    path = tmp_path / "counts.csv"
    path.write_text("problem,n,c\na,4,1\nb,4,0\n")
    out = fw.score(path, k=[2, 8])
    assert out["pass_at_k"][2]["value"] == pytest.approx(0.25)
    assert out["pass_at_k"][8]["value"] is None


def test_several_scores_each_have_their_curves_and_quality():
    rows = table(score_noise=[0.1, 0.2, 0.3, 0.4, 0.4, 0.3, 0.2, 0.1])
    out = fw.score(rows, k=[1, 4])
    assert list(out["scores"]) == ["score", "score_noise"]
    assert out["best_of_n"] == out["scores"]["score"]["best_of_n"]
    for entry in out["scores"].values():
        assert list(entry["best_of_n"]) == list(entry["weighted_at_k"]) == [1, 4]
        assert entry["weights"] == "the score, a chance"
        assert entry["quality"]["auc_within"]["value"] is not None
        assert "it takes 20 problems" in entry["quality"]["overoptimisation"]["verdict"]
    assert "weighted_at_k:noise - majority_at_k" in out["differences"]
    only = {name: values for name, values in rows.items() if name != "score"}
    alone = fw.score(only, k=[4])
    assert alone["best_of_n"] == alone["scores"]["score_noise"]["best_of_n"]


def test_a_score_column_that_is_no_number_is_named():
    with pytest.raises(FlopwiseError, match="column 'score_b' holds 'x' in row 2"):
        fw.score(table(score_b=[1, "x", 1, 1, 1, 1, 1, 1]))


def test_differences_are_paired_over_problems():
    rng = np.random.default_rng(0)
    chance = np.repeat(rng.random(60), 8)
    right = rng.random(480) < chance
    rows = {
        "problem": np.repeat(np.arange(60), 8), "correct": right, "score": right + rng.normal(0, 0.7, 480),
        "answer": np.where(right, "a", "b"),
    }  # fmt: skip
    out = fw.score(rows, k=[8])
    found = out["differences"]["best_of_n - majority_at_k"][8]
    assert found["value"] == pytest.approx(
        out["best_of_n"][8]["value"] - out["majority_at_k"][8]["value"]
    )  # fmt: skip
    assert found["se"] < np.hypot(out["best_of_n"][8]["se"], out["majority_at_k"][8]["se"])
    assert found["low"] <= found["value"] <= found["high"]


def test_problems_may_have_different_numbers_of_samples():
    rows = table(problem=["p"] * 5 + ["q"] * 3)
    out = fw.score(rows, k=[3], forecast=[3])
    # p: a, a, b, none, x of which two a are right: any three have a or a tie; q: x, y, z with z right.
    assert out["majority_at_k"][3]["mc_se"] == 0
    assert all("reason" in found for found in out["forecast"].values())


def test_forecasts_of_counts():
    rng = np.random.default_rng(1)
    rows = {"problem": np.arange(80), "n": np.full(80, 100), "c": rng.binomial(100, rng.beta(0.3, 4, 80))}
    out = fw.score(rows, k=[1, 100], forecast=5000)
    (point,) = out["forecast"]["pass_at_k"]["points"]
    assert point["k"] == 5000 and not point["measured"]
    assert out["pass_at_k"][100]["value"] < point["value"] <= point["high"]
    with pytest.raises(FlopwiseError, match="forecast is"):
        fw.score(rows, forecast=[0])
