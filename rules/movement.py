"""Movement: values change their place, never themselves          z_k = x_[index(k)]

    pass_through    R_x = sum over the copies of R_k; the same for gradients

Absorbs nothing. Each kind of movement stands beside the movement that undoes it; axes are counted
from the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from refl.arrays import Array, namespace
from refl.rules.conservation import Forms, RuleOutput


def forward(*arrays: Array, kind: str, **how: Any) -> Array:
    return MOVES[kind][0](*arrays, **how)


def pass_through(*arrays: Array, kind: str, **how: Any) -> RuleOutput:
    *operands, _, r = arrays
    back = MOVES[kind][1](r, *operands, **how)
    return RuleOutput(back if isinstance(back, tuple) else (back,), {})


def _split_heads(x: Array, *, heads: int) -> Array:  # (B, T, H d) -> (B, H, T, d)
    xp = namespace(x)
    return xp.permute_dims(xp.reshape(x, (*x.shape[:-1], heads, -1)), (0, 2, 1, 3))


def _unsplit_heads(r: Array, x: Array, *, heads: int) -> Array:
    return _merge_heads(r)


def _merge_heads(x: Array) -> Array:  # (B, H, T, d) -> (B, T, H d)
    xp = namespace(x)
    return xp.reshape(
        xp.permute_dims(x, (0, 2, 1, 3)), (x.shape[0], x.shape[2], x.shape[1] * x.shape[3])
    )


def _unmerge_heads(r: Array, x: Array) -> Array:
    return _split_heads(r, heads=x.shape[1])


def _repeat_heads(
    x: Array, *, times: int
) -> Array:  # (B, K, T, d) -> (B, K times, T, d), copies side by side
    return namespace(x).repeat(x, times, axis=1)


def _unrepeat_heads(r: Array, x: Array, *, times: int) -> Array:
    xp = namespace(r)
    return xp.sum(xp.reshape(r, (x.shape[0], x.shape[1], times, *x.shape[2:])), axis=2)


def _transpose(x: Array) -> Array:  # (..., M, N) -> (..., N, M)
    return namespace(x).matrix_transpose(x)


def _untranspose(r: Array, x: Array) -> Array:
    return namespace(r).matrix_transpose(r)


def _slice(x: Array, *, start: int, stop: int) -> Array:  # (..., N) -> (..., stop - start)
    return x[..., start:stop]


def _unslice(r: Array, x: Array, *, start: int, stop: int) -> Array:
    whole = namespace(r, x).zeros_like(x)
    whole[..., start:stop] = r
    return whole


def _concat(*arrays: Array, axis: int) -> Array:
    return namespace(*arrays).concat(arrays, axis=axis)


def _unconcat(r: Array, *arrays: Array, axis: int) -> tuple[Array, ...]:
    pieces, start = [], 0
    for x in arrays:
        stop = start + x.shape[axis]
        where: list[Any] = [slice(None)] * r.ndim
        where[axis] = slice(start, stop)
        pieces.append(r[tuple(where)])
        start = stop
    return tuple(pieces)


Chosen = tuple[int | tuple[int, ...], ...]
"""For each example the row that is chosen, or several, as many for each: R."""


def _rows(x: Array, *, index: Chosen) -> Array:  # (B, T, D), B integers or B x R -> (B, R, D)
    xp = namespace(x)
    each = (
        xp.concat([x[b : b + 1, t : t + 1, ...] for t in rows], axis=1)
        for b, rows in enumerate(_several(index))
    )
    return xp.concat(list(each), axis=0)


def _unrows(r: Array, x: Array, *, index: Chosen) -> Array:
    whole = namespace(r, x).zeros_like(x)
    for b, rows in enumerate(_several(index)):
        for k, t in enumerate(rows):  # one may be chosen twice
            whole[b, t, ...] += r[b, k, ...]
    return whole


def _several(index: Chosen) -> list[tuple[int, ...]]:
    return [rows if isinstance(rows, tuple) else (rows,) for rows in index]


def _reshape(x: Array, *, shape: tuple[int, ...]) -> Array:
    return namespace(x).reshape(x, shape)


def _unreshape(r: Array, x: Array, *, shape: tuple[int, ...]) -> Array:
    return namespace(r).reshape(r, x.shape)


def _patches(
    x: Array, *, size: tuple[int, int]
) -> Array:  # (B, C, H, W) -> (B, N, C h w), patches row by row
    """What is left over at the right and at the bottom is in no patch."""
    xp, (h, w) = namespace(x), size
    b, c, rows, columns = x.shape[0], x.shape[1], x.shape[2] // h, x.shape[3] // w
    grid = xp.reshape(x[..., : rows * h, : columns * w], (b, c, rows, h, columns, w))
    return xp.reshape(xp.permute_dims(grid, (0, 2, 4, 1, 3, 5)), (b, rows * columns, c * h * w))


def _unpatches(r: Array, x: Array, *, size: tuple[int, int]) -> Array:
    xp, (h, w) = namespace(r, x), size
    b, c, rows, columns = x.shape[0], x.shape[1], x.shape[2] // h, x.shape[3] // w
    grid = xp.permute_dims(xp.reshape(r, (b, rows, columns, c, h, w)), (0, 3, 1, 4, 2, 5))
    whole = xp.zeros_like(x)
    whole[..., : rows * h, : columns * w] = xp.reshape(grid, (b, c, rows * h, columns * w))
    return whole


def _windows(
    x: Array, *, size: int, stride: int
) -> Array:  # (B, T, C) -> (B, N, C size), windows in the order of their first row
    """Rows may be in several windows; those that do not fill one are in none."""
    xp, (b, t, c) = namespace(x), x.shape
    count = (t - size) // stride + 1
    rows = [x[:, _every(k, stride, count), :] for k in range(size)]
    return xp.reshape(xp.stack(rows, axis=-1), (b, count, c * size))


def _unwindows(r: Array, x: Array, *, size: int, stride: int) -> Array:
    (b, _, c), count = x.shape, r.shape[1]
    whole, each = namespace(r, x).zeros_like(x), namespace(r).reshape(r, (b, count, c, size))
    for k in range(size):
        whole[:, _every(k, stride, count), :] += each[..., k]
    return whole


def _every(k: int, stride: int, count: int) -> slice:
    """Row k of each window."""
    return slice(k, k + stride * (count - 1) + 1, stride)


MOVES: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "split_heads": (_split_heads, _unsplit_heads),
    "merge_heads": (_merge_heads, _unmerge_heads),
    "repeat_heads": (_repeat_heads, _unrepeat_heads),
    "transpose": (_transpose, _untranspose),
    "slice": (_slice, _unslice),
    "concat": (_concat, _unconcat),
    "rows": (_rows, _unrows),
    "reshape": (_reshape, _unreshape),
    "patches": (_patches, _unpatches),
    "windows": (_windows, _unwindows),
}


RULES = {"pass_through": Forms(pass_through, pass_through)}
