"""One safetensors file: its header, its numbers where they lie, and writing one.

A safetensors file is eight bytes of header length, a JSON header naming each tensor's dtype, shape
and place in the file, then the numbers. The safetensors library validates it; numpy.memmap views
the numbers where they lie, so nothing is read before it is used.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy
import safetensors
from numpy.typing import NDArray

from refl.arrays import Array, asnumpy
from refl.errors import ReflError, shown
from refl.io.config import once_each, parse_json
from refl.io.files import atomic_write, reason, regular_size

_HEADER_LIMIT = 100_000_000  # the safetensors library reads none that is longer
_MOST_DIMENSIONS = 64  # NumPy's limit

FLOATS = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",  # NumPy has no bfloat16, nor an eight-bit float: their bits
    "F8_E4M3": "u1",
    "F8_E5M2": "u1",
}
FLOAT8 = ("F8_E4M3", "F8_E5M2")
_STORED = FLOATS | {
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "u1",
}  # fmt: skip
_TAGS = {
    numpy.dtype(code): tag for tag, code in _STORED.items() if tag not in ("BF16", "BOOL", *FLOAT8)
}
_TAGS[numpy.dtype(bool)] = "BOOL"


# -- reading ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies: `shape` numbers of safetensors dtype `tag`,
    from byte `start` of `file`.
    """

    file: Path
    tag: str
    shape: tuple[int, ...]
    start: int

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def stop(self) -> int:
        """The byte after its last."""
        return self.start + self.count * numpy.dtype(_STORED.get(self.tag, "u1")).itemsize


def read_header(path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """The table of a safetensors file and its metadata; no number is read.

    Raises ReflError for anything the safetensors library refuses, and for a tensor NumPy could not
    hold.
    """
    header, base = _validated_header(path)
    metadata = header.pop("__metadata__", None) or {}
    return {name: _entry(path, name, fields, base) for name, fields in header.items()}, metadata


def _validated_header(path: Path) -> tuple[dict[str, Any], int]:
    """The JSON header and the offset of the first number,
    once the safetensors library accepts the file.
    """
    size = regular_size(path)
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _HEADER_LIMIT):
                raise ReflError(
                    f"{shown(path)} is cut short: {size} bytes, a header that claims {length}"
                )
            with safetensors.safe_open(path, framework="numpy"):
                pass  # opening checks shapes, dtypes and offsets against the size of the file
            return parse_json(path, file.read(length), once_each), 8 + length
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise ReflError(f"{shown(path)} is not a readable safetensors file: {error}") from None


def _entry(path: Path, name: str, fields: Any, base: int) -> Entry:
    # the library also takes ["F32", [2], [0, 8]]; no writer makes that
    if not isinstance(fields, dict):
        raise ReflError(
            f"{shown(path)} has no object for {shown(name)} but a {type(fields).__name__}"
        )
    entry = Entry(path, fields["dtype"], tuple(fields["shape"]), base + fields["data_offsets"][0])
    if (
        len(entry.shape) > _MOST_DIMENSIONS
        or 8 * math.prod(max(n, 1) for n in entry.shape) > sys.maxsize
    ):
        shape = shown(entry.shape)
        raise ReflError(
            f"{shown(path)} gives {shown(name)} the shape {shape}, which no array can have"
        )
    return entry


def _read_whole(path: Path, entries: Iterable[Entry]) -> NDArray[numpy.uint8]:
    """The bytes of a file whose header has been read, all that its tensors need."""
    try:
        raw = numpy.fromfile(path, dtype=numpy.uint8)
    except OSError as error:
        raise ReflError(f"{shown(path)} cannot be read: {reason(error)}") from None
    if raw.size < max((entry.stop for entry in entries), default=0):
        raise ReflError(f"{shown(path)} has become shorter while it was read: read it once more")
    raw.flags.writeable = False
    return raw


def map_bytes(path: Path) -> NDArray[numpy.uint8]:
    try:
        return numpy.memmap(path, dtype=numpy.uint8, mode="r")
    except (OSError, ValueError) as error:
        raise ReflError(f"{shown(path)} cannot be mapped: {error}") from None


def view(entry: Entry, raw: NDArray[numpy.uint8]) -> NDArray[Any]:
    """The numbers as they lie in the file, read-only, BF16 and float8 as their bits."""
    return numpy.ndarray(entry.shape, _STORED[entry.tag], buffer=raw, offset=entry.start)


def widen_bfloat16(bits: NDArray[numpy.uint16]) -> NDArray[numpy.float32]:
    """The float32 numbers whose upper halves are `bits`;
    exact, for bfloat16 is float32 cut to 16 bits.
    """
    wide = numpy.array(bits, dtype=numpy.uint32)
    wide <<= 16
    return wide.view(numpy.float32)


def widen(stored: NDArray[Any], tag: str, out: NDArray[Any]) -> None:  # (N,) -> (N,)
    """Into `out`, float32 or float64, the numbers of one of FLOATS: exact but for F64 in float32,
    which is rounded to nearest.

    A stretch at a time costs least: what one pass leaves in the cache, the next finds there.
    """
    if tag == "F16":
        numpy.take(_every_float16(out.dtype.str), stored.view("<u2"), out=out, mode="clip")
    elif tag in FLOAT8:
        numpy.take(every_float8(tag, out.dtype.str), stored, out=out, mode="clip")
    elif tag == "BF16" and out.dtype == numpy.float32:
        bits = out.view(numpy.uint32)
        bits[...] = stored
        bits <<= 16
    else:
        with numpy.errstate(over="ignore", invalid="ignore"):  # the caller refuses it by name
            out[...] = widen_bfloat16(stored) if tag == "BF16" else stored


@cache
def _every_float16(dtype: str) -> NDArray[Any]:  # -> (65536,)
    """By its bits. Looking a number up takes half as long as NumPy's own cast, and is as exact on a
    processor that was told to flush subnormal numbers to zero.
    """
    return numpy.arange(1 << 16, dtype=numpy.uint16).view(numpy.float16).astype(dtype)


@cache
def every_float8(tag: str, dtype: str) -> NDArray[Any]:  # -> (256,)
    """By its bits: sign, exponent e, fraction m, in that order (Micikevicius et al. 2022, arXiv
    2209.05433, table 1).

        (-1)^sign 2^(e - bias) (1 + m / 2^M),    where e = 0 (-1)^sign 2^(1 - bias) m / 2^M

    E5M2 has M = 2 and bias 15, infinity and NaN as in IEEE 754. E4M3 has M = 3 and bias 7, no
    infinity, and NaN only where all seven bits are set: PyTorch calls it e4m3fn.
    """
    fraction, bias = (3, 7) if tag == "F8_E4M3" else (2, 15)
    numbers = [_float8(bits, fraction, bias) for bits in range(128)]
    if tag == "F8_E4M3":
        numbers[127] = math.nan
    else:
        numbers[124:] = [math.inf, math.nan, math.nan, math.nan]
    return numpy.array([*numbers, *(-number for number in numbers)], dtype=dtype)


def _float8(bits: int, fraction: int, bias: int) -> float:
    exponent, m = divmod(bits, 1 << fraction)
    significand = m + (1 << fraction) if exponent else m
    return math.ldexp(significand, max(exponent, 1) - bias - fraction)


def read_safetensors(path: str | Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """The arrays of a safetensors file and its metadata.

    The file is read whole, so that nothing that becomes of it later changes the arrays; they are
    read-only, in the file's dtypes, BF16 and float8 as float32. Raises ReflError for a broken file
    and for dtypes NumPy lacks.
    """
    entries, metadata = read_header(Path(path))
    raw = _read_whole(Path(path), entries.values())
    return {name: read_entry(name, entry, raw) for name, entry in entries.items()}, metadata


def read_entry(name: str, entry: Entry, raw: NDArray[numpy.uint8]) -> NDArray[Any]:
    """A tensor in the mapped file, BF16 and float8 as float32 and BOOL as bool.
    Raises ReflError for a dtype NumPy lacks.
    """
    if entry.tag not in _STORED:
        raise ReflError(
            f"{shown(name)} is stored as {entry.tag}, expected one of {', '.join(_STORED)}"
        )
    stored = view(entry, raw)
    if entry.tag == "BF16":
        return widen_bfloat16(stored)
    if entry.tag in FLOAT8:
        return numpy.take(every_float8(entry.tag, "<f4"), stored)
    return numpy.asarray(stored != 0) if entry.tag == "BOOL" else stored


# -- writing ---------------------------------------------------------------------------------------


def write_safetensors(
    path: str | Path, arrays: Mapping[str, Array], metadata: Mapping[str, str]
) -> None:
    """Writes `arrays` (bool, integers, floats) and `metadata`, all of it or nothing.

    Equal input gives equal bytes, whatever its order. Raises ReflError for what the format cannot
    hold and for a place that cannot be written.
    """
    stored = {name: _storable(name, array) for name, array in arrays.items()}
    # widest first: all stay aligned
    order = sorted(stored, key=lambda name: (-stored[name].itemsize, name))
    header = _header_bytes({name: stored[name] for name in order}, metadata)
    atomic_write(path, header, *(stored[name].reshape(-1).view(numpy.uint8).data for name in order))


def _storable(name: str, array: Array) -> NDArray[Any]:
    host = asnumpy(array)
    if host.dtype.newbyteorder("<") not in _TAGS:
        raise ReflError(
            f"{shown(name)} has dtype {host.dtype}, which a safetensors file cannot hold"
        )
    return numpy.asarray(host, dtype=host.dtype.newbyteorder("<"), order="C")


def _header_bytes(stored: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> bytes:
    """Length and JSON header, padded so that the numbers start at a multiple of eight."""
    table: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    if "__metadata__" in stored:
        raise ReflError(
            "expected no array named __metadata__: the safetensors format reserves the name"
        )
    if not all(isinstance(text, str) for pair in metadata.items() for text in pair):
        raise ReflError("expected metadata of strings: write anything else as JSON")
    stop = 0
    for name, array in stored.items():
        start, stop = stop, stop + array.nbytes
        table[name] = {
            "dtype": _TAGS[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [start, stop],
        }
    try:
        text = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as error:
        raise ReflError(
            f"expected names and metadata in Unicode, got half of a character: {error}"
        ) from None
    if len(text) > _HEADER_LIMIT - 8:
        raise ReflError(
            f"names and metadata take {len(text)} bytes, a header holds at most {_HEADER_LIMIT}"
        )
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
