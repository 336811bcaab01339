"""Conditional relevance: what flows through some neurons, heads or tokens    R' = m R,  m in {0, 1}

    Achtibat et al. 2023, From attribution maps to human-understandable explanations through concept
    relevance propagation, Nature Machine Intelligence 5, arXiv 2206.03208

At a site what was not chosen is set to 0 before the sweep goes on; what is removed is absorbed
there as `condition`. In gradient x input form it is g that is set to 0, and with it R = x g.

Most sites of a transformer have a way around them, the residual stream, which the nets of the paper
have not. What went around is removed as well, at the site, and absorbed with the rest (at the input
itself what was there before the sweep met the site: that of a decoder's tokens, where a site of the
encoder is chosen). So the map is that of the relevance which came through what was chosen, and at
every site the maps of a partition add up to the map of the whole site. With `through=False` the way
around stays, as a mask in a backward hook leaves it: then it is part of every map, and they add up
to the whole only where there is none (the output of a block). Of several sites the relevance has
come through each.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from refl import arguments
from refl.arrays import Array, asnumpy, device_of, namespace
from refl.errors import ReflError, argument, nearest, shown

CAUSE = "condition"


@dataclass(frozen=True)
class AnyOf:
    """What several indices choose together."""

    indices: tuple[Any, ...]


@dataclass(frozen=True)
class Conditions:
    """Any name of a value -> what of it is chosen; a list of names is all of each.

    chosen     an array of True and False that broadcasts against the activation of one example
               (the batch axis left out); or an index as NumPy takes it there: (..., 17) is neuron
               17 at every token, (3, 17) at token 3 alone, -1 the last token, (2,) head 2 of a
               site whose first axis counts heads, [] nothing. Of a neuron or a head by its name
               (L2.N17, L1.H0: refl.components) the tokens: ... for all of them, 3, [1, 2]. Several
               of one site are any of them; of several sites relevance has come through each
    through    whether what goes around a site is removed there too
    """

    chosen: Mapping[str, Any] = field(default_factory=dict)
    through: bool = True

    def __post_init__(self) -> None:
        if (listed := arguments.names(self.chosen)) is not None:
            vars(self).update(chosen=dict.fromkeys(listed, Ellipsis))
        if not isinstance(self.chosen, Mapping) or not all(isinstance(s, str) for s in self.chosen):
            raise ReflError(
                f"{argument('conditions')} has to map sites to what is chosen there, such as "
                "{'model.layers.0.mlp.act_fn': (..., 17)}, or be a list of neurons, heads and "
                "sites, such as ['L0.N17'], got "
                f"{arguments.received(self.chosen)}"
            )
        for site, chosen in self.chosen.items():
            if chosen is None:
                raise arguments.expected(
                    f"the condition at {site}", "an array of True and False, or an index", None
                )
        arguments.flag("through", self.through)

    def __bool__(self) -> bool:
        return bool(self.chosen)

    @property
    def said(self) -> str:
        """What was chosen where, masks by their hashes: what a map can be told apart by."""
        chosen = "; ".join(f"{site}: {_said(what)}" for site, what in self.chosen.items())
        return chosen + " (and what goes around)" * (not self.through)

    def mask(self, names: Sequence[str], like: Array) -> Array | None:  # (B, ...) -> (...)
        """What of a value of these names is chosen, bool; None where nothing is said of it. Raises
        ReflError for what does not fit its shape.
        """
        shape = tuple(like.shape[1:])
        masks = [_mask(name, self.chosen[name], shape) for name in names if name in self.chosen]
        if not masks:
            return None
        chosen = np.logical_and.reduce(masks)
        return namespace(like).asarray(chosen, **device_of(like))

    def with_parts(self, is_part: Callable[[str], bool], found: Callable[[str], Any]) -> Conditions:
        """The same with neurons and heads as indices at their sites. `is_part`: whether a name is
        meant as one; `found`: where it is (Components.part, which refuses strange names).
        """
        several, chosen = defaultdict[str, list[Any]](list), dict[str, Any]()
        for name, what in self.chosen.items():
            if is_part(name):
                part = found(name)
                several[part.site].append(_of_part(part, what))
            else:
                chosen[name] = what
        for site, indices in several.items():
            if site in chosen:
                raise ReflError(
                    f"{argument('conditions')} names {shown(site)} as a site and a neuron or a "
                    "head of it: choose by one or the other"
                )
            chosen[site] = indices[0] if len(indices) == 1 else AnyOf(tuple(indices))
        return replace(self, chosen=chosen) if several else self

    def refuse_strange(self, names: Collection[str]) -> None:
        """Raises ReflError for what is no site: it would change nothing, and say nothing."""
        for site in self.chosen:
            if site not in names:
                near = ", ".join(nearest(site, names, 3)) or "none"
                raise ReflError(
                    f"{argument('conditions')} names {shown(site)!r}, which is no site of this "
                    f"model; nearest: {near}"
                )


def split(r: Array, mask: Array) -> tuple[Array, Array]:  # (B, ...), (...) -> (B, ...) twice
    """What goes on, and what is removed: together r, number by number."""
    xp = namespace(r, mask)
    nothing = xp.zeros_like(r)
    return xp.where(mask, r, nothing), xp.where(mask, nothing, r)


def _of_part(part: Any, what: Any) -> tuple[Any, ...]:
    """The index of a neuron, or of a head, at some tokens."""
    if what is Ellipsis and part.number is not None:
        return part.index  # type: ignore[no-any-return]
    if what is Ellipsis:
        raise ReflError(
            f"{part.name} is a block, whose output nothing goes around: choose tokens of it, its "
            f"neurons ({part.name}.N0) or its heads ({part.name}.H0)"
        )
    if ".experts." in part.site:
        raise ReflError(
            f"{part.name} is a neuron of an expert, which has rows for the tokens that choose it: "
            "choose ... of it, all of them"
        )
    where = what[0] if isinstance(what, tuple) and len(what) == 1 else what
    if part.number is None:
        return what if isinstance(what, tuple) else (what,)
    one_bool = _is_mask(where) and np.shape(where) == ()  # which NumPy takes for an axis more
    if isinstance(where, tuple) or where is None or one_bool:
        raise arguments.expected(
            f"the condition at {part.name}", "... or the numbers of some tokens", what
        )
    return (where, part.number) if part.kind == "neuron" else (part.number, where)


def _mask(name: str, chosen: Any, shape: tuple[int, ...]) -> Any:  # -> NumPy bool, `shape`
    if isinstance(chosen, AnyOf):
        return np.logical_or.reduce([_mask(name, index, shape) for index in chosen.indices])
    if _is_mask(chosen):
        try:
            return np.broadcast_to(_on_host(chosen), shape)
        except ValueError:
            raise ReflError(
                f"the condition at {name} is a mask of shape {np.shape(chosen)}, which does not "
                f"broadcast to the activation of one example, {shape}"
            ) from None
    mask = np.zeros(shape, dtype=bool)
    try:
        mask[_on_host(chosen)] = True
    except (IndexError, TypeError, ValueError):
        raise _no_place(name, chosen, shape) from None
    return mask


def _no_place(name: str, chosen: Any, shape: tuple[int, ...]) -> ReflError:
    return ReflError(
        f"the condition at {name} is {arguments.received(chosen)}: expected an array of True and "
        f"False, or an index into the activation of one example, whose shape is {shape}"
    )


def _said(chosen: Any) -> str:
    if isinstance(chosen, AnyOf):
        return " or ".join(map(_said, chosen.indices))
    if _is_mask(chosen):
        return arguments.array_said(np.asarray(_on_host(chosen)))
    parts = chosen if isinstance(chosen, tuple) else (chosen,)
    plain = [_on_host(p).tolist() if hasattr(p, "tolist") else p for p in parts]
    return f"({', '.join('...' if p is Ellipsis else repr(p) for p in plain)})"


def _on_host(chosen: Any) -> Any:
    return asnumpy(chosen) if hasattr(chosen, "dtype") else chosen


def _is_mask(chosen: Any) -> bool:
    """True and False, in an array or a list; a tuple is an index."""
    if isinstance(chosen, list):
        flat = np.asarray(chosen, dtype=object).ravel()
        return flat.size > 0 and all(isinstance(one, (bool, np.bool_)) for one in flat)
    return isinstance(chosen, bool) or "bool" in str(getattr(chosen, "dtype", ""))
