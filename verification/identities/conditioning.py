"""How far float arithmetic lets two relevances be apart: what every deviation is held against.

1. Rounding of the sweep. An attribution is a chain of sums. A sum of terms t_k is off by at most
   k u sum|t_k|, u the unit roundoff (Higham, Accuracy and Stability of Numerical Algorithms,
   section 4.2), and the ledger of an audited run has sum|t_k| of every site, so

       rounding_bound = 8 u sum over sites of sum|terms|

   is what one forward pass and its sweep can be off by, each site counted once. Conservation needs
   no more: an error of a denominator moves the messages of one output against each other and
   leaves their sum.

2. Rounding of the forward pass, as the sweep feels it. A message x_i W_ji R_j / d_j is divided by
   d_j = z_j + eps s(z_j), and another run rounds the sum z_j in another way, by dz_j of the order
   u T_j with T_j = sum|terms of z_j| (and whatever the terms bring with them). To first order the
   message moves by

       |x_i W_ji R_j / d_j|  eps |dz_j| / |z_j d_j|

   where R_j itself is proportional to z_j, as it is below a norm or a linear layer: at eps = 0 the
   quotient does not feel z_j. With a stabilizer, and a z_j that cancels down to the size of eps (a
   residual sum of 0.83 and -0.83, T_j / eps = 1e6), this is T_j / eps times what 1 counts for the
   message. 1 has no term for it: it would take dz_j, which depends on every layer below.
   So it is measured. A computed product fl(W x) is the exact one of a matrix W' with |W' - W| <=
   lambda sqrt(n) u |W| for sums of n terms, except with probability 2 exp(-lambda^2 / 2) each
   (Higham and Mary, SIAM J. Sci. Comput. 41, 2019): float arithmetic cannot tell the model from
   those whose weights are w (1 +- sqrt(n) u). `sensitivity` is how far the relevance of such models
   is from the model's own, and lambda = 8 (2e-14) gives

       allowed = rounding_bound + 8 sensitivity

   for two runs whose forward passes round differently: a batch and its members, a text and its
   prefix, a function written with other weights. The second part costs runs of its own and is added
   where the first is not enough.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod, sqrt
from typing import Any

import numpy as np

from refl.arrays import Array, asnumpy
from refl.explanation import Explanation
from refl.io.precision import unit_roundoff
from refl.ledger import Ledger
from refl.model import Model
from refl.rules.composites import Chosen
from refl.rules.operations import OPERATIONS
from refl.rules.rounding import rounding_scale
from refl.verification.identities.rows import WorstDeviation, deviation, largest
from refl.verification.identities.weights import ChangedWeights

FACTOR = 8
"""Times u sum|terms|; and lambda."""

DRAWS = 4
"""Models with other last digits that are looked at."""


# -- 1 ---------------------------------------------------------------------------------------------


def rounding_bound(*explanations: Explanation) -> float:
    return max(ledger_rounding(e.ledger) for e in explanations)


def ledger_rounding(ledger: Ledger) -> float:
    scales = [e.rounding_scale for e in ledger if e.rounding_scale is not None]
    return FACTOR * ledger.roundoff * sum(float(np.sum(scale)) for scale in scales)


def rule_rounding(
    operation: str,
    rule: Chosen,
    operands: Sequence[Any],
    z: Any,
    r: Any,
    formulation: str = "relevance",
    **attributes: Any,
) -> float:
    """The same for one application of a rule, where r arrived at z."""
    how = OPERATIONS[operation].options(rule.function) | rule.options | attributes
    scale = rounding_scale(operation, rule.name, formulation, operands, z, r, how)
    return FACTOR * unit_roundoff(r) * float(scale.sum())


# -- 2 ---------------------------------------------------------------------------------------------


@dataclass
class RunComparison:
    """Other runs held against an explanation of a model.

    explain    the same explanation of another model
    """

    model: Model
    e: Explanation
    explain: Callable[[Model], Explanation]
    worst: WorstDeviation
    others: list[Explanation] = field(default_factory=list, init=False)
    """Of models with other last digits, once they are needed."""

    def compare(
        self, got: Any, read: Callable[[Explanation], Any], where: str, *runs: Explanation
    ) -> None:
        """`got` has to be what `read` finds in the explanation.
        `runs`: whose rounding counts as well.
        """
        want = read(self.e)
        measured, bound = deviation(got, want), rounding_bound(self.e, *runs)
        if not measured <= bound:
            bound += FACTOR * self.sensitivity(read)
        self.worst.add(measured, bound, where, max(largest(got), largest(want)))

    def sensitivity(self, read: Callable[[Explanation], Any]) -> float:
        """How far what is read moves with the last digits of the weights."""
        if not self.others:
            self.others = [self.explain(other_digits(self.model, draw)) for draw in range(DRAWS)]
        return max(deviation(read(other), read(self.e)) for other in self.others)


def other_digits(model: Model, draw: int) -> Model:
    """One of the models that float arithmetic cannot tell from this one."""
    return replace(model, weights=ChangedWeights(model.weights, partial(_other_digits, draw)))


def _other_digits(draw: int, name: str, w: Any) -> Array:  # -> w (1 +- sqrt(n) u)
    """A row of n entries makes a sum of n terms; a vector makes none.
    Signs are drawn for each tensor.
    """
    w = asnumpy(w)
    random = np.random.default_rng([draw, zlib.crc32(name.encode("utf-8"))])
    signs = random.choice(np.asarray([-1, 1], dtype=w.dtype), w.shape)
    return w + w * signs * w.dtype.type(unit_roundoff(w) * sqrt(prod(w.shape[1:])))
