"""Occlusion and leave-one-out: what is explained, less the same without a part of the input

    d_w = f(x) - f(x without w)                    (Zeiler and Fergus 2014; Li et al. 2016)

for windows w: so many tokens, or pixels, at every `stride`. A token's score is the mean of d_w over
the windows that it is in (a window counts in full for each of its tokens, and the last ones end at
the border), as captum averages them. Of whole words every token gets its part of the word's d, all
the same, so that a word, which is the sum of its tokens, has d.

Left out by a fill, the window's embeddings are replaced and nothing else is: positions and the
token that a classifier reads stay. Left out by "delete", the tokens are gone and the rest moves up.
Then
    where the last token before the next one is deleted, f is the same output, read at the last
    token that is left: what the model guesses to come after the shorter text;
    where nothing else could be read, a token is never deleted and its score is 0: the mask token
    that is guessed, the token whose features are explained, the token a decoder starts with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np

from refl import arguments
from refl.answer import Found
from refl.errors import ReflError, argument
from refl.methods.base import Attribution
from refl.methods.copies import Copy, Leaves, deleted, filling, found_of, leaves_of, values
from refl.network import GENERATES, Network
from refl.question import Forward, Question
from refl.seeds import AnySeed

DELETE = "delete"

Window = tuple[Any, ...]
"""What is left out at once, as an index into the tokens (T,), or the pixels (H, W)."""


@dataclass(frozen=True)
class Occlusion(Attribution):
    """
    fill      what stands in the place of what is left out: "zero"; "mean"; of tokens "mask", "unk",
              "pad", or any by its text or id; of pixels "blur" or a number; "delete" for tokens
    window    tokens, or pixels (height and width, or one number for both); by default one token, or
              one patch
    stride    from one window to the next; by default one token, or a window of pixels
    words     leave out whole words, in place of windows
    """

    fill: str | float = "zero"
    window: int | tuple[int, int] | None = None
    stride: int | tuple[int, int] | None = None
    words: bool = False

    name: ClassVar[str] = "occlusion"
    summary: ClassVar[str] = "how much the output falls without a token, a word or a patch"
    source: ClassVar[str] = (
        "Zeiler and Fergus 2014, Visualizing and Understanding Convolutional Networks, ECCV, arXiv "
        "1311.2901; Li et al. 2016, Understanding Neural Networks through Representation Erasure, "
        "arXiv 1612.08220"
    )
    passes: ClassVar[str] = "1 forward, and 1 for every token, word or window, batched"
    conserved: ClassVar[str] = "nothing"

    def __post_init__(self) -> None:
        vars(self).update(
            words=arguments.flag("words", self.words), fill=arguments.number_or_none(self.fill)
        )
        for name, value in (("window", self.window), ("stride", self.stride)):
            if value is not None:
                pair = _pair(name, value)
                vars(self)[name] = pair if arguments.as_whole(value) is None else pair[0]
                if self.words:
                    raise ReflError(
                        f"{argument('words')} are windows of their own: leave {argument(name)} out"
                    )

    def refuse(self, network: Network) -> None:
        if network.takes_images and self.words:
            raise ReflError(f"a picture has no {argument('words')}: leave the option out")
        if network.takes_images and self.fill == DELETE:
            raise ReflError(
                "pixels cannot be deleted: take occlusion with a fill ('zero', 'mean', 'blur' or a "
                "number)"
            )
        if self.words and network.text is None:
            raise ReflError(
                f"{network.name or 'the model'} has no tokenizer to say where "
                f"{argument('words')} begin: leave the option out"
            )
        sizes = (self.window, self.stride)
        if not network.takes_images and not all(s is None or arguments.as_whole(s) for s in sizes):
            raise ReflError(
                f"a window of tokens has a length: give {argument('window')} and "
                f"{argument('stride')} one number each"
            )

    def found(self, question: Question, forward: Forward, seed: AnySeed) -> Found:
        x = leaves_of(forward)
        windows = [(site, w) for site in x for w in self._windows(question, forward, site)]
        copies = self._copies(question, forward, windows)
        explained = seed.value(forward.rows[0])
        lost = explained - values(question, seed, copies)
        scores = {site: _Mean(array) for site, array in x.items()}
        for (site, window), d in zip(windows, lost, strict=True):
            scores[site].add(window, d / len(window[0]) if self.words else d)
        return found_of([mean.scores for mean in scores.values()], explained)

    # -- windows -----------------------------------------------------------------------------------

    def _windows(self, question: Question, forward: Forward, site: str) -> list[Window]:
        shape = forward.leaf(site).shape[1:]
        if len(shape) == 3:
            patch = question.network.config.patch
            size = patch if self.window is None else _pair("window", self.window)
            step = size if self.stride is None else _pair("stride", self.stride)
            spans = [_spans(n, w, s) for n, w, s in zip(shape[1:], size, step, strict=True)]
            return [(rows, columns) for rows in spans[0] for columns in spans[1]]
        tokens = self._tokens(question, forward, site)
        fixed = self._fixed(question, forward, site) if self.fill == DELETE else None
        left = [[t for t in some if t != fixed] for some in tokens]
        return [(some,) for some in left if some]

    def _tokens(self, question: Question, forward: Forward, site: str) -> list[list[int]]:
        ids = _ids(forward, site)
        if self.words and question.network.text is not None:
            starts = question.network.text.starts(ids)
            first = [t for t, starting in enumerate(starts) if starting or t == 0]
            return [list(range(a, b)) for a, b in zip(first, [*first[1:], len(ids)], strict=True)]
        size = 1 if self.window is None else arguments.positive("window", self.window)
        step = 1 if self.stride is None else arguments.positive("stride", self.stride)
        return [list(range(len(ids)))[span] for span in _spans(len(ids), size, step)]

    @staticmethod
    def _fixed(question: Question, forward: Forward, site: str) -> int | None:
        """The token that is never deleted."""
        if site in forward.decoder_embedded:
            return 0
        generates = question.network.task in GENERATES
        return None if generates or forward.positions is None else int(forward.positions[0])

    # -- without them ------------------------------------------------------------------------------

    def _copies(
        self, question: Question, forward: Forward, windows: Sequence[tuple[str, Window]]
    ) -> list[Copy]:
        reading = forward.readings[0]
        if self.fill == DELETE:
            written = set(forward.decoder_embedded)
            return [
                deleted(question, reading, *(((), w) if site in written else (w,)))
                for site, (w,) in windows
            ]
        x = leaves_of(forward)
        fills = {site: filling(question.network, forward, site, self.fill) for site in x}
        return [Copy(reading, partial(_without, x, fills, site, w)) for site, w in windows]


@dataclass(frozen=True)
class LeaveOneOut(Occlusion):
    """As Occlusion, tokens deleted by default."""

    fill: str | float = DELETE

    name: ClassVar[str] = "leave-one-out"
    summary: ClassVar[str] = "how much the output falls once a token is deleted"
    source: ClassVar[str] = (
        "Li et al. 2016, Understanding Neural Networks through Representation Erasure, arXiv "
        "1612.08220"
    )


def _ids(forward: Forward, site: str) -> list[int]:
    reading = forward.readings[0]
    prefix: list[int] | None = reading.prefix
    return prefix if prefix is not None and site in forward.decoder_embedded else reading.input


def _without(x: Leaves, fills: Leaves, site: str, window: Window) -> Leaves:
    """Everything as it was but what is in the window."""
    changed = x[site].copy()
    index = (..., *window) if changed.ndim == 3 else window
    changed[index] = fills[site][index]
    return {**x, site: changed}


def _spans(length: int, size: int, step: int) -> list[slice]:
    """Until the border is reached; the last are cut there."""
    count = max(0, -(-(length - size) // step)) + 1
    return [slice(n * step, min(n * step + size, length)) for n in range(count)]


def _pair(name: str, value: Any) -> tuple[int, int]:
    """Height and width, from both or from one number. Raises ReflError for anything else."""
    both = arguments.members(value) or [value, value]
    if len(both) != 2 or not all((arguments.as_whole(n) or 0) > 0 for n in both):
        raise arguments.expected(name, "a whole number above 0, or height and width", value)
    return int(both[0]), int(both[1])


class _Mean:
    """Of the differences, over the windows that a token or a pixel is in."""

    def __init__(self, x: Any) -> None:  # (T, D) or (C, H, W)
        shape = x.shape[:1] if x.ndim == 2 else x.shape[1:]
        self.sums, self.counts, self.dtype = np.zeros(shape), np.zeros(shape), x.dtype

    def add(self, window: Window, d: float) -> None:
        self.sums[window] += d
        self.counts[window] += 1

    @property
    def scores(self) -> Any:  # -> (T,), or (H, W)
        """0 where no window is."""
        return (self.sums / np.maximum(self.counts, 1)).astype(self.dtype)
