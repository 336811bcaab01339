"""Identity 2: relevance at eps -> 0 is x times the gradient of the frozen surrogate.

    R(eps -> 0) = x * df/dx,   f the net with norms' scales and activation ratios frozen and every
                               product split evenly

The gradient is taken by complex step, in float64, along random directions x * (+-1, ..., +-1): each
of them shows any difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from refl.trace import Record
from refl.verification.definitions import surrogate
from refl.verification.identities.conditioning import rounding_bound
from refl.verification.identities.methods import WITHOUT_EPS
from refl.verification.identities.model_under_test import ModelUnderTest
from refl.verification.identities.rows import Row, WorstDeviation, deviation

VARIANT = {
    "lrp-0": "attnlrp",
    "attnlrp-gradient": "attnlrp",
    "cp-lrp": "cp-lrp",
    "input-x-gradient": "gradient",
}
"""Method -> the surrogate whose gradient it is."""

DIRECTIONS = 4
SITES = 400
"""More sites than this are thinned out."""

Slopes = tuple[Any, Any]
"""Directions of +-1, (K, ...), and the derivative of the explained output along x times each."""


def surrogate_gradient(m: ModelUnderTest) -> Iterator[Row]:
    m = m.within("float64")
    yield _gradient_row(m)
    yield _linear_in_eps(m)


def _gradient_row(m: ModelUnderTest) -> Row:
    records, worst = m.records_by_site, WorstDeviation()
    sites = list(records)[:: -(-len(records) // SITES)]
    for n, site in enumerate(sites):
        m.progress(n, len(sites))
        slopes = {v: _slopes(m, site, v, records) for v in set(VARIANT.values())}
        for method in WITHOUT_EPS:
            _compare_slopes(m, site, method, slopes[VARIANT[method]], worst)
    methods = ", ".join(WITHOUT_EPS)
    return worst.row(
        2,
        "relevance = x * gradient of the frozen surrogate",
        "at eps -> 0 the sweep is the method that was published",
        f"{len(sites)} sites, {DIRECTIONS} directions each; {methods}, in float64",
    )


def _compare_slopes(
    m: ModelUnderTest, site: str, method: str, slopes: Slopes, worst: WorstDeviation
) -> None:
    (signs, want), e = slopes, m.explained(method)
    got = (signs * e[site]).reshape(len(signs), -1).sum(axis=1)
    worst.compare(got, want, rounding_bound(e), f"{site} ({method})")


def _slopes(m: ModelUnderTest, site: str, variant: str, records: Mapping[str, Record]) -> Slopes:
    x = records[site].output.array[0]
    signs = np.random.default_rng(len(site)).choice((-1.0, 1.0), size=(DIRECTIONS, *x.shape))
    step = 1j * surrogate.STEP * signs * x
    edits: dict[str, surrogate.Edit] = {site: lambda a: a + step}
    how = {"variant": variant, "edits": edits} | m.forward
    z = surrogate.logits(m.model, m.item, records, **how)
    return signs, np.broadcast_to(z[:, m.target].imag / surrogate.STEP, (DIRECTIONS,))


def _linear_in_eps(m: ModelUnderTest) -> Row:
    """R(2 eps) - 2 R(eps) + R(0) = 0 for an eps so far below the smallest denominator that its
    square is below rounding.
    """
    worst, eps = WorstDeviation(), 1e-7 * _smallest_denominator(m)
    zero = m.explain("attnlrp", stabilizer="none")
    once, twice = (m.explain("attnlrp", eps=k * eps) for k in (1, 2))
    bound = 4 * rounding_bound(zero, once, twice)
    for site in m.stages:
        moved = deviation(once[site], zero[site])
        worst.compare(twice[site] + zero[site], 2 * once[site], bound, site, size=moved)
    moved = max(deviation(once[site], zero[site]) for site in m.stages)
    return worst.row(
        2,
        "what eps adds is linear in eps",
        "nothing but the stabilizer stands between attnlrp and its limit",
        f"at eps = {eps:.0e} relevance moves by {moved:.1e}, at twice that by twice as much",
    )


def _smallest_denominator(m: ModelUnderTest) -> float:
    arrays = (r.output.array for r in m.graph.of("linear", "add", "matmul"))
    return min(float(np.abs(a[a != 0]).min(initial=np.inf)) for a in arrays)
