"""Which option, or which known mistake, turns one implementation's relevance into another's?

refl is run under each alternative of a method (alternatives.py), and those are kept that give the
other side's numbers; a stabilizer's size between the steps of its grid is found by a search.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from refl.errors import ReflError
from refl.io.precision import unit_roundoff
from refl.model import Model
from refl.rules.composites import Composite
from refl.verification.compare.alignment import known_sites
from refl.verification.compare.alternatives import Alternative, alternatives, unsigned, with_eps
from refl.verification.compare.forward import ExplainedOutput, RecordedForward
from refl.verification.compare.rounding import Site, SiteError, relevance_errors


@dataclass(frozen=True)
class Diagnosis:
    """An alternative, and how near it comes to the other side."""

    alternative: Alternative
    error: float
    """The largest deviation left at any site, in units of the largest there."""
    distance: float
    """The same, root mean square over sites of the relative 2-norm."""
    equal: bool
    """Whether no site parts beyond rounding."""
    sites: int
    """How many were looked at."""
    parting: int = 0
    """Sites that still part; counted for the nearest."""

    @property
    def says(self) -> str:
        return self.alternative.says

    def as_dict(self) -> dict[str, Any]:
        return {
            "mistakes": list(self.alternative.mistakes),
            "says": self.says,
            "method": self.alternative.composite.name,
            "eps": self.alternative.eps,
            "error": self.error,
            "equal": self.equal,
            "parting": self.parting,
            "sites": self.sites,
        }


def diagnose_model(
    model: Model,
    ids: Any,
    target: int,
    composite: Composite,
    theirs: Mapping[str, Any],
    *,
    against: int | None = None,
    seed: str = "logit",
    position: int | None = None,
    decoder: Sequence[int] | None = None,
    tolerance: float | None = None,
) -> list[Diagnosis]:
    """Which alternatives of `composite` give the relevance `theirs` (site or alias -> array without
    the batch axis) on this model?

    Empty where the composite itself gives it. Otherwise those that do, or, where none does, the
    three that come nearest. Raises ReflError where no site has a name that the model knows, with a
    shape that fits.
    """
    output = ExplainedOutput(ids, target, against, seed, position, decoder)
    forward = RecordedForward(model, output)
    known = known_sites(forward.names, forward.activations, theirs)
    return diagnose(forward, composite, known, tolerance)


def diagnose(
    forward: RecordedForward,
    composite: Composite,
    theirs: dict[str, Any],
    tolerance: float | None = None,
) -> list[Diagnosis]:
    """`diagnose_model` on a forward pass that is there already,
    with their arrays under our sites.
    """
    roundoff = max(unit_roundoff(forward.rows), *(unit_roundoff(r) for r in theirs.values()))
    trials = Trials(forward, theirs, roundoff, tolerance)
    unchanged = trials.diagnosis(Alternative(composite))
    if unchanged is not None and unchanged.equal:
        return []
    found = trials.diagnoses(alternatives(composite))
    found += _searched(trials, composite, found)
    if equal := [d for d in found if d.equal]:
        return equal
    nearer = [d for d in found if unchanged is None or d.distance < 0.5 * unchanged.distance]
    return [trials.counted(d) for d in sorted(nearer, key=lambda d: d.distance)[:3]]


@dataclass
class Trials:
    """A forward pass on which alternatives are tried, and their relevance at our sites."""

    forward: RecordedForward
    theirs: dict[str, Any]
    roundoff: float
    tolerance: float | None

    def diagnoses(self, tried: Iterator[Alternative]) -> list[Diagnosis]:
        """Of those that can be run here."""
        return [d for a in tried if (d := self.diagnosis(a)) is not None]

    def diagnosis(self, a: Alternative) -> Diagnosis | None:
        ours = self.relevance(a)
        if ours is None:
            return None
        equal = not any(  # most part at one of the first
            e.parts or e.undecided(self.roundoff, self.tolerance) for e in self.errors(a, ours)
        )
        apart = [_apart(r, self.theirs[site]) for site, r in ours.items()]
        distance = math.sqrt(sum(min(norm, 1e6) ** 2 for _, norm in apart) / len(apart))
        return Diagnosis(a, max(largest for largest, _ in apart), distance, equal, len(apart))

    def relevance(self, a: Alternative) -> dict[str, Any] | None:
        """The alternative's own relevance at their sites;
        None where it cannot be run here, or overflows.
        """
        try:
            with np.errstate(all="ignore"):
                ours = self.forward.relevance(a.composite)
        except (ReflError, ValueError, TypeError):
            return None
        times = a.factor(self.forward.explained)
        kept = {site: r * times for site, r in ours.items() if site in self.theirs}
        return kept if all(np.isfinite(r).all() for r in kept.values()) else None

    def errors(self, a: Alternative, ours: dict[str, Any]) -> Iterator[SiteError]:
        x, divides = self.forward.activations, self.forward.divides(a.composite)
        pairs = ((site, Site(r, x[site]), Site(self.theirs[site])) for site, r in ours.items())
        return relevance_errors(pairs, self.roundoff, divides, self.tolerance)

    def parting(self, a: Alternative) -> Iterator[str]:
        """The sites that part under it, from the output down."""
        return (e.site for e in self.errors(a, self.relevance(a) or {}) if e.parts)

    def counted(self, d: Diagnosis) -> Diagnosis:
        """With the number of sites that still part."""
        return replace(d, parting=sum(1 for _ in self.parting(d.alternative)))


def _apart(a: Any, b: Any) -> tuple[float, float]:
    """The largest deviation of b in units of the largest of a, and the same of 2-norms."""
    difference, largest = np.abs(a - b), float(np.abs(a).max(initial=0.0))
    worst, length = float(difference.max(initial=0.0)), float(np.linalg.norm(a.ravel()))
    norm = float(np.linalg.norm(difference.ravel()))
    return (
        worst / largest if largest else float(worst > 0),
        norm / length if length else float(worst > 0),
    )


# -- an eps between the steps of the grid ----------------------------------------------------------

FIRST_SITES = 6
"""Sites the search looks at: the first that part."""
STEPS = 25

WithEps = Callable[[Composite, float], Alternative | None]


def _searched(trials: Trials, composite: Composite, found: list[Diagnosis]) -> list[Diagnosis]:
    """For either form of the stabilizer the eps that comes nearest, unless the grid has met it."""
    results: list[Diagnosis] = []
    forms: tuple[tuple[str, WithEps], ...] = (("other-eps", with_eps), ("eps-unsigned", unsigned))
    for mistake, form in forms:
        grid = [
            d
            for d in found
            if d.alternative.eps is not None and d.alternative.mistakes == (mistake,)
        ]
        if not grid or any(d.equal for d in found):
            continue
        best = min(grid, key=lambda d: d.distance).alternative
        sites = list(itertools.islice(trials.parting(Alternative(composite)), FIRST_SITES))
        assert best.eps is not None
        eps = _nearest_eps(trials, best.composite, sites, best.eps)
        results += _rounded(trials, best.composite, form, eps)
        if results and results[-1].equal:
            break
    return results


def _nearest_eps(trials: Trials, composite: Composite, sites: list[str], start: float) -> float:
    """Gauss-Newton on log eps, at most a decade a step:
    relevance is smooth in eps, and near 0 linear.
    """
    log = math.log(start)
    theirs = np.concatenate([trials.theirs[s].ravel() for s in sites])
    for _ in range(STEPS):
        at, beside = (_relevance(trials, composite, sites, math.exp(log + h)) for h in (0.0, 1e-4))
        slope, left = (beside - at) / 1e-4, theirs - at
        if not (np.isfinite(slope).all() and (length := float(slope @ slope)) > 0):
            break
        step = max(-2.3, min(2.3, float(slope @ left) / length))
        log = max(math.log(1e-15), min(0.0, log + step))
        if abs(step) < 1e-10:
            break
    return math.exp(log)


def _relevance(trials: Trials, composite: Composite, sites: list[str], eps: float) -> Any:
    with np.errstate(all="ignore"):
        ours = trials.forward.relevance(composite.with_options(eps=eps))
    return np.concatenate([ours[s].astype(np.float64).ravel() for s in sites])


def _rounded(
    trials: Trials, composite: Composite, form: WithEps, eps: float
) -> Iterator[Diagnosis]:
    """The eps with as few digits as do; the last try has all of them."""
    for digits in (1, 2, 3, 5, 15):
        made = form(composite, float(f"{eps:.{digits}e}"))
        found = None if made is None else trials.diagnosis(made)
        if found is None:
            return
        if found.equal or digits == 15:
            yield found
            return
