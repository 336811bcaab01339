"""Runs that alternate, and the figures made of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median, quantiles
from typing import Any

Ways = Mapping[str, Callable[[], Mapping[str, float]]]
"""Each side's run; what it returns is seconds by name."""

Seconds = dict[str, list[float]]
"""Name -> seconds, round by round."""

FEWEST = 3
"""Rounds, however long they take, where more than these are asked for."""

PAUSE = 0.05
"""Seconds before each side: the threads of the side before it wait for work by spinning, OpenBLAS's
for 2^26 cycles, and would take the cores from the next."""

SHORT, BURST = 0.2, 5
"""A run of fewer seconds than SHORT is one of so many in a row, of which the median counts: the
first after the pause finds its threads asleep and its caches cold."""


def timed(
    run: Callable[[], Any], synchronize: Callable[[], object] = lambda: None
) -> tuple[Any, float]:
    """What it returns, and seconds. `synchronize` waits until a device has done its work."""
    synchronize()
    start = time.perf_counter()
    result = run()
    synchronize()
    return result, time.perf_counter() - start


def alternated(ways: Ways, repeat: int, patience: float) -> Seconds:
    """`repeat` rounds of every side, the odd ones in reverse; fewer (but FEWEST) once `patience`
    seconds have gone by. The sides have run before.
    """
    found: Seconds = {}
    start = time.perf_counter()
    for number in range(repeat):
        for way in list(ways)[::-1] if number % 2 else list(ways):
            time.sleep(PAUSE)
            for name, seconds in _steady(ways[way]).items():
                found.setdefault(name, []).append(seconds)
        if number + 1 >= FEWEST and time.perf_counter() - start > patience:
            break
    return found


def _steady(way: Callable[[], Mapping[str, float]]) -> Mapping[str, float]:
    first = way()
    if sum(first.values()) > SHORT:
        return first
    burst = [way() for _ in range(BURST)]
    return {name: median(each[name] for each in burst) for name in first}


def quotients(seconds: Mapping[str, list[float]], over: str, under: str) -> list[float]:
    """Round by round, so that a machine that slows down slows both."""
    return [a / b for a, b in zip(seconds[over], seconds[under], strict=True)]


def spread(values: list[float]) -> tuple[float, float, float]:
    """Median, and the quartiles: between them lies the middle half of the rounds."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    lower, middle, upper = quantiles(values, n=4, method="inclusive")
    return middle, lower, upper
