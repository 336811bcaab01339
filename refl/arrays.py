"""NumPy or CuPy, taken from the array at hand, and the few helpers both lack.

Nothing here names a device: a function asks its own arrays which library they belong to, so the
same line runs on the CPU, on a GPU, and under any library that follows the array API standard.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import cache, wraps
from typing import Any, TypeAlias, TypeVar, cast

Array: TypeAlias = Any
"""A NumPy or CuPy array, or one of any array-API library: they share no static type."""

Namespace: TypeAlias = Any
"""The module such an array comes from."""

Elementwise = TypeVar("Elementwise", bound=Callable[..., Any])


def namespace(*arrays: Array) -> Namespace:
    """The library the arrays belong to.

    Raises TypeError when they come from two libraries: host and device are never mixed silently.
    """
    found, kind = None, type(None)
    for array in arrays:
        if type(array) is kind or array is None:
            continue
        xp, kind = _library(array), type(array)
        if found is not None and xp is not found:
            raise _mixed(arrays)
        found = xp
    if found is None:
        raise _mixed(arrays)
    return found


def _mixed(arrays: Iterable[Array]) -> TypeError:
    names = sorted({_library(a).__name__ for a in arrays if a is not None})
    return TypeError(
        f"expected arrays of one library, got {', '.join(names) or 'none'}; "
        "move them to one device first"
    )


_LIBRARIES: dict[type, Namespace] = {}
"""Type of array -> its library: asked of the first array of each type, for it is asked of every
array that is computed with."""


def _library(array: Array) -> Namespace:
    kind = type(array)
    if kind in _LIBRARIES:
        return _LIBRARIES[kind]
    if _is_cupy(array):  # cupy.ndarray (14.2) has no __array_namespace__
        return sys.modules["cupy"]
    _LIBRARIES[kind] = array.__array_namespace__()
    return _LIBRARIES[kind]


def _is_cupy(array: Array) -> bool:
    module = type(array).__module__
    return module == "cupy" or module.startswith("cupy.")


def asnumpy(array: Array) -> Any:
    """The same numbers as a NumPy array on the host;
    a copy only where the array lives elsewhere.
    """
    import numpy

    if _is_cupy(array):
        return array.get()
    if isinstance(array, numpy.ndarray):
        return array
    return numpy.asarray(numpy.from_dlpack(array, device="cpu"))


def asnumpy_each(arrays: Sequence[Array]) -> list[Any]:  # each of one shape and dtype
    """`asnumpy` of every array: all in one transfer, where they lie elsewhere."""
    if not arrays or can_ask(arrays[0]):
        return [asnumpy(array) for array in arrays]
    return list(asnumpy(namespace(*arrays).stack(arrays)))


def can_ask(array: Array) -> bool:
    """Whether the numbers of an array can be looked at for nothing: whether they are NumPy's.

    A device works through what it has been told while the host goes on. To look at one number, the
    host waits for all of it. So a branch that numbers decide is taken where this is true alone, and
    beside it stands what needs no branch.
    """
    return _is_numpy(array)


def _is_numpy(array: Array) -> bool:
    return type(array).__module__ == "numpy"


def device_of(x: Array) -> dict[str, Any]:
    """What a function that makes an array is told, so that it lies where x does: cupy's take no
    device.
    """
    return {} if namespace(x).__name__ == "cupy" else {"device": x.device}


def like(values: Array, other: Array) -> Array:
    """`values` (anything a NumPy array can be made of) in the library, dtype and on the device of
    `other`. One number is filled in there, and not sent.
    """
    xp, device = namespace(other), device_of(other)
    if isinstance(values, (int, float)):
        return xp.full((), values, dtype=other.dtype, **device)
    return xp.asarray(values, dtype=other.dtype, **device)


def fused(function: Elementwise) -> Elementwise:
    """An element-wise function as one kernel for CuPy's arrays, and as it is for any others.

    One by one, its operations would each read and write whole arrays. It is called by position with
    arrays, numbers and None, and keeps to what `cupy.fuse` can trace: arithmetic, comparisons,
    functions of single elements, `where`, `clip`, `flags`. There are no shapes in it, no sums, no
    new arrays, and no branch that a number decides.

    Two numbers never meet in it, of which one is an argument: such a product CuPy (14.2) takes in
    half precision. They are multiplied before the call.
    """

    @wraps(function)
    def call(*arguments: Any) -> Any:
        if "cupy" in sys.modules and any(map(_is_cupy, arguments)):
            return _kernel(sys.modules["cupy"], function)(*arguments)
        return function(*arguments)

    return cast(Elementwise, call)


@cache
def _kernel(cupy: Namespace, function: Callable[..., Any]) -> Callable[..., Any]:
    """Made once: CuPy keeps with it what it compiles, for each dtype and number of axes."""
    return cast(  # CUDA has an erfc of its own, so the kernel has a longer name
        Callable[..., Any],
        cupy.fuse(kernel_name=f"refl_{function.__name__.strip('_')}")(function),
    )


def total(x: Array) -> Array:  # (B, ...) -> (B,)
    """The sum over everything but the first axis: along the last in the array's own dtype, then in
    float64; of few numbers, where a call costs more than they do, in float64 all along.
    """
    xp = namespace(x)
    if _are_few(x):
        return _sum_all(xp, x)
    return _sum_rows(xp, _row_sums(xp, x) if x.ndim > 1 else x[:, None])


def total_product(x: Array, y: Array) -> Array:  # (B, ..., N), (B, ..., N) -> (B,)
    """`total(x * y)`, without holding the product where it is large."""
    if _are_few(y):
        return _sum_all(namespace(x, y), x * y)
    return _sum_rows(namespace(x, y), row_product(x, y) if x.ndim > 1 else (x * y)[:, None])


def _are_few(x: Array) -> bool:
    return x.size <= FEW and _is_numpy(x)


FEW = 1 << 12
"""Numbers up to which one call for all is quicker than two for rows and their sums."""


def _sum_all(xp: Namespace, x: Array) -> Array:  # (B, ...) -> (B,)
    return xp.add.reduce(x.reshape(len(x), math.prod(x.shape[1:])), axis=1, dtype=xp.float64)


def row_sum(x: Array) -> Array:  # (..., N) -> (..., 1)
    """The sum over the last axis."""
    return _row_sums(namespace(x), x)[..., None]


def _row_sums(xp: Namespace, x: Array) -> Array:  # (..., N) -> (...)
    """As a matrix product: BLAS is twice as fast at it as a reduction."""
    return x @ xp.ones_like(x[(0,) * (x.ndim - 1) + (...,)])


def row_product(x: Array, y: Array) -> Array:  # (..., N), (..., N) -> (..., 1)
    """The dot product over the last axis; the others broadcast."""
    return (x[..., None, :] @ y[..., :, None])[..., 0]


def extremes(x: Array) -> tuple[Array, Array]:
    """The largest number of all, and the least."""
    if _is_numpy(x):  # for few numbers the methods take half as long
        return x.max(), x.min()
    xp = namespace(x)
    return xp.max(x), xp.min(x)


def squares_scale(x: Array, eps: float) -> Array | None:  # (..., N) -> (..., 1)
    """What rows are divided by before they are squared: None where squares and their sum fit the
    dtype, else the largest number of each row (or sqrt(eps), or 1, where that is more than 0).

    The largest of all is looked for first, which costs a hundredth of a matrix product. Where
    looking costs more, a row whose squares fit is divided by 1.
    """
    xp = namespace(x)
    about = xp.finfo(x.dtype)
    most = math.sqrt(float(about.max) / (4 * max(x.shape[-1], 1)))
    none_vanish = eps >= float(about.smallest_normal) / float(about.eps)
    if 0 in x.shape:
        return None
    if none_vanish and can_ask(x):
        largest, least = extremes(x)
        if largest <= most and least >= -most:
            return None
    top = xp.max(xp.abs(x), axis=-1, keepdims=True)
    scale = xp.maximum(top, like(math.sqrt(eps), x))
    scale = scale + flags(scale == 0, x)
    if none_vanish and not can_ask(x):
        return xp.where(top <= most, xp.ones_like(scale), scale)
    return scale


def inverse_rms(x: Array, eps: float) -> tuple[Array, Array]:  # (..., N) -> (..., 1) x 2
    """1 / sqrt(mean(x^2) + eps), and the part that mean(x^2) has in that sum: for any finite x."""
    xp, scale = namespace(x), squares_scale(x, eps)
    e = eps
    if scale is not None:
        x, e = x / scale, eps / scale / scale
    mean_square = row_product(x, x) / x.shape[-1]
    inverse = 1 / xp.sqrt(mean_square + e)
    share = mean_square / (mean_square + e)
    return inverse if scale is None else inverse / scale, share


def _sum_rows(xp: Namespace, rows: Array) -> Array:  # (B, ...) -> (B,)
    return xp.sum(rows, axis=tuple(range(1, rows.ndim)), dtype=xp.float64)


def sign_up(magnitude: float, twice: float, z: Array) -> Array:
    """`magnitude` times s(z), where s(z) = +1 for z >= 0 (zero of either sign included), else -1.
    `twice` is 2 * magnitude.

    In arithmetic, exactly: a branch per element (`where`) costs NumPy forty passes over memory when
    signs are mixed.
    """
    s = flags(z >= 0, z)
    s *= twice
    s -= magnitude
    return s


def flags(condition: Array, other: Array) -> Array:
    """1.0 where the condition holds, else 0.0, in the dtype of `other`."""
    if _is_numpy(condition) or _is_cupy(condition):  # no function: it is slow in numpy, and cupy's
        return condition.astype(other.dtype)  # refuses what stands for an array in a fused kernel
    return namespace(condition).astype(condition, other.dtype)


def swap(x: Array) -> Array:  # (..., M, N) -> (..., N, M)
    """The last two axes exchanged, as a view."""
    return namespace(x).matrix_transpose(x) if x.ndim > 1 else x


@fused
def erfc(x: Array) -> Array:
    """1 - erf(x), to about 6 units of roundoff relative, far tails included.

    erfc(x) = exp(-x^2) P(t)/(x + 4), t = (x - 4)/(x + 4) for x >= 0, and 2 - erfc(-x) below. The
    coefficients are made by `verification/quality/erfc_coefficients.py`; exp(-x^2) is taken in two
    factors so that x^2 does not round in the exponent (the device of W. J. Cody, Math. Comp. 23,
    1969).
    """
    xp = namespace(x)
    a = xp.abs(x)
    a_4 = a + 4.0
    t = (a - 4.0) / a_4
    *others, last = _ERFC[xp.finfo(x.dtype).bits]
    p = last * t
    for coefficient in reversed(others[1:]):
        p += coefficient
        p *= t
    p += others[0]
    head = xp.round(a * 16.0) / 16.0  # few enough bits that head * head is exact
    tail = xp.exp(-(head * head)) * xp.exp(-(a - head) * (a + head)) * p / a_4
    below = flags(x < 0, x)
    return 2.0 * below + (1.0 - 2.0 * below) * tail  # tail, or 2 - tail where x < 0


_ERFC = {
    64: (
        1.095995661000491,
        -0.9765487290808824,
        0.7732087022652306,
        -0.5408538313131976,
        0.33085158787831587,
        -0.1740109372408923,
        0.07638151490371081,
        -0.026370053329181024,
        0.006112055708386392,
        -0.0002809589359391201,
        -0.00045505297165692805,
        0.0001768130806560407,
        -3.6342038149469713e-06,
        -1.8861473378981353e-05,
        4.692383913754639e-06,
        1.4249464173304702e-06,
        -8.436516120561793e-07,
        -7.596899328669503e-08,
        1.225288207064525e-07,
        8.238240856147602e-10,
        -1.527528889990648e-08,
        2.654454508348017e-10,
        1.2073816594065525e-09,
    ),
    32: (
        1.095995657497481,
        -0.9765486831471049,
        0.7732089465292119,
        -0.540855127359166,
        0.3308488723297873,
        -0.17400045682019144,
        0.07639220441237497,
        -0.026406570551151448,
        0.006094501233835575,
        -0.0002184420428920677,
        -0.00044539428256664705,
        0.00012407508064662075,
    ),
}
"""Bits of the dtype -> coefficients of t^0, t^1, ...: as many as it takes for its last bit."""
