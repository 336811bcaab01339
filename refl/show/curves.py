"""Curves of an evaluation as one figure: a line for each method, a band of one standard error
around it.

Curves are told apart by color (Okabe and Ito 2008, which the color-blind can tell apart) and once
more by dashes and markers, which a gray print keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from refl.arguments import expected
from refl.arrays import asnumpy
from refl.errors import ReflError, argument
from refl.show.plots import kind_of, saved, styled
from refl.show.text import one_line, shorten

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
"""Their counts have no common divisor: no two of the first 36 curves have both alike."""
MARKED = 8
"""Markers on a curve, about."""
LONGEST_NAME, LONGEST_LABEL, LONGEST_TITLE = 40, 80, 90
"""Characters."""
WIDE, HIGH = 5.5, 3.1
"""Inches: the width of a text column."""
BAND = "band: ± one standard error"


@dataclass(frozen=True, eq=False)
class Curve:
    """One method's curve.

    name      of the method
    values    (N + 1,): the mean at each state, the untouched input first
    errors    (N + 1,): its standard error, or None where there is none
    states    (N + 1,): where on the x axis the states are; 0, 1, ..., N unless they are said
    """

    name: str
    values: Any
    errors: Any = None
    states: Any = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise expected("name", "the name of a method", self.name)
        for name in ("values", "errors", "states"):
            if name == "values" or getattr(self, name) is not None:
                object.__setattr__(self, name, _numbers(name, getattr(self, name)))
        for name in ("errors", "states"):
            numbers = getattr(self, name)
            if numbers is not None and numbers.shape != self.values.shape:
                raise ReflError(
                    f"{argument(name)} of curve {self.name!r} are {len(numbers)} numbers: expected "
                    f"{len(self.values)}, one for each value"
                )
        if self.errors is not None and self.errors.min() < 0:
            raise ReflError(f"{argument('errors')} of curve {self.name!r}: one is negative")


def curves(series: Sequence[Curve], *, title: str, x: str, y: str, kind: str) -> bytes:
    """The file, of kind svg, pdf or png. `x` and `y` are the labels of the axes, units in them.

    Raises ReflError for no curve at all, numbers that are none, an unknown kind, and where
    matplotlib (the extra `figures`) is not installed.
    """
    kind, series = kind_of(kind), list(series)
    if not series:
        raise ReflError(f"{argument('series')} is empty: expected a curve or more")
    with styled() as figure_of:
        figure = figure_of((WIDE, HIGH), layout="constrained")
        axes = figure.subplots()
        for number, curve in enumerate(series):
            _draw(axes, curve, number)
        if all(curve.states is None for curve in series):
            axes.xaxis.get_major_locator().set_params(integer=True)
        _name(axes, title, x, y)
        _legend(axes, series)
        return saved(figure, kind)


def _draw(axes: Any, curve: Curve, number: int) -> None:
    color, (values, errors) = COLORS[number % len(COLORS)], (curve.values, curve.errors)
    at = np.arange(len(values)) if curve.states is None else curve.states
    every = max(1, len(values) // MARKED)
    axes.plot(
        at,
        values,
        color=color,
        linestyle=DASHES[number % len(DASHES)],
        marker=MARKERS[number % len(MARKERS)],
        markevery=(number % every, every),  # side by side where curves lie on each other
        markersize=3.2,
        linewidth=1.1,
        label=_said(curve.name, LONGEST_NAME),
    )
    if errors is not None:
        axes.fill_between(at, values - errors, values + errors, color=color, alpha=0.18, lw=0)


def _name(axes: Any, title: str, x: str, y: str) -> None:
    axes.set_title(_said(title, LONGEST_TITLE), fontsize=8.5, loc="left")
    axes.set_xlabel(_said(x, LONGEST_LABEL))
    axes.set_ylabel(_said(y, LONGEST_LABEL))
    axes.grid(True, color="#d9dce1")
    axes.set_axisbelow(True)
    axes.margins(x=0.01)


def _legend(axes: Any, series: Sequence[Curve]) -> None:
    """Beside the axes, where it hides no curve."""
    axes.legend(
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
        frameon=False,
        fontsize=7,
        title=BAND if any(c.errors is not None for c in series) else None,
        title_fontsize=7,
        alignment="left",
        handlelength=3.4,
    )


def _said(text: str, most: int) -> str:
    """On one line, printable. A label that begins with _ would be left out of the legend."""
    said = shorten(one_line(text), most)
    return f"\u200a{said}" if said.startswith("_") else said


def _numbers(name: str, values: Any) -> Any:
    """(N + 1,), finite, two or more. Raises ReflError for anything else."""
    try:
        listed = isinstance(values, (list, tuple))
        array = np.asarray(values if listed else asnumpy(values), dtype=np.float64)
    except (AttributeError, TypeError, ValueError):
        raise expected(name, "an array of numbers, one for each state", values) from None
    if array.ndim != 1 or len(array) < 2 or not np.isfinite(array).all():
        raise expected(name, "an array of two or more finite numbers, one for each state", values)
    return array
