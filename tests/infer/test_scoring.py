from pathlib import Path

import numpy as np
import pytest

import flopwise as fw
from flopwise.errors import FlopwiseError

DATA = Path(__file__).parents[2] / "../shared/data"


def published(name):
    path = DATA / name
    if not path.exists():
        pytest.skip(f"published data {name} is not here")
    return path


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


def test_published_best_of_n_by_a_process_reward_model():
    """40 MATH-500 problems x 8 samples x 3 seeds: exact over subsets, mean over seeds."""
    rows = fw.read_table(published("scored_completions") / "samples.csv", rename={"score": "prm_score"})
    results = []
    for seed in range(3):
        one = {name: values[rows["seed"] == seed] for name, values in rows.items()}
        out = fw.score(one, k=[1, 2, 4, 8])
        results.append([out["best_of_n"][k]["value"] for k in (2, 4, 8)] + [out["pass_at_k"][8]["value"]])
    assert np.allclose(np.mean(results, axis=0), [0.462, 0.517, 0.550, 0.700], atol=6e-4)


def test_published_counts_of_ten_thousand_samples():
    path = published("monkeys_math_pythia") / "counts.csv"
    rows = fw.read_table(path, where="model = 'Pythia 12B'")
    out = fw.score(rows, k=[1, 10_000])
    assert out["pass_at_k"][1]["value"] == pytest.approx((rows["c"] / rows["n"]).mean())
    assert out["pass_at_k"][10_000]["value"] == pytest.approx((rows["c"] > 0).mean())
