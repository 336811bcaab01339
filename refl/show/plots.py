"""Files drawn with matplotlib, where it is installed: SVG, PDF and PNG, the same bytes every time.

Nobody's settings are used (a matplotlibrc may ask for TeX, which runs what it is told), and no text
is read as a formula: `$x$` is three characters. Fonts are embedded whole as TrueType (Type 42),
which journals ask for, and are those that come with matplotlib.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from refl.errors import ReflError, argument
from refl.extras import install
from refl.version import __version__

KINDS = ("svg", "pdf", "png")
"""Of files."""
DPI = 200
"""Of a PNG."""

STYLE: dict[str, Any] = {
    "text.usetex": False,
    "text.parse_math": False,
    "axes.unicode_minus": True,
    "font.family": ["DejaVu Sans"],
    "font.size": 8,
    "pdf.fonttype": 42,
    "svg.fonttype": "path",  # letters as outlines: what is drawn depends on no viewer's fonts
    "svg.hashsalt": "refl",
    "svg.id": None,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "grid.linewidth": 0.4,
    "hatch.linewidth": 0.6,
}
_UNDATED: dict[str, dict[str, Any]] = {
    "svg": {"Date": None, "Creator": f"refl {__version__}"},
    "pdf": {"CreationDate": None, "Creator": f"refl {__version__}"},
    "png": {"Software": f"refl {__version__}"},
}


def library(module: str = "matplotlib") -> Any:
    """matplotlib, or a module of it. Raises ReflError where it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ReflError(
            f"matplotlib is not installed, and draws this file: {install('figures')}"
        ) from None


@contextmanager
def styled(**more: Any) -> Iterator[Any]:
    """Figures are made and saved within: matplotlib's own defaults, STYLE on top, and `more`."""
    styles = library("matplotlib.style")
    known = library().rcParams
    style = {key: v for key, v in (STYLE | more).items() if key in known}
    with styles.context(["default", style]):
        yield library("matplotlib.figure").Figure


def saved(figure: Any, kind: str) -> bytes:
    """The file, without a date and without a number made up at random."""
    file = io.BytesIO()
    figure.savefig(file, format=kind, metadata=_UNDATED[kind], dpi=DPI)
    return file.getvalue()


def kind_of(kind: Any) -> str:
    """Raises ReflError for what is no kind of file that is drawn."""
    if kind not in KINDS:
        raise ReflError(f"{argument('kind')} is {kind!r}: expected one of {', '.join(KINDS)}")
    return str(kind)
