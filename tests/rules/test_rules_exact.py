"""Every rule of the engine against its definition in exact arithmetic (`verification/exact.py`), in
every backends.

The bound. A relevance is a sum of messages, each a product of factors over a denominator; the
engine forms the same sum in floating point with unit roundoff u. Every factor, product, quotient
and addition costs a relative u of a message, whatever the order of summation, so

    |engine - exact| <= k u sum |messages| + eta L,     k = 8 + (number of terms in the longest sum)
                                                        + (number of messages)

with 8 for the factors, the denominator, the rounding of eps and the last product. eta is the
smallest subnormal: a product that underflows is off by eta, times the factors still to come, at
most L. Where a denominator is itself a rounded difference, k grows by its condition, sum |terms| /
|denominator|; the functions that need it say so. z is an argument of a rule: the exact side divides
by the same rounded z, and the forward that makes z is held to its own bound, k u sum |terms of z|.

An example is thrown away (`assume`) only where a number that the definition itself asks for leaves
the range of the format: a z, a share s = R / denominator, a share times one factor, or the sum of
|messages|; and, for rules that divide by a bare sum of products without a stabilizer, where such a
product underflows, for then the sum has no correct digit.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backends import Backend
from exact_rules import (
    EPS,
    KINDS,
    ORDINARY,
    Expected,
    Linear,
    array,
    closed,
    dtypes,
    eta,
    exactly,
    fits,
    hold,
    largest,
    magnitude,
    near,
    no_underflow,
    quiet,
    rounded,
    size,
    top,
    u,
)
from hypothesis import assume
from hypothesis import strategies as st
from rounding import scale_of

from refl import arrays
from refl.rules import (
    activation,
    add,
    embedding,
    layer_norm,
    linear,
    matmul,
    movement,
    multiply,
    pooling,
    rms_norm,
    rotary,
    scale,
    softmax,
)
from refl.rules.conservation import RuleOutput
from refl.verification.definitions import exact, exact_vision
from refl.verification.definitions.exact import MP, Number, Split

# -- drawing ---------------------------------------------------------------------------------------


# -- comparing -------------------------------------------------------------------------------------


def test_the_definitions_import_nothing_of_the_engine() -> None:
    tree = ast.parse(Path(exact.__file__).read_text(encoding="utf-8"))
    modules = {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    modules |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    allowed = {
        "__future__",
        "collections",
        "dataclasses",
        "fractions",
        "itertools",
        "math",
        "typing",
        "mpmath",
    }
    assert {m.partition(".")[0] for m in modules} <= allowed


# -- linear ----------------------------------------------------------------------------------------


@dtypes
def test_linear_forward(backend: Backend, dtype: str) -> None:
    def judge(data: st.DataObject) -> None:
        case = Linear(data, dtype)
        z = backend.back(linear.forward(*case.placed(backend)[:3]))
        for lead, x, w, b, _, _ in case.rows():
            for j, wanted in enumerate(exact.linear(x, w, b)):
                scale_ = sum(abs(w[j][i] * x[i]) for i in range(case.i)) + (abs(b[j]) if b else 0)
                near(z[(*lead, j)], wanted, (case.i + 2) * (u(dtype) * scale_ + eta(dtype)))

    hold(backend, judge)


@dtypes
def test_linear_epsilon(backend: Backend, dtype: str) -> None:
    def judge(data: st.DataObject) -> None:
        case, eps, kind = (
            Linear(data, dtype),
            data.draw(st.sampled_from(EPS)),
            data.draw(st.sampled_from(KINDS)),
        )
        expected, e = Expected(1, dtype), rounded(eps, dtype)
        for lead, x, w, b, z, r in case.rows():
            expected.add(exact.linear_epsilon(x, w, b, r, e, kind, z), lead)
            closed(exact.linear_epsilon(x, w, b, r, e, kind).balance(r))
        expected.in_range(case.x, case.w, case.b)
        case.judge(
            backend, linear.epsilon(*case.placed(backend), eps=eps, stabilizer=kind), expected
        )

    hold(backend, judge)


@dtypes
def test_linear_gamma(backend: Backend, dtype: str) -> None:
    def judge(data: st.DataObject) -> None:
        case, gamma = Linear(data, dtype), data.draw(st.sampled_from([0.0, 0.05, 0.25, 1.0, 100.0]))
        eps = data.draw(st.sampled_from([0.0, 0.0, *EPS]))
        no_underflow(dtype, case.products())
        expected = Expected(1, dtype)
        for lead, x, w, b, z, r in case.rows():
            expected.add(
                exact.linear_gamma(x, w, b, r, rounded(gamma, dtype), rounded(eps, dtype), z), lead
            )
            closed(exact.linear_gamma(x, w, b, r, Fraction(gamma), Fraction(eps)).balance(r))
        expected.in_range(case.x, case.w, case.b)
        case.judge(
            backend, linear.gamma(*case.placed(backend), gamma=gamma, eps=eps), expected, gamma
        )

    hold(backend, judge)


@dtypes
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 0.0), (2.0, 1.0), (1.5, 0.5)])
def test_linear_alpha_beta(backend: Backend, dtype: str, alpha: float, beta: float) -> None:
    def judge(data: st.DataObject) -> None:
        case, eps = Linear(data, dtype), data.draw(st.sampled_from([0.0, 0.0, *EPS]))
        no_underflow(dtype, case.products())
        expected = Expected(1, dtype)
        for lead, x, w, b, _, r in case.rows():
            split = exact.linear_alpha_beta(
                x, w, b, r, Fraction(alpha), Fraction(beta), rounded(eps, dtype)
            )
            expected.add(split, lead)
            closed(split.balance(r))
        expected.in_range(case.x, case.w, case.b)
        case.judge(
            backend,
            linear.alpha_beta(*case.placed(backend), alpha=alpha, beta=beta, eps=eps),
            expected,
        )
        if not beta:
            case.judge(backend, linear.z_plus(*case.placed(backend), eps=eps), expected)

    hold(backend, judge)


@dtypes
def test_linear_flat_and_w_square(backend: Backend, dtype: str) -> None:
    def judge(data: st.DataObject) -> None:
        case = Linear(data, dtype)
        no_underflow(dtype, [each * each for row in exactly(case.w) for each in row])
        fits(dtype, *(each * each for row in exactly(case.w) for each in row))
        flat, square = Expected(1, dtype), Expected(1, dtype)
        for lead, x, w, _, _, r in case.rows():
            for expected, split in (
                (flat, exact.linear_flat(x, w, r)),
                (square, exact.linear_w_square(x, w, r)),
            ):
                expected.add(split, lead)
                closed(split.balance(r))
        flat.in_range()
        square.in_range(case.w * case.w)
        case.judge(backend, linear.flat(*case.placed(backend)), flat)
        square.judge(
            backend,
            linear.w_square(*case.placed(backend)),
            [case.x.shape],
            case.rounding_scale,
            largest(case.w, case.w),
        )

    hold(backend, judge)


@dtypes
def test_linear_gradient(backend: Backend, dtype: str) -> None:
    def judge(data: st.DataObject) -> None:
        case, expected = Linear(data, dtype), Expected(1, dtype)
        for lead, x, w, b, _, g in case.rows():
            split = exact.linear_gradient(x, w, b, g)
            expected.add(split, lead)
            closed(
                split.balance([z * g_j for z, g_j in zip(exact.linear(x, w, b), g, strict=True)], x)
            )
        expected.in_range()
        case.judge(backend, linear.gradient(*case.placed(backend)), expected)

    hold(backend, judge)


# -- add and multiply, with operands that are broadcast --------------------------------------------

SHAPES = [  # of the operands; the first axis counts examples, or is 1 for what all examples share
    ((1,), (1,), (1,)),
    ((2, 3), (2, 3), (2, 3)),
    ((2, 3), (2, 1), (2, 3)),
    ((2, 1), (2, 3), (2, 3)),
    ((2, 2, 2), (1, 2, 2), (2, 1, 2)),
    ((1, 1, 2, 2), (1, 3, 2, 2), (1, 3, 1, 2)),
    ((2, 2, 2), (2, 2), (2, 2, 2)),
]


def source(shape: tuple[int, ...], index: tuple[int, ...]) -> tuple[int, ...]:
    """Where in an operand of this shape the entry stands that is copied to `index` of the
    result.
    """
    tail = index[len(index) - len(shape) :]
    return tuple(0 if n == 1 else i for n, i in zip(shape, tail, strict=True))


def spread_out(a: Any, shape: tuple[int, ...]) -> dict[tuple[int, ...], Fraction]:
    return {index: Fraction(float(a[source(a.shape, index)])) for index in np.ndindex(*shape)}


def elementwise(
    expected: Expected,
    operands: Sequence[Any],
    extra: Sequence[Any],
    rule: Callable[..., Split],
    shape: tuple[int, ...],
) -> None:
    """Enter `rule` element by element, so that copies of an entry meet in Expected."""
    values = [spread_out(a, shape) for a in (*operands, *extra)]
    for index in np.ndindex(*shape):
        split = rule(*([v[index]] for v in values))
        expected.add(split, (index[0],), lambda k, _, at=index: source(operands[k].shape, at))


@dtypes
def test_add_epsilon(backend: Backend, dtype: str) -> None:
    def judge(data: st.DataObject) -> None:
        shapes = data.draw(st.sampled_from(SHAPES))
        a, b = array(data, dtype, shapes[0]), array(data, dtype, shapes[1])
        z = quiet(add.forward, a, b)
        r = array(data, dtype, z.shape)
        eps, kind = data.draw(st.sampled_from(EPS)), data.draw(st.sampled_from(KINDS))
        expected, e = Expected(2, dtype), rounded(eps, dtype)

        def rule(a: Any, b: Any, z: Any, r: Any) -> Split:
            closed(exact.add_epsilon(a, b, r, e, kind).balance(r))
            return exact.add_epsilon(a, b, r, e, kind, z)

        elementwise(expected, (a, b), (z, r), rule, z.shape)
        expected.in_range()
        passed = add.epsilon(*map(backend.place, (a, b, z, r)), eps=eps, stabilizer=kind)
        expected.judge(backend, passed, [a.shape, b.shape], 4, largest(a, b))
        forward = backend.back(add.forward(backend.place(a), backend.place(b)))
        for index, each in spread_out(z, z.shape).items():
            wanted = spread_out(a, z.shape)[index] + spread_out(b, z.shape)[index]
            assert each == Fraction(float(forward[index]))
            near(forward[index], wanted, u(dtype) * abs(wanted))

    hold(backend, judge)


@dtypes
def test_add_gradient(backend: Backend, dtype: str) -> None:
    def judge(data: st.DataObject) -> None:
        shapes = data.draw(st.sampled_from(SHAPES))
        a, b = array(data, dtype, shapes[0]), array(data, dtype, shapes[1])
        z = quiet(add.forward, a, b)
        g, expected = array(data, dtype, z.shape), Expected(2, dtype)
        elementwise(expected, (a, b), (g,), exact.add_gradient, z.shape)
        expected.in_range()
        expected.judge(
            backend, add.gradient(*map(backend.place, (a, b, z, g))), [a.shape, b.shape], 2
        )

    hold(backend, judge)


class Product:
    """A drawn product of 1 to 3 operands, some constant (never all), some broadcast."""

    def __init__(self, data: st.DataObject, dtype: str) -> None:
        n = data.draw(st.integers(1, 3))
        self.operands = [
            array(data, dtype, shape) for shape in data.draw(st.sampled_from(SHAPES))[:n]
        ]
        flags = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
        self.constant = tuple(flags if not all(flags) else [False] * n)
        self.z = quiet(multiply.forward, *self.operands, constant=self.constant)
        self.r = array(data, dtype, self.z.shape)
        self.shapes = [a.shape for a in self.operands]
        self.lever = largest(*self.operands, self.r)

    def placed(self, backend: Backend) -> list[Any]:
        return [backend.place(a) for a in (*self.operands, self.z, self.r)]

    def in_range(self, dtype: str) -> None:
        """No product of some of the factors may overflow, whatever the order in which they are
        taken.
        """
        fits(
            dtype,
            math.prod(
                (max(top(a), Fraction(1)) for a in (*self.operands, self.r)), start=Fraction(8)
            ),
        )


@dtypes
def test_multiply_uniform(backend: Backend, dtype: str) -> None:
    def judge(data: st.DataObject) -> None:
        case = Product(data, dtype)
        expected, n = Expected(len(case.operands), dtype), len(case.operands)

        def rule(*arguments: Any) -> Split:
            split = exact.multiply_uniform(arguments[:n], case.constant, arguments[n])
            closed(split.balance(arguments[n]))
            return split

        elementwise(expected, case.operands, (case.r,), rule, case.z.shape)
        expected.in_range()
        expected.judge(
            backend, multiply.uniform(*case.placed(backend), constant=case.constant), case.shapes, 2
        )

    hold(backend, judge)


@dtypes
@pytest.mark.parametrize("rule", ["uniform_gxi", "gradient"])
def test_multiply_in_gradient_form(backend: Backend, dtype: str, rule: str) -> None:
    definition = {"uniform_gxi": exact.multiply_uniform_gxi, "gradient": exact.multiply_gradient}[
        rule
    ]
    engine = {"uniform_gxi": multiply.uniform_gxi, "gradient": multiply.gradient}[rule]

    def judge(data: st.DataObject) -> None:
        case = Product(data, dtype)
        case.in_range(dtype)
        expected, n = Expected(len(case.operands), dtype), len(case.operands)

        def one(*arguments: Any) -> Split:
            operands, g = arguments[:n], arguments[n]
            split = definition(operands, case.constant, g)
            closed(split.balance([math.prod(a[0] for a in operands) * g[0]], *operands))
            return split

        elementwise(expected, case.operands, (case.r,), one, case.z.shape)
        expected.in_range()
        expected.judge(
            backend,
            engine(*case.placed(backend), constant=case.constant),
            case.shapes,
            2 * n,
            case.lever,
        )

    hold(backend, judge)


def judge_second(
    backend: Backend,
    dtype: str,
    data: st.DataObject,
    shapes: tuple[tuple[int, ...], tuple[int, ...]],
) -> None:
    a, b = array(data, dtype, shapes[0]), array(data, dtype, shapes[1])
    z = quiet(multiply.forward, a, b, constant=(False, False))
    r = array(data, dtype, z.shape)
    fits(dtype, 8 * top(a) * top(r), 8 * top(r))
    relevance, gradient = Expected(2, dtype), Expected(2, dtype)
    elementwise(relevance, (a, b), (r,), exact.multiply_second, z.shape)
    elementwise(gradient, (a, b), (r,), exact.multiply_second_gxi, z.shape)
    placed = [backend.place(each) for each in (a, b, z, r)]
    relevance.judge(backend, multiply.second(*placed, constant=(False, False)), [None, b.shape], 1)
    gradient.judge(
        backend, multiply.second_gxi(*placed, constant=(False, False)), [None, b.shape], 1
    )


@dtypes
def test_multiply_second(backend: Backend, dtype: str) -> None:
    shapes = [s[:2] for s in SHAPES if math.prod(s[1]) >= math.prod(s[0])]
    hold(
        backend, lambda data: judge_second(backend, dtype, data, data.draw(st.sampled_from(shapes)))
    )


def test_multiply_second_on_a_broadcast_operand(backend: Backend) -> None:
    hold(backend, lambda data: judge_second(backend, "float64", data, ((2, 3), (2, 1))))


@dtypes
def test_multiply_forward(backend: Backend, dtype: str) -> None:
    def judge(data: st.DataObject) -> None:
        case = Product(data, dtype)
        case.in_range(dtype)
        z = backend.back(
            multiply.forward(*map(backend.place, case.operands), constant=case.constant)
        )
        values = [spread_out(a, z.shape) for a in case.operands]
        for index in np.ndindex(*z.shape):
            wanted = math.prod(v[index] for v in values)
            near(
                z[index], wanted, 2 * u(dtype) * abs(wanted) + eta(dtype) * largest(*case.operands)
            )

    hold(backend, judge)


# -- matmul ----------------------------------------------------------------------------------------


class Matmul:
    """Drawn a (lead, J, I), v (lead, I, P), r (lead, J, P), z from the engine's forward."""

    def __init__(self, data: st.DataObject, dtype: str) -> None:
        lead = data.draw(st.sampled_from([(1,), (2,), (1, 1), (2, 2)]))
        j, self.i, p = size(data), size(data), size(data)
        self.a, self.v = (
            array(data, dtype, (*lead, j, self.i)),
            array(data, dtype, (*lead, self.i, p)),
        )
        self.r = array(data, dtype, (*lead, j, p))
        self.z = quiet(matmul.forward, self.a, self.v)
        fits(dtype, *map(top, (self.z, self.r)))
        self.rounding_scale = self.i + j * p
        self.lever = largest(self.a, self.v) * self.i

    def placed(self, backend: Backend) -> list[Any]:
        return [backend.place(x) for x in (self.a, self.v, self.z, self.r)]

    def matrices(self) -> Iterable[tuple[tuple[int, ...], Any, Any, Any, Any]]:
        for lead in np.ndindex(self.a.shape[:-2]):
            yield lead, *(exactly(x[lead]) for x in (self.a, self.v, self.z, self.r))


@dtypes
@pytest.mark.parametrize("rule", ["2z+eps", "2(z+eps)", "second"])
def test_matmul(backend: Backend, dtype: str, rule: str) -> None:
    def definition(a: Any, v: Any, r: Any, eps: Fraction, kind: str, z: Any = None) -> Split:
        if rule == "second":
            return exact.matmul_second(a, v, r, eps, kind, z)
        return exact.matmul_uniform(a, v, r, eps, kind, rule, z)

    def judge(data: st.DataObject) -> None:
        case, eps, kind = (
            Matmul(data, dtype),
            data.draw(st.sampled_from(EPS)),
            data.draw(st.sampled_from(KINDS)),
        )
        expected = Expected(2, dtype)
        for lead, a, v, z, r in case.matrices():
            expected.add(definition(a, v, r, rounded(eps, dtype), kind, z), lead)
            closed(
                definition(a, v, r, rounded(eps, dtype), kind).balance(
                    [x for row in r for x in row]
                )
            )
        expected.in_range(case.a, case.v)
        if rule == "second":
            passed = matmul.second(*case.placed(backend), eps=eps, stabilizer=kind)
        else:
            passed = matmul.uniform(
                *case.placed(backend), eps=eps, stabilizer=kind, denominator=rule
            )
        shapes = [None if rule == "second" else case.a.shape, case.v.shape]
        halved = max((abs(s) for s in expected.shares), default=0) * top(
            case.a
        )  # V/2 may underflow before it meets A^T s
        expected.judge(backend, passed, shapes, case.rounding_scale, case.lever + halved)

    hold(backend, judge)


@dtypes
@pytest.mark.parametrize("rule", ["uniform_gxi", "second_gxi", "gradient"])
def test_matmul_in_gradient_form(backend: Backend, dtype: str, rule: str) -> None:
    half = Fraction(1, 2)
    to_a, to_v = {"uniform_gxi": (half, half), "second_gxi": (0, 1), "gradient": (1, 1)}[rule]

    def judge(data: st.DataObject) -> None:
        case, expected = Matmul(data, dtype), Expected(2, dtype)
        for lead, a, v, _, g in case.matrices():
            split = exact.matmul_gradient(a, v, g, to_a, to_v)
            expected.add(split, lead)
            o = exact.matmul(a, v)
            flat_a, flat_v = (
                {(m, n): x for m, row in enumerate(each) for n, x in enumerate(row)}
                for each in (a, v)
            )
            closed(
                split.balance(
                    [o[j][p] * g[j][p] for j in range(len(g)) for p in range(len(g[0]))],
                    flat_a,
                    flat_v,
                )
            )
        expected.in_range()
        fits(dtype, 16 * top(case.z) * top(case.r))
        shapes = [case.a.shape if to_a else None, case.v.shape]
        expected.judge(
            backend,
            getattr(matmul, rule)(*case.placed(backend)),
            shapes,
            case.rounding_scale,
            case.lever * largest(case.r),
        )

    hold(backend, judge)


@dtypes
def test_matmul_forward(backend: Backend, dtype: str) -> None:
    def judge(data: st.DataObject) -> None:
        case = Matmul(data, dtype)
        z = backend.back(matmul.forward(*case.placed(backend)[:2]))
        for lead, a, v, _, _ in case.matrices():
            sizes = exact.matmul(*([[abs(x) for x in row] for row in m] for m in (a, v)))
            for (j, p), each in np.ndenumerate(z[lead]):
                near(
                    each,
                    exact.matmul(a, v)[j][p],
                    (case.i + 2) * (u(dtype) * sizes[j][p] + eta(dtype)),
                )

    hold(backend, judge)


# -- softmax ---------------------------------------------------------------------------------------


class Softmax:
    """Drawn logits (B, [H,] J, I) with rows in part or wholly masked, by a boolean mask, -inf, or
    finfo.min; p from the engine.
    """

    def __init__(
        self,
        data: st.DataObject,
        dtype: str,
        forms: Sequence[str] = ("none", "boolean", "-inf", "finfo.min"),
        whole: bool = True,
    ) -> None:
        lead = data.draw(st.sampled_from([(1, 1), (2, 2), (1, 1, 2), (2, 2, 1)]))
        n = size(data, 4)
        shape = (*lead, n)
        scales = [1.0, 1.0, 1.0, 8.0, 2.0**12, 2.0**-99]
        self.x = array(data, dtype, shape, ORDINARY[dtype], scales)
        self.form = data.draw(st.sampled_from(forms))
        hidden = data.draw(
            st.lists(st.booleans(), min_size=math.prod(shape), max_size=math.prod(shape))
        )
        self.visible = (
            np.ones(shape, dtype=bool)
            if self.form == "none"
            else ~np.asarray(hidden).reshape(shape)
        )
        if not whole:
            self.visible[..., 0] = True
        self.mask = self.visible if self.form == "boolean" else None
        if self.form == "-inf":
            self.x[~self.visible] = -np.inf
        if self.form == "finfo.min":
            lowest = np.finfo(dtype).min * np.asarray(
                data.draw(st.sampled_from([1.0, 0.75])), dtype=dtype
            )
            self.x[~self.visible] = (
                lowest + np.where(np.isfinite(self.x), np.maximum(self.x, 0), 0)[~self.visible]
            )
        self.r = array(data, dtype, shape, None, [1.0, 1.0, 2.0**-99])
        fits(dtype, top(self.r) * 2**20)
        self.p = quiet(softmax.forward, self.x, mask=self.mask)
        self.rounding_scale = 3 * n + 4

    def call(self, backend: Backend, rule: Callable[..., RuleOutput]) -> RuleOutput:
        mask = None if self.mask is None else backend.place(self.mask)
        return rule(*map(backend.place, (self.x, self.p, self.r)), mask=mask)

    def rows(self) -> Iterable[tuple[tuple[int, ...], Any, Any, Any, list[bool]]]:
        for lead in np.ndindex(self.x.shape[:-1]):
            seen = [bool(v) for v in self.visible[lead]]
            x = [
                Fraction(float(v)) if s else Fraction(0)
                for v, s in zip(self.x[lead], seen, strict=True)
            ]
            yield lead, x, exactly(self.p[lead]), exactly(self.r[lead]), seen

    def lever(self) -> Fraction:
        return (
            (1 + Fraction(float(np.max(np.abs(self.x[self.visible]), initial=0))))
            * largest(self.r)
            * 4
        )


@dtypes
@pytest.mark.parametrize("rule", ["taylor", "spread", "identity", "constant"])
def test_softmax(backend: Backend, dtype: str, rule: str) -> None:
    definition = getattr(exact, f"softmax_{rule}")

    def judge(data: st.DataObject) -> None:
        case, expected = Softmax(data, dtype), Expected(1, dtype)
        for lead, x, p, r, seen in case.rows():
            split = definition(x, p, r, seen)
            expected.add(split, lead)
            closed(split.balance(r))
        expected.judge(
            backend,
            case.call(backend, getattr(softmax, rule)),
            [case.x.shape],
            case.rounding_scale,
            case.lever(),
        )

    hold(backend, judge)


def judge_softmax_gradient(backend: Backend, case: Softmax, dtype: str) -> None:
    expected = Expected(1, dtype)
    for lead, x, p, g, seen in case.rows():
        split = exact.softmax_gradient(x, p, g, seen)
        expected.add(split, lead)
        closed(split.balance([a * b for a, b in zip(p, g, strict=True)], x))
    expected.judge(
        backend,
        case.call(backend, softmax.gradient),
        [case.x.shape],
        case.rounding_scale,
        case.lever(),
    )


@dtypes
def test_softmax_gradient(backend: Backend, dtype: str) -> None:
    def judge(data: st.DataObject) -> None:
        forms = data.draw(st.sampled_from([("none", "boolean", "-inf"), ("finfo.min",)]))
        judge_softmax_gradient(
            backend, Softmax(data, dtype, forms, whole=forms != ("finfo.min",)), dtype
        )

    hold(backend, judge)


def test_softmax_gradient_books_a_row_masked_whole_by_finfo_min(backend: Backend) -> None:
    """There p = 1/N is not zero, so z g arrives at masked entries and must be recorded."""
    hold(
        backend,
        lambda data: judge_softmax_gradient(
            backend, Softmax(data, "float64", ["finfo.min"]), "float64"
        ),
    )


@dtypes
def test_softmax_constant_gradient(backend: Backend, dtype: str) -> None:
    def judge(data: st.DataObject) -> None:
        case, expected = Softmax(data, dtype), Expected(1, dtype)
        for lead, x, p, g, seen in case.rows():
            expected.add(
                exact.softmax_constant(x, p, [a * b for a, b in zip(p, g, strict=True)], seen), lead
            )
        expected.judge(
            backend,
            case.call(backend, softmax.constant_gxi),
            [None],
            case.rounding_scale,
            case.lever(),
        )

    hold(backend, judge)


def judge_softmax_z_plus(backend: Backend, case: Softmax, dtype: str, tame: bool) -> None:
    """No sum of the definition cancels, so its bound has no condition number: 1 - p_i is the one
    difference, of exact numbers.

    `tame` keeps to rows where no term outweighs the others of its sum, and where subtracting it
    from the sum of all does no harm.
    """
    expected = Expected(1, dtype)
    for lead, x, p, r, seen in case.rows():
        no_underflow(
            dtype,
            [
                x[i] * ((1 if i == j else 0) - p[i])
                for i in range(len(x))
                for j in range(len(x))
                if seen[i]
            ],
        )
        split = exact.softmax_z_plus(x, p, r, seen)
        if tame:
            crosses = [abs(min(a, 0) * b) for a, b in zip(x, p, strict=True)]
            sent = [sum(abs(m) for m in split.messages[0].get(i, [])) for i in range(len(x))]
            s = sum(abs(each) for each in split.shares)
            assume(
                all(
                    c * s <= 8 * m or (c == 0 and m == 0) or s == 0
                    for c, m in zip(crosses, sent, strict=True)
                )
            )
            assume(
                all(
                    each == 0 or abs(each) * sum(crosses) <= 8 * abs(r_j)
                    for each, r_j in zip(split.shares, _seen(r, seen), strict=True)
                )
            )
        expected.add(split, lead)
        closed(split.balance(r))
    expected.in_range(np.where(case.visible, case.x, 0))
    expected.judge(
        backend,
        case.call(backend, softmax.z_plus),
        [case.x.shape],
        (32 if tame else 2) * case.rounding_scale,
        case.lever(),
    )


def _seen(r: Any, seen: Any) -> list[Any]:
    return [value for value, visible in zip(r, seen, strict=True) if visible]


@dtypes
def test_softmax_z_plus(backend: Backend, dtype: str) -> None:
    hold(
        backend, lambda data: judge_softmax_z_plus(backend, Softmax(data, dtype), dtype, tame=True)
    )


@dtypes
def test_softmax_z_plus_on_any_row(backend: Backend, dtype: str) -> None:
    hold(
        backend, lambda data: judge_softmax_z_plus(backend, Softmax(data, dtype), dtype, tame=False)
    )


def test_softmax_z_plus_where_one_cross_term_dominates(backend: Backend) -> None:
    """x = (-1, -30): the one receiver of R_0 has 8e-12 of the row's terms, and gets R_0 all the
    same, to the last digits.
    """
    x, r = np.asarray([[[-1.0, -30.0]]]), np.asarray([[[1.0, 0.0]]])
    p = softmax.forward(x)
    got = backend.back(softmax.z_plus(*map(backend.place, (x, p, r))).inputs[0])
    assert abs(got[0, 0, 0]) <= 1e-14 and abs(got[0, 0, 1] - 1.0) <= 1e-14


@dtypes
def test_softmax_forward(backend: Backend, dtype: str) -> None:
    """p's exponent x - max rounds by u |x - max|, and so do those of the other terms, each by its
    weight p.
    """

    def judge(data: st.DataObject) -> None:
        case = Softmax(data, dtype)
        mask = None if case.mask is None else backend.place(case.mask)
        p = backend.back(softmax.forward(backend.place(case.x), mask=mask))
        for lead in np.ndindex(case.x.shape[:-1]):
            seen = [
                bool(v)
                for v in (case.visible if case.form != "finfo.min" else np.ones_like(case.visible))[
                    lead
                ]
            ]
            x = [
                Fraction(float(v)) if s else Fraction(0)
                for v, s in zip(case.x[lead], seen, strict=True)
            ]
            wanted = exact.softmax(x, seen)
            highest = max((v for v, s in zip(x, seen, strict=True) if s), default=Fraction(0))
            below = [
                exact.real(highest - v) if s else MP.mpf(0) for v, s in zip(x, seen, strict=True)
            ]
            k = 12 + len(x) + sum(q * d for q, d in zip(wanted, below, strict=True))
            for i in range(len(x)):
                near(
                    p[(*lead, i)],
                    wanted[i],
                    (k + below[i]) * exact.real(u(dtype)) * wanted[i] + exact.real(eta(dtype)) * 4,
                )

    hold(backend, judge)


# -- norms -----------------------------------------------------------------------------------------


class Norm:
    """Drawn x (lead, N), w, b, r and the norm's eps."""

    def __init__(self, data: st.DataObject, dtype: str) -> None:
        lead = data.draw(st.sampled_from([(1,), (2,), (2, 2)]))
        n = size(data, 4)
        half_range = 2.0**250 if dtype == "float64" else 2.0**25
        self.dtype, self.n = dtype, n
        self.x = array(
            data, dtype, (*lead, n), ORDINARY[dtype], [1.0, 1.0, 1.0, half_range, 1 / half_range]
        )
        self.w = array(data, dtype, (n,), ORDINARY[dtype], [1.0])
        self.b = (
            array(data, dtype, (n,), ORDINARY[dtype], [1.0]) if data.draw(st.booleans()) else None
        )
        self.r = array(data, dtype, (*lead, n), ORDINARY[dtype], [1.0, half_range, 1 / half_range])
        self.norm_eps = data.draw(st.sampled_from([1e-5, 1e-12, 0.1]))
        self.e = rounded(self.norm_eps, dtype)

    def rows(self) -> Iterable[tuple[tuple[int, ...], Any, Any, Any, Any]]:
        w, b = exactly(self.w), None if self.b is None else exactly(self.b)
        for lead in np.ndindex(self.x.shape[:-1]):
            yield lead, exactly(self.x[lead]), w, b, exactly(self.r[lead])

    def place(self, backend: Backend, *arrays_: Any) -> list[Any]:
        return [None if a is None else backend.place(a) for a in arrays_]

    def lever(self) -> Fraction:
        """Factors up to 1/std^3, at most norm_eps^(-3/2)."""
        return largest(self.x, self.x, self.w, self.r) * Fraction(10) ** 19

    def condition(self, x: Any) -> Number:
        """The error of std^2, relative, in units of u.

        x - mean(x) is off by (N + 2) u (|x| + mean|x|) =: (N + 2) u A, so the variance by 2 (N + 2)
        u mean(|c| A) and, where c cancels, by (N + 2)^2 u^2 mean(A^2); against variance + norm_eps.
        An example where that is no small number is thrown away.
        """
        c, variance, _ = exact.centered(x, self.e)
        m = self.n + 2
        whole = [
            abs(each) + sum(abs(v) for v in exact.reals(x)) / self.n for each in exact.reals(x)
        ]
        first = 2 * m * sum(abs(c_i) * a for c_i, a in zip(c, whole, strict=True)) / self.n
        second = m * m * exact.real(u(self.dtype)) * sum(a * a for a in whole) / self.n
        k = (first + second) / (variance + exact.real(self.e))
        assume(k * exact.real(u(self.dtype)) < 0.01)
        return k

    def deviation(self, x: Any) -> list[Number]:
        """The error of x_hat = (x - mean) / std, absolute, in units of u."""
        c, _, std = exact.centered(x, self.e)
        k = self.condition(x) + self.n + 8
        mean = sum(abs(v) for v in exact.reals(x)) / self.n
        return [
            ((self.n + 2) * (abs(exact.real(v)) + mean) + k * abs(c_i)) / std
            for v, c_i in zip(x, c, strict=True)
        ]


@dtypes
def test_norms_forward(backend: Backend, dtype: str) -> None:
    def judge(data: st.DataObject) -> None:
        case, low = Norm(data, dtype), exact.real(eta(dtype)) * 8
        x, w, b = case.place(backend, case.x, case.w, case.b)
        rms = backend.back(rms_norm.forward(x, w, norm_eps=case.norm_eps))
        layer = backend.back(layer_norm.forward(x, w, b, norm_eps=case.norm_eps))
        unit = exact.real(u(dtype))
        for lead, xs, ws, bs, _ in case.rows():
            off = case.deviation(xs)
            wanted, plain = (
                exact.layer_norm(xs, ws, bs, case.e),
                exact.layer_norm(xs, ws, None, case.e),
            )
            for i, z in enumerate(exact.rms_norm(xs, ws, case.e)):
                near(
                    rms[(*lead, i)],
                    z,
                    (8 + case.n) * unit * abs(z) + low * exact.real(case.lever()),
                )
                bound = abs(exact.real(ws[i])) * off[i] + 4 * abs(plain[i]) + 2 * abs(wanted[i])
                near(layer[(*lead, i)], wanted[i], unit * bound + low * exact.real(case.lever()))

    hold(backend, judge)


@dtypes
def test_rms_norm(backend: Backend, dtype: str) -> None:
    def judge(data: st.DataObject) -> None:
        case = Norm(data, dtype)
        z = quiet(rms_norm.forward, case.x, case.w, norm_eps=case.norm_eps)
        placed = case.place(backend, case.x, case.w, z, case.r)
        identity, frozen, gradient = (Expected(2, dtype) for _ in range(3))
        for lead, x, w, _, r in case.rows():
            splits = (
                exact.identity(r),
                exact.rms_norm_identity_gxi(x, w, r, case.e),
                exact.rms_norm_gradient(x, w, r, case.e),
            )
            for expected, split in zip((identity, frozen, gradient), splits, strict=True):
                expected.add(split, lead)
            closed(splits[0].balance(r))
            received = [
                a * exact.real(b) for a, b in zip(exact.rms_norm(x, w, case.e), r, strict=True)
            ]
            for split in splits[1:]:
                closed(
                    split.balance(received, exact.reals(x)),
                    magnitude(split) * (1 + exact.real(top(case.x))),
                )
        shapes = [case.x.shape, None]
        identity.judge(backend, rms_norm.identity(*placed, norm_eps=case.norm_eps), shapes, 0)
        frozen.judge(
            backend,
            rms_norm.identity_gxi(*placed, norm_eps=case.norm_eps),
            shapes,
            case.n,
            case.lever(),
        )
        gradient.judge(
            backend,
            rms_norm.gradient(*placed, norm_eps=case.norm_eps),
            shapes,
            3 * case.n,
            case.lever(),
        )

    hold(backend, judge)


@dtypes
def test_layer_norm(backend: Backend, dtype: str) -> None:
    def judge(data: st.DataObject) -> None:
        case, eps, kind = (
            Norm(data, dtype),
            data.draw(st.sampled_from(EPS)),
            data.draw(st.sampled_from(KINDS)),
        )
        z = quiet(layer_norm.forward, case.x, case.w, case.b, norm_eps=case.norm_eps)
        placed = case.place(backend, case.x, case.w, case.b, z, case.r)
        identity, epsilon, frozen = (Expected(1, dtype) for _ in range(3))
        condition: Number = 0
        for lead, x, w, b, r in case.rows():
            condition = max(condition, case.condition(x))
            given_z = exact.layer_norm_epsilon(
                x, w, b, r, case.e, rounded(eps, dtype), kind, exactly(z[lead])
            )
            plain, own = (
                exact.layer_norm_epsilon_gxi(x, w, b, r, case.e),
                exact.layer_norm_epsilon(x, w, b, r, case.e, Fraction(eps), kind),
            )
            for expected, split in (
                (identity, exact.identity(r)),
                (epsilon, given_z),
                (frozen, plain),
            ):
                expected.add(split, lead)
            if all(abs(v) > MP.mpf(10) ** -20 or v == 0 for v in exact.layer_norm(x, w, b, case.e)):
                closed(own.balance(exact.reals(r)), magnitude(own))
            received = [
                a * exact.real(c) for a, c in zip(exact.layer_norm(x, w, b, case.e), r, strict=True)
            ]
            closed(
                plain.balance(received, exact.reals(x)),
                magnitude(plain) * (1 + exact.real(top(case.x))),
            )
        epsilon.in_range(case.w, case.b, case.x)
        fits(
            dtype,
            *(
                s * exact.real(top(case.w) * 10**7) * exact.real(1 + top(case.x))
                for s in epsilon.shares
            ),
        )

        def extra(where: Any, index: Any) -> Number:
            return condition if where == 0 else 0

        shapes, options = [case.x.shape], {"norm_eps": case.norm_eps}
        identity.judge(backend, layer_norm.identity(*placed, **options), shapes, 0)
        passed = layer_norm.epsilon(*placed, **options, eps=eps, stabilizer=kind)
        epsilon.judge(backend, passed, shapes, 2 * case.n, case.lever(), extra)
        frozen.judge(
            backend,
            layer_norm.epsilon_gxi(*placed, **options),
            shapes,
            2 * case.n,
            case.lever(),
            extra,
        )

    hold(backend, judge)


@dtypes
def test_layer_norm_gradient(backend: Backend, dtype: str) -> None:
    """x_hat_j is off by `deviation`, in each factor of the message w_j g_j x_hat_i x_hat_j / (N
    std).
    """

    def judge(data: st.DataObject) -> None:
        case, unit = Norm(data, dtype), exact.real(u(dtype))
        z = quiet(layer_norm.forward, case.x, case.w, case.b, norm_eps=case.norm_eps)
        placed = case.place(backend, case.x, case.w, case.b, z, case.r)
        passed = layer_norm.gradient(*placed, norm_eps=case.norm_eps)
        relevance, books = (
            backend.back(passed.inputs[0]),
            {c: backend.back(a) for c, a in passed.absorbed.items()},
        )
        wanted_books = {cause: [MP.mpf(0)] * len(case.x) for cause in ("norm_bias", "norm_offset")}
        bounds = {
            cause: [exact.real(eta(dtype) * case.lever())] * len(case.x) for cause in wanted_books
        }
        for lead, x, w, b, g in case.rows():
            split = exact.layer_norm_gradient(x, w, b, g, case.e)
            received = [
                a * exact.real(c) for a, c in zip(exact.layer_norm(x, w, b, case.e), g, strict=True)
            ]
            closed(
                split.balance(received, exact.reals(x)),
                magnitude(split) * (1 + exact.real(top(case.x))),
            )
            (c, _, std), off = exact.centered(x, case.e), case.deviation(x)
            hat, wg = (
                [c_i / std for c_i in c],
                [abs(exact.real(w[j]) * exact.real(g[j])) for j in range(case.n)],
            )
            k = 8 + 4 * case.n + case.condition(x)
            for i in range(case.n):
                messages = split.messages[0][i]
                error = k * sum(abs(m) for m in messages)
                error += sum(
                    wg[j] * (off[i] * abs(hat[j]) + abs(hat[i]) * off[j]) for j in range(case.n)
                ) / (case.n * std)
                near(
                    relevance[(*lead, i)],
                    sum(messages),
                    2 * unit * error + exact.real(eta(dtype) * case.lever()),
                )
            for cause, messages in split.absorbed.items():
                wanted_books[cause][lead[0]] += sum(messages)
                bounds[cause][lead[0]] += 2 * k * unit * sum(abs(m) for m in messages)
            bounds["norm_offset"][lead[0]] += (
                4 * unit * sum(wg[j] * (off[j] + k * abs(hat[j])) for j in range(case.n))
            )
        for cause, example in (
            (cause, example) for cause in wanted_books for example in range(len(case.x))
        ):
            got = books[cause][example] if cause in books else 0.0
            near(got, wanted_books[cause][example], bounds[cause][example])

    hold(backend, judge)


# -- activations -----------------------------------------------------------------------------------

ACTIVATIONS = ["gelu", "gelu_tanh", "silu", "quick_gelu", "relu", "tanh"]


def activation_inputs(data: st.DataObject, dtype: str) -> Any:
    """Up to +-90, tails included, and far up: below -90 see the test of the far tail."""
    f = np.finfo(dtype)
    edges = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        float(f.smallest_subnormal),
        -float(f.tiny),
        50.0,
        -30.0,
        -12.0,
        1e30,
    ]
    width = 64 if dtype == "float64" else 32
    numbers = st.one_of(
        st.sampled_from(edges), st.floats(-4, 4, width=width), st.floats(-90, 90, width=width)
    )
    return array(data, dtype, (data.draw(st.integers(1, 2)), size(data)), numbers, [1.0])


def sensitivity(kind: str, x: Fraction) -> tuple[Number, Number]:
    """What a rounded argument does: sizes of x f' and of x (x gate')', in their separate terms.

    With f = x gate(x), f' = gate + x gate'; the argument of every gate is a rounded multiple
    (cubic, for gelu_tanh) of x.
    """
    y = exact.real(x)
    if kind == "tanh":
        return abs(exact.activation(kind, x)) + abs(y) / MP.cosh(y) ** 2, MP.mpf(2)
    gate, derivative = exact.GATE[kind]
    bend = abs(y * y * derivative(y)) if abs(y) < 1000 else MP.mpf(0)
    steep = {"gelu": y * y + 2, "gelu_tanh": 3 * exact._inner(abs(y)) + 2}.get(kind, 2 * abs(y) + 2)
    return abs(y) * gate(y) + bend * 3, gate(y) + (bend / abs(y) * steep if y else 0)


@dtypes
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activation(backend: Backend, dtype: str, kind: str) -> None:
    def judge(data: st.DataObject) -> None:
        x, unit, low = activation_inputs(data, dtype), exact.real(u(dtype)), exact.real(eta(dtype))
        g = array(data, dtype, x.shape, ORDINARY[dtype], [1.0])
        z = backend.back(activation.forward(backend.place(x), kind=kind))
        for index in np.ndindex(*x.shape):
            at = Fraction(float(x[index]))
            bound = 16 * unit * sensitivity(kind, at)[0] + 4 * low * (1 + abs(exact.real(at)))
            near(z[index], exact.activation(kind, at), bound)
        placed = [backend.place(a) for a in (x, z, g)]
        identity, ratio = Expected(1, dtype), Expected(1, dtype)
        for b in range(len(x)):
            identity.add(exact.identity(exactly(g[b])), (b,))
            ratio.add(
                exact.activation_identity_gxi(kind, exactly(x[b]), exactly(g[b]), exactly(z[b])),
                (b,),
            )
        identity.judge(backend, activation.identity(*placed, kind=kind), [x.shape], 0)
        ratio.judge(backend, activation.identity_gxi(*placed, kind=kind), [x.shape], 0, largest(g))

    hold(backend, judge)


@dtypes
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activation_gradient(backend: Backend, dtype: str, kind: str) -> None:
    def judge(data: st.DataObject) -> None:
        x, unit, low = activation_inputs(data, dtype), exact.real(u(dtype)), exact.real(eta(dtype))
        g = array(data, dtype, x.shape, ORDINARY[dtype], [1.0])
        z = quiet(activation.forward, x, kind=kind)
        passed = activation.gradient(*map(backend.place, (x, z, g)), kind=kind)
        relevance, offset = (
            backend.back(passed.inputs[0]),
            backend.back(passed.absorbed["activation_offset"]),
        )
        for b in range(len(x)):
            split = exact.activation_gradient(kind, exactly(x[b]), exactly(g[b]))
            values = [exact.activation(kind, v) for v in exactly(x[b])]
            received = [v * exact.real(h) for v, h in zip(values, exactly(g[b]), strict=True)]
            closed(
                split.balance(received, exact.reals(exactly(x[b]))),
                magnitude(split) * (1 + exact.real(top(x[b]))),
            )
            booked: Number = low * 100
            for i in range(x.shape[1]):
                at, weight = Fraction(float(x[b, i])), abs(exact.real(Fraction(float(g[b, i]))))
                of_z, of_slope = sensitivity(kind, at)
                underflow = low * (1 + weight) * (1 + abs(exact.real(at)))
                near(
                    relevance[b, i],
                    sum(split.messages[0][i]),
                    16 * weight * unit * of_slope + 64 * underflow,
                )
                booked += (
                    32 * weight * unit * (of_z + abs(exact.real(at)) * of_slope)
                    + low * 100 * (1 + abs(exact.real(at))) ** 2
                )
            near(offset[b], sum(split.absorbed["activation_offset"]), booked)

    hold(backend, judge)


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activation_in_the_far_tail(backend: Backend, kind: str) -> None:
    """f(-200) and f(-1e300) are -0 or a number too small to matter; a gate that stops falling at
    -100 makes them grow with x.
    """
    x = np.asarray([[-200.0, -1e6, -1e300]])
    z = backend.back(activation.forward(backend.place(x), kind=kind))
    for i in range(3):
        wanted = exact.activation(kind, Fraction(float(x[0, i])) if i < 2 else Fraction(-(10**6)))
        bound = (
            16 * exact.real(u("float64")) * sensitivity(kind, Fraction(float(x[0, min(i, 1)])))[0]
            + exact.real(eta("float64")) * 200
        )
        near(z[0, i], wanted, bound + abs(wanted) * 1e-12)


@dtypes
def test_erfc(backend: Backend, dtype: str) -> None:
    """The engine's own erfc, without an argument to round: 10 units relative, subnormal results to
    their last bit.
    """

    def judge(data: st.DataObject) -> None:
        x = array(
            data, dtype, (1, 3), st.floats(-30, 30, width=64 if dtype == "float64" else 32), [1.0]
        )
        got = backend.back(arrays.erfc(backend.place(x)))
        for i in range(3):
            wanted = MP.erfc(exact.real(Fraction(float(x[0, i]))))
            near(got[0, i], wanted, 10 * exact.real(u(dtype)) * wanted + 4 * exact.real(eta(dtype)))

    hold(backend, judge)


# -- rotary, pooling, scale, embedding -------------------------------------------------------------


class Rotary:
    """Drawn x (B, H, T, d), cos and sin (1, 1, T, d): any numbers, the rule asks for no circle."""

    def __init__(self, data: st.DataObject, dtype: str) -> None:
        b, h, t, d = size(data, 2), size(data, 2), size(data, 2), 2 * size(data, 2)
        self.x, self.r = array(data, dtype, (b, h, t, d)), array(data, dtype, (b, h, t, d))
        self.cos, self.sin = (
            array(data, dtype, (1, 1, t, d), ORDINARY[dtype], [1.0]) for _ in range(2)
        )
        self.z = quiet(rotary.forward, self.x, cos=self.cos, sin=self.sin)

    def tables(self, backend: Backend) -> dict[str, Any]:
        return {"cos": backend.place(self.cos), "sin": backend.place(self.sin)}

    def rows(self) -> Iterable[tuple[tuple[int, ...], Any, Any, Any, Any, Any]]:
        for lead in np.ndindex(self.x.shape[:-1]):
            tables = (exactly(a[0, 0, lead[-1]]) for a in (self.cos, self.sin))
            yield lead, exactly(self.x[lead]), *tables, exactly(self.z[lead]), exactly(self.r[lead])


@dtypes
def test_rotary(backend: Backend, dtype: str) -> None:
    def judge(data: st.DataObject) -> None:
        case, eps, kind = (
            Rotary(data, dtype),
            data.draw(st.sampled_from(EPS)),
            data.draw(st.sampled_from(KINDS)),
        )
        epsilon, gradient = Expected(1, dtype), Expected(1, dtype)
        forward = backend.back(rotary.forward(backend.place(case.x), **case.tables(backend)))
        for lead, x, cos, sin, z, r in case.rows():
            matrix = exact.rotation(cos, sin)
            for j, wanted in enumerate(exact.linear(x, matrix, None)):
                terms = sum(abs(m * v) for m, v in zip(matrix[j], x, strict=True))
                near(forward[(*lead, j)], wanted, 3 * (u(dtype) * terms + eta(dtype)))
            epsilon.add(exact.rotary_epsilon(x, cos, sin, r, rounded(eps, dtype), kind, z), lead)
            closed(exact.rotary_epsilon(x, cos, sin, r, rounded(eps, dtype), kind).balance(r))
            gradient.add(exact.rotary_gradient(x, cos, sin, r), lead)
        epsilon.in_range(case.cos, case.sin)
        gradient.in_range()
        placed = [backend.place(a) for a in (case.x, case.z, case.r)]
        passed = rotary.epsilon(*placed, **case.tables(backend), eps=eps, stabilizer=kind)
        epsilon.judge(backend, passed, [case.x.shape], 4, largest(case.x, case.cos, case.sin))
        gradient.judge(
            backend,
            rotary.gradient(*placed, **case.tables(backend)),
            [case.x.shape],
            4,
            largest(case.cos, case.sin),
        )

    hold(backend, judge)


def whole(numbers: Iterable[Fraction]) -> bool:
    """Small whole numbers: their sums do not round in any order."""
    return all(n.denominator == 1 and abs(n) < 2**20 for n in numbers)


@dtypes
def test_pooling(backend: Backend, dtype: str) -> None:
    """The rule sums Z itself, so its condition sum |x| / |Z + e| enters k; a Z that is all rounding
    is thrown away.
    """

    def judge(data: st.DataObject) -> None:
        b, t, d = size(data, 2), size(data, 4), size(data, 2)
        x, r = array(data, dtype, (b, t, d)), array(data, dtype, (b, 1, d))
        keep = data.draw(st.lists(st.booleans(), min_size=b * t, max_size=b * t))
        counted = np.asarray(keep, dtype=dtype).reshape(b, t, 1)
        counted[:, 0, 0] = 1
        eps, kind = data.draw(st.sampled_from(EPS)), data.draw(st.sampled_from(KINDS))
        z = quiet(pooling.forward, x, counted=counted)
        fits(dtype, 8 * top(x))
        forward = backend.back(pooling.forward(backend.place(x), counted=backend.place(counted)))
        epsilon, gradient, condition = Expected(1, dtype), Expected(1, dtype), Fraction(0)
        for e, f in np.ndindex(b, d):
            column, m, received = (
                exactly(x[e, :, f]),
                exactly(counted[e, :, 0]),
                Fraction(float(r[e, 0, f])),
            )
            total, terms = (
                sum(a * c for a, c in zip(column, m, strict=True)),
                sum(abs(a * c) for a, c in zip(column, m, strict=True)),
            )
            near(
                forward[e, 0, f], total / sum(m), (t + 2) * (u(dtype) * terms / sum(m) + eta(dtype))
            )
            stabilizer = rounded(eps, dtype)
            if not whole(column):
                off = (t + 2) * u(dtype) * terms
                denominator = total + exact.stabilizer(total, stabilizer, kind)
                assume(off * 8 < abs(total) and off * 8 < abs(denominator))
                condition = max(condition, 2 * (t + 2) * terms / abs(denominator))
            split = exact.pooling_epsilon(column, m, received, stabilizer, kind)
            closed(split.balance([received]))
            epsilon.add(split, (e,), lambda k, entry, e=e, f=f: (e, entry, f))
            gradient.add(
                exact.pooling_gradient(column, m, received),
                (e,),
                lambda k, entry, e=e, f=f: (e, entry, f),
            )
        epsilon.in_range()
        placed, counts = [backend.place(a) for a in (x, z, r)], backend.place(counted)
        passed = pooling.epsilon(*placed, counted=counts, eps=eps, stabilizer=kind)
        epsilon.judge(backend, passed, [x.shape], t, largest(x), lambda where, index: condition)
        gradient.judge(backend, pooling.gradient(*placed, counted=counts), [x.shape], t)

    hold(backend, judge)


@dtypes
def test_scale_and_embedding(backend: Backend, dtype: str) -> None:
    def judge(data: st.DataObject) -> None:
        x, r = array(data, dtype, (2, 3)), array(data, dtype, (2, 3))
        fits(dtype, top(x) * 8, top(r) * 8)
        factor = data.draw(st.sampled_from([0.125, 3.0, -0.7]))
        follow, gradient = Expected(1, dtype), Expected(1, dtype)
        for b in range(2):
            follow.add(exact.identity(exactly(r[b])), (b,))
            gradient.add(exact.scale_gradient(exactly(x[b]), Fraction(factor), exactly(r[b])), (b,))
        placed = [backend.place(a) for a in (x, x, r)]
        follow.judge(backend, scale.pass_through(*placed, factor=factor), [x.shape], 0)
        gradient.judge(backend, scale.gradient(*placed, factor=factor), [x.shape], 0)
        z = backend.back(scale.forward(placed[0], factor=factor))
        for index in np.ndindex(2, 3):
            wanted = Fraction(float(x[index])) * Fraction(factor)
            near(z[index], wanted, 2 * u(dtype) * abs(wanted) + eta(dtype))

    hold(backend, judge)


@dtypes
@pytest.mark.parametrize("role", ["tokens", "position"])
def test_embedding(backend: Backend, dtype: str, role: str) -> None:
    def judge(data: st.DataObject) -> None:
        table = array(data, dtype, (4, 2))
        ids = np.asarray(data.draw(st.lists(st.integers(0, 3), min_size=4, max_size=4))).reshape(
            2, 2
        )
        z = backend.back(embedding.forward(backend.place(table), ids=backend.place(ids), role=role))
        assert all(np.array_equal(z[b, t], table[ids[b, t]]) for b, t in np.ndindex(2, 2))
        r = array(data, dtype, z.shape)
        fits(dtype, 8 * top(z) * top(r), 8 * top(r))
        stop, gradient = Expected(1, dtype), Expected(1, dtype)
        for b, t, d in np.ndindex(*z.shape):
            each = Fraction(float(r[b, t, d]))
            stop.add(exact.embedding_stop([each], role), (b,))
            gradient.add(exact.embedding_stop([Fraction(float(z[b, t, d])) * each], role), (b,))
        placed = [backend.place(a) for a in (table, z, r)]
        stop.judge(backend, embedding.leaf(*placed, ids=backend.place(ids), role=role), [None], 4)
        gradient.judge(
            backend, embedding.leaf_gxi(*placed, ids=backend.place(ids), role=role), [None], 4
        )

    hold(backend, judge)


# -- movement --------------------------------------------------------------------------------------

MOVES = {
    "split_heads": ([(2, 3, 4)], {"heads": 2}, lambda s, h: exact.split_heads(s[0], h["heads"])),
    "split_heads, one head": ([(1, 2, 3)], {"heads": 1}, lambda s, h: exact.split_heads(s[0], 1)),
    "merge_heads": ([(2, 2, 3, 2)], {}, lambda s, h: exact.merge_heads(s[0])),
    "repeat_heads": (
        [(2, 2, 2, 3)],
        {"times": 3},
        lambda s, h: exact.repeat_heads(s[0], h["times"]),
    ),
    "transpose": ([(2, 1, 3, 2)], {}, lambda s, h: exact.transpose(s[0])),
    "slice": ([(2, 2, 5)], {"start": 1, "stop": 4}, lambda s, h: exact.slice_(s[0], 1, 4)),
    "concat, last axis": ([(2, 2, 1), (2, 2, 3)], {"axis": -1}, lambda s, h: exact.concat(s, -1)),
    "concat, positions": (
        [(2, 1, 2), (2, 3, 2), (2, 1, 2)],
        {"axis": -2},
        lambda s, h: exact.concat(s, -2),
    ),
    "rows": ([(2, 3, 2)], {"index": (2, 0)}, lambda s, h: exact.rows(s[0], h["index"])),
    "patches": (
        [(2, 2, 4, 3)],
        {"size": (2, 3)},
        lambda s, h: exact_vision.patches(s[0], h["size"]),
    ),
    "patches, pixels left over": (
        [(1, 1, 5, 4)],
        {"size": (2, 3)},
        lambda s, h: exact_vision.patches(s[0], h["size"]),
    ),
    "reshape": ([(2, 3, 4)], {"shape": (2, 2, 6)}, lambda s, h: exact.reshape(s[0], h["shape"])),
}


def test_every_kind_of_movement_is_here() -> None:
    assert {name.partition(",")[0] for name in MOVES} == set(movement.MOVES)


@dtypes
@pytest.mark.parametrize("name", MOVES)
def test_movement(backend: Backend, dtype: str, name: str) -> None:
    shapes, how, definition = MOVES[name]
    kind = name.partition(",")[0]
    reads = definition(shapes, how)

    def judge(data: st.DataObject) -> None:
        operands = [array(data, dtype, shape) for shape in shapes]
        z = backend.back(movement.forward(*map(backend.place, operands), kind=kind, **how))
        assert set(np.ndindex(*z.shape)) == set(reads)
        assert all(z[k] == operands[n][i] for k, (n, i) in reads.items())
        r = array(data, dtype, z.shape)
        fits(dtype, 8 * top(r))
        relevance = {k: Fraction(float(r[k])) for k in reads}
        split = exact.pass_through(reads, relevance, len(operands))
        closed(split.balance(relevance.values()))
        expected = Expected(len(operands), dtype)
        expected.add(split, (0,), lambda k, entry: entry)
        passed = movement.pass_through(*map(backend.place, (*operands, z, r)), kind=kind, **how)
        expected.judge(backend, passed, [tuple(shape) for shape in shapes], 2)

    hold(backend, judge)


# -- the conservation ledger: the engine's conservation error against the scale it states itself ---


@dtypes
def test_the_gap_of_the_books_is_rounding(backend: Backend, dtype: str) -> None:
    """sum R - sum of shares - absorbed <= k u terms(), with z from the same forward, for rules that
    state their terms.
    """

    def judge(data: st.DataObject) -> None:
        lead, i, o = data.draw(st.sampled_from([(2,), (2, 2)])), size(data, 4), size(data)
        near_one = st.integers(-400, 400).map(lambda n: n / 97)
        x, w, r = (
            array(data, dtype, shape, near_one, [1.0]) for shape in ((*lead, i), (o, i), (*lead, o))
        )
        b = array(data, dtype, (o,), near_one, [1.0]) if data.draw(st.booleans()) else None
        eps, kind = data.draw(st.sampled_from(EPS)), data.draw(st.sampled_from(KINDS))
        z = linear.forward(x, w, b)
        arguments = [None if a is None else backend.place(a) for a in (x, w, b, z, r)]
        for rule, how in (
            (linear.epsilon, {"eps": eps, "stabilizer": kind}),
            (linear.gamma, {}),
            (linear.alpha_beta, {}),
        ):
            passed = rule(*arguments, **how)
            held = backend.back(scale_of(rule, *arguments, **how))
            for e in range(x.shape[0]):
                given_on = sum(Fraction(float(v)) for v in backend.back(passed.inputs[0])[e].flat)
                absorbed = sum(
                    Fraction(float(backend.back(a)[e])) for a in passed.absorbed.values()
                )
                conservation_error = (
                    sum(Fraction(float(v)) for v in r[e].flat) - given_on - absorbed
                )
                scale_ = Fraction(float(held[e])) + 2 * sum(
                    abs(Fraction(float(v))) for v in r[e].flat
                )
                assert abs(conservation_error) <= (8 + i + o) * u(dtype) * scale_ + 1000 * eta(
                    dtype
                )

    hold(backend, judge)


# -- identities that need no net -------------------------------------------------------------------


def arrays_of(backend: Backend, *values: Any) -> list[Any]:
    return [backend.place(np.asarray(v, dtype=np.float64)) for v in values]


@pytest.mark.parametrize("n", [2, 3, 4])
def test_uniform_rule_is_the_shapley_value_of_a_product(backend: Backend, n: int) -> None:
    """With baseline 0 a product exists only when all its factors have come (identity 5)."""
    a = [2.0, -3.0, 0.5, 7.0][:n]
    fair = exact.shapley(
        lambda present: math.prod(map(Fraction, a)) if len(present) == n else Fraction(0), n
    )
    operands, z = (
        arrays_of(backend, *([[v]] for v in a)),
        backend.place(np.asarray([[math.prod(a)]])),
    )
    passed = multiply.uniform(*operands, z, z, constant=(False,) * n)
    for k in range(n):
        near(backend.back(passed.inputs[k])[0, 0], fair[k], 2 * u("float64") * abs(fair[k]))


def test_uniform_matmul_is_the_shapley_value_of_every_entry() -> None:
    a, v = (
        [[Fraction(2), Fraction(-1)], [Fraction(1, 3), Fraction(5)]],
        [[Fraction(4)], [Fraction(7, 2)]],
    )
    o = exact.matmul(a, v)
    split = exact.matmul_uniform(a, v, o, Fraction(0), "none")
    players = [(0, (j, i)) for j in range(2) for i in range(2)] + [(1, (i, 0)) for i in range(2)]

    def value(present: frozenset[int]) -> Fraction:
        here = {players[p] for p in present}
        return sum(
            (
                a[j][i] * v[i][0]
                for j in range(2)
                for i in range(2)
                if (0, (j, i)) in here and (1, (i, 0)) in here
            ),
            Fraction(0),
        )

    assert exact.shapley(value, len(players)) == [split.received(k, entry) for k, entry in players]


def test_order_of_multiplication_gives_a_quarter_or_a_half(backend: Backend) -> None:
    """(Q K^T) V: Q:K:V = 1/4 : 1/4 : 1/2.  Q (K^T V): 1/2 : 1/4 : 1/4  (identity 10)."""
    random = np.random.default_rng(7)
    q, kt, v = (backend.place(random.normal(size=(1, 3, 3))) for _ in range(3))
    free = {"stabilizer": "none"}
    qk, kv = matmul.forward(q, kt), matmul.forward(kt, v)
    z = matmul.forward(qk, v)
    to_qk, to_v = matmul.uniform(qk, v, z, z, **free).inputs
    left = [*matmul.uniform(q, kt, qk, to_qk, **free).inputs, to_v]
    to_q, to_kv = matmul.uniform(q, kv, z, z, **free).inputs
    right = [to_q, *matmul.uniform(kt, v, kv, to_kv, **free).inputs]
    whole_ = float(np.sum(backend.back(z)))
    for relevance, shares in ((left, (0.25, 0.25, 0.5)), (right, (0.5, 0.25, 0.25))):
        for r, wanted in zip(relevance, shares, strict=True):
            got = backend.back(r)
            assert abs(float(np.sum(got)) / whole_ - wanted) <= 1e3 * 2.0**-53 * float(
                np.sum(np.abs(got))
            ) / abs(whole_)


def test_flattened_product_does_not_depend_on_brackets(backend: Backend) -> None:
    """(x1 x2) x3 at (2, 3, 4) gives (6, 6, 12), x1 (x2 x3) gives (12, 6, 6), the flattened product
    (8, 8, 8).
    """
    x1, x2, x3, x12, x23, z = arrays_of(backend, [[2]], [[3]], [[4]], [[6]], [[12]], [[24]])
    two = (False, False)

    def numbers(*relevance: Any) -> list[float]:
        return [float(backend.back(r)[0, 0]) for r in relevance]

    inner, last = multiply.uniform(x12, x3, z, z, constant=two).inputs
    assert numbers(*multiply.uniform(x1, x2, x12, inner, constant=two).inputs, last) == [
        6,
        6,
        12,
    ]
    first, inner = multiply.uniform(x1, x23, z, z, constant=two).inputs
    assert numbers(first, *multiply.uniform(x2, x3, x23, inner, constant=two).inputs) == [
        12,
        6,
        6,
    ]
    assert numbers(*multiply.uniform(x1, x2, x3, z, z, constant=(False,) * 3).inputs) == [
        8,
        8,
        8,
    ]


@pytest.fixture
def layer(backend: Backend) -> tuple[list[Any], list[Any]]:
    """x, w, b, z, r of a linear layer with positive and negative outputs: placed, and as NumPy."""
    random = np.random.default_rng(3)
    x, w, b, r = (random.normal(size=shape) for shape in ((2, 5), (4, 5), (4,), (2, 4)))
    plain = [x, w, b, linear.forward(x, w, b), r]
    return [backend.place(a) for a in plain], plain


def test_gamma_at_zero_takes_the_branch_below(backend: Backend) -> None:
    """z = 1 - 1 = 0: c + g c^- = (1, -1.25) over -0.25  (eq. 24's second case is z <= 0)."""
    x, w, z, r = (
        backend.place(np.array(a)) for a in ([[1.0, -1.0]], [[1.0, 1.0]], [[0.0]], [[1.0]])
    )
    passed = linear.gamma(x, w, None, z, r, gamma=0.25)
    assert backend.back(passed.inputs[0]).tolist() == [[-4.0, 5.0]]
    assert backend.back(passed.absorbed["stabilizer"]).tolist() == [0.0]


def test_gamma_0_is_lrp_0_and_a_large_gamma_the_signed_z_plus(backend: Backend, layer: Any) -> None:
    placed, (x, w, b, z, r) = layer
    at_0 = backend.back(linear.gamma(*placed, gamma=0.0).inputs[0])
    lrp_0 = backend.back(linear.epsilon(*placed, stabilizer="none").inputs[0])
    sizes = np.abs(x) * (np.abs(r / z) @ np.abs(w))
    assert np.all(np.abs(at_0 - lrp_0) <= 32 * 2.0**-53 * sizes)
    c = w[None] * x[:, None, :]
    signed = np.where(z[..., None] > 0, np.maximum(c, 0), np.minimum(c, 0))
    bias = np.where(z > 0, np.maximum(b, 0), np.minimum(b, 0))
    limit = np.sum(signed * (r / (np.sum(signed, axis=-1) + bias))[..., None], axis=1)
    far = backend.back(linear.gamma(*placed, gamma=1e9).inputs[0])
    part = np.sum(np.abs(c) * np.abs(r / (np.sum(signed, axis=-1) + bias))[..., None], axis=1)
    assert np.all(np.abs(far - limit) <= 10e-9 * (np.abs(limit) + part))


def test_alpha_beta_creates_relevance_and_books_it(backend: Backend) -> None:
    """Without a negative contribution alpha 2, beta 1 hands on 2 R; the -R that has no receiver is
    recorded.
    """
    x, w, z, r = arrays_of(backend, [[1, 2]], [[3, 1], [1, 1]], [[5, 3]], [[4, 6]])
    passed = linear.alpha_beta(x, w, None, z, r, alpha=2.0, beta=1.0)
    assert abs(float(np.sum(backend.back(passed.inputs[0]))) - 20) <= 1e-14
    assert float(backend.back(passed.absorbed["stabilizer"])[0]) == -10


def test_taylor_of_norms_at_x_passes_what_the_norms_eps_leaves(backend: Backend) -> None:
    """RMSNorm passes 1 - |x|^2 / (|x|^2 + N e); LayerNorm absorbs Var / (Var + e), without a bias
    (identity 12).
    """
    random = np.random.default_rng(5)
    x, w, g = random.normal(size=(2, 6)), random.normal(size=(6,)), random.normal(size=(2, 6))
    e = 0.25
    z = rms_norm.forward(x, w, norm_eps=e)
    passed = rms_norm.gradient(*arrays_of(backend, x, w, z, g), norm_eps=e)
    received, square = np.sum(z * g, axis=-1), np.sum(x * x, axis=-1)
    kept = np.sum(x * backend.back(passed.inputs[0]), axis=-1)
    assert np.all(
        np.abs(kept - received * (1 - square / (square + 6 * e)))
        <= 1e-14 * np.sum(np.abs(z * g), axis=-1)
    )
    z = layer_norm.forward(x, w, None, norm_eps=e)
    full = layer_norm.gradient(
        arrays_of(backend, x)[0], backend.place(w), None, *arrays_of(backend, z, g), norm_eps=e
    )
    received, variance = np.sum(z * g, axis=-1), np.var(x, axis=-1)
    absorbed = backend.back(full.absorbed["norm_offset"])
    assert np.all(
        np.abs(absorbed - received * variance / (variance + e))
        <= 1e-14 * np.sum(np.abs(z * g), axis=-1)
    )


@pytest.mark.parametrize("eps", [1e-4, 1e-8, 1e-12])
def test_relevance_and_gradient_forms_agree_as_eps_vanishes(
    backend: Backend, layer: Any, eps: float
) -> None:
    """R = x g / (1 + eps/|z|) message by message: they differ by at most eps/|z| of each."""
    placed, (x, w, _, z, r) = layer
    propagated = placed[:4] + [backend.place(r / z)]
    relevance = backend.back(linear.epsilon(*placed, eps=eps).inputs[0])
    gradient = x * backend.back(linear.gradient(*propagated).inputs[0])
    messages = np.abs(w[None] * x[:, None, :] * (r / z)[..., None])
    bound = np.sum(messages * (eps / np.abs(z) + 64 * 2.0**-53)[..., None], axis=1)
    assert np.all(np.abs(relevance - gradient) <= bound)


def test_both_forms_of_every_bilinear_and_norm_rule_agree(backend: Backend) -> None:
    random = np.random.default_rng(11)
    a, v, r = (random.normal(size=(1, 3, 3)) for _ in range(3))
    z, free = a @ v, {"stabilizer": "none"}
    sizes = 1e-12 * (1 + np.abs(a)) * (np.abs(r / z) @ np.abs(v.swapaxes(-1, -2)))
    relevance = matmul.uniform(*arrays_of(backend, a, v, z, r), **free).inputs
    gradient = matmul.uniform_gxi(*arrays_of(backend, a, v, z, r / z)).inputs
    assert np.all(np.abs(backend.back(relevance[0]) - a * backend.back(gradient[0])) <= sizes)
    p = softmax.forward(a)
    taylor = backend.back(softmax.taylor(*arrays_of(backend, a, p, r)).inputs[0])
    true = a * backend.back(softmax.gradient(*arrays_of(backend, a, p, r / p)).inputs[0])
    assert np.all(
        np.abs(taylor - true) <= 1e-13 * (1 + np.abs(a)) * np.sum(np.abs(r), axis=-1, keepdims=True)
    )
    w, b = random.normal(size=(3,)), random.normal(size=(3,))
    z = layer_norm.forward(a, w, b, norm_eps=1e-5)
    prose = backend.back(
        layer_norm.epsilon(*arrays_of(backend, a, w, b, z, r), norm_eps=1e-5, **free).inputs[0]
    )
    frozen = a * backend.back(
        layer_norm.epsilon_gxi(*arrays_of(backend, a, w, b, z, r / z), norm_eps=1e-5).inputs[0]
    )
    assert np.all(
        np.abs(prose - frozen)
        <= 1e-12 * (1 + np.abs(a)) * np.sum(np.abs(w * r / z), axis=-1, keepdims=True)
    )


def test_examples_of_a_batch_do_not_meet(backend: Backend) -> None:
    """Each example's relevance and ledger are, bit for bit in NumPy, those it has alone (here: to
    the rounding of a sum).
    """
    random = np.random.default_rng(13)
    x, w, b, r = (random.normal(size=s) for s in ((3, 2, 4), (4, 4), (4,), (3, 2, 4)))
    z, p = linear.forward(x, w, b), softmax.forward(x)
    rules: list[tuple[Callable[..., RuleOutput], list[Any], dict[str, Any]]] = [
        (linear.epsilon, [x, w, b, z, r], {}),
        (linear.gamma, [x, w, b, z, r], {}),
        (linear.alpha_beta, [x, w, b, z, r], {}),
        (add.epsilon, [x, z, x + z, r], {}),
        (multiply.uniform, [x, z, x * z, r], {"constant": (False, False)}),
        (softmax.taylor, [x, p, r], {}),
        (layer_norm.epsilon, [x, w[0], b, z, r], {"norm_eps": 1e-5}),
    ]
    for rule, arguments, options in rules:
        together = rule(*arrays_of(backend, *arguments), **options)
        for e in range(3):
            alone = rule(
                *(backend.place(a[e : e + 1] if a.ndim == 3 else a) for a in arguments), **options
            )
            for one, all_ in zip(alone.inputs, together.inputs, strict=True):
                assert one is None or np.allclose(
                    backend.back(one)[0], backend.back(all_)[e], rtol=1e-13, atol=1e-13
                )
            for cause in together.absorbed:
                assert (
                    abs(
                        backend.back(alone.absorbed[cause])[0]
                        - backend.back(together.absorbed[cause])[e]
                    )
                    <= 1e-12
                )


def test_mpmath_agrees_on_what_the_definitions_use() -> None:
    """One check of the checker: the derivatives written in exact.py against mpmath's own numerical
    ones.
    """
    for kind in ACTIVATIONS:
        for x in (Fraction(1, 3), Fraction(-2), Fraction(5, 2)):
            numeric = MP.diff(lambda t, kind=kind: exact.activation(kind, t), exact.real(x))
            assert abs(numeric - exact.slope(kind, x)) < 1e-40
