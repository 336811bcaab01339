"""Means with their intervals against a number that doubles from point to point, several panels in
one figure: what switching more and more neurons does (refl.latent.switching).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from refl.errors import ReflError, argument
from refl.show.curves import COLORS, DASHES, LONGEST_LABEL, LONGEST_NAME, LONGEST_TITLE, MARKERS
from refl.show.plots import kind_of, saved, styled
from refl.show.text import one_line, shorten

WIDE, HIGH = 3.4, 2.3
"""Inches of a panel."""


@dataclass(frozen=True)
class Band:
    """A line of means, and the intervals around them.

    at           where on the x axis
    means, low, high    a number for each
    beside       of random neurons beside a ranking: drawn thin, in the ranking's color, unnamed
    """

    name: str
    at: Sequence[float]
    means: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    beside: Sequence[float] = ()


@dataclass(frozen=True)
class Panel:
    """What is drawn in one pair of axes; y is in percent where `percent`."""

    title: str
    y: str
    bands: Sequence[Band] = field(default_factory=tuple)
    percent: bool = False


def panels(rows: Sequence[Sequence[Panel]], *, x: str, kind: str, letters: str = "path") -> bytes:
    """The file, of kind svg, pdf or png: rows of panels, one legend for all.

    letters    of an SVG: "path" for outlines, "none" for text in the font of the viewer

    Raises ReflError for no panel, for an unknown kind, and where matplotlib (the extra `figures`)
    is not installed.
    """
    kind = kind_of(kind)
    if not rows or not all(rows):
        raise ReflError(f"{argument('rows')} is empty: expected a panel or more")
    with styled(**{"svg.fonttype": letters}) as figure_of:
        most = max(map(len, rows))
        figure = figure_of((WIDE * most + 1.3, HIGH * len(rows)), layout="constrained")
        grid = figure.subplots(len(rows), most, squeeze=False)
        for axes_of, row in zip(grid, rows, strict=True):
            for axes, panel in zip(axes_of, row, strict=False):
                _draw(axes, panel, x)
            for axes in axes_of[len(row) :]:
                axes.set_axis_off()
        _legend(figure, grid[0][0])
        return saved(figure, kind)


def _draw(axes: Any, panel: Panel, x: str) -> None:
    for number, band in enumerate(panel.bands):
        _band(axes, band, number, 100.0 if panel.percent else 1.0)
    points = sorted({at for band in panel.bands for at in band.at})
    if panel.percent:
        axes.set_ylim(-3, 103)  # the same in all of them
    axes.set_xscale("log", base=2)
    axes.set_xticks(points, [f"{at:g}" for at in points])
    axes.minorticks_off()
    axes.set_title(shorten(one_line(panel.title), LONGEST_TITLE), fontsize=8, loc="left")
    axes.set_xlabel(shorten(one_line(x), LONGEST_LABEL))
    axes.set_ylabel(shorten(one_line(panel.y), LONGEST_LABEL))
    axes.grid(True, color="#d9dce1")
    axes.set_axisbelow(True)


def _band(axes: Any, band: Band, number: int, unit: float) -> None:
    color = COLORS[number % len(COLORS)]
    means, low, high = (
        unit * np.asarray(v, dtype=float) for v in (band.means, band.low, band.high)
    )
    axes.plot(
        band.at,
        means,
        color=color,
        linestyle=DASHES[number % len(DASHES)],
        marker=MARKERS[number % len(MARKERS)],
        markersize=3.2,
        linewidth=1.1,
        label=shorten(one_line(band.name), LONGEST_NAME),
    )
    axes.fill_between(band.at, low, high, color=color, alpha=0.15, lw=0)
    if len(band.beside):
        beside = unit * np.asarray(band.beside, dtype=float)
        axes.plot(band.at, beside, color=color, linewidth=0.5)


def _legend(figure: Any, axes: Any) -> None:
    """Beside the panels, where it hides nothing."""
    figure.legend(
        *axes.get_legend_handles_labels(),
        loc="outside right upper",
        frameon=False,
        fontsize=7,
        title="bands: 95 % intervals\nthin lines: random neurons\nof the same MLPs",
        title_fontsize=7,
        alignment="left",
        handlelength=3.4,
    )
