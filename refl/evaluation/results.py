"""What an evaluation came to: the numbers of every input, method and metric, and all together.

A method stands out where it is the best by its mean, and the interval of its difference to every
other method, on the inputs of both, says that it is better.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from refl.errors import ReflError, shown
from refl.evaluation.judging import metric
from refl.evaluation.shards import Folder
from refl.evaluation.statistics import Difference, Summary, paired, summary

LEVEL, DRAWS = 0.95, 2000
"""Of the bootstrap intervals."""
GRID = 51
"""Points at which curves of inputs of different lengths are averaged."""

Key = tuple[str, str]
"""A metric, and a number or a curve of it."""


@dataclass(frozen=True)
class Results:
    """names       of the inputs
    methods     in the order of the rows
    values      metric and number -> (inputs, methods), nan where nothing can be said
    curves      metric and curve -> (inputs, methods, GRID), over the fraction of units replaced
    said        what was run: model, data, options
    """

    names: list[str]
    lines: list[int]
    methods: list[str]
    values: dict[Key, Any]
    curves: dict[Key, Any]
    said: Mapping[str, Any] = field(default_factory=dict)
    known: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def read(cls, folder: Folder) -> Results:
        """From all shards of a folder. Raises ReflError where one is no evaluation's, and for
        shards that do not hold every input once.
        """
        said = folder.run()
        try:
            found = _gathered(said, _rows(folder))
        except (KeyError, IndexError, TypeError, ValueError) as reason:
            raise ReflError(
                f"{shown(folder.path)} holds no evaluation: {type(reason).__name__} {reason}"
            ) from None
        _refuse_mixed(found, folder)
        return found

    # -- numbers -----------------------------------------------------------------------------------

    def larger_is_better(self, key: Key) -> bool | None:
        return metric(key[0]).larger_is_better.get(key[1])

    def mean(self, key: Key, method: int) -> Summary:
        return summary(self.values[key][:, method])

    def difference(self, key: Key, a: int, b: int) -> Difference:
        """Of method a less method b, on the same inputs."""
        if a > b:
            d = self.difference(key, b, a)
            return replace(d, mean=-d.mean, low=-d.high, high=-d.low)
        if (key, a, b) not in self.known:
            values = self.values[key]
            self.known[key, a, b] = paired(values[:, a], values[:, b], LEVEL, DRAWS)
        found: Difference = self.known[key, a, b]
        return found

    def outstanding(self, key: Key) -> int | None:
        """The number of the method that is better than every other, where there is one."""
        better = self.larger_is_better(key)
        means = [self.mean(key, m).mean for m in range(len(self.methods))]
        if better is None or len(means) < 2 or not all(map(math.isfinite, means)):
            return None
        best = int(np.argmax(means) if better else np.argmin(means))
        others = (self.difference(key, best, m) for m in range(len(means)) if m != best)
        return best if all(one.says_better(better) for one in others) else None


def _rows(folder: Folder) -> Iterator[dict[str, Any]]:
    for _, path in sorted(folder.finished().items()):
        for line in path.read_bytes().splitlines():
            yield json.loads(line)


def _gathered(said: dict[str, Any], rows: Iterable[dict[str, Any]]) -> Results:
    methods, count = list(said["options"]["methods"]), int(said["data"]["inputs"])
    r = Results([], [], methods, {}, {}, said)
    for row in rows:
        if not r.lines or r.lines[-1] != row["line"]:  # shards and their lines are in order
            r.lines.append(row["line"])
            r.names.append(row["name"])
        if len(r.lines) > count:  # there is no place for it: Results.read refuses them
            break
        at, shape = (len(r.lines) - 1, methods.index(row["method"])), (count, len(methods))
        for name, value in row["numbers"].items():
            _array(r.values, (row["metric"], name), shape)[at] = _number(value)
        for name, curve in row["curves"].items():
            _array(r.curves, (row["metric"], name), (*shape, GRID))[at] = on_grid(curve)
    return r


def _refuse_mixed(r: Results, folder: Folder) -> None:
    """Shards that are not all, or not of one run."""
    count = r.said["data"]["inputs"]
    if len(r.lines) != count or r.lines != sorted(set(r.lines)):
        raise ReflError(
            f"{shown(folder.path)} has shards that do not fit together: expected rows of {count} "
            f"inputs, each in one shard and in the order of the file, got {len(set(r.lines))}; "
            "give another folder"
        )


def _array(found: dict[Key, Any], key: Key, shape: tuple[int, ...]) -> Any:
    return found.setdefault(key, np.full(shape, np.nan))


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def on_grid(curve: list[float | None]) -> Any:  # (N + 1,) -> (GRID,)
    """At equal steps from nothing replaced to everything, straight lines between the states. Of one
    state there is no curve: nothing can be replaced, and the numbers of this input are nan, too.
    """
    y = np.asarray([_number(v) for v in curve], dtype=np.float64)
    if len(y) < 2:
        return np.full(GRID, np.nan)
    return np.interp(np.linspace(0, 1, GRID), np.linspace(0, 1, len(y)), y)


def has_curve(curves: Any) -> Any:  # (N, GRID) -> bool (N,)
    return np.isfinite(curves).all(axis=1)


def band(curves: Any) -> Any:  # (N, GRID) -> (3, GRID): mean less a standard error, mean, and more
    """Over the inputs that have a curve; of one there is no standard error."""
    x = curves[has_curve(curves)]
    if not len(x):
        return np.full((3, curves.shape[1]), np.nan)
    middle = x.mean(axis=0)
    few = np.full_like(middle, np.nan)
    error = x.std(axis=0, ddof=1) / math.sqrt(len(x)) if len(x) > 1 else few
    return np.stack([middle - error, middle, middle + error])
