"""Relevance drawn over a picture: the picture in gray, each pixel colored by its sign and strength.

Nothing is smoothed and nothing averaged: what is drawn is the number of that pixel.
"""

from __future__ import annotations

import base64
import io
import struct
import zlib
from typing import Any

import numpy as np

from refl.io.images import pillow
from refl.show.colors import DRAWING

LARGE = 560
"""Pixels of a drawing's longer edge, about."""
LIGHTEST, DARKEST = 255.0, 165.0
"""Grays of the picture's white and black: light enough that both colors stand out from them."""
QUANTILE = 0.995
"""Of all pixels: what is stronger is drawn in the full color.
A few hot pixels would leave all others pale.
"""


def strongest(relevance: Any) -> float:
    """The amount that is drawn in the full color."""
    sizes = np.abs(np.asarray(relevance, dtype=np.float64))
    sizes = sizes[np.isfinite(sizes)]
    return float(np.quantile(sizes, QUANTILE) or sizes.max()) if sizes.size else 0.0


def drawn(relevance: Any, picture: Any) -> Any:  # (H, W), uint8 (H, W, C) -> uint8 (h, w, 3)
    """Enlarged by a whole number, pixel by pixel."""
    r = np.nan_to_num(np.asarray(relevance, dtype=np.float64))
    paper = DARKEST + (LIGHTEST - DARKEST) * _gray(picture) / 255
    color = _inked(np.repeat(paper[..., None], 3, axis=-1), r / (strongest(r) or 1.0))
    times = max(1, round(LARGE / max(r.shape)))
    return np.repeat(np.repeat(color, times, axis=0), times, axis=1)


def _inked(paper: Any, strength: Any) -> Any:  # (..., 3), (...) -> uint8 (..., 3)
    """Paper under so much of a color: -1 that of against, 1 that of for."""
    against, favor = (np.asarray(c, dtype=np.float64) for c in DRAWING)
    amount = np.clip(np.abs(strength), 0, 1)[..., None]
    color = np.where(strength[..., None] >= 0, favor, against)
    return np.rint(paper * (1 - amount) + color * amount).astype(np.uint8)


def _gray(picture: Any) -> Any:  # uint8 (H, W, C) -> float (H, W)
    return (
        picture @ np.asarray([0.299, 0.587, 0.114])
        if picture.shape[-1] == 3
        else picture.mean(axis=-1)
    )


def png(relevance: Any, picture: Any) -> bytes:
    """The drawing as a PNG file, with the scale of its colors below.
    Raises ReflError where Pillow, which letters it, is missing.
    """
    image, file = pillow().fromarray(drawn(relevance, picture)), io.BytesIO()
    _with_legend(image, strongest(relevance)).save(file, "PNG", optimize=True)
    return file.getvalue()


def data_uri(relevance: Any, picture: Any) -> str:
    """The drawing alone, as the source of an HTML image."""
    return "data:image/png;base64," + base64.b64encode(encoded(drawn(relevance, picture))).decode()


def encoded(pixels: Any) -> bytes:  # uint8 (h, w, 3) -> a PNG file
    """Written out here, so that a page needs no library of images: signature, header, the rows,
    each after its filter's number (0, none), deflated; every chunk with its checksum.
    """
    height, width, _ = pixels.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)
    chunks = (
        (b"IHDR", struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows.tobytes(), 9)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def _with_legend(image: Any, most: float) -> Any:
    from PIL import ImageDraw, ImageFont

    library, margin = pillow(), 12
    page = library.new("RGB", (max(image.width, 240), image.height + 60), (255, 255, 255))
    page.paste(image, ((page.width - image.width) // 2, 0))
    strength = np.linspace(-1, 1, page.width - 2 * margin)
    ramp = _inked(np.full((strength.size, 3), 235.0), strength)
    page.paste(library.fromarray(np.repeat(ramp[None], 12, axis=0)), (margin, image.height + 12))
    draw, font, y = ImageDraw.Draw(page), ImageFont.load_default(14), image.height + 30
    draw.text((margin, y), f"-{most:.2g} against", fill=DRAWING[0], font=font)
    draw.text((page.width // 2, y), "0", fill=(70, 70, 70), font=font, anchor="ma")
    draw.text((page.width - margin, y), f"+{most:.2g} for", fill=DRAWING[1], font=font, anchor="ra")
    return page
