"""Random scores: the floor of every evaluation            R_t ~ N(0, 1), from a seeded generator

Not a method of anybody's; what every other has to be better than. The same input gets the same
scores: the generator starts from `draw` and the input's own numbers.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from refl import arguments
from refl.answer import Found
from refl.methods.base import Attribution
from refl.question import Forward, Question
from refl.seeds import AnySeed


@dataclass(frozen=True)
class Random(Attribution):
    """draw    another number gives other scores"""

    draw: int = 0

    name: ClassVar[str] = "random"
    summary: ClassVar[str] = "scores from a normal distribution: what any method has to be above"
    source: ClassVar[str] = "none: the control of an evaluation"
    passes: ClassVar[str] = "1 forward (to know the output)"
    conserved: ClassVar[str] = "nothing"
    unit: ClassVar[str] = "own"
    of_features: ClassVar[bool] = True
    of_answers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        draw = arguments.as_whole(self.draw)
        if draw is None or draw < 0:
            raise arguments.expected("draw", "a whole number of at least 0", self.draw)
        vars(self).update(draw=draw)

    def found(self, question: Question, forward: Forward, seed: AnySeed) -> Found:
        reading = forward.readings[0]
        if question.network.takes_images:
            numbers, shape = reading.input.pixels, reading.input.pixels.shape[1:]
        else:
            numbers, shape = np.asarray(reading.input), (len(reading.input),)
        return Found(
            self._scores(numbers, shape),
            None
            if reading.prefix is None
            else self._scores(np.asarray([-1, *reading.prefix]), (len(reading.prefix),)),
            seed.value(forward.rows[0]),
        )

    def _scores(self, numbers: Any, shape: tuple[int, ...]) -> Any:
        start = zlib.crc32(np.ascontiguousarray(numbers).tobytes())
        return np.random.default_rng((self.draw, start)).standard_normal(shape)
