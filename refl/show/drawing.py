"""A drawing of rectangles, disks, curves, texts and pictures in points, as SVG and as PDF.

Tokens are set in a monospaced font, and in SVG every text says how wide it is (`textLength`): it is
text, to be searched and edited, and overlaps nothing whatever fonts a viewer has. A PDF embeds its
fonts (Type 42).
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from refl.show.colors import Color, hexadecimal
from refl.show.heatmap import encoded
from refl.show.markup import Markup, joined, tag
from refl.show.plots import library, saved, styled
from refl.show.text import cells

MONO = "DejaVu Sans Mono, Menlo, Consolas, Liberation Mono, monospace"
ADVANCE = 0.602
"""Of a letter of the monospaced font, in sizes of the font."""
BLACK: Color = (26, 28, 32)


@dataclass(frozen=True)
class Box:
    """A rectangle from its upper left corner."""

    x: float
    y: float
    width: float
    height: float
    color: Color


@dataclass(frozen=True)
class Disk:
    """A disk about its center."""

    x: float
    y: float
    radius: float
    color: Color


@dataclass(frozen=True)
class Curve:
    """A line between two points, upright at both ends."""

    x: float
    y: float
    to_x: float
    to_y: float
    thickness: float
    color: Color
    dashed: bool = False

    @property
    def points(self) -> tuple[tuple[float, float], ...]:
        """Of a cubic Bezier curve."""
        middle = (self.y + self.to_y) / 2
        return (self.x, self.y), (self.x, middle), (self.to_x, middle), (self.to_x, self.to_y)

    @property
    def dashes(self) -> tuple[float, float] | None:
        """Lengths of a dash and of what lies between two."""
        return (3 + self.thickness, 1.5 + self.thickness) if self.dashed else None


@dataclass(frozen=True)
class Words:
    """A text from the left end of its baseline."""

    x: float
    y: float
    text: str
    size: float
    color: Color = BLACK
    bold: bool = False

    @property
    def width(self) -> float:
        return width(self.text, self.size)


@dataclass(frozen=True, eq=False)
class Pixels:
    """A picture, uint8 (H, W, 3)."""

    x: float
    y: float
    width: float
    height: float
    pixels: Any
    what: str


Part = Box | Disk | Curve | Words | Pixels


@dataclass(frozen=True)
class Drawing:
    width: float
    height: float
    parts: tuple[Part, ...]
    title: str


def width(text: str, size: float) -> float:
    """Of a text in points."""
    return cells(text) * ADVANCE * size


# -- SVG -------------------------------------------------------------------------------------------


def svg(drawing: Drawing) -> str:
    """One self-contained file."""
    w, h = _short(drawing.width), _short(drawing.height)
    paper = tag("rect", width=w, height=h, fill="#ffffff")
    inside = (tag("title", drawing.title), paper, *map(_element, drawing.parts))
    root = tag(
        "svg",
        joined(inside, Markup("\n")),
        xmlns="http://www.w3.org/2000/svg",
        width=f"{w}pt",
        height=f"{h}pt",
        viewBox=f"0 0 {w} {h}",
        font_family=MONO,
    )
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{root}\n'


def _element(part: Part) -> Markup:
    if isinstance(part, Words):
        return _words(part)
    if isinstance(part, Disk):
        place = {key: _short(v) for key, v in (("cx", part.x), ("cy", part.y), ("r", part.radius))}
        return tag("circle", **place, fill=hexadecimal(part.color))
    if isinstance(part, Curve):
        return _curve(part)
    at = {key: _short(getattr(part, key)) for key in ("x", "y", "width", "height")}
    if isinstance(part, Box):
        return tag("rect", **at, fill=hexadecimal(part.color))
    source = "data:image/png;base64," + base64.b64encode(encoded(part.pixels)).decode()
    inside = tag("title", part.what)
    return tag("image", inside, **at, style="image-rendering:pixelated", href=source)


def _words(part: Words) -> Markup:
    return tag(
        "text",
        part.text,
        x=_short(part.x),
        y=_short(part.y),
        font_size=_short(part.size),
        fill=hexadecimal(part.color),
        font_weight="bold" if part.bold else None,
        textLength=_short(part.width),
        lengthAdjust="spacingAndGlyphs",
    )


def _curve(part: Curve) -> Markup:
    start, *rest = (f"{_short(x)} {_short(y)}" for x, y in part.points)
    dashes = None if part.dashes is None else " ".join(map(_short, part.dashes))
    return tag(
        "path",
        d=f"M{start} C{' '.join(rest)}",
        fill="none",
        stroke=hexadecimal(part.color),
        stroke_width=_short(part.thickness),
        stroke_dasharray=dashes,
    )


def _short(number: float) -> str:
    return f"{number:.2f}".rstrip("0").rstrip(".")


# -- PDF -------------------------------------------------------------------------------------------


def pdf(drawing: Drawing) -> bytes:
    """One page. Raises ReflError where matplotlib (the extra `figures`) is not installed."""
    with styled() as figure_of:
        figure = figure_of((drawing.width / 72, drawing.height / 72))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set(xlim=(0, drawing.width), ylim=(drawing.height, 0))
        patches = library("matplotlib.patches")
        for part in drawing.parts:
            _draw(axes, patches, part)
        return saved(figure, "pdf")


def _draw(axes: Any, patches: Any, part: Part) -> None:
    if isinstance(part, Words):
        weight = "bold" if part.bold else "normal"
        style = {"family": ["DejaVu Sans Mono"], "size": part.size, "weight": weight}
        axes.text(part.x, part.y, part.text, color=hexadecimal(part.color), va="baseline", **style)
        return
    if isinstance(part, (Disk, Curve)):
        _draw_round(axes, patches, part)
        return
    if isinstance(part, Box):
        color = hexadecimal(part.color)
        at, sizes = (part.x, part.y), (part.width, part.height)
        axes.add_patch(patches.Rectangle(at, *sizes, facecolor=color, lw=0))
        return
    extent = (part.x, part.x + part.width, part.y + part.height, part.y)
    axes.imshow(part.pixels, extent=extent, interpolation="none", aspect="auto", zorder=1)
    axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())


def _draw_round(axes: Any, patches: Any, part: Disk | Curve) -> None:
    color = hexadecimal(part.color)
    if isinstance(part, Disk):
        axes.add_patch(patches.Circle((part.x, part.y), part.radius, facecolor=color, lw=0))
        return
    path = library("matplotlib.path").Path
    way = path(part.points, [path.MOVETO, *[path.CURVE4] * 3])
    dashes = "solid" if part.dashes is None else (0, tuple(d / part.thickness for d in part.dashes))
    style = {"facecolor": "none", "edgecolor": color, "lw": part.thickness, "linestyle": dashes}
    axes.add_patch(patches.PathPatch(way, capstyle="butt", **style))


def embeddable() -> Callable[[str], str]:
    """Of a text what the embedded font has letters for; other characters as their escapes."""
    with styled():
        manager = library("matplotlib.font_manager")
        fonts = [
            manager.get_font(
                manager.findfont(manager.FontProperties(family="DejaVu Sans Mono", weight=w))
            )
            for w in ("normal", "bold")
        ]
    known = set(fonts[0].get_charmap()) & set(fonts[1].get_charmap())
    return lambda text: "".join(_letters(text, known))


def _letters(text: str, known: set[int]) -> Iterable[str]:
    return (c if ord(c) in known else c.encode("unicode_escape").decode("ascii") for c in text)
