"""What to explain: the relevance a sweep starts from.

A seed is written as the gradient s of the explained quantity with respect to the logits z; the
relevance form starts from z s. 1 - p_a is the sum of the other probabilities: subtracted from 1 it
would be 0 in float32 from a lead of 17 on. Probabilities are taken in float64 whatever the dtype.

    logit              z_a                          s = e_a               sum of the seed: z_a
    contrast           z_a - z_b                    s = e_a - e_b         z_a - z_b
    log-probability    log p_a, linearized          s = e_a - p           z_a - sum_k p_k z_k
    probability        softmax-weighted             relevance p_a (1 - p_a) at a, -p_a p_k elsewhere
                                                    (Iwana et al. 2019): sums to 0

The gradient of the last is that relevance over z. At a logit of exactly 0 there is none: what the
gradient x input form cannot start from there is `unpropagated`, and absorbed as `stabilizer` at the
logits, as the relevance form without a stabilizer has it.

A method that has no sweep (a finite difference, a path of gradients) explains the number itself,
`value`: z_a, z_a - z_b, log p_a or p_a, whose gradient is `derivative`. For logits and their
differences, and for log p_a, that gradient is s.

z is what is explained, flattened: the logits of one row, or those of several behind each other, of
which a `Sum` explains some together. Features z of a token (or their mean over T tokens, z_td / T
summed) are explained by one of them, or by how they point to a vector v:

    cosine             z.v / (|z| |v|)           s = v / (|z| |v|), the norm constant, as AttnLRP
                                                 holds those of a net's norms: sums to the cosine
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from refl.arguments import received
from refl.errors import ReflError, argument

KINDS = ("logit", "log-probability", "probability")


class AnySeed(Protocol):
    """What is explained of one example's z, the explained array flattened, (V,) NumPy."""

    @property
    def kind(self) -> str:
        """Its name, in an explanation: one of KINDS, or its own."""

    def gradient(self, z: Any) -> Any:
        """s (V,), in the dtype of z: where a sweep in gradient x input form starts."""

    def relevance(self, z: Any) -> Any:
        """z s (V,): where one in relevance form starts."""

    def value(self, z: Any) -> float:
        """The explained number, in float64."""

    def derivative(self, z: Any) -> Any:
        """Of `value` with respect to z, (V,)."""

    def unpropagated(self, z: Any) -> float:
        """Relevance of the seed that no gradient times z gives."""

    @property
    def asked(self) -> tuple[Any, Any]:
        """The target that asks for it again, and what that is contrasted with, or None."""


@dataclass(frozen=True)
class Seed:
    """One example's seed: token ids, and the kind."""

    kind: str
    target: int
    against: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or self.kind not in KINDS:
            raise ReflError(
                f"unknown {argument('seed')} {received(self.kind)}: expected one of "
                f"{', '.join(KINDS)}"
            )
        if self.against is not None and self.kind != "logit":
            raise ReflError(
                "a contrast is a difference of logits: it cannot be combined with the "
                f"{argument('seed')} {self.kind!r}"
            )
        if self.against == self.target:
            raise ReflError("a contrast needs two different tokens, got the same one twice")

    def gradient(self, z: Any) -> Any:  # logits (V,) -> s (V,), NumPy
        """s, in the dtype of the logits."""
        if self.kind == "probability":
            return self._over_logits(z)
        s = np.zeros_like(z)
        s[self.target] = 1
        if self.against is not None:
            s[self.against] = -1
        return self._less_softmax(z) if self.kind == "log-probability" else s

    def relevance(self, z: Any) -> Any:  # logits (V,) -> z s (V,), NumPy
        return self._softmax_weighted(z) if self.kind == "probability" else z * self.gradient(z)

    def value(self, z: Any) -> float:  # logits (V,), NumPy
        """What is explained, in float64."""
        if self.kind == "probability":
            return float(softmax(z)[self.target])
        if self.kind == "log-probability":
            return -_log1p_sum(np.delete(z.astype(np.float64) - float(z[self.target]), self.target))
        less = 0.0 if self.against is None else float(z[self.against])
        return float(z[self.target]) - less

    def derivative(self, z: Any) -> Any:  # logits (V,) -> (V,), NumPy
        """Of `value` with respect to the logits, in their dtype."""
        if self.kind == "probability":
            return (softmax(z)[self.target] * self._less_softmax(z)).astype(z.dtype)
        return self.gradient(z)

    def unpropagated(self, z: Any) -> float:  # logits (V,), NumPy
        """Relevance of the seed that no gradient times the logits gives."""
        if self.kind != "probability":
            return 0.0
        lost = self._softmax_weighted(z)[self._over_logits(z) == 0]
        return float(lost.sum(dtype=np.float64))

    @property
    def asked(self) -> tuple[int, int | None]:
        return (self.target, self.against)

    def _less_softmax(self, z: Any) -> Any:
        s = -softmax(z)
        s[self.target] = _others(-s, self.target)
        return s.astype(z.dtype)

    def _softmax_weighted(self, z: Any) -> Any:
        p = softmax(z)
        weighted = -p[self.target] * p
        weighted[self.target] = p[self.target] * _others(p, self.target)
        return weighted.astype(z.dtype)

    def _over_logits(self, z: Any) -> Any:
        """0 where a logit is 0, or so small that the quotient is no finite number."""
        weighted = self._softmax_weighted(z)
        with np.errstate(over="ignore"):
            s = np.divide(weighted, z, out=np.zeros_like(z), where=z != 0)
        return np.where(np.isfinite(s), s, 0)


@dataclass(frozen=True)
class Part:
    """A seed over some of z, and how often it counts."""

    where: slice
    seed: AnySeed
    times: float = 1.0


@dataclass(frozen=True)
class Sum:
    """Several seeds as one target      y = sum_k times_k y_k(z[where_k])

    of parts of z that may overlap, and need not be all of it: rows of padding are in none. `of`:
    the target that it was made for (refl.targets).
    """

    parts: tuple[Part, ...]
    of: Any = None

    @property
    def kind(self) -> str:
        """That of its parts, which are of one kind."""
        return self.parts[0].seed.kind

    @property
    def asked(self) -> tuple[Any, None]:
        return (self.of, None)

    def gradient(self, z: Any) -> Any:  # (V,) -> (V,), NumPy
        return self._over(z, lambda seed, some: seed.gradient(some))

    def relevance(self, z: Any) -> Any:  # (V,) -> (V,), NumPy
        return self._over(z, lambda seed, some: seed.relevance(some))

    def value(self, z: Any) -> float:
        return math.fsum(p.times * p.seed.value(z[p.where]) for p in self.parts)

    def derivative(self, z: Any) -> Any:  # (V,) -> (V,), NumPy
        return self._over(z, lambda seed, some: seed.derivative(some))

    def unpropagated(self, z: Any) -> float:
        return math.fsum(p.times * p.seed.unpropagated(z[p.where]) for p in self.parts)

    def _over(self, z: Any, of: Callable[[AnySeed, Any], Any]) -> Any:
        found = np.zeros_like(z)
        for p in self.parts:
            found[p.where] += p.times * of(p.seed, z[p.where])
        return found


def of_answer(kind: str, ids: Sequence[int], outputs: int) -> Sum:
    """An answer as one target      y = sum_k y_k(z_k),    z_k the `outputs` logits before token k

    of rows of logits behind each other; rows behind those of the answer are in no part.
    """
    return Sum(
        tuple(
            Part(slice(k * outputs, (k + 1) * outputs), Seed(kind, token))
            for k, token in enumerate(ids)
        )
    )


@dataclass(frozen=True, eq=False)
class Cosine:
    """How the features of a token, or their mean over the first `tokens`, point to a vector (D,).

    `gradient` holds the norm of the features constant, `derivative` does not: along z it is 0.
    Raises ReflError for features of zeros, which point nowhere.
    """

    vector: Any
    tokens: int = 1
    of: Any = None

    kind: ClassVar[str] = "cosine"

    def gradient(self, z: Any) -> Any:  # (T D,) -> (T D,), NumPy
        norm, _ = self._direction(z)
        return self._at_each(z, self._unit / norm)

    def relevance(self, z: Any) -> Any:  # (T D,) -> (T D,), NumPy
        return z * self.gradient(z)

    def value(self, z: Any) -> float:
        return float(self._direction(z)[1] @ self._unit)

    def derivative(self, z: Any) -> Any:  # (T D,) -> (T D,), NumPy
        norm, unit = self._direction(z)
        return self._at_each(z, (self._unit - self.value(z) * unit) / norm)

    def unpropagated(self, z: Any) -> float:
        return 0.0

    @property
    def asked(self) -> tuple[Any, None]:
        return (self.of, None)

    @property
    def _unit(self) -> Any:  # -> (D,) float64
        return self.vector / math.hypot(*self.vector)

    def _direction(self, z: Any) -> tuple[float, Any]:  # -> |mean|, mean / |mean| (D,)
        mean = self._counted(z).astype(np.float64).mean(axis=0)
        norm = math.hypot(*mean)
        if norm == 0:
            raise ReflError(
                "the features are 0 throughout: they point nowhere and have no cosine; explain "
                "another token, or a coordinate"
            )
        return norm, mean / norm

    def _counted(self, z: Any) -> Any:  # -> (T, D), without padding
        return z.reshape(-1, len(self.vector))[: self.tokens]

    def _at_each(self, z: Any, s: Any) -> Any:  # (D,) -> (T D,): of the mean's terms
        found = np.zeros_like(z)
        self._counted(found)[...] = s / self.tokens
        return found


def softmax(z: Any) -> Any:  # (V,) -> (V,) float64, NumPy
    e = np.exp(z.astype(np.float64) - float(z.max()))
    return e / e.sum()


def probabilities(z: Any, kind: str) -> Any:  # (V,) -> (V,) float64, NumPy
    """Of logits: by softmax; by sigmoid, each for itself; nan where they are none ("none")."""
    if kind == "softmax":
        return softmax(z)
    wide = z.astype(np.float64)
    return np.exp(-np.logaddexp(0, -wide)) if kind == "sigmoid" else np.full_like(wide, np.nan)


def _log1p_sum(x: Any) -> float:  # (V - 1,) -> log(1 + sum exp x)
    """None of whose digits cancel where every x is far below 0."""
    top = max(float(x.max(initial=0.0)), 0.0)
    if top == 0:
        return float(np.log1p(np.exp(x).sum()))
    return top + float(np.log(np.exp(-top) + np.exp(x - top).sum()))


def _others(p: Any, k: int) -> Any:
    """1 - p_k, none of whose digits cancel."""
    return p[:k].sum() + p[k + 1 :].sum()
