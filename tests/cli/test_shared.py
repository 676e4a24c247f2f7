"""What commands share: tables with --map, --where and --sql; numbers as people write them."""

from __future__ import annotations

import pytest

from flopwise.cli.shared import number, pairs, read
from flopwise.errors import FlopwiseError


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([], {}), (["N=n_params,loss=val_loss"], {"N": "n_params", "loss": "val_loss"}),
        (["N=n", " D = t * 1e9 "], {"N": "n", "D": "t * 1e9"}),
        (["N=least(a, b),D=d"], {"N": "least(a, b)", "D": "d"}),
        (['loss="val, loss",N=n'], {"loss": '"val, loss"', "N": "n"}), (["ok=a==b"], {"ok": "a==b"}),
        (["N=CASE WHEN x = ',' THEN 1 END"], {"N": "CASE WHEN x = ',' THEN 1 END"}),
        (["N=it's,D=d"], {"N": "it's", "D": "d"}), (["N=[1,2][1],D=d"], {"N": "[1,2][1]", "D": "d"}),
    ],
)  # fmt: skip
def test_pairs(texts, expected):
    assert pairs(texts) == expected


@pytest.mark.parametrize("text", ["", "N", "N=", "=n", "N=a,,D=b", "N=a,b", "N=a,N=b"])
def test_pairs_that_are_none_are_refused(text):
    with pytest.raises(FlopwiseError, match=r"must be NAME=VALUE, as N=n_params|given twice") as e:
        pairs([text])
    assert "\n" not in str(e.value)


def test_a_table_with_all_options(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text("size,tokens,loss\n7,1,3\n7,2,2\n13,2,2\n")
    table = read(
        path, ["N=size*1e9,D=tokens"], "N < 1e10", "SELECT size, tokens, loss FROM source WHERE tokens > 1"
    )
    assert table["N"].tolist() == [7e9] and table["D"].tolist() == [2]
    assert read(str(path))["loss"].tolist() == [3, 2, 2]


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [("5 PF-days", "C", 4.32e20), ("5E", "C", 5e18), ("300B tokens", "D", 3e11), ("1,400,000", "D", 1.4e6)],
)
def test_numbers_with_units(text, name, value):
    assert number(text, name) == value


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("7,000", "N", "which is 7000 or 7; leave the comma out"), ("5E", "N", "must be a number above 0"),
        ("300B tokens", "N", "must be a number of parameters"),
        ("7B params", "C", "must be a number of FLOP"),
    ],
)  # fmt: skip
def test_numbers_of_something_else_are_refused(text, name, message):
    with pytest.raises(FlopwiseError, match=message):
        number(text, name)
