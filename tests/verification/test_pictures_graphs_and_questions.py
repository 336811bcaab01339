"""Pictures of lessons 8 to 10: the numbers in them, recomputed without what drew them."""

from __future__ import annotations

import re
import statistics
import xml.etree.ElementTree as ET
from fractions import Fraction

import numpy as np
import pytest
from checkpoints import ROOT

from refl.evaluation import Perturbation, Row, Subject
from refl.evaluation.datasets import of_sentence, sentences
from refl.model import load
from refl.verification.quality.lesson_pictures import graphs_and_questions as pictures

FOLDER = ROOT / "refl" / "lessons" / "pictures"
NAMESPACE = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg).iter(f"{NAMESPACE}text")]


@pytest.mark.parametrize("inner", [(0, 1), (1, 2), (0, 2)])
def test_the_parts_of_a_nested_product(inner: tuple[int, int]) -> None:
    """Two brackets leave a quarter, one a half; flattened, a third each."""
    product = Fraction(2 * 3 * 4)
    parts = [product / (4 if n in inner else 2) for n in range(3)]
    assert pictures.nested(inner, None) == tuple(map(float, parts))
    assert pictures.nested(inner, (2, 1)) == (8.0, 8.0, 8.0)


def test_the_trees_say_what_their_nodes_get() -> None:
    found = texts(pictures.bracketing())
    nodes = [text for text in found if text.isdigit()]
    assert " ".join(nodes) == "24 12 6 6 12 24 12 12 6 6 24 16 8 8 8"


def test_four_questions_are_four_numbers() -> None:
    """The third is the first less the second, bar by bar; and a bar is as long as its number."""
    svg = pictures.four_questions()
    numbers = [float(t) for t in texts(svg) if re.fullmatch(r"-?\d+\.\d\d", t)]
    are, other, contrast, neuron = (numbers[6 * n : 6 * n + 6] for n in range(4))
    for a, b, c in zip(are, other, contrast, strict=True):
        assert c == pytest.approx(a - b, abs=0.015 + 1e-9)  # three numbers, each to 0.005
    assert len(neuron) == 6
    bars = [e for e in ET.fromstring(svg).iter(f"{NAMESPACE}rect") if e.get("height") == "11"]
    for panel, start in ((are, 0), (neuron, 18)):
        most = max(map(abs, panel))
        for bar, number in zip(bars[start : start + 6], panel, strict=True):
            wide = 50 * abs(number) / most
            assert float(bar.get("width", "nan")) == pytest.approx(wide, abs=50 * 0.01 / most)


def test_a_curve_is_the_mean_of_its_inputs() -> None:
    """Of two inputs with as many states: state by state, with the standard error of two numbers."""
    values = ([4.0, 2.0, 1.0], [6.0, -2.0, 0.0])
    named = [("a", y) for y in values] + [("b", [9.0, 9.0, 9.0])]
    rows = [Row("", name, "flip", {}, {"MoRF_flip": np.array(y)}) for name, y in named]
    curve = pictures._curve("a", rows)
    middle = len(curve.values) // 2
    for at, pair in ((0, (4.0, 6.0)), (middle, (2.0, -2.0)), (-1, (1.0, 0.0))):
        assert curve.values[at] == statistics.mean(pair)
        assert curve.errors[at] == pytest.approx(statistics.stdev(pair) / 2**0.5)


def test_a_constant_orders_by_position() -> None:
    """As scores that fall from token to token do; random scores are in another order."""
    model = load(dtype="float64")
    rows = {row.method: row.curves["MoRF_flip"] for row in pictures.judge(model, 1)}
    (sentence,) = sentences(1)["agreement"]
    subject = Subject.read(model, of_sentence("0", sentence, "contrast"))
    falling = -np.arange(float(len(subject.reading.input)))
    expected = Perturbation("flip").judge(subject, falling).curves["MoRF_flip"]
    assert np.array_equal(rows["constant"], expected)
    assert not np.array_equal(rows["random"], expected)
    assert list(rows) == [*pictures.METHODS, "constant"]


@pytest.mark.needs("matplotlib")
def test_the_curves_are_drawn_with_a_title(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "SENTENCES", 2)
    root = ET.fromstring(pictures.perturbation())
    assert (root[0].tag, root[0].text) == (
        f"{NAMESPACE}title",
        "The lead of the right verb falls as tokens are replaced, most relevant first",
    )


@pytest.mark.parametrize("name", ["bracketing", "four_questions"])
def test_the_files_are_what_is_drawn(name: str) -> None:
    made = pictures.PICTURES[name]()
    kept = (FOLDER / f"{name}.svg").read_text(encoding="utf-8")
    assert texts(kept) == texts(made)
    assert ET.fromstring(kept)[0].tag == f"{NAMESPACE}title"


def test_every_picture_has_its_file() -> None:
    for name in pictures.PICTURES:
        assert (FOLDER / f"{name}.svg").is_file()
