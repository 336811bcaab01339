"""The sweep on traces of two or three operations: what it keeps, audits and reports, and how
relevance from several readers is summed.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

import numpy as np
import pytest

from refl.rules import linear
from refl.rules.composites import Composite
from refl.rules.conservation import Forms, RuleOutput
from refl.rules.operations import OPERATIONS
from refl.rules.published import ATTNLRP, ATTNLRP_GRADIENT, LRP_0
from refl.sweep import Sweep
from refl.trace import Trace, Value


def tripled(dtype: str = "float64") -> tuple[Trace, Value, Value]:
    """z = 3 x, and the values x and z."""
    t = Trace({})
    x = t.scale("x", Value(np.asarray([[1.0, -2.0], [4.0, 0.5]], dtype=dtype), "leaf"), 1.0)
    return t, x, t.scale("z", x, 3.0)


def test_a_sweep_keeps_and_audits_only_what_it_is_asked_to() -> None:
    t, x, z = tripled()
    swept = Sweep(ATTNLRP).run(t, z, z.array)
    assert swept.propagated == swept.activations == swept.aliases == {}
    assert x.array is not None and z.array is not None, "nothing is released"
    assert [entry.rounding_scale for entry in swept.ledger] == [None, None]


def test_a_sweep_that_releases_leaves_no_activation() -> None:
    t, _, z = tripled()
    Sweep(ATTNLRP, release=True).run(t, z, z.array)
    assert [record.output.array for record in t.records] == [None, None]


def test_a_sweep_reports_each_record() -> None:
    t, _, z = tripled()
    visits: list[int] = []
    Sweep(ATTNLRP, progress=lambda: visits.append(1)).run(t, z, z.array)
    assert len(visits) == len(t.records) == 2


@pytest.mark.parametrize(("dtype", "u"), [("float64", 2.0**-53), ("float32", 2.0**-24)])
def test_the_ledger_knows_the_unit_roundoff(dtype: str, u: float) -> None:
    t, _, z = tripled(dtype)
    assert Sweep(ATTNLRP).run(t, z, z.array).ledger.roundoff == u


@pytest.mark.parametrize(
    ("composite", "explained"), [(ATTNLRP, [5.0, 7.0]), (ATTNLRP_GRADIENT, [-1.0, 20.5])]
)
def test_what_is_explained_is_what_is_propagated(
    composite: Composite, explained: list[float]
) -> None:
    """Relevance is summed; a gradient g stands for z g. Audited, a rule that only passes on has
    the sum of absolute values.
    """
    t, _, z = tripled()
    z.array = np.asarray([[1.0, -2.0], [4.0, 0.5]])
    seed = (
        np.asarray([[3.0, 2.0], [4.0, 3.0]])
        if composite is ATTNLRP
        else np.asarray([[3.0, 2.0], [5.0, 1.0]])
    )
    swept = Sweep(composite, audit=True).run(t, z, seed)
    assert list(swept.ledger.explained) == explained
    assert list(swept.ledger["z"].rounding_scale) == (
        [5.0, 7.0] if composite is ATTNLRP else [7.0, 20.5]
    )


@pytest.mark.parametrize("recompute", [False, True])
def test_shares_meet_in_one_order_with_blocks_and_without(recompute: bool) -> None:
    """h is read twice by either block. One by one, 1 + 2^-24 + 2^-24 is 1 in float32; block by
    block it would be 1 + 2^-23.
    """

    def block(t: Trace, x: Value, h: Value, first: float, second: float) -> Value:
        return t.add("y", t.add("u", x, t.scale("one", h, first)), t.scale("two", h, second))

    t = Trace({}, recompute=recompute)
    x, h = (t.scale(name, Value(np.ones((1, 1), dtype="float32"), "leaf"), 1.0) for name in "xh")
    y = t.block("b", block, t.block("a", block, x, h, 2.0**-24, 2.0**-24), h, 1.0, 2.0**-40)
    swept = Sweep(ATTNLRP_GRADIENT, keep=lambda names: "h" in names).run(
        t, y, np.ones((1, 1), dtype="float32")
    )
    assert swept.propagated["h"].dtype == np.float32 and swept.propagated["h"].tolist() == [[1.0]]


def test_the_rounding_scale_is_the_rules_own_where_it_has_one() -> None:
    t, x, z = tripled()
    y = t.add("y", x, z)
    swept = Sweep(LRP_0, audit=True).run(t, y, y.array)
    # s = 1: twice |x| + |z| = 4 |x|, and the relevance 4 |x| itself
    assert list(swept.ledger["y"].rounding_scale) == [(2 * 4 + 4) * 3, (2 * 4 + 4) * 4.5]
    assert list(swept.ledger["z"].rounding_scale) == [3 * 3, 3 * 4.5]  # passes on what arrived


def test_a_value_read_twice_gets_both_shares() -> None:
    """z = 3 x + x, and z = x + x: all of the seed comes back to x, and is recorded."""
    for twice in (False, True):
        t = Trace({})
        x = t.scale("x", Value(np.asarray([[1.0, -2.0]]), "leaf"), 1.0)
        z = t.add("z", x if twice else t.scale("three", x, 3.0), x)
        swept = Sweep(LRP_0, keep=lambda names: "x" in names).run(t, z, z.array)
        assert np.array_equal(swept.propagated["x"], z.array)
        assert all(entry.conservation_error[0] == 0 for entry in swept.ledger)


def test_a_wrong_rule_leaves_a_conservation_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """1000 R - 7 in place of R must show."""
    t = Trace({"w.weight": np.asarray([[1.0, 2.0]])})
    z = t.linear("w", Value(np.asarray([[1.0, 1.0]]), "x"))

    @wraps(linear.epsilon)  # with its options, whichever test asks the table for them first
    def wrong(x: Any, w: Any, b: Any, z: Any, r: Any, **options: Any) -> RuleOutput:
        right = linear.epsilon(x, w, b, z, r, **options)
        return right._replace(inputs=(1000 * right.inputs[0] - 7, None, None))

    monkeypatch.setitem(OPERATIONS["linear"].rules, "epsilon", Forms(wrong))
    entry = next(iter(Sweep(LRP_0).run(t, z, z.array).ledger))
    assert entry.conservation_error[0] == 3 - (3000 - 14)
