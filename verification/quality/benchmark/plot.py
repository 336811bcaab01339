"""The figure of one kind of machine: seconds and memory against tokens, seconds against layers."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from refl.verification.quality.benchmark import results

Row = dict[str, Any]
Curve = tuple[list[int], list[float], list[float], list[float]]
"""x, and the median, least and most there."""

LOOKS = {
    "refl": {"color": "#b2182b", "marker": "o", "label": "refl, forward and sweep"},
    "refl forward": {"color": "#ef8a62", "marker": "o", "ls": "--", "label": "refl, forward alone"},
    "LXT": {"color": "#2166ac", "marker": "s", "label": "LXT, forward and backward"},
    "LXT forward": {"color": "#67a9cf", "marker": "s", "ls": "--", "label": "LXT, forward alone"},
}
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "refl",
    "font.family": "sans-serif",
    "font.sans-serif": ["Arial", "Helvetica", "DejaVu Sans"],
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def draw(found: results.Results, path: Path) -> str:
    """Writes an SVG (or PNG, by its name); what was done, in words."""
    if importlib.util.find_spec("matplotlib") is None:
        return f"{path.name} is not drawn: matplotlib is not installed (the extra `peers`)"
    matplotlib = importlib.import_module("matplotlib")
    with matplotlib.rc_context(STYLE):
        figure = _figure(found)
        metadata = {"Date": None} if path.suffix == ".svg" else {}
        figure.savefig(path, metadata=metadata, facecolor="white")
    return f"drawn: {path}"


def _figure(found: results.Results) -> Any:
    figure = importlib.import_module("matplotlib.figure").Figure((11, 3.9), layout="constrained")
    figure.suptitle(_heading(found), fontsize=10)
    by_tokens, by_layers = results.rows(found, "tokens"), results.rows(found, "depth")
    if by_tokens:
        by_tokens = [row for row in by_tokens if row["method"] == by_tokens[0]["method"]]
    panels = [
        (by_tokens, "tokens", seconds_of, "seconds"),
        (by_tokens, "tokens", memory_of, "MiB above the weights"),
        (by_layers, "layers", seconds_of, _depth_label(by_layers)),
    ]
    measured = [panel for panel in panels if panel[0]] or panels
    for axes, panel in zip(
        figure.subplots(1, len(measured), squeeze=False)[0], measured, strict=True
    ):
        _panel(axes, *panel, log=panel[1] == "tokens")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return figure


def _heading(found: results.Results) -> str:
    part = next(iter(found["parts"].values()))
    about, row = part["about"], part["rows"][0]
    on = about["gpu"]["name"] if "gpu" in about else f"{about['processor']}, {found['kind']}"
    threads = "" if "gpu" in about else f", {about['threads asked']} threads"
    return f"{row['model']}, {row['method']}, float32, on {on}{threads}, {about['date']}"


def _depth_label(rows: Sequence[Row]) -> str:
    return f"seconds, {rows[0]['tokens']} tokens" if rows else "seconds"


# -- one panel -------------------------------------------------------------------------------------


def seconds_of(row: Row, name: str) -> list[float]:
    return list(row["seconds"].get(name, []))


def memory_of(row: Row, name: str) -> list[float]:
    return [row["memory"][name]["rise"]] if name in row["memory"] else []


def curve(rows: Sequence[Row], x: str, values: Callable[..., list[float]], name: str) -> Curve:
    """Where a row has values of this name, the median between the least and the most."""
    points = [(row[x], values(row, name)) for row in rows]
    points = sorted((at, found) for at, found in points if found)
    middle, least, most = ([f(found) for _, found in points] for f in (median, min, max))
    return [at for at, _ in points], middle, least, most


def _panel(
    axes: Any, rows: Sequence[Row], x: str, values: Callable[..., list[float]], y: str, *, log: bool
) -> None:
    for name, look in LOOKS.items():
        at, middle, least, most = curve(rows, x, values, name)
        if at:
            axes.plot(at, middle, markersize=4, lw=1.4, **look)
            axes.fill_between(at, least, most, color=look["color"], alpha=0.15, lw=0)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(True, which="major", color="#dddddd", lw=0.6)
    if log:
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    else:
        axes.set_ylim(bottom=0)
    places = sorted({row[x] for row in rows if x in row})
    axes.set_xticks(places, [f"{at:,}" for at in places], rotation=45 if log else 0)
    axes.minorticks_off()
