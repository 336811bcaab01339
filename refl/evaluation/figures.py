"""Curves with bands as figures for a paper: SVG, PDF, PNG. matplotlib is imported here alone, and
only where a figure is asked for.
"""

from __future__ import annotations

import io
import re
from importlib import import_module
from typing import Any

import numpy as np

from refl.errors import ReflError
from refl.evaluation.page import COLORS
from refl.evaluation.results import GRID, Key, Results, band
from refl.extras import install

KINDS = ("svg", "pdf", "png")
STYLES = ("-", "--", ":", "-.")
CREATOR = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}
"""Without dates: the same results give the same file."""


def matplotlib() -> Any:
    """Raises ReflError where it is not installed."""
    try:
        import_module("matplotlib.figure")
        return import_module("matplotlib")
    except ImportError:
        raise ReflError(f"figures need matplotlib: {install('figures')}") from None


def name(key: Key, kind: str) -> str:
    """Of a figure's file."""
    safe = re.sub(r"[^\w.=-]+", "-", f"{key[0]}-{key[1]}")
    return f"{safe[:120]}.{kind}"


def curves(r: Results, key: Key, kind: str) -> bytes:
    """The mean curves of all methods, each with a band of one standard error."""
    library = matplotlib()
    with library.rc_context({"svg.hashsalt": "refl", "svg.fonttype": "none"}):
        figure = library.figure.Figure(figsize=(6.4, 4.0), layout="constrained")
        axes = figure.subplots()
        for m, label in enumerate(r.methods):
            _line(axes, band(r.curves[key][:, m]), m, label)
        axes.set_xlabel("fraction of units replaced, or brought back")
        axes.set_ylabel(_plain(r.said["options"]["seed"]))
        axes.set_title(_plain(f"{key[1]}, {len(r.names)} inputs"), fontsize="medium")
        axes.legend(fontsize="x-small", ncols=2)
        out = io.BytesIO()
        figure.savefig(out, format=kind, dpi=200, metadata=CREATOR[kind])
    return out.getvalue()


def _line(axes: Any, found: Any, m: int, label: str) -> None:  # (3, GRID)
    if not np.isfinite(found).all():
        return
    x, color = np.linspace(0, 1, GRID), COLORS[m % len(COLORS)]
    style = STYLES[m // len(COLORS) % len(STYLES)]
    axes.fill_between(x, found[0], found[2], color=color, alpha=0.15, linewidth=0)
    axes.plot(x, found[1], color=color, linestyle=style, label=_plain(label))


def _plain(text: str) -> str:
    """Text that is no formula and no secret label."""
    return f"\u200b{text}".replace("$", r"\$") if text.startswith("_") else text.replace("$", r"\$")
