"""Pictures for a paper: everything a token can hold stays letters, letters can be read on every
color, every sign has its mark, and the scale says the largest relevance.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refl
from refl.cli import main
from refl.errors import ReflError
from refl.explanation import MethodFacts
from refl.show import tex
from refl.show.drawing import ADVANCE
from refl.show.figure import WIDE, compare
from refl.show.text import cells

HOSTILE = [
    "</text><script>alert(1)</script>",
    "\x1b[31m\x00\x07",
    "line\n",
    "\t",
    "quo\"te's",
    "\u202eback",
    "\ud800",
    "\ufffe",
    "\\input{/etc/passwd}",
    "\\write18{rm}%$&#^_~{}|",
    " 漢字 🙂 שלום",
    "x" * 200,
    "é\u0301ß",
    "\\n",
]
SVG = "{http://www.w3.org/2000/svg}"
COMMANDS = {  # all that a snippet may say between \begingroup and \endgroup, after its definitions
    *("textbf", "par", "reflglue", "reflcell", "reflnone", "reflbelow", "reflabove", "reflchar"),
    *("textbackslash", "textasciicircum", "textasciitilde", "textless", "textgreater", "textbar"),
    *("char", "textvisiblespace", "ensuremath", "to", "ldots", "textperiodcentered", "kern"),
    *("endgroup", "{", "}", "$", "&", "#", "_", "%", " "),
}


@pytest.fixture(scope="module")
def keys() -> Any:
    return refl.load().explain("the keys to the cabinet", keep=())


def with_tokens(e: Any, tokens: list[str], relevance: Any, **changes: Any) -> Any:
    ids = list(range(len(tokens)))
    return replace(e, tokens=tokens, input_ids=ids, relevance=np.asarray(relevance), **changes)


def luminance(color: str) -> float:
    """WCAG 2, relative luminance."""
    channels = [int(color.lstrip("#")[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def ratio_of(a: str, b: str) -> float:
    dark, light = sorted((luminance(a), luminance(b)))
    return (light + 0.05) / (dark + 0.05)


def parsed(svg: str) -> tuple[list[dict[str, str]], list[tuple[str, dict[str, str]]]]:
    """Rectangles after the paper, and texts."""
    root = ET.fromstring(svg.encode("utf-8"))
    boxes = [dict(r.attrib) for r in root.iter(f"{SVG}rect")][1:]
    return boxes, [(t.text or "", dict(t.attrib)) for t in root.iter(f"{SVG}text")]


def under(boxes: list[dict[str, str]], at: dict[str, str]) -> dict[str, str]:
    """The colored cell that a text stands on."""
    x, y = float(at["x"]), float(at["y"])
    (found,) = [
        b
        for b in boxes
        if float(b["x"]) <= x <= float(b["x"]) + float(b["width"])
        and float(b["y"]) < y - 1 < float(b["y"]) + float(b["height"])
        and float(b["height"]) > 3
    ]
    return found


# -- SVG -------------------------------------------------------------------------------------------


def test_every_letter_reads_and_every_sign_has_its_mark(keys: Any) -> None:
    r = np.linspace(-1, 1, 25)
    e = with_tokens(keys, [f"t{i}" for i in range(25)], r)
    boxes, texts = parsed(e.svg())
    tokens = {text: at for text, at in texts if re.fullmatch(r"t\d+", text)}
    assert len(tokens) == 25
    for i in range(25):
        at = tokens[f"t{i}"]
        cell = under(boxes, at)
        assert ratio_of(cell["fill"], at["fill"]) >= 4.5
        top, height = float(cell["y"]), float(cell["height"])
        lines = [
            float(b["y"]) > top
            for b in boxes
            if b["height"] == "1.1"
            and abs(float(b["x"]) - float(cell["x"])) < 0.5
            and top - 3 < float(b["y"]) < top + height + 3
        ]
        assert lines == ([] if i == 12 else [i > 12]), i  # below for, above against
        red, _, blue = bytes.fromhex(cell["fill"][1:])
        assert (red > blue, red < blue) == (i > 12, i < 12)


def test_the_scale_says_the_largest_relevance(keys: Any) -> None:
    e = with_tokens(keys, ["a", "b"], [0.25, -1.5])
    other = replace(with_tokens(keys, ["a", "b"], [3.0, 0.5]), recorded=None)
    assert "max |R| = 1.5000 (logit), own scale" in e.svg()
    own, shared = compare([e, other]), compare([e, other], "shared")
    assert [re.findall(r"max \|R\| = ([\d.]+)", c.svg()) for c in (own, shared)] == [
        ["1.5000", "3.0000"],
        ["3.0000", "3.0000"],
    ]
    assert shared.svg().count("one scale for all") == 2
    assert shared.tex().count("3.0000 (logit)") == 2


def test_nothing_overlaps_and_nothing_is_outside(keys: Any) -> None:
    e = with_tokens(keys, [*HOSTILE, *["word "] * 2000], np.ones(len(HOSTILE) + 2000))
    root = ET.fromstring(e.svg().encode("utf-8"))
    high = float(root.attrib["viewBox"].split()[3])
    boxes, texts = parsed(e.svg())
    cells = [b for b in boxes if float(b["height"]) > 3]
    rows: dict[str, list[tuple[float, float]]] = {}
    for b in cells:
        x, w = float(b["x"]), float(b["width"])
        assert x >= 0 and x + w <= WIDE and float(b["y"]) + float(b["height"]) <= high
        rows.setdefault(b["y"], []).append((x, x + w))
    for row in rows.values():
        row.sort()
        assert all(a[1] <= b[0] + 0.02 for a, b in pairwise(row))
    for text, at in texts:
        assert float(at["x"]) + float(at["textLength"]) <= WIDE and float(at["y"]) <= high
        assert text and float(at["textLength"]) >= 0
    x_tokens = "".join(text for text, _ in texts if set(text) == {"x"})
    assert x_tokens == "x" * 200  # in pieces, whole
    assert 0.6 <= ADVANCE <= 0.61


@pytest.mark.parametrize(
    ("tokens", "relevance"), [(["a"], [1.0]), (["a", "b"], [0.0, 0.0]), (["", " "], [1.0, -1.0])]
)
def test_little(keys: Any, tokens: list[str], relevance: list[float]) -> None:
    e = with_tokens(keys, tokens, relevance)
    ET.fromstring(e.svg())
    assert "max |R|" in e.svg() and "nan" not in e.svg() + e.tex()


def test_scores_without_a_sign_have_no_marks(keys: Any) -> None:
    lengths = MethodFacts("norms", score="norm")
    e = with_tokens(keys, ["a", "b"], [1.0, 0.5], method=lengths)
    boxes, _ = parsed(e.svg())
    assert not [b for b in boxes if b["height"] == "1.1"] and "against" not in e.svg()
    assert r"{\reflbelow}" not in e.tex() and r"{\reflabove}" not in e.tex()
    with pytest.raises(ReflError, match="give each its own"):
        compare([e, with_tokens(keys, ["a", "b"], [1.0, 0.5])], "shared")


@given(st.lists(st.text(st.characters()), min_size=1, max_size=4))
def test_any_text_is_letters(keys: Any, tokens: list[str]) -> None:
    e = with_tokens(keys, tokens, np.ones(len(tokens)), target=tokens[0])
    root = ET.fromstring(e.svg().encode("utf-8"))
    assert {part.tag.removeprefix(SVG) for part in root.iter()} <= {"svg", "title", "rect", "text"}
    assert_letters_only(e.tex())


def assert_letters_only(snippet: str) -> None:
    """Braces in balance, no command but refl's own, no special character by itself."""
    assert snippet.startswith("% made by refl") and tex.PREAMBLE in snippet
    body = snippet.partition(tex.PREAMBLE)[2]
    assert "\n\n" not in body and all(c.isprintable() or c == "\n" for c in body)
    depth = 0
    for token in re.finditer(r"\\([a-zA-Z]+|.)|%\n|(.)", body, re.DOTALL):
        command, letter = token[1], token[2]
        assert command is None or command in COMMANDS, command
        assert letter is None or letter not in "%$&#^_~\\", letter
        depth += {"{": 1, "}": -1}.get(letter or "", 0)
        assert depth >= 0
    assert depth == 0


def test_hostile_tokens(keys: Any) -> None:
    about = keys.about | {"model": "\\end{document}<b>"}
    ones = np.ones(len(HOSTILE))
    e = with_tokens(keys, HOSTILE, ones, about=about, target=HOSTILE[0])
    _, texts = parsed(e.svg())
    assert "\\x1b[31m\\x00\\x07" in {text for text, _ in texts}
    assert "\\u202eback" in {text for text, _ in texts}
    assert_letters_only(e.tex())
    assert r"\textbackslash{}input\{/etc/passwd\}" in e.tex()
    assert r"\reflchar{漢}{\textbackslash{}u6f22}" in e.tex() and "ß" in e.tex()


# -- PDF, and what is refused ----------------------------------------------------------------------


@pytest.mark.needs("matplotlib")
def test_the_same_bytes_with_fonts_inside(keys: Any) -> None:
    e = with_tokens(keys, HOSTILE, np.ones(len(HOSTILE)))
    once = e.pdf()
    assert once == e.pdf() and once.startswith(b"%PDF-")
    assert b"/Type3" not in once and b"/FontFile2" in once and b"CreationDate" not in once
    assert e.svg() == e.svg() and e.tex() == e.tex()


def test_what_is_refused(keys: Any) -> None:
    with pytest.raises(ReflError, match="is not finite"):
        with_tokens(keys, ["a"], [np.nan]).svg()
    with pytest.raises(ReflError, match="one input and one output"):
        compare([keys, with_tokens(keys, ["a"], [1.0])])
    with pytest.raises(ReflError, match="one input and one output"):
        compare([keys, replace(keys, target="is")])
    with pytest.raises(ReflError, match="one explanation or more"):
        compare([])
    with pytest.raises(ReflError, match="expected own or shared"):
        compare([keys], "common")


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"position": 2}, "another position"),
        ({"types": [0, 1]}, "another types"),
        ({"about": {"model": "other"}}, "another model"),
        ({"input_ids": [1]}, "another input"),
    ],
)
def test_side_by_side_is_one_question(keys: Any, changes: dict[str, Any], what: str) -> None:
    with pytest.raises(ReflError, match=what):
        compare([keys, replace(keys, **changes)])
    edited = replace(keys, about=keys.about | {"edits": "lm_head: Edit(factor=0.0)"})
    with pytest.raises(ReflError, match="another edits"):
        compare([keys, edited])


def test_one_scale_has_one_unit(keys: Any) -> None:
    """A table's scores of a probability are those of weighted logits."""
    ways = ("attnlrp", "integrated-gradients")
    both = [refl.load().explain("the keys", m, seed="probability", keep=()) for m in ways]
    assert len(compare(both).svg()) > 0
    with pytest.raises(ReflError, match=r"\(probability, softmax-weighted logit\): give each"):
        compare(both, "shared")


@pytest.mark.parametrize("size", [1e308, 1e-310])
def test_sizes_at_the_ends_of_a_float(keys: Any, size: float) -> None:
    e = with_tokens(keys, ["a", "b"], [size, -size / 2])
    full, _, half, _ = parsed(e.svg())[0][:4]  # a cell, its mark, and again
    assert luminance(full["fill"]) < luminance(half["fill"])
    assert f"max |R| = {size:.4e} (logit)" in e.svg() and e.tex()


def test_wide_letters_take_two_columns(keys: Any) -> None:
    _, texts = parsed(replace(keys, target="\u6f22" * 70).svg())
    assert all(width_of(text, at) <= WIDE for text, at in texts)


def width_of(text: str, at: dict[str, str]) -> float:
    return float(at["x"]) + cells(text) * ADVANCE * float(at["font-size"])


def test_a_picture(keys: Any) -> None:
    r = np.zeros((8, 8))
    r[:4, :4], r[4:, 4:] = 0.25, -0.5
    picture = np.full((8, 8, 1), 200, np.uint8)
    e = replace(keys, tokens=[], input_ids=[], relevance=r, picture=picture, patch=(4, 4))
    _, texts = parsed(e.svg())
    assert [text for text, _ in texts if text in "+−"] == ["+", "−"]
    assert e.svg().count("<image ") == 2 and "max |R| = 8.0000" in e.svg()
    with pytest.raises(ReflError, match="write a PDF"):
        e.tex()


def test_the_command_line(tmp_path: Path, capsys: Any) -> None:
    svg, snippet = tmp_path / "a.svg", tmp_path / "a.tex"
    asked = ["explain", "the keys", "--svg", str(svg), "--tex", str(snippet)]
    assert main([*asked, "--beside", "cp-lrp", "--scale", "shared"]) == 0
    assert "cp-lrp" in svg.read_text("utf-8") and "one scale" in snippet.read_text("utf-8")
    assert main(["explain", "the keys", "--beside", "cp-lrp"]) == 2
    assert "give --svg, --pdf or --tex" in capsys.readouterr().err
    assert main(["explain", "the keys", "--svg", str(svg), "--scale", "own"]) == 2
    assert main(["explain", "the keys", "--svg", str(tmp_path / "a.png")]) == 2
