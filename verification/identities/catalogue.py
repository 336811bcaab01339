"""The twelve identities a relevance has to obey, measured on a checkpoint: what `refl verify`
prints.

Each is a function of a `ModelUnderTest` (a model and one input) that yields `Row`s: what was
measured, how far it may be off, and what it means; or why it does not apply to this net. Nothing is
looked up: every number is computed from the weights at hand. Bounds come from conditioning
(conditioning.py); what has to be the same bit for bit has the bound 0. Identities of the limit
eps -> 0 are measured on methods that have no eps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from refl.errors import ReflError
from refl.verification.identities.conservation import (
    conservation_at_every_operation,
    norm_jacobians,
    whole_account,
)
from refl.verification.identities.forward_decomposition import forward_decomposition
from refl.verification.identities.invariance import invariances
from refl.verification.identities.linearity import linear_in_the_seed
from refl.verification.identities.model_under_test import ModelUnderTest
from refl.verification.identities.products import products, triple_products
from refl.verification.identities.relu_and_linear import linear_models, relu_layers
from refl.verification.identities.rows import Row
from refl.verification.identities.runs import ways_to_run
from refl.verification.identities.small_nets import on_small_nets
from refl.verification.identities.surrogate_gradient import surrogate_gradient

IDENTITIES: dict[int, tuple[str, Callable[[ModelUnderTest], Iterator[Row]]]] = {
    1: ("conservation at every operation", conservation_at_every_operation),
    2: ("the frozen surrogate", surrogate_gradient),
    3: ("the whole account", whole_account),
    4: ("ReLU nets", relu_layers),
    5: ("products", products),
    6: ("linear models", linear_models),
    7: ("invariances", invariances),
    8: ("linearity in the seed", linear_in_the_seed),
    9: ("order, batches, ways to run", ways_to_run),
    10: ("triple products", triple_products),
    11: ("forward decomposition", forward_decomposition),
    12: ("Jacobians of norms", norm_jacobians),
}
"""Number -> its title and what measures it."""

Progress = Callable[[str, int, int], object]

STEPS = 1000
"""Of an identity, for progress."""


def verify(
    m: ModelUnderTest,
    only: Sequence[int] = tuple(IDENTITIES),
    progress: Progress = lambda label, done, of: None,
    small: bool = True,
) -> Iterator[Row]:
    """The rows of the identities asked for, in order, then those shown on small nets. Raises
    ReflError for a number that is none.
    """
    for number in set(only) - IDENTITIES.keys():
        raise ReflError(f"there is no identity {number}: they are numbered 1 to {len(IDENTITIES)}")
    wanted = sorted(set(only))
    for n, number in enumerate(wanted):
        title, measure = IDENTITIES[number]
        m.progress = _steps(progress, f"{number} {title}", n, len(wanted))
        m.progress(0, 1)
        yield from measure(m)
    if small:
        yield from on_small_nets(wanted)


def _steps(progress: Progress, label: str, n: int, count: int) -> Callable[[int, int], object]:
    """The progress of identity number n among `count`, as steps of the whole."""
    return lambda done, of: progress(
        label, n * STEPS + min(done * STEPS // of, STEPS), count * STEPS
    )
