"""Odd oracle files, composites and pictures: each is refused in a sentence, or read and shown.

    python -m refl.verification.quality.fuzz_files --tries 10000 --seed 1

    oracle      a good file with a fact, an array or some bytes changed: Explanation.load, and all
                that is shown of it: the terminal, the page, JSON, saving it again
    compare     the same file beside the good one in `refl compare`
    toml        composites of odd lines, options and types; what is accepted explains a text
    image       pictures of every format with bytes changed, of odd sizes, depths, colors
    preparation preprocessor_config.json of odd values, and a picture prepared by it

Exit code 1 where something is found.
"""

from __future__ import annotations

import functools
import io
import json
import os
import shutil
import struct
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

import refl
from refl import Explanation
from refl.arrays import Array
from refl.io.composites import from_toml
from refl.io.images import PREPARATION, Preparation, prepared, read_preparation
from refl.io.safetensors import read_safetensors, write_safetensors
from refl.rules.operations import OPERATIONS
from refl.rules.published import METHODS
from refl.show.page import html
from refl.show.terminal import terminal
from refl.verification.compare import report
from refl.verification.compare.compare import compare
from refl.verification.quality.fuzzing import Try, fuzz
from refl.verification.random_models import T5, VIT, random_model

PLANTED = "<b onclick=alert(1)>\x1b[31m"
"""What must reach no page as a tag, and no terminal as it is."""


# -- odd values ------------------------------------------------------------------------------------


def odd(random: Random, depth: int = 2) -> Any:
    """A value of JSON that is seldom the one that is due."""
    if depth and random.random() < 0.2:
        several = [odd(random, depth - 1) for _ in range(random.randrange(4))]
        return several if random.random() < 0.5 else {odd_name(random): v for v in several}
    return random.choice(_ODD)


_ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2, 7, 2**31, 2**53 + 1, 2**63, 10**400, -(10**30), 0.5, -0.0,
    1e-320, 1e308, -1e308, float("nan"), float("inf"), -float("inf"), "", "a", "0", "*", "linear",
    "nan",
    PLANTED, "\x00", "é\u202e", "\ud800", "x" * 5000, "<meta http-equiv=refresh content=0>",
    [], {}, [[]], [0], ["a"], {"a": 0}, {"": None},
]  # fmt: skip


def odd_name(random: Random) -> str:
    return random.choice(["", "a", "site", PLANTED, "\n", "relevance/x", "x" * 300, "__metadata__"])


def changed(random: Random, value: Any) -> Any:
    """The same with one place in it changed, left out or given twice."""
    if isinstance(value, dict) and value and random.random() < 0.85:
        key = random.choice(sorted(value))
        if random.random() < 0.15:
            return {k: v for k, v in value.items() if k != key}
        if random.random() < 0.1:
            return value | {odd_name(random): odd(random)}
        return value | {key: changed(random, value[key])}
    if isinstance(value, list) and value and random.random() < 0.85:
        at = random.randrange(len(value))
        end = [] if random.random() < 0.15 else [changed(random, value[at])]
        return value[:at] + end * random.choice([1, 1, 1, 2]) + value[at + 1 :]
    if random.random() < 0.6:  # of the type that is due, so that more of it is believed
        return random.choice([one for one in _ODD if type(one) is type(value)] or _ODD)
    return odd(random)


def spoiled(random: Random, whole: bytes) -> bytes:
    """Some bytes changed, cut out, or doubled."""
    data = bytearray(whole)
    for _ in range(random.choice([1, 1, 2, 5, 20])):
        at = random.randrange(len(data)) if data else 0
        kind = random.randrange(5)
        if kind == 0:
            del data[at : at + random.choice([1, 4, 100, len(data)])]
        elif kind == 1:
            data[at:at] = data[at : at + random.choice([1, 4, 100])]
        elif data:
            data[at] = random.choice([0, 1, 127, 128, 255, data[at] ^ 1 << random.randrange(8)])
    return bytes(data)


# -- where they are written ------------------------------------------------------------------------


@functools.cache
def room() -> Path:
    """A folder for the files of this process."""
    import atexit

    folder, owner = Path(tempfile.mkdtemp(prefix="refl-fuzz-")), os.getpid()

    def leave() -> None:
        if os.getpid() == owner:
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(leave)
    return folder


def placed(name: str, data: bytes) -> Path:
    path = room() / name
    path.write_bytes(data)
    return path


# -- oracle files ----------------------------------------------------------------------------------


@functools.cache
def model(kind: str) -> Any:
    if kind == "text":
        return refl.load()
    return random_model(VIT if kind == "picture" else T5, 0)


@functools.cache
def good(kind: str) -> tuple[Path, dict[str, Array], dict[str, str]]:
    """An oracle file that is one: of a text, a picture, an encoder-decoder, a neuron, or one in
    gradient x input form.
    """
    path, keep = room() / f"{kind}.safetensors", ("*.mlp", "*.norm")
    text = model("text")
    made: dict[str, Callable[[], Any]] = {
        "text": lambda: text.explain("the keys", keep=keep, contrast=("are", "is")),
        "gradient": lambda: text.explain("the keys", "attnlrp-gradient", keep=keep),
        "neuron": lambda: text.explain("the", keep=keep, at=("model.layers.1", (0, 3))),
        "picture": lambda: model("picture").explain(model("picture").blank(), keep=()),
        "decoder": lambda: model("decoder").explain([1, 2, 3], decoder=[0, 4], keep=()),
    }
    made[kind]().save(path)
    return path, *read_safetensors(path)


KINDS_OF_FILE = ("text", "gradient", "neuron", "picture", "decoder")


def oracle_file(random: Random) -> Try:
    kind = random.choice(KINDS_OF_FILE)
    path, what = _tampered(random, kind)
    return Try(f"{kind}: {what}", lambda: _shown(path), _unsafe)


def compared(random: Random) -> Try:
    kind = random.choice(KINDS_OF_FILE)
    path, what = _tampered(random, kind)
    sides = [good(kind)[0], path][:: random.choice([1, -1])]
    tolerance = random.choice([None, None, 0.0, 1e-3, 1e30, -1.0, float("nan")])

    def run() -> tuple[str, str]:
        found = compare(*sides, tolerance=tolerance)
        json.dumps(found.as_dict())
        return _text(report.lines(found, 80, True, 80)), report.html(found)

    return Try(f"{kind}: {what}, tolerance {tolerance}", run, _unsafe)


def _tampered(random: Random, kind: str) -> tuple[Path, str]:
    """A file with something changed, and what."""
    path, arrays, metadata = good(kind)
    how = random.choice([_facts, _facts, _facts, _words, _arrays, _arrays, _bytes])
    return how(random, path, dict(arrays), dict(metadata))


def _facts(random: Random, path: Path, arrays: Any, metadata: Any) -> tuple[Path, str]:
    for _ in range(random.choice([1, 1, 2, 3])):
        key = random.choice(sorted(metadata))
        value = changed(random, json.loads(metadata[key]))
        metadata[key] = json.dumps(value)
    return _saved(arrays, metadata), f"{key} = {metadata[key][:200]}"


def _words(random: Random, path: Path, arrays: Any, metadata: Any) -> tuple[Path, str]:
    """JSON that is none, or that few can read."""
    key = random.choice(sorted(metadata))
    value = random.choice(
        [
            "",
            "{",
            "nul",
            "[" * 100_000,
            '{"a":' * 5000,
            "1" * 5000,
            '{"a": 1, "a": 2}',
            "NaN",
            "'a'",
        ]
    )
    if random.random() < 0.3:
        del metadata[key]
    elif random.random() < 0.2:
        metadata[odd_name(random)] = value
    else:
        metadata[key] = value
    return _saved(arrays, metadata), f"{key} is {value[:20]}"


def _arrays(random: Random, path: Path, arrays: Any, metadata: Any) -> tuple[Path, str]:
    name = random.choice(sorted(arrays))
    array = arrays[name]
    how = random.choice(["gone", "named", "dtype", "shape", "content", "new"])
    if how in ("gone", "named"):
        del arrays[name]
    if how == "named":
        arrays[f"{random.choice(['relevance/', 'activation/', 'gradient/', ''])}{PLANTED}"] = array
    if how == "new":
        arrays[f"{random.choice(['relevance/', 'activation/', ''])}{odd_name(random)}"] = array
    if how == "dtype":
        with np.errstate(all="ignore"):
            arrays[name] = array.astype(random.choice(["f4", "f8", "f2", "i8", "u1", "u8", "?"]))
    if how == "shape":
        shapes = [(), (0,), (array.size,), (1, *array.shape), (*array.shape, 1), (0, 3), (2**40, 0)]
        shape = random.choice(shapes)
        arrays[name] = (
            np.zeros(shape, array.dtype) if random.random() < 0.3 else np.resize(array, shape)
        )
    if how == "content" and array.size:
        wide = array.astype(np.float64) if random.random() < 0.6 else array.copy()
        with np.errstate(all="ignore"):
            wide.flat[random.randrange(array.size)] = np.asarray(
                random.choice([np.nan, np.inf, -np.inf, 1e300, -1.0, 2.0**62, 0.5])
            ).astype(wide.dtype)
        arrays[name] = wide
    arrays.pop("__metadata__", None)
    return _saved(arrays, metadata), f"array {name!r}: {how}, now {arrays.get(name, 'none')!r}"[
        :300
    ]


def _bytes(random: Random, path: Path, arrays: Any, metadata: Any) -> tuple[Path, str]:
    return placed("odd.safetensors", spoiled(random, path.read_bytes())), "some bytes"


def _saved(arrays: Any, metadata: Any) -> Path:
    path = room() / "odd.safetensors"
    write_safetensors(path, arrays, metadata)
    return path


def _shown(path: Path) -> tuple[str, str]:
    """All that is shown of an explanation: on a terminal, and as a page."""
    e: Any = Explanation.load(path)
    json.dumps(e.as_dict())
    said = [_text(terminal(e, 80)), str(e), repr(e)]
    if e.patch is not None:
        _ = e.patches
    if e.recorded is not None:
        said += [str(e.ledger), repr(e.ledger), str(e.experts())]
    for site in e:
        e[site], e.activation(site)
    e.save(room() / "again.safetensors")
    Explanation.load(room() / "again.safetensors")
    return "\n".join(said), html(e)


def _text(lines: Any) -> str:
    return "\n".join("".join(text for text, _ in line) for line in lines)


def _unsafe(shown: tuple[str, str]) -> str:
    text, page = shown
    if not all(c.isprintable() or c == "\n" for c in text):
        return "a control character reaches the terminal"
    if "<b onclick" in page or "<meta http-equiv=refresh" in page or "\x1b" in page:
        return "a tag or an escape reaches the page"
    return ""


# -- composites ------------------------------------------------------------------------------------


def composite(random: Random) -> Try:
    text = _toml(random)
    path = placed("odd.toml", text.encode("utf-8", "surrogatepass"))

    def run() -> Any:
        method = from_toml(path)
        json.dumps(method.as_dict()), repr(method)
        return model("text").explain("the", method, keep=()) if method.rules else None

    return Try(repr(text[:300]), run, lambda e: "" if e is None else _broken_account(e))


def _broken_account(e: Any) -> str:
    """What a table of rules makes may be nonsense; it adds up, or is not finite and says so."""
    error, scale = float(e.ledger.conservation_error), _scale(e)
    if np.isfinite(scale) and not abs(error) <= 1e-3 * scale + 1e-6:
        return f"a conservation error of {error} where the largest amount is {scale}"
    return ""


def _scale(e: Any) -> float:
    """The largest amount that any site received, passed on or absorbed."""
    return max(
        float(np.abs(amount))
        for entry in e.ledger
        for amount in (entry.received, *entry.passed.values(), *entry.absorbed.values())
    )


def _toml(random: Random) -> str:
    lines = []
    if random.random() < 0.8:
        lines.append(f"base = {_literal(random, random.choice(list(METHODS)), 0.1)}")
    for key in ("name", "formulation", "source", "summary", "rule", "strange"):
        if random.random() < (0.25 if key == "name" else 0.03):
            lines.append(f"{key} = {_literal(random, 'mine', 0.4)}")
    for _ in range(random.choice([0, 1, 1, 1, 2, 4])):
        lines += ["[[rule]]", *_rule(random)]
    text = "\n".join(lines) + "\n"
    if random.random() < 0.1:
        return spoiled(random, text.encode()).decode("utf-8", "replace")
    return text


def _rule(random: Random) -> list[str]:
    operation = random.choice([*OPERATIONS, "*", "*", "l*", "[!l]*", "nonsense"])
    rules = sorted({name for o in OPERATIONS.values() for name in o.rules})
    here = sorted(OPERATIONS[operation].rules) if operation in OPERATIONS else rules
    lines = [f"operation = {_literal(random, operation, 0.03)}"]
    lines.append(
        f"rule = {_literal(random, random.choice(here if random.random() < 0.9 else rules), 0.03)}"
    )
    for key, value in (
        ("role", random.choice(["*", "attention.*", "mlp.up", "none"])),
        ("site", random.choice(["*", "model.layers.1.*", "*[", "**" * 50 + "x"])),
    ):
        if random.random() < 0.2:
            lines.append(f"{key} = {_literal(random, value, 0.1)}")
    for key in (
        "eps",
        "gamma",
        "alpha",
        "beta",
        "stabilizer",
        "denominator",
        "low",
        "high",
        "nonsense",
    ):
        if random.random() < (0.15 if key == "eps" else 0.06):
            values = ["plain"] if key in ("stabilizer", "denominator") else [0.25, 1e-9, 2, 0]
            lines.append(f"{key} = {_literal(random, random.choice(values), 0.3)}")
    return lines


def _literal(random: Random, value: Any, rate: float) -> str:
    """The value as TOML, or another one."""
    if random.random() >= rate:
        return json.dumps(value)
    return random.choice(
        ["[]", "{}", "true", "nan", "inf", "-inf", "-1", "0", "1" + "0" * 400, "1" + "0" * 5000,
         "1e400", "1e308", "1e-320", "[1, 2]", '["a"]', "[" * 200 + "]" * 200, "1979-05-27", "''",
         "{a = 1}", json.dumps("x" * 5000), '"\\u0000"', '"\\u001b[31m"', "0x10", "[nan]",
         "07:32:00", "[" * 20000]
    )  # fmt: skip


# -- pictures --------------------------------------------------------------------------------------


def image(random: Random) -> Try:
    data, what = _image_bytes(random)
    if random.random() < 0.5:
        data, what = spoiled(random, data), f"{what}, some bytes changed"
    path = placed(f"odd.{random.choice(['png', 'jpg', 'txt'])}", data)
    how = _preparation(random)
    channels = random.choice([1, 3, 3, 3, 4])
    return Try(
        f"{what}, {how}, {channels} channels",
        lambda: prepared(path, how, channels, (8, 12), "float32"),
        lambda made: _misfit(made, channels),
        alone=random.random() < 0.1,
    )


def _misfit(made: Any, channels: int) -> str:
    shapes = made.pixels.shape, made.picture.shape
    if shapes != ((channels, 8, 12), (8, 12, channels)):
        return f"shapes {shapes}"
    return "" if np.all(np.isfinite(made.pixels)) else "pixels that are not finite"


def _preparation(random: Random) -> Preparation | None:
    if random.random() < 0.05:
        return None
    size = random.choice([None, (8, 12), (8, 12), (16, 24), 8, 12, 1 << 16, (1 << 16, 1 << 16)])
    crop = random.choice([None, None, (8, 12), (1 << 16, 1 << 16)])
    return Preparation(size, random.randrange(6), crop, random.choice([None, 1 / 255]), None, None)


def _image_bytes(random: Random) -> tuple[bytes, str]:
    if random.random() < 0.25:
        return _raw_png(random)
    from PIL import Image

    height, width = random.choice([(8, 12), (8, 12), (12, 8), (1, 1), (1, 3000), (300, 400)])
    mode = random.choice(
        ["RGB", "RGB", "L", "1", "P", "LA", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"]
    )
    kind = random.choice(
        ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "EPS", "ICO", "PDF"]
    )
    noise = np.random.default_rng(random.randrange(1 << 30)).integers(
        0, 256, (height, width, 3), np.uint8
    )
    picture = Image.fromarray(noise)
    picture = Image.new(mode, picture.size) if mode in ("I;16", "I", "F") else picture.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = random.choice([1, 3, 6, 8, 0, 99])
    how: dict[str, Any] = {"exif": exif} if random.random() < 0.4 and kind != "TIFF" else {}
    if random.random() < 0.2 and kind in ("GIF", "PNG", "TIFF", "WEBP"):
        how |= {"save_all": True, "append_images": [picture.copy(), picture.rotate(180)]}
    target = io.BytesIO()
    try:
        picture.save(target, kind, **how)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):  # no format has every mode
        return b"\x89PNG\r\n\x1a\n", "half of a head"
    return target.getvalue(), f"{kind} of {mode}, {width} x {height}, {sorted(how)}"


def _raw_png(random: Random) -> tuple[bytes, str]:
    """A header of any size, with or without pixels behind it."""
    width, height = (random.choice([0, 1, 8, 12, 9400, 30_000, 2**31 - 1, 2**32 - 1]) for _ in "ab")
    depth, color = random.choice([(8, 2), (8, 0), (8, 6), (16, 2), (16, 0), (1, 3), (3, 7)])
    body = zlib.compress(b"\0" * random.choice([0, 100, 300, 1 << 20]))
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)),
        (b"IDAT", body),
    ]
    if random.random() < 0.2:
        parts.insert(1, (b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 24))))
    parts.append((b"IEND", b""))
    data = b"".join(
        struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts
    )
    return (
        b"\x89PNG\r\n\x1a\n" + data,
        f"PNG header {width} x {height}, depth {depth}, color {color}",
    )


def preparation(random: Random) -> Try:
    known = (
        "do_resize", "do_rescale", "rescale_factor", "do_normalize", "do_center_crop", "size",
        "resample", "crop_size", "image_mean", "image_std", "image_processor_type",
        "feature_extractor_type", "do_pad", "strange",
    )  # fmt: skip
    said = {random.choice(known): _setting(random) for _ in range(random.choice([1, 2, 5]))}
    placed(PREPARATION, json.dumps(said).encode())
    shape = random.choice([(8, 12, 3), (8, 12), (1, 3000, 3), (300, 400, 3)])

    def run() -> Any:
        how = read_preparation(room(), random.choice(["vit", "deit"]))
        return prepared(np.full(shape, 200, np.uint8), how, 3, (8, 12), "float32")

    return Try(f"{said} for {shape}", run, lambda made: _misfit(made, 3))


def _setting(random: Random) -> Any:
    likely = [True, False, 3, [8, 12], {"height": 8, "width": 12}, {"shortest_edge": 8}, 1 << 16,
              [0.5, 0.5, 0.5], 1e-3, "ViTImageProcessor", [1e-300] * 3]  # fmt: skip
    return random.choice(likely) if random.random() < 0.6 else odd(random)


KINDS = {
    "oracle": oracle_file,
    "compare": compared,
    "toml": composite,
    "image": image,
    "preparation": preparation,
}

if __name__ == "__main__":
    sys.exit(fuzz(__doc__, KINDS))
