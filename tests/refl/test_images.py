"""Picture files that are no pictures, not eight-bit, not flat, not one, or far too large."""

from __future__ import annotations

import io
import os
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refl.errors import ReflError
from refl.io.images import MOST_PIXELS, Preparation, prepared, read_preparation

PIL = pytest.importorskip("PIL.Image", reason="Pillow is not installed (the extra 'image')")

AS_IT_IS = Preparation(None, 2, None, None, None, None)
PIXELS = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3)


def read(item: Any, size: tuple[int, int] = (2, 4), how: Preparation = AS_IT_IS) -> Any:
    return prepared(item, how, 3, size, "float32").picture


def refused(item: Any, says: str, size: tuple[int, int] = (2, 4), **how: Any) -> None:
    with pytest.raises(ReflError, match=says):
        read(item, size, **how)


def chunk(kind: bytes, data: bytes) -> bytes:
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def png(width: int, height: int, depth: int, color: int, data: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def saved(image: Any, path: Path, **how: Any) -> Path:
    image.save(path, **how)
    return path


@pytest.mark.parametrize("how", [AS_IT_IS, Preparation((2, 4), 2, None, None, None, None)])
def test_a_huge_picture_is_refused_by_its_header(how: Preparation, tmp_path: Path) -> None:
    """Its pixels are not there at all: who decodes it, fails otherwise. 4 MB is what Pillow's
    modules take.
    """
    path = tmp_path / "huge.png"
    path.write_bytes(png(9400, 9400, 8, 2, b""))
    read(saved(PIL.fromarray(PIXELS), tmp_path / "small.png"))
    tracemalloc.start()
    try:
        refused(path, "9400 x 9400", how=how)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_a_picture_of_another_size_is_refused_by_its_header(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(5000, 4000, 8, 2, b""))
    refused(tmp_path / "a.png", "the image is 4000 x 5000 once prepared, the model takes 2 x 4")


@pytest.mark.parametrize(
    ("how", "shape"),
    [
        (Preparation(224, 2, (2, 4), None, None, None), (1, 60_000)),  # the long edge explodes
        (Preparation((1 << 16, 1 << 16), 2, (2, 4), None, None, None), (2, 4)),
    ],
)
def test_nothing_is_enlarged_beyond_bounds(how: Preparation, shape: tuple[int, int]) -> None:
    refused(
        np.zeros((*shape, 3), np.uint8), f"once resized, expected at most {MOST_PIXELS}", how=how
    )


def test_a_crop_is_not_padded_to_gigabytes() -> None:
    how = Preparation(None, 2, (1 << 16, 1 << 16), None, None, None)
    refused(PIXELS, "65536 x 65536 once prepared", how=how)


def test_a_picture_stands_upright(tmp_path: Path) -> None:
    """Orientation 6: the rows of the file are columns, the first on the right."""
    exif = PIL.Exif()
    exif[0x0112] = 6
    path = saved(PIL.fromarray(PIXELS), tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(read(path, (4, 2)), np.rot90(PIXELS, -1))


def test_modes_that_are_colors(tmp_path: Path) -> None:
    image = PIL.fromarray(PIXELS)
    palette = image.convert("P", palette=PIL.Palette.ADAPTIVE)
    opaque = PIL.fromarray(np.dstack([PIXELS, np.full((2, 4), 255, np.uint8)]))
    for kind in (image, palette, opaque):
        np.testing.assert_array_equal(read(saved(kind, tmp_path / "a.png")), PIXELS)
        np.testing.assert_array_equal(read(kind), PIXELS)  # an array of a palette is none of colors
    gray = read(saved(image.convert("L"), tmp_path / "a.png"))
    assert (gray == gray[..., :1]).all()
    cmyk = PIL.new("CMYK", (4, 2), (0, 255, 255, 0))
    np.testing.assert_array_equal(
        read(saved(cmyk, tmp_path / "a.tif")), np.full((2, 4, 3), [255, 0, 0])
    )


def test_transparent_pixels_are_refused(tmp_path: Path) -> None:
    half = PIL.fromarray(np.dstack([PIXELS, np.full((2, 4), 128, np.uint8)]))
    palette = PIL.fromarray(PIXELS).convert("P")
    for image, how in ((half, {}), (half.convert("LA"), {}), (palette, {"transparency": 0})):
        refused(saved(image, tmp_path / "a.png", **how), "lay it on a background")
    refused(half, "lay it on a background")
    read_rgba = prepared(half, AS_IT_IS, 4, (2, 4), "float32").picture
    np.testing.assert_array_equal(read_rgba[..., 3], 128)


def test_deep_colors_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(4, 2, 16, 2, bytes(2 * (1 + 4 * 6))))
    refused(tmp_path / "a.png", "expected eight bits")
    for dtype in (np.uint16, np.int32, np.float32):
        refused(saved(PIL.fromarray(np.zeros((2, 4), dtype)), tmp_path / "a.tif"), "eight bits")


@pytest.mark.parametrize("kind", ["a.gif", "a.png", "a.webp", "a.tif"])
def test_several_pictures_are_refused(kind: str, tmp_path: Path) -> None:
    frames = [PIL.fromarray(PIXELS + n) for n in (1, 60)]
    path = saved(frames[0], tmp_path / kind, save_all=True, append_images=frames[1:])
    refused(path, "holds several pictures")


def test_what_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "a.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="4"/>')
    (tmp_path / "a.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 2\nshowpage\n")
    whole = io.BytesIO()
    PIL.fromarray(PIXELS).save(whole, "PNG")
    (tmp_path / "cut.png").write_bytes(whole.getvalue()[:-30])
    (tmp_path / "empty.png").write_bytes(b"")
    for name in ("a.svg", "a.eps", "cut.png", "empty.png"):
        refused(tmp_path / name, "cannot be read as a picture")
    os.mkfifo(tmp_path / "fifo.png")
    for name in ("fifo.png", "none.png", "a\0b", "x" * 5000, ""):
        refused(tmp_path / name if name else name, "there is no picture")


@pytest.mark.parametrize(
    "said",
    [
        '{"image_processor_type": ["ViTImageProcessor"]}', '{"resample": true}',
        '{"resample": 2.0}', '{"image_mean": 1e300}', '{"image_std": [1, NaN, 1]}',
        f'{{"rescale_factor": {10**400}}}', '{"image_std": 0}', '{"size": [1e3, 1e3]}',
        '{"size": {"height": true, "width": true}}', "[]",
    ],
)  # fmt: skip
def test_strange_preparations_are_refused(said: str, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(said)
    with pytest.raises(ReflError):
        read_preparation(tmp_path, "vit")
