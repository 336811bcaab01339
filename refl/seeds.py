"""What to explain: the relevance a sweep starts from.

A seed is written as the gradient s of the explained quantity with respect to the logits z; the
relevance form starts from z s.

    logit              z_a                          s = e_a               sum of the seed: z_a
    contrast           z_a - z_b                    s = e_a - e_b         z_a - z_b
    log-probability    log p_a, linearized          s = e_a - p           z_a - sum_k p_k z_k
    probability        softmax-weighted             relevance p_a (1 - p_a) at a, -p_a p_k elsewhere
                                                    (Iwana et al. 2019): sums to 0
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from refl.errors import ReflError

KINDS = ("logit", "log-probability", "probability")


@dataclass(frozen=True)
class Seed:
    """One example's seed: token ids, and the kind."""

    kind: str
    target: int
    against: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ReflError(f"unknown seed {self.kind!r}: expected one of {', '.join(KINDS)}")
        if self.against is not None and self.kind != "logit":
            raise ReflError(
                "a contrast is a difference of logits: it cannot be combined with the "
                f"seed {self.kind!r}"
            )
        if self.against == self.target:
            raise ReflError("a contrast needs two different tokens, got the same one twice")

    def gradient(self, z: Any) -> Any:  # logits (V,) -> s (V,), NumPy
        """s, in the dtype of the logits."""
        if self.kind == "probability":
            return np.divide(self._softmax_weighted(z), z, out=np.zeros_like(z), where=z != 0)
        s = np.zeros_like(z)
        s[self.target] = 1
        if self.against is not None:
            s[self.against] = -1
        return s - softmax(z) if self.kind == "log-probability" else s

    def relevance(self, z: Any) -> Any:  # logits (V,) -> z s (V,), NumPy
        return self._softmax_weighted(z) if self.kind == "probability" else z * self.gradient(z)

    def _softmax_weighted(self, z: Any) -> Any:
        p = softmax(z)
        weighted = -p[self.target] * p
        weighted[self.target] = p[self.target] * (p.sum() - p[self.target])
        return weighted


def softmax(z: Any) -> Any:  # (V,) -> (V,), NumPy
    e = np.exp(z - z.max())
    return e / e.sum()
