"""What bitsandbytes stores, as transformers saves it: `quant_method` "bitsandbytes".

Eight bits (LLM.int8(), Dettmers et al. 2022, arXiv 2208.07339):

    w[o, i] = weight[o, i] SCB[o] / 127

    weight         int8 (O, I)
    SCB            float32 (O,)    the largest size in each row
    weight_format  uint8           0: row by row

Four bits (QLoRA, Dettmers et al. 2023, arXiv 2305.14314), NF4 or FP4, of the numbers of the matrix
one after the other in blocks of `blocksize`:

    w[n] = quant_map[q[n]] absmax[n / blocksize]

    weight            (N, 1)   bytes of two numbers, the first in the upper four bits; stored as
                               uint8, or as any dtype of as many bytes in all
    weight.quant_map  float32 (16,)
    weight.absmax     float32 (blocks,); with double quantization uint8 a, and
                      absmax[b] = nested_quant_map[a[b]] nested_absmax[b / nested_blocksize]
                                  + nested_offset
    weight.quant_state.bitsandbytes__nf4 (or __fp4)    bytes of a JSON object: shape, blocksize,
                      quant_type, nested_blocksize, nested_offset

w and absmax are formed in float64, with one rounding for each operation, and w is then rounded to
the dtype asked for. bitsandbytes forms absmax in float32, and rounds w to the dtype it computes in,
often bfloat16. Under LLM.int8() it also rounds activations to eight bits, all but outliers; refl
does not: the weights are those of the file, and nothing else is rounded.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy
from numpy.typing import NDArray

from refl.errors import ReflError, quoted, shown
from refl.io.config import once_each
from refl.io.quantized.matrix import Matrix, Parts, Widen, expect_matrix, expect_part, take
from refl.io.quantized.options import Options
from refl.io.quantized.scheme import Entries, Read, Scheme

TABLES = {
    "nf4": (
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ),  # QLoRA, appendix E
    "fp4": tuple(
        sign * twelfths / 12 for sign in (1, -1) for twelfths in (0, 0.0625, 8, 12, 4, 6, 2, 3)
    ),
}
"""What the four bits stand for. bitsandbytes has the tables in its code and passes over that of the
file, which therefore has to be the same."""

_STATE_LIMIT = 4096


def scheme(options: Options) -> Scheme:
    eight, four = options.flag("load_in_8bit"), options.flag("load_in_4bit")
    if eight == four:
        raise options.refusal("load_in_8bit", "expected one of load_in_8bit and load_in_4bit")
    options.off("llm_int8_has_fp16_weight", "weights of 16 bits beside eight are not implemented")
    options.harmless(
        *("_load_in_8bit", "_load_in_4bit", "llm_int8_threshold", "bnb_4bit_compute_dtype"),
        *("llm_int8_enable_fp32_cpu_offload", "bnb_4bit_quant_storage", "quant_method"),
        *("bnb_4bit_quant_type", "bnb_4bit_use_double_quant"),  # each tensor says it
    )
    skipped = options.names("llm_int8_skip_modules")
    if eight:
        rounds = "activations to int8, all but outliers"
        return Scheme("bitsandbytes", _int8, {"bits": 8, "symmetric": True}, skipped, rounds)
    kind = options.one_of("bnb_4bit_quant_type", TABLES, "fp4")
    double = options.flag("bnb_4bit_use_double_quant")
    facts = {"bits": 4, "format": kind, "double_quantization": double}
    return Scheme("bitsandbytes", _four_bits, facts, skipped)


# -- eight bits ------------------------------------------------------------------------------------


def _int8(entries: Entries, read: Read) -> Iterator[Matrix]:
    for scb in entries:
        if scb.endswith(".SCB"):
            yield _int8_matrix(scb.removesuffix(".SCB"), entries, read)


def _int8_matrix(module: str, entries: Entries, read: Read) -> Matrix:
    beside = {part: entries.get(f"{module}.{part}") for part in ("weight", "SCB", "weight_format")}
    parts = {part: entry for part, entry in beside.items() if entry is not None}
    name = f"{module}.weight"
    expect_part(parts, name, "weight", ("I8",))
    rows, columns = expect_matrix(parts["weight"], name, "weight")
    expect_part(parts, name, "SCB", ("F32",), (rows,))
    if "weight_format" in parts:
        expect_part(parts, name, "weight_format", ("U8",), (), (1,))
        if (order := int(read(f"{module}.weight_format").reshape(-1)[0])) != 0:
            raise ReflError(
                f"weight_format of {shown(name)} is {order}, expected 0, row by row: save the "
                "model with a bitsandbytes of 2023 or later"
            )

    def opened(found: Parts, dtype: str) -> Widen:
        weight, scales = found["weight"], found["SCB"].astype(numpy.float64)

        def fill(start: int, out: NDArray[Any]) -> None:
            first = start // columns
            wide = weight[first : first + out.size // columns].astype(numpy.float64)
            wide *= scales[first : first + len(wide), None]
            wide /= 127
            out[...] = wide.reshape(-1)

        return fill

    return Matrix(name, rows, columns, "bitsandbytes int8", parts, opened, columns)


# -- four bits -------------------------------------------------------------------------------------

_STATE = ".quant_state.bitsandbytes__"


def _four_bits(entries: Entries, read: Read) -> Iterator[Matrix]:
    for key in entries:
        name, found, kind = key.partition(_STATE)
        if found:
            yield _four_bit_matrix(name, kind, entries, read)


@dataclass(frozen=True)
class State:
    """The JSON object beside a matrix, once it is checked."""

    rows: int
    columns: int
    blocksize: int
    nested_blocksize: int | None
    nested_offset: float

    @property
    def blocks(self) -> int:
        return -(-self.rows * self.columns // self.blocksize)


def _four_bit_matrix(name: str, kind: str, entries: Entries, read: Read) -> Matrix:
    of_state = f"quant_state.bitsandbytes__{kind}"
    parts = {"weight": entries[name]} if name in entries else {}
    for part in ("absmax", "quant_map", "nested_absmax", "nested_quant_map", of_state):
        if (entry := entries.get(f"{name}.{part}")) is not None:
            parts[part] = entry
    expect_part(parts, name, "weight", tuple(_BAGS))
    expect_part(parts, name, of_state, ("U8",))
    if kind not in TABLES or parts[of_state].count > _STATE_LIMIT:
        raise ReflError(
            f"{shown(name)} has {shown(of_state)} of {parts[of_state].count} bytes, expected that "
            f"of {' or '.join(TABLES)}, of at most {_STATE_LIMIT}"
        )
    state = _state(name, kind, read(f"{name}.{of_state}").tobytes())
    _expect_parts(parts, name, state)
    blocks = state.blocksize * (1 if state.blocksize % 2 == 0 else 2)
    said = f"bitsandbytes {kind}" + (", double" if state.nested_blocksize else "")
    opened = partial(_opened, name=name, kind=kind, state=state)
    return Matrix(name, state.rows, state.columns, said, parts, opened, blocks)


_BAGS = {"U8": 1, "I8": 1, "F16": 2, "BF16": 2, "F32": 4, "F64": 8}
"""What the bytes of a weight may be stored as -> how many in each."""


def _expect_parts(parts: Entries, name: str, state: State) -> None:
    entry = parts["weight"]
    size = -(-state.rows * state.columns // 2)
    if entry.count * _BAGS[entry.tag] != size:
        raise ReflError(
            f"weight of {shown(name)} has {entry.count * _BAGS[entry.tag]} bytes, its quant_state "
            f"asks for {size}: {state.rows} x {state.columns} numbers of four bits"
        )
    expect_part(parts, name, "quant_map", ("F32",), (16,))
    if state.nested_blocksize is None:
        expect_part(parts, name, "absmax", ("F32",), (state.blocks,))
        return
    expect_part(parts, name, "absmax", ("U8",), (state.blocks,))
    expect_part(parts, name, "nested_quant_map", ("F32",), (256,))
    shape = (-(-state.blocks // state.nested_blocksize),)
    expect_part(parts, name, "nested_absmax", ("F32",), shape)


def _state(name: str, kind: str, data: bytes) -> State:
    try:
        raw = json.loads(data, object_pairs_hook=once_each)
    except (ValueError, RecursionError) as error:
        raise ReflError(f"quant_state of {shown(name)} is not valid JSON: {error}") from None
    if not isinstance(raw, dict) or raw.get("quant_type") != kind:
        raise ReflError(
            f"quant_state of {shown(name)} is {quoted(raw)}, expected an object of quant_type "
            f"{kind}"
        )
    shape = raw.get("shape")
    if not isinstance(shape, list) or len(shape) != 2 or math.prod(map(_size, shape)) == 0:
        raise _wrong(name, "shape", shape, "the two sizes of a matrix")
    if not _size(raw.get("blocksize")):
        raise _wrong(name, "blocksize", raw.get("blocksize"), "a whole number above 0")
    nested = raw.get("nested_blocksize")
    if nested is None:
        return State(shape[0], shape[1], raw["blocksize"], None, 0.0)
    offset = raw.get("nested_offset")
    if not _size(nested):
        raise _wrong(name, "nested_blocksize", nested, "a whole number above 0")
    if not isinstance(offset, float) or not math.isfinite(offset):
        raise _wrong(name, "nested_offset", offset, "a finite number")
    return State(shape[0], shape[1], raw["blocksize"], nested, offset)


def _size(n: Any) -> int:
    """n where it can be a size, else 0."""
    return n if type(n) is int and 0 < n < 1 << 31 else 0


def _wrong(name: str, option: str, value: Any, expected: str) -> ReflError:
    return ReflError(
        f"quant_state of {shown(name)} has {option} = {quoted(value)[:80]}, expected {expected}"
    )


def _opened(found: Parts, dtype: str, *, name: str, kind: str, state: State) -> Widen:
    table = _pairs(found["quant_map"], kind, dtype)
    largest = _absmax(found, state, dtype)
    packed = numpy.ascontiguousarray(found["weight"]).reshape(-1).view(numpy.uint8)
    size = state.blocksize

    def fill(start: int, out: NDArray[Any]) -> None:
        odd = out.size % 2
        pairs = numpy.empty(out.size + odd, dtype) if odd else out
        take(table, packed[start // 2 : (start + out.size + odd) // 2], pairs)
        if odd:
            out[...] = pairs[:-1]
        whole = out.size - out.size % size
        blocks, first = out[:whole].reshape(-1, size), start // size
        numpy.multiply(blocks, largest[first : first + len(blocks), None], blocks, casting=_CAST)
        if whole < out.size:
            numpy.multiply(out[whole:], largest[-1], out[whole:], casting=_CAST)

    return fill


_CAST: Any = "same_kind"
"""A product in float64 is rounded once more, to float32."""


def _pairs(found: NDArray[Any], kind: str, dtype: str) -> NDArray[Any]:  # (16,) -> (256, 2)
    """The two numbers of a byte, the upper four bits first."""
    if not numpy.allclose(found, TABLES[kind], rtol=0, atol=2.0**-20):
        raise ReflError(f"its quant_map is not the table of {kind}")
    numbers = found.astype(dtype)
    both = numpy.empty((16, 16, 2), dtype)
    both[..., 0], both[..., 1] = numbers[:, None], numbers
    return both.reshape(256, 2)


def _absmax(found: Parts, state: State, dtype: str) -> NDArray[Any]:  # -> (blocks,)
    """float64 where it had to be formed, so that only the product is rounded to `dtype`."""
    if state.nested_blocksize is None:
        return found["absmax"].astype(dtype)
    of_block = found["nested_absmax"].astype(numpy.float64)
    wide = found["nested_quant_map"].astype(numpy.float64)[found["absmax"]]
    wide *= of_block[numpy.arange(wide.size) // state.nested_blocksize]
    wide += state.nested_offset
    return wide
