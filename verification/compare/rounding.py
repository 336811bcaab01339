"""How far two right implementations may lie apart: rounding, judged element by element from what
stands in an oracle file.

Relevance is R_i = x_i c_i: an activation, and a coefficient that came down from the output.
Rounding moves both,

    |dR_i|  <=  K u N (|x_i| / max|x|  +  |c_i| / max|c|),
            N^2 = sum of n^2 over this site and all above it
    n  =  max|x| (|c|_2  +  where the rule at x divides by x + eps s(x), what that makes of an error
                            in x)

u is the unit roundoff of the coarser file. n is large where an eps-rule divides by a small
denominator, and what was lost above is never won back below. Activations may move by K' u max|x|.

K and K' were measured on what both sides may do differently: 16 random architectures, 11 methods,
float32 and float64, against a forward pass with noise of u max|z| on every product (worst 0.13 of
what is allowed; 0.5 where LayerNorm is an identity, which stabilizers do not forgive; activations
0.10), padded batches, recomputation, and transformers and LXT on the same checkpoints (worst 0.19).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

SWEPT = 64
"""K."""
FORWARD = 1024
"""K'."""
EMPTY = 1e-3
"""Where rounding may explain more than this part of the largest at a site, the bound says little:
an error of as much would be let pass."""
PLAIN_ROUNDING = 256
"""Units of roundoff of the largest at a site that are rounding whatever the bound says, up to
FINE."""
FINE = 1e-4
HIDDEN = 1e30
"""A score beyond this has been masked by addition: it stands for no number."""


@dataclass(frozen=True)
class Site:
    """What one side has at a site, without the batch axis; None where it has nothing."""

    relevance: Any
    activation: Any = None
    gradient: Any = None


DIVIDED = ("linear", "add", "matmul", "layer_norm", "rotary", "pooling", "combine", "renormalize")
"""Operations whose rules divide relevance by their output."""


@dataclass(frozen=True)
class Divides:
    """Where relevance is divided by an activation x + eps s(x)."""

    at: Collection[str] | None = None
    """Sites; None where that is not known: then everywhere."""
    eps: float = 0.0


@dataclass(frozen=True)
class SiteError:
    """How far two sides lie apart at a site, and how far rounding lets them."""

    site: str
    quantity: str
    """activation, relevance, or gradient where only that parts"""
    absolute: float
    relative: float
    """the largest deviation in units of the largest of A"""
    level: float
    """the largest deviation rounding allows, in the same unit"""
    excess: float
    """the largest deviation in units of what is allowed at that very element:
    above 1 the two part
    """
    cosine: float
    sums: tuple[float, float]
    index: tuple[int, ...]
    """the element of the largest excess, and both its numbers"""
    values: tuple[float, float]

    @property
    def parts(self) -> bool:
        return not self.excess <= 1

    def undecided(self, roundoff: float, tolerance: float | None = None) -> bool:
        """Whether the two differ here by more than plain rounding or a tolerance, and the bound is
        too wide to say whether that is an error."""
        plain = max(min(PLAIN_ROUNDING * roundoff, FINE), tolerance or 0.0)
        return not self.parts and self.level > EMPTY and plain < self.relative < math.inf


def relevance_errors(
    pairs: Iterable[tuple[str, Site, Site]],
    roundoff: float,
    how: Divides,
    tolerance: float | None = None,
) -> Iterator[SiteError]:
    """The errors of B's relevance (and gradients, where both sides have them) against A's, one site
    after the other.

    pairs        site, A, B in sweep order: what is above a site comes before it
    how          where relevance is divided by an activation, and the eps that is added there
    tolerance    a deviation of this part of the largest at a site is let pass beside rounding
    """
    above = 0.0
    for name, a, b in pairs:
        x = a.activation if a.activation is not None else b.activation
        shape, here, scale = _shape(a.relevance, x, how.eps, how.at is None or name in how.at)
        above = math.hypot(above, here)
        slack = SWEPT * roundoff * above
        found = _error(name, "relevance", a.relevance, b.relevance, slack * shape, tolerance)
        if not found.parts and a.gradient is not None and b.gradient is not None and scale:
            steep = _error(
                name, "gradient", a.gradient, b.gradient, slack / scale * (1 + shape), tolerance
            )
            found = steep if steep.parts else found
        yield found


def _shape(
    r: Any, x: Any, eps: float, divides: bool
) -> tuple[Any, float, float]:  # -> |x|/max|x| + |c|/max|c|, n, max|x|
    r = np.where(np.isfinite(r), np.abs(r), 0.0).astype(np.float64)
    if x is None:
        return np.ones_like(r), float(np.linalg.norm(r.ravel())), 0.0
    x = np.where(_finite(x), np.abs(x), 0.0).astype(np.float64)
    c = np.divide(r, x + eps, out=np.zeros_like(r), where=x + eps > 0)
    widest, steepest = float(x.max(initial=0.0)), float(c.max(initial=0.0))
    noise = _length(c) + (widest * _division(r, c) if divides else 0.0)
    return x / (widest or 1.0) + c / (steepest or 1.0), widest * noise, widest


def _division(r: Any, c: Any) -> float:
    """What r / (x + eps) makes of an error of one in x. Where r follows x (r = x k), the quotient
    hardly feels it; where r does not, large c stand over small x, and c / x is c^2 / r."""
    typical = float((r * r).sum()) / (float(r.sum()) or 1.0)
    return 16 * _length(c * c) / (typical or 1.0)


def _length(c: Any) -> float:
    return float(np.linalg.norm(c.ravel()))


def _finite(x: Any) -> Any:
    return np.isfinite(x) & (np.abs(x) < np.float64(HIDDEN))  # float16 has no such number


def activation_error(
    name: str, x: Any, y: Any, roundoff: float, tolerance: float | None = None
) -> SiteError:
    """The error of B's activation y against A's x. What either side has masked by a huge negative
    score is left out.
    """
    finite = _finite(x) & _finite(y) | np.isnan(x) | np.isnan(y)
    x, y = np.where(finite, x, 0.0), np.where(finite, y, 0.0)
    largest = float(np.abs(x).max(initial=0.0)) if np.isfinite(x).all() else np.nan
    return _error(
        name, "activation", x, y, np.full(np.shape(x), FORWARD * roundoff * largest), tolerance
    )


def _error(
    name: str, quantity: str, a: Any, b: Any, allowed: Any, tolerance: float | None
) -> SiteError:
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    largest = float(np.abs(a).max(initial=0.0))
    if tolerance is not None:
        allowed = np.maximum(allowed, tolerance * largest)
    with np.errstate(invalid="ignore"):
        apart = np.where((a == b) | np.isnan(a) & np.isnan(b), 0.0, np.abs(a - b))
    excess = _excess(apart, allowed)
    index = (
        tuple(int(i) for i in np.unravel_index(int(excess.argmax()), excess.shape))
        if excess.size
        else ()
    )
    absolute = float(np.where(np.isnan(apart), np.inf, apart).max(initial=0.0))
    return SiteError(
        name,
        quantity,
        absolute,
        _over(absolute, largest),
        _over(float(allowed.max(initial=0.0)), largest),
        float(excess.max(initial=0.0)),
        _cosine(a, b),
        (float(a.sum()), float(b.sum())),
        index,
        (float(a[index]), float(b[index])) if a.size else (0.0, 0.0),
    )


def _excess(apart: Any, allowed: Any) -> Any:
    """Deviations in units of what is allowed, which may be nothing."""
    return np.divide(apart, allowed, out=np.where(apart == 0, 0.0, np.inf), where=allowed > 0)


def _over(part: float, whole: float) -> float:
    return part / whole if whole else (0.0 if part == 0 else float("inf"))


def _cosine(a: Any, b: Any) -> float:
    with np.errstate(invalid="ignore"):
        lengths = float(np.linalg.norm(a.ravel()) * np.linalg.norm(b.ravel()))
        return (
            float(np.vdot(a, b)) / lengths if lengths > 0 and np.isfinite(lengths) else float("nan")
        )
