"""The conservation ledger: its sums, the account of the whole,
one example of a batch, and as plain numbers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from refl.arrays import asnumpy
from refl.errors import ReflError
from refl.ledger import Entry, Ledger


def numbers(*values: float) -> Any:
    return np.asarray(values)


def ledger_of(*entries: Entry) -> Ledger:
    """Two sites of a batch of three, and further ones."""
    head = Entry(
        "head",
        "linear",
        "epsilon",
        numbers(10, 20, 30),
        {"body": numbers(7, 15, 31)},
        {"bias": numbers(2, 5, -1)},
        numbers(11, 21, 31),
    )
    body = Entry(
        "body",
        "embedding",
        "leaf",
        numbers(7, 15, 31),
        {},
        {"tokens": numbers(6, 9, 40), "position": numbers(1, 6, -9)},
    )
    return Ledger(numbers(10, 20, 30), 2.0**-53, [head, body, *entries])


def test_one_example_of_a_batch() -> None:
    one = ledger_of().example(1)
    assert one.explained == 20 and one.examples == 1 and one.roundoff == 2.0**-53
    head, body = one
    assert (head.site, head.operation, head.rule) == ("head", "linear", "epsilon")
    assert head.received == 20 and head.passed["body"] == 15 and head.absorbed["bias"] == 5
    assert (
        head.rounding_scale is not None
        and head.rounding_scale == 21
        and body.rounding_scale is None
    )
    assert body.absorbed["tokens"] == 9
    for b in (3, -1, True, 1.0):
        with pytest.raises(ReflError, match="example"):
            ledger_of().example(b)
    assert one.example(0) is one
    with pytest.raises(ReflError, match="example 1 is outside the batch of 1"):
        one.example(1)


def test_the_sums_of_the_whole_ledger() -> None:
    ledger = ledger_of()
    assert list(ledger["head"].conservation_error) == [1, 0, 0]
    assert list(ledger.tokens) == [6, 9, 40] and ledger.destination == "tokens"
    assert {cause: list(amount) for cause, amount in ledger.absorbed.items()} == {
        "position": [1, 6, -9],
        "bias": [2, 5, -1],
    }
    assert list(ledger.conservation_error) == [1, 0, 0]
    with pytest.raises(KeyError, match="tail"):
        ledger["tail"]


def test_absorbed_stands_in_order_of_size() -> None:
    """The largest of any example counts, of either sign; what is zero everywhere is left out."""
    absorbed = {
        "a": numbers(1, -2),
        "b": numbers(-5, 0),
        "none": numbers(0, 0),
        "c": numbers(3, 3),
        "pixels": numbers(9, 9),
    }
    entry = Entry("x", "linear", "epsilon", numbers(0, 0), {}, absorbed)
    ledger = Ledger(numbers(0, 0), 0.0, [entry])
    assert list(ledger.absorbed) == ["b", "c", "a"]
    assert ledger.destination == "pixels" and list(ledger.tokens) == [9, 9]


def test_an_account_in_which_nothing_arrives() -> None:
    ledger = Ledger(numbers(4, 5), 0.0)
    assert (
        ledger.destination == "tokens"
        and list(ledger.tokens) == [0, 0]
        and list(ledger.conservation_error) == [4, 5]
    )


def test_causes_are_summed_over_sites() -> None:
    bias = {"bias": numbers(1, 1, 1)}
    ledger = ledger_of(Entry("tail", "linear", "epsilon", numbers(0, 0, 0), {}, bias))
    assert list(ledger.absorbed["bias"]) == [3, 6, 0]


def test_every_sum_of_an_entry_can_be_brought_to_the_host() -> None:
    """From a library whose arrays are not NumPy's."""
    strict = pytest.importorskip("array_api_strict")
    put = strict.asarray
    entry = Entry(
        "x", "linear", "epsilon", put([2.0]), {"y": put([3.0])}, {"bias": put([4.0])}, put([5.0])
    ).each(asnumpy)
    sums = [entry.received, entry.passed["y"], entry.absorbed["bias"], entry.rounding_scale]
    assert all(isinstance(s, np.ndarray) for s in sums) and [s[0] for s in sums] == [2, 3, 4, 5]
    assert (entry.site, entry.operation, entry.rule) == ("x", "linear", "epsilon")


def test_the_rounding_bound_counts_every_site() -> None:
    """8 u times the sum of the rounding scales; none where a site was not audited."""
    head, body = ledger_of()
    assert ledger_of().rounding_bound is None and Ledger(numbers(1), 0.5).rounding_bound is None
    audited = Ledger(numbers(1, 2, 3), 0.5, [head, replace(body, rounding_scale=numbers(1, 1, 0))])
    assert list(audited.rounding_bound) == [8 * 0.5 * 12, 8 * 0.5 * 22, 8 * 0.5 * 31]


def test_as_plain_numbers() -> None:
    said = ledger_of().as_dict()
    assert said == {
        "explained": [10, 20, 30],
        "roundoff": 2.0**-53,
        "tokens": [6, 9, 40],
        "absorbed": {"position": [1, 6, -9], "bias": [2, 5, -1]},
        "conservation_error": [1, 0, 0],
        "sites": [
            {
                "site": "head",
                "operation": "linear",
                "rule": "epsilon",
                "received": [10, 20, 30],
                "passed": {"body": [7, 15, 31]},
                "absorbed": {"bias": [2, 5, -1]},
                "conservation_error": [1, 0, 0],
                "rounding_scale": [11, 21, 31],
            },
            {
                "site": "body",
                "operation": "embedding",
                "rule": "leaf",
                "received": [7, 15, 31],
                "passed": {},
                "absorbed": {"tokens": [6, 9, 40], "position": [1, 6, -9]},
                "conservation_error": [0, 0, 0],
            },
        ],
    }
    one = ledger_of().example(2).as_dict()
    assert (
        one["explained"] == 30
        and one["sites"][0]["passed"] == {"body": 31}
        and one["conservation_error"] == 0
    )
    assert all(
        type(number) is float
        for number in (said["explained"][0], one["explained"], one["sites"][0]["received"])
    )


def test_one_example_comes_back() -> None:
    one = ledger_of().example(0)
    assert Ledger.from_dict(one.as_dict()).as_dict() == one.as_dict()
    head, _ = Ledger.from_dict(one.as_dict())
    sums = (head.received, head.passed["body"], head.absorbed["bias"], one.conservation_error)
    assert all(type(s) is float for s in (*sums, one.explained, one.tokens, one.absorbed["bias"]))
    assert head.rounding_scale == one["head"].rounding_scale > 0  # what an audit found is kept
