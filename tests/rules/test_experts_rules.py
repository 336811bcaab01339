"""The operations of routing against their definitions in exact arithmetic
(`verification/exact_experts.py`), in every backends.

Bounds are those of test_rules_exact.py. Weights to renormalize are positive, as a softmax makes
them, and never far from one: z is then a quotient of a sum without cancellation, within (K + 2) u
of its value.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backends import Backend
from exact_rules import (
    EPS,
    KINDS,
    Expected,
    array,
    closed,
    dtypes,
    eta,
    exactly,
    hold,
    largest,
    near,
    quiet,
    rounded,
    size,
    top,
    u,
)
from hypothesis import strategies as st
from rounding import scale_of

from refl.rules import combine, gather, renormalize, top_k
from refl.verification.definitions import exact_experts as exact

POSITIVE = {
    "float64": st.one_of(st.sampled_from([0.125, 0.25, 0.5, 1.0, 0.1]), st.floats(0.015625, 1.0)),
    "float32": st.one_of(
        st.sampled_from([0.125, 0.25, 0.5, 1.0]), st.floats(0.015625, 1.0, width=32)
    ),
}


def test_the_definitions_import_nothing_of_the_engine() -> None:
    tree = ast.parse(Path(exact.__file__).read_text(encoding="utf-8"))
    modules = {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    modules |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    assert modules == {"__future__", "collections.abc", "refl.verification.definitions.exact"}


# -- the choice ------------------------------------------------------------------------------------


@dtypes
def test_top_k(backend: Backend, dtype: str) -> None:
    def judge(data: st.DataObject) -> None:
        b, t, e = size(data, 2), size(data), size(data, 5)
        k = data.draw(st.integers(1, e))
        p, r = array(data, dtype, (b, t, e)), array(data, dtype, (b, t, k))
        chosen = top_k.choose(backend.place(p), k)
        z = backend.back(top_k.forward(backend.place(p), chosen=chosen))
        assert z.shape == (b, t, k) and z.dtype == dtype
        expected = Expected(1, dtype)
        for n, m in np.ndindex(b, t):
            wanted = exact.top_k(exactly(p[n, m]), k)
            assert list(chosen[n][m]) == wanted
            assert all(z[n, m, j] == p[n, m, i] for j, i in enumerate(wanted))
            split = exact.top_k_pass_through(wanted, exactly(r[n, m]))
            assert split.balance(exactly(r[n, m])) == 0
            expected.add(split, (n, m))
        expected.judge(
            backend, top_k.pass_through(*map(backend.place, (p, z, r)), chosen=chosen), [p.shape], 0
        )

    hold(backend, judge)


def test_of_equal_probabilities_the_first_is_chosen(backend: Backend) -> None:
    p = backend.place(np.asarray([[[0.25, 0.5, 0.25, 0.5], [0.25, 0.25, 0.25, 0.25]]]))
    assert top_k.choose(p, 3) == (((1, 3, 0), (0, 1, 2)),)


# -- to the experts and back -----------------------------------------------------------------------


def places(data: st.DataObject, b: int, length: int) -> Any:
    """For each example some of its rows in any order, with empty places where another example has
    more.
    """
    rows = [
        data.draw(st.lists(st.integers(0, length - 1), unique=True, max_size=length))
        for _ in range(b)
    ]
    longest = max(1, *map(len, rows))
    return tuple((*row, *[None] * (longest - len(row))) for row in rows)


@dtypes
def test_gather(backend: Backend, dtype: str) -> None:
    def judge(data: st.DataObject) -> None:
        b, m, d = size(data, 3), size(data, 4), size(data, 2)
        index = places(data, b, m)
        x = array(data, dtype, (b, m, d))
        z = backend.back(gather.forward(backend.place(x), index=index))
        r = array(data, dtype, (b, len(index[0]), d))
        assert z.shape == r.shape and z.dtype == dtype
        expected = Expected(1, dtype)
        for n in range(b):
            assert exactly(z[n]) == exact.gather(exactly(x[n]), index[n])
            expected.add(
                exact.gather_pass_through(index[n], exactly(r[n])),
                (n,),
                lambda k, entry, n=n: (n, *entry),
            )
        passed = gather.pass_through(*map(backend.place, (x, z, r)), index=index)
        assert passed.absorbed == {}
        expected.judge(backend, passed, [x.shape], 0)

    hold(backend, judge)


def test_gathered_back_is_where_it_was(backend: Backend) -> None:
    """A permutation undone is the array, bit for bit; places left empty change nothing."""
    x = np.random.default_rng(0).standard_normal((2, 4, 3))
    index = ((2, 0, 3, 1, None), (1, 3, 0, 2, None))
    rows = gather.rows(backend.place(x), index)
    assert np.array_equal(backend.back(gather.back(rows, index, 4)), x)
    assert not backend.back(rows)[:, 4].any()


class Combine:
    """Drawn outputs of one to three experts, each on rows of its own choice; a row may have no
    expert, or several.
    """

    def __init__(self, data: st.DataObject, dtype: str) -> None:
        b, d, self.length, self.dtype = size(data, 2), size(data, 2), size(data, 3), dtype
        self.index = tuple(places(data, b, self.length) for _ in range(size(data)))
        self.ys = [array(data, dtype, (b, len(where[0]), d)) for where in self.index]
        self.z = quiet(combine.forward, *self.ys, index=self.index, length=self.length)
        self.r = array(data, dtype, (b, self.length, d))
        self.shapes = [y.shape for y in self.ys]

    def example(self, b: int) -> tuple[list[Any], list[Any]]:
        return [exactly(y[b]) for y in self.ys], [where[b] for where in self.index]

    def placed(self, backend: Backend) -> list[Any]:
        return [backend.place(a) for a in (*self.ys, self.z, self.r)]


@dtypes
def test_combine_forward(backend: Backend, dtype: str) -> None:
    def judge(data: st.DataObject) -> None:
        case = Combine(data, dtype)
        z = backend.back(
            combine.forward(*map(backend.place, case.ys), index=case.index, length=case.length)
        )
        assert z.shape == case.r.shape and z.dtype == dtype
        for b in range(len(z)):
            ys, index = case.example(b)
            wanted = exact.combine(ys, index, case.length)
            scale = exact.combine(
                [[[abs(v) for v in row] for row in y] for y in ys], index, case.length
            )
            for t, d in np.ndindex(*z.shape[1:]):
                near(z[b, t, d], wanted[t][d], 4 * u(dtype) * scale[t][d])

    hold(backend, judge)


@dtypes
def test_combine_epsilon(backend: Backend, dtype: str) -> None:
    def judge(data: st.DataObject) -> None:
        case, eps, kind = (
            Combine(data, dtype),
            data.draw(st.sampled_from(EPS)),
            data.draw(st.sampled_from(KINDS)),
        )
        expected = Expected(len(case.ys), dtype)
        for b in range(len(case.z)):
            (ys, index), z, r = case.example(b), exactly(case.z[b]), exactly(case.r[b])
            split = exact.combine_epsilon(ys, index, r, rounded(eps, dtype), kind, z)
            expected.add(split, (b,), lambda k, entry, b=b: (b, *entry))
            closed(
                exact.combine_epsilon(ys, index, r, rounded(eps, dtype), kind).balance(
                    [v for row in r for v in row]
                )
            )
        expected.in_range(*case.ys)
        passed = combine.epsilon(
            *case.placed(backend), index=case.index, length=case.length, eps=eps, stabilizer=kind
        )
        expected.judge(backend, passed, case.shapes, len(case.ys), largest(*case.ys))

    hold(backend, judge)


@dtypes
def test_combine_gradient(backend: Backend, dtype: str) -> None:
    def judge(data: st.DataObject) -> None:
        case = Combine(data, dtype)
        expected = Expected(len(case.ys), dtype)
        for b in range(len(case.z)):
            (ys, index), g = case.example(b), exactly(case.r[b])
            split = exact.combine_gradient(len(ys), index, g)
            expected.add(split, (b,), lambda k, entry, b=b: (b, *entry))
            z = exact.combine(ys, index, case.length)
            worth = sum(
                y * v
                for row, given in zip(z, g, strict=True)
                for y, v in zip(row, given, strict=True)
            )
            operands = [
                {(n, d): v for n, row in enumerate(y) for d, v in enumerate(row)} for y in ys
            ]
            assert split.balance([worth], *operands) == 0
        expected.judge(
            backend,
            combine.gradient(*case.placed(backend), index=case.index, length=case.length),
            case.shapes,
            0,
        )

    hold(backend, judge)


def test_order_of_experts_does_not_matter(backend: Backend) -> None:
    """One stabilizer for the whole sum. A chain of additions divides by partial sums: with 1 - 1 in
    it, by nothing but eps.
    """
    ys = [np.asarray([[[v]]]) for v in (1.0, -1.0, 2.0)]
    index = (((0,),),) * 3
    shares = []
    for order in ((0, 1, 2), (2, 0, 1)):
        mine = [backend.place(ys[i]) for i in order]
        z = combine.forward(*mine, index=index, length=1)
        passed = combine.epsilon(*mine, z, z, index=index, length=1, eps=1e-6)
        shares.append(
            {i: float(backend.back(r)[0, 0, 0]) for i, r in zip(order, passed.inputs, strict=True)}
        )
    assert shares[0] == shares[1]
    assert shares[0][2] == pytest.approx(2.0, rel=1e-6)


# -- renormalization -------------------------------------------------------------------------------


class Weights:
    """Drawn gate weights x (B, T, K), relevance r, z from the engine's forward."""

    def __init__(self, data: st.DataObject, dtype: str) -> None:
        shape = (size(data, 2), size(data, 2), size(data, 4))
        self.x = array(data, dtype, shape, POSITIVE[dtype], scales=[1.0])
        self.r = array(data, dtype, shape, scales=[1.0])
        self.z = renormalize.forward(self.x)
        self.k, self.lever = shape[-1], largest(self.x) * 64**3 * shape[-1] * (1 + top(self.r))

    def placed(self, backend: Backend) -> list[Any]:
        return [backend.place(a) for a in (self.x, self.z, self.r)]

    def rows(self) -> Any:
        return (
            (lead, exactly(self.x[lead]), exactly(self.z[lead]), exactly(self.r[lead]))
            for lead in np.ndindex(self.x.shape[:-1])
        )


@dtypes
def test_renormalize_forward(backend: Backend, dtype: str) -> None:
    def judge(data: st.DataObject) -> None:
        case = Weights(data, dtype)
        z = backend.back(renormalize.forward(backend.place(case.x)))
        for lead, x, _, _ in case.rows():
            for i, wanted in enumerate(exact.renormalize(x)):
                near(z[(*lead, i)], wanted, (case.k + 2) * u(dtype) * wanted)

    hold(backend, judge)


@dtypes
def test_renormalize_identity_and_frozen(backend: Backend, dtype: str) -> None:
    def judge(data: st.DataObject) -> None:
        case, expected = Weights(data, dtype), Expected(1, dtype)
        for lead, x, _, g in case.rows():
            split = exact.renormalize_identity_gxi(x, g)
            z = exact.renormalize(x)
            assert split.balance([sum(a * b for a, b in zip(z, g, strict=True))], x) == 0
            expected.add(split, lead)
        expected.judge(
            backend,
            renormalize.identity_gxi(*case.placed(backend)),
            [case.x.shape],
            case.k,
            case.lever,
        )
        passed = renormalize.identity(*case.placed(backend))
        assert np.array_equal(backend.back(passed.inputs[0]), case.r) and passed.absorbed == {}

    hold(backend, judge)


@dtypes
def test_renormalize_epsilon(backend: Backend, dtype: str) -> None:
    def judge(data: st.DataObject) -> None:
        case, eps, kind = (
            Weights(data, dtype),
            data.draw(st.sampled_from(EPS)),
            data.draw(st.sampled_from(KINDS)),
        )
        expected = Expected(1, dtype)
        for lead, x, z, r in case.rows():
            expected.add(exact.renormalize_epsilon(x, r, rounded(eps, dtype), kind, z), lead)
            split = exact.renormalize_epsilon(x, r, rounded(eps, dtype), kind)
            assert split.balance(r) == 0
            assert sum(split.received(0, i) for i in range(case.k)) == 0, (
                "homogeneous of degree 0: nothing is passed on in sum"
            )
        passed = renormalize.epsilon(*case.placed(backend), eps=eps, stabilizer=kind)
        expected.judge(backend, passed, [case.x.shape], 4 * case.k, case.lever)

    hold(backend, judge)


@dtypes
def test_renormalize_gradient(backend: Backend, dtype: str) -> None:
    def judge(data: st.DataObject) -> None:
        case, expected = Weights(data, dtype), Expected(1, dtype)
        for lead, x, _, g in case.rows():
            split = exact.renormalize_gradient(x, g)
            assert sum(x[i] * split.received(0, i) for i in range(case.k)) == 0
            assert (
                split.balance([sum(a * b for a, b in zip(exact.renormalize(x), g, strict=True))], x)
                == 0
            )
            expected.add(split, lead)
        expected.judge(
            backend,
            renormalize.gradient(*case.placed(backend)),
            [case.x.shape],
            4 * case.k,
            case.lever,
        )

    hold(backend, judge)


@dtypes
def test_books_close_to_rounding(backend: Backend, dtype: str) -> None:
    """received - passed - absorbed stays within 8 u times the terms that each rule names, in both
    forms.
    """
    random = np.random.default_rng(7)
    x = random.uniform(0.02, 1, (3, 5, 4)).astype(dtype)
    r = random.standard_normal(x.shape).astype(dtype)
    placed = [backend.place(a) for a in (x, renormalize.forward(x), r)]
    index = (((0, 1, 2), (3, 0, None), (4, None, None)), ((4, 3), (1, 2), (2, 4)))
    ys = [
        backend.place(random.standard_normal((3, len(where[0]), 2)).astype(dtype))
        for where in index
    ]
    z = combine.forward(*ys, index=index, length=5)
    s = random.standard_normal((3, 5, 2)) * (backend.back(z) != 0)
    s = backend.place(s.astype(dtype))
    places = {"index": index, "length": 5}
    for rule, arguments, how, operands, out, given in (
        (renormalize.epsilon, placed, {}, None, None, placed[2]),
        (renormalize.gradient, placed, {}, placed[:1], placed[1], placed[2]),
        (renormalize.identity_gxi, placed, {}, placed[:1], placed[1], placed[2]),
        (combine.epsilon, (*ys, z, s), places, None, None, s),
        (combine.gradient, (*ys, z, s), places, ys, z, s),
    ):
        passed = rule(*arguments, **how)
        received = worth(backend, given, out)
        gone = sum(worth(backend, p, operands and operands[i]) for i, p in enumerate(passed.inputs))
        gone = gone + sum(backend.back(a) for a in passed.absorbed.values())
        scale = backend.back(scale_of(rule, *arguments, **how))
        assert np.all(np.abs(received - gone) <= 8 * float(u(dtype)) * scale + float(eta(dtype)))


def worth(backend: Backend, r: Any, x: Any, absolute: bool = False) -> Any:
    values = backend.back(r).astype("float64") * (
        1 if x is None else backend.back(x).astype("float64")
    )
    return (np.abs(values) if absolute else values).sum(axis=(1, 2))
