"""Quantized weights: what `quantization_config` of config.json says, and the matrices that the
tensors of a file make up by it. A file per format, its definition at the head.

    float8       "fp8" (one scale, or one for each block), "fbgemm_fp8" (one for each row)
    gptq         "gptq": whole numbers of 2, 3, 4, 8 bits
    awq          "awq": whole numbers of 4 bits, in the order of AutoAWQ's "gemm"
    bnb          "bitsandbytes": int8, NF4, FP4
    compressed   "compressed-tensors": float8, int8, packed whole numbers of 4 or 8 bits

A matrix is widened when it is used, as any other tensor is: exactly as its format defines it, and
rounded once where the dtype of the computation does not hold that. What a library rounds besides,
activations say, is not rounded here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

from refl.errors import ReflError, quoted, shown
from refl.io.quantized import awq, bnb, compressed, float8, gptq
from refl.io.quantized.matrix import Matrix
from refl.io.quantized.options import Options
from refl.io.quantized.scheme import Entries, Read, Scheme
from refl.io.safetensors import Entry

Tensors: TypeAlias = Mapping[str, Entry | Matrix]

METHODS: dict[str, Callable[[Options], Scheme]] = {
    "awq": awq.scheme,
    "bitsandbytes": bnb.scheme,
    "compressed-tensors": compressed.scheme,
    "fbgemm_fp8": float8.fbgemm,
    "fp8": float8.fp8,
    "gptq": gptq.scheme,
}

CONV1D = {"gpt2": ("c_attn", "c_proj", "c_fc")}
"""model_type -> modules whose own tensor is (I, O): GPTQ and bitsandbytes quantize its transpose.
The other methods leave such modules as they are."""


def scheme(config: Mapping[str, Any]) -> Scheme | None:
    """What config.json says; None where the weights are plain floats.
    Raises ReflError for a method, or an option of it, that is not implemented.
    """
    raw = config.get("quantization_config")
    if raw is None or raw == {}:
        return None
    options = Options(raw)
    method = options.get("quant_method")
    if method is None and ("load_in_8bit" in options.raw or "load_in_4bit" in options.raw):
        method = "bitsandbytes"  # as it was saved when there was no other
    if not isinstance(method, str) or method not in METHODS:
        raise ReflError(
            f"config.json has quantization_config.quant_method = {quoted(method)[:80]}: refl reads "
            f"{', '.join(METHODS)}; load the checkpoint in float32, float16 or bfloat16"
        )
    found = METHODS[method](options)
    options.finish()
    return found


def tensors(found: Scheme, config: Mapping[str, Any], entries: Entries, read: Read) -> Tensors:
    """Every tensor that a net may ask for: those of the file, and for the parts of a matrix the
    matrix. Raises ReflError where parts do not fit, and where no tensor is stored so.
    """
    matrices = [_turned(m, found, config) for m in found.matrices(entries, read)]
    if not matrices:
        raise ReflError(
            f"config.json has a quantization_config of {found.method}, and none of the tensors is "
            "stored so: take it out of config.json if the weights are plain floats"
        )
    skipped = frozenset(found.skipped)
    for matrix in matrices:
        _refuse_skipped(matrix, skipped)
    parts = {id(entry) for matrix in matrices for entry in matrix.parts.values()}
    plain = {
        name: entry
        for name, entry in entries.items()
        if id(entry) not in parts and name.rpartition(".")[2] not in found.unread
    }
    return _together(plain, matrices)


def _together(plain: Entries, matrices: list[Matrix]) -> Tensors:
    found: dict[str, Entry | Matrix] = dict(plain)
    for matrix in matrices:
        if matrix.name in found:
            raise ReflError(
                f"the checkpoint holds {shown(matrix.name)} twice: as floats, and quantized "
                f"({matrix.stored})"
            )
        found[matrix.name] = matrix
    return found


def _turned(matrix: Matrix, found: Scheme, config: Mapping[str, Any]) -> Matrix:
    turned = CONV1D.get(str(config.get("model_type")), ())
    if matrix.name.removesuffix(".weight").rpartition(".")[2] not in turned:
        return matrix
    if found.method not in ("gptq", "bitsandbytes"):
        raise ReflError(
            f"{shown(matrix.name)} is quantized by {found.method}, which leaves such layers "
            f"({', '.join(turned)}) of this architecture as they are"
        )
    return replace(matrix, transposed=True)


def _refuse_skipped(matrix: Matrix, skipped: frozenset[str]) -> None:
    """A module is named in full, by a module around it, or by its last part."""
    parts = matrix.name.removesuffix(".weight").split(".")
    names = [".".join(parts[:n]) for n in range(1, len(parts) + 1)]
    for name in skipped.intersection([*names, parts[-1]]):
        raise ReflError(
            f"config.json says that {shown(name)} is not quantized, and the checkpoint holds "
            f"{shown(matrix.name)} quantized ({matrix.stored})"
        )
