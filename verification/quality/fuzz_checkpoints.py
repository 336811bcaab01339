"""Checkpoint folders that are not what they should be, by the thousand: options of every net, the
tables of its tensors, tokenizers.

    python -m refl.verification.quality.fuzz_checkpoints --tries 2000

A folder is refused in a sentence, or it runs: its logits are finite, and those of the folder that
was not touched wherever what was touched is documented to change nothing. Kinds of tries:

    options      one to three values of config.json replaced, of every option of every net
    harmless     options without effect on the forward pass, of any value
    json         the bytes of config.json damaged; nested, repeated, not UTF-8, not a file
    tensors      names, shapes, dtypes and numbers of tensors changed; tensors added and left out
    header       the bytes of a safetensors header or of an index damaged
    quantized    quantization_config and the parts of quantized matrices changed
    tokenizer    parts of tokenizer.json replaced, and a text encoded
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import struct
import sys
import tempfile
from collections.abc import Callable
from dataclasses import fields
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

import refl
from refl.cli.folder import contents
from refl.errors import ReflError
from refl.io.quantized.bnb import TABLES
from refl.io.safetensors import read_safetensors, write_safetensors
from refl.io.text import Text
from refl.nets import NETS
from refl.nets.config import HARMLESS, REFUSED
from refl.verification.quality.fuzzing import Try, fuzz
from refl.verification.random_models import ARCHITECTURES, LLAMA, random_model

Folder = Path
Change = Callable[[Random, Path], str]

PT = {"format": "pt"}  # without which transformers reads no file

TEXT = "ab abba  b\tA\u00e9\U0001f600"


@cache
def scratch() -> Path:
    """A folder of this run, removed at its end."""
    place = tempfile.TemporaryDirectory(prefix="refl-fuzz-")
    _KEPT.append(place)
    return Path(place.name)


_KEPT: list[Any] = []


@cache
def made(kind: str) -> Path:
    """A right checkpoint of this kind of net."""
    folder = scratch() / f"right-{kind}"
    folder.mkdir()
    write_safetensors(
        folder / "model.safetensors", random_model(ARCHITECTURES[kind], 5, "float32").weights, PT
    )
    (folder / "config.json").write_text(json.dumps(config_of(kind)))
    return folder


def config_of(kind: str) -> dict[str, Any]:
    """config.json, with the class that would have written it."""
    config = dict(ARCHITECTURES[kind])
    config.setdefault("architectures", [next(iter(NETS[kind].Config.classes(kind)))])
    return config


@cache
def right_logits(kind: str) -> Any:
    return run(made(kind))


def run(folder: Path) -> Any:
    """The logits after a few tokens, or of a picture."""
    model: Any = refl.load(folder, dtype="float64")
    if model.takes_images:
        size = (model.config.num_channels, *model.config.image)
        return model.logits(np.linspace(-1, 1, int(np.prod(size))).reshape(size))
    decoder = [model.decoder_start_id, 2] if model.task == "sequence-to-sequence" else None
    return model.logits([3, 1, 4, 1, 5], *([decoder] if decoder else []))


def attempt(kind: str, change: Change, random: Random, same: bool = False) -> Try:
    """A copy of a right folder, changed; what it says, or its logits."""
    folder = scratch() / "try"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(made(kind), folder)
    what = change(random, folder)

    def wrong(found: Any) -> str:
        if not np.isfinite(found).all():
            return "logits that are not finite"
        if same and not np.array_equal(found, right_logits(kind)):
            return "other logits, by what is said to change nothing"
        return ""

    return Try(f"{kind}: {what}", lambda: accepted(folder) if same else run(folder), wrong)


def accepted(folder: Path) -> Any:
    """The logits of a folder that there is no reason to refuse."""
    try:
        return run(folder)
    except ReflError as error:
        raise AssertionError(f"refused: {error}") from error


def any_kind(random: Random) -> str:
    return random.choice(sorted(ARCHITECTURES))


# -- config.json -----------------------------------------------------------------------------------

NUMBERS: tuple[Any, ...] = (
    0, 1, 2, 3, 5, 7, 16, 17, 64, 1000, 2**16, 2**31 - 1, 2**31, 2**53 + 1, 2**63, 2**64, 10**400,
    -1, -2, -(2**31), -(10**400), 0.0, -0.0, 0.5, 1.0, 1.5, 2.0, 5e-324, 1e-320, 1e-45, 1e-8, 1e38,
    1e39, 1e154, 1e308, -1.5, float("inf"), float("-inf"), float("nan"), True, False,
)  # fmt: skip
WORDS: tuple[Any, ...] = (
    "", "0", "1", "null", "true", "gelu", "relu", "silu", "llama", "linear", "dynamic", "yarn",
    "llama3", "default", "longrope", "mrope", "full_attention", "sliding_attention", "gated-gelu",
    "gated-", "absolute", "\x1b[31m", "\ud800", "\u202e", "a" * 5000, "../x", "nan", "1e5",
)  # fmt: skip
ROPE_KEYS = (
    "rope_type", "type", "rope_theta", "factor", "low_freq_factor", "high_freq_factor",
    "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "mscale",
    "mscale_all_dim", "partial_rotary_factor", "short_factor", "full_attention",
    "sliding_attention", "truncate",
)  # fmt: skip


def value(random: Random, depth: int = 0) -> Any:
    """Any value of JSON, the odd ones first."""
    draw = random.randrange(12 if depth < 3 else 8)
    if draw < 4:
        return random.choice(NUMBERS)
    if draw < 6:
        return random.choice(WORDS)
    if draw == 6:
        return None
    if draw == 7:
        return random.uniform(-2, 2) * 10 ** random.randrange(-40, 40)
    if draw == 8:
        return rope(random, depth)
    if draw == 9:
        return {str(value(random, 3)): value(random, depth + 1) for _ in range(random.randrange(4))}
    return [value(random, depth + 1) for _ in range(random.randrange(4))]


def near(random: Random, known: Any) -> Any:
    """A value of the kind that stands there, or any."""
    if random.random() < 0.4:
        return value(random)
    if isinstance(known, bool) or known is None:
        return random.choice((True, False, None, 1, 2.0, 3))
    if isinstance(known, int):
        return random.choice((known - 1, known + 1, known * 2, known // 2, 1, 2, 3, 4, 8, None))
    if isinstance(known, float):
        return known * 10 ** random.uniform(-8, 8)
    return random.choice((*WORDS, None)) if isinstance(known, str) else value(random)


def rope(random: Random, depth: int) -> dict[str, Any]:
    kind = random.choice(("linear", "dynamic", "yarn", "llama3", "default"))
    found: dict[str, Any] = {"rope_type": kind, "factor": random.choice((2.0, 8.0, 1e-3, 1e6))}
    if kind == "llama3":
        found |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
        found["original_max_position_embeddings"] = 16
    for key in random.sample(ROPE_KEYS, random.randrange(4)):
        found[key] = value(random, depth + 1)
    return found


def options_of(kind: str) -> list[str]:
    """Every option that the net reads, and every name of it that means something anywhere."""
    read = [field.name for field in fields(NETS[kind].Config)]
    return [*read, *read, *sorted(REFUSED), "eos_token_id", "decoder_start_token_id", "model_type"]


def options(random: Random) -> Try:
    kind = any_kind(random)

    def change(random: Random, folder: Path) -> str:
        config = config_of(kind)
        names = random.sample(options_of(kind), random.choice((1, 1, 1, 2, 3)))
        said = {name: near(random, config.get(name)) for name in names}
        (folder / "config.json").write_text(json.dumps(config | said))
        return short(said)

    return attempt(kind, change, random)


def harmless(random: Random) -> Try:
    kind = any_kind(random)
    read = {field.name for field in fields(NETS[kind].Config)}
    known = sorted(
        (HARMLESS | set(getattr(NETS[kind].Config, "HARMLESS", ()))) - read - CHECKED_BESIDES
    )

    def change(random: Random, folder: Path) -> str:
        said = {name: value(random) for name in random.sample(known, 3)}
        (folder / "config.json").write_text(json.dumps(config_of(kind) | said))
        return short(said)

    return attempt(kind, change, random, same=True)


CHECKED_BESIDES = {"model_type", "architectures", "eos_token_id", "decoder_start_token_id"}
CHECKED_BESIDES |= {"pad_token_id", "num_labels", "id2label", "quantization_config"}
"""Without effect on the logits, but read for something else."""


def short(said: Any) -> str:
    text = ascii(said)
    return text if len(text) <= 300 else f"{text[:297]}..."


def damaged_json(random: Random) -> Try:
    kind = any_kind(random)

    def change(random: Random, folder: Path) -> str:
        path = folder / "config.json"
        data = path.read_bytes()
        how, bad = random.choice(JSON_DAMAGES)(random, data)
        path.unlink()
        if bad is None:
            {"fifo": os.mkfifo, "folder": os.mkdir}.get(how, lambda p: os.symlink(how, p))(path)
        else:
            path.write_bytes(bad)
        return f"config.json {how}"

    return attempt(kind, change, random)


def _bytes(random: Random, data: bytes) -> tuple[str, bytes]:
    bad = bytearray(data)
    for _ in range(random.choice((1, 1, 3, 10))):
        bad[random.randrange(len(bad))] = random.choice(b'0123456789,:[]{}" aeFIUN-.+\xff\x00\\')
    return "with other bytes", bytes(bad)


def _cut(random: Random, data: bytes) -> tuple[str, bytes]:
    return "cut", data[: random.randrange(len(data))]


def _nested(random: Random, data: bytes) -> tuple[str, bytes]:
    depth = random.choice((50, 900, 5000, 100_000))
    opening, closing = random.choice(((b"[", b"]"), (b'{"a":', b"}")))
    return f"nested {depth}", data[
        :-1
    ] + b', "deep": ' + opening * depth + b"1" + closing * depth + b"}"


def _twice(random: Random, data: bytes) -> tuple[str, bytes]:
    name = random.choice(list(json.loads(data)))
    return f"twice {name}", data[:-1] + f', "{name}": {json.dumps(value(random))}}}'.encode()


def _encoded(random: Random, data: bytes) -> tuple[str, bytes]:
    how = random.choice(("utf-16", "utf-16-le", "utf-32", "utf-8-sig", "utf-7", "cp037"))
    return f"in {how}", data.decode().encode(how)


def _large(random: Random, data: bytes) -> tuple[str, bytes]:
    return "large", data[:-1] + b', "x": "' + b"a" * random.choice((1 << 20, 17 << 20)) + b'"}'


def _no_file(random: Random, data: bytes) -> tuple[str, None]:
    return random.choice(
        ("fifo", "folder", "/dev/zero", "/dev/tty", "/nowhere", "config.json", "/proc/self/mem")
    ), None


JSON_DAMAGES: tuple[Callable[[Random, bytes], tuple[str, bytes | None]], ...] = (
    _bytes, _bytes, _bytes, _cut, _nested, _twice, _encoded, _large, _no_file,
)  # fmt: skip


# -- tensors ---------------------------------------------------------------------------------------


def tensors(random: Random) -> Try:
    kind = any_kind(random)

    def change(random: Random, folder: Path) -> str:
        path = folder / "model.safetensors"
        arrays = {name: np.array(a) for name, a in read_safetensors(path)[0].items()}
        said = [random.choice(TENSOR_CHANGES)(random, arrays) for _ in range(random.choice((1, 2)))]
        write_safetensors(path, arrays, PT)
        return "; ".join(said)

    return attempt(kind, change, random)


def _left_out(random: Random, arrays: dict[str, Any]) -> str:
    name = random.choice(list(arrays))
    del arrays[name]
    return f"without {name}"


def _renamed(random: Random, arrays: dict[str, Any]) -> str:
    name = random.choice(list(arrays))
    new = random.choice(
        (name + "s", "model." + name, name.partition(".")[2] or "x", name.replace("0", "7"),
         name.replace("weight", "lora_A.weight"), name.replace("weight", "bias"), "score.weight",
         "lm_head.weight", name.replace(".0.", ".2."), "\x1b[31m" + name, "classifier.weight")
    )  # fmt: skip
    arrays[new] = arrays.pop(name) if random.random() < 0.5 else arrays[name].copy()
    return f"{name} as {new!a}"


def _reshaped(random: Random, arrays: dict[str, Any]) -> str:
    name = random.choice(list(arrays))
    a = arrays[name]
    arrays[name] = random.choice(
        (a.T.copy(), a[:-1], a[..., None], a.reshape(-1), a[:0], np.concatenate([a, a]))
    )
    return f"{name} of shape {arrays[name].shape}"


def _retyped(random: Random, arrays: dict[str, Any]) -> str:
    name = random.choice(list(arrays))
    dtype = random.choice(("f2", "f8", "i1", "u1", "i4", "i8", "u8", "?"))
    with np.errstate(invalid="ignore", over="ignore"):
        arrays[name] = arrays[name].astype(dtype)
    return f"{name} as {dtype}"


def _numbers(random: Random, arrays: dict[str, Any]) -> str:
    name = random.choice(list(arrays))
    number = random.choice((np.nan, np.inf, -np.inf, 3e38, 1e30, 1e-45, 0.0))
    if arrays[name].size:
        arrays[name].reshape(-1)[random.randrange(arrays[name].size)] = number
    return f"{number} in {name}"


TENSOR_CHANGES = (_left_out, _renamed, _renamed, _reshaped, _retyped, _numbers)


def header(random: Random) -> Try:
    kind = any_kind(random)

    def change(random: Random, folder: Path) -> str:
        path = folder / "model.safetensors"
        data = path.read_bytes()
        length = struct.unpack("<Q", data[:8])[0]
        if random.random() < 0.5:
            return _damaged_index(random, folder, json.loads(data[8 : 8 + length]))
        how, bad = random.choice((_bytes, _bytes, _cut))(random, data[8 : 8 + length])
        path.write_bytes(struct.pack("<Q", len(bad)) + bad + data[8 + length :])
        return f"header {how}"

    return attempt(kind, change, random)


def _damaged_index(random: Random, folder: Path, names: dict[str, Any]) -> str:
    os.rename(folder / "model.safetensors", folder / "a.safetensors")
    places: dict[str, Any] = {n: "a.safetensors" for n in names if n != "__metadata__"}
    how = random.choice(("one elsewhere", "one left out", "one of another kind", "bytes"))
    name = random.choice(list(places))
    if how == "one elsewhere":
        places[name] = random.choice(("b.safetensors", "../a.safetensors", "", "a\0.safetensors"))
    if how == "one left out":
        del places[name]
    if how == "one of another kind":
        places[name] = value(random)
    text = json.dumps({"metadata": {"total_size": value(random)}, "weight_map": places}).encode()
    text = _bytes(random, text)[1] if how == "bytes" else text
    (folder / "model.safetensors.index.json").write_bytes(text)
    return f"index, {how}: {name}"


# -- quantized weights -----------------------------------------------------------------------------


def _gptq(draw: Any, o: int, i: int) -> dict[str, Any]:
    words = draw.integers(-(2**31), 2**31, (i // 8 + 1, o), dtype=np.int32)
    scales = draw.uniform(0.01, 0.1, (1, o)).astype(np.float16)
    g_idx = np.zeros(i, np.int32)
    return {"qweight": words[1:], "qzeros": words[:1, : o // 8], "scales": scales, "g_idx": g_idx}


def _awq(draw: Any, o: int, i: int) -> dict[str, Any]:
    words = draw.integers(-(2**31), 2**31, (i + 1, o // 8), dtype=np.int32)
    scales = draw.uniform(0.01, 0.1, (1, o)).astype(np.float16)
    return {"qweight": words[1:], "qzeros": words[:1], "scales": scales}


def _int8(draw: Any, o: int, i: int) -> dict[str, Any]:
    scales = draw.uniform(0.5, 1, o).astype(np.float32)
    return {"weight": draw.integers(-127, 128, (o, i), dtype=np.int8), "SCB": scales}


def _nf4(draw: Any, o: int, i: int) -> dict[str, Any]:
    state = {"quant_type": "nf4", "blocksize": 8, "shape": [o, i], "nested_blocksize": 4}
    text = json.dumps(state | {"nested_offset": 0.5}).encode()
    blocks = o * i // 8
    return {
        "weight": draw.integers(0, 256, (o * i // 2, 1), dtype=np.uint8),
        "weight.quant_map": np.array(TABLES["nf4"], np.float32),
        "weight.absmax": draw.integers(0, 256, blocks, dtype=np.uint8),
        "weight.nested_absmax": draw.uniform(0.1, 1, -(-blocks // 4)).astype(np.float32),
        "weight.nested_quant_map": np.linspace(-1, 1, 256, dtype=np.float32),
        "weight.quant_state.bitsandbytes__nf4": np.frombuffer(text, np.uint8),
    }


def _packed(draw: Any, o: int, i: int) -> dict[str, Any]:
    return {
        "weight_packed": draw.integers(-(2**31), 2**31, (o, i // 8), dtype=np.int32),
        "weight_scale": draw.uniform(0.01, 0.1, (o, 1)).astype(np.float32),
        "weight_shape": np.array([o, i]),
    }


_WEIGHTS = {"num_bits": 4, "type": "int", "strategy": "channel", "symmetric": True}
QUANTIZED: dict[str, tuple[dict[str, Any], Callable[[Any, int, int], dict[str, Any]]]] = {
    "gptq": ({"bits": 4, "group_size": -1, "checkpoint_format": "gptq_v2"}, _gptq),
    "awq": ({"bits": 4, "group_size": -1, "version": "gemm", "zero_point": True}, _awq),
    "bitsandbytes": ({"load_in_8bit": True, "load_in_4bit": False}, _int8),
    "bitsandbytes-4": ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, _nf4),
    "compressed-tensors": (
        {"format": "pack-quantized",
         "config_groups": {"a": {"targets": ["Linear"], "weights": _WEIGHTS}}},
        _packed,
    ),
}  # fmt: skip
"""quant_method -> its options, and what makes the parts of a matrix (O, I)."""


def quantized(random: Random) -> Try:
    method = random.choice(sorted(QUANTIZED))
    options, parts_of = QUANTIZED[method]
    config = LLAMA | {"intermediate_size": 24, "architectures": ["LlamaForCausalLM"]}
    arrays: dict[str, Any] = {}
    for name, array in random_model(config, 5, "float32").weights.items():
        if ".layers." in name and array.ndim == 2:
            parts = parts_of(np.random.default_rng(7), *array.shape)
            arrays |= {f"{name.removesuffix('weight')}{part}": a for part, a in parts.items()}
        else:
            arrays[name] = np.asarray(array)
    said: Any = {"quant_method": method.partition("-4")[0]} | options
    folder = scratch() / "quantized"
    folder.mkdir(exist_ok=True)
    how = random.randrange(4)
    if how == 1:
        name = random.choice([*said, "dynamic", "ignore", "modules_to_not_convert", "meta"])
        said[name] = near(random, said.get(name))
    what = [random.choice(PART_CHANGES)(random, arrays)] if how > 1 else [short(said)]
    write_safetensors(folder / "model.safetensors", arrays, PT)
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": said}))

    def told() -> Any:
        json.dumps(contents(str(folder)))
        return accepted(folder) if how == 0 else run(folder)

    return Try(f"{method}: {what[0]}", told, _not_finite)


def _not_finite(found: Any) -> str:
    return "" if np.isfinite(found).all() else "logits that are not finite"


def _bits(random: Random, arrays: dict[str, Any]) -> str:
    """Some bytes of a part, of what a JSON object in it says or a group of g_idx."""
    name = random.choice([name for name, a in arrays.items() if a.size])
    raw = bytearray(arrays[name].tobytes())
    for _ in range(random.choice((1, 3))):
        raw[random.randrange(len(raw))] = random.randrange(256)
    arrays[name] = np.frombuffer(bytes(raw), arrays[name].dtype).reshape(arrays[name].shape)
    return f"other bytes in {name}"


def _other_state(random: Random, arrays: dict[str, Any]) -> str:
    names = [name for name in arrays if ".quant_state." in name]
    if not names:
        return _bits(random, arrays)
    name = random.choice(names)
    state = json.loads(arrays[name].tobytes())
    key = random.choice(list(state))
    state[key] = near(random, state[key])
    arrays[name] = np.frombuffer(json.dumps(state).encode(), np.uint8)
    return f"{key} = {state[key]!a} in {name}"[:300]


PART_CHANGES = (_left_out, _renamed, _reshaped, _retyped, _bits, _bits, _other_state, _other_state)


# -- tokenizers ------------------------------------------------------------------------------------

BPE: dict[str, Any] = {
    "type": "BPE", "unk_token": "a", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]
}  # fmt: skip
MODELS: tuple[dict[str, Any], ...] = (
    BPE,
    {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"},
    {
        "type": "WordPiece", "vocab": {"a": 0, "##b": 1}, "unk_token": "a",
        "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
    },
    {"type": "Unigram", "unk_id": 0, "vocab": [["a", 0.0], ["b", -1.0], ["ab", -2.0]]},
)  # fmt: skip
REGEXES = (
    "a",
    "(a+a+)+b",
    "((",
    "(?=a)",
    "\\p{L}+",
    "",
    "(?:a|b|ab)*c",
    ".{1,1000000}",
    "\\G",
    "^",
)


def pattern(random: Random) -> dict[str, str]:
    if random.random() < 0.5:
        return {"Regex": random.choice(REGEXES)}
    return {"String": random.choice(("a", "", " ", "ab", "\n"))}


def normalizer(random: Random, depth: int = 0) -> Any:
    kinds = ["NFC", "NFKD", "Lowercase", "StripAccents", "Nmt", "Strip", "BertNormalizer"]
    kinds += ["Replace", "Replace", "Prepend", "Precompiled", "ByteLevel"]
    kinds += ["Sequence"] * (3 if depth < 3 else 0)
    kind = random.choice(kinds)
    more: dict[str, Any] = {}
    if kind == "Replace":
        content = random.choice(("", "a", "aa", "aaaa", "\u2581"))
        more = {"pattern": pattern(random), "content": content}
    if kind == "Prepend":
        more = {"prepend": random.choice(("", "a", "\u2581", "a" * 1000))}
    if kind == "Precompiled":
        raw = random.randbytes(random.choice((0, 4, 40, 4000)))
        if random.random() < 0.5:
            size = random.choice((0, 4, 1024, 2**32 - 1))
            raw = struct.pack("<I", size) + random.randbytes(min(size, 4000)) + b"a\0bc\0"
        more = {"precompiled_charsmap": base64.b64encode(raw).decode()}
    if kind == "Strip":
        more = {"strip_left": True, "strip_right": random.random() < 0.5}
    if kind == "BertNormalizer":
        more = {"clean_text": True, "handle_chinese_chars": True, "lowercase": True}
        more |= {"strip_accents": None}
    if kind == "Sequence":
        count = random.choice((0, 1, 3, 60))
        one = normalizer(random, depth + 1)
        each = [one] * count if random.random() < 0.7 else [normalizer(random, 3)] * count
        more = {"normalizers": each}
    return {"type": kind} | more


def pre_tokenizer(random: Random) -> Any:
    kind = random.choice(
        ("Split", "Split", "ByteLevel", "Metaspace", "Whitespace", "Digits", "Punctuation",
         "BertPreTokenizer", "CharDelimiterSplit", "UnicodeScripts")
    )  # fmt: skip
    behaviors = ("Isolated", "Removed", "MergedWithPrevious", "Contiguous")
    more: dict[str, dict[str, Any]] = {
        "Split": {"pattern": pattern(random), "behavior": random.choice(behaviors)}
        | {"invert": random.random() < 0.5},
        "ByteLevel": {"add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "Metaspace": {"replacement": random.choice(("\u2581", "a")), "prepend_scheme": "always"}
        | {"split": True},
        "Digits": {"individual_digits": True},
        "Punctuation": {"behavior": random.choice(behaviors)},
        "CharDelimiterSplit": {"delimiter": "a"},
    }
    return {"type": kind} | more.get(kind, {})


def post_processor(random: Random) -> Any:
    token = {"SpecialToken": {"id": random.choice(("a", "[CLS]", "")), "type_id": 0}}
    sequence = {"Sequence": {"id": random.choice(("A", "B")), "type_id": 0}}
    special = {"a": {"id": "a", "ids": [random.choice((0, 5, 2**32 - 1))], "tokens": ["a"]}}
    return random.choice(
        (
            {"type": "TemplateProcessing", "single": [token, sequence], "pair": []}
            | {"special_tokens": special},
            {"type": "TemplateProcessing", "single": [sequence] * random.choice((0, 1, 1000))}
            | {"pair": [], "special_tokens": {}},
            {"type": "BertProcessing", "sep": ["a", 2**32 - 1], "cls": ["b", 7]},
            {"type": "RobertaProcessing", "sep": ["a", 0], "cls": ["b", 1]}
            | {"trim_offsets": True, "add_prefix_space": False},
            {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}
            | {"use_regex": True},
        )
    )


def decoder(random: Random) -> Any:
    replace = {"type": "Replace", "pattern": pattern(random), "content": random.choice(("", "aa"))}
    return random.choice(
        (
            {"type": "Sequence", "decoders": [replace] * random.choice((1, 3, 60))},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "WordPiece", "prefix": "##", "cleanup": True},
            {"type": "Strip", "content": " ", "start": random.choice((0, 1, 10**9)), "stop": 0},
            {"type": "CTC", "pad_token": "a", "word_delimiter_token": "b", "cleanup": True},
            {"type": "BPEDecoder", "suffix": "a"},
        )
    )


def model(random: Random) -> Any:
    found = json.loads(json.dumps(random.choice(MODELS)))
    vocabulary = found["vocab"]
    entry = random.choice(("", "a" * 5000, "a" * 200_000, "\x00", "\ud83d\ude00", "\x1b[31m"))
    number = random.choice((0, 3, 4, 1000, 2**31, 2**32 - 1, 2**32, -1, 1.5, "1"))
    if isinstance(vocabulary, dict):
        vocabulary[entry] = number
    else:
        vocabulary.append([entry, random.choice((0.0, -1e308, 1e308, "x", None))])
    key = random.choice([key for key in found if key != "vocab"])
    if random.random() < 0.5:
        found[key] = value(random)
    return found


def tokenizer(random: Random) -> Try:
    parts = {
        "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "post_processor": post_processor,
        "decoder": decoder, "model": model, "added_tokens": added_tokens,
    }  # fmt: skip
    said = {
        name: parts[name](random) for name in random.sample(sorted(parts), random.choice((1, 2)))
    }
    if random.random() < 0.1:
        said[random.choice(sorted(parts))] = value(random)
    raw = json.dumps({"version": "1.0", "added_tokens": [], "model": BPE} | said).encode()
    if random.random() < 0.1:
        raw = _bytes(random, raw)[1]
    folder = scratch() / "tokenizer"
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_bytes(raw)
    return Try(short(said), lambda: answers(folder, random), _wrong_answers, alone=True)


def added_tokens(random: Random) -> Any:
    content = random.choice(("", "a", "<x>", " ", "\x1b", "a" * 100_000))
    flags = {flag: random.random() < 0.5 for flag in ("single_word", "lstrip", "rstrip")}
    flags |= {"normalized": random.random() < 0.5, "special": random.random() < 0.5}
    number = random.choice((0, 3, 7, 2**32 - 1, -1))
    return [{"id": number, "content": content} | flags] * random.choice((1, 2, 100))


def answers(folder: Path, random: Random) -> list[Any]:
    """Everything a command asks of a tokenizer."""
    text = Text.load(folder)
    assert text is not None
    ids = text.encode(TEXT)
    return [ids, text.tokens(ids), text.mask, len(text), text.encode_bare("a")]


def _wrong_answers(found: list[Any]) -> str:
    ids, tokens, *_ = found
    if len(ids) != len(tokens) or not all(isinstance(i, int) and 0 <= i < 2**32 for i in ids):
        return "ids that are none"
    return "" if all(isinstance(token, str) for token in tokens) else "tokens that are no text"


KINDS = {
    "options": options,
    "harmless": harmless,
    "json": damaged_json,
    "tensors": tensors,
    "header": header,
    "quantized": quantized,
    "tokenizer": tokenizer,
}

if __name__ == "__main__":
    sys.exit(fuzz(__doc__, KINDS))
