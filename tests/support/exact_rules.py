"""What the tests of rules against exact definitions share: drawn arrays, and the exact side of a
batch with its bound (which rules/test_rules_exact.py derives).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from backends import Backend
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from refl.rules import linear
from refl.rules.conservation import RuleOutput
from refl.verification.definitions import exact
from refl.verification.definitions.exact import MP, Number, Split

EPS = (1e-12, 1e-9, 1e-6, 1e-2)
KINDS = ("sign", "plain", "none")

dtypes = pytest.mark.parametrize("dtype", ["float64", "float32"])


# -- drawing ---------------------------------------------------------------------------------------


def hold(backend: Backend, judge: Callable[[st.DataObject], None]) -> None:
    """`judge` on many drawn examples; the strict backend is slow and checks the interface, so it
    gets fewer.
    """
    count = max(settings.default.max_examples * 3 // 10, 2)
    few = settings(
        max_examples=count if backend.name == "numpy" else max(count // 5, 2),
        suppress_health_check=list(HealthCheck),
    )
    few(given(st.data())(judge))()


def _numbers(dtype: str) -> st.SearchStrategy[float]:
    """Small whole numbers, so that sums cancel and values tie; zeros of both signs; ordinary and
    extreme magnitudes.
    """
    f = np.finfo(dtype)
    far = 1e300 if dtype == "float64" else 1e30
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
    ordinary = st.floats(-4, 4, width=64 if dtype == "float64" else 32)
    return st.one_of(
        st.sampled_from(whole),
        ordinary,
        st.sampled_from(whole),
        ordinary,
        st.sampled_from(whole * 2 + rare),
    )


NUMBERS = {dtype: _numbers(dtype) for dtype in ("float64", "float32")}
ORDINARY = {
    "float64": st.one_of(st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0]), st.floats(-4, 4)),
    "float32": st.one_of(st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0]), st.floats(-4, 4, width=32)),
}


def array(
    data: st.DataObject,
    dtype: str,
    shape: tuple[int, ...],
    numbers: Any = None,
    scales: Sequence[float] | None = None,
) -> Any:
    """An array of drawn numbers, as a whole now and then far up or down the range (by a power of
    two: ties stay ties).
    """
    n = math.prod(shape)
    values = data.draw(
        st.lists(NUMBERS[dtype] if numbers is None else numbers, min_size=n, max_size=n)
    )
    far = 2.0**990 if dtype == "float64" else 2.0**99
    factor = data.draw(
        st.sampled_from([1.0, 1.0, 1.0, 1.0, 1 / far, far] if scales is None else scales)
    )
    with np.errstate(all="ignore"):
        a = (np.asarray(values, dtype=dtype) * np.asarray(factor, dtype=dtype)).reshape(shape)
    assume(bool(np.all(np.isfinite(a))))
    return a


def size(data: st.DataObject, most: int = 3) -> int:
    return data.draw(st.integers(1, most))


def quiet(forward: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """The engine's forward in NumPy, thrown away where it overflows."""
    with np.errstate(all="ignore"):
        z = forward(*arguments, **options)
    assume(bool(np.all(np.isfinite(z))))
    return z


# -- comparing -------------------------------------------------------------------------------------


def exactly(a: Any) -> Any:
    """Nested lists of Fractions; each is the value of its float."""
    return Fraction(float(a)) if a.ndim == 0 else [exactly(each) for each in a]


def rounded(value: float, dtype: str) -> Fraction:
    """An option as the format holds it: 1e-6 is not 1e-6 in float32, and z + eps may cancel."""
    return Fraction(float(np.asarray(value, dtype=dtype)))


def u(dtype: str) -> Fraction:
    return Fraction(float(np.finfo(dtype).eps)) / 2


def eta(dtype: str) -> Fraction:
    return Fraction(float(np.finfo(dtype).smallest_subnormal))


def largest(*arrays_: Any) -> Fraction:
    """1 + the largest magnitude, multiplied over the arrays: the factors an underflow may still
    meet.
    """
    return math.prod(
        (1 + Fraction(float(np.max(np.abs(a), initial=0))) for a in arrays_ if a is not None),
        start=Fraction(1),
    )


def top(a: Any) -> Fraction:
    return Fraction(float(np.max(np.abs(a), initial=0)))


def fits(dtype: str, *numbers: Number) -> None:
    """Throw the example away where one of the numbers leaves the format."""
    limit = Fraction(float(np.finfo(dtype).max)) / 64
    assume(
        all(
            abs(n) < (limit if isinstance(n, (Fraction, int)) else exact.real(limit))
            for n in numbers
        )
    )


def no_underflow(dtype: str, products: Iterable[Number]) -> None:
    low = Fraction(float(np.finfo(dtype).tiny)) * 1024
    assume(all(p == 0 or abs(p) >= low for p in products))


class Expected:
    """The exact side of a batch: what each entry of each operand, and each cause in each example,
    should receive.
    """

    def __init__(self, operands: int, dtype: str) -> None:
        self.messages: list[dict[Any, list[Number]]] = [{} for _ in range(operands)]
        self.absorbed: dict[tuple[str, int], list[Number]] = {}
        self.shares: list[Number] = []
        self.dtype = dtype

    def add(
        self, split: Split, lead: tuple[int, ...], place: Callable[[int, Any], Any] | None = None
    ) -> None:
        """Enter one row (or matrix) that stands at `lead`; `place` maps an entry of an operand to
        its index in the array.
        """
        for k, messages in enumerate(split.messages):
            for entry, each in messages.items():
                index = (
                    place(k, entry)
                    if place
                    else (*lead, *(entry if isinstance(entry, tuple) else (entry,)))
                )
                self.messages[k].setdefault(index, []).extend(each)
        for cause, each in split.absorbed.items():
            self.absorbed.setdefault((cause, lead[0]), []).extend(each)
        self.shares += split.shares

    def in_range(self, *factors: Any) -> None:
        """Throw the example away where a share, a share times its factors but one, or a sum of
        |messages| overflows.
        """
        s = max((abs(each) for each in self.shares), default=Fraction(0))
        fits(self.dtype, s, *(16 * s * top(a) for a in factors if a is not None))
        sums = [*self.absorbed.values(), *(m for each in self.messages for m in each.values())]
        fits(self.dtype, *(sum(abs(m) for m in each) for each in sums))

    def judge(
        self,
        backend: Backend,
        passed: RuleOutput,
        shapes: Sequence[tuple[int, ...] | None],
        terms: int,
        lever: Number = 1,
        extra: Any = None,
    ) -> None:
        """Every relevance and every absorbed entry within its bound; `extra` (operand or cause,
        index) adds to k.
        """
        under = eta(self.dtype) * lever * 4 * (terms + 4)
        more = extra or (lambda where, index: 0)
        for k, shape in enumerate(shapes):
            got = passed.inputs[k]
            if not self.messages[k]:
                assert got is None or shape is not None
            if got is None:
                assert not self.messages[k], f"operand {k} got nothing"
                continue
            got = backend.back(got)
            assert got.shape == shape and got.dtype == self.dtype
            for index in np.ndindex(*shape):
                self._near(
                    got[index],
                    self.messages[k].get(index, []),
                    terms,
                    under,
                    more(k, index),
                    (k, index),
                )
        self._books(backend, passed, terms, under, more)

    def _books(
        self, backend: Backend, passed: RuleOutput, terms: int, under: Number, more: Any
    ) -> None:
        got = {cause: backend.back(amount) for cause, amount in passed.absorbed.items()}
        assert all(amount.dtype == np.float64 for amount in got.values())
        entries = {
            *self.absorbed,
            *((name, b) for name, amount in got.items() for b in range(len(amount))),
        }
        for cause, b in sorted(entries):
            value = got[cause][b] if cause in got else 0.0
            self._near(
                value, self.absorbed.get((cause, b), []), terms, under, more(cause, b), (cause, b)
            )

    def _near(
        self, got: Any, messages: list[Number], terms: int, under: Number, extra: Number, where: Any
    ) -> None:
        assert math.isfinite(got), f"{where}: {got}"
        wanted, scale_ = sum(messages), sum(abs(m) for m in messages)
        k = 8 + terms + len(messages) + extra
        bound = k * u(self.dtype) * scale_ + under
        error = abs(number(got, wanted) - wanted)
        assert error <= bound, (
            f"{where}: got {got!r}, exact {float(wanted)!r}, error {float(error):.3g}, "
            f"bound {float(bound):.3g}"
        )


def number(got: Any, like: Number) -> Number:
    return MP.mpf(float(got)) if isinstance(like, type(MP.mpf(0))) else Fraction(float(got))


def near(got: Any, wanted: Number, bound: Number) -> None:
    assert math.isfinite(got)
    error = abs(MP.mpf(float(got)) - exact.real(wanted))
    assert error <= exact.real(bound), (
        f"got {got!r}, exact {float(wanted)!r}, error {float(error):.3g}, bound {float(bound):.3g}"
    )


def closed(balance: Number, scale_: Number = 1) -> None:
    """Fractions balance to zero; 60-digit numbers to their last digits."""
    assert (
        balance == 0
        if isinstance(balance, (Fraction, int))
        else abs(balance) <= MP.mpf(10) ** -45 * (1 + scale_)
    )


def magnitude(split: Split) -> Number:
    return sum(abs(m) for each in split.messages for ms in each.values() for m in ms) + sum(
        abs(m) for ms in split.absorbed.values() for m in ms
    )


class Linear:
    """A drawn linear layer: x (lead, I), w (O, I), b (O,) or None, r (lead, O), z from the engine's
    forward.
    """

    def __init__(self, data: st.DataObject, dtype: str) -> None:
        lead = data.draw(st.sampled_from([(1,), (2,), (2, 2), (1, 3)]))
        self.dtype, self.i, self.o = dtype, size(data, 4), size(data)
        self.x = array(data, dtype, (*lead, self.i))
        self.w = array(data, dtype, (self.o, self.i))
        self.b = array(data, dtype, (self.o,)) if data.draw(st.booleans()) else None
        self.r = array(data, dtype, (*lead, self.o))
        self.z = quiet(linear.forward, self.x, self.w, self.b)
        self.rounding_scale = self.i + self.o + 1

    def placed(self, backend: Backend) -> list[Any]:
        return [
            None if a is None else backend.place(a)
            for a in (self.x, self.w, self.b, self.z, self.r)
        ]

    def rows(self) -> Iterable[tuple[tuple[int, ...], Any, Any, Any, Any, Any]]:
        w, b = exactly(self.w), None if self.b is None else exactly(self.b)
        for lead in np.ndindex(self.x.shape[:-1]):
            yield lead, exactly(self.x[lead]), w, b, exactly(self.z[lead]), exactly(self.r[lead])

    def products(self) -> list[Number]:
        found = [] if self.b is None else list(exactly(self.b))
        for _, x, w, _, _, _ in self.rows():
            found += [w[j][i] * x[i] for j in range(self.o) for i in range(self.i)]
        return found

    def judge(
        self, backend: Backend, passed: RuleOutput, expected: Expected, gamma: float = 0.0
    ) -> None:
        """gamma multiplies sums in which a product may have underflowed."""
        assert passed.inputs[1:] == (None, None)
        expected.judge(
            backend,
            passed,
            [self.x.shape],
            self.rounding_scale,
            largest(self.x, self.w, self.b) * self.i * (1 + Fraction(gamma)),
        )
