"""The pictures of lessons 6 and 7: bands and bars are as wide as the relevance that they stand for.
That they are drawn again to the same is tests/refl/test_lessons.py's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from xml.etree import ElementTree

import pytest

from refl.verification.quality.lesson_pictures import attention_and_blocks as pictures

NAMESPACE = "{http://www.w3.org/2000/svg}"
DIGIT = 0.0051
"""Half of the last digit of a coordinate, and a little."""

Interval = tuple[float, float]


@pytest.mark.parametrize("name", pictures.PICTURES)
def test_a_picture_has_a_title_and_every_text_lies_inside(name: str) -> None:
    root = ElementTree.fromstring(pictures.PICTURES[name]())
    title = root.find(f"{NAMESPACE}title")
    assert title is not None
    assert title.text
    for words in root.iter(f"{NAMESPACE}text"):
        x, wide = float(words.attrib["x"]), float(words.attrib["textLength"])
        assert x >= 0, words.text
        assert x + wide <= float(root.attrib["viewBox"].split()[2]), words.text


def bars(root: ElementTree.Element) -> list[tuple[float, float, float]]:  # x, y, width
    every = [r.attrib for r in root.iter(f"{NAMESPACE}rect")][1:]  # the first is the paper
    return [(float(r["x"]), float(r["y"]), float(r["width"])) for r in every]


def band_ends(root: ElementTree.Element) -> Iterator[tuple[float, Interval]]:
    """Of every band: the bar's y that it leaves or arrives at, and from where to where."""
    for path in root.iter(f"{NAMESPACE}path"):
        x, y, *_, to_x, to_y = map(float, re.findall(r"-?[\d.]+", path.attrib["d"]))
        half = float(path.attrib["stroke-width"]) / 2
        yield y - pictures.THICK + 0.5, (x - half, x + half)
        yield to_y, (to_x - half, to_x + half)


def test_bands_fill_their_bar_side_by_side() -> None:
    """Above every bar but the first, and below all but the block's input and what is absorbed."""
    root = ElementTree.fromstring(pictures.a_block_upside_down())
    leaving, arriving = 0, 0
    for x, y, wide in bars(root):
        at = [
            (end, i) for end, i in band_ends(root) if y <= end < y + 1 and x - 1 < i[0] < x + wide
        ]
        above = sorted(i for end, i in at if end == y)
        below = sorted(i for end, i in at if end != y)
        leaving, arriving = leaving + bool(below), arriving + bool(above)
        for side in filter(None, (above, below)):
            starts, stops = zip(*side, strict=True)
            assert starts == pytest.approx((x, *stops[:-1]), abs=4 * DIGIT)
            assert stops[-1] == pytest.approx(x + wide, abs=4 * DIGIT)
    assert (leaving, arriving) == (len(bars(root)) - 2, len(bars(root)) - 1)


def test_a_bar_is_as_wide_as_the_relevance_at_its_site() -> None:
    e = pictures.explanation()
    drawn = bars(ElementTree.fromstring(pictures.a_block_upside_down()))
    for site in pictures.SITES.values():
        name = site.name if site.name.startswith("model") else pictures.BLOCK + site.name
        (wide,) = (w for x, y, w in drawn if (x, y) == (site.x, site.y))
        assert wide / pictures.SCALE == pytest.approx(e[name].sum(), abs=DIGIT / pictures.SCALE)


def test_each_step_is_the_one_before_less_what_was_absorbed() -> None:
    ledger = pictures.explanation().ledger
    first, *blocks, last = pictures.steps(ledger)
    left = ledger.explained
    for step, number in zip(blocks, "3210", strict=True):
        left -= step.absorbed
        assert step.name == f"block {number}"
        assert step.left == pytest.approx(left, abs=1e-12)
    assert first.left == ledger.explained
    assert last.left == pytest.approx(left - ledger.absorbed["stabilizer"], abs=1e-12)
