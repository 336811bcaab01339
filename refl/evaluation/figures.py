"""Curves with bands as figures for a paper: SVG, PDF, PNG, drawn by refl.show.curves. matplotlib is
imported only where a figure is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from refl.evaluation.results import GRID, Key, Results, band
from refl.evaluation.tables import axes
from refl.show import curves as drawn


def name(key: Key, kind: str) -> str:
    """Of a figure's file."""
    safe = re.sub(r"[^\w.=-]+", "-", f"{key[0]}-{key[1]}")
    return f"{safe[:120]}.{kind}"


def curves(r: Results, key: Key, kind: str) -> bytes:
    """The mean curves of all methods, each with a band of one standard error."""
    x, y = axes(r, key)
    return drawn.curves(
        list(_series(r, key)), title=f"{key[1]}, {len(r.names)} inputs", x=x, y=y, kind=kind
    )


def _series(r: Results, key: Key) -> Iterator[drawn.Curve]:
    """Of the methods that have one."""
    for m, label in enumerate(r.methods):
        low, mean, _ = band(r.curves[key][:, m])
        if np.isfinite(mean).all():
            yield drawn.Curve(label, mean, mean - low, np.linspace(0, 1, GRID))


def is_drawn(r: Results, key: Key) -> bool:
    """Whether any method has this curve."""
    return any(True for _ in _series(r, key))
