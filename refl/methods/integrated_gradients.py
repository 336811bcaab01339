"""Integrated gradients: the gradient along the straight path from a baseline x' to the input

    R_i = (x_i - x'_i) integral over t from 0 to 1 of  d f / d x_i (x' + t (x - x')) dt
                                                                (Sundararajan et al. 2017, eq. 1)

and the integral as a sum over nodes, sum_k w_k g(t_k). The integrals of all features add up to
f(x) - f(x'); what the nodes miss of that is `quadrature`, by definition f(x) - f(x') - sum_i R_i,
so that the ledger closes:        f(x) = sum_i R_i + baseline f(x') + quadrature

Where the path begins at zero embeddings, a norm makes vectors of length sqrt(D) of the smallest of
them, and each norm behind it does so again: without biases or positions f changes from t = 1e-15 on
(the shipped model, stories260K). Nodes at even distances never come there. From a token's embedding
on, and in nets that add positions before the first norm, f is smooth and Gauss-Legendre is best.
`adaptive` need not be told: it cuts the path into segments of 8 Gauss-Legendre nodes each. Of a
segment it is known what its sum should be, the difference of f at its ends; those that miss more
than their part of `tolerance` are cut in two (at the geometric mean of their ends, the first at a
tenth of its length), until all is found or `steps` gradients are spent.

|quadrature| in logits, one sentence each, float64, from zero embeddings:

                                shipped (11.98)    stories260K (17.13)    capp_gpt2 (6.69)
    midpoint          128            4.5                  25                  6e-5
    gauss-legendre    128            8.7                  1e-2                4e-10
    log               256            6e-2                 2e-1                3e-4
    adaptive                         3e-3 (360)           1e-3 (552)          5e-3 (56 gradients)

Where f jumps (a router chooses another expert) no gradient says so: the jump is in `quadrature`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np

from refl import arguments
from refl.answer import Found
from refl.errors import ReflError, argument
from refl.ledger import Entry, Ledger
from refl.methods.base import Attribution
from refl.methods.copies import Copy, Leaves, filling, found_of, gradients, leaves_of, values
from refl.question import Forward, Question
from refl.seeds import AnySeed

Nodes = tuple[Any, Any]
"""Of n nodes t and w, NumPy (n,)."""


def midpoint(n: int) -> Nodes:
    return (np.arange(n) + 0.5) / n, np.full(n, 1 / n)


def right_end(n: int) -> Nodes:
    """As the AttnLRP paper has it."""
    return (np.arange(n) + 1) / n, np.full(n, 1 / n)


def gauss_legendre(n: int) -> Nodes:
    t, w = np.polynomial.legendre.leggauss(n)
    return (t + 1) / 2, w / 2


DECADES = 16
"""Of t, over which `log` spaces its nodes."""


def log(n: int) -> Nodes:
    """t = (exp(a s) - 1) / (exp(a) - 1) with a = log(10^DECADES), s at Gauss-Legendre nodes: evenly
    in log t, but for the last step to 0.
    """
    (s, w), a = gauss_legendre(n), DECADES * np.log(10)
    return np.expm1(a * s) / np.expm1(a), w * a * np.exp(a * s) / np.expm1(a)


NODES: dict[str, Callable[[int], Nodes]] = {
    "gauss-legendre": gauss_legendre,
    "midpoint": midpoint,
    "right-end": right_end,
    "log": log,
}

ADAPTIVE, IN_SEGMENT = "adaptive", 8

ROUNDINGS = 1 << 12
"""What f is off by in units of roundoff, and no cut can mend."""

NARROWEST = 1e-4
"""Of a segment, in parts of where it ends."""


@dataclass(frozen=True)
class IntegratedGradients(Attribution):
    """
    steps        gradients: with `adaptive` at most so many
    nodes        adaptive, gauss-legendre, midpoint, right-end, log
    tolerance    of `adaptive`: how much quadrature may be left, in parts of |f(x)| + |f(x')|
    baseline     "zero" embeddings; "mean" of the input's; a token at every place: "mask", "unk",
                 "pad", or any by its text or id. Of a picture "zero", "mean", "blur" or a number
    """

    steps: int = 1024
    nodes: str = ADAPTIVE
    tolerance: float = 1e-3
    baseline: str | float = "zero"

    name: ClassVar[str] = "integrated-gradients"
    summary: ClassVar[str] = "input minus baseline, times the mean gradient on the way between them"
    source: ClassVar[str] = (
        "Sundararajan et al. 2017, Axiomatic Attribution for Deep Networks, ICML, arXiv "
        "1703.01365, eq. 1"
    )
    passes: ClassVar[str] = "as many forwards and sweeps as `steps` says, batched"
    conserved: ClassVar[str] = (
        "all of it: tokens, the baseline's output, and what the quadrature misses, in the ledger"
    )
    of_features: ClassVar[bool] = True
    of_answers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        vars(self).update(
            steps=arguments.positive("steps", self.steps),
            tolerance=arguments.between("tolerance", self.tolerance, 1e-15, 1),
            baseline=arguments.number_or_none(self.baseline),
        )
        if not isinstance(self.nodes, str) or self.nodes not in (ADAPTIVE, *NODES):
            known = ", ".join([ADAPTIVE, *NODES])
            raise arguments.expected("nodes", f"one of {known}", self.nodes)
        if self.nodes == ADAPTIVE and self.steps < IN_SEGMENT:
            what = f"at least {IN_SEGMENT} for {ADAPTIVE} nodes"
            raise arguments.expected("steps", what, self.steps)
        if self.nodes != ADAPTIVE and self.tolerance != type(self).tolerance:
            raise ReflError(
                f"{argument('tolerance')} is that of {ADAPTIVE} nodes: leave it out, or take these"
            )

    def found(self, question: Question, forward: Forward, seed: AnySeed) -> Found:
        x, network = leaves_of(forward), question.network
        fill = partial(filling, network, forward, fill=self.baseline, name="baseline")
        baseline = {site: fill(site) for site in x}
        path = Path(question, seed, forward.readings[0], x, baseline)
        at_ends = (path.values([0.0])[0], seed.value(forward.rows[0]))
        if self.nodes == ADAPTIVE:
            integral = adaptive(path, at_ends, self.steps, self.tolerance)
        else:
            t, w = NODES[self.nodes](self.steps)
            (integral,) = path.integrals(t, w, [0] * len(t))
        scores = {site: _scores(path.difference(site) * g, x[site]) for site, g in integral.items()}
        ledger = _ledger(forward, self.name, scores, at_ends, network.dtype)
        return found_of(list(scores.values()), ledger=ledger)


def _scores(r: Any, x: Any) -> Any:  # (T, D) -> (T,); (C, H, W) -> (H, W)
    """Summed over features, in the dtype of the net."""
    return r.sum(axis=-1 if x.ndim == 2 else 0).astype(x.dtype)


def _ledger(
    forward: Forward, rule: str, scores: dict[str, Any], at_ends: tuple[float, float], dtype: str
) -> Ledger:
    """f(x) = what each input site gets, baseline f(x'), and quadrature, which is the rest."""
    start, explained = at_ends
    sums = {site: float(r.sum(dtype=np.float64)) for site, r in scores.items()}
    absorbed = {"baseline": start, "quadrature": explained - start - sum(sums.values())}
    destination = "tokens" if forward.leaf(forward.embedded).ndim == 3 else "pixels"
    entries = [Entry(forward.explained.site, "path", rule, explained, sums, absorbed)]
    entries += [Entry(s, "path", rule, sums[s], {}, {destination: sums[s]}) for s in sums]
    return Ledger(explained, float(np.finfo(dtype).eps) / 2, entries)


# -- the path --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Path:
    """x' + t (x - x') at every input site at once: what is explained on it, and its gradient."""

    question: Question
    seed: AnySeed
    reading: Any
    x: Leaves
    baseline: Leaves

    def difference(self, site: str) -> Any:
        """In float64."""
        return np.subtract(self.x[site], self.baseline[site], dtype=np.float64)

    def at(self, t: float) -> Leaves:
        return {
            site: (self.baseline[site] + t * self.difference(site)).astype(x.dtype)
            for site, x in self.x.items()
        }

    def sum(self, integral: dict[str, Any]) -> float:
        """What the relevance of all features adds up to."""
        return float(sum((self.difference(site) * g).sum() for site, g in integral.items()))

    def copies(self, nodes: Sequence[float]) -> list[Copy]:
        return [Copy(self.reading, partial(self.at, float(t))) for t in nodes]

    def values(self, nodes: Sequence[float]) -> list[float]:
        found = values(self.question, self.seed, self.copies(nodes))
        return [float(y) for y in found]

    def integrals(
        self, nodes: Sequence[float], weights: Sequence[float], into: Sequence[int]
    ) -> list[dict[str, Any]]:
        """Sums of w_k g(t_k), float64; node k counts for the sum of number into[k]."""
        sums = [
            {site: np.zeros(x.shape) for site, x in self.x.items()} for _ in range(max(into) + 1)
        ]
        for numbers, found in gradients(self.question, self.seed, self.copies(nodes)):
            for b, k in enumerate(numbers):
                for site, g in found.items():
                    sums[into[k]][site] += weights[k] * g[b]
        return sums


# -- adaptive nodes --------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Segment:
    """A part of the path."""

    start: float
    end: float
    integral: dict[str, Any]
    error: float
    """What its nodes miss of the difference of f at its ends."""

    @property
    def narrow(self) -> bool:
        """Too narrow to be cut again: what it misses is a jump of f."""
        return self.end - self.start < NARROWEST * self.end

    @property
    def cut(self) -> float:
        return float(np.sqrt(self.start * self.end)) if self.start else self.end / 10


def adaptive(
    path: Path, at_ends: tuple[float, float], steps: int, tolerance: float
) -> dict[str, Any]:  # -> site -> (T, D), or (C, H, W)
    """The integral of the gradient, from segments that are cut where they miss something."""
    f = {0.0: at_ends[0], 1.0: at_ends[1]}
    roundoff = float(np.finfo(path.question.network.dtype).eps)
    allowed = max(tolerance, ROUNDINGS * roundoff) * (abs(at_ends[0]) + abs(at_ends[1]))
    spent = IN_SEGMENT
    segments = _segments(path, [(0.0, 1.0)], f)
    while sum(abs(s.error) for s in segments) > allowed:
        worst = max((abs(s.error) for s in segments if not s.narrow), default=0.0)
        least = max(allowed / len(segments), worst / 10)
        poor = [s for s in segments if abs(s.error) >= least and not s.narrow]
        poor = poor[: (steps - spent) // (2 * IN_SEGMENT)]
        if not poor:
            break
        cuts = [s.cut for s in poor]
        f |= zip(cuts, path.values(cuts), strict=True)
        spans = [part for s in poor for part in ((s.start, s.cut), (s.cut, s.end))]
        segments = [s for s in segments if s not in poor] + _segments(path, spans, f)
        spent += 2 * IN_SEGMENT * len(poor)
    return {site: sum(s.integral[site] for s in segments) for site in path.x}


def _segments(
    path: Path, spans: Sequence[tuple[float, float]], f: dict[float, float]
) -> list[Segment]:
    t, w = gauss_legendre(IN_SEGMENT)
    nodes = [float(a + (b - a) * k) for a, b in spans for k in t]
    weights = [float((b - a) * k) for a, b in spans for k in w]
    into = [n for n in range(len(spans)) for _ in t]
    found = path.integrals(nodes, weights, into)
    return [
        Segment(a, b, g, f[b] - f[a] - path.sum(g)) for (a, b), g in zip(spans, found, strict=True)
    ]
