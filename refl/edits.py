"""Changes to what a net computes: at a site, in the middle of a run          z' = f z + a

    factor   f, a constant: what z' receives, z receives in full
    amount   a, a constant: it receives what the rule for `add` gives it, absorbed as `edit`
    index    where in the activation (the batch axis left out), everywhere by default

f = 0 switches off, f = 0 with a = v puts v in place, f = 1 with a steers. A recorded run has the
change as operations of its own, so that the records still follow from each other: the site keeps
what was computed there, `<site>.edited` is what everything after it reads. An edit of a module's
input, `<path>.input`, is read by that module alone, as by a framework's pre-hook.

A function of the activation, array to array, can stand in place of an Edit where nothing is
recorded: no rule is known for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from refl.arrays import Array, namespace
from refl.errors import ReflError, argument, nearest, shown

INSIDE_ATTENTION = ("scores", "biased", "divided", "tanh", "capped", "probabilities", "transposed")
"""Ends of sites that only the plain form of attention has."""


@dataclass(frozen=True)
class Edit:
    """z' = factor z + amount, at `index` (everywhere by default).

    factor, amount    numbers, or arrays that broadcast against the activation at the index, without
                      the batch axis or with it
    index             as NumPy indexes the activation of one example: (..., 17) is neuron 17 at
                      every token, (3, 17) at token 3 alone, (-1,) the last token
    """

    factor: Any = 1.0
    amount: Any = 0.0
    index: Any = Ellipsis

    def __call__(self, z: Array) -> Array:
        """The activation (B, ...) once changed; what is not at the index keeps its bits."""
        changed = namespace(z).asarray(z, copy=True)
        place = self._place()
        part = z[place]
        changed[place] = self._like(self.factor, z) * part + self._like(self.amount, z)
        return changed

    def constants(self, z: Array) -> tuple[Array | None, Array | None]:  # (B, ...) -> twice that
        """factor and amount in the shape of the activation; None where they change nothing."""
        found: list[Array | None] = []
        for value, neutral in ((self.factor, 1.0), (self.amount, 0.0)):
            array = namespace(z).full_like(z, neutral)
            array[self._place()] = self._like(value, z)
            found.append(None if bool(namespace(z).all(array == neutral)) else array)
        return found[0], found[1]

    def _place(self) -> tuple[Any, ...]:
        index = self.index if isinstance(self.index, tuple) else (self.index,)
        return (slice(None), *index)

    @staticmethod
    def _like(value: Any, z: Array) -> Array:
        return namespace(z).asarray(value, dtype=z.dtype)


Change: TypeAlias = Edit | Callable[[Array], Array]

Edits: TypeAlias = Mapping[str, Change]
"""Site -> what is changed there."""


def checked(edits: Any, recorded: bool) -> dict[str, Change]:
    """Edits as a caller gives them. Raises ReflError for what are none, and for a function where
    the run is recorded.
    """
    if edits is None:
        return {}
    if not isinstance(edits, Mapping) or not all(isinstance(site, str) for site in edits):
        raise ReflError(
            f"{argument('edits')} has to map sites to edits, such as "
            "{'model.layers.0.mlp': refl.Edit(factor=0)}, got a "
            f"{type(edits).__name__}"
        )
    for site, edit in edits.items():
        if isinstance(edit, Edit):
            continue
        if not callable(edit):
            raise ReflError(
                f"the edit of {shown(site)} is a {type(edit).__name__}: expected a refl.Edit"
                + ("" if recorded else ", or a function of the activation")
            )
        if recorded:
            raise ReflError(
                f"the edit of {shown(site)} is a function, for which no rule is known: to explain "
                "an edited run give a refl.Edit (factor, amount, index)"
            )
    return dict(edits)


def refuse_strange(edits: Edits, names: Mapping[str, Any]) -> None:
    """Raises ReflError for an edit of what is no site: it would change nothing, and say nothing."""
    for site in edits:
        if site not in names:
            near = ", ".join(nearest(site, names, 3)) or "none"
            raise ReflError(
                f"{argument('edits')} names {shown(site)!r}, which is no site of this model; "
                f"nearest: {near}"
            )


def inside_attention(edits: Edits, path: str) -> bool:
    """Whether something is changed that only the plain form of the attention at `path` has."""
    return any(
        site.startswith(f"{path}.") and site.rpartition(".")[2] in INSIDE_ATTENTION
        for site in edits
    )
