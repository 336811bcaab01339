"""How far the engine's rules are from their exact definitions, in units of u times condition:

    python -m refl.verification.quality.engine_error [--cases N] [--json FILE] [--markdown FILE]
    [--only OPERATION ...]

A relevance is a sum of messages, R_i = sum_j R_(i<-j) (exact.py writes each of them down), and so
is an absorbed entry. The engine forms the sum in floating point of unit roundoff u; its error is
counted in units of

    u condition_i,     condition_i = sum_j |R_(i<-j)| (1 + kappa_j) + d_i

kappa_j is the condition of a denominator that the rule itself sums up, sum |terms| / |sum|, where
the terms may cancel: Z + e of pooling, and the std^2 of LayerNorm, whose terms are those of x -
mean(x) squared. Elsewhere it is 0: z is handed to the rule, and the exact side divides by the same
rounded z; terms of one sign (gamma, z+, alpha-beta, w-square, z-box, renormalization) have the
condition 1, which k below covers. d_i is what a difference costs that the rule forms inside a
message: in LayerNorm's full Jacobian x_i - mean(x) written out in its terms, in an activation's
derivative a rounded argument (|f'| by its parts, each times the slope of what is rounded in it).

The bound.     error_i <= k u condition_i,     k = 8 + (terms of the longest inner sums) + (number
                                               of messages)

Every factor, product, quotient and addition of a message costs a relative u, whatever the order of
summation: 8 are the factors, the denominator, the rounding of eps and the last product; the rest
are additions. (Two rules have longer chains inside a message, counted where they stand: LayerNorm's
full Jacobian 12 N + 40, an activation's derivative 24.) An entry of condition 0 must be exactly 0.
`share of bound` is the largest error_i / (k u condition_i): below 1 on every line, or this script
exits with 1.

Cases are drawn by Hypothesis: small whole numbers, so that sums cancel and values tie, zeros of
both signs, ordinary and extreme magnitudes, length 1, masked entries and rows, every stabilizer,
eps from 1e-12 to 1e-2. On whole numbers little rounds, which is why many medians are near 0; the
worst is what counts. One case is one call of a rule on a small array; several rules are tried on
one draw. Drawn again are those in which a number that the definition itself asks for leaves the
range of the format, or a product underflows in a sum that is divided by. An entry whose messages
are so small that underflow (eta, the smallest subnormal, times the factors still to come) may cost
more than 1/16 of its unit is held to the bound with eta's share added, and left out of median and
worst.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import sys
import zlib
from array import array as Doubles
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from fractions import Fraction
from itertools import product
from typing import Any

import hypothesis
import mpmath
import numpy as np
from hypothesis import HealthCheck, Phase, given, reject, seed, settings
from hypothesis import strategies as st

import refl
from refl.arrays import Array
from refl.io.files import atomic_write
from refl.rules import (
    activation,
    add,
    combine,
    gather,
    layer_norm,
    linear,
    matmul,
    movement,
    multiply,
    pooling,
    renormalize,
    rms_norm,
    rotary,
    scale,
    softmax,
    top_k,
)
from refl.rules.conservation import RuleOutput
from refl.rules.operations import rules_in
from refl.verification.definitions import exact, exact_experts, exact_vision
from refl.verification.definitions.exact import MP, Index, Number, Split, real

DTYPES = ("float64", "float32")
EPS, KINDS = (1e-12, 1e-9, 1e-6, 1e-2), ("sign", "plain", "none")
STOPS = ("embedding", "learned", "source")
"""Operations where the way ends: nothing is computed but a sum."""

Rule = Callable[..., RuleOutput]
Draw = Callable[[Any], Any]
Where = tuple[Any, Any]
"""(operand, index) or (cause, example)"""
Place = Callable[[int, Any], Index]
Trial = Callable[[], tuple[RuleOutput, "Wanted"]]


class OutOfRange(Exception):
    """A number the definition asks for is none of the format's."""


def name(rule: Rule) -> str:
    """`linear.epsilon`: file and function."""
    return f"{rule.__module__.rpartition('.')[2]}.{rule.__name__}"


def rules() -> dict[str, str]:
    """Every rule that computes something -> the names composites call it by."""
    found: dict[str, dict[str, list[str]]] = {}
    for table, form in (
        (rules_in("relevance"), "relevance"),
        (rules_in("gradient_x_input"), "gradient"),
    ):
        for operation, known in table.items():
            for called, rule in known.items():
                if operation not in STOPS:
                    found.setdefault(name(rule), {}).setdefault(form, []).append(called)
    return {
        rule: "; ".join(f"{form}: {', '.join(c)}" for form, c in forms.items())
        for rule, forms in sorted(found.items())
    }


# -- drawing ---------------------------------------------------------------------------------------


def _numbers(dtype: str) -> st.SearchStrategy[float]:
    f, far = np.finfo(dtype), 1e300 if dtype == "float64" else 1e30
    whole = [0.0, -0.0, 1.0, -1.0, 1.0, -1.0, 2.0, -2.0, 3.0, 0.5]
    rare = [
        float(f.smallest_subnormal),
        -float(f.smallest_subnormal),
        float(f.tiny),
        1 / far,
        -1 / far,
        far,
        1e-7,
        -1e-7,
    ]
    ordinary = st.floats(-4, 4, width=_width(dtype))
    return st.one_of(st.sampled_from(whole), ordinary, ordinary, st.sampled_from(whole * 2 + rare))


def _width(dtype: str) -> Any:
    return 64 if dtype == "float64" else 32


NUMBERS = {dtype: _numbers(dtype) for dtype in DTYPES}
ORDINARY = {
    d: st.one_of(st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0]), st.floats(-4, 4, width=_width(d)))
    for d in DTYPES
}
POSITIVE = {
    d: st.one_of(
        st.sampled_from([0.125, 0.25, 0.5, 1.0]), st.floats(0.015625, 1.0, width=_width(d))
    )
    for d in DTYPES
}


def array(
    draw: Draw, dtype: str, shape: Index, numbers: Any = None, scales: Sequence[float] | None = None
) -> Array:
    """Drawn numbers, as a whole now and then far up or down the range (by a power of two: ties stay
    ties).
    """
    n, far = math.prod(shape), 2.0**990 if dtype == "float64" else 2.0**99
    values = draw(st.lists(NUMBERS[dtype] if numbers is None else numbers, min_size=n, max_size=n))
    factor = draw(st.sampled_from(scales or [1.0, 1.0, 1.0, 1.0, 1 / far, far]))
    return finite(
        (np.asarray(values, dtype=dtype) * np.asarray(factor, dtype=dtype)).reshape(shape)
    )


def finite(z: Array) -> Array:
    if not np.all(np.isfinite(z)):
        reject()
    return z


def size(draw: Draw, most: int = 3) -> int:
    return int(draw(st.integers(1, most)))


def one_of(draw: Draw, choices: Sequence[Any]) -> Any:
    return draw(st.sampled_from(choices))


# -- numbers ---------------------------------------------------------------------------------------


def exactly(a: Any) -> Any:
    """Nested lists of Fractions; each is the value of its float."""
    return Fraction(float(a)) if a.ndim == 0 else [exactly(each) for each in a]


def rounded(value: float, dtype: str) -> Fraction:
    """An option as the format holds it."""
    return Fraction(float(np.asarray(value, dtype=dtype)))


U = {d: Fraction(float(np.finfo(d).eps)) / 2 for d in DTYPES}
ETA = {d: Fraction(float(np.finfo(d).smallest_subnormal)) for d in DTYPES}
LIMIT = {d: Fraction(float(np.finfo(d).max)) / 64 for d in DTYPES}
LOW = {d: Fraction(float(np.finfo(d).tiny)) * 1024 for d in DTYPES}


def top(a: Any) -> Fraction:
    return Fraction(float(np.max(np.abs(a), initial=0)))


def lever(*arrays: Any) -> Fraction:
    """1 + the largest magnitude, multiplied over the arrays: the factors an underflow may still
    meet.
    """
    return math.prod((1 + top(a) for a in arrays if a is not None), start=Fraction(1))


def fits(dtype: str, *numbers: Number) -> None:
    if any(
        abs(n) >= (LIMIT[dtype] if isinstance(n, (Fraction, int)) else real(LIMIT[dtype]))
        for n in numbers
    ):
        raise OutOfRange


def no_underflow(dtype: str, products: Iterable[Number]) -> None:
    if any(p != 0 and abs(p) < LOW[dtype] for p in products):
        raise OutOfRange


# -- what the definitions say ----------------------------------------------------------------------


class Wanted:
    """The exact side of one call: for each entry the sum of its messages, its condition, and how
    many messages there are.

    terms      of the longest inner sums, for k
    factors    the largest an underflow may still be multiplied by
    """

    def __init__(self, dtype: str, terms: int, factors: Number = 1) -> None:
        self.dtype, self.rounding_scale = dtype, terms
        self.under = real(ETA[dtype] * factors * 4 * (terms + 4))
        self.entries: dict[Where, tuple[Number, Number, int]] = {}
        self.shares: list[Number] = []

    def add(
        self,
        split: Split,
        lead: Index,
        place: Place | None = None,
        kappa: Number = 0,
        books: Sequence[str] = (),
    ) -> Wanted:
        """Enter one row (or matrix) that stands at `lead`; `place` maps an entry of an operand to
        its index in the array. kappa is that of the relevance, and of the absorbed entries named in
        `ledger`."""
        for k, messages in enumerate(split.messages):
            for entry, each in messages.items():
                index = (
                    place(k, entry)
                    if place
                    else (*lead, *(entry if isinstance(entry, tuple) else (entry,)))
                )
                self._enter((k, index), each, kappa)
        for cause, each in split.absorbed.items():
            self._enter((cause, lead[0]), each, kappa if cause in books else 0)
        self.shares += split.shares
        return self

    def _enter(self, where: Where, messages: list[Number], kappa: Number) -> None:
        wanted, condition, count = self.entries.get(where, (0, 0, 0))
        size_ = sum(abs(m) for m in messages)
        self.entries[where] = (
            wanted + sum(messages),
            condition + size_ * (1 + kappa),
            count + len(messages),
        )

    def costs(self, where: Where, amount: Number) -> None:
        """d_i"""
        wanted, condition, count = self.entries[where]
        self.entries[where] = wanted, condition + amount, count

    def in_range(self, *factors: Any) -> Wanted:
        """Raises OutOfRange where a share, a share times its factors but one, or a sum of
        |messages| overflows.
        """
        s = max((abs(each) for each in self.shares), default=Fraction(0))
        scaled = [
            16 * s * (top(a) if isinstance(s, (Fraction, int)) else real(top(a)))
            for a in factors
            if a is not None
        ]
        fits(self.dtype, s, *scaled, *(condition for _, condition, _ in self.entries.values()))
        return self


class Tally:
    """The errors of one rule in one dtype."""

    def __init__(self) -> None:
        self.cases = self.small = self.beyond = 0
        self.relevance, self.absorbed = Doubles("d"), Doubles("d")
        self.of_bound = 0.0

    def judge(self, passed: RuleOutput, wanted: Wanted) -> None:
        self.cases += 1
        left = set(wanted.entries)
        for where, got in _entries(passed):
            left.discard(where)
            self._one(
                float(got), *wanted.entries.get(where, (0, 0, 0)), wanted, isinstance(where[0], int)
            )
        for where in left:  # what the engine left out
            self._one(0.0, *wanted.entries[where], wanted, isinstance(where[0], int))

    def _one(
        self,
        got: float,
        value: Number,
        condition: Number,
        messages: int,
        wanted: Wanted,
        is_relevance: bool,
    ) -> None:
        if not math.isfinite(got) or condition == 0:
            self.beyond += got != 0
            return
        error = abs(real(Fraction(got)) - real(value))
        unit, k = real(U[wanted.dtype]) * real(condition), 8 + wanted.rounding_scale + messages
        self.beyond += error > k * unit + wanted.under
        if 16 * wanted.under > unit:
            self.small += 1
            return
        ratio = float(error / unit)
        self.of_bound = max(self.of_bound, ratio / k)
        (self.relevance if is_relevance else self.absorbed).append(ratio)

    def row(self) -> dict[str, Any]:
        return {
            "cases": self.cases,
            "entries": len(self.relevance) + len(self.absorbed),
            "relevance": _middle_and_worst(self.relevance),
            "absorbed": _middle_and_worst(self.absorbed),
            "worst_of_bound": self.of_bound,
            "left_out_for_underflow": self.small,
            "beyond_the_bound": self.beyond,
        }


def _middle_and_worst(ratios: Doubles[float]) -> list[float] | None:
    return [statistics.median(ratios), max(ratios)] if ratios else None


def _entries(passed: RuleOutput) -> Iterator[tuple[Where, Any]]:
    for k, given_on in enumerate(passed.inputs):
        if given_on is not None:
            yield from (((k, index), given_on[index]) for index in np.ndindex(*given_on.shape))
    for cause, amount in passed.absorbed.items():
        yield from (((cause, b), amount[b]) for b in range(len(amount)))


# -- linear ----------------------------------------------------------------------------------------

Trials = dict[Rule, Trial]


class Linear:
    """x (lead, I), w (O, I), b (O,) or None, r (lead, O), z from the engine's forward."""

    def __init__(self, draw: Draw, dtype: str, x: Array | None = None) -> None:
        lead = one_of(draw, [(1,), (1,), (2,), (1, 2)]) if x is None else x.shape[:-1]
        self.dtype, self.o = dtype, size(draw)
        self.x = array(draw, dtype, (*lead, size(draw, 4))) if x is None else x
        self.i = self.x.shape[-1]
        self.w = array(draw, dtype, (self.o, self.i))
        self.b = array(draw, dtype, (self.o,)) if draw(st.booleans()) else None
        self.r = array(draw, dtype, (*lead, self.o))
        self.z = finite(linear.forward(self.x, self.w, self.b))
        self.arrays = (self.x, self.w, self.b, self.z, self.r)

    def wanted(self, split: Callable[..., Split], terms: int = 0, *factors: Any) -> Wanted:
        """split(x, w, b, z, r) of every row."""
        wanted = Wanted(
            self.dtype,
            terms or self.i + self.o + 1,
            lever(*(factors or (self.x, self.w, self.b))) * self.i,
        )
        w, b = exactly(self.w), None if self.b is None else exactly(self.b)
        for lead in np.ndindex(*self.x.shape[:-1]):
            wanted.add(
                split(exactly(self.x[lead]), w, b, exactly(self.z[lead]), exactly(self.r[lead])),
                lead,
            )
        return wanted

    def products(self) -> list[Number]:
        found = [] if self.b is None else list(exactly(self.b))
        w = exactly(self.w)
        return found + [
            each * v
            for row in w
            for i, each in enumerate(row)
            for v in exactly(self.x[..., i].ravel())
        ]


def linear_trials(draw: Draw, dtype: str) -> Trials:
    case, eps, kind, small = (
        Linear(draw, dtype),
        one_of(draw, EPS),
        one_of(draw, KINDS),
        one_of(draw, [0.0, 0.0, *EPS]),
    )
    gamma, (alpha, beta) = (
        one_of(draw, [0.0, 0.05, 0.25, 1.0, 100.0]),
        one_of(draw, [(2.0, 1.0), (1.5, 0.5)]),
    )
    e, e_small, g = rounded(eps, dtype), rounded(small, dtype), rounded(gamma, dtype)
    factors = case.x, case.w, case.b

    def epsilon() -> tuple[RuleOutput, Wanted]:
        wanted = case.wanted(
            lambda x, w, b, z, r: exact.linear_epsilon(x, w, b, r, e, kind, z)
        ).in_range(*factors)
        return linear.epsilon(*case.arrays, eps=eps, stabilizer=kind), wanted

    def by_gamma() -> tuple[RuleOutput, Wanted]:
        no_underflow(dtype, case.products())
        wanted = case.wanted(
            lambda x, w, b, z, r: exact.linear_gamma(x, w, b, r, g, e_small, z)
        ).in_range(*factors)
        wanted.under *= 1 + real(g)  # a share that underflows is amplified
        return linear.gamma(*case.arrays, gamma=gamma, eps=small), wanted

    def by_sign(a: float, b_: float) -> Wanted:
        no_underflow(dtype, case.products())
        a_, c = Fraction(a), Fraction(b_)
        return case.wanted(
            lambda x, w, b, z, r: exact.linear_alpha_beta(x, w, b, r, a_, c, e_small)
        ).in_range(*factors)

    def square() -> tuple[RuleOutput, Wanted]:
        squares = [each * each for row in exactly(case.w) for each in row]
        no_underflow(dtype, squares)
        fits(dtype, *squares)
        wanted = case.wanted(
            lambda x, w, b, z, r: exact.linear_w_square(x, w, r), 0, case.w, case.w
        ).in_range(case.w * case.w)
        return linear.w_square(*case.arrays), wanted

    def gradient() -> tuple[RuleOutput, Wanted]:
        return linear.gradient(*case.arrays), case.wanted(
            lambda x, w, b, z, g: exact.linear_gradient(x, w, b, g)
        ).in_range()

    return {
        linear.epsilon: epsilon,
        linear.gamma: by_gamma,
        linear.z_plus: lambda: (linear.z_plus(*case.arrays, eps=small), by_sign(1.0, 0.0)),
        linear.alpha_beta: lambda: (
            linear.alpha_beta(*case.arrays, alpha=alpha, beta=beta, eps=small),
            by_sign(alpha, beta),
        ),
        linear.flat: lambda: (
            linear.flat(*case.arrays),
            case.wanted(lambda x, w, b, z, r: exact.linear_flat(x, w, r)).in_range(),
        ),
        linear.w_square: square,
        linear.gradient: gradient,
    }


def z_box_trials(draw: Draw, dtype: str) -> Trials:
    """Inputs in a drawn box; now and then on its edge, and some of its edges are no wider than a
    point.
    """
    i = size(draw, 4)
    ends = [array(draw, dtype, (i,), scales=[1.0]) for _ in range(2)]
    low, high = np.minimum(*ends), np.maximum(*ends)
    case = Linear(
        draw,
        dtype,
        np.clip(array(draw, dtype, (*one_of(draw, [(1,), (2,)]), i), scales=[1.0]), low, high),
    )

    def z_box() -> tuple[RuleOutput, Wanted]:
        up, down = exactly(case.x - low), exactly(case.x - high)
        parts = [
            w * v
            for each in (*up, *down)
            for row in exactly(case.w)
            for w, v in zip(row, each, strict=True)
        ]
        no_underflow(dtype, parts)
        fits(dtype, sum(map(abs, parts)))
        bounds = exactly(low), exactly(high)
        terms, factors = 2 * (case.i + case.o + 1) + 4, (case.x, low, high, case.w)
        wanted = case.wanted(
            lambda x, w, b, z, r: exact_vision.linear_z_box(x, w, r, *bounds), terms, *factors
        )
        return linear.z_box(
            *case.arrays, low=tuple(map(float, low)), high=tuple(map(float, high))
        ), wanted.in_range(*factors)

    return {linear.z_box: z_box}


# -- add, multiply, matmul -------------------------------------------------------------------------

SHAPES: list[tuple[Index, ...]] = [
    ((1,), (1,), (1,)),
    ((2, 3), (2, 3), (2, 3)),
    ((2, 3), (2, 1), (2, 3)),
    ((2, 1), (2, 3), (2, 3)),
    ((2, 1, 2), (1, 1, 2), (2, 1, 1)),
    ((1, 1, 2), (1, 3, 2), (1, 3, 1)),
    ((2, 1, 2), (1, 2), (2, 1, 2)),
]
"""Of the operands of a product; some are copied along an axis, and the first axis counts
examples.
"""


def source(shape: Index, index: Index) -> Index:
    """Where in an operand of this shape the entry stands that is copied to `index` of the
    result.
    """
    return tuple(
        0 if n == 1 else i for n, i in zip(shape, index[len(index) - len(shape) :], strict=True)
    )


def elementwise(
    wanted: Wanted, operands: Sequence[Any], extra: Sequence[Any], split: Callable[..., Split]
) -> Wanted:
    """split(operands' values, extra's values), element by element, so that copies of an entry
    meet.
    """
    for index in np.ndindex(*extra[-1].shape):
        values = [[Fraction(float(a[source(a.shape, index)]))] for a in (*operands, *extra)]
        at = [source(operand.shape, index) for operand in operands]
        wanted.add(split(*values), index, lambda k, _, at=at: at[k])  # type: ignore[misc]
    return wanted


def add_trials(draw: Draw, dtype: str) -> Trials:
    shapes, eps, kind = one_of(draw, SHAPES), one_of(draw, EPS), one_of(draw, KINDS)
    a, b = (array(draw, dtype, shape) for shape in shapes[:2])
    z = finite(add.forward(a, b))
    r, e = array(draw, dtype, z.shape), rounded(eps, dtype)

    def epsilon() -> tuple[RuleOutput, Wanted]:
        wanted = Wanted(dtype, 4, lever(a, b))
        elementwise(
            wanted, (a, b), (z, r), lambda a, b, z, r: exact.add_epsilon(a, b, r, e, kind, z)
        )
        return add.epsilon(a, b, z, r, eps=eps, stabilizer=kind), wanted.in_range()

    def gradient() -> tuple[RuleOutput, Wanted]:
        return add.gradient(a, b, z, r), elementwise(
            Wanted(dtype, 2), (a, b), (r,), exact.add_gradient
        ).in_range()

    return {add.epsilon: epsilon, add.gradient: gradient}


def multiply_trials(draw: Draw, dtype: str) -> Trials:
    """1 to 3 operands, some constant (never all); `second` where there are two."""
    n = one_of(draw, [1, 2, 2, 3])
    operands = [array(draw, dtype, shape) for shape in one_of(draw, SHAPES)[:n]]
    flags = draw(st.lists(st.booleans(), min_size=n, max_size=n))
    constant = tuple(flags if not all(flags) else [False] * n)
    z = finite(multiply.forward(*operands, constant=constant))
    r = array(draw, dtype, z.shape)

    def trial(
        rule: Rule, split: Callable[..., Split], constant: tuple[bool, ...] = constant
    ) -> Trial:
        def judge() -> tuple[RuleOutput, Wanted]:
            fits(
                dtype,
                math.prod((max(top(a), Fraction(1)) for a in (*operands, r)), start=Fraction(8)),
            )
            wanted = elementwise(Wanted(dtype, 2 * n, lever(*operands, r)), operands, (r,), split)
            return rule(*operands, z, r, constant=constant), wanted.in_range()

        return judge

    trials: Trials = {
        multiply.uniform: trial(
            multiply.uniform, lambda *a: exact.multiply_uniform(a[:n], constant, a[n])
        ),
        multiply.uniform_gxi: trial(
            multiply.uniform_gxi, lambda *a: exact.multiply_uniform_gxi(a[:n], constant, a[n])
        ),
        multiply.gradient: trial(
            multiply.gradient, lambda *a: exact.multiply_gradient(a[:n], constant, a[n])
        ),
    }
    if n == 2:
        both = (False, False)
        trials[multiply.second] = trial(multiply.second, exact.multiply_second, both)
        trials[multiply.second_gxi] = trial(multiply.second_gxi, exact.multiply_second_gxi, both)
    return trials


def matmul_trials(draw: Draw, dtype: str) -> Trials:
    lead, j, i, p = one_of(draw, [(1,), (1,), (2,), (1, 2)]), size(draw), size(draw), size(draw)
    a, v = array(draw, dtype, (*lead, j, i)), array(draw, dtype, (*lead, i, p))
    z, r = finite(matmul.forward(a, v)), array(draw, dtype, (*lead, j, p))
    eps, kind, denominator = (
        one_of(draw, EPS),
        one_of(draw, KINDS),
        one_of(draw, matmul.DENOMINATORS),
    )
    e, factors = rounded(eps, dtype), lever(a, v) * i

    def wanted(split: Callable[..., Split], more: Fraction) -> Wanted:
        fits(dtype, top(z), top(r))
        whole = Wanted(dtype, i + j * p, factors * more)
        for at in np.ndindex(*lead):
            whole.add(split(*(exactly(x[at]) for x in (a, v, z, r))), at)
        return whole

    def relevance(split: Callable[..., Split]) -> Wanted:
        halved = wanted(split, Fraction(1)).in_range(
            a, v
        )  # V/2 may underflow before it meets A^T s
        halved.under += real(
            ETA[dtype] * max((abs(s) for s in halved.shares), default=Fraction(0)) * top(a) * 64
        )
        return halved

    def uniform() -> tuple[RuleOutput, Wanted]:
        passed = matmul.uniform(a, v, z, r, eps=eps, stabilizer=kind, denominator=denominator)
        return passed, relevance(
            lambda a, v, z, r: exact.matmul_uniform(a, v, r, e, kind, denominator, z)
        )

    def second() -> tuple[RuleOutput, Wanted]:
        passed = matmul.second(a, v, z, r, eps=eps, stabilizer=kind)
        return passed, relevance(lambda a, v, z, r: exact.matmul_second(a, v, r, e, kind, z))

    def gradient(rule: Rule, to_a: Number, to_v: Number) -> Trial:
        def judge() -> tuple[RuleOutput, Wanted]:
            fits(dtype, 16 * top(z) * top(r))
            split = wanted(lambda a, v, z, g: exact.matmul_gradient(a, v, g, to_a, to_v), lever(r))
            return rule(a, v, z, r), split.in_range()

        return judge

    half = Fraction(1, 2)
    return {
        matmul.uniform: uniform,
        matmul.second: second,
        matmul.uniform_gxi: gradient(matmul.uniform_gxi, half, half),
        matmul.second_gxi: gradient(matmul.second_gxi, 0, 1),
        matmul.gradient: gradient(matmul.gradient, 1, 1),
    }


# -- softmax ---------------------------------------------------------------------------------------


class Softmax:
    """Logits (B, [H,] J, I) with rows in part or wholly masked, by a boolean mask, -inf, or
    finfo.min; p from the engine.
    """

    def __init__(self, draw: Draw, dtype: str) -> None:
        shape = (*one_of(draw, [(1, 1), (1, 1), (2, 2), (1, 1, 2)]), size(draw, 4))
        scales, form = (
            [1.0, 1.0, 1.0, 8.0, 2.0**12, 2.0**-99],
            one_of(draw, ("none", "boolean", "-inf", "finfo.min")),
        )
        hidden = draw(st.lists(st.booleans(), min_size=math.prod(shape), max_size=math.prod(shape)))
        self.x = array(draw, dtype, shape, ORDINARY[dtype], scales)
        self.visible = (
            np.ones(shape, dtype=bool) if form == "none" else ~np.asarray(hidden).reshape(shape)
        )
        self.mask = self.visible if form == "boolean" else None
        if form == "-inf":
            self.x[~self.visible] = -np.inf
        if form == "finfo.min":
            self.x[~self.visible] = np.finfo(dtype).min * np.asarray(
                one_of(draw, [1.0, 0.75]), dtype=dtype
            )
        self.dtype, self.n = dtype, shape[-1]
        self.r = array(draw, dtype, shape, None, [1.0, 1.0, 2.0**-99])
        self.p = finite(softmax.forward(self.x, mask=self.mask))

    def rows(self) -> Iterator[tuple[Index, Any, Any, Any, list[bool]]]:
        for lead in np.ndindex(*self.x.shape[:-1]):
            seen = [bool(v) for v in self.visible[lead]]
            x = [
                Fraction(float(v)) if s else Fraction(0)
                for v, s in zip(self.x[lead], seen, strict=True)
            ]
            yield lead, x, exactly(self.p[lead]), exactly(self.r[lead]), seen

    def trial(self, rule: Rule, split: Callable[..., Split]) -> Trial:
        """split(x, p, r, seen) of every row."""

        def judge() -> tuple[RuleOutput, Wanted]:
            fits(self.dtype, top(self.r) * 2**20)
            wanted = Wanted(
                self.dtype, 3 * self.n + 4, (1 + top(self.x[self.visible])) * lever(self.r) * 4
            )
            for lead, *row in self.rows():
                wanted.add(split(*row), lead)
            return rule(self.x, self.p, self.r, mask=self.mask), wanted

        return judge

    def z_plus(self) -> tuple[RuleOutput, Wanted]:
        for _, x, p, _, seen in self.rows():
            own = [
                x[i] * ((1 if i == j else 0) - p[i])
                for i, j in product(range(self.n), repeat=2)
                if seen[i]
            ]
            no_underflow(self.dtype, own)
        passed, wanted = self.trial(softmax.z_plus, exact.softmax_z_plus)()
        return passed, wanted.in_range(np.where(self.visible, self.x, 0))


def softmax_trials(draw: Draw, dtype: str) -> Trials:
    case = Softmax(draw, dtype)

    def constant_gradient(x: Any, p: Any, g: Any, seen: Any) -> Split:
        return exact.softmax_constant(x, p, [a * b for a, b in zip(p, g, strict=True)], seen)

    definitions: dict[Rule, Callable[..., Split]] = {
        softmax.taylor: exact.softmax_taylor,
        softmax.spread: exact.softmax_spread,
        softmax.identity: exact.softmax_identity,
        softmax.constant: exact.softmax_constant,
        softmax.gradient: exact.softmax_gradient,
        softmax.constant_gxi: constant_gradient,
    }
    return {rule: case.trial(rule, split) for rule, split in definitions.items()} | {
        softmax.z_plus: case.z_plus
    }


# -- norms -----------------------------------------------------------------------------------------


class Norm:
    """x (lead, N), w, b, r and the norm's eps."""

    def __init__(self, draw: Draw, dtype: str) -> None:
        self.dtype, self.n = dtype, size(draw, 4)
        far, shape = (
            2.0**250 if dtype == "float64" else 2.0**25,
            (*one_of(draw, [(1,), (1,), (2,)]), self.n),
        )
        self.x = array(draw, dtype, shape, ORDINARY[dtype], [1.0, 1.0, 1.0, far, 1 / far])
        self.w = array(draw, dtype, (self.n,), ORDINARY[dtype], [1.0])
        self.b = (
            array(draw, dtype, (self.n,), ORDINARY[dtype], [1.0]) if draw(st.booleans()) else None
        )
        self.r = array(draw, dtype, shape, ORDINARY[dtype], [1.0, far, 1 / far])
        self.norm_eps = one_of(draw, [1e-5, 1e-12, 0.1])
        self.e = rounded(self.norm_eps, dtype)

    def rows(self) -> Iterator[tuple[Index, Any, Any, Any, Any]]:
        w, b = exactly(self.w), None if self.b is None else exactly(self.b)
        for lead in np.ndindex(*self.x.shape[:-1]):
            yield lead, exactly(self.x[lead]), w, b, exactly(self.r[lead])

    def wanted(self, terms: int) -> Wanted:
        """Factors up to 1/std^3, at most norm_eps^(-3/2)."""
        return Wanted(self.dtype, terms, lever(self.x, self.x, self.w, self.r) * Fraction(10) ** 19)

    def parts(self, x: Any) -> tuple[list[Number], list[Number], Number, Number]:
        """c = x - mean(x), A = |x| + mean|x| (its terms), std, and std^2's condition: that of
        mean(c^2), c off by (N + 2) u A.
        """
        (c, variance, std), sizes = exact.centered(x, self.e), [abs(v) for v in exact.reals(x)]
        a = [each + sum(sizes) / self.n for each in sizes]
        first, second = (
            sum(m * a_i for m, a_i in zip(many, a, strict=True)) / self.n
            for many in ([abs(each) for each in c], a)
        )
        kappa = (2 * first + (self.n + 2) * real(U[self.dtype]) * second) / (
            variance + real(self.e)
        )
        if (self.n + 2) * kappa * real(U[self.dtype]) >= 0.01:
            raise OutOfRange  # the variance is all rounding
        return c, a, std, kappa


def rms_norm_trials(draw: Draw, dtype: str) -> Trials:
    case = Norm(draw, dtype)
    z = finite(rms_norm.forward(case.x, case.w, norm_eps=case.norm_eps))

    def trial(rule: Rule, terms: int, split: Callable[..., Split]) -> Trial:
        def judge() -> tuple[RuleOutput, Wanted]:
            wanted = case.wanted(terms)
            for lead, x, w, _, r in case.rows():
                wanted.add(split(x, w, r, case.e), lead)
            return rule(case.x, case.w, z, case.r, norm_eps=case.norm_eps), wanted

        return judge

    return {
        rms_norm.identity: trial(rms_norm.identity, 0, lambda x, w, r, e: exact.identity(r)),
        rms_norm.identity_gxi: trial(rms_norm.identity_gxi, case.n, exact.rms_norm_identity_gxi),
        rms_norm.gradient: trial(rms_norm.gradient, 3 * case.n, exact.rms_norm_gradient),
    }


def layer_norm_trials(draw: Draw, dtype: str) -> Trials:
    case, eps, kind = Norm(draw, dtype), one_of(draw, EPS), one_of(draw, KINDS)
    z = finite(layer_norm.forward(case.x, case.w, case.b, norm_eps=case.norm_eps))
    arrays, options, n = (case.x, case.w, case.b, z, case.r), {"norm_eps": case.norm_eps}, case.n

    def identity() -> tuple[RuleOutput, Wanted]:
        wanted = Wanted(dtype, 0)
        for lead, _, _, _, r in case.rows():
            wanted.add(exact.identity(r), lead)
        return layer_norm.identity(*arrays, **options), wanted

    def epsilon() -> tuple[RuleOutput, Wanted]:
        wanted = case.wanted(2 * n)
        for lead, x, w, b, r in case.rows():
            split = exact.layer_norm_epsilon(
                x, w, b, r, case.e, rounded(eps, dtype), kind, exactly(z[lead])
            )
            wanted.add(split, lead, kappa=case.parts(x)[3])
        wanted.in_range(case.w, case.b, case.x)
        fits(dtype, *(s * real(top(case.w) * 10**7) * real(1 + top(case.x)) for s in wanted.shares))
        return layer_norm.epsilon(*arrays, **options, eps=eps, stabilizer=kind), wanted

    def frozen() -> tuple[RuleOutput, Wanted]:
        wanted = case.wanted(2 * n)
        for lead, x, w, b, r in case.rows():
            wanted.add(
                exact.layer_norm_epsilon_gxi(x, w, b, r, case.e), lead, kappa=case.parts(x)[3]
            )
        return layer_norm.epsilon_gxi(*arrays, **options), wanted

    def gradient() -> tuple[RuleOutput, Wanted]:
        # x_hat's error, in units of u: (N + 2) A + (2N + 8)(1 + kappa) |c|, over std; twice in a
        # message
        wanted = case.wanted(12 * n + 40)
        for lead, x, w, b, g in case.rows():
            (c, a, std, kappa), wg = (
                case.parts(x),
                [abs(real(w_j) * real(g_j)) for w_j, g_j in zip(w, g, strict=True)],
            )
            wanted.add(
                exact.layer_norm_gradient(x, w, b, g, case.e),
                lead,
                kappa=kappa,
                books=["norm_offset"],
            )
            for i in range(n):
                pieces = (wg[j] * (a[i] * abs(c[j]) + abs(c[i]) * a[j]) for j in range(n))
                wanted.costs((0, (*lead, i)), sum(pieces) / (n * std**3))
            wanted.costs(
                ("norm_offset", lead[0]),
                sum(wg_j * a_j for wg_j, a_j in zip(wg, a, strict=True)) / std,
            )
        return layer_norm.gradient(*arrays, **options), wanted

    return {
        layer_norm.identity: identity,
        layer_norm.epsilon: epsilon,
        layer_norm.epsilon_gxi: frozen,
        layer_norm.gradient: gradient,
    }


# -- activations -----------------------------------------------------------------------------------

ACTIVATIONS = ("gelu", "gelu_tanh", "silu", "quick_gelu", "relu", "tanh")


def activation_trials(draw: Draw, dtype: str) -> Trials:
    """Up to +-90, tails included, and far up."""
    f, width, kind = np.finfo(dtype), _width(dtype), one_of(draw, ACTIVATIONS)
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
    numbers = st.one_of(
        st.sampled_from(edges), st.floats(-4, 4, width=width), st.floats(-90, 90, width=width)
    )
    x = array(draw, dtype, (size(draw, 2), size(draw)), numbers, [1.0])
    z, g = (
        finite(activation.forward(x, kind=kind)),
        array(draw, dtype, x.shape, ORDINARY[dtype], [1.0]),
    )

    def trial(
        rule: Rule, factors: Number, split: Callable[..., Split], costs: bool = False
    ) -> Trial:
        def judge() -> tuple[RuleOutput, Wanted]:
            wanted = Wanted(dtype, 0 if not costs else 24, factors)
            for b in range(len(x)):
                wanted.add(split(*(exactly(a[b]) for a in (x, z, g))), (b,))
                for i in range(x.shape[1] if costs else 0):
                    at, weight = Fraction(float(x[b, i])), abs(real(Fraction(float(g[b, i]))))
                    of_z, of_slope = sensitivity(kind, at)
                    wanted.costs((0, (b, i)), weight * of_slope)
                    wanted.costs(
                        ("activation_offset", b), weight * (of_z + abs(real(at)) * of_slope)
                    )
            return rule(x, z, g, kind=kind), wanted

        return judge

    far = lever(g) * (1 + min(top(x), Fraction(100))) ** 2 * 16
    return {
        activation.identity: trial(activation.identity, 0, lambda x, z, g: exact.identity(g)),
        activation.identity_gxi: trial(
            activation.identity_gxi,
            lever(g),
            lambda x, z, g: exact.activation_identity_gxi(kind, x, g, z),
        ),
        activation.gradient: trial(
            activation.gradient,
            far,
            lambda x, z, g: exact.activation_gradient(kind, x, g),
            costs=True,
        ),
    }


def sensitivity(kind: str, x: Fraction) -> tuple[Number, Number]:
    """What a rounded argument does: sizes of x f' and of x (x gate')', in their separate terms.

    With f = x gate(x), f' = gate + x gate'; the argument of every gate is a rounded multiple
    (cubic, for gelu_tanh) of x.
    """
    y = real(x)
    if kind == "tanh":
        return abs(exact.activation(kind, x)) + abs(y) / MP.cosh(y) ** 2, MP.mpf(2)
    gate, derivative = exact.GATE[kind]
    bend = abs(y * y * derivative(y)) if abs(y) < 1000 else MP.mpf(0)
    cubic = MP.sqrt(8 / MP.pi) * abs(y) * (1 + MP.mpf("0.044715") * y * y)
    steep = {"gelu": y * y + 2, "gelu_tanh": 3 * cubic + 2}.get(kind, 2 * abs(y) + 2)
    return abs(y) * gate(y) + bend * 3, gate(y) + (bend / abs(y) * steep if y else 0)


# -- rotary, pooling, scale, movement --------------------------------------------------------------


def rotary_trials(draw: Draw, dtype: str) -> Trials:
    """cos and sin are any numbers: the rule asks for no circle."""
    shape = (*one_of(draw, [(1, 1), (2, 1), (1, 2)]), size(draw, 2), 2 * size(draw, 2))
    x, r = array(draw, dtype, shape), array(draw, dtype, shape)
    cos, sin = (array(draw, dtype, (1, 1, *shape[2:]), ORDINARY[dtype], [1.0]) for _ in range(2))
    z, eps, kind = (
        finite(rotary.forward(x, cos=cos, sin=sin)),
        one_of(draw, EPS),
        one_of(draw, KINDS),
    )
    e = rounded(eps, dtype)

    def wanted(factors: Fraction, split: Callable[..., Split]) -> Wanted:
        whole = Wanted(dtype, 4, factors)
        for lead in np.ndindex(*shape[:-1]):
            tables = (exactly(a[0, 0, lead[-1]]) for a in (cos, sin))
            whole.add(split(exactly(x[lead]), *tables, exactly(z[lead]), exactly(r[lead])), lead)
        return whole

    def epsilon() -> tuple[RuleOutput, Wanted]:
        split = wanted(
            lever(x, cos, sin), lambda x, c, s, z, r: exact.rotary_epsilon(x, c, s, r, e, kind, z)
        )
        return rotary.epsilon(x, z, r, cos=cos, sin=sin, eps=eps, stabilizer=kind), split.in_range(
            cos, sin
        )

    def gradient() -> tuple[RuleOutput, Wanted]:
        split = wanted(lever(cos, sin), lambda x, c, s, z, g: exact.rotary_gradient(x, c, s, g))
        return rotary.gradient(x, z, r, cos=cos, sin=sin), split.in_range()

    return {rotary.epsilon: epsilon, rotary.gradient: gradient}


def pooling_trials(draw: Draw, dtype: str) -> Trials:
    b, t, d, eps, kind = (
        size(draw, 2),
        size(draw, 4),
        size(draw, 2),
        one_of(draw, EPS),
        one_of(draw, KINDS),
    )
    x, r = array(draw, dtype, (b, t, d)), array(draw, dtype, (b, 1, d))
    counted = np.asarray(
        draw(st.lists(st.booleans(), min_size=b * t, max_size=b * t)), dtype=dtype
    ).reshape(b, t, 1)
    counted[:, 0, 0] = 1
    z, e = finite(pooling.forward(x, counted=counted)), rounded(eps, dtype)

    def columns() -> Iterator[tuple[int, Place, Any, Any, Fraction]]:
        for n, f in np.ndindex(b, d):
            place: Place = lambda k, entry, n=n, f=f: (n, entry, f)  # type: ignore[misc]
            yield (
                n,
                place,
                exactly(x[n, :, f]),
                exactly(counted[n, :, 0]),
                Fraction(float(r[n, 0, f])),
            )

    def epsilon() -> tuple[RuleOutput, Wanted]:
        fits(dtype, 8 * top(x))
        wanted = Wanted(dtype, 2 * t, lever(x))
        for n, place, column, m, received in columns():
            split = exact.pooling_epsilon(column, m, received, e, kind)
            wanted.add(split, (n,), place, _kappa(column, m, e, kind, U[dtype]), ["stabilizer"])
        return pooling.epsilon(
            x, z, r, counted=counted, eps=eps, stabilizer=kind
        ), wanted.in_range()

    def gradient() -> tuple[RuleOutput, Wanted]:
        wanted = Wanted(dtype, t)
        for n, place, column, m, received in columns():
            wanted.add(exact.pooling_gradient(column, m, received), (n,), place)
        return pooling.gradient(x, z, r, counted=counted), wanted.in_range()

    return {pooling.epsilon: epsilon, pooling.gradient: gradient}


def _kappa(x: Any, m: Any, e: Fraction, kind: str, u: Fraction) -> Number:
    """sum |terms of Z| / |Z + e|; 0 for small whole numbers, whose sums do not round."""
    if all(n.denominator == 1 and abs(n) < 2**20 for n in x):
        return 0
    total, terms = (
        sum(a * b for a, b in zip(m, column, strict=True)) for column in (x, [abs(v) for v in x])
    )
    denominator, off = total + exact.stabilizer(total, e, kind), (len(x) + 2) * u * terms
    if 8 * off >= min(abs(total), abs(denominator)):
        raise OutOfRange  # Z is all rounding: its sign may turn
    return terms / abs(denominator)


def scale_trials(draw: Draw, dtype: str) -> Trials:
    x, r, factor = (
        array(draw, dtype, (2, 3)),
        array(draw, dtype, (2, 3)),
        one_of(draw, [0.125, 3.0, -0.7]),
    )

    def trial(rule: Rule, split: Callable[..., Split]) -> Trial:
        def judge() -> tuple[RuleOutput, Wanted]:
            fits(dtype, top(r) * 8)
            wanted = Wanted(dtype, 0)
            for b in range(2):
                wanted.add(split(exactly(x[b]), Fraction(factor), exactly(r[b])), (b,))
            return rule(x, x, r, factor=factor), wanted

        return judge

    return {
        scale.pass_through: trial(scale.pass_through, lambda x, c, r: exact.identity(r)),
        scale.gradient: trial(scale.gradient, exact.scale_gradient),
    }


MOVES: list[tuple[str, list[Index], dict[str, Any], exact.Reads]] = [
    ("split_heads", [(2, 1, 4)], {"heads": 2}, exact.split_heads((2, 1, 4), 2)),
    ("merge_heads", [(1, 2, 2, 2)], {}, exact.merge_heads((1, 2, 2, 2))),
    ("repeat_heads", [(1, 2, 1, 2)], {"times": 3}, exact.repeat_heads((1, 2, 1, 2), 3)),
    ("transpose", [(2, 1, 3, 2)], {}, exact.transpose((2, 1, 3, 2))),
    ("slice", [(2, 1, 5)], {"start": 1, "stop": 4}, exact.slice_((2, 1, 5), 1, 4)),
    ("concat", [(1, 2, 1), (1, 2, 3)], {"axis": -1}, exact.concat([(1, 2, 1), (1, 2, 3)], -1)),
    ("rows", [(2, 3, 2)], {"index": (2, 0)}, exact.rows((2, 3, 2), (2, 0))),
    ("patches", [(1, 1, 5, 4)], {"size": (2, 3)}, exact_vision.patches((1, 1, 5, 4), (2, 3))),
    ("reshape", [(2, 3, 2)], {"shape": (2, 6)}, exact.reshape((2, 3, 2), (2, 6))),
]


def movement_trials(draw: Draw, dtype: str) -> Trials:
    kind, shapes, how, reads = one_of(draw, MOVES)
    operands = [np.zeros(shape, dtype=dtype) for shape in shapes]
    z = movement.forward(*operands, kind=kind, **how)
    r = array(draw, dtype, z.shape)

    def passed_through() -> tuple[RuleOutput, Wanted]:
        fits(dtype, 8 * top(r))
        split = exact.pass_through(reads, {k: Fraction(float(r[k])) for k in reads}, len(operands))
        wanted = Wanted(dtype, 2).add(split, (0,), lambda k, entry: entry)
        return movement.pass_through(*operands, z, r, kind=kind, **how), wanted

    return {movement.pass_through: passed_through}


# -- experts ---------------------------------------------------------------------------------------


def places(draw: Draw, b: int, length: int) -> Any:
    """For each example some of its rows in any order, with empty places where another example has
    more.
    """
    rows = [
        draw(st.lists(st.integers(0, length - 1), unique=True, max_size=length)) for _ in range(b)
    ]
    longest = max(1, *map(len, rows))
    return tuple((*row, *[None] * (longest - len(row))) for row in rows)


def combine_trials(draw: Draw, dtype: str) -> Trials:
    """Outputs of one to three experts, each on rows of its own choice; a row may have no expert, or
    several.
    """
    b, d, length, eps, kind = (
        size(draw, 2),
        size(draw, 2),
        size(draw),
        one_of(draw, EPS),
        one_of(draw, KINDS),
    )
    index = tuple(places(draw, b, length) for _ in range(size(draw)))
    ys = [array(draw, dtype, (b, len(where[0]), d)) for where in index]
    how: dict[str, Any] = {"index": index, "length": length}
    z, r, e = (
        finite(combine.forward(*ys, **how)),
        array(draw, dtype, (b, length, d)),
        rounded(eps, dtype),
    )

    def wanted(terms: int, factors: Fraction, split: Callable[..., Split]) -> Wanted:
        whole = Wanted(dtype, terms, factors)
        for n in range(b):
            rows = split(
                [exactly(y[n]) for y in ys],
                [where[n] for where in index],
                exactly(z[n]),
                exactly(r[n]),
            )
            whole.add(rows, (n,), lambda k, entry, n=n: (n, *entry))  # type: ignore[misc]
        return whole

    def epsilon() -> tuple[RuleOutput, Wanted]:
        split = wanted(
            len(ys),
            lever(*ys),
            lambda ys, i, z, r: exact_experts.combine_epsilon(ys, i, r, e, kind, z),
        )
        return combine.epsilon(*ys, z, r, **how, eps=eps, stabilizer=kind), split.in_range(*ys)

    def gradient() -> tuple[RuleOutput, Wanted]:
        split = wanted(
            0, Fraction(1), lambda ys, i, z, g: exact_experts.combine_gradient(len(ys), i, g)
        )
        return combine.gradient(*ys, z, r, **how), split.in_range()

    return {combine.epsilon: epsilon, combine.gradient: gradient}


def gather_trials(draw: Draw, dtype: str) -> Trials:
    b, m, d = size(draw, 3), size(draw, 4), size(draw, 2)
    index, x = places(draw, b, m), np.zeros((b, m, d), dtype=dtype)
    r = array(draw, dtype, (b, len(index[0]), d))

    def passed_through() -> tuple[RuleOutput, Wanted]:
        wanted = Wanted(dtype, 0)
        for n in range(b):
            wanted.add(exact_experts.gather_pass_through(index[n], exactly(r[n])), (n,))
        return gather.pass_through(x, gather.forward(x, index=index), r, index=index), wanted

    return {gather.pass_through: passed_through}


def top_k_trials(draw: Draw, dtype: str) -> Trials:
    b, t, e = size(draw, 2), size(draw), size(draw, 5)
    k = size(draw, e)
    p, r = array(draw, dtype, (b, t, e)), array(draw, dtype, (b, t, k))

    def passed_through() -> tuple[RuleOutput, Wanted]:
        wanted = Wanted(dtype, 0)
        for lead in np.ndindex(b, t):
            wanted.add(
                exact_experts.top_k_pass_through(
                    exact_experts.top_k(exactly(p[lead]), k), exactly(r[lead])
                ),
                lead,
            )
        chosen = top_k.choose(p, k)
        return top_k.pass_through(p, top_k.forward(p, chosen=chosen), r, chosen=chosen), wanted

    return {top_k.pass_through: passed_through}


def renormalize_trials(draw: Draw, dtype: str) -> Trials:
    """Positive weights, as a softmax makes them."""
    shape, eps, kind = (
        (size(draw, 2), size(draw, 2), size(draw, 4)),
        one_of(draw, EPS),
        one_of(draw, KINDS),
    )
    x, r = (
        array(draw, dtype, shape, POSITIVE[dtype], [1.0]),
        array(draw, dtype, shape, scales=[1.0]),
    )
    z, e, n = renormalize.forward(x), rounded(eps, dtype), shape[-1]

    def trial(rule: Rule, terms: int, split: Callable[..., Split], **options: Any) -> Trial:
        def judge() -> tuple[RuleOutput, Wanted]:
            wanted = Wanted(dtype, terms, lever(x) * 64**3 * n * (1 + top(r)))
            for lead in np.ndindex(*shape[:-1]):
                wanted.add(split(*(exactly(a[lead]) for a in (x, z, r))), lead)
            return rule(x, z, r, **options), wanted

        return judge

    def epsilon(x: Any, z: Any, r: Any) -> Split:
        return exact_experts.renormalize_epsilon(x, r, e, kind, z)

    return {
        renormalize.identity: trial(renormalize.identity, 0, lambda x, z, r: exact.identity(r)),
        renormalize.identity_gxi: trial(
            renormalize.identity_gxi,
            n,
            lambda x, z, g: exact_experts.renormalize_identity_gxi(x, g),
        ),
        renormalize.epsilon: trial(renormalize.epsilon, 4 * n, epsilon, eps=eps, stabilizer=kind),
        renormalize.gradient: trial(
            renormalize.gradient, 4 * n, lambda x, z, g: exact_experts.renormalize_gradient(x, g)
        ),
    }


# -- measuring -------------------------------------------------------------------------------------

OPERATIONS: dict[str, Callable[[Draw, str], Trials]] = {
    "activation": activation_trials,
    "add": add_trials,
    "combine": combine_trials,
    "gather": gather_trials,
    "layer_norm": layer_norm_trials,
    "linear": linear_trials,
    "matmul": matmul_trials,
    "movement": movement_trials,
    "multiply": multiply_trials,
    "pooling": pooling_trials,
    "renormalize": renormalize_trials,
    "rms_norm": rms_norm_trials,
    "rotary": rotary_trials,
    "scale": scale_trials,
    "softmax": softmax_trials,
    "top_k": top_k_trials,
    "z_box": z_box_trials,
}
"""What draws a case -> the rules that are tried on it."""

ROUND = 500
"""Cases drawn by one run of Hypothesis, which starts each run with its simplest."""


def measure(operation: str, dtype: str, cases: int) -> dict[str, Tally]:
    """Rule -> the errors of so many cases."""
    tallies: dict[str, Tally] = {}
    for number in range(20 + 20 * cases // ROUND):
        missing = cases - min((t.cases for t in tallies.values()), default=0)
        if missing <= 0:
            return tallies
        _round(
            OPERATIONS[operation],
            dtype,
            min(2 * missing, ROUND),
            zlib.crc32(f"{operation} {dtype} {number}".encode()),
            cases,
            tallies,
        )
    raise RuntimeError(f"{operation} in {dtype}: too few of the cases drawn are in range")


def _round(
    trials: Callable[[Draw, str], Trials],
    dtype: str,
    count: int,
    start: int,
    cases: int,
    tallies: dict[str, Tally],
) -> None:
    @seed(start)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def one(data: st.DataObject) -> None:
        with np.errstate(all="ignore"):
            for rule, trial in trials(data.draw, dtype).items():
                tally = tallies.setdefault(name(rule), Tally())
                if tally.cases < cases:
                    _try(trial, tally)

    one()


def _try(trial: Trial, tally: Tally) -> None:
    try:
        passed, wanted = trial()
    except OutOfRange:
        return
    tally.judge(passed, wanted)


def run(
    cases: int,
    operations: Sequence[str] = tuple(OPERATIONS),
    progress: Callable[[str], object] = lambda line: None,
) -> dict[str, Any]:
    """Everything measured, as plain numbers: {"versions", "date", "cases", "rules": {rule: {dtype:
    row}}}.
    """
    rows: dict[str, dict[str, Any]] = {}
    for operation, dtype in product(operations, DTYPES):
        progress(f"{operation}, {dtype}")
        for rule, tally in measure(operation, dtype, cases).items():
            rows.setdefault(rule, {})[dtype] = tally.row()
    versions = {
        "refl": refl.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "hypothesis": hypothesis.__version__,
        "mpmath": mpmath.__version__,
        "machine": platform.machine(),
    }
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "versions": versions,
        "cases": cases,
        "rules": dict(sorted(rows.items())),
    }


# -- showing ---------------------------------------------------------------------------------------

COLUMNS = (
    "rule",
    "dtype",
    "entries",
    "relevance: median",
    "worst",
    "absorbed: median",
    "worst",
    "share of bound",
)


def cells(result: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for rule, dtype in product(result["rules"], DTYPES):
        row = result["rules"][rule][dtype]
        errors = [
            f"{v:.2f}"
            for each in (row["relevance"], row["absorbed"])
            for v in each or (math.nan, math.nan)
        ]
        yield (
            rule,
            dtype,
            f"{row['entries']}",
            *("" if e == "nan" else e for e in errors),
            f"{row['worst_of_bound']:.2f}",
        )


def markdown(result: dict[str, Any]) -> str:
    versions = ", ".join(f"{what} {v}" for what, v in result["versions"].items())
    rows = [row for by_dtype in result["rules"].values() for row in by_dtype.values()]
    small, beyond = (
        sum(row[key] for row in rows) for key in ("left_out_for_underflow", "beyond_the_bound")
    )
    head = (
        "# How far the engine is from the exact definitions\n\n"
        "Written by `python -m refl.verification.quality.engine_error --cases "
        f"{result['cases']} --markdown FILE` on {result['date']} "
        f"({versions}). {result['cases']} cases for each rule and dtype.\n\n"
        "Errors are in units of u times condition: the sum of |messages|, each times 1 + "
        "the condition of a denominator that the rule sums "
        "up itself. `entries` counts the single relevances and absorbed entries compared, "
        "`share of bound` is the most of its bound "
        f"that an error reached. Beyond the bound: {beyond}. Left out because underflow "
        f"would decide: {small}. "
        "`engine_error.py` has the definitions and derives the bound; the last table says "
        "under which names composites call a rule.\n\n"
    )
    called = [row for row in rules().items() if row[0] in result["rules"]]
    return head + _table(COLUMNS, cells(result)) + "\n" + _table(("rule", "called"), called)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "".join(
        "| " + " | ".join(row) + " |\n" for row in (columns, ["---"] * len(columns), *rows)
    )


def show(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"error / (u condition), {result['cases']} cases for each rule and dtype", box=None
    )
    for k, column in enumerate(COLUMNS):
        table.add_column(column, justify="left" if k < 2 else "right", no_wrap=k < 2)
    for row in cells(result):
        table.add_row(*row)
    Console().print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns 1 where an error is beyond the bound."""
    parser = argparse.ArgumentParser(
        prog="python -m refl.verification.quality.engine_error",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--cases", type=int, default=200, help="cases for each rule and dtype (default: 200)"
    )
    parser.add_argument("--json", metavar="FILE", help="write the numbers there")
    parser.add_argument("--markdown", metavar="FILE", help="write the table there")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=OPERATIONS,
        default=list(OPERATIONS),
        help="these operations alone",
    )
    options = parser.parse_args(arguments)
    result = run(options.cases, options.only, lambda line: print(line, file=sys.stderr))
    show(result)
    if options.json:
        atomic_write(options.json, json.dumps(result, indent=1).encode())
    if options.markdown:
        atomic_write(options.markdown, markdown(result).encode())
    return (
        1
        if any(
            row["beyond_the_bound"] for rows in result["rules"].values() for row in rows.values()
        )
        else 0
    )


if __name__ == "__main__":
    sys.exit(main())
