"""Numbers as people write them: what has one meaning is read, with a word; what could have two is refused."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flopwise.errors import FlopwiseError
from flopwise.records.quantities import FLOP, parse, unit_of
from flopwise.records.table import numbers


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7B", 7e9), ("7b", 7e9), ("1.4T", 1.4e12), ("410M", 4.1e8), ("410m", 4.1e8), ("22k", 22e3),
        ("22.1K", 22100.0), ("3G", 3e9), ("3e21", 3e21), ("3E21", 3e21), ("1e5k", 1e8), (" 7 B ", 7e9),
        ("-3.5", -3.5), (".5", 0.5), ("5.", 5.0), ("0", 0.0),
        ("1,400,000,000", 1.4e9), ("1 400 000", 1.4e6), ("1_400_000", 1.4e6), ("1'400'000", 1.4e6),
        ("1,400.5", 1400.5), ("0,250", 0.25), ("3,5", 3.5),
        ("6.3 x 10^21", 6.3e21), ("6.3×10²¹", 6.3e21), ("6.3*10**21", 6.3e21), ("10^21", 1e21),
        ("7 billion", 7e9), ("1.5bn", 1.5e9), ("1.4 trillion tokens", 1.4e12), ("70B params", 70e9),
        ("300Btok", 300e9), ("1e21 FLOP", 1e21), ("1.2 ZFLOPs", 1.2e21), ("5 exaFLOP", 5e18),
        ("5 PF-days", 4.32e20), ("1 petaflop/s-day", 8.64e19), ("37%", 0.37), ("10⁻³", 1e-3),
    ],
)  # fmt: skip
def test_one_meaning_is_read(text, value):
    assert parse(text).value == value and parse(text).other is None


@pytest.mark.parametrize(
    "text",
    [
        "", "-", "x", "7Q", "5E", "5e", "5P", "~7B", ">1e21", "7B*", "7B-chat", "7 GB", "$7", "0x10", "1/3",
        "nan", "inf", "1.2.3", "1.400.000", "12,34,567", "1,2,3", "1__0", "_1", "1 2", "2^20",
        "1e21 FLOP/s", "٣", "1e999999999", "5 days", "B", "k",
    ],
)  # fmt: skip
def test_no_or_several_meanings_are_not(text):
    assert parse(text) is None


def test_one_group_after_a_comma_has_two_meanings():
    assert (parse("1,250").value, parse("1,250").other) == (1250.0, 1.25)


def test_only_compute_has_the_large_suffixes():
    assert parse("5E", FLOP).value == 5e18 and parse("5P", unit_of("train_flops")).value == 5e15
    assert parse("5P", unit_of("n_params")) is None


@settings(max_examples=60, deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from([(1, ""), (1e3, "k"), (1e9, "B")]))
def test_what_python_writes_comes_back(value, scale):
    factor, suffix = scale
    assert parse(f"{value!r}{suffix}").value == pytest.approx(value * factor, rel=1e-15, abs=0)
    if not suffix:
        assert parse(repr(value)).value == value


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=12))
def test_any_text_is_read_or_not(text):
    found = parse(text)
    assert found is None or isinstance(found.value, float)


def told(column, values):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        out = numbers({column: values}, column, "fit")
    assert all(w.category is UserWarning and "\n" not in str(w.message) for w in caught)
    return out.tolist(), [str(w.message) for w in caught]


def test_suffixes_are_read_with_a_word():
    values, lines = told("N", ["7B", "13B", "350M"])
    assert values == [7e9, 13e9, 3.5e8]
    assert lines == ["column 'N': '7B' is read as 7e+09 (its suffix is 1e+09)"]


def test_plain_numbers_in_texts_need_no_word():
    assert told("N", ["7000", "1e9", "1,400,000"]) == ([7e3, 1e9, 1.4e6], [])


@pytest.mark.parametrize("values", [["7B", "7", "13B"], ["7B", 7, 13e9], ["7", "350M"], ["7k", "9e12"]])
def test_a_suffix_that_is_missing_in_some_rows_is_told(values):
    assert any("mixes values with a suffix" in line and "in full" in line for line in told("N", values)[1])


def test_bare_numbers_of_the_same_size_are_not_told():
    assert len(told("N", ["7B", "7000000000", 1.3e10, "1e5k"])[1]) == 1


def test_rows_tell_each_other_what_a_comma_is():
    assert told("loss", ["3,125", "2,50"])[0] == [3.125, 2.5]
    assert "decimal comma" in told("loss", ["2,50", "3,125"])[1][0]
    assert told("N", ["7,000", "1,400,000"]) == ([7e3, 1.4e6], [])


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("loss", ["3,125", "2,500"], r"'3,125' in row 1, which is 3125 or 3.125"),
        ("loss", ["2,5", "1,400,000"], r"'2,5' in row 1, where commas stand between thousands in some rows"),
        ("N", ["7B", "300B tokens"], r"'300B tokens' in row 2, a column of parameters cannot hold tokens"),
        ("size", ["7B params", "300B tokens"], r"row 2, other rows are in parameters"),
        ("acc", ["37%", "0.4"], r"'37%' in row 1, other rows are not in per cent"),
        ("acc", [0.4, "37%"], r"'37%' in row 2, other rows are not in per cent"),
        ("N", ["7B", "7Q"], r"'7Q' in row 2, needs a finite number"),
        ("N", ["7B", "1e400"], r"'1e400' in row 2, needs a finite number"),
        ("N", ["7B", None], r"nothing in row 2"),
        ("N", ["7B", "N/A"], r"leave the row out \(where \"N <> 'N/A'\"\)"),
        ("N", [1.0, np.inf], r"inf in row 2.*isfinite\(N\)"),
        ("val loss", [1.0, np.nan], r"\"val loss\" IS NOT NULL"),
        ("N", [1, 10**400], r"a number beyond 1.8e308 in row 2"),
        ("N", [1, 10**6000], r"a number beyond 1.8e308 in row 2"),
        ("N", np.array(["2020-01-01"], dtype="M8[D]"), r"2020.*name a column of numbers"),
        ("N", np.array([1 + 2j]), r"\(1\+2j\) in row 1"),
        ("N", [[1], [2, 3]], r"\[1\] in row 1"),
        ("N", np.ones((2, 2)), r"the shape \(2, 2\), must be a list of numbers"),
    ],
)
def test_what_is_no_number_is_named_with_its_row(column, values, message):
    with pytest.raises(FlopwiseError, match=message) as e:
        numbers({column: values}, column, "fit")
    assert "\n" not in str(e.value) and len(str(e.value)) < 300


def test_the_ends_of_the_scale_are_numbers():
    assert told("N", ["1e-300", "1e300", "5e-324"])[0] == [1e-300, 1e300, 5e-324]
    assert numbers({"N": np.array([1e-300, 1e300])}, "N", "fit").tolist() == [1e-300, 1e300]
