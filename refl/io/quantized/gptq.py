"""GPTQ's packed whole numbers (Frantar et al. 2023, arXiv 2210.17323), as AutoGPTQ and GPTQModel
save them: `quant_method` "gptq".

    w[o, i] = (q[i, o] - zero[g, o]) scales[g, o],    g = g_idx[i],  else i / group_size

    qweight  int32 (I bits / 32, O)    down each column, q[0], q[1], ... of `bits` bits each, the
                                       lowest bits of a word first; of three bits some lie across
                                       two words
    qzeros   int32 (G, O bits / 32)    the zero points in the same way along each row: all minus 1
                                       where checkpoint_format is "gptq", as they are in "gptq_v2"
    scales   float (G, O)
    g_idx    int32 (I,)                the group of each input; with `desc_act` in any order

group_size -1 is one group. Zero points of the format "gptq" that are all ones as stored are
ambiguous: AutoGPTQ adds 1 to each by itself, and has 0; GPTQModel adds 1 to all of a word at once,
and the next number gets one more. Where there is none the two agree. refl reads the files that
GPTQModel made (`meta.quantizer`) as GPTQModel does, and refuses such numbers in others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
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
    as_bytes,
    expect_matrix,
    expect_part,
    floats,
    group_of,
    unpack,
)
from refl.io.quantized.options import Options
from refl.io.quantized.scheme import Entries, Read, Scheme
from refl.io.safetensors import Entry


@dataclass(frozen=True)
class Format:
    bits: int
    group_size: int
    minus_one: bool
    """Whether zero points are stored minus 1."""
    by_words: bool
    """Whether the 1 is added to all of a word at once."""


def scheme(options: Options) -> Scheme:
    bits = options.one_of("bits", (2, 3, 4, 8))
    group_size = options.whole("group_size", 128, least=-1)
    if group_size == 0:
        raise options.refusal("group_size", "expected a whole number above 0, or -1 for one group")
    kind = options.get("checkpoint_format", options.get("format", "gptq"))
    if kind not in ("gptq", "gptq_v2"):
        raise options.refusal("checkpoint_format", "implemented: gptq, gptq_v2")
    options.one_of("pack_dtype", ("int32",), "int32")
    for key in ("dynamic", "adapter", "lora", "is_marlin_format"):
        options.off(key, "this changes what single modules store, and is not implemented")
    options.harmless(*_HOW_IT_WAS_FOUND)
    symmetric, ordered = options.flag("sym", True), options.flag("desc_act")
    minus_one = kind == "gptq"
    how = Format(bits, group_size, minus_one, minus_one and bits != 3 and _by_gptqmodel(options))
    facts = {"bits": bits, "group_size": group_size, "symmetric": symmetric}
    return Scheme(
        "gptq", partial(_matrices, how=how), facts | {"desc_act": ordered, "format": kind},
        options.names("modules_to_not_convert"),
    )  # fmt: skip


_HOW_IT_WAS_FOUND = (
    *("damp_percent", "damp_auto_increment", "true_sequential", "static_groups", "mse", "dataset"),
    *("tokenizer", "model_name_or_path", "model_file_base_name", "model_seqlen", "batch_size"),
    *("backend", "use_cuda_fp16", "use_exllama", "disable_exllama", "exllama_config", "lm_head"),
    *("max_input_length", "cache_block_outputs", "block_name_to_quantize", "pad_token_id"),
    *("module_name_preceding_first_block", "modules_in_block_to_quantize", "quant_method"),
    *("awq_gemm_checkpoint", "parallel_packing", "hyb_act", "act_group_aware", "offload_to_disk"),
)


def _by_gptqmodel(options: Options) -> bool:
    meta = options.inner("meta")
    return meta is not None and "gptqmodel" in str(meta.get("quantizer")).lower()


def _matrices(entries: Entries, read: Read, how: Format) -> Iterator[Matrix]:
    for name, entry in entries.items():
        if name.endswith(".qweight"):
            yield _matrix(name.removesuffix(".qweight"), entry, entries, how)


def _matrix(module: str, qweight: Entry, entries: Entries, how: Format) -> Matrix:
    beside = {part: entries.get(f"{module}.{part}") for part in ("qzeros", "scales", "g_idx")}
    parts = {"qweight": qweight} | {part: e for part, e in beside.items() if e is not None}
    name = f"{module}.weight"
    expect_part(parts, name, "qweight", ("I32",))
    words, rows = expect_matrix(qweight, name, "qweight")
    columns, left = divmod(words * 32, how.bits)
    if left or rows * how.bits % 32:
        raise ReflError(
            f"qweight of {shown(name)} has shape {qweight.shape}, which no matrix of {how.bits} "
            "bits is packed into"
        )
    width = columns if how.group_size == -1 else min(how.group_size, columns)
    groups = -(-columns // width)
    expect_part(parts, name, "qzeros", ("I32",), (groups, rows * how.bits // 32))
    expect_part(parts, name, "scales", SCALES, (groups, rows))
    if "g_idx" in parts:
        expect_part(parts, name, "g_idx", ("I32", "I64"), (columns,))
    opened = partial(_opened, parts=parts, how=how, width=width)
    return Matrix(name, rows, columns, f"GPTQ, {how.bits} bits", parts, opened, columns)


def _opened(found: Parts, dtype: str, *, parts: Entries, how: Format, width: int) -> Widen:
    scales = floats(found["scales"], parts["scales"], dtype)  # (G, O)
    zeros = numpy.empty(scales.shape, dtype)
    _zeros(found["qzeros"], how, zeros)
    groups = None
    if "g_idx" in found:
        groups = group_of(found["g_idx"], len(scales), width, "g_idx")
    flipped = [numpy.ascontiguousarray(table.T) for table in (scales, zeros)]
    grid = Grid(flipped[0], 1, width, flipped[1], groups)
    qweight = found["qweight"]
    columns = qweight.shape[0] * 32 // how.bits

    def fill(start: int, out: NDArray[Any]) -> None:
        first, rows = start // columns, out.reshape(-1, columns)
        unpack(as_bytes(qweight[:, first : first + len(rows)].T), how.bits, rows)
        grid.apply(first, rows)

    return fill


def _zeros(qzeros: NDArray[Any], how: Format, out: NDArray[Any]) -> None:
    """The zero points, (G, O)."""
    words = qzeros.astype("<u4")
    if how.by_words:
        words += numpy.uint32(sum(1 << low for low in range(0, 32, how.bits)))
    unpack(as_bytes(words), how.bits, out)
    if how.minus_one and not how.by_words:
        most = (1 << how.bits) - 1
        if (out == most).any():
            raise ReflError(
                f"qzeros hold {most}, where zero points are stored minus 1: some libraries read 0 "
                "there, others add one to the next number; save it anew with checkpoint_format "
                "gptq_v2"
            )
        out += 1
