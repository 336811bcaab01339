"""Weights of eight-bit floats with scales: `quant_method` "fp8" and "fbgemm_fp8".

    w[o, i] = float8(weight[o, i]) scale

    one scale           weight_scale, () or (1,)               AutoFP8, as vLLM reads it
    one for each row    weight_scale, (O, 1)                   fbgemm_fp8 of transformers
    one for each block  weight_scale_inv, (O / h, I / w) rounded up, weight_block_size = [h, w]
                        (DeepSeek-V3, arXiv 2412.19437, section 3.3; FineGrainedFP8 of transformers)

`weight_scale_inv` is what the numbers are multiplied by, for all its name. Which numbers the eight
bits stand for: refl.io.safetensors.every_float8.

Those libraries also round activations to eight bits, by a scale of the file (`input_scale`) or of
the input at hand. refl does not: the weights are those of the file, and nothing else is rounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from numpy.typing import NDArray

from refl.io.quantized.matrix import (
    SCALES,
    Grid,
    Matrix,
    Parts,
    Widen,
    expect_matrix,
    expect_part,
    floats,
    grid_shape,
)
from refl.io.quantized.options import Options
from refl.io.quantized.scheme import Entries, Read, Scheme
from refl.io.safetensors import FLOAT8, widen

Block = tuple[int, int]
"""Rows and columns that have one scale."""


def fp8(options: Options) -> Scheme:
    """quant_method "fp8"."""
    block = block_size(options, "weight_block_size", [128, 128])
    how = options.one_of("activation_scheme", ("dynamic", "static"), "dynamic")
    options.one_of("fmt", ("e4m3", "float8_e4m3fn"), "e4m3")
    options.harmless("scale_fmt")  # what scales were rounded to before they were stored
    options.off("kv_cache_scheme", "a quantized cache of keys and values is not implemented")
    skipped = options.names("modules_to_not_convert") + options.names("ignored_layers")
    return Scheme(
        "fp8",
        partial(_matrices, block=block),
        {"bits": 8, "symmetric": True},
        skipped,
        f"activations to float8, by {how} scales",
        ("input_scale",),
    )


def fbgemm(options: Options) -> Scheme:
    """quant_method "fbgemm_fp8"."""
    options.harmless("activation_scale_ub")
    skipped = options.names("modules_to_not_convert")
    facts = {"bits": 8, "symmetric": True}
    return Scheme("fbgemm_fp8", _matrices, facts, skipped, "activations to float8, by their rows")


def block_size(options: Options, key: str, otherwise: list[int] | None = None) -> Block:
    """Two numbers above 0."""
    size = options.get(key, otherwise)
    if not isinstance(size, list) or len(size) != 2 or not all(map(_is_size, size)):
        raise options.refusal(key, "expected two whole numbers above 0")
    return size[0], size[1]


def _is_size(n: Any) -> bool:
    return type(n) is int and 0 < n < 1 << 31


def _matrices(entries: Entries, read: Read, block: Block | None = None) -> Iterator[Matrix]:
    for name, entry in entries.items():
        if entry.tag in FLOAT8 and name.endswith(".weight"):
            inverse = f"{name}_scale_inv"
            if block and inverse in entries:
                parts = {"weight": entry, "weight_scale_inv": entries[inverse]}
                yield in_blocks(name, parts, block)
            else:
                yield as_shaped(name, entries)


def as_shaped(name: str, entries: Entries) -> Matrix:
    """With one scale, or one for each row, as the shape of `weight_scale` says."""
    parts = {"weight": entries[name]}
    if (scale := entries.get(f"{name}_scale")) is not None:
        parts["weight_scale"] = scale
    rows, columns = expect_matrix(parts["weight"], name, "weight")
    expect_part(parts, name, "weight_scale", SCALES, (), (1,), (1, 1), (rows, 1), (rows,))
    single = parts["weight_scale"].count == 1
    said = "one scale" if single else "a scale for each row"
    return _matrix(name, parts, (rows if single else 1, columns), said)


def in_blocks(name: str, parts: Entries, block: Block) -> Matrix:
    """`parts`: the weight, and the scales of its blocks."""
    _, scale = parts
    rows, columns = expect_matrix(parts["weight"], name, "weight")
    expect_part(parts, name, scale, SCALES, grid_shape(rows, columns, *block))
    within = min(block[0], rows), min(block[1], columns)
    return _matrix(name, parts, within, f"a scale for {block[0]} x {block[1]}")


def _matrix(name: str, parts: Entries, block: Block, scales: str) -> Matrix:
    rows, columns = parts["weight"].shape
    _, scale = parts
    tag = parts["weight"].tag

    def opened(found: Parts, dtype: str) -> Widen:
        shape = grid_shape(rows, columns, *block)
        grid = Grid(floats(found[scale], parts[scale], dtype).reshape(shape), *block)
        stored = found["weight"].reshape(-1)

        def fill(start: int, out: NDArray[Any]) -> None:
            widen(stored[start : start + out.size], tag, out)
            grid.apply(start // columns, out.reshape(-1, columns))

        return fill

    return Matrix(name, rows, columns, f"{tag}, {scales}", parts, opened, columns)
