"""Identity 8: relevance is linear in what is explained."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from refl.rules.published import METHODS
from refl.verification.identities.conditioning import ledger_rounding, rounding_bound
from refl.verification.identities.model_under_test import ModelUnderTest
from refl.verification.identities.rows import Row, WorstDeviation
from refl.verification.identities.small_traces import sweep_from


def linear_in_the_seed(m: ModelUnderTest) -> Iterator[Row]:
    """R(2 s - 3 t) = 2 R(s) - 3 R(t) for any seeds s and t,
    and R(z_a - z_b) = R(z_a) - R(z_b), at every site.
    """
    worst = WorstDeviation()
    for n, method in enumerate(m.methods):
        m.progress(n, len(m.methods))
        _random_seeds(m, method, worst)
    outputs = m.traced[1].array.shape[-1]
    contrasted = ("attnlrp", "cp-lrp") if m.at is None and outputs > 1 else ()
    for method in contrasted:
        _contrast(m, method, (m.target, (m.target + 1) % outputs), worst)
    yield worst.row(
        8,
        "R(z_a - z_b) = R(z_a) - R(z_b)",
        "contrasts may be taken before or after the sweep",
        f"every site, {len(m.methods)} methods, for any two seeds"
        + ("" if contrasted else "; there is no second logit to contrast with"),
    )


def _random_seeds(m: ModelUnderTest, method: str, worst: WorstDeviation) -> None:
    trace, at = m.traced
    random = np.random.default_rng(6)
    s, t = (random.standard_normal(at.array.shape).astype(at.array.dtype) for _ in "st")
    runs = [sweep_from(trace, at, seed, m.composite(method)) for seed in (s, t, 2 * s - 3 * t)]
    a, b, both = (run.propagated for run in runs)
    bound = max(ledger_rounding(run.ledger) for run in runs)
    gradient = METHODS[method].formulation == "gradient_x_input"
    for site, r in both.items():
        x = runs[2].activations[site] if gradient else 1.0
        worst.compare(r * x, (2 * a[site] - 3 * b[site]) * x, bound, f"{site} ({method})")


def _contrast(m: ModelUnderTest, method: str, pair: tuple[int, int], worst: WorstDeviation) -> None:
    both = m.explain(method, contrast=pair)
    a, b = (m.explain(method, target=target) for target in pair)
    bound = rounding_bound(both, a, b)
    for site in both:
        worst.compare(both[site], a[site] - b[site], bound, f"{site} ({method})")
