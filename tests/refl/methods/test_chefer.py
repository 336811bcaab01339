"""Chefer et al. 2021: the sum of two against its definition in fractions, the product of blocks by
hand, and what is refused. Whole models: tests/peers/test_attention_methods.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction as F
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refl.errors import ReflError
from refl.methods import chosen
from refl.methods.chefer import Chefer, rescaled, step
from refl.trace import Record, Value
from refl.verification.random_models import GPT2, LLAMA, T5, VIT, random_model


def exact(a: Sequence[F], b: Sequence[F], r: Sequence[F]) -> tuple[list[F], list[F], F]:
    """From the paper's eq. 10, and what is left of R."""
    s = [x / (y + z) if y + z else F(0) for x, y, z in zip(r, a, b, strict=True)]
    parts = [[x * y for x, y in zip(operand, s, strict=True)] for operand in (a, b)]
    sums = [sum(part, F(0)) for part in parts]
    both = abs(sums[0]) + abs(sums[1])
    found = [
        [x * abs(own) / both * sum(r) / own for x in part] if own else [F(0)] * len(part)
        for part, own in zip(parts, sums, strict=True)
    ]
    return found[0], found[1], sum(r, F(0)) if not both else F(0)


@given(st.data(), st.integers(1, 4), st.integers(1, 3))
def test_the_sum_of_two_is_its_definition(data: Any, width: int, examples: int) -> None:
    """Zeros, operands that cancel, sums of either sign; examples do not see each other."""
    whole = st.lists(st.integers(-3, 3), min_size=width, max_size=width)
    rows = [[data.draw(whole) for _ in range(examples)] for _ in range(3)]
    a, b, r = (np.array(part, dtype=np.float64) for part in rows)
    (of_a, of_b, *_), absorbed = rescaled(a, b, a + b, r)
    for n in range(examples):
        first, second, lost = exact(*([F(v) for v in part[n]] for part in rows))
        s = [abs(F(v)) for v in rows[2][n]]
        if _sums_to_nothing(first, second, rows, n):
            continue
        np.testing.assert_allclose(of_a[n], [float(v) for v in first], rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(of_b[n], [float(v) for v in second], rtol=1e-12, atol=1e-13)
        assert absorbed["stabilizer"][n] == float(lost)
        total = of_a[n].sum() + of_b[n].sum() + absorbed["stabilizer"][n]
        assert abs(total - r[n].sum()) <= 1e-13 * (1 + float(sum(s)))


def _sums_to_nothing(first: list[F], second: list[F], rows: Any, n: int) -> bool:
    """Whether a sum of messages is 0 in fractions though its terms are not: by rounding it may come
    out as a few units instead, and its sign decides.
    """
    s = [F(r, a + b) if a + b else F(0) for a, b, r in zip(*(p[n] for p in rows), strict=True)]
    for part in (rows[0][n], rows[1][n]):
        messages = [x * y for x, y in zip(part, s, strict=True)]
        if any(messages) and not sum(messages):
            return True
    return False


def test_operands_of_either_sign_get_by_their_size() -> None:
    """3 - 1 = 2: 3/2 and -1/2 of R become 3/4 and 1/4."""
    inputs, absorbed = rescaled(*(np.array([[x]]) for x in (3.0, -1.0, 2.0, 1.0)))
    assert [x.tolist() for x in inputs] == [[[0.75]], [[0.25]]]
    assert absorbed["stabilizer"].tolist() == [0.0]


def test_a_linear_layer_divides_nothing_among_its_bias() -> None:
    """x = (1, 2), W = (1, 1), b = 3: z+ gives 1/3 and 2/3 of R."""
    arrays = (np.array([[[1.0, 2.0]]]), np.array([[1.0, 1.0]]), np.array([3.0]))
    x, w, b = (Value(array, name) for array, name in zip(arrays, "xwb", strict=True))
    record = Record("linear", (x, w, b), Value(np.array([[[6.0]]]), "z"), {})
    ((value, r),) = step(record, np.array([[[1.0]]]))
    assert value is x
    np.testing.assert_allclose(r, [[[1 / 3, 2 / 3]]], rtol=1e-15)


# -- the product of blocks -------------------------------------------------------------------------

G = np.array([[[1.0, 0.0], [2.0, -4.0]], [[-1.0, 0.0], [4.0, 2.0]]])
R = np.array([[[1.0, 0.0], [0.5, 0.5]], [[1.0, 0.0], [0.25, 0.5]]])


def test_two_blocks_by_hand() -> None:
    """C = [[1/2, 0], [1, 1/2]]: one head's positive products, averaged with the other's zeros."""
    b = [[F(3, 2), F(0)], [F(1), F(3, 2)]]
    rows = [[F(1), F(0)], [F(2, 5), F(3, 5)]]
    for normalization, m in (("none", b), ("rows", rows)):
        squared = [[sum(m[i][k] * m[k][j] for k in range(2)) for j in range(2)] for i in range(2)]
        found = Chefer(normalization).rolled_out([G, G], [R, R])
        np.testing.assert_allclose(found, [[float(x) for x in row] for row in squared], rtol=1e-15)


def test_negative_products_leave_the_identity() -> None:
    assert Chefer().rolled_out([-np.abs(G)], [np.abs(R)]).tolist() == [[1.0, 0.0], [0.0, 1.0]]


# -- in a model ------------------------------------------------------------------------------------


def chefer(**options: Any) -> Any:
    return chosen("chefer-2021", options=options)


@pytest.mark.parametrize("config", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_rows_of_a_text_sum_to_one(config: dict[str, Any]) -> None:
    e = random_model(config, 0).explain([3, 4, 5, 6], method=chefer(), position=2)
    assert e.relevance[3] == 0 and (e.relevance[:3] > 0).all()
    np.testing.assert_allclose(e.relevance.sum(), 1, rtol=1e-14)


def test_one_token_has_all_of_it() -> None:
    assert random_model(GPT2, 0).explain([3], method=chefer()).relevance.tolist() == [1.0]


def test_the_last_block_alone() -> None:
    """start_block counts from 0; at the last it is one factor, and differs from the product."""
    model, x = random_model(VIT, 0), np.random.default_rng(0).standard_normal((3, 8, 12))
    last, whole = (model.explain(x, method=chefer(start_block=n)).relevance for n in (1, 0))
    assert np.abs(last - whole).max() > 1e-6


def refused(config: dict[str, Any], options: dict[str, Any], **how: Any) -> str:
    with pytest.raises(ReflError) as caught:
        random_model(config, 0).explain([3, 4], method=chefer(**options), **how)
    return str(caught.value)


def test_what_is_refused() -> None:
    assert "start_block is 2, and there are 2 blocks" in refused(GPT2, {"start_block": 2})
    assert "start_block is -1" in refused(GPT2, {"start_block": -1})
    assert "normalization is 'row'" in refused(GPT2, {"normalization": "row"})
    assert "decoder that reads an encoder" in refused(T5, {}, decoder=[0])
    assert "recompute out" in refused(GPT2, {}, recompute=True)
