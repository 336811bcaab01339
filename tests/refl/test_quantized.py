"""Quantized weights (refl.io.quantized) against matrices that were packed number by number from the
formats' definitions; nets that run on them against nets that run on the same numbers in float64;
and folders that are not what they should be.
"""

from __future__ import annotations

import json
import math
import re
import tracemalloc
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import quantized_files as files
from quantized_files import FORMATS, Made, Tensor, save
from safetensors import safe_open

import refl
from refl.errors import ReflError
from refl.io import ahead
from refl.io.weights import Weights
from refl.verification.random_models import GPT2, LLAMA, random_model

MODULE = "model.layers.0.mlp.up_proj"
NAME = f"{MODULE}.weight"


def opened(folder: Path, dtype: str = "float64", cache_bytes: int = 1 << 30) -> Weights:
    return Weights(folder, dtype=dtype, place=lambda array: array, cache_bytes=cache_bytes)


def folder_of(folder: Path, kind: str, rows: int = 40, columns: int = 96, seed: int = 0) -> Made:
    """A folder with one quantized matrix; what it stands for."""
    option, make = FORMATS[kind]
    made = make(Random(seed), rows, columns)
    tensors = {f"{MODULE}.{part}": tensor for part, tensor in made.tensors.items()}
    save(folder, {"quantization_config": option}, tensors)
    return made


# -- numbers ---------------------------------------------------------------------------------------


def rounded(n: Fraction, dtype: str) -> float:
    """To nearest; the sizes of these numbers are normal in float32."""
    if dtype == "float64" or n == 0:
        return float(n)
    unit = Fraction(2) ** (math.floor(math.log2(abs(n))) - 23)
    return float(round(n / unit) * unit)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", sorted(set(FORMATS) - {"nf4-double"}))
def test_every_number_is_that_of_the_definition(tmp_path: Path, kind: str, dtype: str) -> None:
    """Rounded once, to the dtype: most formats are exact in float64."""
    rows, columns = (64, 96) if kind in ("gptq-3", "gptq-2") else (40, 96)
    made = folder_of(tmp_path, kind, rows, columns)
    weights = opened(tmp_path, dtype)
    found = weights[NAME]
    wanted = np.array([[rounded(n, dtype) for n in row] for row in made.numbers])
    assert found.dtype == dtype and np.array_equal(found, wanted)
    assert list(weights) == [NAME] and weights.shape(NAME) == (rows, columns)
    assert not found.flags.writeable and np.array_equal(weights.stored(NAME), found)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_double_quantization(tmp_path: Path, dtype: str) -> None:
    """A product, a sum and a product in float64, then one rounding: each moves a number by half a
    unit in its last place at most.
    """
    made = folder_of(tmp_path, "nf4-double", 40, 96)
    found = opened(tmp_path, dtype)[NAME]
    most = Fraction(1)  # |nested_quant_map nested_absmax|, |absmax|, |quant_map| are below
    u = Fraction(1, 1 << 53)
    for row, wanted in zip(found.tolist(), made.numbers, strict=True):
        for n, w in zip(row, wanted, strict=True):
            bound = 3 * u * most + (abs(w) / (1 << 24) * 2 if dtype == "float32" else 0)
            assert abs(Fraction(n) - w) <= bound


@pytest.mark.parametrize("kind", ["nf4", "nf4-double", "fp4"])
def test_an_odd_count_of_four_bits(tmp_path: Path, kind: str) -> None:
    """Half of the last byte is no number, and the last block is not full."""
    rows, columns = (5, 4) if kind == "fp4" else (7, 11)  # fp4's are stored two bytes by two here
    wanted = folder_of(tmp_path, kind, rows, columns).array("float64")
    assert np.abs(opened(tmp_path)[NAME] - wanted).max() <= 2.0**-50


@pytest.mark.parametrize("kind", sorted(FORMATS))
def test_in_stretches_by_two_threads(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit what one thread makes in one go."""
    folder_of(tmp_path, kind, 64, 96)
    for dtype in ("float32", "float64"):
        whole = opened(tmp_path, dtype)[NAME]
        with monkeypatch.context() as m:
            m.setattr("refl.io.weights.LARGE", 1)
            m.setattr(ahead, "STRETCH", 7)
            m.setattr("refl.io.quantized.matrix.STRETCH", 300)
            weights = opened(tmp_path, dtype, cache_bytes=0)
            assert not weights.keeps
            for _ in range(2):
                assert np.array_equal(weights[NAME], whole)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("tag", ["F8_E4M3", "F8_E5M2"])
def test_every_float8_through_a_file(tmp_path: Path, tag: str, dtype: str) -> None:
    """Without a scale they are floats like any other; NaN and infinity are refused by name."""
    known = [bits for bits in range(256) if files.float8(bits, tag) is not None]
    save(tmp_path, {}, {"x": (tag, (len(known),), bytes(known))})
    found = opened(tmp_path, dtype)["x"]
    assert [Fraction(n) for n in found.tolist()] == [files.float8(bits, tag) for bits in known]
    assert np.array_equal(np.signbit(found), [bits > 127 for bits in known])
    assert np.array_equal(opened(tmp_path, dtype).stored("x"), found)
    strange = [bits for bits in range(256) if bits not in known]
    assert len(strange) == {"F8_E4M3": 2, "F8_E5M2": 8}[tag]
    for bits in strange:
        save(tmp_path, {}, {"x": (tag, (1,), bytes([bits]))})
        with pytest.raises(ReflError, match=f"x holds . NaN and . infinite .* stored as {tag}"):
            opened(tmp_path, dtype)["x"]


# -- GPTQ's zero points of all ones ----------------------------------------------------------------


def of_all_ones(folder: Path, **meta: Any) -> Path:
    """One zero point of 0, stored minus 1 by whole words: it borrows from the next."""
    option = FORMATS["gptq-4"][0] | meta
    made = FORMATS["gptq-4"][1](Random(0), 8, 16)
    zeros = [3, 0, 5, 0, 0, 7, 15, 1]
    stored = sum(z << 4 * k for k, z in enumerate(zeros)) - 0x11111111
    tensors = made.tensors | {"qzeros": files.whole("I32", (1, 1), [_signed(stored)])}
    named = {f"{MODULE}.{part}": tensor for part, tensor in tensors.items()}
    return save(folder, {"quantization_config": option}, named)


def _signed(word: int) -> int:
    word &= 0xFFFFFFFF
    return word - (1 << 32) if word >> 31 else word


def test_zero_points_that_readers_disagree_about(tmp_path: Path) -> None:
    with pytest.raises(ReflError, match="qzeros hold 15, where zero points are stored minus 1"):
        opened(of_all_ones(tmp_path))[NAME]


def test_zero_points_of_gptqmodel_go_by_whole_words(tmp_path: Path) -> None:
    folder = of_all_ones(tmp_path, meta={"quantizer": ["gptqmodel:2.0.0"]})
    found = opened(folder)[NAME]
    made = FORMATS["gptq-4"][1](Random(0), 8, 16)
    scales = np.frombuffer(made.tensors["scales"][2], np.float16).astype(float)
    words = np.frombuffer(made.tensors["qweight"][2], "<u4").reshape(2, 8)
    for o, zero in enumerate([3, 0, 5, 0, 0, 7, 15, 1]):
        for i in range(16):
            q = int(words[i // 8, o]) >> 4 * (i % 8) & 15
            assert found[o, i] == (q - zero) * scales[o]


# -- nets ------------------------------------------------------------------------------------------

WIDE = LLAMA | {
    "hidden_size": 32,
    "intermediate_size": 64,
    "head_dim": 8,
    "num_hidden_layers": 2,
    "tie_word_embeddings": False,
}


def arrays_of(config: dict[str, Any]) -> dict[str, Any]:
    weights = random_model(config, 3).weights
    return {name: np.asarray(weights[name]) for name in weights}


@pytest.mark.parametrize(
    "kind", ["fp8-block", "gptq-4-ordered", "awq", "int8", "nf4", "ct-packed-4-zeros"]
)
def test_a_net_explains_what_is_stored(tmp_path: Path, kind: str) -> None:
    """Logits and relevance, bit for bit, of the net whose file has the same numbers as float64."""
    one, plain = files.checkpoint(tmp_path, WIDE, arrays_of(WIDE), kind)
    model, twin = (refl.load(folder, dtype="float64") for folder in (one, plain))
    ids = [3, 1, 4, 1, 5]
    assert np.array_equal(model.logits(ids), twin.logits(ids))
    for method in ("attnlrp", "cp-lrp"):
        e, wanted = (m.explain(ids, method, keep="*") for m in (model, twin))
        assert np.array_equal(e.relevance, wanted.relevance)
        assert all(np.array_equal(e[site], wanted[site]) for site in wanted.sites.activations)


@pytest.mark.parametrize("kind", ["gptq-4", "nf4"])
def test_the_transposed_layers_of_gpt2(tmp_path: Path, kind: str) -> None:
    """GPTQ and bitsandbytes quantize (O, I) where GPT-2 stores (I, O)."""
    config = GPT2 | {"n_embd": 32, "n_inner": 64}
    option, make = FORMATS[kind]
    draw, quantized, plain = Random(0), dict[str, Tensor](), dict[str, Tensor]()
    for name, array in arrays_of(config).items():
        quantized[name] = plain[name] = ("F64", array.shape, array.tobytes())
        if array.ndim == 2 and ".h." in name:
            made = make(draw, *array.shape[::-1])
            del quantized[name]
            module = name.removesuffix(".weight")
            quantized |= {f"{module}.{part}": tensor for part, tensor in made.tensors.items()}
            turned = np.ascontiguousarray(made.array("float64").T)
            plain[name] = ("F64", array.shape, turned.tobytes())
    one = save(tmp_path / "one", config | {"quantization_config": option}, quantized)
    twin = save(tmp_path / "twin", config, plain)
    logits = [refl.load(folder, dtype="float64").logits([3, 1, 4]) for folder in (one, twin)]
    assert np.allclose(*logits, rtol=0, atol=1e-12)  # the transpose is added up in another order


def test_a_fingerprint_is_that_of_the_files(tmp_path: Path) -> None:
    one, plain = files.checkpoint(tmp_path, WIDE, arrays_of(WIDE), "awq")
    assert opened(one).fingerprint() == opened(one, "float32").fingerprint()
    assert opened(one).fingerprint() != opened(plain).fingerprint()


def test_one_matrix_is_widened_at_a_time(tmp_path: Path) -> None:
    """Where they do not fit the cache, the peak is that of a few among many."""
    option, make = FORMATS["int8"]
    made = make(Random(0), 40, 96)
    names = [f"model.layers.{i}.mlp.up_proj" for i in range(40)]
    tensors = {f"{name}.{part}": t for name in names for part, t in made.tensors.items()}
    save(tmp_path, {"quantization_config": option}, tensors)
    weights = opened(tmp_path, cache_bytes=0)
    assert len(weights) == 40 and not weights.keeps
    for name in weights:
        weights[name]
    tracemalloc.start()
    try:
        for name in weights:
            weights[name]
        assert tracemalloc.get_traced_memory()[1] < 40 * 8 * 40 * 96 / 8
    finally:
        tracemalloc.stop()


def test_activation_scales_are_not_read(tmp_path: Path) -> None:
    folder_of(tmp_path, "fp8-tensor")
    weights = opened(tmp_path)
    assert weights.quantized is not None and "static scales" in weights.quantized.activations
    assert list(weights) == [NAME]


def test_a_bias_of_zeros_that_nobody_asks_for(tmp_path: Path) -> None:
    """As some GPTQ files have for every layer; one that is not zero is refused."""
    one, _ = files.checkpoint(tmp_path, WIDE, arrays_of(WIDE), "gptq-4")
    for number in (0.0, 1.0):
        raw = np.full(64, number, np.float16).tobytes()
        add(one, {f"{MODULE}.bias": ("F16", (64,), raw)})
        if number == 0:
            refl.load(one)
        else:
            with pytest.raises(ReflError, match=f"holds {MODULE}.bias"):
                refl.load(one)


def read_all(folder: Path) -> dict[str, Tensor]:
    raw = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header, data = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    return {
        name: (e["dtype"], tuple(e["shape"]), data[slice(*e["data_offsets"])])
        for name, e in header.items()
    }


def add(folder: Path, tensors: dict[str, Tensor]) -> None:
    config = json.loads((folder / "config.json").read_text())
    save(folder, config, read_all(folder) | tensors)


# -- folders that are not what they should be ------------------------------------------------------

GOOD_GPTQ = FORMATS["gptq-4"][0]
GOOD_CT = FORMATS["ct-packed-4"][0]
INFINITE = files.floats("F32", (40,), [Fraction(1)] * 40)[2].replace(b"\x80\x3f", b"\x80\x7f")

OPTIONS: list[tuple[str, Any, str]] = [
    ("gptq-4", [], "quantization_config = .*expected an object"),
    ("gptq-4", {"bits": 4}, "quant_method = None: refl reads awq, bitsandbytes"),
    ("gptq-4", {"quant_method": "hqq"}, "quant_method = 'hqq': refl reads awq"),
    ("gptq-4", {"quant_method": ["gptq"]}, "quant_method = "),
    ("gptq-4", GOOD_GPTQ | {"bits": 5}, "bits = 5: implemented: 2, 3, 4, 8"),
    ("gptq-4", GOOD_GPTQ | {"bits": 4.0}, "bits = 4.0: implemented: 2, 3, 4, 8"),
    ("gptq-4", GOOD_GPTQ | {"bits": True}, "bits = True: implemented: 2, 3, 4, 8"),
    ("gptq-4", GOOD_GPTQ | {"group_size": 0}, "group_size = 0: expected"),
    ("gptq-4", GOOD_GPTQ | {"group_size": 10**400}, "group_size = .*expected a whole number"),
    ("gptq-4", GOOD_GPTQ | {"checkpoint_format": "marlin"}, "marlin.*implemented: gptq, gptq_v2"),
    ("gptq-4", GOOD_GPTQ | {"sym": "yes"}, "sym = 'yes': expected true or false"),
    ("gptq-4", GOOD_GPTQ | {"dynamic": {"-:.*": {}}}, "dynamic = .*not implemented"),
    ("gptq-4", GOOD_GPTQ | {"sorcery": 1}, "sorcery = 1: refl does not know this option"),
    ("gptq-4", GOOD_GPTQ | {"modules_to_not_convert": [7]}, "expected a list of names"),
    ("gptq-4", GOOD_GPTQ | {"modules_to_not_convert": ["up_proj"]}, "up_proj is not quantized, "),
    ("gptq-4", GOOD_GPTQ | {"group_size": 32}, "qzeros of .* has shape .*expected"),
    ("awq", FORMATS["awq"][0] | {"version": "gemv"}, "version = 'gemv': implemented: gemm"),
    ("awq", FORMATS["awq"][0] | {"zero_point": False}, "zero_point = False: implemented: true"),
    ("awq", FORMATS["awq"][0] | {"bits": 8}, "bits = 8: implemented: 4"),
    ("awq", FORMATS["awq"][0] | {"group_size": 36}, "group_size 36 does not divide its 96 inputs"),
    ("awq", GOOD_GPTQ, "which no matrix of 4 bits is packed into"),
    ("int8", {"quant_method": "bitsandbytes"}, "expected one of load_in_8bit and load_in_4bit"),
    ("int8", FORMATS["nf4"][0], "none of the tensors is stored so"),
    ("nf4", FORMATS["int8"][0], "none of the tensors is stored so"),
    ("int8", FORMATS["int8"][0] | {"llm_int8_has_fp16_weight": True}, "has_fp16_weight"),
    ("nf4", FORMATS["nf4"][0] | {"bnb_4bit_quant_type": "af4"}, "implemented: nf4, fp4"),
    ("fp8-block", {"quant_method": "fp8", "weight_block_size": [0, 9]}, "weight_block_size"),
    ("fp8-block", {"quant_method": "fp8", "weight_block_size": "x"}, "weight_block_size"),
    ("fp8-block", {"quant_method": "fp8"}, "weight_scale_inv of .* has shape"),
    ("fp8-block", {"quant_method": "fbgemm_fp8"}, "has no weight_scale beside it"),
    ("fp8-block", {"quant_method": "fp8", "fmt": "e5m2"}, "fmt = 'e5m2': implemented"),
    ("ct-packed-4", GOOD_CT | {"format": "nvfp4-pack-quantized"}, "implemented: float-quantized"),
    ("ct-packed-4", GOOD_CT | {"format": "naive-quantized"}, "num_bits = 4: implemented: 8"),
    ("ct-packed-4", GOOD_CT | {"config_groups": {}}, "config_groups = {}: expected an object"),
    ("ct-packed-4", GOOD_CT | {"config_groups": {"a": 1}}, "config_groups.a = 1: expected"),
    ("ct-packed-4", GOOD_CT | {"sparsity_config": {"format": "x"}}, "sparse weights are not"),
    ("ct-packed-4", GOOD_CT | {"transform_config": {"R1": {}}}, "transforms of activations"),
    ("ct-int8", FORMATS["ct-int8-zeros"][0], "has no weight_zero_point beside it"),
    ("ct-int8-zeros", FORMATS["ct-int8"][0], "has a weight_zero_point, and config.json says"),
]


def says(folder: Path) -> str:
    """The one sentence that opening the folder, or using its matrix, ends in."""
    with pytest.raises(ReflError) as caught:
        opened(folder)[NAME]
    text = str(caught.value)
    assert text.isprintable() and len(text) < 700
    return text


@pytest.mark.parametrize(
    ("kind", "option", "match"), OPTIONS, ids=[f"{k}-{i}" for i, (k, _, _) in enumerate(OPTIONS)]
)
def test_options_are_refused_by_name(tmp_path: Path, kind: str, option: Any, match: str) -> None:
    folder_of(tmp_path, kind)
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": option}))
    text = says(tmp_path)
    assert re.search(match, text), text


def state(**changed: Any) -> dict[str, Tensor]:
    raw: Any = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [40, 96]}
    text = json.dumps(raw | changed).encode()
    return {"weight.quant_state.bitsandbytes__nf4": ("U8", (len(text),), text)}


def bare_state(text: bytes) -> dict[str, Tensor]:
    return {"weight.quant_state.bitsandbytes__nf4": ("U8", (len(text),), text)}


def zeros(tag: str, *shape: int) -> Tensor:
    width = {"I32": 4, "F16": 2, "F32": 4, "U8": 1, "I8": 1, "I64": 8, "F8_E4M3": 1}[tag]
    return tag, shape, bytes(width * math.prod(shape))


TENSORS: list[tuple[str, dict[str, Tensor | None], str]] = [
    ("gptq-4", {"qzeros": None}, "is quantized, and has no qzeros beside it"),
    ("gptq-4", {"scales": None}, "has no scales beside it"),
    ("gptq-4", {"qzeros": zeros("I32", 6, 4)}, r"qzeros of .* has shape \(6, 4\), expected \(6, 5"),
    ("gptq-4", {"scales": zeros("I32", 6, 40)}, "scales of .* stored as I32, expected F32 or F16"),
    ("gptq-4", {"qweight": zeros("F32", 12, 40)}, "qweight of .* stored as F32, expected I32"),
    ("gptq-4", {"qweight": zeros("I32", 480)}, "expected a matrix"),
    ("gptq-4", {"qweight": zeros("I32", 0, 40)}, "expected a matrix"),
    ("gptq-4", {"qweight": zeros("I32", 12, 39)}, "no matrix of 4 bits is packed into"),
    ("gptq-4", {"weight": zeros("F16", 40, 96)}, "twice: as floats, and quantized"),
    ("gptq-4-ordered", {"g_idx": files.whole("I32", (96,), [6] * 96)}, "g_idx names group 6, exp"),
    ("gptq-4-ordered", {"g_idx": files.whole("I32", (96,), [-1] * 96)}, "g_idx names group -1"),
    ("gptq-4-ordered", {"g_idx": zeros("I32", 95)}, r"g_idx of .* has shape \(95,\)"),
    ("awq", {"qzeros": zeros("I32", 6, 40)}, "qzeros of .* has shape"),
    ("awq", {"scales": zeros("F16", 6, 5)}, "scales of .* has shape"),
    ("int8", {"SCB": ("F32", (40,), INFINITE)}, "holds .* NaN and .* infinite .*int8"),
    ("int8", {"SCB": zeros("F32", 41)}, "SCB of .* has shape"),
    ("int8", {"weight_format": ("U8", (), b"\3")}, "weight_format of .* is 3, expected 0"),
    ("int8", {"weight": zeros("U8", 40, 96)}, "weight of .* stored as U8, expected I8"),
    ("nf4", {"weight": None}, "has no weight beside it"),
    ("nf4", {"weight": zeros("U8", 1919, 1)}, "has 1919 bytes, its quant_state asks for 1920"),
    ("nf4", {"weight.absmax": zeros("F32", 59)}, r"absmax of .* has shape \(59,\), expected \(60"),
    ("nf4", {"weight.quant_map": zeros("F32", 16)}, "its quant_map is not the table of nf4"),
    ("nf4", {"weight.quant_map": zeros("F32", 17)}, "quant_map of .* has shape"),
    ("nf4", bare_state(b"{"), "quant_state of .* is not valid JSON"),
    ("nf4", bare_state(b"[" * 4000), "is not valid JSON|nested"),
    ("nf4", bare_state(b" " * 5000), "of 5000 bytes, expected"),
    ("nf4", bare_state(b"[]"), r"is \[\], expected an object of quant_type nf4"),
    ("nf4", bare_state(b'{"shape": [1], "shape": [2]}'), "given twice"),
    ("nf4", bare_state(b"\xff\xfe"), "is not valid JSON"),
    ("nf4", state(quant_type="fp4"), "expected an object of quant_type nf4"),
    ("nf4", state(blocksize=0), "blocksize = 0, expected a whole number above 0"),
    ("nf4", state(blocksize=True), "blocksize = True, expected"),
    ("nf4", state(blocksize=64.0), "blocksize = 64.0, expected"),
    ("nf4", state(blocksize=10**40), "blocksize = 1000000"),
    ("nf4", state(shape=[40, -96]), "shape = .*expected the two sizes"),
    ("nf4", state(shape=[2**31, 2**31]), "shape = .*expected the two sizes"),
    ("nf4", state(shape=[2**30, 2**30]), "has 1920 bytes, its quant_state asks for"),
    ("nf4", state(shape=None), "shape = None, expected the two sizes"),
    ("nf4", state(nested_blocksize=0), "nested_blocksize = 0, expected"),
    ("nf4", state(nested_blocksize=8), "nested_offset = None, expected a finite number"),
    ("nf4", state(nested_blocksize=8, nested_offset=math.nan), "nested_offset = nan"),
    ("nf4", state(nested_blocksize=8, nested_offset=0.5), "absmax .* as F32, expected U8"),
    ("fp8-block", {"weight_scale_inv": zeros("F32", 3, 5)}, "weight_scale_inv of .* has shape"),
    ("fp8-block", {"weight_scale_inv": None}, "has no weight_scale beside it"),
    ("fp8-block", {"weight": ("F8_E4M3", (40, 96), b"\x7f" * 3840)}, "holds 3840 NaN"),
    ("fp8-tensor", {"weight_scale": zeros("F32", 7)}, "weight_scale of .* has shape"),
    ("fp8-tensor", {"weight_scale": ("F32", (), b"\0\0\xc0\x7f")}, "holds 3840 NaN"),
    ("ct-packed-4", {"weight_shape": files.whole("I64", (2,), [40, 97])}, "does not hold"),
    ("ct-packed-4", {"weight_shape": files.whole("I64", (2,), [40, -1])}, "does not hold"),
    ("ct-packed-4", {"weight_shape": files.whole("I64", (2,), [2**62, 96])}, "does not hold"),
    ("ct-packed-4", {"weight_shape": zeros("I64", 3)}, "weight_shape of .* has shape"),
    ("ct-packed-4", {"weight_packed": None}, "has no weight_packed beside it"),
    ("ct-packed-4-zeros", {"weight_zero_point": zeros("I32", 40, 6)}, "point of .* has shape"),
    ("ct-packed-4-ordered", {"weight_g_idx": None}, "has no weight_g_idx beside it"),
    ("ct-float-tensor", {"weight": zeros("I8", 40, 96)}, "stored as I8, expected F8_E4M3"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "changed", "match"), TENSORS, ids=[f"{k}-{i}" for i, (k, _, _) in enumerate(TENSORS)]
)
def test_hostile_tensors(
    tmp_path: Path, kind: str, changed: dict[str, Tensor | None], match: str
) -> None:
    folder_of(tmp_path, kind)
    tensors = read_all(tmp_path)
    for part, tensor in changed.items():
        tensors.pop(f"{MODULE}.{part}", None)
        if tensor is not None:
            tensors[f"{MODULE}.{part}"] = tensor
    config = json.loads((tmp_path / "config.json").read_text())
    save(tmp_path, config, tensors)
    text = says(tmp_path)
    assert re.search(match, text), text


def test_a_quantized_file_without_a_word_in_config(tmp_path: Path) -> None:
    one, _ = files.checkpoint(tmp_path, WIDE, arrays_of(WIDE), "int8")
    (one / "config.json").write_text(json.dumps(WIDE))
    with pytest.raises(ReflError, match="is stored as I8, .*quantization_config of config.json"):
        refl.load(one)


def test_what_says_how_weights_are_stored_is_not_ignored(tmp_path: Path) -> None:
    one, _ = files.checkpoint(tmp_path, WIDE, arrays_of(WIDE), "awq")
    with pytest.raises(ReflError, match="weights are read by quantization_config"):
        refl.load(one, ignore=["quantization_config"])


# -- what the libraries make of them ---------------------------------------------------------------

RECORDED = Path(__file__).parent / "data" / "quantized"
"""Made by refl.verification.peers.record_quantized, which says how."""

ROUNDED_MORE = {"bitsandbytes-int8": 4, "bitsandbytes-nf4-double": 6}
"""Where the library forms in float32 what is formed in float64 here: how many roundings a number
may be apart, of a size that is at most the largest of its row.
"""


@pytest.mark.parametrize("path", sorted(RECORDED.glob("*.safetensors")), ids=lambda path: path.stem)
def test_a_recorded_outcome_of_the_library(tmp_path: Path, path: Path) -> None:
    """Bit for bit in float32, in which the libraries computed."""
    with safe_open(path, "np") as file:
        config = json.loads(file.metadata()["quantization_config"])
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": config}))
    (tmp_path / "model.safetensors").write_bytes(path.read_bytes())
    weights = opened(tmp_path, "float32")
    found, wanted = weights["m.weight"], weights["outcome"]
    assert set(weights) == {"m.weight", "outcome"}
    largest = np.abs(wanted).max(axis=1, keepdims=True)
    bound = ROUNDED_MORE.get(path.stem, 0) * largest * 2.0**-24
    assert (np.abs(found - wanted) <= bound).all()


def test_all_that_was_recorded_is_there() -> None:
    assert len(list(RECORDED.glob("*.safetensors"))) == 15
