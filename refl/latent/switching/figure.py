"""What switching does, drawn: flips and change against the number of neurons."""

from __future__ import annotations

from collections.abc import Sequence

from refl.latent.switching.results import NUMBERS, Switching
from refl.show.bands import Band, Panel, panels

X = "neurons switched, k"
Y = {"flips": "answers that flip, %", "change": "change of the contrast"}


def row(found: Switching, title: str) -> list[Panel]:
    """A panel for each number."""
    return [
        Panel(
            title if number == NUMBERS[0] else "",
            Y[number],
            [_band(found, number, ranking) for ranking in found.rankings],
            percent=number == "flips",
        )
        for number in NUMBERS
    ]


def _band(found: Switching, number: str, ranking: str) -> Band:
    means = [found.mean(number, ranking, k) for k in found.k]
    beside = []
    if found.has_beside(ranking):
        beside = [found.mean(number, ranking, k, True).mean for k in found.k]
    low, high = ([getattr(m, end) for m in means] for end in ("low", "high"))
    return Band(ranking, found.k, [m.mean for m in means], low, high, beside)


def figure(
    found: Sequence[tuple[str, Switching]], kind: str = "svg", letters: str = "path"
) -> bytes:
    """A row for each, under its title. Raises ReflError as `refl.show.bands.panels`."""
    return panels([row(one, title) for title, one in found], x=X, kind=kind, letters=letters)
