"""The rules that vision adds, against their exact definitions: z-box, patches, sources and learned
tensors.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from backends import Backend
from exact_rules import (
    Expected,
    Linear,
    array,
    closed,
    dtypes,
    exactly,
    fits,
    hold,
    largest,
    no_underflow,
    quiet,
)
from hypothesis import strategies as st
from rounding import scale_of

from refl.errors import ReflError
from refl.rules import learned, linear, movement, source
from refl.rules.composites import Composite, Rule
from refl.rules.published import METHODS
from refl.verification.definitions.exact_vision import linear_z_box, patch_place


class Boxed(Linear):
    """A drawn linear layer whose inputs lie in a drawn box; now and then on its edge, and some of
    its edges are no wider than a point.
    """

    def __init__(self, data: st.DataObject, dtype: str) -> None:
        super().__init__(data, dtype)
        ends = [array(data, dtype, (self.i,), scales=[1.0]) for _ in range(2)]
        self.low, self.high = np.minimum(*ends), np.maximum(*ends)
        self.x = np.clip(array(data, dtype, self.x.shape, scales=[1.0]), self.low, self.high)
        self.z = quiet(linear.forward, self.x, self.w, self.b)

    def products(self) -> list[Any]:
        low, high, found = exactly(self.low), exactly(self.high), []
        for _, x, w, _, _, _ in self.rows():
            for j, i in product(range(self.o), range(self.i)):
                found += [w[j][i] * (x[i] - low[i]), w[j][i] * (x[i] - high[i])]
        return found


@dtypes
def test_linear_z_box(backend: Backend, dtype: str) -> None:
    def judge(data: st.DataObject) -> None:
        case, expected = Boxed(data, dtype), Expected(1, dtype)
        no_underflow(dtype, case.products())
        fits(dtype, sum(map(abs, case.products())))
        low, high = exactly(case.low), exactly(case.high)
        for lead, x, w, _, _, r in case.rows():
            split = linear_z_box(x, w, r, low, high)
            closed(split.balance(r))
            expected.add(split, lead)
        expected.in_range(case.x, case.w, case.low, case.high)
        passed = linear.z_box(
            *case.placed(backend),
            low=tuple(map(float, case.low)),
            high=tuple(map(float, case.high)),
        )
        assert passed.inputs[1:] == (None, None)
        expected.judge(
            backend,
            passed,
            [case.x.shape],
            2 * case.rounding_scale + 4,
            largest(case.x, case.low, case.high) * largest(case.w) * case.i,
        )

    hold(backend, judge)


def layer(backend: Backend, seed: int = 0) -> tuple[list[Any], list[Any]]:
    random = np.random.default_rng(seed)
    x = random.uniform(0, 1, (2, 3, 6))
    w, b, r = (random.standard_normal(shape) for shape in ((4, 6), (4,), (2, 3, 4)))
    plain = [x, w, b, linear.forward(x, w, b), r]
    return [backend.place(a) for a in plain], plain


def test_z_box_bounds_for_stretches_of_inputs(backend: Backend) -> None:
    """Three channels of two numbers each, one bound a channel: the same as a bound for each number;
    one number is all of them.
    """
    placed, _ = layer(backend)
    one = backend.back(
        linear.z_box(*placed, low=(-1.0, -2.0, -0.5), high=(2.0, 1.0, 3.0)).inputs[0]
    )
    each = backend.back(
        linear.z_box(
            *placed, low=(-1.0, -1.0, -2.0, -2.0, -0.5, -0.5), high=(2.0, 2.0, 1.0, 1.0, 3.0, 3.0)
        ).inputs[0]
    )
    assert np.array_equal(one, each)
    assert np.array_equal(
        *(backend.back(linear.z_box(*placed, low=low).inputs[0]) for low in (-1.0, (-1.0,)))
    )
    with pytest.raises(ValueError, match="4 bounds for 6 inputs"):
        linear.z_box(*placed, low=(0.0, 0.0, 0.0, 0.0))


def test_z_box_of_positive_relevance_is_positive(backend: Backend) -> None:
    """Deep Taylor decomposition's promise: in the box no message has another sign than its
    relevance, whatever the bias.
    """
    placed, plain = layer(backend)
    placed[4] = backend.place(np.abs(plain[4]))
    assert backend.back(linear.z_box(*placed, low=0.0, high=1.0).inputs[0]).min() >= 0


def test_z_box_at_zero_bounds_is_lrp_0(backend: Backend) -> None:
    """l = h = 0 leaves the contributions themselves, less the bias."""
    (x, w, _, _, r), (plain_x, plain_w, *_) = layer(backend)
    z = backend.place(plain_x @ plain_w.T)
    ours = backend.back(linear.z_box(x, w, None, z, r, low=0.0, high=0.0).inputs[0])
    theirs = backend.back(linear.epsilon(x, w, None, z, r, stabilizer="none").inputs[0])
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_z_box_outside_its_box_balances(backend: Backend) -> None:
    placed, (_, _, _, _, r) = layer(backend, seed=5)
    passed = linear.z_box(*placed, low=0.4, high=0.6)
    assert passed.inputs[0] is not None
    scale = backend.back(scale_of(linear.z_box, *placed, low=0.4, high=0.6))
    received, given = (
        r.sum(axis=(1, 2)),
        backend.back(passed.inputs[0]).sum(axis=(1, 2))
        + backend.back(passed.absorbed["stabilizer"]),
    )
    assert np.all(np.abs(received - given) <= 8 * np.finfo("float64").eps / 2 * scale)


def test_z_box_books_what_has_no_receiver() -> None:
    """A black pixel at the lower bound under a positive weight: every term is zero, and the
    relevance is absorbed.
    """
    x, w, r = np.zeros((1, 2)), np.asarray([[1.0, 2.0], [1.0, -1.0]]), np.asarray([[3.0, 5.0]])
    passed = linear.z_box(x, w, None, x @ w.T, r, low=0.0, high=1.0)
    assert passed.absorbed["stabilizer"] == 3.0
    assert np.array_equal(
        passed.inputs[0], [[0.0, 5.0]]
    )  # at the second the negative weight has all of it: 0 - (-1) 1


@pytest.mark.parametrize("bound", ["dark", float("nan"), float("inf"), [], [0.0, "1"], True])
def test_z_box_bounds_are_checked(bound: Any) -> None:
    with pytest.raises(ReflError, match="low is"):
        Composite("mine", (Rule("linear", "z_box", options=(("low", bound),)),))


def test_z_box_is_no_gradient() -> None:
    with pytest.raises(ReflError, match="z_box"):
        METHODS["attnlrp-gradient"].override(Rule("linear", "z_box"))


# -- patches ---------------------------------------------------------------------------------------

SHAPES = [
    ((2, 3, 8, 6), (4, 3)),
    ((1, 1, 7, 5), (2, 3)),
    ((1, 2, 4, 4), (4, 4)),
    ((2, 1, 3, 9), (1, 2)),
]


@pytest.mark.parametrize(("shape", "size"), SHAPES)
def test_patches(backend: Backend, shape: tuple[int, ...], size: tuple[int, int]) -> None:
    x = np.random.default_rng(0).standard_normal(shape)
    z = backend.back(movement.forward(backend.place(x), kind="patches", size=size))
    assert z.shape == (
        shape[0],
        (shape[2] // size[0]) * (shape[3] // size[1]),
        shape[1] * size[0] * size[1],
    )
    r = np.random.default_rng(1).standard_normal(z.shape)
    passed = movement.pass_through(
        backend.place(x), backend.place(z), backend.place(r), kind="patches", size=size
    )
    (back,) = passed.inputs
    seen = backend.back(back)
    assert seen.shape == shape and passed.absorbed == {}
    for index in np.ndindex(*shape):
        place = patch_place(index, size, shape)
        assert seen[index] == (0.0 if place is None else r[place])
        assert place is None or z[place] == x[index]


def test_patches_and_a_matrix_are_a_convolution() -> None:
    """z[b, n, o] = sum over channels and the window of kernel * pixels, written as four loops."""
    random = np.random.default_rng(2)
    x, kernel = random.standard_normal((1, 2, 5, 6)), random.standard_normal((3, 2, 2, 3))
    z = linear.forward(
        movement.forward(x, kind="patches", size=(2, 3)), kernel.reshape(3, -1), None
    )
    for o, row, column in product(range(3), range(2), range(2)):
        window = x[0, :, 2 * row : 2 * row + 2, 3 * column : 3 * column + 3]
        assert z[0, 2 * row + column, o] == pytest.approx((window * kernel[o]).sum(), rel=1e-13)


# -- where relevance ends --------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["pixels", "position"])
def test_source(backend: Backend, role: str) -> None:
    values, r = (
        backend.place(np.random.default_rng(i).integers(-4, 5, (2, 3, 4, 5)) / 8) for i in range(2)
    )
    assert source.forward(values=values, role=role) is values
    stopped, propagated = (
        source.leaf(values, r, values=values, role=role),
        source.leaf_gxi(values, r, values=values, role=role),
    )
    assert stopped.inputs == propagated.inputs == ()
    assert np.array_equal(backend.back(stopped.absorbed[role]), backend.back(r).sum(axis=(1, 2, 3)))
    assert np.array_equal(
        backend.back(propagated.absorbed[role]),
        (backend.back(values) * backend.back(r)).sum(axis=(1, 2, 3)),
    )


def test_learned(backend: Backend) -> None:
    """One row for all examples, and ledger for each apart."""
    table, r = np.arange(6.0).reshape(1, 2, 3), np.arange(24.0).reshape(4, 2, 3)
    placed, beside, arrived = (backend.place(a) for a in (table, np.zeros((4, 7, 3)), r))
    z = learned.forward(placed, beside, role="class_token")
    assert np.array_equal(backend.back(z), np.repeat(table, 4, axis=0))
    stopped = learned.leaf(placed, beside, z, arrived, role="class_token")
    propagated = learned.leaf_gxi(placed, beside, z, arrived, role="class_token")
    assert stopped.inputs == propagated.inputs == (None, None)
    assert np.array_equal(backend.back(stopped.absorbed["class_token"]), r.sum(axis=(1, 2)))
    assert np.array_equal(
        backend.back(propagated.absorbed["class_token"]), (r * table).sum(axis=(1, 2))
    )
