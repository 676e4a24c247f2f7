"""What a fit is refused for, what it warns of, and fits of every kind read back from a file."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest

from flopwise.errors import FlopwiseError
from flopwise.laws import Fit, fit, get
from flopwise.laws.law import Law, Parameter

TRUTH = {"E": 1.8, "A": 480.0, "B": 2100.0, "alpha": 0.35, "beta": 0.37}


def grid(noise=0.005, seed=0, n=4):
    N, D = (v.ravel() for v in np.meshgrid(np.geomspace(1e7, 1e9, n), np.geomspace(1e9, 1e11, n)))
    clean = get("chinchilla")(TRUTH, {"N": N, "D": D})
    return {"N": N, "D": D, "loss": clean * np.exp(noise * np.random.default_rng(seed).normal(size=n * n))}


def rows(table, which):
    return {name: np.asarray(v)[which] for name, v in table.items()}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (grid() | {"D": np.full(16, 2e10)}, r"D is 2e\+10 in every row"),
        (rows(grid(), slice(0, 5)), "needs at least 6 points, there are 5; add a run, say N = "),
        (rows(grid(), [0] * 12 + [1, 2, 4, 5][:2]), "in every row|only [0-9] different"),
        (rows(grid(), slice(0, 0)), "no rows|at least"),
        ({}, "no column 'N'"),
        (grid() | {"loss": np.zeros(16)}, "'loss' holds 0 in row 1, must be above 0"),
        (grid() | {"loss": [None, *grid()["loss"][1:]]}, "'loss' holds nothing in row 1"),
        (grid() | {"N": np.where(np.arange(16) == 6, -np.inf, 1e8)}, "'N' holds -inf in row 7"),
        (grid() | {"loss": grid()["loss"][:, None]}, r"shape \(16, 1\)"),
        (grid() | {"loss": 2.0}, r"shape \(\)"),
        (grid() | {"loss": [f"run {i}" for i in range(16)]}, "'run 0' in row 1"),
        (grid() | {"loss": grid()["loss"] + 1j}, "row 1"),
        (grid() | {"loss": np.arange(16) % 2 == 0}, "holds 0 in row 2"),
    ],
)
def test_tables_are_refused_in_one_line(table, message):
    with pytest.raises(FlopwiseError, match=message) as e:
        fit("chinchilla", table)
    assert "\n" not in str(e.value)


def test_lists_integers_and_decimals_are_numbers():
    from decimal import Decimal

    table = grid()
    one = fit("chinchilla", table, intervals="delta")
    whole = {"N": [int(v) for v in table["N"]], "D": [int(v) for v in table["D"]]}
    for other in (
        {k: v.tolist() for k, v in table.items()},
        {k: tuple(v) for k, v in table.items()},
        table | {"loss": [Decimal(repr(float(v))) for v in table["loss"]]},
        table | {"loss": table["loss"].astype(object)},
        table | {"loss": [repr(float(v)) for v in table["loss"]]},
        table | whole,
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            assert fit("chinchilla", other, intervals="delta").params == pytest.approx(one.params, rel=1e-4)


def said(fitted, text):
    return [w for w in fitted.warnings if text in w]


def test_a_line_of_runs_is_told():
    """Twenty tokens per parameter throughout: the two terms cannot be told apart."""
    N = np.geomspace(1e7, 1e10, 12)
    loss = get("chinchilla")(TRUTH, {"N": N, "D": 20 * N})
    loss = loss * np.exp(0.003 * np.random.default_rng(0).normal(size=12))
    fitted = fit("chinchilla", {"N": N, "D": 20 * N, "loss": loss}, intervals="delta")
    assert said(fitted, "N and D lie on one line")
    assert any("were not varied apart" in s for s in fitted.diagnostics["serious"])
    assert not said(fit("chinchilla", grid(), intervals="delta"), "on one line")


@pytest.mark.parametrize("bad", [[3], [0, 15], [7]])
def test_outliers_are_named_by_their_rows(bad):
    table = grid(0.003, n=6)
    loss = table["loss"].copy()
    loss[bad] *= 1.2
    fitted = fit("chinchilla", table | {"loss": loss}, intervals="delta")
    (line,) = said(fitted, "far from the law")
    # The worst first; a good row that happens to be far may follow.
    named = [int(part.split()[0]) for part in line.split("row ")[1:]]
    assert sorted(named[: len(bad)]) == [row + 1 for row in bad] and len(named) <= len(bad) + 1
    assert not said(fit("chinchilla", table, loss="log_squared", intervals="delta"), "far from the law")


def test_rows_that_are_there_twice_are_told():
    table = rows(grid(), [*range(16), 3, 3, 5])
    (line,) = said(fit("chinchilla", table, intervals="delta"), "repeat")
    assert line.startswith("3 ") and "row 4" in line
    other = table | {"loss": table["loss"] * (1 + 1e-4 * np.arange(19) * (np.arange(19) > 15))}
    assert not said(fit("chinchilla", other, intervals="delta"), "rows repeat")


def test_a_column_of_runs_is_suggested():
    table = grid() | {"run_id": np.repeat(["a", "b", "c", "d"], 4)}
    (line,) = said(fit("chinchilla", table, intervals="delta"), "--cluster run_id")
    assert "4 values of 'run_id'" in line
    assert not said(fit("chinchilla", table, cluster="run_id", intervals="delta"), "say --cluster")
    each = grid() | {"run_id": np.arange(16)}
    assert not said(fit("chinchilla", each, intervals="delta"), "--cluster")


def test_few_points_and_few_runs_are_told():
    few = fit("chinchilla", rows(grid(), [0, 1, 4, 5, 10, 15, 12]), intervals="delta")
    assert said(few, "7 points for 5 parameters")
    table = grid(n=5) | {"run": np.arange(25) % 7}
    assert said(fit("chinchilla", table, cluster="run", intervals="delta"), "7 independent runs for 5")


def test_labels_of_any_kind_make_the_same_clusters():
    table = grid()
    groups = np.arange(16) // 4
    one = fit("chinchilla", table | {"g": groups}, cluster="g", intervals="delta")
    for labels in (groups.astype(float), groups.astype(str), [f"r{g}" for g in groups], groups == 0):
        made = fit("chinchilla", table | {"g": labels}, cluster="g", intervals="delta")
        if len(np.unique(labels)) == 4:
            assert made.scatter == pytest.approx(one.scatter) and made.n_clusters == 4
    rows_alone = fit("chinchilla", table | {"g": np.arange(16)}, cluster="g", intervals="delta")
    none = fit("chinchilla", table, intervals="delta")
    assert rows_alone.covariance == pytest.approx(none.covariance) and rows_alone.n_clusters == 16


def test_far_extrapolation_is_told():
    fitted = fit("chinchilla", grid(), intervals="delta")
    near, far = fitted.predict(N=1e9, D=2e11), fitted.predict(N=1e11, D=1e13)
    assert near.extrapolation == pytest.approx(2.0) and not near.warnings
    assert far.extrapolation == pytest.approx(100.0)
    assert any("1e+04 times the largest" in w for w in far.warnings)
    assert any("tokens per parameter" in w for w in fitted.predict(N=1e7, D=1e13).warnings)
    many = fitted.predict(N=np.array([1e8, 1e9]), D=1e10)
    assert many.value.shape == many.low.shape == many.mean_high.shape == (2,)
    assert many.value[1] == fitted.predict(N=1e9, D=1e10).value
    assert (many.low < many.mean_low).all() and (many.mean_high < many.high).all()


def test_nothing_warns_in_numpys_name():
    """Odd tables are fitted or refused without a word from numpy on stderr."""
    base = grid()
    odd = [
        base | {"loss": np.full(16, 2.0)},
        base | {"loss": 1 / base["loss"]},
        base | {"loss": np.random.default_rng(0).lognormal(0, 1, 16)},
        base | {"loss": base["loss"] * 1e8},
        base | {"N": base["N"] * 1e-12, "D": base["D"] * 1e12},
    ]
    for law in ("kaplan", "loss = E + A / N^a"):
        for table in odd:
            with warnings.catch_warnings():
                warnings.simplefilter("error", RuntimeWarning)
                try:
                    text = json.dumps(fit(law, table).to_dict(), allow_nan=False)
                except FlopwiseError as e:
                    text = str(e)
                assert "\n" not in text and text


RATE = Law(
    name="rate_for_tests",
    regime="own",
    formula="accuracy = sigmoid(a * (log10(C) - b))",
    source="",
    status="own",
    span=(0.0, 1.0),
    scale="plain",
    parameters=(Parameter("a", (0.1, 10.0)), Parameter("b", (15.0, 25.0))),
)


def kinds():
    rng = np.random.default_rng(0)
    C = np.geomspace(1e18, 1e22, 24)
    power = {"C": C, "loss": (1.7 + 1e3 * C**-0.2) * np.exp(0.003 * rng.normal(size=24))}
    counts = {"n": np.full(40, 60), "c": rng.binomial(60, rng.beta(1.2, 3.0, 40))}
    own = "loss = E + A / C^a where unused = 2"
    return {
        "catalogue": (lambda: fit("chinchilla", grid()), {"N": 3e9, "D": 1e11}),
        "fixed": (lambda: fit("chinchilla", grid(), fixed={"E": 1.8, "beta": 0.37}), {"N": 3e9, "D": 1e11}),
        "own": (lambda: fit("loss = E + A / C^a", power), {"C": np.array([1e20, 1e24])}),
        "own with where": (lambda: fit(own, power), {"C": 1e24}),
        "own, one variable of its own": (
            lambda: fit("loss = E + A / width^a", {"width": C, "loss": power["loss"]}),
            {"width": 1e24},
        ),
        "own, fixed": (lambda: fit("loss = E + A / C^a", power, fixed={"a": 0.2}), {"C": 1e24}),
        "squared": (lambda: fit("chinchilla", grid(), loss="squared"), {"N": 3e9, "D": 1e11}),
        "robust": (lambda: fit("chinchilla", grid(), loss="robust"), {"N": 3e9, "D": 1e11}),
        "delta": (lambda: fit("chinchilla", grid(), intervals="delta"), {"N": 3e9, "D": 1e11}),
        "bootstrap": (lambda: fit("chinchilla", grid(), bootstrap=30), {"N": 3e9, "D": 1e11}),
        "posterior": (lambda: fit("loss = E + A / C^a", power, intervals="posterior"), {"C": 1e24}),
        "clusters": (
            lambda: fit("chinchilla", grid(n=5) | {"g": np.arange(25) % 7}, cluster="g"),
            {"N": 3e9, "D": 1e11},
        ),
        "counts": (lambda: fit("beta_binomial", counts), None),
    }


@pytest.mark.parametrize("kind", kinds())
def test_a_fit_of_every_kind_comes_back_from_its_file(kind, tmp_path):
    make, at = kinds()[kind]
    fitted = make()
    fitted.to_json(tmp_path / "fit.json")
    json.loads((tmp_path / "fit.json").read_text(), parse_constant=lambda c: pytest.fail(f"{c} is no JSON"))
    read = Fit.from_json(tmp_path / "fit.json")
    assert (read.law, read.loss, read.scale, read.intervals) == (
        fitted.law,
        fitted.loss,
        fitted.scale,
        fitted.intervals,
    )
    assert read.params == fitted.params and read.fixed == fitted.fixed
    assert read.dof == fitted.dof and read.status == fitted.status and read.warnings == fitted.warnings
    for name in fitted.params:
        for level in (0.5, 0.95):
            assert read.interval(name, level) == pytest.approx(fitted.interval(name, level), rel=1e-9)
    if at is not None:
        one, other = fitted.predict(**at), read.predict(**at)
        for field in ("value", "low", "high", "mean_low", "mean_high", "extrapolation"):
            assert getattr(other, field) == pytest.approx(getattr(one, field), rel=1e-12)
        assert other.warnings == one.warnings
    read.to_json(tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text()) == json.loads(
        (tmp_path / "fit.json").read_text()
    )


@pytest.mark.parametrize(
    "change",
    [
        {"law": "nope"},
        {"law": "kaplan"},
        {"law": None},
        {"law": "loss = __import__('os')"},
        {"params": {}},
        {"params": {"E": 1}},
        {"params": [1, 2]},
        {"params": None},
        {"covariance": []},
        {"covariance": [[1]]},
        {"covariance": "x"},
        {"n": "x"},
        {"n": None},
        {"loss": 3},
        {"ranges": {"N": [1]}},
        {"ranges": []},
        {"scatter": -1},
        {"scatter": float("nan")},
        {"dof": -1},
        {"dof": "x"},
        {"dofs": [1]},
        {"samples": [[1, 2]]},
        {"profiles": {"E": 3}},
        {"diagnostics": None},
        {"warnings": None},
        {"fixed": {"Q": 1}},
        {"fixed": {"E": "x"}},
        {"fixed": 3},
        {"covariance": [[float("inf")] * 5] * 5},
        {"status": None, "objective": None},
    ],
    ids=str,
)
def test_a_file_that_was_tampered_with_gets_one_line(change, tmp_path):
    path = tmp_path / "fit.json"
    content = fit("chinchilla", grid(), intervals="delta").to_dict()
    path.write_text(json.dumps(content | change))
    with pytest.raises(FlopwiseError) as e:
        Fit.from_json(path)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '"x"', "{}", "\x00", "[" * 100_000])
def test_files_that_are_no_fit_get_one_line(text, tmp_path):
    path = tmp_path / "fit.json"
    path.write_text(text)
    with pytest.raises(FlopwiseError, match=r"not a fit|not JSON") as e:
        Fit.from_json(path)
    assert "\n" not in str(e.value)
    with pytest.raises(FlopwiseError):
        Fit.from_json(tmp_path)
