"""Attention rollout          R_l = B_l R_{l-1},  R_0 = I,  score_i = R_L[t, i], t explained

    rows     B = (A + I) / 2, rows divided by their sum        (Abnar and Zuidema 2020, section 3)
    none     B = A + I                                         (AttnLRP paper, eq. 23)

A (T, T) is the mean over heads of a block's attention weights (or their largest, or their
smallest); I stands for the residual connection. What is explained plays no part but by its
position: every target gets the same scores.

`rows` is the default, the original: its rows sum to 1, so a score is a fraction of the whole. With
the mean over heads and nothing discarded `none` is 2^L times that, the same order of tokens.

`discard`: in each row the lowest fraction of the weights that are not 0 (masked keys are no
candidates) is set to 0, the first token's weight never; of equal ones those of earlier tokens go
first. What is kept is divided as `rows` says; under `none` it is scaled to the sum that the row
had. A known code does three other things there: it ranks the pairs of a whole block at once, so
that a row may lose everything and another nothing; it spares the one pair of the first token with
itself, not the first token's column; and it divides column i by the sum of row i, so that rows no
longer sum to 1.

An encoder-decoder is rolled out as one graph: attention to the encoder leads from a decoder's token
to the encoder's last states, so R of the decoder has columns for both.

Memory: the attention weights of every block, H x T x T each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from refl import arguments
from refl.methods.attention_maps import (
    CROSS,
    SOURCE,
    AttentionMethod,
    BlockAttention,
    Maps,
    read,
    rows,
    started,
)
from refl.question import Forward, Question
from refl.seeds import AnySeed

NORMALIZATIONS = ("rows", "none")
HEADS: dict[str, Callable[[Any], Any]] = {
    "mean": lambda a: a.mean(axis=0),
    "max": lambda a: a.max(axis=0),
    "min": lambda a: a.min(axis=0),
}


@dataclass(frozen=True)
class AttentionRollout(AttentionMethod):
    """normalization    rows (rows sum to 1, the original), or none
    heads               mean, max or min over heads
    discard             fraction of each row's weights that is set to 0, at least 0 and below 1
    """

    normalization: str = "rows"
    heads: str = "mean"
    discard: float = 0.0

    name: ClassVar[str] = "attention-rollout"
    summary: ClassVar[str] = "attention multiplied through the blocks; the target plays no part"
    source: ClassVar[str] = (
        "Abnar and Zuidema 2020, Quantifying Attention Flow in Transformers, ACL, arXiv 2005.00928"
    )
    passes: ClassVar[str] = "1 forward; H x T x T numbers for each block are held"
    conserved: ClassVar[str] = "scores sum to 1 (rows)"

    def __post_init__(self) -> None:
        arguments.one_of("normalization", self.normalization, NORMALIZATIONS)
        arguments.one_of("heads", self.heads, HEADS)
        discard = arguments.number("discard", self.discard)
        if not 0 <= discard < 1:
            raise arguments.expected("discard", "a number of at least 0 and below 1", self.discard)

    def maps(
        self, question: Question, forward: Forward, seed: AnySeed, blocks: Sequence[BlockAttention]
    ) -> Maps:
        chosen, encoded = rows(question, forward, seed), any(b.kind == CROSS for b in blocks)
        reader, source = self.rolled_out(blocks)
        return Maps(read(reader, chosen), read(source, chosen) if encoded else None)

    def rolled_out(self, blocks: Sequence[BlockAttention]) -> tuple[Any, Any]:
        """R_L (T, T) of the tokens whose outputs are explained, and what it has of an encoder's
        (T, S).
        """
        reader, to_source, source = started(blocks)
        for block in blocks:
            a = self._kept(HEADS[self.heads](block.weights))
            scale = self._scale(a)
            if block.kind == SOURCE:
                source = (a @ source + source) * scale
            elif block.kind == CROSS:
                reader, to_source = reader * scale, (a @ source + to_source) * scale
            else:
                reader, to_source = (
                    (a @ reader + reader) * scale,
                    (a @ to_source + to_source) * scale,
                )
        return reader, to_source

    def _scale(self, a: Any) -> Any:  # (J, I) -> (J, 1)
        """1 over the sums of the rows of A + I; or 1."""
        sums = a.sum(axis=1, keepdims=True)
        return 1 / (sums + 1) if self.normalization == "rows" else np.ones_like(sums)

    def _kept(self, a: Any) -> Any:  # (J, I) -> (J, I)
        """A without the lowest weights of each row."""
        if not self.discard:
            return a
        kept = np.stack([_without_lowest(row, self.discard) for row in a])
        if self.normalization == "rows":
            return kept
        before, after = a.sum(axis=1, keepdims=True), kept.sum(axis=1, keepdims=True)
        return kept * np.divide(before, after, out=np.zeros_like(after), where=after != 0)


def _without_lowest(row: Any, fraction: float) -> Any:  # (I,) -> (I,)
    """With the lowest fraction of its weights above 0 at 0, the first token's never among them."""
    order = np.argsort(row, kind="stable")
    candidates = order[(row[order] > 0) & (order != 0)]
    kept = row.copy()
    count = fraction * np.count_nonzero(row > 0)
    kept[candidates[: math.floor(count * (1 + 1e-12))]] = 0  # 0.29 of 100 are 29
    return kept
