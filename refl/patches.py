"""The patches of a picture: pixels (H, W) by patches of (h, w), and back.

    sums       a patch's score: the sum over its pixels
    spread     a pixel's score: an even part of its patch's, so that `sums` of it gives these back

Patches are counted in reading order. Pixels beyond the last whole patch are in none: they count for
no sum, and have 0.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Size = tuple[int, int]
"""Height and width."""


def grid(image: Size, patch: Size) -> Size:
    """Rows and columns of whole patches."""
    return image[0] // patch[0], image[1] // patch[1]


def sums(pixels: Any, patch: Size) -> Any:  # (H, W) -> (rows, columns)
    """The score of each patch."""
    (rows, columns), (h, w) = grid(pixels.shape, patch), patch
    inside = pixels[: rows * h, : columns * w]
    return inside.reshape(rows, h, columns, w).sum(axis=(1, 3))


def spread(scores: Any, image: Size, patch: Size) -> Any:  # (rows * columns,) -> (H, W)
    """The score of each pixel."""
    (rows, columns), (h, w) = grid(image, patch), patch
    each = scores.reshape(rows, columns) / (h * w)
    found = np.zeros(image, each.dtype)
    found[: rows * h, : columns * w] = each.repeat(h, axis=0).repeat(w, axis=1)
    return found


def spread_row(row: Any, image: Size, patch: Size) -> Any:  # (T,) -> (H, W)
    """The same of a row of tokens: learned ones stand in front of the patches and are left out."""
    return spread(row[len(row) - math.prod(grid(image, patch)) :], image, patch)
