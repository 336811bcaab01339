"""Curves with bands as figures for a paper: SVG, PDF, PNG, drawn by refl.show.curves. matplotlib is
imported only where a figure is asked for.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator

import numpy as np

from refl.evaluation.results import GRID, Key, Results, band
from refl.evaluation.tables import axes, inputs
from refl.show import curves as drawn

LONGEST = 120
"""Characters of a file's name."""


def name(key: Key, kind: str) -> str:
    """Of a figure's file. Characters that a file's name should not have become dashes; a hash then
    keeps the names of two metrics apart: the baselines <s> and </s> say.
    """
    said = f"{key[0]}-{key[1]}"
    safe = re.sub(r"[^\w.=-]+", "-", said, flags=re.ASCII)[:LONGEST]
    more = "" if safe == said else f"-{hashlib.sha256(repr(key).encode()).hexdigest()[:8]}"
    return f"{safe}{more}.{kind}"


def curves(r: Results, key: Key, kind: str) -> bytes:
    """The mean curves of all methods, each with a band of one standard error where several inputs
    have one.
    """
    x, y = axes(r, key)
    title = f"{key[1]}, {inputs(r, key)} ({key[0]})"
    return drawn.curves(list(_series(r, key)), title=title, x=x, y=y, kind=kind)


def _series(r: Results, key: Key) -> Iterator[drawn.Curve]:
    """Of the methods that have one."""
    for m, label in enumerate(r.methods):
        low, mean, _ = band(r.curves[key][:, m])
        if np.isfinite(mean).all():
            error = mean - low if np.isfinite(low).all() else None
            yield drawn.Curve(label, mean, error, np.linspace(0, 1, GRID))


def is_drawn(r: Results, key: Key) -> bool:
    """Whether any method has this curve."""
    return any(True for _ in _series(r, key))
