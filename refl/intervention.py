"""Neurons, heads and sites by their names, and what is done to them, as edits (refl.edits).

    {"L3.N17": refl.off, "L3.H2": refl.scale(2.0), "model.layers.0.mlp": function}

Changes of several neurons of one MLP, or of several heads of one attention, are one edit of its
site. At some positions: neurons at (..., t, n), heads at (h, t), a site at (..., t, :), for tokens
are the last axis but one of every activation that has them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from refl import arguments
from refl.arrays import Array, namespace
from refl.components import Components, Part, is_name
from refl.edits import Change, Edit, guarded
from refl.errors import ReflError, argument, shown

Positions = int | Sequence[int] | slice | None


def edits_of(
    changes: Mapping[str, Any], components: Components, positions: Positions = None
) -> dict[str, Change]:
    """Edits by site. Raises ReflError for names that nothing has, and for changes that are none."""
    if not isinstance(changes, Mapping) or not all(isinstance(name, str) for name in changes):
        raise ReflError(
            f"{argument('edits')} has to map neurons, heads or sites to changes, such as "
            f"{{'L0.N17': refl.off}}, got {arguments.received(changes)}"
        )
    where, found = _positions(positions), dict[str, Change]()
    numbered = defaultdict[str, list[tuple[Part, Change]]](list)
    for name, change in changes.items():
        _refuse_strange(name, change)
        if is_name(name):
            part = _changeable(components.part(name))
            numbered[part.site].append((part, change))
        else:
            found[name] = change if where is None else _at_positions(name, change, where)
    for site, several in numbered.items():
        if site in found:
            raise ReflError(
                f"{argument('edits')} changes {shown(site)} as a site and {several[0][0].name}, "
                "which is a part of it: change it once"
            )
        found[site] = _of_parts(site, several, where)
    return found


def _changeable(part: Part) -> Part:
    if part.number is None:
        raise ReflError(
            f"{part.name} is a block, whose output is the whole residual stream: change its neurons"
            f" ({part.name}.N0), its heads ({part.name}.H0), or a site such as {part.site}"
        )
    return part


def _refuse_strange(name: str, change: Any) -> None:
    if not isinstance(change, Edit) and not callable(change):
        raise ReflError(
            f"the edit of {shown(name)} is {arguments.received(change)}: expected refl.off, "
            "refl.value(v), refl.scale(f), a refl.Edit, or a function of the activation"
        )


def _positions(positions: Positions) -> Any:
    """None, a slice, or whole numbers (P,)."""
    if positions is None or isinstance(positions, slice):
        return None if positions is None else Edit(index=positions).index[0]
    one = arguments.as_whole(positions)
    several = [one] if one is not None else list(arguments.members(positions) or [])
    numbers = [arguments.as_whole(t) for t in several]
    if not numbers or None in numbers:
        raise arguments.expected(
            "positions", "a whole number, a list of them, or a slice", positions
        )
    return np.array(numbers)


# -- of a site -------------------------------------------------------------------------------------


def _at_positions(site: str, change: Change, where: Any) -> Change:
    index = (Ellipsis, where, slice(None))
    if not isinstance(change, Edit):
        return Within(((index, f"{site}", change),))
    if change.index != (Ellipsis,):
        raise ReflError(
            f"the edit of {shown(site)} has an index of its own: leave {argument('positions')} out"
        )
    return Edit(change.factor, change.amount, index)


# -- of neurons and heads --------------------------------------------------------------------------


def _of_parts(site: str, several: Sequence[tuple[Part, Change]], where: Any) -> Change:
    parts = [part for part, _ in several]
    _refuse_experts(parts[0], where)
    if any(not isinstance(change, Edit) for _, change in several):
        return Within(tuple((_place([p], where, True), p.name, c) for p, c in several))
    edits = [_whole(part, change) for part, change in several]
    shape = (len(parts),) if parts[0].kind == "neuron" else (len(parts), 1, 1)
    factor, amount = (
        _together([getattr(edit, name) for edit in edits], shape) for name in ("factor", "amount")
    )
    return Edit(factor, amount, _place(parts, where))


def _together(numbers: Sequence[float], shape: tuple[int, ...]) -> Any:
    """One number where they are equal, for an array of zeros would be one more operation."""
    return numbers[0] if len(set(numbers)) == 1 else np.array(numbers).reshape(shape)


def _whole(part: Part, change: Change) -> Edit:
    """An edit of one part: numbers alone, and no index."""
    if (
        isinstance(change, Edit)
        and change.index == (Ellipsis,)
        and np.ndim(change.factor) == np.ndim(change.amount) == 0
    ):
        return change
    raise ReflError(
        f"the edit of {part.name} has to be of numbers, without an index: refl.off, refl.value(v), "
        "refl.scale(f); give arrays and indices for a site"
    )


def _refuse_experts(part: Part, where: Any) -> None:
    if where is not None and ".experts." in part.site:
        raise ReflError(
            f"{part.name} is a neuron of an expert, which has rows for the tokens that choose it: "
            f"leave {argument('positions')} out"
        )


def _place(parts: Sequence[Part], where: Any, single: bool = False) -> tuple[Any, ...]:
    """The index of some neurons, or some heads, at some positions, the batch axis left out."""
    numbers: Any = parts[0].number if single else np.array([part.number for part in parts])
    if parts[0].kind == "neuron":
        if where is None:
            return (Ellipsis, numbers)
        if single or isinstance(where, slice):
            return (Ellipsis, where, numbers)
        return (Ellipsis, where[:, None], numbers[None, :])
    if where is None:
        return (numbers, Ellipsis)
    if single or isinstance(where, slice):
        return (numbers, where, Ellipsis)
    return (numbers[:, None], where[None, :], Ellipsis)


@dataclass(frozen=True, eq=False)
class Within:
    """Functions of parts of an activation, each at its index (the batch axis left out)."""

    changes: tuple[tuple[tuple[Any, ...], str, Change], ...]

    def __call__(self, z: Array) -> Array:
        changed = namespace(z).asarray(z, copy=True)
        for index, name, change in self.changes:
            function: Callable[[Array], Array] = guarded(name, change)
            place = Edit(index=index).place(z)
            try:
                part = changed[place]
            except (IndexError, ValueError) as reason:
                raise ReflError(
                    f"the edit of {shown(name)} does not fit its activation of the shape "
                    f"{tuple(z.shape[1:])} ({reason})"
                ) from reason
            changed[place] = function(namespace(z).asarray(part, copy=True))
        return changed

    def __repr__(self) -> str:
        names = ", ".join(name for _, name, _ in self.changes)
        return f"functions of {names}"
