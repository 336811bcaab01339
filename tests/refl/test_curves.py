"""Curves of an evaluation as a figure: the same bytes every time, no text is a formula, and curves
that are told apart without color.
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from typing import Any

import numpy as np
import pytest

from refl.errors import ReflError
from refl.show import curves as module
from refl.show.colors import _luminance
from refl.show.curves import COLORS, DASHES, MARKERS, Curve, curves
from refl.show.plots import KINDS

STARTS = {"svg": b"<?xml", "pdf": b"%PDF-", "png": b"\x89PNG"}


def drawn(kind: str, *names: str, **options: Any) -> bytes:
    series = [Curve(name, [3.0, 2.0 - i, 1.0], [0.1, 0.2, 0.1]) for i, name in enumerate(names)]
    return curves(series, title="flipping", x="tokens flipped", y="logit", kind=kind)


@pytest.mark.needs("matplotlib")
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_bytes_and_no_date(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    once = drawn(kind, "a", "b")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    assert once == drawn(kind, "a", "b") != drawn(kind, "a", "c")
    assert once.startswith(STARTS[kind]) and b"Date" not in once and b"dc:date" not in once


@pytest.mark.needs("matplotlib")
def test_nobodys_settings_and_no_formulas() -> None:
    """A matplotlibrc may ask for TeX, which would run what a name says."""
    import matplotlib

    name = "$\\input{/etc/passwd}$ _^{ \ud800 \x07"
    once = drawn("svg", name)
    with matplotlib.rc_context({"text.usetex": True, "lines.linewidth": 9, "pdf.fonttype": 3}):
        assert drawn("svg", name) == once
        assert b"/Type3" not in drawn("pdf", name)
    ET.fromstring(once)


@pytest.mark.needs("matplotlib")
def test_what_is_drawn_is_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(module, "saved", lambda figure, kind: figures.append(figure) or b"")
    series = [
        Curve("a", np.float32([3, 1, 0]), (0.5, 0.25, 0.125), [0, 0.5, 1]),
        Curve("_b", [1, 2, 3], states=[0, 0.5, 1]),
    ]
    curves(series, title="t", x="part flipped", y="logit", kind="svg")
    (axes,) = figures[0].axes
    first, second = axes.lines
    assert first.get_xdata().tolist() == [0, 0.5, 1] and first.get_ydata().tolist() == [3, 1, 0]
    assert second.get_ydata().tolist() == [1, 2, 3]
    (band,) = axes.collections  # of the one that has errors
    assert {2.5, 3.5, 0.75, 1.25, -0.125, 0.125} <= set(band.get_paths()[0].vertices[:, 1])
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("part flipped", "logit")
    assert [text.get_text().strip("\u200a") for text in axes.get_legend().texts] == ["a", "_b"]


def test_told_apart_without_color() -> None:
    looks = {(DASHES[n % len(DASHES)], MARKERS[n % len(MARKERS)]) for n in range(36)}
    assert len(looks) == 36
    for color in COLORS:  # WCAG asks 3 : 1 of lines; the two lightest are used last
        light = _luminance(tuple(bytes.fromhex(color[1:])))  # type: ignore[arg-type]
        assert 1.05 / (light + 0.05) > (3 if color in COLORS[:5] else 2) - 0.1


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"values": 3}, "values is 3"),
        ({"values": None}, "values is None"),
        ({"values": [1.0]}, "two or more finite numbers"),
        ({"values": [1.0, float("nan")]}, "two or more finite numbers"),
        ({"values": [[1.0, 2.0]]}, "two or more finite numbers"),
        ({"values": ["a", "b"]}, "an array of numbers"),
        ({"values": [1.0, 2.0], "errors": [0.1, -0.1]}, "one is negative"),
        ({"values": [1.0, 2.0], "errors": [0.1, 0.1, 0.1]}, "are 3 numbers: expected 2"),
        ({"values": [1.0, 2.0], "states": [0.0, 1.0, 2.0]}, "are 3 numbers: expected 2"),
        ({"values": [1.0, 2.0], "name": 3}, "the name of a method"),
    ],
)
def test_what_is_no_curve(options: dict[str, Any], what: str) -> None:
    with pytest.raises(ReflError, match=what):
        Curve(**{"name": "a"} | options)


def test_what_cannot_be_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Curve("a", [1.0, 2.0])
    with pytest.raises(ReflError, match="a curve or more"):
        curves([], title="", x="", y="", kind="svg")
    with pytest.raises(ReflError, match="kind is 'gif': expected one of svg, pdf, png"):
        curves([one], title="", x="", y="", kind="gif")
    monkeypatch.setitem(sys.modules, "matplotlib.style", None)
    with pytest.raises(ReflError, match=r"matplotlib is not installed.*pip install .*figures"):
        curves([one], title="", x="", y="", kind="svg")
