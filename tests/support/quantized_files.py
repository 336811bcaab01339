"""Quantized checkpoints, packed number by number from the definitions of their formats: Python's
whole numbers, and what they stand for as fractions. Nothing here is shared with refl.io.quantized.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

Tensor = tuple[str, tuple[int, ...], bytes]
"""dtype as safetensors spells it, shape, bytes."""
Rows = list[list[Fraction]]


@dataclass(frozen=True)
class Made:
    """The tensors of one module, by their names in it, and the weight that they stand for."""

    tensors: dict[str, Tensor]
    numbers: Rows
    """(O, I), exact."""

    def array(self, dtype: str) -> np.ndarray[Any, Any]:
        return np.array([[float(n) for n in row] for row in self.numbers]).astype(dtype)


Maker = Callable[[Random, int, int], Made]


def save(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
    """A checkpoint folder of one file."""
    folder.mkdir(parents=True, exist_ok=True)
    header, data = {}, b""
    for name, (tag, shape, raw) in tensors.items():
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": tag, "shape": list(shape), "data_offsets": offsets}
        data += raw
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


# -- numbers ---------------------------------------------------------------------------------------


def floats(tag: str, shape: tuple[int, ...], numbers: list[Fraction]) -> Tensor:
    """Of numbers that the dtype holds exactly."""
    if tag == "BF16":
        raw = b"".join(struct.pack("<f", float(n))[2:] for n in numbers)
    else:
        raw = struct.pack(f"<{len(numbers)}{ {'F16': 'e', 'F32': 'f', 'F64': 'd'}[tag] }", *numbers)
    return tag, shape, raw


def whole(tag: str, shape: tuple[int, ...], numbers: list[int]) -> Tensor:
    code = {"I8": "b", "U8": "B", "I32": "i", "I64": "q"}[tag]
    return tag, shape, struct.pack(f"<{len(numbers)}{code}", *numbers)


DIGITS = {"F16": 11, "BF16": 8, "F32": 24}


def drawn(draw: Random, tag: str, size: Fraction) -> Fraction:
    """Between half of `size` and `size`, a power of two, with all the digits of the dtype."""
    digits = DIGITS[tag]
    return Fraction(draw.randrange(1 << digits - 1, 1 << digits), 1 << digits) * size


def words(fields: list[int], bits: int) -> list[int]:
    """int32, of fields of so many bits one after the other, the lowest bits first."""
    stream = sum(field << bits * place for place, field in enumerate(fields))
    count = -(-len(fields) * bits // 32)
    unsigned = [stream >> 32 * place & 0xFFFFFFFF for place in range(count)]
    return [word - (1 << 32) if word >> 31 else word for word in unsigned]


def float8(bits: int, tag: str) -> Fraction | None:
    """What eight bits stand for; None for infinity and NaN (arXiv 2209.05433, table 1)."""
    text = f"{bits:08b}"
    split = 5 if tag == "F8_E4M3" else 6
    exponent, fraction = text[1:split], text[split:]
    if tag == "F8_E4M3" and exponent + fraction == "1111111":
        return None
    if tag == "F8_E5M2" and exponent == "11111":
        return None
    power = int(exponent, 2) - (7 if tag == "F8_E4M3" else 15)
    size = Fraction(int("1" + fraction, 2), 2 ** len(fraction)) * Fraction(2) ** power
    if "1" not in exponent:
        size = Fraction(int(fraction, 2), 2 ** len(fraction)) * Fraction(2) ** (power + 1)
    return -size if text[0] == "1" else size


def draw_float8(draw: Random, tag: str) -> int:
    while True:
        bits = draw.randrange(256)
        if float8(bits, tag) is not None:
            return bits


# -- float8 ----------------------------------------------------------------------------------------


def blocks(name: str, height: int | None, width: int | None, *, tag: str = "F8_E4M3",
           scale: str = "F32", shape: str = "grid", **more: Tensor) -> Maker:  # fmt: skip
    """`name`: of the scales, one for height x width numbers; None for all there are."""

    def make(draw: Random, rows: int, columns: int) -> Made:
        h, w = height or rows, width or columns
        down, across = -(-rows // h), -(-columns // w)
        size = Fraction(1, 1 << (10 if tag == "F8_E4M3" else 18))
        scales = [[drawn(draw, scale, size) for _ in range(across)] for _ in range(down)]
        bits = [[draw_float8(draw, tag) for _ in range(columns)] for _ in range(rows)]
        numbers = [
            [(float8(bits[o][i], tag) or Fraction(0)) * scales[o // h][i // w]
             for i in range(columns)] for o in range(rows)
        ]  # fmt: skip
        shapes = {"grid": (down, across), "one": (1,), "none": ()}
        flat = [s for row in scales for s in row]
        return Made(
            {"weight": (tag, (rows, columns), bytes(b for row in bits for b in row)),
             name: floats(scale, shapes[shape], flat)} | more,
            numbers,
        )  # fmt: skip

    return make


# -- GPTQ and AWQ ----------------------------------------------------------------------------------


def _grid(draw: Random, down: int, across: int, least: int, most: int) -> list[list[int]]:
    return [[draw.randint(least, most) for _ in range(across)] for _ in range(down)]


def gptq(bits: int, group: int, *, order: bool = False, minus_one: bool = True, named: bool = True,
         scale: str = "F16") -> Maker:  # fmt: skip
    def make(draw: Random, rows: int, columns: int) -> Made:
        width = columns if group == -1 else group
        groups = -(-columns // width)
        top = (1 << bits) - 1
        q = _grid(draw, columns, rows, 0, top)
        zero = _grid(draw, groups, rows, 1 if minus_one else 0, top)
        scales = [[drawn(draw, scale, Fraction(1, 1 << bits + 1)) for _ in range(rows)]
                  for _ in range(groups)]  # fmt: skip
        g_idx = [i // width for i in range(columns)]
        if order:
            draw.shuffle(g_idx)
        columns_of_q = [words([q[i][o] for i in range(columns)], bits) for o in range(rows)]
        packed = [column[k] for k in range(len(columns_of_q[0])) for column in columns_of_q]
        stored = [[z - minus_one for z in row] for row in zero]
        zeros = [word for row in stored for word in words(row, bits)]
        tensors = {
            "qweight": whole("I32", (len(packed) // rows, rows), packed),
            "qzeros": whole("I32", (groups, len(zeros) // groups), zeros),
            "scales": floats(scale, (groups, rows), [s for row in scales for s in row]),
        }
        if named:
            tensors["g_idx"] = whole("I32", (columns,), g_idx)
        numbers = [
            [(q[i][o] - zero[g_idx[i]][o]) * scales[g_idx[i]][o] for i in range(columns)]
            for o in range(rows)
        ]
        return Made(tensors, numbers)

    return make


def awq(group: int) -> Maker:
    def make(draw: Random, rows: int, columns: int) -> Made:
        width = columns if group == -1 else group
        groups = columns // width
        q = _grid(draw, columns, rows, 0, 15)
        zero = _grid(draw, groups, rows, 0, 15)
        scales = [[drawn(draw, "F16", Fraction(1, 32)) for _ in range(rows)] for _ in range(groups)]
        tensors = {
            "qweight": whole("I32", (columns, rows // 8), [w for row in q for w in _eights(row)]),
            "qzeros": whole("I32", (groups, rows // 8), [w for row in zero for w in _eights(row)]),
            "scales": floats("F16", (groups, rows), [s for row in scales for s in row]),
        }
        numbers = [
            [(q[i][o] - zero[i // width][o]) * scales[i // width][o] for i in range(columns)]
            for o in range(rows)
        ]
        return Made(tensors, numbers)

    return make


def _eights(row: list[int]) -> list[int]:
    """A word as hexadecimal digits, from the highest bits: 7 5 3 1 6 4 2 0."""
    found = []
    for start in range(0, len(row), 8):
        digits = "".join(f"{row[start + k]:x}" for k in (7, 5, 3, 1, 6, 4, 2, 0))
        found.append(struct.unpack(">i", bytes.fromhex(digits))[0])
    return found


# -- bitsandbytes ----------------------------------------------------------------------------------


def int8(draw: Random, rows: int, columns: int) -> Made:
    q = _grid(draw, rows, columns, -127, 127)
    largest = [drawn(draw, "F32", Fraction(1, 2)) for _ in range(rows)]
    tensors = {
        "weight": whole("I8", (rows, columns), [n for row in q for n in row]),
        "SCB": floats("F32", (rows,), largest),
        "weight_format": whole("U8", (), [0]),
    }
    return Made(tensors, [[n * s / 127 for n in row] for row, s in zip(q, largest, strict=True)])


NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941),
    *(0.7229568362236023, 1.0),
)
FP4 = tuple(float(np.float32(t)) for t in (
    *(0, 0.0625 / 12, 8 / 12, 1, 4 / 12, 6 / 12, 2 / 12, 3 / 12),
    *(-0.0, -0.0625 / 12, -8 / 12, -1, -4 / 12, -6 / 12, -2 / 12, -3 / 12),
))  # fmt: skip


def four_bits(kind: str, blocksize: int, nested: int | None = None, storage: str = "U8") -> Maker:
    def make(draw: Random, rows: int, columns: int) -> Made:
        count = rows * columns
        table = [Fraction(t) for t in {"nf4": NF4, "fp4": FP4}[kind]]
        q = [draw.randrange(16) for _ in range(count)]
        state: dict[str, Any] = {"quant_type": kind, "blocksize": blocksize, "dtype": "bfloat16"}
        state["shape"] = [rows, columns]
        tensors, largest = _absmax(draw, -(-count // blocksize), nested, state)
        digits = "".join(f"{n:x}" for n in q) + "0" * (count % 2)
        raw = bytes.fromhex(digits)
        tensors["weight"] = (storage, (len(raw) // {"U8": 1, "BF16": 2}[storage], 1), raw)
        tensors["weight.quant_map"] = floats("F32", (16,), table)
        text = json.dumps(state).encode()
        tensors[f"weight.quant_state.bitsandbytes__{kind}"] = ("U8", (len(text),), text)
        flat = [table[n] * largest[k // blocksize] for k, n in enumerate(q)]
        return Made(tensors, [flat[o * columns : (o + 1) * columns] for o in range(rows)])

    return make


def _absmax(
    draw: Random, count: int, nested: int | None, state: dict[str, Any]
) -> tuple[dict[str, Tensor], list[Fraction]]:
    if nested is None:
        largest = [drawn(draw, "F32", Fraction(1, 2)) for _ in range(count)]
        return {"weight.absmax": floats("F32", (count,), largest)}, largest
    table = [drawn(draw, "F32", Fraction(1)) * (k - 100) / 128 for k in range(256)]
    table = [Fraction(float(np.float32(float(t)))) for t in table]
    outer = [drawn(draw, "F32", Fraction(1, 8)) for _ in range(-(-count // nested))]
    numbers = [draw.randrange(256) for _ in range(count)]
    offset = drawn(draw, "F32", Fraction(1, 2))
    state |= {"nested_blocksize": nested, "nested_dtype": "float32", "nested_offset": float(offset)}
    tensors = {
        "weight.absmax": whole("U8", (count,), numbers),
        "weight.nested_absmax": floats("F32", (len(outer),), outer),
        "weight.nested_quant_map": floats("F32", (256,), table),
    }
    return tensors, [table[n] * outer[b // nested] + offset for b, n in enumerate(numbers)]


# -- compressed-tensors ----------------------------------------------------------------------------


def compressed(bits: int, width: int | None, *, packed: bool, symmetric: bool = True,
               order: bool = False, height: int = 1) -> Maker:  # fmt: skip
    def make(draw: Random, rows: int, columns: int) -> Made:
        w, half = width or columns, 1 << bits - 1
        down, across = -(-rows // height), -(-columns // w)
        q = _grid(draw, rows, columns, -half, half - 1)
        zero = _grid(draw, down, across, -half, half - 1)
        if symmetric:
            zero = [[0] * across for _ in range(down)]
        scales = [[drawn(draw, "BF16", Fraction(1, 2 * half)) for _ in range(across)]
                  for _ in range(down)]  # fmt: skip
        group = [i // w for i in range(columns)]
        if order:
            draw.shuffle(group)
        tensors = _compressed(q, zero, bits, packed, symmetric)
        flat = [s for row in scales for s in row]
        tensors["weight_scale"] = floats("BF16", (down, across), flat)
        if order:
            tensors["weight_g_idx"] = whole("I32", (columns,), group)
        numbers = [
            [(q[o][i] - zero[o // height][group[i]]) * scales[o // height][group[i]]
             for i in range(columns)] for o in range(rows)
        ]  # fmt: skip
        return Made(tensors, numbers)

    return make


def _compressed(
    q: list[list[int]], zero: list[list[int]], bits: int, packed: bool, symmetric: bool
) -> dict[str, Tensor]:
    rows, columns, half = len(q), len(q[0]), 1 << bits - 1
    down, across = len(zero), len(zero[0])
    if not packed:
        found = {"weight": whole("I8", (rows, columns), [n for row in q for n in row])}
        if not symmetric:
            flat = [n for row in zero for n in row]
            found["weight_zero_point"] = whole("I8", (down, across), flat)
        return found
    lines = [words([n + half for n in row], bits) for row in q]
    found = {
        "weight_packed": whole("I32", (rows, len(lines[0])), [w for line in lines for w in line]),
        "weight_shape": whole("I64", (2,), [rows, columns]),
    }
    if not symmetric:
        up = [words([zero[o][g] + half for o in range(down)], bits) for g in range(across)]
        flat = [up[g][k] for k in range(len(up[0])) for g in range(across)]
        found["weight_zero_point"] = whole("I32", (len(up[0]), across), flat)
    return found


# -- the formats -----------------------------------------------------------------------------------


def _ct(format_: str, activations: Any = None, **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    return {
        "quant_method": "compressed-tensors",
        "format": format_,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head", "re:.*gate"],
        "kv_cache_scheme": None,
        "sparsity_config": {},
        "global_compression_ratio": 1.5,
    }


def _bnb4(kind: str, double: bool) -> dict[str, Any]:
    return {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "load_in_8bit": False,
        "_load_in_4bit": True,
        "bnb_4bit_quant_type": kind,
        "bnb_4bit_use_double_quant": double,
        "bnb_4bit_compute_dtype": "bfloat16",
        "bnb_4bit_quant_storage": "uint8",
        "llm_int8_skip_modules": None,
        "llm_int8_threshold": 6.0,
    }


def _gptq(bits: int, group: int, **more: Any) -> dict[str, Any]:
    return {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": group,
        "sym": False,
        "desc_act": False,
        "damp_percent": 0.1,
        "true_sequential": True,
    } | more


_STATIC = {"input_scale": floats("F32", (), [Fraction(1, 64)])}
_INT8 = {"load_in_8bit": True, "load_in_4bit": False, "llm_int8_has_fp16_weight": False}

FORMATS: dict[str, tuple[dict[str, Any], Maker]] = {
    "fp8-block": (
        {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [16, 24]},
        blocks("weight_scale_inv", 16, 24),
    ),
    "fp8-tensor": (
        {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]},
        blocks("weight_scale", None, None, shape="none", **_STATIC),
    ),
    "fp8-e5m2": ({"quant_method": "fp8"}, blocks("weight_scale", None, None, tag="F8_E5M2")),
    "fbgemm": (
        {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0},
        blocks("weight_scale", 1, None, scale="BF16"),
    ),
    "gptq-2": (_gptq(2, 16), gptq(2, 16)),
    "gptq-3": (_gptq(3, 32), gptq(3, 32)),
    "gptq-4": (_gptq(4, 16, checkpoint_format="gptq"), gptq(4, 16, named=False)),
    "gptq-4-last-is-short": (_gptq(4, 28), gptq(4, 28, scale="BF16")),
    "gptq-4-ordered": (_gptq(4, 16, desc_act=True), gptq(4, 16, order=True)),
    "gptq-4-one-group": (_gptq(4, -1), gptq(4, -1)),
    "gptq-4-v2": (
        _gptq(4, 16, checkpoint_format="gptq_v2"), gptq(4, 16, minus_one=False, scale="F32")
    ),
    "gptq-8": (_gptq(8, 16), gptq(8, 16)),
    "awq": (
        {"quant_method": "awq", "bits": 4, "group_size": 16, "version": "GEMM", "zero_point": True},
        awq(16),
    ),
    "awq-one-group": ({"quant_method": "awq", "group_size": -1, "version": "gemm"}, awq(-1)),
    "int8": ({"quant_method": "bitsandbytes"} | _INT8, int8),
    "nf4": (_bnb4("nf4", False), four_bits("nf4", 64)),
    "nf4-double": (_bnb4("nf4", True), four_bits("nf4", 32, nested=8)),
    "fp4": (_bnb4("fp4", False), four_bits("fp4", 64, storage="BF16")),
    "ct-float-tensor": (
        _ct("float-quantized", {"dynamic": False}, num_bits=8, type="float", strategy="tensor"),
        blocks("weight_scale", None, None, scale="BF16", shape="one", **_STATIC),
    ),
    "ct-float-channel": (
        _ct("float-quantized", num_bits=8, type="float", strategy="channel", dynamic=False),
        blocks("weight_scale", 1, None, scale="F16"),
    ),
    "ct-float-block": (
        _ct("float-quantized", num_bits=8, type="float", strategy="block",
            block_structure=[16, 24]),
        blocks("weight_scale", 16, 24),
    ),
    "ct-int8": (
        _ct("int-quantized", {}, num_bits=8, type="int", strategy="channel"),
        compressed(8, None, packed=False),
    ),
    "ct-int8-zeros": (
        _ct("int-quantized", num_bits=8, type="int", strategy="channel", symmetric=False),
        compressed(8, None, packed=False, symmetric=False),
    ),
    "ct-packed-4": (
        _ct("pack-quantized", num_bits=4, type="int", strategy="group", group_size=16),
        compressed(4, 16, packed=True),
    ),
    "ct-packed-4-zeros": (
        _ct("pack-quantized", num_bits=4, type="int", group_size=16, symmetric=False),
        compressed(4, 16, packed=True, symmetric=False),
    ),
    "ct-packed-4-ordered": (
        _ct("pack-quantized", num_bits=4, type="int", group_size=16, actorder="group"),
        compressed(4, 16, packed=True, order=True),
    ),
    "ct-packed-8": (
        _ct("pack-quantized", num_bits=8, type="int", strategy="channel"),
        compressed(8, None, packed=True),
    ),
}  # fmt: skip
"""By a name: quantization_config, and what makes the tensors of a module."""


def checkpoint(
    folder: Path, config: Mapping[str, Any], arrays: Mapping[str, Any], kind: str, seed: int = 0
) -> tuple[Path, Path]:
    """A folder whose matrices of the blocks are quantized, and its twin, which holds the same
    numbers as float64. Everything else is that of `arrays`.
    """
    option, make = FORMATS[kind]
    draw, quantized, plain = Random(seed), dict[str, Tensor](), dict[str, Tensor]()
    for name, array in arrays.items():
        if array.ndim == 2 and ".layers." in name:
            module, made = name.removesuffix(".weight"), make(draw, *array.shape)
            quantized |= {f"{module}.{part}": tensor for part, tensor in made.tensors.items()}
            plain[name] = ("F64", array.shape, made.array("float64").tobytes())
        else:
            quantized[name] = plain[name] = ("F64", array.shape, array.tobytes())
    one = save(folder / "quantized", config | {"quantization_config": option}, quantized)
    return one, save(folder / "plain", config, plain)


def modules(folder: Path) -> Iterator[str]:
    """Names of the tensors of a file."""
    raw = (folder / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    yield from json.loads(raw[8 : 8 + length])
