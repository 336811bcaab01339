"""The neurons, heads and blocks that carry most relevance, across a whole net.

    R_n    = sum_t R[t, n]           a neuron, the positions t summed (over="positions")
    R_h    = sum_t sum_d R[h, t, d]  a head
    R_B    = sum_t sum_d R[t, d]     a block, at its output

    Achtibat et al. 2024, AttnLRP, arXiv 2402.05602, section 3.4 (neurons of the MLP at the input of
    its last linear layer)

The sums over what one site is made of are the relevance of the site, as the conservation ledger has
it; of different sites they do not add up, for relevance passes one after the other.

Rows of a site are tokens. Those of an expert are the tokens that chose it: those whose first choice
it is, then the second, and so on (refl.nets.moe), which the router's probabilities tell.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from refl import arguments
from refl.components import Attention, Block, Components, Mlp
from refl.errors import LONGEST_REPR, ReflError, argument, nearest_patterns, sentence, shown
from refl.kept import (
    ROUTER,
    Explained,
    Positions,
    alike,
    inside_expert,
    is_kept,
    names,
    refused,
    shape,
)
from refl.rows import Rows, number_or_null

BY = ("neuron", "head", "block")
SIGNS = ("both", "positive", "negative")
OVER = ("positions", "each")

Over = int | str
"""A whole number, the token; or one of OVER."""


# -- what is found ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ranked:
    """A neuron, a head or a block with its relevance.

    name         L3.N17, L3.H2, L3; of a site that is no component `site[n]`, or the site
    kind         neuron, head, block; of another site feature (an entry of its last axis), head, or
                 site (all of it)
    position     the token; None where positions are summed
    strongest    the token at which |R| is largest; None where rows stand for no tokens
    token        its text; of a picture `class token`, or `patch ROW, COLUMN`
    fraction     of what is explained, R / explained; nan where that is 0
    activation   of a neuron at the strongest token; None for what is several numbers
    """

    name: str
    kind: str
    site: str
    number: int | None
    block: str | None
    position: int | None
    strongest: int | None
    token: str | None
    relevance: float
    fraction: float
    activation: float | None

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON, which has no nan."""
        return vars(self) | {"fraction": number_or_null(self.fraction)}


@dataclass(frozen=True, repr=False)
class Ranking(Rows[Ranked]):
    """The largest first, by |R|; of equal ones the first in the net, then the smaller number, then
    the earlier token. `of`: how many there are in all.
    """

    by: str
    over: Over
    pattern: str | None
    sign: str
    of: int
    what: str
    explained: float

    def __repr__(self) -> str:
        """One line."""
        few = ", ".join(row.name for row in self.rows[:3]) + (", ..." if len(self) > 3 else "")
        return sentence(f"<Ranking of {len(self)} of {self.of} by {self.by}: {few}>", LONGEST_REPR)

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and strings for JSON."""
        return vars(self) | {"rows": [row.as_dict() for row in self.rows]}


# -- ranking ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """A site that is ranked. label: of the MLP, attention or block that it is of, or None."""

    site: str
    kind: str
    label: str | None = None
    block: str | None = None

    def name(self, number: int | None) -> str:
        """Of one of its entries; of all of it where there is no number."""
        if number is None:
            return self.label or self.site
        letter = "N" if self.kind == "neuron" else "H"
        return f"{self.label}.{letter}{number}" if self.label else f"{self.site}[{number}]"


@dataclass(frozen=True)
class _Entry:
    """One entry of a place before it has a name. key sorts: the largest |R| first, of equal ones
    the first place, then the first entry.
    """

    key: tuple[float, int, int]
    place: Place
    relevance: float
    number: int
    row: int


def ranked(
    e: Explained,
    pattern: str | None = None,
    k: int = 10,
    over: Over = "positions",
    by: str = "neuron",
    sign: str = "both",
) -> Ranking:
    """The k entries of the most relevance, as Explanation.top says. Raises ReflError for arguments
    that are none, and where a site that is asked for was not kept.
    """
    by, k, over, sign = _checked(by, k, over, sign)
    where, found, of = Positions(e), list[_Entry](), 0
    asked = _at_tokens(places(e, pattern, by), over, where)
    for order, (place, rows) in enumerate(asked):
        r = _by_row(e, place, by, where)
        values = r.sum(axis=0)[:, None] if rows is None else r[rows].T  # (entries, rows or 1)
        of += int(_of_sign(values.ravel(), sign).sum())
        for i in _first(values.ravel(), k, sign):
            number, at = divmod(i, values.shape[1])
            row = _strongest(r[:, number], where.tokens(place.site)) if rows is None else rows[at]
            value = float(values[number, at])
            found.append(_Entry((-abs(value), order, i), place, value, number, row))
        found = sorted(found, key=lambda one: one.key)[:k]
    several = tuple(_row(e, entry, by, over, where) for entry in found)
    return Ranking(several, by, over, pattern, sign, of, e.what, e.explained)


def _strongest(r: Any, tokens: Sequence[int] | None) -> int:  # (rows,)
    """The row of the largest |R|, of equal ones that of the earliest token: an expert has the
    tokens in the order in which they chose it.
    """
    size = abs(r)
    equal = [int(row) for row in (size == size.max()).nonzero()[0]]
    return equal[0] if tokens is None else min(equal, key=lambda row: tokens[row])


def _checked(by: Any, k: Any, over: Any, sign: Any) -> tuple[str, int, Over, str]:
    number = arguments.as_whole(over)
    if number is None and (not isinstance(over, str) or over not in OVER):
        raise arguments.expected(
            "over", "'positions' (their sum), 'each', or a whole number, the token", over
        )
    return (
        arguments.one_of("by", by, BY),
        arguments.positive("k", k),
        over if number is None else number,
        arguments.one_of("sign", sign, SIGNS),
    )


def _at_tokens(
    every: Sequence[Place], over: Over, where: Positions
) -> list[tuple[Place, list[int] | None]]:
    """Each place with the rows that are asked for, None for the sum of all. A token counts in the
    encoder and in the decoder. Raises ReflError where no place has it.
    """
    if over == "positions":
        return [(place, None) for place in every]
    found, lengths = list[tuple[Place, list[int] | None]](), set[int]()
    for place in every:
        tokens = where.tokens(place.site)
        if tokens is None:
            continue
        length = where.length(place.site)
        lengths.add(length)
        if isinstance(over, str) or -length <= over < length:
            wanted = tokens if isinstance(over, str) else [over % length]
            rows = [row for row, t in enumerate(tokens) if t in wanted]
            found.append((place, sorted(rows, key=tokens.__getitem__)))  # an expert's have another
    if not found:
        raise _outside(every[0], over, lengths)
    return found


def _outside(place: Place, over: Over, lengths: Collection[int]) -> ReflError:
    if lengths:
        most = max(lengths)
        return ReflError(
            f"{argument('over')} is token {over}, outside the input of {most} tokens: expected "
            f"{-most} to {most - 1}, 'positions' or 'each'"
        )
    inside = inside_expert(place.site)
    if inside is None:
        return ReflError(
            f"the rows of {shown(place.site)} stand for no tokens: take {argument('over')} "
            "'positions', their sum"
        )
    return ReflError(
        f"which token chose which expert of {shown(inside[0])} was not kept: explain with "
        f"{', '.join(repr(f'{inside[0]}.{end}') for end in ROUTER)} in keep=, too, or take "
        f"{argument('over')} 'positions', their sum"
    )


def _by_row(e: Explained, place: Place, by: str, where: Positions) -> Any:
    """The relevance of a site, NumPy float64 (rows, entries), what is neither summed; rows of
    padding left out.
    """
    r = np.ascontiguousarray(e[place.site], dtype=np.float64)  # so that sums are the same each time
    tokens = where.tokens(place.site)
    if by == "head":
        r = r.sum(axis=-1).T
    if by == "block":
        r = np.moveaxis(np.atleast_2d(r), -2, 0)
        r = r.reshape(len(r), -1).sum(axis=-1, keepdims=True)
    return r if tokens is None else r[: len(tokens)]


def _of_sign(values: Any, sign: str) -> Any:  # (N,) -> bool (N,)
    if sign == "both":
        return np.ones(len(values), dtype=bool)
    return values > 0 if sign == "positive" else values < 0


def _first(values: Any, k: int, sign: str) -> list[int]:  # (N,)
    """Indices of the k largest sizes, of equal ones the first. Only those are sorted: there may be
    millions.
    """
    size = np.where(_of_sign(values, sign), abs(values), -1.0)
    k = min(k, int((size >= 0).sum()))
    if k == 0:
        return []
    least = -np.partition(-size, k - 1)[k - 1]
    some = np.flatnonzero(size >= least)
    return [int(i) for i in some[np.argsort(-size[some], kind="stable")[:k]]]


def _row(e: Explained, entry: _Entry, by: str, over: Over, where: Positions) -> Ranked:
    place, tokens = entry.place, where.tokens(entry.place.site)
    strongest = None if tokens is None else tokens[entry.row]
    number = None if by == "block" else entry.number
    z = float(e.activation(place.site)[entry.row, number]) if by == "neuron" else None
    return Ranked(
        name=place.name(number),
        kind=place.kind,
        site=place.site,
        number=number,
        block=place.block,
        position=None if over == "positions" else strongest,
        strongest=strongest,
        token=where.text(place.site, strongest),
        relevance=entry.relevance,
        fraction=entry.relevance / e.explained if e.explained else math.nan,
        activation=z,
    )


# -- which sites -----------------------------------------------------------------------------------


def places(e: Explained, pattern: str | None, by: str) -> list[Place]:
    """The sites to rank, in the order of the net: all components of a kind, or the kept sites that
    a pattern names. Raises ReflError where there is none, or one was not kept.
    """
    if pattern is not None and not isinstance(pattern, str):
        raise arguments.expected(
            "pattern", "a pattern of sites such as '*.mlp.act_fn', or None", pattern
        )
    if pattern is None:
        return _components(e, by)
    return _fitting(e, pattern, by)


def owners(components: Components, by: str) -> Sequence[Mlp | Attention | Block]:
    """All that have neurons, or heads; or all blocks."""
    if by == "neuron":
        return components.mlps
    return components.attentions if by == "head" else components.blocks


def _place(owner: Mlp | Attention | Block) -> Place:
    if isinstance(owner, Block):
        return Place(owner.site, "block", owner.label, owner.label)
    if isinstance(owner, Mlp):
        return Place(owner.neurons, "neuron", owner.label, owner.block)
    return Place(owner.context, "head", owner.label, owner.block)


def _components(e: Explained, by: str) -> list[Place]:
    found, missing = list[Place](), list[str]()
    for owner in owners(e.components, by):
        place = _place(owner)
        if is_kept(e, place.site):
            found.append(place)
        elif not isinstance(owner, Mlp) or owner.tokens is None or _ran(e, owner):
            missing.append(place.site)
    if missing or not found:
        raise refused(e, missing or [_place(one).site for one in owners(e.components, by)])
    return found


def _ran(e: Explained, expert: Mlp) -> bool:
    """Whether a token chose it, and relevance came to it."""
    return e.recorded is not None and any(one.site == expert.output for one in e.recorded)


def needed(components: Components, by: str = "neuron") -> list[str]:
    """Patterns of the sites that a ranking of all components reads, for keep=."""
    sites = [_place(owner).site for owner in owners(components, by)]
    return alike(sites) + (routers(components) if by == "neuron" else [])


def routers(components: Components) -> list[str]:
    """Patterns of the sites that tell which token chose which expert."""
    inside = (inside_expert(m.tokens) for m in components.mlps if m.tokens)
    return alike(f"{one[0]}.{end}" for one in inside if one for end in ROUTER)


def _fitting(e: Explained, pattern: str, by: str) -> list[Place]:
    """The kept sites that a pattern names, from the input up."""
    every = names(e)
    if not every:
        raise refused(e, [pattern])
    named = [site for site in every if any(fnmatchcase(name, pattern) for name in every[site])]
    if not named:
        raise _no_site(e, pattern, every)
    known = _known(e, by)
    axes = {"neuron": 2, "head": 3}.get(by)
    found = [
        known.get(site, Place(site, {"neuron": "feature", "head": "head"}.get(by, "site")))
        for site in named
        if axes is None or len(shape(e, site)) == axes
    ]
    if not found:
        raise _other_axes(e, pattern, by, named[0])
    return found


def _no_site(e: Explained, pattern: str, every: Mapping[str, Sequence[str]]) -> ReflError:
    near = ", ".join(nearest_patterns(pattern, [name for one in every.values() for name in one]))
    some = e.recorded is not None and len(every) < len(e.recorded.entries)
    again = f"; or explain again without {argument('keep')}, or with keep={pattern!r}"
    return ReflError(
        f"{argument('pattern')} names {shown(pattern)!r}, which is no site that was kept; nearest: "
        f"{near or 'none'}{again if some else ''}"
    )


def _known(e: Explained, by: str) -> dict[str, Place]:
    """Site -> the component that is ranked there, where something is known of components. A place
    has the name of the site as it was kept.
    """
    components = e.parts()
    if components is None:
        return {}
    every = map(_place, owners(components, by))
    return {e.sites.canonical(place.site): place for place in every if is_kept(e, place.site)}


def _other_axes(e: Explained, pattern: str, by: str, site: str) -> ReflError:
    what = {"neuron": "two axes, (tokens, features)", "head": "three, (heads, tokens, features)"}
    return ReflError(
        f"{argument('by')} {by!r} ranks sites of {what[by]}, and what {shown(pattern)!r} names has "
        f"others, such as {shown(site)} of the shape {shape(e, site)}: "
        f"take another {argument('by')}, 'block' for whole sites"
    )
