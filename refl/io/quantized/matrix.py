"""A matrix that several tensors of a file hold together, and what the formats of such matrices have
in common: whole numbers of a few bits packed into words, and scales for parts of a matrix.

    w[o, i] = (q[o, i] - zero[o / h, i / w]) scale[o / h, i / w],    one scale for h rows, w columns

Where q, zero and scale are exact in the dtype of the computation, so is the difference, and the
product is rounded once: not at all in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy
from numpy.typing import NDArray

from refl.errors import ReflError, shown
from refl.io.ahead import STRETCH, in_memory
from refl.io.safetensors import FLOATS, Entry, view, widen

Parts = Mapping[str, NDArray[Any]]
"""Part of a matrix -> its numbers as they lie in the file; bfloat16 and float8 as their bits."""

Widen = Callable[[int, NDArray[Any]], None]
"""(start, out): the numbers of the matrix (O, I), one after the other, from `start` on."""

SCALES = ("F32", "F16", "BF16")
"""What a scale may be stored as: float32 holds all of them."""


@dataclass(frozen=True)
class Matrix:
    """A weight, of `parts` that no net asks for."""

    name: str
    rows: int
    columns: int
    stored: str
    """In words: GPTQ, 4 bits."""
    parts: Mapping[str, Entry]
    """The first is that of the numbers themselves."""
    open: Callable[[Parts, str], Widen]
    """The parts and the dtype -> what widens. Raises ReflError for parts that are damaged."""
    step: int
    """Numbers that can only be widened together."""
    transposed: bool = False
    """Whether the net's own tensor is (I, O)."""

    @property
    def shape(self) -> tuple[int, int]:
        return (self.columns, self.rows) if self.transposed else (self.rows, self.columns)

    @property
    def count(self) -> int:
        return self.rows * self.columns

    @property
    def tag(self) -> str:
        return self.stored

    @property
    def file(self) -> Path:
        return next(iter(self.parts.values())).file

    @property
    def files(self) -> set[Path]:
        return {entry.file for entry in self.parts.values()}

    def source(
        self, read: Callable[[Path], NDArray[numpy.uint8]], dtype: str, check: bool
    ) -> Packed:
        """`read`: a file -> its bytes."""
        parts = {part: view(entry, read(entry.file)) for part, entry in self.parts.items()}
        try:
            return Packed(self, self.open(parts, dtype), dtype, check)
        except ReflError as error:
            raise ReflError(f"{shown(self.name)}, stored as {self.stored}: {error}") from None


@dataclass(frozen=True)
class Packed:
    """A refl.io.ahead.Source: the matrix on its way."""

    matrix: Matrix
    widen: Widen
    dtype: str
    check: bool

    @property
    def shape(self) -> tuple[int, ...]:
        return self.matrix.rows, self.matrix.columns

    @property
    def nbytes(self) -> int:
        return self.matrix.count * numpy.dtype(self.dtype).itemsize

    @property
    def stretch(self) -> int:
        return self.matrix.step * max(1, STRETCH // self.matrix.step)

    def flat(self, memory: Any) -> NDArray[Any]:
        return in_memory(self, memory)

    def fill(self, start: int, out: NDArray[Any]) -> None:
        with numpy.errstate(over="ignore", invalid="ignore"):  # the caller refuses it by name
            self.widen(start, out)


# -- parts -----------------------------------------------------------------------------------------


def expect_part(
    parts: Mapping[str, Entry],
    name: str,
    part: str,
    tags: tuple[str, ...],
    *shapes: tuple[int, ...],
) -> None:
    """Raises ReflError unless the part is there, of one of these dtypes and one of these shapes."""
    entry = parts.get(part)
    if entry is None:
        raise ReflError(f"{shown(name)} is quantized, and has no {part} beside it")
    if entry.tag not in tags:
        raise ReflError(
            f"{part} of {shown(name)} is stored as {shown(entry.tag)}, expected {' or '.join(tags)}"
        )
    if shapes and entry.shape not in shapes:
        wanted = " or ".join(map(str, dict.fromkeys(shapes)))
        raise ReflError(
            f"{part} of {shown(name)} has shape {shown(entry.shape)}, expected {wanted}"
        )


def expect_matrix(entry: Entry, name: str, part: str) -> tuple[int, int]:
    """Its shape. Raises ReflError for what is no matrix, or has no numbers."""
    if len(entry.shape) != 2 or 0 in entry.shape:
        raise ReflError(
            f"{part} of {shown(name)} has shape {shown(entry.shape)}, expected a matrix"
        )
    return entry.shape[0], entry.shape[1]


def floats(stored: NDArray[Any], entry: Entry, dtype: str) -> NDArray[Any]:
    """Scales, widened."""
    out = numpy.empty(stored.shape, dtype)
    if entry.tag in FLOATS:
        widen(numpy.ascontiguousarray(stored).reshape(-1), entry.tag, out.reshape(-1))
    else:
        out[...] = stored
    return out


def as_bytes(words: NDArray[Any]) -> NDArray[numpy.uint8]:  # (..., N) -> (..., N bytes of a word)
    """Little-endian, as the file has them."""
    return numpy.ascontiguousarray(words).view(numpy.uint8)


# -- packed whole numbers --------------------------------------------------------------------------


def unpack(
    packed: NDArray[numpy.uint8], bits: int, out: NDArray[Any]
) -> None:  # (..., N bits / 8) -> (..., N)
    """The whole numbers 0 to 2^bits - 1 that lie one after the other, the lowest bit first."""
    if bits == 8:
        out[...] = packed
    elif 8 % bits:
        single = numpy.unpackbits(packed, axis=-1, bitorder="little")
        out[...] = single.reshape(*out.shape, bits) @ (1 << numpy.arange(bits, dtype=numpy.uint8))
    else:
        take(_numbers(bits, out.dtype.str), packed, out)


def take(
    table: NDArray[Any], packed: NDArray[numpy.uint8], out: NDArray[Any]
) -> None:  # (256, K), (..., N) -> (..., N K)
    """The K numbers that each byte stands for. All of one byte are moved at once."""
    whole = numpy.dtype((numpy.void, table.shape[1] * table.itemsize))
    numpy.take(table.view(whole)[:, 0], packed, out=out.view(whole), mode="clip")


@cache
def _numbers(bits: int, dtype: str) -> NDArray[Any]:  # -> (256, 8 / bits)
    return numpy.array(
        [[byte >> low & (1 << bits) - 1 for low in range(0, 8, bits)] for byte in range(256)],
        dtype=dtype,
    )


# -- scales ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Grid:
    """Scales (R, C) of a matrix, and zero points, each for `height` rows and `width` columns of it.
    With `groups`, column i has those of number groups[i].
    """

    scales: NDArray[Any]
    height: int
    width: int
    zeros: NDArray[Any] | None = None
    groups: NDArray[Any] | None = field(default=None)

    def apply(self, first: int, rows: NDArray[Any]) -> None:  # (N, I) in place
        """(q - zero) scale, of the rows from number `first` on."""
        which = numpy.arange(first, first + len(rows)) // self.height
        columns = rows.shape[1]
        for table, how in ((self.zeros, numpy.subtract), (self.scales, numpy.multiply)):
            if table is None:
                continue
            chosen = table[which]  # (N, C)
            if self.groups is not None:
                how(rows, numpy.take(chosen, self.groups, axis=1), out=rows)
            elif columns % self.width:
                how(rows, numpy.repeat(chosen, self.width, axis=1)[:, :columns], out=rows)
            else:
                parts = rows.reshape(len(rows), -1, self.width)
                how(parts, chosen[:, :, None], out=parts)


def grid_shape(rows: int, columns: int, height: int, width: int) -> tuple[int, int]:
    """How many scales a matrix has, the last row and column of them for what is left."""
    return math.ceil(rows / height), math.ceil(columns / width)


def group_of(stored: NDArray[Any], groups: int, width: int, part: str) -> NDArray[Any] | None:
    """The group of each column; None where they follow each other, `width` columns each.
    Raises ReflError for one that there is none of.
    """
    found = stored.reshape(-1)
    if found.min() < 0 or found.max() >= groups:
        raise ReflError(
            f"{part} names group {int(found.min() if found.min() < 0 else found.max())}, expected "
            f"0 to {groups - 1}"
        )
    if numpy.array_equal(found, numpy.arange(found.size) // width):
        return None
    return found.astype(numpy.intp)
