"""Figures show the fit's own numbers, in either library, and nothing that a user wrote is read as markup."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from flopwise.errors import FlopwiseError, MissingExtra
from flopwise.laws import Fit, backtest, fit, own, plotting
from flopwise.laws.law import Parameter, get
from flopwise.laws.plotting import figure as marks

BACKENDS = ("matplotlib", "plotly")


def of(panel, kind):
    return [m for m in panel.marks if isinstance(m, kind)]


@pytest.fixture(scope="module")
def runs():
    """Twelve sizes at five budgets of tokens, a relative scatter of .3%."""
    N, D = (v.ravel() for v in np.meshgrid(np.geomspace(1e7, 1e10, 6), np.geomspace(1e9, 1e11, 5)))
    truth = {"E": 1.8, "A": 480.0, "B": 2100.0, "alpha": 0.35, "beta": 0.37}
    noise = np.exp(np.random.default_rng(0).normal(0, 0.003, len(N)))
    return {"N": N, "D": D, "loss": get("chinchilla")(truth, {"N": N, "D": D}) * noise}


@pytest.fixture(scope="module")
def fitted(runs):
    return fit("chinchilla", runs)


@pytest.fixture(scope="module")
def test_of(runs):
    return backtest("chinchilla", runs)


@pytest.fixture(scope="module")
def curve():
    """A law of one variable."""
    D = np.geomspace(1e8, 1e11, 15)
    noise = np.exp(np.random.default_rng(1).normal(0, 0.002, len(D)))
    return fit("loss = E + A / D^b", {"D": D, "loss": (1.7 + 90 * D**-0.3) * noise})


def test_one_variable_has_its_points_curve_and_two_bands(curve):
    (panel,) = plotting.series(curve).panels
    (points,), (line,) = of(panel, marks.Points), of(panel, marks.Line)
    assert (
        points.x.tolist() == curve.problem.x["D"].tolist() and points.y.tolist() == curve.problem.y.tolist()
    )
    p = curve.predict(D=line.x)
    assert line.y == pytest.approx(p.value) and line.x.max() == pytest.approx(3e11)
    run, law = of(panel, marks.Band)
    assert run.low == pytest.approx(p.low) and law.high == pytest.approx(p.mean_high)
    assert (run.low < law.low).all() and (law.low < line.y).all()
    assert (line.y < law.high).all() and (law.high < run.high).all()
    (shade,) = of(panel, marks.Shade)
    assert (shade.low, shade.high) == curve.ranges["D"]
    assert panel.x.log and panel.x.low < 1e8 and panel.x.high > 3e11


def test_level_and_reach_are_options(curve):
    (wide,), (narrow,) = (plotting.series(curve, level=v, to=1e13).panels for v in (0.99, 0.5))
    assert of(wide, marks.Line)[0].x.max() == pytest.approx(1e13)
    assert (of(wide, marks.Band)[0].low < of(narrow, marks.Band)[0].low).all()


def test_two_variables_have_a_curve_for_each_value_of_the_other(fitted, runs):
    (panel,) = plotting.series(fitted).panels
    assert "N (parameters)" in panel.x.label  # six sizes, five budgets
    lines = of(panel, marks.Line)
    assert [line.label for line in lines] == ["1B", "3.16B", "10B", "31.6B", "100B"]
    for line, D in zip(lines, np.geomspace(1e9, 1e11, 5), strict=True):
        assert line.y == pytest.approx(fitted.predict(N=line.x, D=np.full(len(line.x), D)).value)
    (points,) = of(panel, marks.Points)
    assert points.y.tolist() == runs["loss"].tolist()
    # A point has the colour of the curve it belongs to.
    assert [points.colour[6 * i] for i in range(5)] == [line.colour for line in lines]


def test_many_values_get_six_curves():
    rng = np.random.default_rng(2)
    N, D = np.exp(rng.uniform(16, 23, 80)), np.exp(rng.uniform(20, 25, 80))
    loss = get("chinchilla")(
        {"E": 1.8, "A": 480.0, "B": 2100.0, "alpha": 0.35, "beta": 0.37}, {"N": N, "D": D}
    )
    made = plotting.series(
        fit("chinchilla", {"N": N, "D": D, "loss": loss * np.exp(rng.normal(0, 0.003, 80))})
    )
    assert len(of(made.panels[0], marks.Line)) == 6
    assert "Points have the colour of their" in made.below


def test_three_variables_are_shown_measured_against_predicted(exact):
    table, _ = exact("algorithmic_progress")
    made = fit(
        "algorithmic_progress",
        table | {"loss": table["loss"] * np.tile([1.001, 0.999], 1000)[: len(table["loss"])]},
    )
    (panel,) = plotting.series(made).panels
    (points,) = of(panel, marks.Points)
    assert points.x == pytest.approx(made.predict(**made.problem.x).value)
    assert points.y.tolist() == made.problem.y.tolist()
    diagonal = of(panel, marks.Line)[0]
    assert diagonal.x.tolist() == diagonal.y.tolist()


def test_residuals_name_the_row_that_is_far_out(runs):
    table = runs | {"loss": np.where(np.arange(30) == 17, runs["loss"] * 1.2, runs["loss"])}
    made = fit("chinchilla", table)
    out = plotting.series(made, "residuals")
    assert len(out.panels) == 3
    for panel, x in zip(
        out.panels, (table["N"], table["D"], made.predict(**made.problem.x).value), strict=True
    ):
        (points,) = of(panel, marks.Points)
        assert points.x == pytest.approx(x)
        assert points.y == pytest.approx(made.predict(**made.problem.x).value / table["loss"] - 1)
        (note,) = (note for note in of(panel, marks.Note) if note.text == "row 18")
        assert note.y == pytest.approx(points.y[17]) and note.y == min(points.y)
        zero, *scale = [rule.at for rule in of(panel, marks.Rule)]
        assert zero == 0 and scale[0] == -scale[1] and 0.002 < scale[1] < 0.02


def test_outliers_close_together_share_a_label(runs):
    far = np.isin(np.arange(30), (17, 18))
    table = {name: v.copy() for name, v in runs.items()}
    table["N"][18], table["D"][18] = table["N"][17], table["D"][17] * 1.01
    table["loss"][18] = table["loss"][17]
    table["loss"] = np.where(far, table["loss"] * 1.2, table["loss"])
    panel = plotting.series(fit("chinchilla", table), "residuals").panels[0]
    assert "rows 18, 19" in [note.text for note in of(panel, marks.Note)]


def test_profiles_cross_their_line_where_the_interval_ends(fitted):
    out = plotting.series(fitted, "profile")
    assert [panel.title.split(" = ")[0] for panel in out.panels] == list(fitted.params)
    for panel, name in zip(out.panels, fitted.params, strict=True):
        line, bar = of(panel, marks.Line)
        assert bar.x == pytest.approx(fitted.interval(name), rel=1e-6)
        height = of(panel, marks.Rule)[1]
        assert height.text == "95%" and height.at == pytest.approx(fitted.t(0.95, name) ** 2)
        inside = (line.x > bar.x[0]) & (line.x < bar.x[1])
        assert (line.y[inside] <= height.at * 1.001).all() and (line.y[~inside] >= height.at * 0.999).all()


def test_a_parameter_that_the_data_leave_open_is_said_to_be(published):
    # Muennighoff et al. 2023: with all else held, the decay of repeated tokens has no upper end.
    table = published("data_constrained_c4/runs.csv")
    table = {name: v[table["in_fit"] == 1] for name, v in table.items()}
    held = {
        "E": np.exp(0.6254804),
        "A": np.exp(6.255414),
        "B": np.exp(7.3049974),
        "alpha": 0.3526596,
        "beta": 0.3526596,
    }
    out = plotting.series(fit("data_constrained", table, fixed=held), "profile")
    titles = {panel.title.split(" = ")[0]: panel.title for panel in out.panels}
    assert titles["RD"].endswith("(open above)") and "open" not in titles["RN"]
    assert "no value on that side is ruled out" in out.below


def test_isoflop_minima_are_the_optima(fitted):
    (panel,) = plotting.series(fitted, "isoflop", C=[1e19, 1e20, 1e21]).panels
    *curves, joined = of(panel, marks.Line)
    best = [fitted.optimal(C) for C in (1e19, 1e20, 1e21)]
    assert joined.x.tolist() == [b.N for b in best] and joined.y.tolist() == [b.loss for b in best]
    (bars,) = of(panel, marks.Bars)
    assert bars.sideways and bars.low.tolist() == [b.intervals["N"][0] for b in best]
    for line, b in zip(curves, best, strict=True):
        assert line.y == pytest.approx(fitted.predict(N=line.x, D=b.C / 6 / line.x).value)
        assert line.y.min() >= b.loss * (1 - 1e-6) and line.x.min() < b.N < line.x.max()


def test_isoflop_draws_the_budgets_that_were_run():
    budgets = np.repeat([1e19, 1e20, 1e21], 5)
    N = np.tile(np.geomspace(0.2, 5, 5), 3) * np.sqrt(budgets / 120)
    table = {"N": N, "D": budgets / 6 / N}
    truth = {"E": 1.8, "A": 480.0, "B": 2100.0, "alpha": 0.35, "beta": 0.37}
    noise = np.exp(np.random.default_rng(3).normal(0, 0.002, 15))
    made = fit("chinchilla", table | {"loss": get("chinchilla")(truth, table) * noise})
    (panel,) = plotting.series(made, "isoflop").panels
    assert [line.label for line in of(panel, marks.Line)[:-1]] == ["10¹⁹", "10²⁰", "10²¹"]
    assert [len(p.x) for p in of(panel, marks.Points)] == [5, 5, 5, 3]


def test_frontier_is_optimal_at_each_budget(fitted):
    out = plotting.series(fitted, "frontier", C=[1e20, 1e22])
    best = [fitted.optimal(C) for C in (1e20, 1e22)]
    for panel, name in zip(out.panels, ("N", "D"), strict=True):
        assert of(panel, marks.Line)[0].y.tolist() == [getattr(b, name) for b in best]
        assert of(panel, marks.Band)[0].high.tolist() == [b.intervals[name][1] for b in best]


def test_backtest_marks_what_lies_outside(test_of):
    out = plotting.series(test_of.fit, "backtest", backtest=test_of)
    points = of(out.panels[0], marks.Points)
    inside = np.concatenate([p.y for p in points if p.shape == "circle"])
    outside = np.concatenate([p.y for p in points if p.shape == "cross"])
    assert sorted(inside) == sorted(np.concatenate([t.errors[t.inside] for t in test_of.trials]))
    assert sorted(outside) == sorted(np.concatenate([t.errors[~t.inside] for t in test_of.trials]))
    assert f"{len(inside)} of {len(inside) + len(outside)} lie inside" in out.below


def test_held_out_rows_are_hollow_and_the_curve_has_not_seen_them(fitted, test_of):
    (panel,) = plotting.series(fitted, backtest=test_of).panels
    filled, hollow = of(panel, marks.Points)
    assert hollow.hollow and not filled.hollow
    assert len(hollow.x) == len(test_of.trials[0].rows) and len(filled.x) + len(hollow.x) == fitted.n
    line = of(panel, marks.Line)[0]
    assert line.y == pytest.approx(test_of.fit.predict(N=line.x, D=np.full(len(line.x), 1e9)).value)


def test_residuals_show_the_errors_made_while_held_out(fitted, test_of):
    panel = plotting.series(fitted, "residuals", backtest=test_of).panels[0]
    _, held = of(panel, marks.Points)
    assert held.hollow and held.y == pytest.approx(test_of.trials[0].errors)
    assert held.x.tolist() == fitted.problem.x["N"][test_of.trials[0].rows].tolist()


def test_a_backtest_of_something_else_is_refused(curve, test_of, runs):
    with pytest.raises(FlopwiseError, match="give the one made from the same table"):
        plotting.series(curve, backtest=test_of)


def test_a_law_that_must_not_be_extrapolated_is_not():
    C = np.linspace(0, 60, 15)
    reward = get("rl_sigmoid")({"A": 0.7, "R0": 0.05, "Cmid": 200.0, "B": 2.0}, {"C": np.maximum(C, 1e-9)})
    made = fit("rl_sigmoid", {"C": C, "reward": reward + np.tile([1e-4, -1e-4, 0], 5)}, loss="squared")
    assert made.status == "not_identified"
    out = plotting.series(made)
    assert of(out.panels[0], marks.Line)[0].x.max() == 60 and "Not extrapolated: the curve ends" in out.below
    with pytest.raises(FlopwiseError, match="not extrapolated"):
        plotting.series(made, to=300.0)


def test_counts_are_drawn_as_the_coverage_they_measure():
    rng = np.random.default_rng(4)
    n = np.full(60, 64)
    made = fit("beta_binomial", {"n": n, "c": rng.binomial(n, rng.beta(0.4, 3.0, 60))})
    (panel,) = plotting.series(made).panels
    (points,) = of(panel, marks.Points)
    assert points.x.tolist() == [1, 2, 4, 8, 16, 32, 64]
    assert points.y[0] == pytest.approx(np.mean(made.problem.x["c"] / 64))
    assert points.y[-1] == pytest.approx(np.mean(made.problem.x["c"] > 0))


def test_a_forecast_is_dashed_beyond_what_was_measured():
    from flopwise.laws.counts import Counts
    from flopwise.laws.coverage import forecast
    from flopwise.laws.plotting.compute import coverage

    rng = np.random.default_rng(5)
    counts = Counts.of(64, rng.binomial(64, rng.beta(0.4, 3.0, 50)))
    made = forecast(counts, [1, 8, 64, 256, 1024], draws=40)
    panel = coverage(made).panels[0]
    solid, dashed = of(panel, marks.Line)
    assert solid.x.tolist() == [1, 8, 64] and dashed.x.tolist() == [64, 256, 1024] and dashed.dashed
    assert of(panel, marks.Rule)[0].at == 64
    for backend in BACKENDS:
        plotting.plot_forecast(made, backend, samples=counts)


def test_a_fit_from_a_file_has_curves_without_points(fitted, tmp_path):
    fitted.profile("E")
    fitted.to_json(tmp_path / "fit.json")
    read = Fit.from_json(tmp_path / "fit.json")
    out = plotting.series(read)
    assert not of(out.panels[0], marks.Points) and "does not hold the points" in out.below
    assert of(out.panels[0], marks.Line)[0].y == pytest.approx(
        fitted.predict(N=of(out.panels[0], marks.Line)[0].x, D=1e9).value, rel=1e-6
    )
    assert len(plotting.series(read, "profile").panels) == 5
    assert of(plotting.series(read, "isoflop").panels[0], marks.Bars)
    with pytest.raises(FlopwiseError, match="fit the table again to see residuals"):
        plotting.series(read, "residuals")
    read.profiles.clear()
    with pytest.raises(FlopwiseError, match="holds no profiles"):
        plotting.series(read, "profile")


def test_a_law_of_three_variables_from_a_file_is_drawn_along_each(exact, tmp_path):
    table, _ = exact("algorithmic_progress")
    made = fit("algorithmic_progress", table, intervals="delta")
    made.to_json(tmp_path / "fit.json")
    out = plotting.series(Fit.from_json(tmp_path / "fit.json"))
    assert [panel.x.label.split(" ")[0] for panel in out.panels] == list(made.form.variables)


@pytest.mark.parametrize("kind", ["fit", "residuals", "profile", "isoflop", "frontier"])
def test_both_libraries_draw_every_kind(fitted, kind):
    series = plotting.series(fitted, kind)
    drawn = fitted.plot(kind)
    assert len(drawn.axes) == len(series.panels)
    for ax, panel in zip(drawn.axes, series.panels, strict=True):
        assert ax.get_xlim() == pytest.approx((panel.x.low, panel.x.high))
        assert [t.get_text() for t in ax.get_xticklabels()] == list(panel.x.texts)
        assert len(ax.get_lines()) == len(of(panel, marks.Line)) + len(of(panel, marks.Rule)) + 2 * len(
            of(panel, marks.Bars)
        )
    page = fitted.plot(kind, "plotly")
    lines = [t for t in page.data if t.mode == "lines" and t.line.width]
    expected = [line for panel in series.panels for line in of(panel, marks.Line)]
    assert [np.asarray(t.y).tolist() for t in lines] == [np.asarray(line.y).tolist() for line in expected]


def test_backtests_are_drawn(test_of):
    drawn = plotting.plot_backtest(test_of)
    assert drawn.axes and drawn._repr_png_().startswith(b"\x89PNG")  # what a notebook shows
    assert plotting.plot_backtest(test_of, "plotly").data


def test_nothing_a_user_wrote_is_markup(curve):
    evil = r"<b onclick='x'>$\frac{1}{0}$ %{y} & </b>"
    law = replace(
        own("loss = E + A / D^b"), name=evil, units={"D": evil, "loss": evil},
        parameters=(Parameter("E"), Parameter("A", (1.0, 100.0)), Parameter("b")),
    )  # fmt: skip
    made = fit(law, {"D": curve.problem.x["D"], "loss": curve.problem.y})
    for kind in ("fit", "residuals", "profile"):
        drawn = made.plot(kind)
        drawn.savefig("/dev/null", format="svg")  # a formula that cannot be set would raise
        page = made.plot(kind, "plotly").to_json()
        assert "<b onclick" not in page and "$" not in page and r"\u003cb onclick" not in page
    label = made.plot().axes[0].get_xlabel()
    assert evil in label


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf", ".html"])
def test_figures_are_saved(curve, tmp_path, suffix):
    path = tmp_path / f"figure{suffix}"
    plotting.save(curve, path)
    start = path.read_bytes()[:200]
    assert {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF", ".html": b"<html"}[suffix] in start
    if suffix == ".html":
        import re

        page = path.read_text(encoding="utf-8")
        assert not re.search(r"<(script|link)[^>]*(src|href)=", page)  # opens without a network
        assert "Plotly.newPlot" in page


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda f: f.plot("pie"), "kind 'pie' is unknown"),
        (lambda f: f.plot("fit", "gnuplot"), "backend 'gnuplot' is unknown; there are matplotlib, plotly"),
        (lambda f: f.plot("profile", level=0.9), "'profile' has no option 'level'; options: none"),
        (lambda f: f.plot("fit", level=95), "level is 95, must be between 0 and 1"),
        (lambda f: f.plot("fit", to=-1), "to is -1"),
        (lambda f: f.plot("isoflop"), "needs a law in N and D"),
        (lambda f: f.plot("backtest"), "needs backtest="),
        (lambda f: plotting.save(f, "figure.bmp"), "must end in .png, .svg, .pdf, .html"),
        (lambda f: plotting.save(f, "/no/such/folder/figure.png"), "does not exist; make it first"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_told_in_one_line(curve, call, says):
    with pytest.raises(FlopwiseError, match=None) as e:
        call(curve)
    assert says in str(e.value) and "\n" not in str(e.value)


def test_budgets_must_be_numbers(fitted):
    with pytest.raises(FlopwiseError, match="C is -1"):
        fitted.plot("isoflop", C=-1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_missing_library_is_told_with_the_command(curve, backend, monkeypatch):
    monkeypatch.setitem(sys.modules, backend, None)
    with pytest.raises(MissingExtra, match=f"needs {backend}.*pip install 'flopwise\\[plot\\]'"):
        curve.plot(backend=backend)


def test_no_library_is_loaded_before_a_figure_is_asked_for():
    code = (
        "import sys, flopwise, flopwise.laws.plotting as p; p.KINDS; "
        "sys.exit(any(m in sys.modules for m in ('matplotlib', 'plotly')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_long_names_are_cut_and_stay_on_one_line():
    law = replace(own("loss = E + A / D^b", name="x" * 400), units={"D": "tokens\n" * 40})
    D = np.geomspace(1e8, 1e11, 12)
    made = fit(law, {"D": D, "loss": 1.7 + 90 * D**-0.3 + np.tile([1e-4, -1e-4], 6)})
    label = plotting.series(made).panels[0].x.label
    assert "\n" not in label and len(label) < 70
    assert max(map(len, plotting.series(made, "residuals").title.split())) <= 60
