"""Files, JSON, safetensors and weights (refl.io) against the safetensors library, against files
constructed byte by byte, and hostile files.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
import random
import resource
import stat
import struct
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import pytest
import safetensors
import safetensors.numpy
from checkpoints import checkpoint
from hanging import within
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from quantized_files import float8

from refl.errors import ReflError, nearest
from refl.io.config import read_config
from refl.io.files import atomic_write
from refl.io.safetensors import read_safetensors, widen_bfloat16, write_safetensors
from refl.io.weights import Weights, expect

NAMES = [
    "babyllama105",
    "capp_gpt2",
    "chronos_dummy_t5_UNTRAINED",
    "nano_sort_gpt2",
    "rxnmapper_albert",
]
NAMES += ["stories260K", "vit_455_hf", "vit_mnist_012_hf"]
CODES = {"F64": "d", "F32": "f", "F16": "e", "I64": "q", "U8": "B"}


# --- files made by hand ---------------------------------------------------------------------------


def file_of(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file, or something like one:
    header length (the true one unless given), header, data.
    """
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(tag: str, shape: list[int], start: int, stop: int) -> dict[str, Any]:
    return {"dtype": tag, "shape": shape, "data_offsets": [start, stop]}


def folder_with(folder: Path, weights: bytes, name: str = "model.safetensors") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_bytes(b'{"model_type": "test"}')
    (folder / name).write_bytes(weights)
    return folder


def opened(folder: Path, dtype: str = "float64", **more: Any) -> Weights:
    return Weights(folder, dtype=dtype, place=lambda array: array, **more)


def tensor_file(tag: str, width: int, data: bytes) -> bytes:
    """A file with the one tensor `x`, flat."""
    return file_of({"x": entry(tag, [len(data) // width], 0, len(data))}, data)


def decoded(tag: str, data: bytes) -> list[float]:
    """The numbers in `data`, by struct alone. A bfloat16 is the upper half of a float32."""
    if tag == "BF16":
        halves = [data[i : i + 2] for i in range(0, len(data), 2)]
        return [struct.unpack("<f", b"\0\0" + half)[0] for half in halves]
    if tag.startswith("F8_"):
        each = (float8(bits, tag) for bits in data)
        return [math.nan if number is None else float(number) for number in each]
    return list(struct.unpack(f"<{len(data) // struct.calcsize(CODES[tag])}{CODES[tag]}", data))


@contextmanager
def nobody() -> Iterator[None]:
    """Root may read everything: take another user's rights for the block."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A temporary folder that any user may enter (pytest's own are closed to others)."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


# --- config.json ----------------------------------------------------------------------------------


def config_folder(tmp_path: Path, data: bytes) -> Path:
    (tmp_path / "config.json").write_bytes(data)
    return tmp_path


def test_config_is_read(tmp_path: Path) -> None:
    assert read_config(config_folder(tmp_path, b'{"hidden_size": 64, "x": [1, null]}')) == {
        "hidden_size": 64,
        "x": [1, None],
    }
    assert read_config(str(tmp_path))["hidden_size"] == 64


def test_config_may_hold_infinity(tmp_path: Path) -> None:
    """Published configurations do (a time step limit without end); JSON proper does not know it."""
    found = read_config(config_folder(tmp_path, b'{"a": NaN, "b": [0.0, Infinity]}'))
    assert math.isnan(found["a"]) and found["b"][1] == math.inf


@pytest.mark.parametrize(
    "data, says",
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b'{"a": 1}}', "not valid JSON"),
        (b"[1]", "holds a list"),
        (b"null", "holds a NoneType"),
        (b"\xff\xfe\xfa", "not valid JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nested too deeply"),
        (b" " * ((16 << 20) + 1), "expected at most"),
    ],
)
def test_broken_config(tmp_path: Path, data: bytes, says: str) -> None:
    with pytest.raises(ReflError, match=says):
        read_config(config_folder(tmp_path, data))


def test_no_config(tmp_path: Path) -> None:
    with pytest.raises(ReflError, match=r"config\.json does not exist"):
        read_config(tmp_path)
    with pytest.raises(ReflError, match="nowhere does not exist"):
        read_config(tmp_path / "nowhere")
    with pytest.raises(ReflError, match="cannot be read"):
        read_config("a\0b")


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    path = folder_with(tmp_path, file_of({})) / "model.safetensors"
    for read in (read_config, opened):
        with pytest.raises(
            ReflError, match=r"expected the folder of a checkpoint, .*model\.safetensors is a file"
        ):
            read(path)


class Bomb:
    """Unpickling it leaves a file behind."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("suffix", ["bin", "pt", "pth", "ckpt", "pkl"])
def test_a_pickle_is_refused_unread(tmp_path: Path, suffix: str) -> None:
    marker, path = tmp_path / "ran", tmp_path / f"pytorch_model.{suffix}"
    path.write_bytes(pickle.dumps(Bomb(marker)))
    for read, place in ((read_config, path), (opened, path), (opened, tmp_path)):
        with pytest.raises(
            ReflError, match="a pickle runs code when read.*convert the weights to safetensors"
        ):
            read(place)
    assert not marker.exists()


# --- which files ----------------------------------------------------------------------------------


def arrays_of(seed: int, *names: str) -> dict[str, numpy.ndarray[Any, Any]]:
    generator = numpy.random.default_rng(seed)
    return {name: generator.standard_normal((2, 3)).astype(numpy.float32) for name in names}


def sharded(folder: Path) -> tuple[Path, dict[str, numpy.ndarray[Any, Any]]]:
    """A checkpoint in two shards; the index and what it holds."""
    folder.mkdir(exist_ok=True)
    first, second = arrays_of(1, "a", "b"), arrays_of(2, "c")
    safetensors.numpy.save_file(first, folder / "model-00001-of-00002.safetensors")
    safetensors.numpy.save_file(second, folder / "model-00002-of-00002.safetensors")
    places = {name: "model-00001-of-00002.safetensors" for name in first}
    places |= {name: "model-00002-of-00002.safetensors" for name in second}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 72}, "weight_map": places}))
    (folder / "config.json").write_text("{}")
    return index, first | second


def same(weights: Any, arrays: dict[str, numpy.ndarray[Any, Any]]) -> bool:
    return set(weights) == set(arrays) and all(
        numpy.array_equal(weights[k], arrays[k]) for k in arrays
    )


def test_shards(tmp_path: Path) -> None:
    index, arrays = sharded(tmp_path)
    weights = opened(tmp_path, "float32")
    assert same(weights, arrays) and weights.source == index and len(weights) == 3


def test_a_shard_that_the_index_does_not_know(tmp_path: Path) -> None:
    """Of another save, with tensors that nobody would miss; other files are no shards."""
    sharded(tmp_path)
    safetensors.numpy.save_file(arrays_of(1, "a"), tmp_path / "consolidated.safetensors")
    assert len(opened(tmp_path)) == 3
    safetensors.numpy.save_file(arrays_of(1, "d"), tmp_path / "model-00003-of-00003.safetensors")
    with pytest.raises(ReflError, match=r"names no tensor in model-00003-of-00003\.safetensors"):
        opened(tmp_path)


def test_one_file_of_another_name(tmp_path: Path) -> None:
    arrays = arrays_of(3, "a")
    safetensors.numpy.save_file(arrays, tmp_path / "weights.safetensors")
    assert same(opened(tmp_path), arrays)
    safetensors.numpy.save_file(arrays, tmp_path / "more.safetensors")
    with pytest.raises(ReflError, match=r"found more\.safetensors, weights\.safetensors: keep one"):
        opened(tmp_path)


def test_no_weights(tmp_path: Path) -> None:
    with pytest.raises(ReflError, match=r"expected model\.safetensors or its index"):
        opened(tmp_path)


def test_weights_may_be_links_out_of_the_folder(tmp_path: Path) -> None:
    """A hub cache is made of them; only what an index *names* has to stay inside."""
    arrays = arrays_of(4, "a")
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    safetensors.numpy.save_file(arrays, tmp_path / "blobs" / "0123")
    (tmp_path / "snapshot" / "model.safetensors").symlink_to("../blobs/0123")
    assert same(opened(tmp_path / "snapshot"), arrays)


HOSTILE_NAMES = [
    "../other/model.safetensors", "/etc/model.safetensors", "sub/model.safetensors", "..", ".", "",
    "C:\\model.safetensors", "..\\model.safetensors", "C:model.safetensors", "pytorch_model.bin",
    "./model-00001-of-00002.safetensors",
]  # fmt: skip
NO_FILES = [
    "\ud800.safetensors",
    "a\0.safetensors",
    "x" * 5000 + ".safetensors",
    "absent.safetensors",
]
NO_NAMES: list[Any] = [7, None, ["a"], {}]


@pytest.mark.parametrize(
    "name, says",
    [
        *((name, r"expected a plain \*\.safetensors beside it") for name in HOSTILE_NAMES),
        *((name, "does not exist|cannot be read") for name in NO_FILES),
        *((name, "expected the name of a file") for name in NO_NAMES),
    ],
)
def test_an_index_names_plain_files_only(tmp_path: Path, name: Any, says: str) -> None:
    index, _ = sharded(tmp_path / "folder")
    sharded(tmp_path / "other")
    (tmp_path / "other" / "model-00001-of-00002.safetensors").rename(
        tmp_path / "other" / "model.safetensors"
    )
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ReflError, match=says) as caught:
        opened(tmp_path / "folder")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "text, says",
    [
        ("{}", "expected an object weight_map"),
        ('{"weight_map": []}', "expected an object weight_map"),
        (
            '{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}',
            "the name a is given twice",
        ),
        ('{"weight_map": {"z": "model-00001-of-00002.safetensors"}}', "expected a tensor z"),
        ('{"weight_map": ' + '{"a":' * 5000 + "1" + "}" * 5001, "nested too deeply"),
    ],
)
def test_broken_index(tmp_path: Path, text: str, says: str) -> None:
    index, _ = sharded(tmp_path)
    index.write_text(text)
    with pytest.raises(ReflError, match=says):
        opened(tmp_path)


def test_index_fuzz(tmp_path: Path) -> None:
    """600 damaged indexes: each is refused, or gives the tensors
    it still names, from where it says.
    """
    index, arrays = sharded(tmp_path)
    good, rng, outcomes = index.read_bytes(), random.Random(5), Counter[str]()
    for _ in range(600):
        index.unlink()
        index.write_bytes(rng.choice(BLIND)(good, rng))
        try:
            weights = opened(tmp_path, "float32")
        except ReflError:
            outcomes["refused"] += 1
            continue
        assert set(weights) <= set(arrays) and all(
            numpy.array_equal(weights[k], arrays[k]) for k in weights
        )
        outcomes["read"] += 1
    assert outcomes["refused"] > 200 and outcomes["read"] > 20, outcomes


# --- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_real_checkpoints(name: str, dtype: str) -> None:
    """Every tensor as the safetensors library reads it."""
    folder = checkpoint(name)
    weights = opened(folder, dtype)
    expected = safetensors.numpy.load_file(folder / "model.safetensors")
    assert same(weights, expected)
    assert all(
        weights[key].dtype == dtype and weights.shape(key) == expected[key].shape for key in weights
    )


def test_every_bfloat16() -> None:
    """All 65,536 patterns against the float32 that struct builds; NaN as NaN."""
    bits = numpy.arange(1 << 16, dtype=numpy.uint16)
    exact = numpy.array(decoded("BF16", bits.astype("<u2").tobytes()), dtype=numpy.float64)
    wide = widen_bfloat16(bits)
    number = ~numpy.isnan(exact)
    assert wide.dtype == numpy.float32 and number.sum() == (1 << 16) - 2 * 127
    assert numpy.array_equal(wide[number], exact[number]) and numpy.isnan(wide[~number]).all()
    assert numpy.array_equal(numpy.signbit(wide[number]), numpy.signbit(exact[number]))


@pytest.mark.parametrize("tag, top", [("BF16", 0x7F80), ("F16", 0x7C00)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_finite_half_through_a_file(tmp_path: Path, tag: str, top: int, dtype: str) -> None:
    """Every finite pattern of the two 16-bit formats,
    subnormals and both zeros included, bit for bit.
    """
    bits = numpy.arange(1 << 16, dtype="<u2")
    data = bits[(bits & top) != top].tobytes()
    values = opened(folder_with(tmp_path, tensor_file(tag, 2, data)), dtype)["x"]
    exact = numpy.array(decoded(tag, data), dtype=dtype)
    assert values.dtype == dtype and values.tobytes() == exact.tobytes()


@pytest.mark.parametrize("tag, width", [("F64", 8), ("F32", 4), ("F16", 2), ("BF16", 2)])
def test_odd_headers_leave_numbers_unaligned(tmp_path: Path, tag: str, width: int) -> None:
    """An exponent lacks one bit throughout, so that no pattern is infinite or NaN in any format."""
    data = bytes(byte & 0b1111_1011 for byte in random.Random(6).randbytes(8 * 40))
    for pad in range(8):
        text = (
            json.dumps({"x": entry(tag, [len(data) // width], 0, len(data))}).encode() + b" " * pad
        )
        values = opened(folder_with(tmp_path, file_of(text, data)))["x"]
        assert values.flags.aligned and values.tolist() == decoded(tag, data)


def test_no_dimensions_and_no_numbers(tmp_path: Path) -> None:
    header = {
        name: entry(tag, shape, start, stop)
        for name, tag, shape, start, stop in [
            ("a", "F32", [], 0, 4),
            ("b", "BF16", [], 4, 6),
            ("c", "F64", [2, 0], 6, 6),
            ("d", "F16", [], 6, 8),
        ]
    }
    data = struct.pack("<f", 1.5) + b"\x80\x3f" + struct.pack("<e", 0.25)
    weights = opened(folder_with(tmp_path, file_of(header, data)))
    assert [weights[k].shape for k in "abcd"] == [(), (), (2, 0), ()]
    assert [float(weights[k]) for k in "abd"] == [1.5, 1.0, 0.25]
    assert all(isinstance(weights[k], numpy.ndarray) for k in "abcd")


def test_float32_is_not_copied(tmp_path: Path) -> None:
    safetensors.numpy.save_file(arrays_of(7, "a"), folder_with(tmp_path, b"") / "model.safetensors")
    view = opened(tmp_path, "float32")["a"]
    assert not view.flags.owndata and not view.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        view[0, 0] = 1


@pytest.mark.parametrize("tag, data", [
    ("F32", struct.pack("<4f", 1, math.nan, math.inf, -math.inf)),
    ("F64", struct.pack("<4d", 1, math.nan, math.inf, -math.inf)),
    ("F16", struct.pack("<4e", 1, math.nan, math.inf, -math.inf)),
    ("BF16", bytes.fromhex("803f c07f 807f 80ff")),
    ("F32", bytes.fromhex("0000803f 0100807f 0000807f 000080ff")),  # a signalling NaN
])  # fmt: skip
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_is_not_finite_is_named_and_counted(
    tmp_path: Path, tag: str, data: bytes, dtype: str
) -> None:
    weights = opened(folder_with(tmp_path, tensor_file(tag, len(data) // 4, data)), dtype)
    for _ in range(2):  # an access that failed is no first access
        with pytest.raises(
            ReflError, match=f"x holds 1 NaN and 2 infinite of 4 numbers, stored as {tag}"
        ):
            weights["x"]


def test_float64_beyond_float32(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, tensor_file("F64", 8, struct.pack("<3d", 0.1, 1e300, 1e-300)))
    assert opened(folder, "float64")["x"].tolist() == [0.1, 1e300, 1e-300]
    with pytest.raises(
        ReflError, match="1 infinite of 3 .* as F64 .* read as float32: .*float64 is needed"
    ):
        opened(folder, "float32")["x"]


@pytest.mark.parametrize("tag, bits", [("I64", 64), ("U8", 8), ("BOOL", 8), ("I8", 8)])
def test_other_dtypes_are_refused_by_name(tmp_path: Path, tag: str, bits: int) -> None:
    weights = opened(folder_with(tmp_path, tensor_file(tag, bits // 8, b"\1" * bits)))
    assert "x" in weights and weights.shape("x") == (8,) and weights.dtype_of("x") == tag
    with pytest.raises(
        ReflError, match=f"x is stored as {tag}, expected one of F64, F32, F16, BF16"
    ):
        weights["x"]


def test_dtype_is_checked(tmp_path: Path) -> None:
    with pytest.raises(ReflError, match="expected dtype float32 or float64, got float16"):
        opened(tmp_path, "float16")


# --- the mapping ----------------------------------------------------------------------------------


@pytest.mark.parametrize("cache_bytes, calls", [(48, 1), (47, 2), (0, 2)])
def test_kept_only_where_all_fit(tmp_path: Path, cache_bytes: int, calls: int) -> None:
    """Six float32 numbers are 48 bytes in float64; integers are never widened and do not count."""
    arrays = arrays_of(8, "a") | {"ids": numpy.arange(1000)}
    safetensors.numpy.save_file(arrays, tmp_path / "model.safetensors")
    placed: list[numpy.ndarray[Any, Any]] = []

    def place(array: numpy.ndarray[Any, Any]) -> numpy.ndarray[Any, Any]:
        placed.append(array)
        return array + 1

    weights = Weights(tmp_path, dtype="float64", place=place, cache_bytes=cache_bytes)
    assert weights.keeps == (calls == 1) and not placed
    for _ in range(2):
        assert numpy.array_equal(weights["a"], arrays["a"].astype(numpy.float64) + 1)
    assert len(placed) == calls and not placed[0].flags.writeable


def test_numbers_are_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check is a pass over the tensor: worth it once, not at every widening."""
    safetensors.numpy.save_file(arrays_of(8, "a", "b"), tmp_path / "model.safetensors")
    weights = opened(tmp_path, cache_bytes=0)
    calls = Counter[tuple[int, ...]]()

    def count(values: numpy.ndarray[Any, Any]) -> bool:
        calls[values.shape] += 1
        return True

    monkeypatch.setattr("refl.io.ahead.is_finite", count)
    assert weights["a"].shape == weights["a"].shape == weights["b"].shape
    assert calls == {(6,): 2}


def test_nothing_is_read_before_it_is_used(tmp_path: Path) -> None:
    """A file of 16 GiB (all hole) opens at once;
    a tensor at its end costs what that tensor weighs.
    """
    size = 16 << 30
    header = {"hole": entry("F32", [size // 4], 0, size), "x": entry("F32", [2], size, size + 8)}
    path = folder_with(tmp_path, file_of(header)) / "model.safetensors"
    try:
        with open(path, "ab") as file:
            file.truncate(path.stat().st_size + size)
            file.seek(0, os.SEEK_END)
            file.write(struct.pack("<2f", 1, 2))
    except OSError as error:
        pytest.skip(f"no sparse files here: {error}")
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    started = time.perf_counter()
    weights = opened(tmp_path)
    assert (
        weights["x"].tolist() == [1, 2]
        and weights.shape("hole") == (size // 4,)
        and not weights.keeps
    )
    assert time.perf_counter() - started < 2
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident < 64 << 10  # KiB


def test_a_missing_tensor_names_the_file_and_the_nearest(tmp_path: Path) -> None:
    arrays = arrays_of(
        9, "model.layers.0.q_proj.weight", "model.layers.0.k_proj.weight", "lm_head.weight"
    )
    safetensors.numpy.save_file(arrays, tmp_path / "model.safetensors")
    weights = opened(tmp_path)
    absent = "model.layers.0.q_prj.weight"
    for use in (weights.__getitem__, weights.shape, weights.dtype_of):
        with pytest.raises(
            ReflError,
            match=r"q_prj\.weight, .*model\.safetensors holds .*nearest: .*q_proj\.weight",
        ):
            use(absent)
    assert absent not in weights and set(weights) == set(arrays)
    assert weights.get(absent) is None and weights.get("lm_head.weight") is not None
    with pytest.raises(ReflError, match="the weights hold no such name; nearest: none"):
        expect({}, "a", (1,), "why")


def test_nearest_is_quick_among_many() -> None:
    names = [
        f"model.layers.{i // 900}.experts.{i // 3 % 300}.{'abc'[i % 3]}_proj.weight"
        for i in range(54_000)
    ]
    started = time.perf_counter()
    found = nearest("model.layers.7.experts.13.b_prj.weight", names, 3)
    assert found[0] == "model.layers.7.experts.13.b_proj.weight"
    assert time.perf_counter() - started < 3


def test_expect(tmp_path: Path) -> None:
    arrays = {"model.layers.3.self_attn.q_proj.weight": numpy.zeros((64, 64), numpy.float32)}
    safetensors.numpy.save_file(arrays, tmp_path / "model.safetensors")
    name, why = next(iter(arrays)), "num_attention_heads disagrees with the checkpoint"
    says = f"{name} has shape (64, 64), config.json asks for (128, 64): {why}"
    for mapping in (opened(tmp_path), arrays):
        expect(mapping, name, (64, 64), why)
        with pytest.raises(ReflError) as caught:
            expect(mapping, name, (128, 64), why)
        assert str(caught.value) == says
        with pytest.raises(ReflError, match="expected a tensor absent"):
            expect(mapping, "absent", (1,), why)
    with pytest.raises(ReflError):
        opened(tmp_path).expect(name, (64,), why)


def test_fingerprint_is_sha256_of_the_files(tmp_path: Path) -> None:
    index, _ = sharded(tmp_path)
    first, second = sorted(tmp_path.glob("*.safetensors"))

    def digest() -> str:
        order = [tmp_path / "config.json", first, second, index]
        return hashlib.sha256(b"".join(path.read_bytes() for path in order)).hexdigest()

    weights = opened(tmp_path)
    before = weights.fingerprint()
    assert before == digest()
    second.write_bytes(second.read_bytes()[:-1] + b"\x3e")
    assert weights.fingerprint() == before, "computed once"
    assert opened(tmp_path).fingerprint() == digest() != before


# --- hostile files --------------------------------------------------------------------------------

ONE = {"a": entry("F32", [1], 0, 4)}
ZERO = b"\0" * 4
HOSTILE: dict[str, bytes] = {
    "empty": b"",
    "seven bytes": b"\0" * 7,
    "no header": file_of(b""),
    "header of 2^63": file_of(ONE, ZERO, 1 << 63),
    "header of 2^64 - 1": file_of(ONE, ZERO, (1 << 64) - 1),
    "header longer than the file": file_of(ONE, ZERO, 5000),
    "not JSON": file_of(b"{", ZERO),
    "no object": file_of(b"[]", ZERO),
    "not UTF-8": file_of(json.dumps(ONE).encode().replace(b"a", b"\xff", 1), ZERO),
    "half a character": file_of(json.dumps(ONE).encode().replace(b'"a"', b'"\\ud800"'), ZERO),
    "nested": file_of(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "huge shape": file_of({"a": entry("F32", [1 << 40], 0, 4)}, ZERO),
    "huge empty shape": file_of({"a": entry("F32", [0, 1 << 62], 0, 0)}),
    "overflowing shape": file_of({"a": entry("F32", [1 << 62, 4, 1 << 62], 0, 4)}, ZERO),
    "shape beyond 64 bits": file_of({"a": entry("F32", [0, 1 << 64], 0, 0)}),
    "hundred dimensions": file_of({"a": entry("F32", [1] * 100, 0, 4)}, ZERO),
    "negative shape": file_of({"a": entry("F32", [-1, -1], 0, 4)}, ZERO),
    "fractional shape": file_of({"a": entry("F32", [1.0], 0, 4)}, ZERO),  # type: ignore[list-item]
    "offsets beyond the file": file_of({"a": entry("F32", [1], 4, 8)}, ZERO),
    "offsets backwards": file_of({"a": entry("F32", [1], 4, 0)}, ZERO),
    "overlap": file_of({"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 0, 4)}, ZERO),
    "partial overlap": file_of(
        {"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 4, 12)}, ZERO * 3
    ),
    "hole between tensors": file_of(
        {"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 8, 12)}, ZERO * 3
    ),
    "data left over": file_of(ONE, ZERO * 2),
    "data cut": file_of(ONE, ZERO[:3]),
    "name given twice": file_of(b"{%b, %b}" % ((json.dumps(ONE)[1:-1].encode(),) * 2), ZERO),
    "unknown dtype": file_of({"a": entry("F99", [1], 0, 4)}, ZERO),
    "no dtype": file_of({"a": {"shape": [1], "data_offsets": [0, 4]}}, ZERO),
    "entry as a list": file_of({"a": ["F32", [1], [0, 4]]}, ZERO),
    "metadata of numbers": file_of({"__metadata__": {"a": 1}} | ONE, ZERO),
    "a pickle": pickle.dumps({"a": [1.0]}),
    "a zip archive": b"PK\3\4" + bytes(60),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file(tmp_path: Path, name: str) -> None:
    folder = folder_with(tmp_path, HOSTILE[name])
    tracemalloc.start()
    for read in (lambda: opened(folder), lambda: read_safetensors(folder / "model.safetensors")):
        with within(5), pytest.raises(ReflError) as caught:
            read()
        assert str(caught.value).isprintable() and "model.safetensors" in str(caught.value)
    assert tracemalloc.get_traced_memory()[1] < 16 << 20, (
        "memory follows the file, not what it claims"
    )
    tracemalloc.stop()


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    os.mkfifo(tmp_path / "model.safetensors")
    with within(5):
        for read in (read_config, opened):
            with pytest.raises(ReflError, match="is a folder, pipe or device"):
                read(tmp_path)
        for path in (tmp_path, tmp_path / "model.safetensors", Path("/dev/zero")):
            with pytest.raises(ReflError, match="is a folder, pipe or device"):
                read_safetensors(path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors").symlink_to("model.safetensors")
    with pytest.raises(ReflError, match="cannot be read"):
        opened(tmp_path)


def test_what_may_not_be_read(open_place: Path) -> None:
    folder = folder_with(open_place / "model", file_of(ONE, ZERO))
    for path in (folder / "config.json", folder / "model.safetensors"):
        path.chmod(0)
    with nobody():
        for read in (read_config, opened):
            with pytest.raises(ReflError, match="[Pp]ermission denied"):
                read(folder)
    folder.chmod(0)
    with nobody():
        for read in (read_config, opened):
            with pytest.raises(ReflError, match="[Pp]ermission denied"):
                read(folder)
    folder.chmod(0o700)


def test_weights_gone_after_opening(tmp_path: Path) -> None:
    weights = opened(folder_with(tmp_path, file_of(ONE, ZERO)))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ReflError, match="cannot be mapped"):
        weights["a"]
    with pytest.raises(ReflError, match="does not exist"):
        weights.fingerprint()


# --- fuzz -----------------------------------------------------------------------------------------

Mutation = Callable[[bytes, random.Random], bytes]


def flip(good: bytes, rng: random.Random) -> bytes:
    bad = bytearray(good)
    for _ in range(rng.choice((1, 1, 2, 8))):
        bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
    return bytes(bad)


def truncate(good: bytes, rng: random.Random) -> bytes:
    return good[: rng.randrange(len(good))]


def insert(good: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(good) + 1)
    return good[:at] + rng.randbytes(rng.choice((1, 2, 4, 8, 64))) + good[at:]


def remove(good: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(good))
    return good[:at] + good[at + rng.choice((1, 2, 4, 8)) :]


def replace_text(good: bytes, rng: random.Random) -> bytes:
    """One printable character for another: more often still JSON than a flipped bit."""
    at = rng.choice([i for i in range(8, len(good)) if 32 <= good[i] < 127])
    return (
        good[:at] + rng.choice(b'0123456789,:[]{}" abFIU-.e').to_bytes(1, "little") + good[at + 1 :]
    )


BLIND: list[Mutation] = [flip, truncate, insert, remove, replace_text]


def head_length(good: bytes) -> int:
    return 8 + int.from_bytes(good[:8], "little")


def in_header(good: bytes, rng: random.Random) -> bytes:
    """A blind mutation of the header's text alone, its length set right again half of the time."""
    size = head_length(good)
    text = rng.choice(BLIND)(b"x" * 8 + good[8:size], rng)[8:]
    return (struct.pack("<Q", len(text)) if rng.random() < 0.5 else good[:8]) + text + good[size:]


def in_data(good: bytes, rng: random.Random) -> bytes:
    size = head_length(good)
    bad = bytearray(good)
    bad[rng.randrange(size, len(bad))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    return bytes(bad)


def new_length(good: bytes, rng: random.Random) -> bytes:
    size = len(good)
    length = rng.choice(
        [0, 1, 2**31, 2**63, 2**64 - 1, 100_000_001, size, size - 8, rng.randrange(2**64)]
    )
    return struct.pack("<Q", length) + good[8:]


def edit_field(good: bytes, rng: random.Random) -> bytes:
    """One field of one tensor replaced by something plausible or absurd;
    JSON and its length stay right.
    """
    size = head_length(good)
    header = json.loads(good[8:size])
    name = rng.choice([key for key in header if key != "__metadata__"])
    field = rng.choice(["dtype", "shape", "data_offsets", "name"])
    if field == "name":
        header[rng.choice(["", "b", "__metadata__", "\0", "x" * 1000])] = header.pop(name)
    elif field == "dtype":
        header[name]["dtype"] = rng.choice(
            ["F64", "F32", "F16", "BF16", "I64", "BOOL", "F8_E4M3", "C64", "F4", "F99"]
        )
    else:
        values = header[name][field] + [1]
        absurd = [0, 1, 2, 3, 6, 16, -1, 2**31, 2**62, 2**63, 2**64, 1.5, None]
        values[rng.randrange(len(values))] = rng.choice(absurd)
        header[name][field] = values[:-1] if rng.random() < 0.8 else values
    return file_of(header, good[size:])


MUTATIONS: list[Mutation] = [
    *BLIND,
    in_header,
    in_data,
    in_data,
    new_length,
    edit_field,
    edit_field,
]


def fuzz_base() -> bytes:
    """A small file of every kind of tensor there is to widen, and two that are not widened."""
    rng = random.Random(11)
    parts = [
        ("d", "F64", [2, 3], struct.pack("<6d", *(rng.gauss(0, 1) for _ in range(6)))),
        ("f", "F32", [4, 2], struct.pack("<8f", *(rng.gauss(0, 1) for _ in range(8)))),
        ("s", "F32", [], struct.pack("<f", 0.5)),
        ("h", "F16", [6], struct.pack("<6e", *(rng.gauss(0, 1) for _ in range(6)))),
        ("b", "BF16", [2, 2], struct.pack("<4H", 0x3F80, 0xBF00, 0x0001, 0x4049)),
        ("z", "F32", [3, 0], b""),
        ("i", "I64", [2], struct.pack("<2q", 5, -7)),
        ("u", "U8", [4], bytes(range(4))),
    ]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, tag, shape, data in parts:
        header[name] = entry(tag, shape, at, at + len(data))
        at += len(data)
    return file_of(header, b"".join(data for *_, data in parts))


def judge(bad: bytes, folder: Path) -> str:
    """Reads a damaged file; any answer that is neither a ReflError
    nor exactly what the file says fails.
    """
    path = folder / "model.safetensors"
    path.unlink()  # written anew: some file systems flush a file that is cut and refilled
    path.write_bytes(bad)
    try:
        weights = opened(folder)
    except ReflError:
        return "refused"
    size = head_length(bad)
    header = json.loads(bad[8:size])
    header.pop("__metadata__", None)
    assert set(weights) == set(header)
    for name, fields in header.items():
        start, stop = fields["data_offsets"]
        judge_tensor(weights, name, fields, bad[size:][start:stop])
    return "read"


def judge_tensor(weights: Weights, name: str, fields: dict[str, Any], data: bytes) -> None:
    floating = fields["dtype"] in ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
    exact = decoded(fields["dtype"], data) if floating else []
    try:
        values = weights[name]
    except ReflError:
        assert not floating or not all(map(math.isfinite, exact)), (
            f"{name} was refused without a reason"
        )
        return
    assert list(values.shape) == fields["shape"] and numpy.isfinite(values).all()
    assert values.ravel().tolist() == exact


def fuzz(count: int) -> Counter[str]:
    good, rng, outcomes = fuzz_base(), random.Random(12), Counter[str]()
    with tempfile.TemporaryDirectory() as name:
        folder = folder_with(Path(name), good)
        assert judge(good, folder) == "read"
        for i in range(count):
            mutation = rng.choice(MUTATIONS)
            with within(5):
                outcomes[f"{mutation.__name__} {judge(mutation(good, rng), folder)}"] += 1
                read_or_refuse(folder / "model.safetensors", i)
    return outcomes


def read_or_refuse(path: Path, i: int) -> None:
    """The same file through the reader of oracle files."""
    try:
        arrays, metadata = read_safetensors(path)
    except ReflError:
        return
    assert sum(array.nbytes for array in arrays.values()) <= 2 * path.stat().st_size, i
    assert all(isinstance(text, str) for pair in metadata.items() for text in pair), i


def same_imports() -> dict[str, str]:
    """The environment for a Python that finds what this one finds
    (and takes no stacks for BLAS threads).
    """
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "OPENBLAS_NUM_THREADS": "1",
    }


def test_fuzz_in_bounded_memory() -> None:
    """10,000 damaged files, in a process that may grow by 256 MiB of address space and no more."""
    command = [sys.executable, __file__, "10000"]
    done = subprocess.run(
        command, env=same_imports(), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    outcomes = json.loads(done.stdout)
    refused, read = (
        sum(n for key, n in outcomes.items() if key.endswith(end)) for end in ("refused", "read")
    )
    assert refused + read == 10_000 and refused > 3000 and read > 1000, outcomes
    assert outcomes["in_data read"] > 1000 and "in_data refused" not in outcomes, (
        "no header was touched there"
    )


# --- oracle files ---------------------------------------------------------------------------------

DTYPES = ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", ">f4", ">i8"]


UNICODE = st.text(st.characters(exclude_categories=["Cs"]))
SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
ARRAYS = st.sampled_from(DTYPES).flatmap(lambda code: hnp.arrays(numpy.dtype(code), SHAPES))


@given(st.dictionaries(UNICODE, ARRAYS, max_size=4), st.dictionaries(UNICODE, UNICODE))
def test_written_and_read(
    arrays: dict[str, numpy.ndarray[Any, Any]], metadata: dict[str, str]
) -> None:
    """What is written comes back, bit for bit, through the library and through our own reader."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "out.safetensors"
        write_safetensors(path, arrays, metadata)
        ours, found = read_safetensors(path)
        theirs = safetensors.numpy.load_file(path)
        assert found == metadata and set(ours) == set(theirs) == set(arrays)
        for key, array in arrays.items():
            native = array.astype(array.dtype.newbyteorder("="))
            for copy in (ours[key], theirs[key]):
                assert copy.dtype == native.dtype and copy.shape == array.shape
                assert copy.tobytes() == native.tobytes()


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    arrays = arrays_of(13, "b", "a") | {"ids": numpy.arange(5), "_": numpy.ones(3, numpy.uint8)}
    metadata = {"b": "2", "a": "1", "ü": "→"}
    write_safetensors(tmp_path / "one", arrays, metadata)
    write_safetensors(
        tmp_path / "two", dict(reversed(arrays.items())), dict(reversed(metadata.items()))
    )
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert head_length((tmp_path / "one").read_bytes()) % 8 == 0
    assert all(array.flags.aligned for array in read_safetensors(tmp_path / "one")[0].values())
    with safetensors.safe_open(tmp_path / "one", framework="numpy") as file:
        assert file.metadata() == metadata


def test_strides_do_not_matter(tmp_path: Path) -> None:
    base = numpy.arange(24.0).reshape(4, 6)
    wide = numpy.broadcast_to(base[0], (3, 6))
    arrays = {"t": base.T, "s": base[::2, ::-3], "f": numpy.asfortranarray(base), "w": wide}
    write_safetensors(tmp_path / "out", arrays, {})
    assert same(read_safetensors(tmp_path / "out")[0], arrays)


def test_read_arrays_are_read_only_and_bfloat16_is_widened(tmp_path: Path) -> None:
    header = {"b": entry("BF16", [2], 0, 4), "t": entry("BOOL", [2], 4, 6)}
    (tmp_path / "x").write_bytes(file_of(header, b"\x80\x3f\xc0\x7f\x02\x00"))
    arrays, metadata = read_safetensors(tmp_path / "x")
    assert metadata == {} and arrays["b"].dtype == numpy.float32
    assert arrays["b"][0] == 1 and numpy.isnan(arrays["b"][1])
    assert arrays["t"].dtype == bool and arrays["t"].tolist() == [True, False], (
        "a byte of 2 is true"
    )
    write_safetensors(tmp_path / "y", {"a": numpy.ones(2)}, {})
    with pytest.raises(ValueError, match="read-only"):
        read_safetensors(tmp_path / "y")[0]["a"][0] = 2
    (tmp_path / "z").write_bytes(tensor_file("C64", 8, bytes(8)))
    with pytest.raises(ReflError, match="x is stored as C64"):
        read_safetensors(tmp_path / "z")


@pytest.mark.parametrize(
    "arrays, metadata, says",
    [
        ({"a": numpy.ones(2, numpy.complex64)}, {}, "a has dtype complex64"),
        ({"a": numpy.array(["x"])}, {}, "a has dtype <U1"),
        ({"a": numpy.array([None])}, {}, "a has dtype object"),
        ({"__metadata__": numpy.ones(2)}, {}, "reserves the name"),
        ({"\ud800": numpy.ones(2)}, {}, "half of a character"),
        ({}, {"a": "\udcff"}, "half of a character"),
        ({}, {"a": 1}, "expected metadata of strings"),
    ],
)
def test_what_the_format_cannot_hold(tmp_path: Path, arrays: Any, metadata: Any, says: str) -> None:
    with pytest.raises(ReflError, match=says):
        write_safetensors(tmp_path / "out", arrays, metadata)
    assert not list(tmp_path.iterdir())


def test_a_file_may_replace_what_it_was_read_from(tmp_path: Path) -> None:
    path = tmp_path / "out"
    write_safetensors(path, {"a": numpy.arange(1000.0)}, {})
    write_safetensors(path, {"a": read_safetensors(path)[0]["a"] * 2}, {})
    write_safetensors(path, read_safetensors(path)[0], {})
    assert read_safetensors(path)[0]["a"].tolist() == [2.0 * i for i in range(1000)]


# --- atomic writes --------------------------------------------------------------------------------


def write_plain(path: Path) -> None:
    atomic_write(path, b"after")


def write_oracle(path: Path) -> None:
    write_safetensors(path, {"a": numpy.ones(3)}, {})


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize(
    "error, caught",
    [(OSError(28, "No space left"), ReflError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_an_interrupted_write_changes_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    error: BaseException,
    caught: type[BaseException],
) -> None:
    def interrupt(*_: object) -> None:
        raise error

    (tmp_path / "out").write_bytes(b"before")
    monkeypatch.setattr(os, call, interrupt)
    for write in (write_plain, write_oracle):
        with pytest.raises(caught):
            write(tmp_path / "out")
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        assert (tmp_path / "out").read_bytes() == b"before"


def test_a_killed_writer_leaves_a_whole_file(tmp_path: Path) -> None:
    target = tmp_path / "out"
    atomic_write(target, b"a" * 500_000)
    script = (
        "import sys; from refl.io.files import atomic_write\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    for c in (b'a', b'b'): atomic_write(sys.argv[1], c * 500_000)"
    )
    command = [sys.executable, "-c", script, str(target)]
    for wait in (0.02, 0.05, 0.11):
        with subprocess.Popen(command, env=same_imports(), stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None and writer.stdout.readline() == b"ready\n"
            time.sleep(wait)
            writer.kill()
        found = target.read_bytes()
        assert len(found) == 500_000 and set(found) in ({ord("a")}, {ord("b")})


def test_where_nothing_can_be_written(tmp_path: Path, open_place: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("absent/out", "pipe", ".", "a\0b", "x" * 300):
        with within(5), pytest.raises(ReflError):
            atomic_write(tmp_path / name, b"data")
    with pytest.raises(ReflError):
        atomic_write("/dev/null", b"data")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    with nobody():
        if os.access(open_place, os.W_OK, effective_ids=True):
            pytest.skip("this folder can be written by anyone")
        with pytest.raises(ReflError, match="Permission denied"):
            atomic_write(open_place / "out", b"data")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pipe"]


def test_links_are_followed_and_the_umask_holds(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("target")
    before = os.umask(0o027)
    try:
        atomic_write(tmp_path / "link", b"data")
    finally:
        os.umask(before)
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_bytes() == b"data"
    assert stat.S_IMODE((tmp_path / "target").stat().st_mode) == 0o640
    # the temporary file's name is short, whatever the target's
    atomic_write(tmp_path / ("n" * 250), b"")


if __name__ == "__main__":  # the child of test_fuzz_in_bounded_memory
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20),) * 2)
    print(json.dumps(fuzz(int(sys.argv[1]))))
