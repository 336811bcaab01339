"""Grad-CAM for attention          R_i = mean over heads of (dA_L[h, t, i] A_L[h, t, i])^+

A_L (H, T, T) are the attention weights of the last block, dA_L the gradient of what is explained,
t the explained position: Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391) with weights in place
of feature maps, as the AttnLRP paper (arXiv 2402.05602, appendix B) and Chefer et al. 2021
(arXiv 2012.09838, section 4) compare it.

An encoder-decoder has two of them in its last block: self-attention scores the decoder's tokens,
attention to the encoder those of the encoder.

Nothing adds up to anything. Where every product is negative the map is zero. Memory: the attention
weights of every block and their gradients, H x T x T each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from refl.methods.attention_maps import (
    CROSS,
    READER,
    AttentionMethod,
    BlockAttention,
    Maps,
    gradients,
    positive_mean,
    read,
    rows,
)
from refl.question import Forward, Question
from refl.seeds import AnySeed


@dataclass(frozen=True)
class GradCam(AttentionMethod):
    """It has no options."""

    name: ClassVar[str] = "grad-cam"
    summary: ClassVar[str] = "attention weights of the last block times their gradients, positive"
    source: ClassVar[str] = (
        "Selvaraju et al. 2017, Grad-CAM, arXiv 1610.02391; on attention weights: Chefer et al. "
        "2021, arXiv 2012.09838"
    )
    passes: ClassVar[str] = "1 forward, 1 gradient; H x T x T numbers for each block are held"
    conserved: ClassVar[str] = "nothing"

    def maps(
        self, question: Question, forward: Forward, seed: AnySeed, blocks: Sequence[BlockAttention]
    ) -> Maps:
        last = [[b for b in blocks if b.kind == kind][-1:] for kind in (READER, CROSS)]
        chosen = rows(question, forward, seed)
        of_kind = [
            read(positive_mean(gradient * block.weights), chosen)
            for one in last
            for block, gradient in zip(one, gradients(question, forward, seed, one), strict=True)
        ]
        return Maps(*of_kind)
