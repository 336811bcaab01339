"""Pictures of lessons 1 to 4: parts of z, the sign of eps, what biases absorb, what norms annul."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from itertools import pairwise

import numpy as np

import refl
from refl.arrays import Array
from refl.rules import linear, rms_norm
from refl.show.colors import NEGATIVE, POSITIVE, Color
from refl.show.drawing import Box, Curve, Disk, Drawing, Part, Words, svg, width

FOR, AGAINST = POSITIVE[-1], NEGATIVE[-1]
PALE, GRAY, INK, WHITE = (237, 239, 243), (96, 102, 112), (26, 28, 32), (255, 255, 255)
TEXT = "the keys to the cabinet"


def centered(
    x: float, y: float, text: str, size: float, color: Color = INK, bold: bool = False
) -> Words:
    return Words(x - width(text, size) / 2, y, text, size, color, bold)


def _only(a: Array | None) -> float:
    """The number in an array of one."""
    assert a is not None
    return float(a.item())


# -- lesson 1 --------------------------------------------------------------------------------------

X, W, R = np.array([[1.0, 2.0]]), np.array([[1.0, 1.0], [3.0, -1.0]]), np.array([[2.0, 1.0]])


def messages(x: Array, w: Array, r: Array) -> Array:  # (1, I), (O, I), (1, O) -> (O, I)
    """What each output hands to each input: the rule, for the relevance of one output at a time."""
    z = linear.forward(x, w, None)
    alone = [r * (np.arange(r.shape[1]) == j) for j in range(r.shape[1])]
    return np.concatenate(
        [linear.epsilon(x, w, None, z, each, stabilizer="none").inputs[0] for each in alone]
    )


def fraction(value: float) -> str:
    return str(Fraction(value).limit_denominator(99))


def share_of_z() -> str:
    """Relevance on its way down, from two outputs to two inputs."""
    z, sent = linear.forward(X, W, None), messages(X, W, R)
    above, below = (130.0, 330.0), (130.0, 330.0)
    parts = [
        part
        for j in range(2)
        for i in range(2)
        for part in _message(above[j] + (i - j) * 40, below[i] + (j - i) * 40, sent[j, i])
    ]
    for j in range(2):
        parts += _node(above[j], 14, f"z{j} = {fraction(z[0, j])}", fraction(R[0, j]))
    for i in range(2):
        parts += _node(below[i], 190, f"x{i} = {fraction(X[0, i])}", fraction(sent[:, i].sum()))
    end = f"{fraction(R.sum())} came, {fraction(sent.sum())} went on"
    parts.append(centered(230, 256, end, 11, GRAY))
    return svg(
        Drawing(460, 270, tuple(parts), "The relevance of two outputs, handed to two inputs")
    )


def _node(x: float, y: float, name: str, relevance: str) -> Iterator[Part]:
    yield Box(x - 62, y, 124, 40, PALE)
    yield centered(x, y + 16, name, 11)
    yield centered(x, y + 32, f"relevance {relevance}", 11, bold=True)


def _message(x: float, to_x: float, sent: float) -> Iterator[Part]:
    color = FOR if sent > 0 else AGAINST
    yield Curve(x, 54, to_x, 190, 2 + 3 * abs(sent), color)
    text = fraction(sent)
    yield Box(x - width(text, 11) / 2 - 3, 72, width(text, 11) + 6, 15, WHITE)
    yield centered(x, 83, text, 11, color, bold=True)


# -- lesson 2 --------------------------------------------------------------------------------------

LEFT, RIGHT, ZERO, UNIT = 50.0, 450.0, 120.0, 34.0
"""Of the picture's axes, in points: ends of the horizontal one, its height, and one unit of y."""
LARGEST = 3.0
"""Of z / eps, and of what is passed on, shown to either side of 0."""


def passed_on(z: float, stabilizer: str) -> float:
    """The fraction of relevance that an epsilon rule with eps = 1 passes on."""
    one = np.ones((1, 1))
    out = linear.epsilon(z * one, one, None, z * one, one, eps=1.0, stabilizer=stabilizer)
    return _only(out.inputs[0])


def eps_needs_a_sign() -> str:
    """What is passed on, with and without the sign, as z goes through 0."""
    parts: list[Part] = [*_axes()]
    for stabilizer, color in (("plain", AGAINST), ("sign", FOR)):
        for low, high in ((-LARGEST, -1.005), (-0.995, LARGEST)):
            parts += _graph(low, high, stabilizer, color)
    legend = (("with the sign of z", FOR, 150.0), ("without it", AGAINST, 330.0))
    parts += [Words(x, 264, words, 11, color, bold=True) for words, color, x in legend]
    title = "The fraction of relevance passed on, against z / eps"
    return svg(Drawing(500, 276, (Words(50, 16, title, 11), *parts), title))


def _at(z: float, y: float) -> tuple[float, float]:
    return (LEFT + RIGHT) / 2 + (RIGHT - LEFT) / 2 * z / LARGEST, ZERO + 8 - UNIT * y


def _axes() -> Iterator[Part]:
    for y in range(-int(LARGEST), int(LARGEST) + 1):
        at = _at(0, y)[1]
        yield Box(LEFT, at - 0.4, RIGHT - LEFT, 0.8, GRAY if y == 0 else PALE)
        yield Words(LEFT - 8 - width(str(y), 10), at + 4, str(y), 10, GRAY)
    for z in range(-int(LARGEST), int(LARGEST) + 1):
        at = _at(z, -LARGEST)[0]
        yield Box(at - 0.4, _at(0, LARGEST)[1], 0.8, 2 * LARGEST * UNIT, GRAY if z == 0 else PALE)
        yield centered(at, 244, str(z), 10, GRAY)


def _graph(low: float, high: float, stabilizer: str, color: Color) -> Iterator[Part]:
    """In short lines, as far as it lies in the picture; finer where it is steep."""
    steps = np.linspace(0, 1, 70) ** 2
    places = high - (high - low) * steps if high < 0 else low + (high - low) * steps
    points = [(float(z), passed_on(float(z), stabilizer)) for z in places]
    for (z, y), (to_z, to_y) in pairwise(points):
        if max(abs(y), abs(to_y)) <= LARGEST:
            yield Curve(*_at(z, y), *_at(to_z, to_y), 2.2, color)


# -- lesson 3 --------------------------------------------------------------------------------------

START, WIDE, ROW = 200.0, 42.0, 18.0
"""Of the bars: where 0 is, points for 1 of the example, height."""


def biases_absorb() -> str:
    """An example with two biases swept down; two methods on the shipped model."""
    said = "two layers, z = 2 h + b2 and h = x + b1"
    parts = [Words(16, 18, said, 11, bold=True), *_example(28)]
    said = f"the model that ships with refl, {TEXT!r}"
    parts += [Words(16, 134, said, 11, bold=True), *_methods(144)]
    return svg(Drawing(480, 206, tuple(parts), "What reaches the inputs, and what is absorbed"))


def _example(y: float) -> Iterator[Part]:
    one, x = np.ones((1, 1)), 3.0
    h = x - 1
    z = 2 * h + 1
    upper = linear.epsilon(h * one, 2 * one, np.array([1.0]), z * one, z * one, stabilizer="none")
    lower = linear.epsilon(
        x * one, one, np.array([-1.0]), h * one, upper.inputs[0], stabilizer="none"
    )
    to_h, to_x = _only(upper.inputs[0]), _only(lower.inputs[0])
    b2, b1 = _only(upper.absorbed["bias"]), _only(lower.absorbed["bias"])
    yield from _bar(y, "z", [("z", z, FOR)], WIDE)
    yield from _bar(y + 28, "handed to h", [("h", to_h, FOR), ("b2", b2, GRAY)], WIDE)
    yield from _bar(y + 56, "handed to x", [("x", to_x, FOR), ("b1", b1, AGAINST)], WIDE)


def _methods(y: float) -> Iterator[Part]:
    model = refl.load(dtype="float64")
    for place, method in enumerate(("cp-lrp", "attnlrp")):
        e = model.explain(TEXT, method=method, keep=())
        row = [("tokens", float(e.relevance.sum()), FOR)]
        row += [("softmax", e.ledger.absorbed.get("softmax_offset", 0.0), GRAY)]
        yield from _bar(y + 28 * place, method, row, 6 * WIDE / e.logit)


def _bar(y: float, name: str, row: list[tuple[str, float, Color]], unit: float) -> Iterator[Part]:
    """Parts beside each other to the right of 0, one that is negative to its left."""
    yield Words(16, y + 13, name, 11)
    at = START
    for what, amount, color in row:
        wide = abs(amount) * unit
        left = at if amount > 0 else START - wide
        if wide:
            yield Box(left, y, wide - 1, ROW, color)
            yield centered(left + wide / 2, y + 13, f"{what} {amount:.4g}", 10, WHITE)
        at += max(amount, 0) * unit


# -- lesson 4 --------------------------------------------------------------------------------------

CORNER, STEP = (40.0, 222.0), 24.0
"""Where (0, 0) is, and points for 1."""


def norms_annul() -> str:
    """x and 2x on a ray, and where RMSNorm takes both."""
    x = np.array([[3.0, 4.0]])
    one, two = (rms_norm.forward(a, np.ones(2), norm_eps=0.0)[0] for a in (x, 2 * x))
    assert np.allclose(one, two)
    parts: list[Part] = [Box(CORNER[0], CORNER[1], 200, 0.8, GRAY)]
    parts.append(Box(CORNER[0], CORNER[1] - 208, 0.8, 208, GRAY))
    radius = float(np.sqrt((one * one).sum()))
    for angle in np.linspace(0, np.pi / 2, 30):
        parts += _dot(radius * np.cos(angle), radius * np.sin(angle), 0.9, GRAY)
    for along in np.linspace(0, 2.1, 64):
        parts += _dot(3 * along, 4 * along, 0.9, GRAY)
    for at, name in ((x[0], "x = (3, 4)"), (2 * x[0], "2x = (6, 8)")):
        parts += _dot(at[0], at[1], 4, FOR, name)
    parts += _dot(one[0], one[1], 4, AGAINST, f"z = ({one[0]:.4f}, {one[1]:.4f}), of both")
    return svg(Drawing(330, 240, tuple(parts), "RMSNorm takes x and 2x to the same z"))


def _dot(x: float, y: float, radius: float, color: Color, name: str = "") -> Iterator[Part]:
    at = CORNER[0] + STEP * float(x), CORNER[1] - STEP * float(y)
    yield Disk(*at, radius, color)
    if name:
        yield Words(at[0] + 10, at[1] + 8, name, 11, color, bold=True)


PICTURES: Mapping[str, Callable[[], str]] = {
    "a_share_of_z": share_of_z,
    "eps_needs_a_sign": eps_needs_a_sign,
    "biases_absorb": biases_absorb,
    "norms_annul": norms_annul,
}
