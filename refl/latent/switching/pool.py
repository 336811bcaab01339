"""One input with many sets of its neurons or heads changed: each set in a copy of its own, and the
copies in batches.

    z'_i = factor z_i + amount_i        for the parts i of the set,     z'_i = z_i for all others

A Pool counts the parts of a net through, so that a set is an array of numbers. Sets of random parts
have as many members in each MLP (or attention) as the set that they stand beside, and none of its.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from refl.components import Attention, Components, Mlp, names_of, site_of, size
from refl.edits import Edit, Edits
from refl.errors import ReflError, argument
from refl.evaluation.subject import Subject

Owner = Mlp | Attention

Set = Any
"""Numbers of parts in a pool, NumPy int (k,)."""

MOST_DRAWS = 10_000
"""Of random sets: each is a run of its own for every input."""


@dataclass(frozen=True)
class Mean:
    """A mean and its bootstrap interval; nan where there is none."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Pool:
    """Parts of a net counted through: those of the first owner, then those of the second, ..."""

    owners: tuple[Owner, ...]

    @classmethod
    def neurons(cls, components: Components) -> Pool:
        """Every neuron of every MLP."""
        return cls(components.mlps)

    @cached_property
    def starts(self) -> Any:  # -> int (owners + 1,)
        """The number of each owner's first part, and that of all parts."""
        return np.cumsum([0, *map(size, self.owners)])

    @property
    def count(self) -> int:
        """Of all parts."""
        return int(self.starts[-1])

    @cached_property
    def names(self) -> list[str]:
        """Of all parts."""
        return [name for owner in self.owners for name in names_of(owner)]

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: n for n, name in enumerate(self.names)}

    def numbers(self, names: Sequence[str]) -> Set:
        """Of parts by their names, which have to be in the pool."""
        return np.array([self._numbers[name] for name in names], dtype=np.int64)

    def inside(self, chosen: Set) -> list[Any]:
        """Of each owner, the members of a set as they are numbered within it."""
        ends = zip(self.starts, self.starts[1:], strict=False)
        return [chosen[(chosen >= a) & (chosen < b)] - a for a, b in ends]

    # -- random sets -------------------------------------------------------------------------------

    def refuse_full(self, chosen: Set) -> None:
        """Raises ReflError where an owner has fewer others than there are members of the set."""
        for owner, members in zip(self.owners, self.inside(chosen), strict=True):
            k, others = len(members), size(owner) - len(members)
            if others < k:
                what = "neurons" if isinstance(owner, Mlp) else "heads"
                raise ReflError(
                    f"{owner.label} has {size(owner)} {what}, and {k} of them are switched: "
                    f"expected at least {k} others to draw from, found {others}; switch fewer, or "
                    f"set {argument('draws')} to 0"
                )

    def beside(self, chosen: Set, draws: int, random: np.random.Generator) -> list[Set]:
        """Sets of as many others of each owner, drawn alike; raises ReflError as `refuse_full`."""
        self.refuse_full(chosen)
        found: list[Any] = []
        for start, owner, members in zip(
            self.starts[:-1], self.owners, self.inside(chosen), strict=True
        ):
            if len(members):
                lots = random.random((draws, size(owner)))
                lots[:, members] = np.inf  # never among the first
                found.append(start + _first(lots, len(members)))
        return list(np.concatenate(found, axis=1)) if found else [chosen] * draws

    def anywhere(self, k: int, draws: int, random: np.random.Generator) -> list[Set]:
        """Sets of k parts of the whole pool, drawn alike."""
        return list(_first(random.random((draws, self.count)), k))

    # -- edits -------------------------------------------------------------------------------------

    def edits(self, sets: Sequence[Set], change: Change) -> Edits:
        """Of a batch: in its copy b the members of sets[b] are changed."""
        chosen = np.zeros((len(sets), self.count), dtype=bool)
        for b, one in enumerate(sets):
            chosen[b, one] = True
        parts = np.split(chosen, self.starts[1:-1], axis=1)
        return {
            site_of(owner): change.edit(owner, part)
            for owner, part in zip(self.owners, parts, strict=True)
            if part.any()
        }


def _first(lots: Any, k: int) -> Any:  # (draws, N) -> int (draws, k)
    """Of each draw the numbers of the k smallest lots."""
    return np.sort(np.argsort(lots, axis=1)[:, :k], axis=1)


@dataclass(frozen=True)
class Change:
    """What is done to each part of a set.

    factor    a number
    amount    a number for all; or a mapping of sites to arrays, one number for each part there
              (width,), or one for each position as well, (P, width)
    tokens    the positions at which, int (P,), or a slice; None for all
    """

    factor: float = 0.0
    amount: float | Mapping[str, Any] = 0.0
    tokens: Any = field(default=None, hash=False)

    def edit(self, owner: Owner, chosen: Any) -> Edit:  # bool (B, parts)
        """Of an owner's site: in copy b its parts of chosen[b] are changed."""
        one = self.amount[site_of(owner)] if isinstance(self.amount, Mapping) else self.amount
        where = chosen[:, None, :] if isinstance(owner, Mlp) else chosen[:, :, None, None]
        amount = np.where(where, one, 0.0) if np.any(one) else 0.0
        index = Ellipsis if self.tokens is None else (Ellipsis, self.tokens, slice(None))
        return Edit(np.where(where, self.factor, 1.0), amount, index)


T = TypeVar("T")


def each(
    subject: Subject, pool: Pool, sets: Sequence[Set], change: Change, of: Callable[[Any], T]
) -> list[T]:
    """`of` what is explained, z (V,), in one copy of the input for each set: as many copies at once
    as its question allows. Raises ReflError for a change that does not fit.
    """
    found: dict[int, T] = {}
    question, reading = subject.question, subject.reading
    for group in question.groups([reading] * len(sets)):
        edits = pool.edits([sets[n] for n in group], change)
        rows = question.rows([reading] * len(group), further=edits)
        found.update((n, of(z)) for n, z in zip(group, rows, strict=True))
    return [found[n] for n in range(len(sets))]
