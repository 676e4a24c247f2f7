"""isoFLOP curves: exact laws come back, biases are what the report says, published exponents come out."""

from __future__ import annotations

import json

import numpy as np
import pytest

from flopwise.errors import FlopwiseError
from flopwise.laws import fit, get
from flopwise.laws.isoflop import group, isoflop
from flopwise.laws.isoflop_bias import optimal_size
from flopwise.laws.isoflop_lines import power_law

EVEN = {"E": 1.7, "A": 400.0, "B": 500.0, "alpha": 0.3, "beta": 0.3}
HOFFMANN = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}
BUDGETS = np.geomspace(1e18, 1e22, 5)


def curves(params, around, sizes=7, width=8.0, budgets=BUDGETS, noise=0.0, seed=0, copies=1):
    """Runs at each budget, sizes within a factor `width` of `around(C)`."""
    N = np.concatenate([around(C) * np.geomspace(1 / width, width, sizes) for C in budgets])
    N, C = np.repeat(N, copies), np.repeat(budgets, sizes * copies)
    D = C / (6 * N)
    noisy = np.exp(np.random.default_rng(seed).normal(0, noise, len(N))) if noise else 1.0
    return {"N": N, "D": D, "C": C, "loss": get("chinchilla")(params, {"N": N, "D": D}) * noisy}


def centred(params):
    return lambda C: optimal_size(params, C)


@pytest.mark.parametrize("scale", ["log", "plain"])
@pytest.mark.parametrize("weighted", [True, False])
def test_equal_exponents_and_a_centred_grid_are_exact(scale, weighted):
    found = isoflop(curves(EVEN, centred(EVEN)), scale=scale, bias=EVEN)
    for name in ("N", "D"):
        assert found.law(name, weighted).exponents["C"] == pytest.approx(0.5, abs=1e-9)
    assert [b.N for b in found.budgets] == pytest.approx([optimal_size(EVEN, C) for C in BUDGETS], rel=1e-8)
    assert found.bias.minima == pytest.approx([1.0] * 5) and found.bias.true == pytest.approx(0.5)
    assert found.bias.off == pytest.approx({"plain": 0, "weighted": 0}, abs=1e-9) and not found.warnings


def test_the_bias_of_a_grid_that_drifts_off_centre_is_what_the_report_says():
    # The same sizes at every budget: too large at the first, too small at the last.
    table = curves(HOFFMANN, lambda C: 1e9, sizes=9, width=12.0, budgets=np.geomspace(1e19, 1e21, 5))
    true = 0.28 / 0.62
    given, fitted = isoflop(table, bias=HOFFMANN), isoflop(table)
    for found in (given, fitted):
        assert abs(found.a - true) > 0.005
        assert found.bias.off["weighted"] == pytest.approx(found.a - true, abs=1e-4)
        assert found.bias.corrected["weighted"] == pytest.approx(true, abs=1e-4)
        assert found.law("N").exponents["C"] == found.a  # the correction is told, never applied
        ratios = [b.N / optimal_size(HOFFMANN, b.C) for b in found.budgets]
        assert found.bias.minima == pytest.approx(ratios, rel=1e-3)
    assert given.bias.centres[0] > 2 and given.bias.centres[-1] < 0.6 and not given.bias.fitted


def test_a_grid_off_centre_by_one_factor_moves_minima_and_not_the_exponent():
    found = isoflop(curves(HOFFMANN, lambda C: 2 * optimal_size(HOFFMANN, C)), scale="plain", bias=HOFFMANN)
    assert found.law("N", weighted=False).exponents["C"] == pytest.approx(0.28 / 0.62, abs=1e-9)
    assert np.ptp(found.bias.minima) < 1e-6 and abs(found.bias.minima[0] - 1) > 0.01
    assert found.bias.off["plain"] == pytest.approx(0, abs=1e-9)


def test_a_window_and_interpolation_have_less_bias():
    table = curves(HOFFMANN, centred(HOFFMANN), sizes=41, width=50.0)
    whole, near, akima = (
        isoflop(table, bias=HOFFMANN, **options)
        for options in ({}, {"window": 4.0}, {"method": "akima", "noise": 1e-4})
    )
    worst = [max(abs(np.log(f.bias.minima))) for f in (whole, near, akima)]
    assert worst[0] > 5 * worst[1] and worst[2] < 0.002
    assert akima.law("N").exponents["C"] == pytest.approx(0.28 / 0.62, abs=1e-3)


@pytest.mark.parametrize("method", ["parabola", "akima"])
def test_standard_errors_are_those_of_repeated_experiments(method):
    noise = 0.002
    made = [
        isoflop(
            curves(EVEN, centred(EVEN), noise=noise, seed=s), method, bias=False,
            noise=noise if method == "akima" else None,
        )
        for s in range(40)
    ]  # fmt: skip
    for i in (0, -1):
        spread = np.std([np.log(m.budgets[i].N) for m in made if m.budgets[i].usable])
        told = np.median([m.budgets[i].se for m in made if m.budgets[i].usable])
        assert 0.6 < told / spread < 1.6
    inside = [m.law("N").interval("C")[0] < 0.5 < m.law("N").interval("C")[1] for m in made]
    assert np.mean(inside) >= 0.85


def test_seeds_give_the_noise_and_a_sweep_is_told_from_seeds():
    found = isoflop(curves(EVEN, centred(EVEN), noise=0.003, copies=3), bias=False)
    given = isoflop(curves(EVEN, centred(EVEN), noise=0.003, copies=3), bias=False, noise=0.003 / np.sqrt(3))
    assert [b.se for b in found.budgets] == pytest.approx([b.se for b in given.budgets], rel=0.25)
    assert not found.warnings and "105 runs" in found.grouping
    sweep = curves(EVEN, centred(EVEN), copies=3)
    sweep["loss"] = sweep["loss"] * np.tile([1.0, 1.02, 1.1], len(sweep["loss"]) // 3)
    assert "best_of" in isoflop(sweep, bias=False).warnings[0]
    assert isoflop(sweep, bias=False, repeats="min").a == pytest.approx(0.5, abs=1e-9)


def test_budgets_are_grouped_by_nominal_compute_or_clustered():
    table = curves(EVEN, centred(EVEN))
    assert isoflop(table, bias=False).grouping == "column C, as they are: 5 budgets of 35 runs"
    loose = {"N": table["N"], "D": table["D"] * np.tile(np.geomspace(0.99, 1.01, 7), 5)}
    loose["loss"] = get("chinchilla")(EVEN, {"N": loose["N"], "D": loose["D"]})
    found = isoflop(loose, bias=False)
    assert found.grouping == "C = 6 N D, 35 values clustered within 10%: 5 budgets of 35 runs"
    assert found.a == pytest.approx(0.5, abs=0.01) and not found.warnings
    wide = loose | {"D": table["D"] * np.tile(np.geomspace(0.97, 1.03, 7), 5)}
    assert "6% apart" in isoflop(wide, bias=False).warnings[0]
    assert [len(g) for g in group(np.array([1.0, 1.09, 1.12, 1.3]), 0.1)] == [2, 1, 1]


def test_tokens_follow_the_tables_own_count_of_compute():
    # Embeddings and attention make C more than 6 N D, the more so the smaller the model.
    table = curves(EVEN, centred(EVEN))
    per = 6 * (table["N"] / 1e9) ** -0.1
    table["D"] = table["C"] / (per * table["N"])
    found = [b.D * 6 * (b.N / 1e9) ** -0.1 * b.N / b.C for b in isoflop(table, bias=False).budgets]
    assert found == pytest.approx([1.0] * 5, rel=1e-6)
    without = {name: table[name] for name in ("N", "C", "loss")}
    found = [6 * b.D * b.N / b.C for b in isoflop(without, bias=False).budgets]
    assert found == pytest.approx([1.0] * 5, rel=1e-9)


def test_budgets_without_a_minimum_are_left_out_in_words():
    table = curves(EVEN, centred(EVEN), budgets=np.geomspace(1e18, 1e22, 8))
    budget = np.repeat(np.arange(8), 7)
    table["loss"] = np.where(budget == 0, 2 * table["loss"].max() - table["loss"], table["loss"])
    large = table["N"] > np.array([optimal_size(EVEN, C) for C in table["C"]]) * 1.01
    kept = ~((budget == 1) & ~large) & ~((budget == 2) & (np.arange(56) % 3 > 0))
    found = isoflop({name: values[kept] for name, values in table.items()}, bias=False)
    said = [b.warning for b in found.budgets]
    assert "opens downward" in said[0]
    assert "needs 4" in said[1] and "needs 4" in said[2]
    assert [b.usable for b in found.budgets] == [False] * 3 + [True] * 5
    assert "3 of 8 budgets" in found.warnings[-1] and found.a == pytest.approx(0.5, abs=1e-9)


@pytest.mark.parametrize("method", ["parabola", "akima"])
def test_a_minimum_at_the_edge_is_refused(method):
    around = lambda C: optimal_size(EVEN, C) * (20 if C < 5e18 else 1)  # noqa: E731
    found = isoflop(curves(EVEN, around, width=6.0), method, bias=False)
    assert not found.budgets[0].usable and "smallest size" in found.budgets[0].warning
    assert all(b.usable for b in found.budgets[1:])


def test_sizes_that_differ_by_rounding_are_one():
    table = curves(EVEN, centred(EVEN), copies=2)
    table["N"] = table["N"] * np.tile([1.0, 1 + 4e-16], len(table["N"]) // 2)
    assert isoflop(table, "akima", bias=False).a == pytest.approx(0.5, abs=1e-6)


def test_few_budgets_have_minima_and_no_law():
    found = isoflop(curves(EVEN, centred(EVEN), budgets=[1e18, 1e19]))
    assert len(found.budgets) == 2 and found.laws == {} and "needs 3" in found.warnings[0]
    with pytest.raises(FlopwiseError, match="fewer than 3 budgets"):
        found.law("N")
    assert "lean on" in isoflop(curves(EVEN, centred(EVEN), budgets=[1e18, 1e19, 1e20])).warnings[0]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"method": "spline"}, "method 'spline' is unknown; there are parabola, akima"),
        ({"scale": "cubic"}, "scale 'cubic'"), ({"repeats": "max"}, "repeats 'max'"),
        ({"window": 1.0}, "window is 1.0, must be a factor above 1"),
        ({"tolerance": 1.5}, "tolerance is 1.5"), ({"noise": 0.0}, "noise is 0.0"),
        ({"bias": {"E": 1.0}}, None),
    ],
)  # fmt: skip
def test_bad_options_are_told_in_one_line(change, match):
    table = curves(EVEN, centred(EVEN))
    if match is None:
        assert "A is missing" in isoflop(table, **change).warnings[-1]
        return
    with pytest.raises(FlopwiseError, match=match) as e:
        isoflop(table, **change)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"N": None}, "no column 'N'"), ({"loss": [2.0, -1.0, 2.0, 2.1]}, "'loss' holds -1 in row 2"),
        ({"D": None, "C": None}, "no column 'D'"),
        ({"loss": [2.3, 2.2, 2.1, 2.05]}, "none of 1 budgets .* above the largest size"),
        ({"loss": [2.3, 2.2, 2.1]}, "must be of one length"),
        ({"N": [1e8, 2e8, 4e8, 8e298]}, "'N' holds 8e\\+298 in row 4, must be from 1e-100"),
        ({"N": [], "C": [], "D": [], "loss": []}, "no rows"),
        ({"loss": [2.1] * 4}, "is flat"),
        ({"N": [1e8] * 4}, "1 size: a minimum needs 4"),
    ],
)  # fmt: skip
def test_bad_tables_are_told_in_one_line(change, match):
    table = {"N": [1e8, 2e8, 4e8, 8e8], "C": [1e18] * 4, "D": [1e18 / 6e8] * 4, "loss": [2.2, 2.1, 2.1, 2.2]}
    table = {name: np.array(v) for name, v in (table | change).items() if v is not None}
    with pytest.raises(FlopwiseError, match=match) as e:
        isoflop(table)
    assert "\n" not in str(e.value)


def test_a_bias_that_cannot_be_told_is_said_so():
    table = curves(HOFFMANN, centred(HOFFMANN), noise=0.001)
    overtraining = fit("overtraining", table)
    found = isoflop(table, bias=overtraining)
    assert found.bias is None and "not of overtraining" in found.warnings[-1]


def test_everything_goes_to_json():
    d = json.loads(json.dumps(isoflop(curves(HOFFMANN, centred(HOFFMANN), noise=0.002)).to_dict()))
    assert set(d) == {"grouping", "method", "budgets", "laws", "bias", "warnings"}
    assert d["laws"]["weighted"]["N"]["n"] == 5 and len(d["bias"]["minima"]) == 5
    low, high = d["laws"]["plain"]["N"]["intervals"]["C"]
    assert low < d["laws"]["plain"]["N"]["exponents"]["C"] < high


def test_lines_have_the_intervals_of_regression():
    # Against the textbook formula: slope +- t s / sqrt(Sxx), and the mean response at a new point.
    from scipy import stats

    x, y = np.arange(1.0, 9.0), np.array([2.0, 2.9, 4.2, 5.1, 5.8, 7.3, 7.9, 9.2])
    law = power_law("y", np.exp(y), {"C": np.exp(x)})
    other = stats.linregress(x, y)
    half = stats.t.ppf(0.975, 6) * other.stderr
    assert law.interval("C") == pytest.approx((other.slope - half, other.slope + half))
    value, low, high = law.predict(C=float(np.exp(12.0)))
    s = np.sqrt(np.square(y - other.intercept - other.slope * x).sum() / 6)
    wide = stats.t.ppf(0.975, 6) * s * np.sqrt(1 / 8 + (12 - x.mean()) ** 2 / np.square(x - x.mean()).sum())
    assert np.log([value, low, high]) == pytest.approx(
        other.intercept + other.slope * 12 + wide * np.array([0, -1, 1])
    )
    # Errors given are a floor: points nearer to the line than that do not make it surer.
    sure = power_law("y", np.exp(y), {"C": np.exp(x)}, se=np.full(8, 0.5))
    assert np.sqrt(sure.covariance[1, 1]) == pytest.approx(0.5 / np.sqrt(np.square(x - x.mean()).sum()))
    with pytest.raises(FlopwiseError, match="do not vary apart"):
        power_law("y", np.exp(y), {"N": np.exp(x), "D": np.exp(2 * x)})
    with pytest.raises(FlopwiseError, match="needs 3"):
        power_law("y", np.exp(y[:2]), {"C": np.exp(x[:2])})


def only(table, kept):
    return {name: values[kept] for name, values in table.items()}


def test_porian_exponents_from_published_optima(published):
    # Porian et al. 2024, arXiv 2406.19146: their n_star and its bootstrap error give their two exponents.
    points, fits = (
        published("porian_isoflop/isoflop_points.csv"),
        published("porian_isoflop/published_fits.csv"),
    )
    assert len(fits["setting"]) == 15
    for i, setting in enumerate(fits["setting"]):
        rows = only(points, points["setting"] == setting)
        first = np.unique(rows["C"], return_index=True)[1]
        stars = [(rows["C"][j], *(text(rows[c][j]) for c in ("n_star", "n_star_log_std"))) for j in first]
        C, N, se = np.array([s for s in stars if np.isfinite(s[1])]).T
        for kind, errors in (("basic", None), ("weighted", se)):
            law = power_law("N", N, {"C": C}, errors)
            assert law.exponents["C"] == pytest.approx(fits[f"n_exponent_{kind}"][i], abs=1e-4)
            assert law.coefficient == pytest.approx(fits[f"n_coef_{kind}"][i], rel=5e-3)


def text(value):
    return float(value) if str(value) else np.nan


def test_porian_exponents_from_raw_curves(published):
    points, fits = (
        published("porian_isoflop/isoflop_points.csv"),
        published("porian_isoflop/published_fits.csv"),
    )
    plain, weighted = [], []
    for i, setting in enumerate(fits["setting"]):
        rows = only(points, points["setting"] == setting)
        found = isoflop({n: rows[n] for n in ("N", "D", "C", "loss")}, "akima", noise=0.002, bias=False)
        plain.append(found.law("N", weighted=False).exponents["C"] - fits["n_exponent_basic"][i])
        weighted.append(found.a - fits["n_exponent_weighted"][i])
        low, high = found.law("N").interval("C")
        assert low - 0.01 < fits["n_exponent_weighted"][i] < high + 0.01
    # Interpolated minima here are of the curve itself, theirs the median over noisy copies.
    assert max(map(abs, plain)) < 0.005
    assert max(map(abs, weighted)) < 0.05


@pytest.mark.parametrize("condition", ["raw_loss", "exp_loss"])
def test_llama3_tokens(published, condition):
    # The Llama 3 Herd of Models, arXiv 2407.21783: D* = 0.29 C^0.53, 16.55T tokens and 402B at 3.8e25.
    table = published("llama3_isoflop/runs.csv")
    rows = only(table, table["condition"] == condition)
    found = isoflop({n: rows[n] for n in ("N", "D", "C", "loss")}, bias=False)
    law = found.law("D", weighted=False)
    assert law.exponents["C"] == pytest.approx(0.53, abs=0.01)
    assert law.coefficient == pytest.approx(0.29, rel=0.1)
    value, low, high = law.predict(C=3.8e25)
    assert value == pytest.approx(16.55e12, rel=0.05) and low < 16.55e12 < high
    assert found.law("N", weighted=False).predict(C=3.8e25)[0] == pytest.approx(402e9, rel=0.05)
    # Without the rows that the curators flag, the two largest budgets go and with them .03 of the exponent.
    clean = only(rows, rows["outlier"] != "True")
    less = isoflop({n: clean[n] for n in ("N", "D", "C", "loss")}, bias=False).law("D", weighted=False)
    assert less.n == 8 and less.exponents["C"] == pytest.approx(0.50, abs=0.01)


def test_the_bias_of_approach_2_on_chinchilla(published):
    # A law fitted to 240 runs of Hoffmann et al., at nine of their sizes and budgets, without noise.
    table = published("chinchilla_epoch/runs.csv")
    fitted = fit("chinchilla", only(table, table["outlier"] == 0))
    params = fitted.params
    true = params["beta"] / (params["alpha"] + params["beta"])
    budgets = np.geomspace(6e18, 3e21, 9)

    def off(sizes, scale):
        N, C = (v.ravel() for v in np.meshgrid(sizes, budgets))
        exact = {
            "N": N,
            "C": C,
            "D": C / (6 * N),
            "loss": get("chinchilla")(params, {"N": N, "D": C / (6 * N)}),
        }
        found = isoflop(exact, scale=scale, bias=fitted)
        assert found.bias.true == pytest.approx(true) and found.bias.corrected["plain"] == pytest.approx(true)
        assert found.a - true == pytest.approx(found.bias.off["weighted"], abs=1e-9)
        return found.bias.off["plain"]

    assert true == pytest.approx(0.5139, abs=1e-4)
    # The same sizes at every budget: parabolas of the loss are off by .02, of larger sizes only by .07.
    assert off(np.geomspace(7e7, 1.6e10, 9), "plain") == pytest.approx(-0.021, abs=0.001)
    assert off(np.geomspace(2e8, 3e10, 9), "plain") == pytest.approx(-0.069, abs=0.001)
    # Of log loss they are not, nor are those of sizes around the optimum.
    assert abs(off(np.geomspace(7e7, 1.6e10, 9), "log")) < 0.001
    good = isoflop(curves(params, centred(params), budgets=budgets), scale="plain", bias=fitted)
    assert abs(good.bias.off["plain"]) < 1e-6 and good.bias.minima[0] == pytest.approx(1, abs=0.02)


def test_two_approaches_that_disagree_are_told(published):
    # Kaplan's warm-up and decay: models are the worse the fewer steps they take, which no Chinchilla law has.
    points = published("porian_isoflop/isoflop_points.csv")
    rows = only(points, points["setting"] == "rw|base|long|kaplan|standard|val")
    found = isoflop({n: rows[n] for n in ("N", "D", "C", "loss")}, window=8.0)
    assert found.bias.true < found.law("N").interval("C")[0] - 0.1
    assert any("the two disagree" in w for w in found.warnings)
