"""NumPy's large arrays a few rows at a time.

An operation that treats each row by itself is called for some rows after others, by the rules as
they stand: what it makes on the way stays in a core's cache, the pieces are spread over threads,
and what the ledger wants to know of an array is summed while it is at hand. Results are those of
one call for all rows; sums are formed piece by piece, in an order that depends on no number of
threads.

What is not NumPy's, or small, is handed to the operation and its rule as it is.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from refl import parallel
from refl.arrays import Array, total, total_product
from refl.buffers import BUFFERS
from refl.rules import linear
from refl.rules.conservation import RuleOutput
from refl.rules.operations import OPERATIONS

LARGE = 1 << 17
"""Numbers from which on an array is worth several calls."""

LONG = 1 << 22
"""Multiplications from which on a product is worth several threads."""

FEW = 96
"""So many rows and fewer are multiplied by a matrix that lies transposed as its columns are by the
matrix as it lies: BLAS copies what it reads into an order of its own, and is quicker at that so.
"""

PIECE = 1 << 18
"""Numbers of a piece. A rule's arrays of a quarter of that size would share a second-level cache;
but after each call of NumPy's a thread waits for Python's lock, and the longer the calls, the
seldomer it does.
"""

ROW_BY_ROW = frozenset(
    {"activation", "add", "layer_norm", "multiply", "rms_norm", "rotary", "scale"}
)
"""Operations whose output has a row for each row of their inputs, and depends on no other."""

NORMS = ("layer_norm", "rms_norm")

Sums = list[Array | None]
"""For each operand the relevance that it receives, (B,) float64; None where it receives none."""


def forward(operation: str, arrays: Sequence[Array | None], attributes: Mapping[str, Any]) -> Array:
    """The operation's output."""
    compute = OPERATIONS[operation].forward
    x: Array = arrays[0] if arrays else None
    if operation == "linear" and _is_long(x, arrays[1]):
        return _linear(*arrays)
    if not is_large(x) or not _by_itself(operation, arrays, x):
        return compute(*arrays, **attributes)
    z: Array = BUFFERS.like(x)

    def piece(rows: slice) -> None:
        z[..., rows, :] = compute(*_cut(arrays, rows), **_cut_attributes(attributes, rows))

    _each(x, piece)
    return z


def _linear(x: Array, w: Array, b: Array | None) -> Array:
    return _product(x, w.T, b)


def _product(x: Array, w: Array, b: Array | None = None) -> Array:  # (..., I), (I, O) -> (..., O)
    """x w + b, rows or columns shared out among the threads: BLAS's own go on waiting busily for
    more when they are done, and are in the way of what comes next.
    """
    z = BUFFERS.empty((*x.shape[:-1], w.shape[-1]), x.dtype)
    x, flat = x.reshape(-1, x.shape[-1]), z.reshape(-1, w.shape[-1])
    tall = len(flat) >= flat.shape[1]
    turned = len(flat) <= FEW and not w.flags.c_contiguous
    shares = _shares(flat.shape[0 if tall else 1])

    def portion(number: int) -> None:
        some = shares[number]
        rows, columns = (some, slice(None)) if tall else (slice(None), some)
        if turned:
            flat[rows, columns] = (w[:, columns].T @ x[rows].T).T
        else:
            np.matmul(x[rows], w[:, columns], out=flat[rows, columns])
        if b is not None:
            flat[rows, columns] += b[columns]

    parallel.each(portion, len(shares))
    return z


def _shares(length: int) -> list[slice]:
    """One for each thread, at multiples of what BLAS computes at once."""
    each = -(-length // parallel.threads() // _AT_ONCE) * _AT_ONCE
    return [slice(start, min(start + each, length)) for start in range(0, length, each)]


_AT_ONCE = 48
"""Rows and columns of OpenBLAS's kernels divide this, or nearly."""


class Applied(NamedTuple):
    """What a rule makes of r, and the relevance that each operand receives by it."""

    output: RuleOutput
    sums: Sums


def apply(
    operation: str,
    rule: Callable[..., RuleOutput],
    arrays: Sequence[Array | None],
    z: Array,
    r: Array,
    how: Mapping[str, Any],
    as_gradient: bool,
    rows: slice | None = None,
) -> Applied:
    """`how`: attributes of the operation and options of the rule. `rows`: where r is zero but for
    these, which is what the inputs receive then, for every rule passes on nothing of nothing.
    """
    whole = (*arrays, z, r)
    if rows is not None and (operation == "linear" or _by_itself(operation, (*arrays, z), r)):
        here = [a if a is None or a.shape[:-1] != r.shape[:-1] else a[:, rows] for a in arrays]
        how = _cut_attributes(how, rows)
        part = apply(operation, rule, here, z[:, rows], r[:, rows], how, as_gradient)
        return _spread(part, rows, r.shape[1])
    if rule is linear.gradient and _is_long(r, arrays[1]):
        x, w, b = arrays
        return _linear_gradient(x, w, b, r)
    if is_large(r) and _by_itself(operation, whole, r):
        return _by_rows(rule, whole, how, as_gradient)
    output = rule(*whole, **how)
    received = [
        None if x is None else relevance_sum(a, x, as_gradient)
        for a, x in zip(arrays, output.inputs, strict=True)
    ]
    return Applied(output, received)


def alive(r: Array) -> slice | None:
    """The rows of r (B, T, N) to which anything comes, where they are few: behind the last block of
    a model it is the one whose logit is explained. None where they are many.
    """
    if not is_large(r) or r.ndim != 3:
        return None
    found = np.flatnonzero(r.any(axis=(0, 2)))
    if not found.size or 2 * (found[-1] + 1 - found[0]) > r.shape[1]:
        return None
    return slice(int(found[0]), int(found[-1]) + 1)


def _spread(part: Applied, rows: slice, length: int) -> Applied:
    """The same of all rows, of which the others receive nothing."""

    def whole(x: Array) -> Array:
        found = np.zeros((x.shape[0], length, x.shape[-1]), x.dtype)
        found[:, rows] = x
        return found

    (inputs, absorbed), sums = part
    spread = tuple(None if x is None else whole(x) for x in inputs)
    return Applied(RuleOutput(spread, absorbed), sums)


def _linear_gradient(x: Array, w: Array, b: Array | None, g: Array) -> Applied:
    g_x = _product(g, w)
    bias = {} if b is None else {"bias": relevance_sum(b, g, as_gradient=True)}
    return Applied(RuleOutput((g_x, None, None), bias), [relevance_sum(x, g_x, True), None, None])


def _by_rows(
    rule: Callable[..., RuleOutput],
    whole: tuple[Array | None, ...],
    how: Mapping[str, Any],
    as_gradient: bool,
) -> Applied:
    *arrays, _, r = whole
    made: list[Array] = [None] * len(arrays)
    found: dict[int, tuple[dict[str, Array], Sums]] = {}
    lock = threading.Lock()

    def piece(rows: slice) -> None:
        *_, r_here = here = _cut(whole, rows)
        output = rule(*here, **_cut_attributes(how, rows))
        for i, x in enumerate(output.inputs):
            if x is not None:
                with lock:
                    _make_room(made, i, r, x is r_here)
                if made[i] is not r:
                    made[i][..., rows, :] = x
        sums = [
            None if x is None else _sum(a, x, as_gradient)
            for a, x in zip(here, output.inputs, strict=False)
        ]
        found[rows.start] = output.absorbed, sums

    _each(r, piece)
    absorbed: dict[str, Array] = {}
    received: Sums = [None] * len(arrays)
    for start in sorted(found):
        causes, sums = found[start]
        for cause, amount in causes.items():
            absorbed[cause] = absorbed.get(cause, 0.0) + amount
        received = [s if t is None else s + t for s, t in zip(sums, received, strict=True)]
    return Applied(RuleOutput(tuple(made), absorbed), received)


def _make_room(made: list[Array], i: int, r: Array, handed_on: bool) -> None:
    """For what operand i receives; nothing is copied where that is r as it came."""
    if made[i] is None:
        made[i] = r if handed_on else BUFFERS.like(r)


def added(a: Array, b: Array) -> Array:
    """a + b"""
    return forward("add", (a, b), {})


# -- sums ------------------------------------------------------------------------------------------


def relevance_sum(x: Array, propagated: Array, as_gradient: bool) -> Array:  # -> (B,)
    """Relevance per example of what is propagated to the activation x: of its product with x where
    that is a gradient.
    """
    if not is_large(propagated):
        return _sum(x, propagated, as_gradient)
    found: dict[int, Array] = {}

    def piece(rows: slice) -> None:
        here = x if x.ndim == 1 else x[..., rows, :]
        found[rows.start] = _sum(here, propagated[..., rows, :], as_gradient)

    _each(propagated, piece)
    return sum(found[start] for start in sorted(found))


def _sum(x: Array, propagated: Array, as_gradient: bool) -> Array:
    return total_product(x, propagated) if as_gradient else total(propagated)


# -- rows ------------------------------------------------------------------------------------------


def is_large(x: Array) -> bool:
    """Whether an array of NumPy's is worth several calls."""
    return isinstance(x, np.ndarray) and x.size >= LARGE and x.ndim > 2 and x.dtype.char in "fd"


def _is_long(x: Array, w: Array) -> bool:
    """Whether a product with a matrix (O, I) is worth several threads."""
    several = isinstance(x, np.ndarray) and isinstance(w, np.ndarray) and x.dtype == w.dtype
    return several and x.dtype.char in "fd" and x.size * (w.size // x.shape[-1]) >= LONG


def _by_itself(operation: str, arrays: Sequence[Array | None], x: Array) -> bool:
    """Whether the operation treats each row by itself: all have the shape of x, but for a norm's
    weights, which are one row for all.
    """
    weights = operation in NORMS
    return operation in ROW_BY_ROW and all(
        a is None or (isinstance(a, np.ndarray) and (a.shape == x.shape or weights and a.ndim == 1))
        for a in arrays
    )


def _cut(arrays: Sequence[Array | None], rows: slice) -> tuple[Array | None, ...]:
    return tuple(a if a is None or a.ndim == 1 else a[..., rows, :] for a in arrays)


def _cut_attributes(how: Mapping[str, Any], rows: slice) -> dict[str, Any]:
    """Attributes that are arrays (cosines and sines) have a row for each row as well."""
    return {
        name: value[..., rows, :] if isinstance(value, np.ndarray) and value.ndim > 1 else value
        for name, value in how.items()
    }


def _each(x: Array, piece: Callable[[slice], None]) -> None:
    """piece(rows) for all rows of x: in as many pieces as a power of two, which threads share
    evenly.
    """
    length = x.shape[-2]
    count = 1 << max(0, math.ceil(math.log2(x.size / PIECE)))
    rows = -(-length // count)
    starts = range(0, length, rows)
    parallel.each(lambda n: piece(slice(starts[n], starts[n] + rows)), len(starts))
