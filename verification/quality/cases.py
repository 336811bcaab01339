"""Hard cases for every rule, and how far from its definition a rule may be.

    case = CASES["linear"](draw, "float32")     arrays drawn by Hypothesis for one call
    trial = case.rules["linear_epsilon"]()      one rule on them, and what its definition says
    trial.expected.judged(trial.run())          every entry of the answer, its error, its bound

Drawn are small whole numbers, so that sums cancel and values tie, zeros of both signs, ordinary and
extreme magnitudes, length 1, one head, masked entries and rows, every stabilizer, eps from 1e-12 to
1e-2, operands that are broadcast.

The bound. A relevance is a sum of messages, R_i = sum_j R_(i<-j) (exact.py writes each of them
down), and so is an absorbed entry. The engine forms the sum in floating point of unit roundoff u.
Every factor, product, quotient and addition of a message costs a relative u, whatever the order of
summation, so

    error_i <= u (k sum_j |R_(i<-j)| + extra_i) + eta L
               k = 8 + (terms of the longest inner sums) + (number of messages)

8 are the factors, the denominator, the rounding of eps and the last product; the rest are
additions. extra_i is what a difference costs that the rule forms itself: a denominator whose terms
may cancel has the condition kappa = sum |terms| / |sum| (Z + e of pooling; std^2 of LayerNorm,
whose terms are those of x - mean(x) squared), LayerNorm's full Jacobian has x - mean(x) in a
message, an activation's derivative a rounded argument. Where a rule divides by z it is handed z,
and the exact side divides by the same rounded z; sums of terms of one sign have the condition 1,
which k covers. eta is the smallest subnormal: a product that underflows is off by eta, times the
factors still to come, at most L. An entry whose messages are all zero must be exactly 0.

A case is thrown away (OutOfRange) only where a number that the definition itself asks for leaves
the range of the format: a z, a ratio s = R / denominator, a ratio times one factor, or the sum of
|messages|; and, for rules that divide by a bare sum of products without a stabilizer, where such a
product underflows, for then the sum has no correct digit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import product
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from hypothesis import reject
from hypothesis import strategies as st

from refl.arrays import Array
from refl.rules import (
    activation,
    add,
    causal_convolution,
    combine,
    embedding,
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
    scan,
    softmax,
    top_k,
)
from refl.rules.conservation import RuleOutput
from refl.verification.definitions import exact, lift
from refl.verification.definitions.exact import MP, Index, Number, to_mpf
from refl.verification.definitions.lift import Call, Piece

DTYPES = ("float64", "float32")
EPS = (1e-12, 1e-9, 1e-6, 1e-2)
STABILIZERS = ("sign", "plain", "none")

Draw = Callable[[Any], Any]
Where = tuple[Any, Any]
"""(operand, index) or (cause, example)."""


class OutOfRange(Exception):
    """A number the definition asks for is none of the format's."""


# -- drawing ---------------------------------------------------------------------------------------


def _width(dtype: str) -> Any:
    return 64 if dtype == "float64" else 32


WHOLE = [0.0, -0.0, 1.0, -1.0, 1.0, -1.0, 2.0, -2.0, 3.0, 0.5]


def _numbers(dtype: str, extremes: bool) -> st.SearchStrategy[float]:
    """Small whole numbers and ordinary ones, and now and then a number at the ends of the range."""
    f, far = np.finfo(dtype), 1e300 if dtype == "float64" else 1e30
    tiny = float(f.smallest_subnormal)
    rare = [tiny, -tiny, float(f.tiny), 1 / far, -1 / far, far, 1e-7, -1e-7] if extremes else []
    ordinary = st.floats(-4, 4, width=_width(dtype))
    return st.one_of(st.sampled_from(WHOLE), ordinary, ordinary, st.sampled_from(WHOLE * 2 + rare))


def _mixed(some: list[float], low: float, high: float) -> dict[str, st.SearchStrategy[float]]:
    return {
        d: st.one_of(st.sampled_from(some), st.floats(low, high, width=_width(d))) for d in DTYPES
    }


NUMBERS = {d: [_numbers(d, False), _numbers(d, False), _numbers(d, True)] for d in DTYPES}
ORDINARY = _mixed([0.0, -0.0, 1.0, -1.0, 2.0], -4, 4)
POSITIVE = _mixed([0.125, 0.25, 0.5, 1.0], 0.015625, 1.0)


def array(
    draw: Draw, dtype: str, shape: Index, numbers: Any = None, scales: Sequence[float] | None = None
) -> Array:
    """Drawn numbers, as a whole now and then far up or down the range
    (by a power of two: ties stay ties).
    """
    n, far = math.prod(shape), 2.0**990 if dtype == "float64" else 2.0**99
    numbers = one_of(draw, NUMBERS[dtype]) if numbers is None else numbers
    values = draw(st.lists(numbers, min_size=n, max_size=n))
    factor = one_of(draw, scales or [1.0] * 8 + [1 / far, far])
    whole = np.asarray(values, dtype=dtype) * np.asarray(factor, dtype=dtype)
    return finite(whole.reshape(shape))


def finite(z: Array) -> Array:
    if not np.all(np.isfinite(z)):
        reject()
    return z


def size(draw: Draw, most: int = 3) -> int:
    return int(draw(st.integers(1, most)))


def one_of(draw: Draw, choices: Sequence[Any]) -> Any:
    return draw(st.sampled_from(choices))


def flags(draw: Draw, *shape: int) -> Any:
    n = math.prod(shape)
    return np.asarray(draw(st.lists(st.booleans(), min_size=n, max_size=n)), bool).reshape(shape)


# -- exact numbers, and what a format can hold -----------------------------------------------------


def exactly(a: Any) -> Any:
    """Each number is the value of its float."""
    return lift.lifted(a, Fraction)


def rounded(value: float, dtype: str) -> Fraction:
    """An option as the format holds it: 1e-6 is not 1e-6 in float32, and z + eps may cancel."""
    return Fraction(float(np.asarray(value, dtype=dtype)))


U = {d: Fraction(float(np.finfo(d).eps)) / 2 for d in DTYPES}
ETA = {d: Fraction(float(np.finfo(d).smallest_subnormal)) for d in DTYPES}
LIMIT = {d: Fraction(float(np.finfo(d).max)) / 64 for d in DTYPES}
LOW = {d: Fraction(float(np.finfo(d).tiny)) * 1024 for d in DTYPES}


def top(a: Any) -> Fraction:
    return Fraction(float(np.max(np.abs(a), initial=0)))


def amplification(*arrays: Any) -> Fraction:
    """1 + the largest magnitude, multiplied over the arrays:
    the factors an underflow may still meet.
    """
    return math.prod((1 + top(a) for a in arrays if a is not None), start=Fraction(1))


def _rational(n: Number) -> bool:
    return isinstance(n, (Fraction, int))


def fits(dtype: str, *numbers: Number) -> None:
    if any(abs(n) >= (LIMIT[dtype] if _rational(n) else to_mpf(LIMIT[dtype])) for n in numbers):
        raise OutOfRange


def no_underflow(dtype: str, products: Iterable[Number]) -> None:
    if any(p != 0 and abs(p) < LOW[dtype] for p in products):
        raise OutOfRange


# -- what the definition says, and how far off an answer may be ------------------------------------


@dataclass
class Entry:
    """One relevance, or one absorbed amount."""

    exact: Number = 0
    magnitude: Number = 0
    """Sum of |messages|."""
    messages: int = 0
    condition: Number = 0
    """The same with the condition of what the rule sums up itself:
    one unit of roundoff costs u condition.
    """
    extra: Number = 0
    """What the bound allows beyond k magnitude, in units of u."""


class Judged(NamedTuple):
    """An entry of the answer beside its definition."""

    where: Where
    got: float
    exact: Number
    error: Number
    unit: Number
    """u condition."""
    bound: Number
    underflow: Number
    """The part of the bound that underflow takes."""


@dataclass
class Expected:
    """The exact side of one call."""

    dtype: str
    summands: int
    """Of the longest inner sums."""
    amplified: Number = 1
    """The factors an underflow may still be multiplied by."""
    rounds: bool = True
    """Whether k counts; False: `extra` alone is the bound."""
    entries: dict[Where, Entry] = field(default_factory=dict)
    ratios: list[Number] = field(default_factory=list)

    @property
    def underflow(self) -> Number:
        return to_mpf(ETA[self.dtype] * self.amplified * 4 * (self.summands + 4))

    def add(
        self,
        pieces: Iterable[Piece],
        kappa: Callable[[Index], Number] = lambda at: 0,
        steps: int = 0,
        causes: Sequence[str] = (),
    ) -> None:
        """Enter a call's messages. kappa(at) is the condition of a row's denominator, for its
        relevance and for the absorbed causes named; it costs that many steps.
        """
        for at, messages, place in pieces:
            strain = kappa(at)
            for k, got in enumerate(messages.inputs):
                for entry, each in got.items():
                    self._enter((k, place(k, entry)), each, strain, steps)
            for cause, each in messages.absorbed.items():
                self._enter((cause, at[0]), each, strain if cause in causes else 0, steps)
            self.ratios += messages.ratios

    def _enter(self, where: Where, messages: list[Number], kappa: Number, steps: int) -> None:
        entry, magnitude = self.entries.setdefault(where, Entry()), sum(map(abs, messages))
        entry.exact += sum(messages)
        entry.magnitude += magnitude
        entry.messages += len(messages)
        entry.condition += magnitude * (1 + kappa)
        entry.extra += magnitude * kappa * steps

    def allow(self, where: Where, amount: Number, steps: int) -> None:
        """A difference inside this entry's messages, that moves it
        by `amount` for a unit of roundoff.
        """
        entry = self.entries[where]
        entry.condition += amount
        entry.extra += amount * steps

    def in_range(self, *factors: Any) -> None:
        """Raises OutOfRange where a ratio, a ratio times its factors but one, or a sum of
        |messages| overflows.
        """
        s = max((abs(each) for each in self.ratios), default=Fraction(0))
        tops = [top(a) for a in factors if a is not None]
        scaled = [16 * s * (t if _rational(s) else to_mpf(t)) for t in tops]
        fits(self.dtype, s, *scaled, *(e.condition for e in self.entries.values()))

    def judged(
        self, output: RuleOutput, back: Callable[[Any], Any] = lambda a: a
    ) -> Iterator[Judged]:
        """Every entry of the engine's answer, and every one it left out."""
        missing = dict.fromkeys(self.entries)
        for where, got in _entries(output, back):
            missing.pop(where, None)
            yield self._judge(where, float(got))
        for where in missing:
            yield self._judge(where, 0.0)

    def _judge(self, where: Where, got: float) -> Judged:
        entry = self.entries.get(where, Entry())
        if not math.isfinite(got):
            return Judged(where, got, entry.exact, MP.inf, MP.mpf(0), MP.mpf(0), MP.mpf(0))
        error = abs(to_mpf(Fraction(got)) - to_mpf(entry.exact))
        if entry.condition == 0:
            return Judged(where, got, entry.exact, error, MP.mpf(0), MP.mpf(0), MP.mpf(0))
        k = 8 + self.summands + entry.messages if self.rounds else 0
        u, under = to_mpf(U[self.dtype]), self.underflow
        bound = u * (k * to_mpf(entry.magnitude) + to_mpf(entry.extra)) + under
        return Judged(where, got, entry.exact, error, u * to_mpf(entry.condition), bound, under)


def _entries(output: RuleOutput, back: Callable[[Any], Any]) -> Iterator[tuple[Where, Any]]:
    for k, received in enumerate(output.inputs):
        if received is not None:
            host = back(received)
            yield from (((k, at), host[at]) for at in np.ndindex(*host.shape))
    for cause, amount in output.absorbed.items():
        yield from (((cause, b), each) for b, each in enumerate(back(amount)))


# -- a case, and a rule tried on it ----------------------------------------------------------------


@dataclass
class Trial:
    """One call of one rule, and what its definition says."""

    rule: str
    case: Case
    options: dict[str, Any]
    expected: Expected
    call: Call
    """The same call in exact numbers."""

    @property
    def gradient_x_input(self) -> bool:
        return self.rule.endswith(("_gxi", "_gradient"))

    def run(self, place: Callable[[Any], Any] = lambda a: a) -> RuleOutput:
        """The engine's answer, on the arrays of any library."""
        c = self.case
        function = getattr(c.operation, self.rule.removeprefix(f"{c.name}_"))
        arrays = (None if a is None else place(a) for a in c.arrays)
        output: RuleOutput = function(*arrays, **c.placed_attributes(place), **self.options)
        return output

    def conservation_error(self) -> tuple[Number, Number]:
        """Of the definition, divided by its own exact output: 0; and the size of what is summed."""
        c, name = self.call, self.case.name
        z = c.z if name in ("softmax", "embedding") else None
        found = lift.collected(
            lift.RULES[self.rule](Call(c.operands, c.r, z, c.options)), len(c.operands)
        )
        relevance, weights = c.r, list[Array]()
        if self.gradient_x_input:
            relevance = (lift.FORWARD[name](c) if z is None else z) * c.r
            weights = list(c.operands)
        if name == "gather":  # at an empty place nothing may arrive
            ones = exactly(np.ones(c.x.shape))
            relevance = relevance * lift.FORWARD[name](Call([ones], options=c.options))
        held = [m for got in found.inputs for each in got.values() for m in each]
        held += [m for each in found.absorbed.values() for m in each]
        if not all(map(_rational, held)):
            relevance, *weights = map(_mpf, (relevance, *weights))
        magnitude = to_mpf(sum(map(abs, held))) * to_mpf(1 + top(self.case.finite_input))
        return found.conservation_error(relevance, weights), magnitude


def _mpf(a: Array | None) -> Array | None:
    return None if a is None else lift.array(a.shape, map(to_mpf, a.flat))


@dataclass
class Case:
    """The arrays of one call, and the rules that can be tried on them, by their identifiers."""

    operation: ModuleType
    dtype: str
    operands: list[Any]
    """Arrays; None where there is no bias."""
    z: Array
    r: Array
    attributes: dict[str, Any] = field(default_factory=dict)
    definition: dict[str, Any] = field(default_factory=dict)
    """Attributes that the definition is told in another form (None: not at all)."""
    visible: Any = None
    """Which entries no mask hides."""
    rules: dict[str, Callable[[], Trial]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.operation.__name__.rpartition(".")[2]

    @property
    def arrays(self) -> tuple[Array | None, ...]:
        # a softmax is called with its probabilities, which are its z
        return (*self.operands, self.z, self.r)

    @property
    def finite_input(self) -> Array:
        x = self.operands[0]
        return x if self.visible is None else x[self.visible]

    def placed_attributes(self, place: Callable[[Any], Any]) -> dict[str, Any]:
        return {k: place(v) if isinstance(v, np.ndarray) else v for k, v in self.attributes.items()}

    def call(self, options: Mapping[str, Any] | None = None) -> Call:
        """In exact numbers, as the definitions take it."""
        operands = [None if a is None else self._exact(a) for a in self.operands]
        told = {k: v for k, v in (self.attributes | self.definition).items() if v is not None}
        exact_options = {k: self._exact(v) for k, v in (told | dict(options or {})).items()}
        return Call(operands, exactly(self.r), exactly(self.z), exact_options)

    def _exact(self, value: Any) -> Any:
        if isinstance(value, float):
            return rounded(value, self.dtype)
        if isinstance(value, tuple) and value and isinstance(value[0], float):
            return [rounded(each, self.dtype) for each in value]
        if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
            return value
        if self.visible is not None and value.shape == self.visible.shape:
            value = np.where(self.visible, value, 0)  # a masked logit may be -inf
        return exactly(value)

    def trial(
        self,
        rule: str,
        summands: int,
        amplified: Number = 1,
        in_range: Sequence[Any] | None = (),
        kappa: Callable[[Index], Number] = lambda at: 0,
        steps: int = 0,
        causes: Sequence[str] = (),
        rounds: bool = True,
        **options: Any,
    ) -> Trial:
        """`in_range`: the factors a ratio is multiplied by; None: nothing can overflow."""
        identifier, call = f"{self.name}_{rule}", self.call(options)
        expected = Expected(self.dtype, summands, amplified, rounds)
        expected.add(lift.RULES[identifier](call), kappa, steps, causes)
        if in_range is not None:
            expected.in_range(*in_range)
        return Trial(identifier, self, options, expected, call)

    def offer(self, **rules: Callable[[], Trial]) -> Case:
        self.rules = {f"{self.name}_{rule}": trial for rule, trial in rules.items()}
        return self


def _stabilized(draw: Draw) -> dict[str, Any]:
    return {"eps": one_of(draw, EPS), "stabilizer": one_of(draw, STABILIZERS)}


# -- linear ----------------------------------------------------------------------------------------


ALPHA_BETA = [(2.0, 1.0), (1.5, 0.5), (1.0, 0.0)]


def linear_case(draw: Draw, dtype: str, alpha_beta: tuple[float, float] | None = None) -> Case:
    """x (lead, I), w (O, I), b (O,) or None, r (lead, O), z from the engine's forward."""
    lead, i, o = one_of(draw, [(1,), (1,), (2,), (2, 2), (1, 3)]), size(draw, 4), size(draw)
    x, w, r = (array(draw, dtype, shape) for shape in ((*lead, i), (o, i), (*lead, o)))
    b = array(draw, dtype, (o,)) if one_of(draw, [True, True, False]) else None
    case = Case(linear, dtype, [x, w, b], finite(linear.forward(x, w, b)), r)
    stabilized, small = _stabilized(draw), one_of(draw, [0.0, 0.0, *EPS])
    gamma = one_of(draw, [0.0, 0.05, 0.25, 1.0, 100.0])
    alpha, beta = alpha_beta or one_of(draw, ALPHA_BETA)
    terms, amplified, factors = i + o + 1, amplification(x, w, b) * i, (x, w, b)

    def by_sign(rule: str, more: Number = 1, **options: Any) -> Trial:
        """Sums of products that nothing stabilizes."""
        no_underflow(dtype, _products(case.call()))
        return case.trial(rule, terms, amplified * more, factors, eps=small, **options)

    def w_square() -> Trial:
        squares = [each * each for each in exactly(w).flat]
        no_underflow(dtype, squares)
        fits(dtype, *squares)
        return case.trial("w_square", terms, amplification(w, w), (w * w,))

    return case.offer(
        epsilon=lambda: case.trial("epsilon", terms, amplified, factors, **stabilized),
        gamma=lambda: by_sign("gamma", 1 + Fraction(gamma), gamma=gamma),
        z_plus=lambda: by_sign("z_plus"),
        alpha_beta=lambda: by_sign("alpha_beta", alpha=alpha, beta=beta),
        flat=lambda: case.trial("flat", terms, amplified),
        w_square=w_square,
        gradient=lambda: case.trial("gradient", terms, amplified),
    )


def _products(c: Call) -> list[Number]:
    """b_j and every W_ji x_i."""
    rows = c.x.reshape(-1, c.x.shape[-1]).tolist()
    found = [w * x for row in rows for w_j in c.w for w, x in zip(w_j, row, strict=True)]
    return found + (c.b or [])


def z_box_case(draw: Draw, dtype: str) -> Case:
    """Inputs in a drawn box; now and then on its edge,
    and some of its edges are no wider than a point.
    """
    lead, i, o = one_of(draw, [(1,), (2,), (2, 2), (1, 3)]), size(draw, 4), size(draw)
    ends = [array(draw, dtype, (i,), scales=[1.0]) for _ in range(2)]
    low, high = np.minimum(*ends), np.maximum(*ends)
    x = np.clip(array(draw, dtype, (*lead, i), scales=[1.0]), low, high)
    w, r = array(draw, dtype, (o, i)), array(draw, dtype, (*lead, o))
    b = array(draw, dtype, (o,)) if one_of(draw, [True, True, False]) else None
    case = Case(linear, dtype, [x, w, b], finite(linear.forward(x, w, b)), r)

    def z_box() -> Trial:
        parts = [
            each
            for end in (low, high)
            for each in (exactly(w) * exactly(x - end)[..., None, :]).flat
        ]
        no_underflow(dtype, parts)
        fits(dtype, sum(map(abs, parts)))
        factors = (x, low, high, w)
        bounds: dict[str, Any] = {"low": tuple(map(float, low)), "high": tuple(map(float, high))}
        return case.trial(
            "z_box", 2 * (i + o + 1) + 4, amplification(*factors) * i, factors, **bounds
        )

    return case.offer(z_box=z_box)


# -- add, multiply, matmul -------------------------------------------------------------------------

SHAPES: list[tuple[Index, ...]] = [
    ((1,), (1,), (1,)),
    ((2, 3), (2, 3), (2, 3)),
    ((2, 3), (2, 1), (2, 3)),
    ((2, 1), (2, 3), (2, 3)),
    ((2, 2, 2), (1, 2, 2), (2, 1, 2)),
    ((1, 1, 2, 2), (1, 3, 2, 2), (1, 3, 1, 2)),
    ((2, 2, 2), (2, 2), (2, 2, 2)),
]
"""Of the operands of a product: some are copied along an axis. The first axis counts examples, or
is 1 for a table that every example shares.
"""


def add_case(draw: Draw, dtype: str) -> Case:
    a, b = (array(draw, dtype, shape) for shape in one_of(draw, SHAPES)[:2])
    z, stabilized = finite(add.forward(a, b)), _stabilized(draw)
    case = Case(add, dtype, [a, b], z, array(draw, dtype, z.shape))
    return case.offer(
        epsilon=lambda: case.trial("epsilon", 4, amplification(a, b), **stabilized),
        gradient=lambda: case.trial("gradient", 2),
    )


MOST = 3
"""Factors that an operand may stand for."""


def _factors(draw: Draw, n: int) -> list[int]:
    return [one_of(draw, range(1, MOST + 1)) for _ in range(n)]


def multiply_case(draw: Draw, dtype: str) -> Case:
    """1 to 3 operands, some constant (never all);
    `second` where there are two, neither constant.
    """
    n = one_of(draw, [1, 2, 2, 2, 3])
    operands = [array(draw, dtype, shape) for shape in one_of(draw, SHAPES)[:n]]
    fixed = flags(draw, n).tolist()
    constant = tuple(fixed if not all(fixed) else [False] * n)
    z = finite(multiply.forward(*operands, constant=constant))
    case = Case(
        multiply, dtype, list(operands), z, array(draw, dtype, z.shape), {"constant": constant}
    )

    def trial(
        rule: str, summands: int = 2 * n, amplified: Number | None = None, **options: Any
    ) -> Trial:
        """No product of some of the factors may overflow, in whatever order they are taken."""
        tops = (max(top(a), Fraction(1)) for a in (*operands, case.r))
        fits(dtype, math.prod(tops, start=Fraction(8)))
        if amplified is None:
            amplified = amplification(*operands, case.r)
        more = max(options.get("factors", [1]))
        return case.trial(rule, summands + (more > 1), more * amplified, **options)

    factors = tuple(_factors(draw, n))
    case.offer(
        uniform=lambda: case.trial("uniform", 2),
        uniform_gxi=lambda: trial("uniform_gxi"),
        flattened=lambda: case.trial("flattened", 4, MOST, factors=factors),
        flattened_gxi=lambda: trial("flattened_gxi", factors=factors),
        gradient=lambda: trial("gradient"),
    )
    if n == 2 and not any(constant):
        case.rules["multiply_second"] = lambda: trial("second", 1, 1)
        case.rules["multiply_second_gxi"] = lambda: trial("second_gxi", 1, 1)
    return case


def matmul_case(draw: Draw, dtype: str, denominator: str | None = None) -> Case:
    lead, j, i, p = one_of(draw, [(1,), (2,), (1, 1), (2, 2)]), size(draw), size(draw), size(draw)
    a, v = array(draw, dtype, (*lead, j, i)), array(draw, dtype, (*lead, i, p))
    z, r = finite(matmul.forward(a, v)), array(draw, dtype, (*lead, j, p))
    case, stabilized = Case(matmul, dtype, [a, v], z, r), _stabilized(draw)
    denominator = denominator or one_of(draw, matmul.DENOMINATORS)
    terms, amplified = i + j * p, amplification(a, v) * i

    def relevance(rule: str, **options: Any) -> Trial:
        fits(dtype, top(z), top(r))
        more = max(options.get("factors", [1]))
        trial = case.trial(
            rule, terms + (more > 1), more * amplified, (a, v), **stabilized, **options
        )
        largest = max((abs(s) for s in trial.expected.ratios), default=Fraction(0))
        # V/2 may underflow before it meets A^T s
        trial.expected.amplified += more * largest * top(a)
        return trial

    def gradient(rule: str, **options: Any) -> Trial:
        fits(dtype, top(z), top(r), 16 * top(z) * top(r))
        more = max(options.get("factors", [1]))
        amplified_by = more * amplified * amplification(r)
        return case.trial(rule, terms + (more > 1), amplified_by, **options)

    factors = tuple(_factors(draw, 2))

    return case.offer(
        uniform=lambda: relevance("uniform", denominator=denominator),
        flattened=lambda: relevance("flattened", factors=factors),
        second=lambda: relevance("second"),
        uniform_gxi=lambda: gradient("uniform_gxi"),
        flattened_gxi=lambda: gradient("flattened_gxi", factors=factors),
        second_gxi=lambda: gradient("second_gxi"),
        gradient=lambda: gradient("gradient"),
    )


# -- softmax ---------------------------------------------------------------------------------------

MASKED_BY = ("none", "boolean", "-inf", "finfo.min")


@dataclass
class WholeCase(Case):
    """Probabilities over their sum, exactly: those of floats miss 1 by rounding, and where one is
    near 1 the definition's 1 - p_i is what the others sum to no more.
    """

    def call(self, options: Mapping[str, Any] | None = None) -> Call:
        call = super().call(options)
        for at in np.ndindex(*self.z.shape[:-1]):
            row = call.z[at]
            call.z[at] = [p / (sum(row) or 1) for p in row]
        return call


def softmax_case(draw: Draw, dtype: str) -> Case:
    """Logits (B, [H,] J, I) with rows in part or wholly masked, by a boolean mask, -inf, or
    finfo.min; p from the engine.
    """
    shape = (*one_of(draw, [(1, 1), (2, 2), (1, 1, 2), (2, 2, 1)]), size(draw, 4))
    x = array(draw, dtype, shape, ORDINARY[dtype], [1.0, 1.0, 1.0, 8.0, 2.0**12, 2.0**-99])
    form, visible = one_of(draw, MASKED_BY), ~flags(draw, *shape)
    if form == "none":
        visible[...] = True
    if form == "-inf":
        x[~visible] = -np.inf
    if form == "finfo.min":
        lowest = np.finfo(dtype).min * np.asarray(one_of(draw, [1.0, 0.75]), dtype=dtype)
        x[~visible] = lowest + np.maximum(x, 0)[~visible]  # a mask that was added to a score
    mask = visible if form == "boolean" else None
    r = array(draw, dtype, shape, None, [1.0, 1.0, 2.0**-99])
    p = finite(softmax.forward(x, mask=mask))
    case = Case(softmax, dtype, [x], p, r, {"mask": mask}, {"mask": visible}, visible)
    terms, amplified = 3 * shape[-1] + 4, (1 + top(x[visible])) * amplification(r) * 4

    def trial(rule: str) -> Trial:
        fits(dtype, top(r) * 2**20)
        return case.trial(rule, terms, amplified, None)

    def z_plus() -> Trial:
        """No sum of the definition cancels: 1 - p_i is the one difference, of exact numbers."""
        whole = WholeCase(softmax, dtype, [x], p, r, case.attributes, case.definition, visible)
        call = whole.call()
        for at in np.ndindex(*shape[:-1]):
            pairs = product(range(shape[-1]), repeat=2)
            own = ((int(i == j) - call.z[at][i]) * call.x[at][i] for i, j in pairs)
            no_underflow(dtype, own)
        fits(dtype, top(r) * 2**20)
        return whole.trial("z_plus", terms, amplified, (np.where(visible, x, 0),))

    plain = ("taylor", "spread", "identity", "constant", "constant_gxi", "gradient")
    return case.offer(
        z_plus=z_plus,
        **{rule: (lambda rule=rule: trial(rule)) for rule in plain},
    )


# -- norms -----------------------------------------------------------------------------------------


@dataclass
class NormCase(Case):
    """x (lead, N), w, b, r and the norm's eps."""

    @property
    def n(self) -> int:
        return int(self.r.shape[-1])

    @property
    def amplified(self) -> Fraction:
        """Factors up to 1/std^3, at most norm_eps^(-3/2)."""
        x, w = self.operands[:2]
        return amplification(x, x, w, self.r) * Fraction(10) ** 19

    def parts(self, at: Index) -> tuple[list[Number], list[Number], Number, Number]:
        """Of a row: c = x - mean(x), A = |x| + mean|x| (its terms), std, and std^2's condition:
        that of mean(c^2), c off by (N + 2) u A.
        """
        e = rounded(self.attributes["norm_eps"], self.dtype)
        x = exactly(self.operands[0][at]).tolist()
        (c, variance, std), sizes = exact.centered(x, e), [abs(v) for v in exact.to_mpfs(x)]
        a, u = [each + sum(sizes) / self.n for each in sizes], to_mpf(U[self.dtype])
        first = sum(abs(m) * a_i for m, a_i in zip(c, a, strict=True)) / self.n
        second = sum(a_i * a_i for a_i in a) / self.n
        kappa = (2 * first + (self.n + 2) * u * second) / (variance + to_mpf(e))
        if (self.n + 2) * kappa * u >= 0.01:
            raise OutOfRange  # the variance is all rounding
        return c, a, std, kappa

    def kappa(self, at: Index) -> Number:
        return self.parts(at)[3]


def _norm_case(draw: Draw, dtype: str, operation: ModuleType, bias: bool) -> NormCase:
    n, far = size(draw, 4), 2.0**250 if dtype == "float64" else 2.0**25
    shape, usual = (*one_of(draw, [(1,), (2,), (2, 2)]), n), ORDINARY[dtype]
    x = array(draw, dtype, shape, usual, [1.0, 1.0, 1.0, far, 1 / far])
    operands = [x, array(draw, dtype, (n,), usual, [1.0])]
    if bias:
        operands.append(array(draw, dtype, (n,), usual, [1.0]) if draw(st.booleans()) else None)
    r = array(draw, dtype, shape, usual, [1.0, far, 1 / far])
    attributes = {"norm_eps": one_of(draw, [1e-5, 1e-12, 0.1])}
    z = finite(operation.forward(*operands, **attributes))
    return NormCase(operation, dtype, operands, z, r, attributes)


def rms_norm_case(draw: Draw, dtype: str) -> Case:
    case = _norm_case(draw, dtype, rms_norm, bias=False)
    n, amplified = case.n, case.amplified
    return case.offer(
        identity=lambda: case.trial("identity", 0, amplified, None),
        identity_gxi=lambda: case.trial("identity_gxi", n, amplified, None),
        gradient=lambda: case.trial("gradient", 3 * n, amplified, None),
    )


def layer_norm_case(draw: Draw, dtype: str) -> Case:
    case, stabilized = _norm_case(draw, dtype, layer_norm, bias=True), _stabilized(draw)
    (x, w, b), n, amplified = case.operands, case.n, case.amplified
    strained: dict[str, Any] = {"kappa": case.kappa, "steps": n + 2}

    def epsilon() -> Trial:
        trial = case.trial("epsilon", 2 * n, amplified, (w, b, x), **strained, **stabilized)
        largest = to_mpf(top(w) * 10**7) * to_mpf(1 + top(x))
        fits(dtype, *(s * largest for s in trial.expected.ratios))
        return trial

    return case.offer(
        identity=lambda: case.trial("identity", 0),
        epsilon=epsilon,
        epsilon_gxi=lambda: case.trial("epsilon_gxi", 2 * n, amplified, None, **strained),
        gradient=lambda: _layer_norm_gradient(case),
    )


def _layer_norm_gradient(case: NormCase) -> Trial:
    """x_hat_j = c_j / std is off by (N + 2) A_j / std + ((N + 2) kappa + N + 8) |x_hat_j|, in each
    factor of the message w_j g_j x_hat_i x_hat_j / (N std).
    """
    n = case.n
    strained: dict[str, Any] = {"kappa": case.kappa, "steps": 6 * (n + 2)}
    trial = case.trial(
        "gradient", 12 * n + 40, case.amplified, None, causes=["norm_offset"], **strained
    )
    w, g = trial.call.operands[1], trial.call.r
    for at in np.ndindex(*case.r.shape[:-1]):
        c, a, std, _ = case.parts(at)
        wg = [abs(to_mpf(w_j) * to_mpf(g_j)) for w_j, g_j in zip(w, g[at], strict=True)]
        for i in range(n):
            pieces = (wg[j] * (a[i] * abs(c[j]) + abs(c[i]) * a[j]) for j in range(n))
            trial.expected.allow((0, (*at, i)), sum(pieces) / (n * std**3), 2 * (n + 2))
        moved = sum(wg_j * a_j for wg_j, a_j in zip(wg, a, strict=True)) / std
        trial.expected.allow(("norm_offset", at[0]), moved, 12 * n + 48)
    return trial


# -- activations -----------------------------------------------------------------------------------

ACTIVATIONS = (
    "gelu",
    "gelu_tanh",
    "gelu_fast",
    "silu",
    "quick_gelu",
    "relu",
    "relu2",
    "tanh",
)


def activation_case(draw: Draw, dtype: str, kind: str | None = None) -> Case:
    """Up to +-90, tails included, and far up."""
    kind, f, width = kind or one_of(draw, ACTIVATIONS), np.finfo(dtype), _width(dtype)
    edges = [0.0, -0.0, 1.0, -1.0, 50.0, -30.0, -12.0, 1e30]
    edges += [float(f.smallest_subnormal), -float(f.tiny)]
    if kind == "relu2":  # whose square leaves the range of float32
        edges.remove(1e30)
    near, far = st.floats(-4, 4, width=width), st.floats(-90, 90, width=width)
    numbers = st.one_of(st.sampled_from(edges), near, far)
    x = array(draw, dtype, (size(draw, 2), size(draw)), numbers, [1.0])
    g = array(draw, dtype, x.shape, ORDINARY[dtype], [1.0])
    case = Case(activation, dtype, [x], finite(activation.forward(x, kind=kind)), g, {"kind": kind})
    return case.offer(
        identity=lambda: case.trial("identity", 0, 0, None),
        identity_gxi=lambda: case.trial("identity_gxi", 0, amplification(g), None),
        gradient=lambda: _activation_gradient(case, kind),
    )


def _activation_gradient(case: Case, kind: str) -> Trial:
    x, g = case.operands[0], case.r
    amplified = 7 * amplification(g) * (1 + min(top(x), Fraction(100))) ** 2
    trial = case.trial("gradient", 0, amplified, None, rounds=False)
    for b, i in np.ndindex(*g.shape):
        at, weight = trial.call.x[b, i], abs(to_mpf(trial.call.r[b, i]))
        of_z, of_slope = sensitivity(kind, at)
        trial.expected.allow((0, (b, i)), weight * of_slope, 16)
        moved = weight * (of_z + abs(to_mpf(at)) * of_slope)
        trial.expected.allow(("activation_offset", b), moved, 32)
    return trial


def sensitivity(kind: str, x: Fraction) -> tuple[Number, Number]:
    """What a rounded argument does: sizes of x f' and of x (x gate')', in their separate terms.

    With f = x gate(x), f' = gate + x gate'; the argument of every gate is a rounded multiple
    (cubic, for gelu_tanh) of x.
    """
    y = to_mpf(x)
    if kind == "tanh":
        bell = 1 / MP.cosh(y) ** 2
        return abs(exact.activation(kind, x)) + abs(y) * bell, (2 * abs(y) + 2) * bell
    gate, derivative = exact.GATE[kind]
    bend = abs(y * y * derivative(y)) if abs(y) < 1000 else MP.mpf(0)
    cubic = MP.sqrt(8 / MP.pi) * abs(y) * (1 + MP.mpf("0.044715") * y * y)
    powers = {"gelu": y * y + 2, "gelu_tanh": 3 * cubic + 2, "gelu_fast": 3 * cubic + 2}
    steep = powers.get(kind, 2 * abs(y) + 2)
    return abs(y) * gate(y) + bend * 3, gate(y) + (bend / abs(y) * steep if y else 0)


# -- rotary, pooling, scale, movement, embedding ---------------------------------------------------


def rotary_case(draw: Draw, dtype: str) -> Case:
    """cos and sin are any numbers: the rule asks for no circle."""
    shape = (size(draw, 2), size(draw, 2), size(draw, 2), 2 * size(draw, 2))
    x, r = array(draw, dtype, shape), array(draw, dtype, shape)
    cos, sin = (array(draw, dtype, (1, 1, *shape[2:]), ORDINARY[dtype], [1.0]) for _ in range(2))
    z, stabilized = finite(rotary.forward(x, cos=cos, sin=sin)), _stabilized(draw)
    case = Case(rotary, dtype, [x], z, r, {"cos": cos, "sin": sin})
    tables = amplification(cos, sin)

    def uniform() -> Trial:
        factors = (cos, sin, z)
        trial = case.trial("uniform", 4, tables * amplification(x), factors, **stabilized)
        # a product in z may underflow before it meets s
        trial.expected.amplified += max((abs(s) for s in trial.expected.ratios), default=0)
        return trial

    return case.offer(
        epsilon=lambda: case.trial(
            "epsilon", 4, tables * amplification(x), (cos, sin), **stabilized
        ),
        uniform=uniform,
        uniform_gxi=lambda: case.trial("uniform_gxi", 4, tables * amplification(x, r)),
        gradient=lambda: case.trial("gradient", 4, tables),
    )


def pooling_case(draw: Draw, dtype: str) -> Case:
    b, t, d = size(draw, 2), size(draw, 4), size(draw, 2)
    x, r = array(draw, dtype, (b, t, d)), array(draw, dtype, (b, 1, d))
    counted, stabilized = flags(draw, b, t, 1).astype(dtype), _stabilized(draw)
    counted[:, 0, 0] = 1
    z = finite(pooling.forward(x, counted=counted))
    case = Case(pooling, dtype, [x], z, r, {"counted": counted})

    def kappa(at: Index) -> Number:
        m, column = (exactly(a).tolist() for a in (counted[at[0], :, 0], x[at[0], :, at[1]]))
        e = rounded(stabilized["eps"], dtype)
        return _condition_of_sum(m, column, e, stabilized["stabilizer"], U[dtype])

    def epsilon() -> Trial:
        fits(dtype, 8 * top(x))
        strained: dict[str, Any] = {"kappa": kappa, "steps": 2 * (t + 2), "causes": ["stabilizer"]}
        return case.trial("epsilon", t, amplification(x), **strained, **stabilized)

    return case.offer(epsilon=epsilon, gradient=lambda: case.trial("gradient", t))


def _condition_of_sum(m: Any, x: Any, e: Fraction, stabilizer: str, u: Fraction) -> Number:
    """sum |terms of Z| / |Z + e|; 0 for small whole numbers, whose sums do not round."""
    if all(n.denominator == 1 and abs(n) < 2**20 for n in x):
        return 0
    total = sum(a * b for a, b in zip(m, x, strict=True))
    terms = sum(abs(a * b) for a, b in zip(m, x, strict=True))
    denominator = total + exact.stabilizer(total, e, stabilizer)
    if 8 * (len(x) + 2) * u * terms >= min(abs(total), abs(denominator)):
        raise OutOfRange  # Z is all rounding: its sign may turn
    return terms / abs(denominator)


def scale_case(draw: Draw, dtype: str) -> Case:
    x, r = array(draw, dtype, (2, 3)), array(draw, dtype, (2, 3))
    factor = one_of(draw, [0.125, 3.0, -0.7])
    z = finite(scale.forward(x, factor=factor))
    case = Case(scale, dtype, [x], z, r, {"factor": factor})

    def trial(rule: str) -> Trial:
        fits(dtype, top(x) * 8, top(r) * 8)
        return case.trial(rule, 0, 1, None)

    return case.offer(
        pass_through=lambda: trial("pass_through"), gradient=lambda: trial("gradient")
    )


MOVES: dict[str, tuple[list[Index], dict[str, Any]]] = {
    "split_heads": ([(2, 3, 4)], {"heads": 2}),
    "split_heads, one head": ([(1, 2, 3)], {"heads": 1}),
    "merge_heads": ([(2, 2, 3, 2)], {}),
    "repeat_heads": ([(2, 2, 2, 3)], {"times": 3}),
    "transpose": ([(2, 1, 3, 2)], {}),
    "slice": ([(2, 2, 5)], {"start": 1, "stop": 4}),
    "concat, last axis": ([(2, 2, 1), (2, 2, 3)], {"axis": -1}),
    "concat, positions": ([(2, 1, 2), (2, 3, 2), (2, 1, 2)], {"axis": -2}),
    "rows": ([(2, 3, 2)], {"index": (2, 0)}),
    "rows, several": ([(2, 3, 2)], {"index": ((1, 2), (0, 0))}),
    "patches": ([(2, 2, 4, 3)], {"size": (2, 3)}),
    "patches, pixels left over": ([(1, 1, 5, 4)], {"size": (2, 3)}),
    "reshape": ([(2, 3, 4)], {"shape": (2, 2, 6)}),
    "windows": ([(2, 5, 2)], {"size": 3, "stride": 1}),
    "windows, two on": ([(1, 8, 2)], {"size": 3, "stride": 2}),
    "windows, apart": ([(1, 5, 1)], {"size": 2, "stride": 3}),
}
"""Kind of movement -> shapes of its operands, and its attributes."""


def movement_case(draw: Draw, dtype: str, move: str | None = None) -> Case:
    move = move or one_of(draw, list(MOVES))
    shapes, how = MOVES[move]
    attributes = {"kind": move.partition(",")[0], **how}
    operands = [array(draw, dtype, shape) for shape in shapes]
    z = movement.forward(*operands, **attributes)
    case = Case(movement, dtype, list(operands), z, array(draw, dtype, z.shape), attributes)

    def pass_through() -> Trial:
        fits(dtype, 8 * top(case.r))
        return case.trial("pass_through", 2, 1, None)

    return case.offer(pass_through=pass_through)


def embedding_case(draw: Draw, dtype: str, role: str = "tokens") -> Case:
    table = array(draw, dtype, (4, 2))
    ids = np.asarray([size(draw, 4) - 1 for _ in range(4)]).reshape(2, 2)
    attributes: dict[str, Any] = {"ids": ids, "role": role}
    z = embedding.forward(table, **attributes)
    case = Case(embedding, dtype, [table], z, array(draw, dtype, z.shape), attributes)

    def trial(rule: str) -> Trial:
        fits(dtype, 8 * top(z) * top(case.r), 8 * top(case.r))
        return case.trial(rule, 4)

    return case.offer(leaf=lambda: trial("leaf"), leaf_gxi=lambda: trial("leaf_gxi"))


# -- experts ---------------------------------------------------------------------------------------


def places(draw: Draw, b: int, length: int) -> Any:
    """For each example some of its rows in any order,
    with empty places where another example has more.
    """
    some = st.lists(st.integers(0, length - 1), unique=True, max_size=length)
    rows = [draw(some) for _ in range(b)]
    longest = max(1, *map(len, rows))
    return tuple((*row, *[None] * (longest - len(row))) for row in rows)


def combine_case(draw: Draw, dtype: str) -> Case:
    """Outputs of one to three experts, each on rows of its own choice;
    a row may have no expert, or several.
    """
    b, d, length, stabilized = size(draw, 2), size(draw, 2), size(draw), _stabilized(draw)
    index = tuple(places(draw, b, length) for _ in range(size(draw)))
    ys = [array(draw, dtype, (b, len(where[0]), d)) for where in index]
    attributes: dict[str, Any] = {"index": index, "length": length}
    z, r = finite(combine.forward(*ys, **attributes)), array(draw, dtype, (b, length, d))
    case = Case(combine, dtype, list(ys), z, r, attributes)
    return case.offer(
        epsilon=lambda: case.trial("epsilon", len(ys), amplification(*ys), ys, **stabilized),
        gradient=lambda: case.trial("gradient", 0),
    )


def gather_case(draw: Draw, dtype: str) -> Case:
    b, m, d = size(draw, 3), size(draw, 4), size(draw, 2)
    index, x = places(draw, b, m), array(draw, dtype, (b, m, d))
    z, r = gather.forward(x, index=index), array(draw, dtype, (b, len(index[0]), d))
    case = Case(gather, dtype, [x], z, r, {"index": index})
    return case.offer(pass_through=lambda: case.trial("pass_through", 0, 1, None))


def top_k_case(draw: Draw, dtype: str) -> Case:
    """The definition is not told what was chosen."""
    b, t, e = size(draw, 2), size(draw), size(draw, 5)
    k = size(draw, e)
    p, r = array(draw, dtype, (b, t, e)), array(draw, dtype, (b, t, k))
    chosen = top_k.choose(p, k)
    told = {"chosen": None, "k": k}
    case = Case(top_k, dtype, [p], top_k.forward(p, chosen=chosen), r, {"chosen": chosen}, told)
    return case.offer(pass_through=lambda: case.trial("pass_through", 0, 1, None))


def renormalize_case(draw: Draw, dtype: str) -> Case:
    """Positive weights, as a softmax makes them, never far from one: z is a quotient of a sum
    without cancellation.
    """
    shape, stabilized = (size(draw, 2), size(draw, 2), size(draw, 4)), _stabilized(draw)
    x, n = array(draw, dtype, shape, POSITIVE[dtype], [1.0]), shape[-1]
    r = array(draw, dtype, shape, scales=[1.0])
    case = Case(renormalize, dtype, [x], renormalize.forward(x), r)
    amplified = amplification(x) * 64**3 * n * (1 + top(r))
    return case.offer(
        identity=lambda: case.trial("identity", 0, amplified, None),
        identity_gxi=lambda: case.trial("identity_gxi", n, amplified, None),
        epsilon=lambda: case.trial("epsilon", 4 * n, amplified, None, **stabilized),
        gradient=lambda: case.trial("gradient", 4 * n, amplified, None),
    )


# -- state space models ---------------------------------------------------------------------------


def causal_convolution_case(draw: Draw, dtype: str) -> Case:
    """Kernels longer than the text, and of one."""
    shape, k = (size(draw, 2), size(draw, 4), size(draw, 2)), size(draw, 5)
    x, w, r = (array(draw, dtype, s) for s in (shape, (shape[-1], k), shape))
    b = array(draw, dtype, shape[-1:]) if one_of(draw, [True, False]) else None
    z = finite(causal_convolution.forward(x, w, b))
    case, stabilized = Case(causal_convolution, dtype, [x, w, b], z, r), _stabilized(draw)
    summed, amplified = k + 1 + shape[1] * shape[2], amplification(x, w, b) * k
    return case.offer(
        epsilon=lambda: case.trial("epsilon", summed, amplified, (x, w, b), **stabilized),
        gradient=lambda: case.trial("gradient", summed, amplified),
    )


STEPS = {
    d: st.one_of(st.sampled_from([0.0, 0.25, 1.0, 4.0]), st.floats(0, 4, width=_width(d)))
    for d in DTYPES
}
RATES = {d: st.floats(-4, 1, width=_width(d)) for d in DTYPES}


def scan_case(draw: Draw, dtype: str) -> Case:
    """Steps from nothing to far: what was before is kept whole, or forgotten. A decay is exp of a
    rounded product, as far off as that is large, and each place in between has one: the condition
    is the sum of these products.
    """
    (b, t, i, n), stabilized = (size(draw, k) for k in (2, 4, 2, 3)), _stabilized(draw)
    x, r = (array(draw, dtype, (b, t, i), ORDINARY[dtype], [1.0]) for _ in range(2))
    d = array(draw, dtype, (b, t, i), STEPS[dtype], [1.0])
    into, out = (array(draw, dtype, (b, t, n), ORDINARY[dtype], [1.0]) for _ in range(2))
    a_log = array(draw, dtype, (i, n), RATES[dtype], [1.0])
    operands = [x, d, into, out, a_log]
    case = Case(scan, dtype, operands, scan.forward(*operands), r)
    far = t * rounded(float(np.max(d)), dtype) * (1 + Fraction(math.exp(float(np.max(a_log)))))
    summed, factors = 8 * t + n + 4 * i, (x, d, into, out)
    amplified = amplification(x, d, into, out, r) * 4 * t * n
    strained: dict[str, Any] = {"kappa": lambda at: far, "steps": 4}

    def gradient() -> Trial:
        offsets = ("product_offset", "decay_offset")
        return case.trial("gradient", summed, amplified, causes=offsets, **strained)

    return case.offer(
        epsilon=lambda: case.trial("epsilon", summed, amplified, factors, **strained, **stabilized),
        epsilon_gxi=lambda: case.trial("epsilon_gxi", summed, amplified, **strained),
        gradient=gradient,
    )


# -- all of them -----------------------------------------------------------------------------------

CASES: dict[str, Callable[[Draw, str], Case]] = {
    "activation": activation_case,
    "add": add_case,
    "causal_convolution": causal_convolution_case,
    "combine": combine_case,
    "embedding": embedding_case,
    "gather": gather_case,
    "layer_norm": layer_norm_case,
    "linear": linear_case,
    "matmul": matmul_case,
    "movement": movement_case,
    "multiply": multiply_case,
    "pooling": pooling_case,
    "renormalize": renormalize_case,
    "rms_norm": rms_norm_case,
    "rotary": rotary_case,
    "scale": scale_case,
    "scan": scan_case,
    "softmax": softmax_case,
    "top_k": top_k_case,
    "z_box": z_box_case,
}
"""What a case is drawn for -> how."""
