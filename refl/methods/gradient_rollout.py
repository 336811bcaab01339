"""Gradient x attention rollout          C_l = mean over heads of (dA_l * A_l)^+    (eq. 5)
                                         R <- R + C_l R,  R = I at the start        (eq. 6)

score_i = R[t, i], t the explained position. dA_l is the gradient of what is explained. No row is
normalized; the identity that R starts from stays in it, so the explained position has 1 more than
what came to it through attention.

Encoder-decoder (s: the decoder's tokens, q: the encoder's; R_ss = I, R_qq = I, R_sq = 0):

    encoder               R_qq <- R_qq + C R_qq                                     (eq. 6)
    decoder               R_ss <- R_ss + C R_ss,  R_sq <- R_sq + C R_sq             (eqs. 6, 7)
    decoder to encoder    R_sq <- R_sq + N(R_ss)^T C N(R_qq)                        (eqs. 8 to 10)
                          R_ss <- R_ss + C R_qs                                     (eq. 11)
                          N(R) = I + (R - I) / row sums of R - I

An encoder reads nothing of the decoder, so R_qs = 0 and eq. 11 adds nothing. R_sq[t] are the
scores of the encoder's tokens, R_ss[t] those of the decoder's. Where a row of R - I is zero there
is nothing to normalize and N leaves it as it is (the published code, dividing 0 by 0 there, sets
what that makes undefined to 0).

Memory: the attention weights of every block and their gradients, H x T x T each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from refl.methods.attention_maps import (
    CROSS,
    SOURCE,
    AttentionMethod,
    BlockAttention,
    Maps,
    gradients,
    positive_mean,
    read,
    rows,
    started,
)
from refl.question import Forward, Question
from refl.seeds import AnySeed


@dataclass(frozen=True)
class GradientRollout(AttentionMethod):
    """It has no options."""

    name: ClassVar[str] = "gradient-rollout"
    summary: ClassVar[str] = "attention weights times their gradients, added up through the blocks"
    source: ClassVar[str] = (
        "Chefer et al. 2021, Generic Attention-model Explainability for Interpreting Bi-Modal and "
        "Encoder-Decoder Transformers, ICCV, arXiv 2103.15679, eqs. 5 to 11"
    )
    passes: ClassVar[str] = "1 forward, 1 gradient; H x T x T numbers for each block are held"
    conserved: ClassVar[str] = "nothing"

    def maps(
        self, question: Question, forward: Forward, seed: AnySeed, blocks: Sequence[BlockAttention]
    ) -> Maps:
        chosen, encoded = rows(question, forward, seed), any(b.kind == CROSS for b in blocks)
        reader, source = accumulated(blocks, gradients(question, forward, seed, blocks))
        return Maps(read(reader, chosen), read(source, chosen) if encoded else None)


def accumulated(
    blocks: Sequence[BlockAttention], gradient: Sequence[Any]
) -> tuple[Any, Any]:  # (H, J, I) each
    """R_ss (T, T) and R_sq (T, S) after the last block."""
    ss, sq, qq = started(blocks)
    for block, g in zip(blocks, gradient, strict=True):
        c = positive_mean(g * block.weights)
        if block.kind == SOURCE:
            qq = qq + c @ qq
        elif block.kind == CROSS:
            sq = sq + normalized(ss).T @ c @ normalized(qq)
        else:
            ss, sq = ss + c @ ss, sq + c @ sq
    return ss, sq


def normalized(r: Any) -> Any:  # (T, T) -> (T, T)
    """N(R), eqs. 8 and 9."""
    identity = np.eye(len(r))
    sums = (r - identity).sum(axis=1, keepdims=True)
    return identity + (r - identity) / np.where(sums == 0, 1, sums)
