"""Which neurons and heads are meant

L2          every neuron of a block, those of all its experts
L2.E1       every neuron of an expert
L2.N17      one neuron; L2.H3 one head
L2.H*       every name that the pattern fits: here the heads of a block. L2.* is its neurons
            and its heads, *.H* every head there is
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from refl import arguments
from refl.components import Attention, Components, Mlp, names_of, site_of, size
from refl.errors import ReflError, argument, shown

Owner = Mlp | Attention


@dataclass(frozen=True)
class Group:
    """Some neurons of one MLP, or some heads of one attention, which lie at one site."""

    owner: Owner
    numbers: tuple[int, ...]

    @property
    def site(self) -> str:
        return site_of(self.owner)

    @property
    def names(self) -> list[str]:
        every = list(names_of(self.owner))
        return [every[n] for n in self.numbers]

    @property
    def tokens(self) -> str | None:
        """Of an expert the site of the tokens that chose it."""
        return self.owner.tokens if isinstance(self.owner, Mlp) else None

    @property
    def in_decoder(self) -> bool:
        """Whether its rows are those of the tokens that a decoder has written."""
        return self.owner.block.startswith("decoder.")


def selected(components: Components, parts: Any = None) -> tuple[Group, ...]:
    """In the order of the net, each once; by default every neuron. Raises ReflError for names that
    nothing has.
    """
    owners: list[Owner] = [*components.mlps, *components.attentions]
    numbers = defaultdict[int, set[int]](set)
    for name in _names(components, parts):
        for n, some in _meant(components, owners, name):
            numbers[n].update(some)
    return tuple(Group(owners[n], tuple(sorted(numbers[n]))) for n in sorted(numbers))


def _names(components: Components, parts: Any) -> Sequence[str]:
    if parts is None:
        return [mlp.label for mlp in components.mlps]
    names = [parts] if isinstance(parts, str) else arguments.names(parts)
    if not names:
        raise arguments.expected(
            "parts", f"names of neurons, heads or blocks: {', '.join(components.examples())}", parts
        )
    return names


def _meant(
    components: Components, owners: Sequence[Owner], name: str
) -> Iterator[tuple[int, Sequence[int]]]:
    """Numbers of owners, and of the neurons or heads of each."""
    if not {"*", "?"}.isdisjoint(name):
        yield from _fitting(components, owners, name)
        return
    whole = [n for n, o in enumerate(owners) if isinstance(o, Mlp) and name in (o.label, o.block)]
    if whole:
        yield from ((n, range(size(owners[n]))) for n in whole)
        return
    part = components.part(name)
    if part.number is None:
        raise ReflError(f"{shown(name)} is a block without an MLP: name its heads, {name}.H*")
    yield next(n for n, o in enumerate(owners) if site_of(o) == part.site), [part.number]


def _fitting(
    components: Components, owners: Sequence[Owner], pattern: str
) -> list[tuple[int, list[int]]]:
    literal = pattern.replace("[", "[[]")
    fit = [
        (n, [i for i, name in enumerate(names_of(owner)) if fnmatchcase(name, literal)])
        for n, owner in enumerate(owners)
    ]
    found = [one for one in fit if one[1]]
    if not found:
        raise ReflError(
            f"{argument('parts')} has {shown(pattern)!r}, which fits the name of no neuron or head "
            f"of this model: they are called {', '.join(components.examples()[:2])}"
        )
    return found
