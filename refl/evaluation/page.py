"""The results of an evaluation as one HTML page: tables, paired differences, curves with bands. It
needs nothing but itself, and everything that a file says is made safe (refl.show.markup).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from refl.evaluation.results import GRID, LEVEL, Key, Results, band
from refl.evaluation.statistics import Difference, fewest
from refl.evaluation.tables import (
    ARROWS,
    axes,
    by_metric,
    counted,
    form,
    inputs,
    protocol,
    shown,
    title,
)
from refl.show.markup import Markup, document, joined, safe_table, tag

COLORS = (
    "#2166ac", "#b2182b", "#1b7837", "#762a83", "#e08214", "#35978f", "#c51b7d", "#5a606b",
    "#8c510a",
)  # fmt: skip
DASHES = ("", "6 3", "2 2", "8 3 2 3")
"""Lines are told apart by color and by dashes, which a gray print keeps: no two of the first 36
have both alike.
"""

STYLE = """\
:where(.refl) svg.curves { max-width: 46rem; height: auto }
:where(.refl) svg.curves polyline { fill: none; stroke-width: 1.6 }
:where(.refl) svg.curves polygon { opacity: .15 }
:where(.refl) .best { font-weight: 700 }
"""


def html(r: Results) -> str:
    """The whole page."""
    name = f"{r.said['model']['name']}, {len(r.methods)} methods, {counted(len(r.names))}"
    sections = (
        tag("header", tag("h1", f"Evaluation: {name}"), tag("p", protocol(r))),
        *(tag("section", tag("h2", metric), _means(r, keys)) for metric, keys in by_metric(r)),
        *(_picture(r, key) for key in r.curves),
        _differences(r),
        _said(r),
    )
    return document(f"refl: {name}", joined(sections, "\n"), STYLE)


def _means(r: Results, keys: Sequence[Key]) -> Markup:
    heads = [f"{key[1]} {ARROWS[r.larger_is_better(key)]}".strip() for key in keys]
    rows = ([name, *(_cell(r, key, m) for key in keys)] for m, name in enumerate(r.methods))
    return safe_table(["method", *heads], rows, range(1, len(heads) + 1))


def _cell(r: Results, key: Key, m: int) -> Markup | str:
    words = shown(r.mean(key, m), form(r, key))
    return tag("span", words, class_="best") if r.outstanding(key) == m else words


def _differences(r: Results) -> Markup:
    """Of every two methods."""
    inside = (tag("details", tag("summary", title(r, key)), _pairs(r, key)) for key in r.values)
    words = f"Paired differences, mean and {LEVEL:.0%} bootstrap interval"
    return tag("section", tag("h2", words), *inside)


def _pairs(r: Results, key: Key) -> Markup:
    how, rows = form(r, key), []
    for i, a in enumerate(r.methods):
        for j, b in enumerate(r.methods[:i]):
            d = r.difference(key, i, j)
            known = math.isfinite(d.low)
            mean, low, high = (f"{how.number(x, '+')}{how.unit}" for x in (d.mean, d.low, d.high))
            interval = f"{low} to {high}" if known else "-"
            number = mean if d.count else "-"
            rows.append((f"{a} less {b}", number, interval, _remark(d) if known else ""))
    return safe_table(("methods", "difference", "interval", ""), rows, (1, 2))


def _remark(d: Difference) -> str:
    if not d.excludes_0:
        return "0 inside"
    return "" if d.count >= fewest(d.level) else f"{d.count} inputs only"


def _said(r: Results) -> Markup:
    """What was run, every option."""
    words = json.dumps(dict(r.said), indent=2, ensure_ascii=False)
    return tag(
        "section", tag("details", tag("summary", "What was run"), tag("pre", tag("code", words)))
    )


# -- curves ----------------------------------------------------------------------------------------

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 640, 320, 56, 36, 12, 24


def _picture(r: Results, key: Key) -> Markup:
    bands = [band(r.curves[key][:, m]) for m in range(len(r.methods))]
    finite = np.concatenate([b[np.isfinite(b)] for b in bands])
    if not len(finite):
        return Markup("")
    low, high = float(finite.min()), float(finite.max())
    if low == high:
        low, high = low - 1, high + 1
    drawn = [line for m, one in enumerate(bands) for line in _line(one, m, low, high)]
    name, (across, up) = f"{key[1]} ({key[0]})", axes(r, key)
    banded = any(np.isfinite(one[0]).all() for one in bands)
    over = "Means over {}. Bands: one standard error to either side." if banded else "Over {}."
    words = f"Up: {up}. {over.format(inputs(r, key))}"
    return tag(
        "section",
        tag("h2", name),
        tag("p", words, class_="note"),
        tag(
            "svg",
            *_axes(low, high, across),
            *drawn,
            class_="curves",
            viewBox=f"0 0 {WIDTH} {HEIGHT}",
            role="img",
            aria_label=f"curves of {name}",
        ),
        _legend(r.methods),
    )


def _x(at: float) -> float:
    return LEFT + at * (WIDTH - LEFT - RIGHT)


def _y(value: float, low: float, high: float) -> float:
    return TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM)


def _line(mean: Any, m: int, low: float, high: float) -> list[Markup]:  # (3, GRID)
    """The band of one standard error, where there is one, and the mean."""
    if not np.isfinite(mean[1]).all():
        return []
    across = [_x(at) for at in np.linspace(0, 1, GRID)]
    heights = ((_y(float(v), low, high) for v in row) for row in mean)
    lower, middle, upper = ([*zip(across, row, strict=True)] for row in heights)
    color = COLORS[m % len(COLORS)]
    line = tag("polyline", points=_points(middle), stroke=color, stroke_dasharray=_dash(m))
    if not np.isfinite(mean).all():
        return [line]
    return [tag("polygon", points=_points([*lower, *reversed(upper)]), fill=color), line]


def _dash(m: int) -> str | None:
    return DASHES[m % len(DASHES)] or None


def _points(found: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in found)


def _axes(low: float, high: float, across: str) -> list[Markup]:
    bottom, found = HEIGHT - BOTTOM, []
    found.append(tag("line", x1=LEFT, x2=_x(1), y1=bottom, y2=bottom))
    found.append(tag("line", x1=LEFT, x2=LEFT, y1=TOP, y2=bottom))
    for at in (0.0, 0.5, 1.0):
        where = {"x": f"{_x(at):.1f}", "y": bottom + 16, "text_anchor": "middle"}
        found.append(tag("text", f"{at:.0%}", **where))
        value = low + at * (high - low)
        side = {"x": LEFT - 6, "y": f"{_y(value, low, high) + 4:.1f}", "text_anchor": "end"}
        found.append(tag("text", _short(value), **side))
    middle = {"x": f"{_x(0.5):.1f}", "y": HEIGHT - 4, "text_anchor": "middle"}
    return [*found, tag("text", across, **middle)]


def _short(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else ""


def _legend(methods: Sequence[str]) -> Markup:
    entries = (
        tag(
            "span",
            tag(
                "svg",
                tag(
                    "line", x1=0, x2=28, y1=6, y2=6,
                    style=f"stroke:{COLORS[m % len(COLORS)]};stroke-width:3",
                    stroke_dasharray=_dash(m),
                ),
                viewBox="0 0 28 12",
                style="display:inline-block;width:28px;margin:0 .3rem 0 0",
            ),
            name,
        )
        for m, name in enumerate(methods)
    )  # fmt: skip
    return tag("div", *entries, class_="legend")
