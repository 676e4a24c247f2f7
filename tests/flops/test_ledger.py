"""The ledger by purpose and model: it adds up to the three totals exactly, in a record too."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flopwise.errors import FlopwiseError
from flopwise.flops import Ledger, Spend
from flopwise.flops.ledger import KINDS, TOTALS
from flopwise.flops.spend import Stopwatch, ledger_fields
from flopwise.infer.engine import Usage

entries = st.tuples(
    st.sampled_from(sorted(KINDS)), st.sampled_from(["a", "b", "c"]), st.integers(0, 10**12),
    st.floats(0, 1e22) | st.none(), st.floats(0, 1e6),
)  # fmt: skip


@given(st.lists(entries, max_size=40))
def test_rows_add_up_to_the_totals_exactly_and_come_back_from_json(posted) -> None:
    ledger = Ledger()
    for entry in posted:
        ledger.post(*entry)
    spend = Spend(**ledger_fields(ledger))
    for name in TOTALS:
        of_kind = [r["flops"] for r in spend.by if KINDS[r["kind"]] == name and r["flops"] is not None]
        assert getattr(spend, name) == sum(of_kind)
    assert len(spend.by) == len({(kind, model) for kind, model, *_ in posted})
    again = Spend.from_dict(json.loads(json.dumps(spend.to_dict())))
    assert again.by == spend.by and again.total_flops == spend.total_flops
    assert Ledger(again.by) == ledger
    whole = any(flops is None and KINDS[kind] for kind, _, _, flops, _ in posted)
    assert again.at_least == spend.at_least == whole


def test_each_purpose_and_model_has_a_row() -> None:
    ledger = Ledger()
    ledger.used("sample", "policy", Usage(100, 400, 5e9, 0.5))
    ledger.post("reference", "base", 400, 1e9, 0.1)
    ledger.post("reference", "base", 600, 2e9, 0.2)
    ledger.post("reference", "other", 1, 1.0)
    ledger.post("evaluate", "policy", 50, 7e9, 1.0)
    assert [(r["kind"], r["model"], r["tokens"], r["flops"]) for r in ledger.rows()] == [
        ("sample", "policy", 500, 5e9), ("reference", "base", 1000, 3e9), ("reference", "other", 1, 1.0),
        ("evaluate", "policy", 50, 7e9),
    ]  # fmt: skip
    assert [ledger.total(name) for name in TOTALS] == [0.0, 5e9, 3e9 + 1]
    assert ledger.rows()[1]["seconds"] == pytest.approx(0.3) and ledger.rows()[2]["seconds"] is None


def test_what_cannot_be_counted_is_unknown_and_said() -> None:
    ledger = Ledger()
    ledger.post("judge", "served-model", 10, 1e6)
    ledger.used("judge", "served-model", Usage(5, 5, 0.0, 1.0, "a server"))
    ledger.post("train", "policy", 10, 2e6)
    spend = Stopwatch().spend(ledger, tokens=20)
    assert spend.total_flops == 2e6 and spend.at_least and spend.wall_s is not None
    assert spend.unknown == "not counted: judge passes of served-model"
    assert ledger.rows()[0] == {
        "kind": "judge", "model": "served-model", "tokens": 20, "flops": None, "seconds": None
    }  # fmt: skip
    assert spend.to_dict()["score_flops"] is None and spend.to_dict()["train_flops"] == 2e6
    evaluation = Ledger()
    evaluation.post("evaluate", "policy", None, None)
    assert evaluation.unknown is None


def test_ledgers_merge_and_an_unknown_kind_is_refused() -> None:
    one, two = Ledger(), Ledger()
    one.post("train", "a", 1, 1.0)
    two.post("train", "a", 2, 2.0)
    two.post("score", "b", 3, 3.0)
    one.add(two)
    assert [(r["tokens"], r["flops"]) for r in one.rows()] == [(3, 3.0), (3, 3.0)]
    assert [r["flops"] for r in two.rows()] == [2.0, 3.0] and one != two and not Ledger()
    with pytest.raises(FlopwiseError, match="kind 'tea' must be one of train, sample"):
        one.post("tea", "a", 1, 1.0)
