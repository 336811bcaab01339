"""AWQ's packed whole numbers (Lin et al. 2024, arXiv 2306.00978), as AutoAWQ saves them for its
"gemm" kernels: `quant_method` "awq", four bits.

    w[o, i] = (q[i, o] - zero[g, o]) scales[g, o],    g = i / group_size

    qweight  int32 (I, O / 8)    eight outputs in a word: the lowest four bits are output 0 of the
                                 eight, then come 2, 4, 6, 1, 3, 5, 7
    qzeros   int32 (G, O / 8)    in the same order
    scales   float (G, O)

group_size -1 is one group.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy
from numpy.typing import NDArray

from refl.errors import ReflError, shown
from refl.io.quantized.matrix import (
    SCALES,
    Grid,
    Matrix,
    Parts,
    Widen,
    expect_matrix,
    expect_part,
    floats,
)
from refl.io.quantized.options import Options
from refl.io.quantized.scheme import Entries, Read, Scheme
from refl.io.safetensors import Entry

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight outputs stands at each place of a word, the lowest bits first."""


def scheme(options: Options) -> Scheme:
    bits = options.one_of("bits", (4,), 4)
    group_size = options.whole("group_size", 128, least=-1)
    if group_size == 0:
        raise options.refusal("group_size", "expected a whole number above 0, or -1 for one group")
    options.one_of("zero_point", (True,), True)
    kind = options.one_of("version", ("gemm",), "gemm")
    options.one_of("backend", ("autoawq",), "autoawq")
    options.one_of("pack_dtype", ("int32",), "int32")
    options.harmless(
        "do_fuse", "fuse_max_seq_len", "modules_to_fuse", "exllama_config", "quant_method"
    )
    facts = {"bits": bits, "group_size": group_size, "symmetric": False, "format": kind}
    skipped = options.names("modules_to_not_convert")
    return Scheme("awq", partial(_matrices, group_size=group_size), facts, skipped)


def _matrices(entries: Entries, read: Read, group_size: int) -> Iterator[Matrix]:
    for name, entry in entries.items():
        if name.endswith(".qweight"):
            yield _matrix(name.removesuffix(".qweight"), entry, entries, group_size)


def _matrix(module: str, qweight: Entry, entries: Entries, group_size: int) -> Matrix:
    beside = {part: entries.get(f"{module}.{part}") for part in ("qzeros", "scales")}
    parts = {"qweight": qweight} | {part: e for part, e in beside.items() if e is not None}
    name = f"{module}.weight"
    expect_part(parts, name, "qweight", ("I32",))
    columns, words = expect_matrix(qweight, name, "qweight")
    width = columns if group_size == -1 else group_size
    if columns % width:
        raise ReflError(
            f"qweight of {shown(name)} has shape {qweight.shape}: group_size {group_size} does not "
            f"divide its {columns} inputs"
        )
    groups, rows = columns // width, 8 * words
    expect_part(parts, name, "qzeros", ("I32",), (groups, words))
    expect_part(parts, name, "scales", SCALES, (groups, rows))
    opened = partial(_opened, scale=parts["scales"], width=width)
    return Matrix(name, rows, columns, "AWQ, 4 bits", parts, opened, 8 * columns)


def _opened(found: Parts, dtype: str, *, scale: Entry, width: int) -> Widen:
    scales = numpy.ascontiguousarray(floats(found["scales"], scale, dtype).T)  # (O, G)
    zeros = numpy.empty(scales.shape, dtype)
    _unpack(found["qzeros"], zeros)
    grid, qweight = Grid(scales, 1, width, zeros), found["qweight"]
    columns = len(qweight)

    def fill(start: int, out: NDArray[Any]) -> None:
        first, rows = start // columns, out.reshape(-1, columns)
        _unpack(qweight[:, first // 8 : (first + len(rows)) // 8], rows)
        grid.apply(first, rows)

    return fill


def _unpack(words: NDArray[Any], out: NDArray[Any]) -> None:  # (I, O / 8) -> (O, I)
    across = numpy.ascontiguousarray(words.T).view("<u4")
    eights = out.reshape(-1, 8, out.shape[1])
    for place, output in enumerate(ORDER):
        eights[:, output] = across >> numpy.uint32(4 * place) & numpy.uint32(15)
