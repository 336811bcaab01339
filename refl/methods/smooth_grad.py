"""SmoothGrad: the mean gradient in a neighborhood of the input

    g = 1/n sum_k d f / d x (x + noise_k),    noise_k ~ N(0, s^2)           (Smilkov et al. 2017)
    R = |g|,  or sum_i g_i,  or with `times_input` the same of x * g

s is `noise` times the range of the input: the largest number minus the smallest among all of its
embeddings (all tokens, all features), or among its pixels; what a decoder has written has a range
of its own. Smilkov et al. take 0.1 to 0.2 of it, AttnLRP's authors tune it between 0.01 and 0.25
and do not multiply by x. The norm |g| over features (or channels) is what `gradient` scores by; the
sum keeps the sign, but is 0 where a LayerNorm is the first to read the embeddings (GPT-2, BERT):
adding a number to all features changes nothing there.

The noise of sample k is drawn from numpy.random.default_rng((draw, k)), for the input and then for
what a decoder has written: the same in any batch, for any number of samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np

from refl import arguments
from refl.answer import Found
from refl.explainer import lengths
from refl.explanation import MethodFacts
from refl.methods.base import Attribution
from refl.methods.copies import Copy, Leaves, found_of, gradients, leaves_of
from refl.question import Forward, Question
from refl.seeds import AnySeed

SCORES = ("norm", "sum")


@dataclass(frozen=True)
class SmoothGrad(Attribution):
    """
    noise          its standard deviation, in parts of the range of the input
    samples        gradients of noisy copies
    draw           another number draws other noise
    times_input    multiply the mean gradient by the input
    score          of a token's features (a pixel's channels): "norm", their length, or "sum"
    """

    noise: float = 0.1
    samples: int = 32
    draw: int = 0
    times_input: bool = False
    score: str = "norm"

    name: ClassVar[str] = "smoothgrad"
    summary: ClassVar[str] = "the gradient, averaged over noisy copies of the input"
    source: ClassVar[str] = (
        "Smilkov et al. 2017, SmoothGrad: removing noise by adding noise, arXiv 1706.03825"
    )
    passes: ClassVar[str] = "as many forwards and sweeps as `samples` says, batched"
    conserved: ClassVar[str] = "nothing"
    unit: ClassVar[str] = "own"
    of_features: ClassVar[bool] = True
    of_answers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        vars(self).update(
            noise=arguments.between("noise", self.noise, 0, 1),
            samples=arguments.positive("samples", self.samples),
            draw=arguments.whole("draw", self.draw),
            times_input=arguments.flag("times_input", self.times_input),
        )
        if self.draw < 0:
            raise arguments.expected("draw", "a whole number of at least 0", self.draw)
        if not isinstance(self.score, str) or self.score not in SCORES:
            raise arguments.expected("score", " or ".join(SCORES), self.score)

    def facts(self) -> MethodFacts:
        return replace(super().facts(), score=self.score)

    def found(self, question: Question, forward: Forward, seed: AnySeed) -> Found:
        x = leaves_of(forward)
        noisy = partial(self._noisy, x)
        copies = [Copy(forward.readings[0], partial(noisy, k)) for k in range(self.samples)]
        mean = {site: np.zeros(array.shape) for site, array in x.items()}
        for _, g in gradients(question, seed, copies):
            for site in mean:
                mean[site] += g[site].sum(axis=0, dtype=np.float64) / self.samples
        scores = [self._scores(mean[site], array) for site, array in x.items()]
        return found_of(scores, seed.value(forward.rows[0]))

    def _noisy(self, x: Leaves, k: int) -> Leaves:
        """The input with the noise of sample k."""
        random = np.random.default_rng((self.draw, k))
        return dict(self._each_noisy(x, random))

    def _each_noisy(self, x: Leaves, random: np.random.Generator) -> Iterator[tuple[str, Any]]:
        for site, array in x.items():
            s = self.noise * (float(array.max()) - float(array.min()))
            yield site, (array + s * random.standard_normal(array.shape)).astype(array.dtype)

    def _scores(self, g: Any, x: Any) -> Any:  # (T, D) -> (T,); (C, H, W) -> (H, W)
        found = g * x if self.times_input else g
        found = found if x.ndim == 2 else np.moveaxis(found, 0, -1)
        scores = lengths(found) if self.score == "norm" else found.sum(axis=-1)
        return scores.astype(x.dtype)
