"""The pictures of lessons 6 and 7: what is committed is what the engine says; bands and bars are as
wide as the relevance that they stand for.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from xml.etree import ElementTree

import pytest
from checkpoints import ROOT

from refl.verification.quality import lesson_pictures_2 as pictures

NAMESPACE = "{http://www.w3.org/2000/svg}"
DIGIT = 0.0051
"""Half of the last digit of a coordinate, and a little."""


@pytest.mark.parametrize("name", pictures.PICTURES)
def test_the_committed_picture_is_that_of_the_engine(name: str) -> None:
    committed = (ROOT / "refl" / "lessons" / "pictures" / f"{name}.svg").read_text("utf-8")
    assert committed == pictures.PICTURES[name]()


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


def bands(root: ElementTree.Element) -> Iterator[tuple[float, ...]]:  # x, y, to x, to y, width
    for path in root.iter(f"{NAMESPACE}path"):
        x, y, *_, to_x, to_y = map(float, re.findall(r"-?[\d.]+", path.attrib["d"]))
        yield x, y, to_x, to_y, float(path.attrib["stroke-width"])


def test_what_arrives_at_a_bar_and_what_leaves_it_are_as_wide_as_the_bar() -> None:
    root = ElementTree.fromstring(pictures.a_block_upside_down())
    every, meeting = bars(root), Counter[int]()
    arrived, left = [0.0] * len(every), [0.0] * len(every)
    for x, y, to_x, to_y, wide in bands(root):
        for at, across, sums in ((y - pictures.THICK, x, left), (to_y, to_x, arrived)):
            (i,) = (
                i
                for i, (bx, by, bw) in enumerate(every)
                if abs(by - at) < 1 and bx - 1 < across < bx + bw + 1
            )
            sums[i] += wide
            meeting[i] += 1
    ends = {i for i in range(len(every)) if not left[i]}
    starts = {i for i in range(len(every)) if not arrived[i]}
    assert len(starts) == 1
    assert len(ends) == 2  # the block's input, and what softmax absorbed
    for i, (_, _, wide) in enumerate(every):
        allowed = DIGIT * (meeting[i] + 1)
        assert i in starts or arrived[i] == pytest.approx(wide, abs=allowed)
        assert i in ends or left[i] == pytest.approx(wide, abs=allowed)


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
