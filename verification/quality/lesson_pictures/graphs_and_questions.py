"""Pictures of lessons 8, 9 and 10: numbers by the engine, drawn by refl.show.

bracketing        three products of three, and what each factor gets        (lesson 8)
four_questions    one text, four numbers that are explained                 (lesson 9)
perturbation      curves of methods on the shipped model                    (lesson 10)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from refl.evaluation import Case, Row, Subject, judged
from refl.evaluation.datasets import of_sentence, sentences
from refl.evaluation.results import GRID, band, on_grid
from refl.explanation import Explanation
from refl.model import Model, load
from refl.rules import multiply
from refl.rules.multiply import Factors
from refl.show import curves, drawing
from refl.show.colors import DRAWING, Color
from refl.show.drawing import BLACK, Box, Disk, Drawing, Part, Words
from refl.show.markup import tag

GRAY: Color = (122, 128, 138)
PALE: Color = (217, 220, 225)
SIZE, SMALL = 10.0, 8.5


# -- lesson 8 --------------------------------------------------------------------------------------


class Tree(NamedTuple):
    """A product of two products, and the relevance of every node.

    name     what stands above it
    inner    the numbers of the factors in the inner product, 0 to 2
    parts    relevance of the three factors
    """

    name: str
    inner: tuple[int, int]
    parts: tuple[float, float, float]


FACTORS = (2.0, 3.0, 4.0)
"""x1, x2, x3, as in the lesson."""
TREE, BELOW, TOP = 152.0, 58.0, 40.0
"""Width of a tree, from one row of nodes to the next, above the first."""


def bracketing() -> str:
    """What x1, x2, x3 get of x1 x2 x3 = 24: by halves in both bracketings, and flattened."""
    trees = (
        Tree("(x1 x2) x3 by halves", (0, 1), nested((0, 1), None)),
        Tree("x1 (x2 x3) by halves", (1, 2), nested((1, 2), None)),
        Tree("either, flattened", (0, 1), nested((0, 1), (2, 1))),
    )
    parts = [part for n, tree in enumerate(trees) for part in _tree(tree, n * TREE)]
    parts.append(Words(8, TOP + 2 * BELOW + 40, "lines: as thick as the relevance passed", SMALL))
    title = "Relevance of x1 = 2, x2 = 3, x3 = 4: " + "; ".join(
        f"{tree.name} {', '.join(f'{r:g}' for r in tree.parts)}" for tree in trees
    )
    return drawing.svg(Drawing(3 * TREE, TOP + 2 * BELOW + 48, tuple(parts), title))


def nested(inner: tuple[int, int], factors: Factors | None) -> tuple[float, float, float]:
    """Relevance of the factors of FACTORS, two of which are multiplied first: by halves, or by
    `factors`, the counts of the inner product and of the third factor.
    """
    x = [np.array([v]) for v in FACTORS]
    i, j = inner
    (k,) = {0, 1, 2} - {i, j}
    xij = x[i] * x[j]
    r = xij * x[k]
    rule = multiply.uniform if factors is None else multiply.flattened
    options: dict[str, Any] = {} if factors is None else {"factors": factors}
    r_ij, r_k = rule(xij, x[k], r, r, constant=(False, False), **options).inputs
    r_i, r_j = multiply.uniform(x[i], x[j], xij, r_ij, constant=(False, False)).inputs
    each: dict[int, Any] = {i: r_i, j: r_j, k: r_k}
    r1, r2, r3 = (float(each[n][0]) for n in range(3))
    return r1, r2, r3


def _tree(tree: Tree, left: float) -> Iterator[Part]:
    (i, j), r = tree.inner, tree.parts
    (k,) = {0, 1, 2} - {i, j}
    at = {n: (left + TREE * (1 + 2 * n) / 6, TOP + 2 * BELOW) for n in range(3)}
    root = (left + TREE / 2, TOP)
    middle = ((at[i][0] + at[j][0]) / 2, TOP + BELOW)
    edges = ((root, middle, r[i] + r[j]), (root, at[k], r[k]))
    yield Words(left + 8, 16, tree.name, SIZE, bold=True)
    for start, end, amount in (*edges, (middle, at[i], r[i]), (middle, at[j], r[j])):
        yield drawing.Curve(*start, *end, 0.45 * amount, DRAWING[1])
    yield from _node(*root, f"{sum(r):g}")
    yield from _node(*middle, f"{r[i] + r[j]:g}")
    for n in range(3):
        yield from _node(*at[n], f"{r[n]:g}")
        name = f"x{n + 1} = {FACTORS[n]:g}"
        yield Words(at[n][0] - drawing.width(name, SMALL) / 2, at[n][1] + 22, name, SMALL)


def _node(x: float, y: float, text: str) -> Iterator[Part]:
    """A number in a disk."""
    yield Disk(x, y, 12, BLACK)
    yield Disk(x, y, 11, (255, 255, 255))
    yield Words(x - drawing.width(text, SIZE) / 2, y + 3.5, text, SIZE, bold=True)


# -- lesson 9 --------------------------------------------------------------------------------------

TEXT = "the keys to the cabinet"
NEURON = ("model.layers.3.mlp.gated", (5, 132))
PANEL, ROW, NAMES = 116.0, 17.0, 62.0
"""Width of a panel, height of a token's row, width of the tokens."""


def four_questions() -> str:
    """Relevance of every token for four numbers, each on the scale of its own largest."""
    asked = questions(load(dtype="float64"))
    (_, first), *_ = asked
    parts: list[Part] = [
        Words(6, 52 + n * ROW, token, SIZE) for n, token in enumerate(first.tokens)
    ]
    for n, (name, e) in enumerate(asked):
        parts += _panel(name, e, NAMES + n * PANEL)
    foot = 52 + len(first.tokens) * ROW + 6
    said = "red: for the number, blue: against it; each panel on the scale of its longest bar"
    parts.append(Words(6, foot, said, SMALL))
    title = f"Relevance of the tokens of '{TEXT}' for " + ", ".join(name for name, _ in asked)
    return drawing.svg(Drawing(NAMES + len(asked) * PANEL, foot + 8, tuple(parts), title))


def questions(model: Model) -> list[tuple[str, Explanation]]:
    """The numbers that are explained, by their names in the picture."""
    return [
        ("logit of are", model.explain(TEXT, target="are")),
        ("logit of is", model.explain(TEXT, target="is")),
        ("are - is", model.explain(TEXT, contrast=("are", "is"))),
        ("neuron L3.N132", model.explain(TEXT, at=NEURON)),
    ]


def _panel(name: str, e: Explanation, left: float) -> Iterator[Part]:
    """Bars from a line for 0, the number beside each."""
    r = [float(v) for v in e.relevance]
    most, zero = max(map(abs, r)), left + 14
    yield Words(left, 14, name, SIZE, bold=True)
    yield Words(left, 28, f"= {e.explained:.2f}", SIZE)
    for n, value in enumerate(r):
        wide, y = 50 * abs(value) / most, 52 + n * ROW
        yield Box(zero if value >= 0 else zero - wide, y - 9, wide, 11, DRAWING[value >= 0])
        at = zero + 4 + (wide if value > 0 else 0)
        yield Words(at, y, f"{value:.2f}", SMALL, bold=abs(value) == most)
    yield Box(zero - 0.4, 38, 0.8, len(r) * ROW, GRAY)


# -- lesson 10 -------------------------------------------------------------------------------------

SENTENCES = 40
METHODS = ("occlusion", "attnlrp", "gradient", "cp-lrp", "random", "input-x-gradient")


class Constant:
    """Every token gets the score 1."""

    def cases(self, subjects: Sequence[Subject]) -> list[Case]:
        return [Case(s, np.ones(len(s.reading.input))) for s in subjects]


def perturbation() -> str:
    """What becomes of the right verb's lead as tokens are replaced, most relevant first. Raises
    ReflError where matplotlib (the extra `figures`) is not installed.
    """
    rows = judge(load(dtype="float64"), SENTENCES)
    series = [_curve(name, rows) for name in (*METHODS, "constant")]
    title = f"flip, most relevant first: {SENTENCES} sentences, shipped model"
    x, y = "fraction of the tokens replaced by zeros", "logit of the right verb − the wrong one"
    made = curves.curves(series, title=title, x=x, y=y, kind="svg").decode()
    said = "The lead of the right verb falls as tokens are replaced, most relevant first"
    return titled(made, said)


def judge(model: Model, count: int) -> list[Row]:
    """The metric flip of every method on the first held-out sentences of agreement."""
    chosen = sentences(count)["agreement"]
    items = [of_sentence(str(n), s, "contrast") for n, s in enumerate(chosen)]
    methods = {name: name for name in METHODS} | {"constant": Constant()}
    return judged(model, items, methods, ["flip"])


def _curve(name: str, rows: Sequence[Row]) -> curves.Curve:
    """The mean over the inputs, and its standard error."""
    each = np.stack([on_grid(r.curves["MoRF_flip"].tolist()) for r in rows if r.method == name])
    low, mean, _ = band(each)
    return curves.Curve(name, mean, mean - low, np.linspace(0, 1, GRID))


def titled(svg: str, title: str) -> str:
    """With a title, which screen readers say and browsers show."""
    start = svg.index(">", svg.index("<svg")) + 1
    return f"{svg[:start]}\n {tag('title', title)}{svg[start:]}"


PICTURES: dict[str, Callable[[], str]] = {
    "bracketing": bracketing,
    "four_questions": four_questions,
    "perturbation": perturbation,
}
"""Name of the file, without its ending -> the file."""
