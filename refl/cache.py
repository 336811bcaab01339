"""Runs that are not recorded, each token computed by itself: a text is continued without running it
again, and nothing of a token's numbers depends on how many others are run beside it.

A decoder's token sees only what came before it, so keys and values that were computed once stay
what they are. `Cache` keeps them; `CachedTrace` runs the tokens that follow (`Batch.past` says how
many came before) and attends to all of them. Of a causal convolution it holds the last inputs, of
a selective scan the states.

Rounding. A matrix product with one row is summed in another order than the same row among others:
BLAS has kernels of their own for one row, for the last rows of a matrix, and for small matrices.
Each order is within gamma_n sum_i |x_i w_i| of the exact sum, gamma_n = n u / (1 - n u), so two of
them differ by at most 2 gamma_n sum_i |x_i w_i|. Here both runs take the same order:

    linear        rows are filled up to a multiple of ROWS, and to LEAST multiplications, where
                  BLAS takes its kernel for whole groups of rows
    attention     in tiles of ROWS queries by KEYS keys that start at multiples of these, one matrix
                  product of one shape each; their sums are added one after the other
    sums of rows  in tiles of ROWS rows

Hidden keys have probability 0, and adding 0 changes no number; the largest score of a row and what
is done to every number alone depend on nothing else. So in float64 a cached run gives the same bits
as a run of the whole text in this form (but where squares of activations leave the range of the
dtype, and norms divide the rows of a run by a number that depends on all of them). That a row is
summed alike in every group of ROWS is what OpenBLAS does in one thread, not what BLAS promises:
several threads share a matrix out by its shape, and some kernels then sum otherwise (Prescott's in
three threads, where the widths of layers are no multiples of theirs). There, and in another
library, the bound stands. float32 is for speed: a single row keeps the kernel of its own, several
times as fast, and stays within the bound; so do arrays of other libraries than NumPy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import numpy as np

from refl.arrays import Array, device_of, namespace
from refl.mask import Mask
from refl.rules import causal_convolution, scan
from refl.trace import Trace, Value

ROWS = 8
"""A multiple of the rows that BLAS kernels take at once."""

KEYS = 128
"""Enough for efficient products, few enough that little is filled up."""

LEAST = 1 << 20
"""Multiplications: above what any kernel of OpenBLAS for small matrices takes (100^3)."""

QUERIES = 16 * ROWS
"""As many are run at once: their scores are held."""


class Cache:
    """Keys and values of the tokens that were run, and what does not change while a text is
    continued. One for each text.
    """

    def __init__(self) -> None:
        self.length = 0
        """How many tokens were run."""
        self.rows: dict[str, Rows] = {}
        """Site of an attention's keys, or values -> what they were."""
        self.states: dict[str, Array] = {}
        """Site of a convolution or a scan -> what tokens that follow need of those before."""
        self.settled: dict[str, Any] = {}
        """Site -> what stays as it is: an encoder's output, and its keys and values."""
        self._arrays: dict[int, Array] = {}

    def settle(self, site: str, value: Any, array: Array) -> Any:
        self.settled[site] = value
        self._arrays[id(array)] = array
        return value

    def is_settled(self, array: Array) -> bool:
        return id(array) in self._arrays


class Rows:
    """Keys, or values, one row for each token, with room for more: a buffer that doubles."""

    def __init__(self, first: Array) -> None:  # (B, K, T, d)
        self.array = first[:, :, :0, :]

    def write(self, x: Array, past: int) -> None:  # (B, K, T, d)
        """The rows from `past` on; what was there is overwritten."""
        end, held = past + x.shape[2], self.array.shape[2]
        if end > held:
            old, shape = self.array, list(x.shape)
            shape[2] = filled(max(end, 2 * held), KEYS)
            self.array = _zeros(tuple(shape), x)
            self.array[:, :, :held, :] = old
        self.array[:, :, past:end, :] = x


class CachedTrace(Trace):
    """A run that is not recorded; with a cache, of the tokens that follow those in it."""

    def __init__(
        self,
        weights: Mapping[str, Array],
        cache: Cache | None = None,
        *,
        record: bool = False,
        plain: bool = False,
    ) -> None:
        super().__init__(weights, record=record, plain=plain)
        self.cache = cache

    def once(self, name: str, function: Any, *rest: Any) -> Value:
        if self.cache is None:
            return super().once(name, function, *rest)
        if name not in self.cache.settled:
            value = super().once(name, function, *rest)
            self.cache.settle(name, value, value.array)
        found: Value = self.cache.settled[name]
        return found

    def compute(
        self,
        operation: str,
        site: str,
        arrays: tuple[Array | None, ...],
        attributes: dict[str, Any],
    ) -> Array:
        run = super().compute
        if self.cache is not None and operation in FOLLOWING:
            following, held = FOLLOWING[operation], self.cache.states.get(site)
            z, self.cache.states[site] = following(held, *arrays)
            return z
        if self.cache is None or not arrays or not self.cache.is_settled(arrays[0]):
            return by_rows(run, operation, site, arrays, attributes)
        if site not in self.cache.settled:
            array = by_rows(run, operation, site, arrays, attributes)
            self.cache.settle(site, array, array)
        return self.cache.settled[site]

    def move(self, name: str, kind: str, *operands: Value, role: str = "", **how: Any) -> Value:
        if kind == "repeat_heads" and _is_numpy(operands[0].array):
            return operands[0]  # `attention` takes the queries of a group together
        return super().move(name, kind, *operands, role=role, **how)

    def attention(
        self,
        q: Value,
        k: Value,
        v: Value,
        mask: Mask | None,
        *,
        bias: Value | None = None,
        cap: float | None = None,
    ) -> Value:
        keys, values = self._all("key", k.array, mask), self._all("value", v.array, mask)
        if not _is_numpy(q.array):
            k, v = Value(keys, k.site), Value(values, v.site)
            return super().attention(q, k, v, mask, bias=bias, cap=cap)
        added = None if bias is None else bias.array
        length = k.array.shape[2] if mask is None else mask.keys
        array, finite = tiled(q.array, keys, values, mask, length, added, cap)
        if self.watched is not None:
            self.watched.append((self.site("probabilities"), finite))
        return Value(array, self.site("context"))

    def _all(self, name: str, x: Array, mask: Mask | None) -> Array:  # (B, K, T, d)
        """-> (B, K, past + T, d): what was kept, and this, which is kept too; in NumPy with rows
        beyond, up to a multiple of KEYS.
        """
        follows = mask is not None and mask.causal
        past = mask.past if mask is not None and follows else 0
        length = filled(past + x.shape[2], KEYS if _is_numpy(x) else 1)
        if self.cache is None or not (follows or self.cache.is_settled(x)):
            return with_rows(x, length) if _is_numpy(x) else x
        rows = self.cache.rows.setdefault(self.site(name), Rows(x))
        if follows or not rows.array.shape[2]:
            rows.write(x, past)
        return rows.array[:, :, :length, :]


# -- what is read from the first token to the last -------------------------------------------------


def _convolved(
    held: Array | None, x: Array, w: Array, b: Array | None
) -> tuple[Array, Array]:  # (B, T, C) -> (B, T, C), (B, K - 1, C) or fewer
    whole = x if held is None else namespace(x).concat([held, x], axis=1)
    length, needed = whole.shape[1], min(w.shape[-1] - 1, whole.shape[1])
    z = causal_convolution.forward(whole, w, b)
    return z[:, length - x.shape[1] :, :], whole[:, length - needed :, :]


FOLLOWING: dict[str, Callable[..., tuple[Array, Array]]] = {
    "causal_convolution": _convolved,
    "scan": scan.after,
}
"""(what is held of the tokens before, or None; operands) -> output, and what is held from now on.
Each token is computed as in a run of the whole text, so the bits are the same.
"""


# -- rows that are computed alike whatever stands beside them --------------------------------------


def by_rows(
    run: Callable[..., Array],
    operation: str,
    site: str,
    arrays: tuple[Array, ...],
    attributes: dict[str, Any],
) -> Array:
    """`run(operation, site, arrays, attributes)` on rows that are filled up."""
    if operation not in ("linear", "softmax", "renormalize") or not _is_wide(arrays[0]):
        return run(operation, site, arrays, attributes)
    x, *others = arrays
    length = x.shape[-2]
    if operation == "linear":
        least = -(-LEAST // max(others[0].size, 1))
        x = with_rows(x, filled(max(length, least), ROWS))
        return run(operation, site, (x, *others), attributes)[..., :length, :]
    x = with_rows(x, filled(length, ROWS))
    tiles = x.reshape(*x.shape[:-2], -1, ROWS, x.shape[-1])
    z = run(operation, site, (tiles, *others), attributes)
    return z.reshape(x.shape)[..., :length, :]


def tiled(
    q: Array,
    k: Array,
    v: Array,
    mask: Mask | None,
    keys: int,
    bias: Array | None,
    cap: float | None,
) -> tuple[Array, Array]:  # (B, H, J, d), (B, K, I, d) x 2 -> (B, H, J, d), bool ()
    """softmax(cap(q k^T + bias)) v of every head, and whether all scores are finite; `keys`: how
    many are none that only fill up. Each group of H / K heads of queries shares keys and values.
    """
    queries, found, finite = q.shape[2], [], np.True_
    for start in range(0, queries, QUERIES):
        rows = slice(start, min(start + QUERIES, queries))
        columns = slice(0, keys) if mask is None else mask.visible(rows)
        tiles = slice(columns.start // KEYS * KEYS, filled(columns.stop, KEYS))
        hidden = _hidden(mask, rows, tiles, keys)
        added = None if bias is None else bias[:, :, rows, tiles]
        part, fine = _attended(
            q[:, :, rows, :], k[:, :, tiles, :], v[:, :, tiles, :], hidden, added, cap
        )
        found.append(part)
        finite &= fine
    return np.concatenate(found, axis=2), finite


def _hidden(
    mask: Mask | None, rows: slice, tiles: slice, keys: int
) -> Array:  # -> bool (1|B, 1, J, I)
    """What these queries do not see of whole tiles of keys."""
    columns = slice(tiles.start, min(tiles.stop, keys))
    visible = None if mask is None else mask.part(rows, columns)
    shape = (1, 1, rows.stop - rows.start) if visible is None else visible.shape[:3]
    hidden = np.ones((*shape, tiles.stop - tiles.start), dtype=bool)
    hidden[..., : columns.stop - columns.start] = False if visible is None else ~visible
    return hidden


def _attended(
    q: Array, k: Array, v: Array, hidden: Array, bias: Array | None, cap: float | None
) -> tuple[Array, Array]:  # (B, H, J, d), (B, K, I, d) x 2 -> (B, H, J, d), bool ()
    """In the form (tile of keys, B, K, H / K, tile of queries, ROWS, KEYS or d)."""
    size, heads, queries, width = q.shape
    groups, tiles = k.shape[1], k.shape[2] // KEYS
    x = with_rows(q, filled(queries, ROWS)).reshape(size, groups, heads // groups, -1, ROWS, width)
    k, v = (np.moveaxis(a.reshape(size, groups, 1, 1, tiles, KEYS, width), 4, 0) for a in (k, v))
    s = x @ np.matrix_transpose(k)
    finite = np.isfinite(s.max()) & (s.min() > np.finfo(s.dtype).min / 2)
    if bias is not None:
        s += _laid(bias, groups, tiles)
    if cap is not None:
        s = np.tanh(s * (1 / cap)) * cap
    s[np.broadcast_to(_laid(hidden, groups, tiles), s.shape)] = -np.inf
    top = s.max(axis=(0, -1), keepdims=True)
    e = np.exp(s - np.where(np.isfinite(top), top, 0))
    z = _in_order(e.sum(axis=-1, keepdims=True))
    context = _in_order(e @ v) / (z + (z == 0))
    return context.reshape(size, heads, -1, width)[:, :, :queries, :], finite


def _laid(x: Array, groups: int, tiles: int) -> Array:  # (B, H, J, I)
    """-> (tile of keys, B, K, H / K, tile of queries, ROWS, KEYS); a mask is that of every head."""
    size, heads, queries, keys = x.shape
    groups = min(groups, heads)
    x = with_rows(x, filled(queries, ROWS))
    if keys < tiles * KEYS:
        x = np.pad(x, ((0, 0), (0, 0), (0, 0), (0, tiles * KEYS - keys)))
    return np.moveaxis(x.reshape(size, groups, heads // groups, -1, ROWS, tiles, KEYS), 5, 0)


def _in_order(x: Array) -> Array:  # (N, ...) -> (...)
    """x[0] + x[1] + ...: more terms of 0 behind change nothing."""
    return reduce(np.add, x)


def with_rows(x: Array, length: int) -> Array:  # (..., T, N) -> (..., length, N)
    """Zeros behind the rows."""
    if x.shape[-2] == length:
        return x
    whole = np.zeros((*x.shape[:-2], length, x.shape[-1]), dtype=x.dtype)
    whole[..., : x.shape[-2], :] = x
    return whole


def filled(n: int, unit: int) -> int:
    """The next multiple of `unit`."""
    return -(-n // unit) * unit


def _is_numpy(x: Array) -> bool:
    return isinstance(x, np.ndarray)


def _is_wide(x: Array) -> bool:
    return _is_numpy(x) and x.dtype == np.float64


def _zeros(shape: tuple[int, ...], other: Array) -> Array:
    """In the library, dtype and on the device of `other`."""
    return namespace(other).zeros(shape, dtype=other.dtype, **device_of(other))
