"""What columns say against each other is told; tables without such a fault are silent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flopwise.records.conventions import conventions
from flopwise.records.table import read_table

USED = ("N", "D", "loss")


@pytest.fixture
def table():
    """Twelve sound runs, all columns of which agree."""
    N, D = (axis.ravel() for axis in np.meshgrid([1e8, 1e9, 1e10], [1e9, 1e10, 1e11, 1e12]))
    return {"N": N, "D": D, "C": 6 * N * D, "loss": 2 + N**-0.1 + D**-0.1, "run": np.arange(12).astype(str)}


def test_a_sound_table_is_silent(table):
    assert conventions(table, USED) == [] and conventions(table | {"N_no_emb": table["N"] * 0.97}, USED) == []


@pytest.mark.parametrize("name", ["N", "D"])
def test_a_variable_in_billions(table, name):
    (line,) = conventions(table | {name: table[name] / 1e10, "C": [""] * 12}, USED)
    assert line.startswith(f"{name} is 0.") and f"--map '{name}={name}*1e9'" in line


def test_units_mixed_between_rows(table):
    N = table["N"].copy()
    N[:3] /= 1e8
    lines = conventions(table | {"N": N}, USED)
    assert "at most 100 in 3 of 12 rows and at least 1e+08 in the others" in lines[0]
    assert "C is not within a factor of 2 of 6 N D in 3 of 12 rows (rows 1, 2, 3; in row 1" in lines[1]


@pytest.mark.parametrize(
    "name",
    [
        "N_no_emb", "n_params_non_embedding", "params_without_embeddings", "N_active", "n_params_total",
        "num_params", "N non-embedding",
    ],
)  # fmt: skip
def test_another_count_of_parameters(table, name):
    (line,) = conventions(table | {name: table["N"] * np.linspace(1, 0.5, 12)}, USED)
    assert f"column {name!r} count parameters differently, by a factor of 2 in row 12" in line


@pytest.mark.parametrize("name", ["C_no_emb", "n", "N_billion", "n_layers", "name", "norm", "seed"])
def test_other_columns_are_no_counts_of_parameters(table, name):
    assert conventions(table | {name: table["N"] * 3}, USED) == []


def test_compute_that_is_not_six_n_d(table):
    C = table["C"].copy()
    C[4], C[6] = C[4] * 3, -C[6]  # an integer that ran over is negative
    (line,) = conventions(table | {"C": C}, USED)
    assert "in 2 of 12 rows (rows 5, 7; in row 5 it is 3 times)" in line and "--map 'C=6*N*D'" in line
    assert conventions(table | {"C": C}, ("N", "loss")) == []


def test_compute_of_another_count_is_told_once(table):
    """C of all parameters beside an N without embeddings is what the counts say already."""
    (line,) = conventions(table | {"N": table["N"] / 3, "N_total": table["N"]}, USED)
    assert "column 'N_total' count parameters differently, by a factor of 3" in line


def test_copies_of_rows(table):
    twice = {name: np.concatenate([values, values[:2]]) for name, values in table.items()}
    (line,) = conventions(twice, USED)
    assert "2 of 14 rows repeat the N, D, loss of another (row 13 that of row 1)" in line
    assert conventions(twice, USED, cluster="run") == []


def test_one_equal_loss_among_many_is_chance_unless_all_else_is_equal():
    table = {"N": np.full(200, 1e9), "loss": np.linspace(2, 3, 200), "lr": np.arange(200.0)}
    table["loss"][7] = table["loss"][3]
    assert conventions(table, ("N", "loss")) == []
    table["lr"][7] = table["lr"][3]
    assert "1 of 200 rows" in conventions(table, ("N", "loss"))[0]


def test_texts_are_read_and_other_things_passed_over(table):
    odd = {
        "N": ["7B", "7", "x"],
        "D": [1e9, None, 3e9],
        "loss": [1, 2, 3],
        "list": [[1], {}, None],
        "short": [1],
    }
    assert "units look mixed" in conventions(odd, USED)[0]
    assert conventions({"N": [], "D": [], "loss": []}, USED) == conventions({"loss": ["a"]}, USED) == []
    assert conventions({"N": [np.nan], "D": [0], "C": [-1], "loss": [np.inf]}, USED) == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("misfitting/runs.csv", ["N_no_emb", "21 of 261 rows repeat"]), ("gemstones/losses.csv", []),
        ("gadre_overtraining/runs.csv", ["N_no_embed", "6 N D"]), ("chinchilla_epoch/runs.csv", []),
        ("data_constrained_c4/runs.csv", []),
    ],
)  # fmt: skip
def test_published_tables(name, words):
    path = Path(__file__).parents[3] / "shared" / "data" / name
    if not path.is_file():
        pytest.skip(f"published data {name} are not beside the project")
    table = read_table(path)
    loss = "loss" if "loss" in table else "loss_openlm_val"
    lines = conventions(table, ("N", "D", loss))
    assert len(lines) == len(words) and all(word in line for word, line in zip(words, lines, strict=True))
