"""The library compressed-tensors (vLLM project): `quant_method` "compressed-tensors".

    w[o, i] = (q[o, i] - zero[g]) scale[g],    g: the group of o and i

    float-quantized   weight         float8 (O, I)
    int-quantized     weight         int8 (O, I)
    naive-quantized   weight         either
    pack-quantized    weight_packed  int32 (O, I bits / 32 rounded up): along each row
                                     q + 2^(bits-1), of four or eight bits each, the lowest bits of
                                     a word first
                      weight_shape   int64 (2,): O and I

    weight_scale       float, in the shape that `strategy` asks for: tensor (1,), channel (O, 1),
                       group (O, I / group_size), block (O / h, I / w) of block_structure [h, w]
    weight_zero_point  int8 in the same shape; pack-quantized: int32, packed down the columns,
                       plus 2^(bits-1); only where `symmetric` is false
    weight_g_idx       int32 (I,): the group of each input, where actorder made another order

All groups of config.json have to store weights in one way. The library also rounds activations,
and keys and values of a cache (`input_scale`, `k_scale`, ...). refl does not: the weights are those
of the file, and nothing else is rounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy
from numpy.typing import NDArray

from refl.errors import ReflError, shown
from refl.io.quantized.float8 import Block, block_size
from refl.io.quantized.matrix import (
    SCALES,
    Grid,
    Matrix,
    Parts,
    Widen,
    as_bytes,
    expect_matrix,
    expect_part,
    floats,
    grid_shape,
    group_of,
    unpack,
)
from refl.io.quantized.options import Options
from refl.io.quantized.scheme import Entries, Read, Scheme
from refl.io.safetensors import FLOAT8, widen

FORMATS = ("float-quantized", "int-quantized", "naive-quantized", "pack-quantized")


@dataclass(frozen=True)
class Format:
    kind: str
    """float, int or packed."""
    bits: int
    symmetric: bool
    strategy: str
    group_size: int | None
    block: Block | None
    ordered: bool

    def block_of(self, rows: int, columns: int) -> Block:
        """Rows and columns that have one scale."""
        if self.strategy == "tensor":
            return rows, columns
        if self.strategy == "channel":
            return 1, columns
        height, width = self.block or (1, self.group_size or columns)
        return min(height, rows), min(width, columns)


def scheme(options: Options) -> Scheme:
    kind = options.one_of("format", FORMATS)
    options.one_of("quantization_status", ("compressed",), "compressed")
    for key, what in _NOT_IMPLEMENTED.items():
        inner = options.get(key)
        if not (isinstance(inner, dict) and inner.get("format") == "dense"):
            options.off(key, what)
    options.harmless("global_compression_ratio", "version", "quant_method", "run_compressed")
    groups = options.inner("config_groups")
    if groups is None or not groups.raw:
        raise options.refusal("config_groups", "expected an object that says how")
    found = [_group(groups.inner(key), groups, key, kind) for key in groups.raw]
    hows, activations = [how for how, _ in found], any(rounds for _, rounds in found)
    if any(how != hows[0] for how in hows):
        raise options.refusal("config_groups", "groups with different weights are not implemented")
    rounds = ["activations"] * activations
    rounds += ["keys and values of a cache"] * (options.get("kv_cache_scheme") is not None)
    how = hows[0]
    facts: dict[str, Any] = {"bits": how.bits, "format": kind, "strategy": how.strategy}
    if how.group_size:
        facts["group_size"] = how.group_size
    return Scheme(
        "compressed-tensors",
        partial(_matrices, how=how),
        facts | {"symmetric": how.symmetric},
        tuple(name for name in options.names("ignore") if not name.startswith("re:")),
        " and ".join(rounds),
        _SCALES_OF_ACTIVATIONS,
    )


_NOT_IMPLEMENTED = {
    "sparsity_config": "sparse weights are not implemented",
    "transform_config": "transforms of activations are not implemented",
    "moe_sparsity_config": "sparse experts are not implemented",
}

_ACTIVATIONS = ("input", "output", "q", "k", "v")
_SCALES_OF_ACTIVATIONS = (
    *(f"{what}_scale" for what in _ACTIVATIONS),
    *(f"{what}_zero_point" for what in _ACTIVATIONS),
)


def _group(group: Options | None, of: Options, key: str, kind: str) -> tuple[Format, bool]:
    """How the group stores weights, and whether it rounds activations."""
    if group is None:
        raise of.refusal(key, "expected an object")
    group.names("targets")
    group.one_of("format", (kind,), kind)
    rounds = [group.get(f"{what}_activations") is not None for what in ("input", "output")]
    weights = group.inner("weights")
    if weights is None:
        raise group.refusal("weights", "expected an object: groups without are not implemented")
    how = _weights(weights, kind)
    group.finish()
    return how, any(rounds)


def _weights(o: Options, kind: str) -> Format:
    packed = kind == "pack-quantized"
    type_ = o.one_of("type", _TYPES.get(kind, ("int",)), "int")
    bits = o.one_of("num_bits", (4, 8) if packed else (8,), 8)
    symmetric = o.flag("symmetric", True)
    if type_ == "float" and not symmetric:
        raise o.refusal("symmetric", "float8 with zero points is not implemented")
    size = o.get("group_size")
    guess = "tensor" if size is None else "channel" if size == -1 else "group"
    strategy = o.one_of("strategy", ("tensor", "channel", "group", "block"), guess)
    group_size = o.whole("group_size") if strategy == "group" else None
    block = block_size(o, "block_structure") if strategy == "block" else None
    order = o.one_of("actorder", (None, False, "weight", "static", "group", "dynamic"))
    o.off("dynamic", "weights that are quantized as they are used are not implemented")
    o.harmless("observer", "observer_kwargs", "scale_dtype", "zp_dtype", "block_structure")
    o.finish()
    held = "packed" if packed else type_
    return Format(held, bits, symmetric, strategy, group_size, block, order in ("group", "dynamic"))


_TYPES = {"float-quantized": ("float",), "naive-quantized": ("int", "float")}
"""Format -> the types that it stores, where it is not int alone."""


# -- matrices --------------------------------------------------------------------------------------


def _matrices(entries: Entries, read: Read, how: Format) -> Iterator[Matrix]:
    first = "weight_packed" if how.kind == "packed" else "weight"
    for scale in entries:
        if scale.endswith(".weight_scale"):
            yield _matrix(scale.removesuffix(".weight_scale"), first, entries, read, how)


def _matrix(module: str, first: str, entries: Entries, read: Read, how: Format) -> Matrix:
    names = (first, "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx")
    beside = {part: entries.get(f"{module}.{part}") for part in names}
    parts = {part: entry for part, entry in beside.items() if entry is not None}
    name = f"{module}.weight"
    expect_part(parts, name, first, _TAGS[how.kind])
    rows, columns = expect_matrix(parts[first], name, first)
    if how.kind == "packed":
        columns = _columns(module, parts, rows, columns * 32 // how.bits, read)
    height, width = how.block_of(rows, columns)
    shape = grid_shape(rows, columns, height, width)
    single = ((), (1,)) if shape == (1, 1) else ()
    expect_part(parts, name, "weight_scale", SCALES, shape, *single)
    _expect_zeros(parts, name, shape, single, how)
    if "weight_g_idx" in parts:
        expect_part(parts, name, "weight_g_idx", ("I32", "I64"), (columns,))
    elif how.ordered:
        expect_part(parts, name, "weight_g_idx", ("I32", "I64"))
    said = f"compressed-tensors, {how.kind} of {how.bits} bits"
    opened = partial(_opened, parts=parts, how=how, shape=(rows, columns))
    return Matrix(name, rows, columns, said, parts, opened, columns)


_TAGS = {"float": FLOAT8, "int": ("I8",), "packed": ("I32",)}


def _columns(module: str, parts: Entries, rows: int, most: int, read: Read) -> int:
    """As weight_shape says: the last word of a row need not be full."""
    name = f"{module}.weight"
    expect_part(parts, name, "weight_shape", ("I64", "I32"), (2,))
    said = [int(n) for n in read(f"{module}.weight_shape")]
    if said[0] != rows or not 0 <= most - said[1] < most // parts["weight_packed"].shape[1]:
        raise ReflError(
            f"weight_shape of {shown(name)} is {said}, which weight_packed of shape "
            f"{parts['weight_packed'].shape} does not hold"
        )
    return said[1]


def _expect_zeros(
    parts: Entries, name: str, shape: Block, single: tuple[tuple[int, ...], ...], how: Format
) -> None:
    if how.symmetric and "weight_zero_point" not in parts:
        return
    if how.symmetric:
        raise ReflError(
            f"{shown(name)} has a weight_zero_point, and config.json says that it is symmetric"
        )
    if how.kind == "packed":
        words = (-(-shape[0] * how.bits // 32), shape[1])
        expect_part(parts, name, "weight_zero_point", ("I32",), words)
    else:
        expect_part(parts, name, "weight_zero_point", ("I8",), shape, *single)


def _opened(
    found: Parts, dtype: str, *, parts: Entries, how: Format, shape: tuple[int, int]
) -> Widen:
    rows, columns = shape
    block = how.block_of(rows, columns)
    scales = floats(found["weight_scale"], parts["weight_scale"], dtype)
    scales = scales.reshape(grid_shape(rows, columns, *block))
    groups = None
    if "weight_g_idx" in found:
        stored = found["weight_g_idx"]
        groups = group_of(stored, scales.shape[1], block[1], "weight_g_idx")
    grid = Grid(scales, *block, _zeros(found, how, scales), groups)
    first, stored = next(iter(found.items()))

    def fill(start: int, out: NDArray[Any]) -> None:
        above, wide = start // columns, out.reshape(-1, columns)
        some = stored[above : above + len(wide)]
        if how.kind == "float":
            widen(some.reshape(-1), parts[first].tag, out)
        elif how.kind == "int":
            wide[...] = some
        else:
            _unpack(some, how.bits, wide)
        grid.apply(above, wide)

    return fill


def _unpack(words: NDArray[Any], bits: int, out: NDArray[Any]) -> None:  # (N, W) -> (N, I)
    """Moved down by 2^(bits - 1)."""
    whole = words.shape[1] * 32 // bits
    if whole == out.shape[1]:
        unpack(as_bytes(words), bits, out)
    else:
        wide = numpy.empty((len(words), whole), out.dtype)
        unpack(as_bytes(words), bits, wide)
        out[...] = wide[:, : out.shape[1]]
    out -= 1 << bits - 1


def _zeros(found: Parts, how: Format, scales: NDArray[Any]) -> NDArray[Any] | None:
    if how.symmetric:
        return None
    stored = found["weight_zero_point"]
    zeros = numpy.empty_like(scales)
    if how.kind == "packed":
        across = numpy.empty(scales.shape[::-1], scales.dtype)
        _unpack(stored.T, how.bits, across)
        zeros[...] = across.T
    else:
        zeros[...] = stored.reshape(scales.shape)
    return zeros
