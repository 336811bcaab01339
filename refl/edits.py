"""Changes to what a net computes: at a site, in the middle of a run          z' = f z + a

    factor   f, a constant: what z' receives, z receives in full
    amount   a, a constant: it receives what the rule for `add` gives it, absorbed as `edit`
    index    where in the activation (the batch axis left out), everywhere by default

f = 0 switches off, f = 0 with a = v puts v in place, f = 1 with a steers. A recorded run has the
change as operations of its own, so that the records still follow from each other: the site keeps
what was computed there, `<site>.edited` is what everything after it reads. An edit of a module's
input, `<path>.input`, is read by that module alone, as by a framework's pre-hook.

An index counts in one example as it runs: inputs of different lengths are never padded where there
are edits, so that -1 is the last token of each. In an expert it counts the tokens that chose it,
and from where the explained row is chosen on (`lm_head`) there is that row alone.

A function of the activation, array to array, can stand in place of an Edit where nothing is
recorded: no rule is known for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from refl.arguments import array_said, as_whole, expected, received
from refl.arrays import Array, can_ask, device_of, like, namespace
from refl.errors import ReflError, argument, nearest, shown

INSIDE_ATTENTION = ("scores", "biased", "divided", "tanh", "capped", "probabilities", "transposed")
"""Ends of sites that only the plain form of attention has."""

_ATTENTION = re.compile(r"key\.transposed|(scores|probabilities)(\..+)?")
"""The same sites by their names in the attention's module, those of inputs among them."""


@dataclass(frozen=True, eq=False, repr=False)
class Edit:
    """z' = factor z + amount, at `index` (everywhere by default).

    factor, amount    numbers, or arrays that broadcast against the activation at the index, without
                      the batch axis or with it
    index             as NumPy indexes the activation of one example: (..., 17) is neuron 17 at
                      every token, (3, 17) at token 3 alone, (-1,) the last token

    Raises ReflError for numbers that are not finite, and for what is no index.
    """

    factor: Any = 1.0
    amount: Any = 0.0
    index: Any = Ellipsis

    def __post_init__(self) -> None:
        vars(self).update(
            factor=_constant("factor", self.factor),
            amount=_constant("amount", self.amount),
            index=_index(self.index),
        )

    def __repr__(self) -> str:
        """Arrays by their shape and a hash of their bytes: what a run can be told apart by."""
        index = ", ".join(map(_part_said, self.index))
        return f"Edit(factor={_said(self.factor)}, amount={_said(self.amount)}, index=({index}))"

    def __call__(self, z: Array) -> Array:
        """The activation (B, ...) once changed; what is not at the index keeps its bits."""
        changed, place = namespace(z).asarray(z, copy=True), self.place(z)
        changed[place] = like(self.factor, z) * z[place] + like(self.amount, z)
        return changed

    def constants(self, z: Array) -> tuple[Array | None, Array | None]:  # (B, ...) -> twice that
        """factor and amount in the shape of the activation. None for one that changes nothing; for
        both it is the amount alone.
        """
        amount = None if _is(self.amount, 0.0) else self._filled(z, self.amount, 0.0)
        neutral = amount is not None and _is(self.factor, 1.0)
        return None if neutral else self._filled(z, self.factor, 1.0), amount

    def _filled(self, z: Array, value: Any, elsewhere: float) -> Array:
        array = namespace(z).full(z.shape, elsewhere, dtype=z.dtype, **device_of(z))
        array[self.place(z)] = like(value, z)
        return array

    def place(self, z: Array) -> tuple[Any, ...]:
        """The index with the batch axis, where z lies."""
        xp, device = namespace(z), device_of(z)
        where = (
            xp.asarray(part, **device) if isinstance(part, np.ndarray) else part
            for part in self.index
        )
        return (slice(None), *where)


@dataclass(frozen=True, eq=False, repr=False)
class Successive(Edit):
    """Edits of one site made one after the other, each at its own index. Together they are one
    change z' = f z + a again:

        f = f_2 f_1,    a = f_2 a_1 + a_2
    """

    parts: tuple[Edit, ...] = ()

    def __repr__(self) -> str:
        return ", then ".join(map(repr, self.parts))

    def __call__(self, z: Array) -> Array:
        for part in self.parts:
            z = part(z)
        return z

    def constants(self, z: Array) -> tuple[Array | None, Array | None]:  # (B, ...) -> twice that
        f, a = self.parts[0].constants(z)
        for part in self.parts[1:]:
            g, b = part.constants(z)
            a = b if a is None else _product(g, a) if b is None else _product(g, a) + b
            f = g if f is None else _product(g, f)
        return f, a


def _product(g: Array | None, x: Array) -> Array:
    """None is 1 everywhere."""
    return x if g is None else g * x


def _parts_of(edit: Edit) -> tuple[Edit, ...]:
    return edit.parts if isinstance(edit, Successive) else (edit,)


Change: TypeAlias = Edit | Callable[[Array], Array]

Edits: TypeAlias = Mapping[str, Change]
"""Site -> what is changed there."""


def edited_site(site: str) -> str:
    """The name of what an edit makes."""
    return f"{site}.edited"


# -- what an edit is made of -----------------------------------------------------------------------


def _constant(name: str, value: Any) -> Any:
    """A float, or an array of numbers: a copy of one that lies on the host."""
    what = "a finite number, or an array of them"
    if type(value).__module__.partition(".")[0] == "cupy":  # finite or not is seen in the run
        return value
    try:
        array = np.array(value)
        numbers = array.dtype.kind in "iuf" and bool(np.isfinite(array).all())
    except Exception as reason:
        raise expected(name, what, value) from reason
    if not numbers:
        raise expected(name, what, value)
    array.setflags(write=False)
    return float(array) if array.ndim == 0 else array


def _index(index: Any) -> tuple[Any, ...]:
    """An index as a tuple of parts. Raises ReflError for one that NumPy does not know."""
    parts = index if isinstance(index, tuple) else (index,)
    found = tuple(map(_part, parts))
    if any(part is NotImplemented for part in found) or sum(p is Ellipsis for p in found) > 1:
        raise expected(
            "index",
            "a whole number, a slice, ..., a list of whole numbers, or a tuple of these, one for "
            "each axis but that of the batch",
            index,
        )
    return found if any(part is Ellipsis for part in found) else (*found, Ellipsis)


def _part(part: Any) -> Any:
    """NotImplemented for what is no part of an index."""
    if part is Ellipsis:
        return part
    if isinstance(part, slice):
        ends = (part.start, part.stop, part.step)
        whole = all(end is None or as_whole(end) is not None for end in ends)
        return part if whole and (part.step is None or as_whole(part.step)) else NotImplemented
    number = as_whole(part)
    if number is not None:
        return number
    if isinstance(part, (list, np.ndarray)):
        try:
            array = np.array(part)
        except Exception:  # noqa: BLE001 - an object of the caller's may raise anything
            return NotImplemented
        array.setflags(write=False)
        return array if array.dtype.kind in "iub" and array.ndim else NotImplemented
    return NotImplemented


def _is(value: Any, number: float) -> bool:
    return isinstance(value, float) and value == number


def _said(value: Any) -> str:
    if isinstance(value, float):
        return repr(value)
    if not isinstance(value, np.ndarray):
        return f"an array {tuple(value.shape)}"
    return array_said(value)


def _part_said(part: Any) -> str:
    if part is Ellipsis:
        return "..."
    if isinstance(part, slice):
        ends = ["" if end is None else str(end) for end in (part.start, part.stop)]
        return ":".join(ends if part.step is None else [*ends, str(part.step)])
    if isinstance(part, np.ndarray) and part.size <= 16:
        return str(part.tolist())
    return _said(part) if isinstance(part, np.ndarray) else str(part)


def of_tokens(site: str, edit: Change) -> bool:
    """Whether an edit may say at which tokens: then it means others once a token is deleted."""
    if not isinstance(edit, Edit):
        return False
    if isinstance(edit, Successive):
        return any(of_tokens(site, part) for part in edit.parts)
    parts = [p for p in edit.index if not (isinstance(p, slice) and p == slice(None))]
    inside = re.search(rf"(^|\.)({_ATTENTION.pattern})$", site) is not None
    if (inside or site.endswith("context")) and len(parts) == 2 and parts[1] is Ellipsis:
        parts = [Ellipsis]  # the first axis counts heads
    if parts[0] is not Ellipsis or len(parts) > 2 or (inside and len(parts) > 1):
        return True
    if np.ndim(parts[-1]) > 1:  # a mask of two axes or more
        return True
    axis = 1 if inside or isinstance(parts[-1], int) else 2  # of the tokens, from the last
    shapes = [np.shape(value) for value in (edit.factor, edit.amount)]
    return any(len(shape) >= axis and shape[-axis] != 1 for shape in shapes)


# -- the plainest ones -----------------------------------------------------------------------------

off = Edit(factor=0.0)
"""Switched off."""


def value(amount: Any) -> Edit:
    """This value, a number or an array, in place of what was computed. Raises ReflError for what is
    no finite number.
    """
    return Edit(factor=0.0, amount=amount)


def scale(factor: Any) -> Edit:
    """So many times what was computed. Raises ReflError for what is no finite number."""
    return Edit(factor=factor)


# -- edits as a caller gives them ------------------------------------------------------------------


def checked(edits: Any, recorded: bool) -> dict[str, Change]:
    """Edits as a caller gives them. Raises ReflError for what are none, and for a function where
    the run is recorded.
    """
    if edits is None:
        return {}
    if not isinstance(edits, Mapping) or not all(isinstance(site, str) for site in edits):
        raise ReflError(
            f"{argument('edits')} has to map sites to edits, such as "
            "{'model.layers.0.mlp': refl.Edit(factor=0)}, got "
            f"{received(edits)}"
        )
    for site, edit in edits.items():
        _refuse_edit_of_edit(site, edits)
        if isinstance(edit, Edit):
            continue
        if not callable(edit):
            raise ReflError(
                f"the edit of {shown(site)} is {received(edit)}: expected a refl.Edit"
                + ("" if recorded else ", or a function of the activation")
            )
        if recorded:
            raise ReflError(
                f"the edit of {shown(site)} is a function, for which no rule is known: to explain "
                "an edited run give a refl.Edit (factor, amount, index)"
            )
    return dict(edits)


def _refuse_edit_of_edit(site: str, edits: Mapping[str, Any]) -> None:
    for other in edits:
        if f"{site}.".startswith(f"{edited_site(other)}."):
            raise ReflError(
                f"{argument('edits')} names {shown(site)!r}, which the edit of {shown(other)} "
                "makes: change that one"
            )


def said(edits: Edits) -> str:
    """What is changed where, arrays by their hashes: enough to tell whether a run is this one."""
    return "; ".join(f"{site}: {edit!r}" for site, edit in edits.items())


def guarded(site: str, change: Change) -> Change:
    """A function whose answer is looked at: it has to be an activation like the one it got."""
    return change if isinstance(change, Edit) else partial(_guarded, site, change)


def _guarded(site: str, function: Callable[[Array], Any], z: Array) -> Array:
    changed = function(z)
    if getattr(changed, "shape", None) != z.shape:
        shape = getattr(changed, "shape", None)
        what = f"a {type(changed).__name__}" if shape is None else f"the shape {tuple(shape)}"
        raise ReflError(
            f"the edit of {shown(site)} returns {shown(what)}: expected an array of the shape "
            f"{tuple(z.shape)}, as it was given"
        )
    if changed.dtype != z.dtype:
        raise ReflError(
            f"the edit of {shown(site)} returns {changed.dtype}: expected {z.dtype}, as it was "
            "given"
        )
    xp = namespace(changed)
    if can_ask(changed) and not bool(xp.all(xp.isfinite(changed))):
        raise ReflError(
            f"the edit of {shown(site)} returns numbers that are not finite: expected finite ones"
        )
    return changed


class Whole(dict[str, Change]):
    """All edits of a run. Those of its network are among them, and are not made once more where a
    question is asked anew.
    """


def whole(own: Edits, further: Any, recorded: bool) -> Whole:
    """Those of a network, and then a caller's, once checked (`checked`)."""
    asked = checked(further, recorded)
    return Whole(asked if isinstance(further, Whole) else together(checked(own, recorded), asked))


def together(first: Edits, further: Edits) -> dict[str, Change]:
    """Both; a site that has both is changed by one after the other."""
    both = dict(first) | dict(further)
    for site in first.keys() & further.keys():
        a, b = first[site], further[site]
        if isinstance(a, Edit) and isinstance(b, Edit):
            both[site] = Successive(parts=(*_parts_of(a), *_parts_of(b)))
        else:
            both[site] = partial(_one_after_the_other, a, b)
    return both


def _one_after_the_other(a: Change, b: Change, z: Array) -> Array:
    return b(a(z))


# -- in a run --------------------------------------------------------------------------------------


def applied(edit: Change, z: Array, site: str) -> Array:  # (B, ...) -> (B, ...)
    """The activation once changed. A function gets a copy: the array may be that of a parameter."""
    if not isinstance(edit, Edit):
        return edit(namespace(z).asarray(z, copy=True))
    return _fitting(edit, edit, z, site)


def constants(
    edit: Edit, z: Array, site: str
) -> tuple[Array | None, Array | None]:  # (B, ...) -> twice that
    """As `Edit.constants`; raises ReflError where they do not fit the activation."""
    return _fitting(edit, edit.constants, z, site)  # type: ignore[no-any-return]


def _fitting(edit: Edit, function: Callable[[Array], Any], z: Array, site: str) -> Any:
    try:
        return function(z)
    except (IndexError, ValueError) as reason:
        raise ReflError(
            f"the edit of {site} does not fit its activation of the shape {tuple(z.shape[1:])}: "
            f"{edit!r} ({reason})"
        ) from reason


def inside_attention(edits: Iterable[str], path: str) -> bool:
    """Whether something is changed that only the plain form of the attention at `path` has."""
    start = f"{path}." if path else ""
    return any(
        site.startswith(start) and _ATTENTION.fullmatch(site[len(start) :]) for site in edits
    )


def any_expert(name: str) -> str:
    """A site by that of the first expert: which experts run is decided by the text."""
    return re.sub(r"\.experts\.\d+", ".experts.0", name)


def refuse_strange(edits: Iterable[str], names: Iterable[str], weights: Iterable[str]) -> None:
    """For edits that were not made: raises ReflError unless they are of an expert that no token
    chose. An edit of what is no site would change nothing, and say nothing.
    """
    known, tensors = set(names), None
    alike = {any_expert(name) for name in known}
    for site in edits:
        expert = re.match(r".*\.experts\.\d+\.", f"{site}.")
        if expert is not None and any_expert(site) in alike:
            tensors = set(weights) if tensors is None else tensors
            if any(name.startswith(expert[0]) for name in tensors):
                continue
        if site in known:
            raise ReflError(
                f"{argument('edits')} names {shown(site)!r}, which this run does not compute: "
                "change what comes before or after it"
            )
        near = ", ".join(nearest(site, known, 3)) or "none"
        raise ReflError(
            f"{argument('edits')} names {shown(site)!r}, which is no site of this model; "
            f"nearest: {near}"
        )


def refuse_strange_leaves(leaves: Iterable[str], sites: Iterable[str]) -> None:
    """For leaves that no run has started from. Raises ReflError."""
    raise ReflError(
        f"{argument('leaves')} names {shown(', '.join(leaves))!r}, where this run does not start: "
        f"expected one of {', '.join(sites)}"
    )
