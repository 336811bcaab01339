"""What vision adds to the rules, from its definitions and in exact arithmetic: the z-box rule, and
patches.

The companion of exact.py. M = Montavon et al. 2017 (Pattern Recognition 65). This file knows
nothing of the engine.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import product

from refl.verification.definitions.exact import (
    Index,
    Matrix,
    Messages,
    Number,
    Vector,
    negative,
    no_messages,
    positive,
)


def linear_z_box(x: Vector, w: Matrix, r: Vector, low: Vector, high: Vector) -> Messages:
    """R_(i<-j) = (W_ji x_i - W_ji^+ l_i - W_ji^- h_i) R_j / sum of the same  (M, the z^B rule);
    no receiver where every term is zero.

    The bias has no part in it: b_j - b_j^+ - b_j^- = 0.
    """
    out = no_messages(1)
    for j in range(len(w)):
        c: list[Number] = [
            w[j][i] * x[i] - positive(w[j][i]) * low[i] - negative(w[j][i]) * high[i]
            for i in range(len(x))
        ]
        s = out.stabilized_ratio(sum(c), r[j], Fraction(0), "none")
        for i in range(len(x)):
            out.send(0, i, c[i] * s)
    return out


def patch_place(index: Index, size: tuple[int, int], shape: Index) -> Index | None:
    """Where a pixel (b, c, row, column) of an image (B, C, H, W) stands among patches (B, N, C h
    w); None where no patch holds it.

    Patches are counted row by row; within one, the numbers of a channel stand together, row by row,
    as in a convolution's kernel.
    """
    (b, c, row, column), (h, w) = index, size
    across = shape[3] // w
    if row // h >= shape[2] // h or column // w >= across:
        return None
    return b, row // h * across + column // w, (c * h + row % h) * w + column % w


def patches(shape: Index, size: tuple[int, int]) -> dict[Index, tuple[int, Index]]:
    """Entry of the output -> the operand and the entry it is read from,
    as exact.pass_through takes it.
    """
    places = ((patch_place(index, size, shape), index) for index in product(*map(range, shape)))
    return {place: (0, index) for place, index in places if place is not None}


def windows(shape: Index, size: int, stride: int) -> dict[Index, tuple[int, Index]]:
    """The same of windows of so many rows of (B, T, C), each `stride` behind the one before: the
    numbers of a column stand together, row by row, as in the kernel of a convolution.
    """
    examples, rows, columns = shape
    return {
        (b, first // stride, c * size + k): (0, (b, first + k, c))
        for b, c, k in product(range(examples), range(columns), range(size))
        for first in range(0, rows - size + 1, stride)
    }
