"""What a net is made of, and what each part is called: blocks, the neurons of their MLPs, the heads
of their attention.

    L3          the fourth block
    L3.N17      neuron 17 of its MLP: entry 17 of what the MLP's last linear layer reads
    L3.H2       head 2 of its attention: row 2 of the context, (H, T, d)
    L3.E1.N17   neuron 17 of expert 1
    L3.0.N17    of the first of several layers in a block (ALBERT's groups)
    decoder.L0.cross.H2    of an encoder-decoder, whose blocks are those of `encoder` or `decoder`
    vision.L0.H2           of a net with a picture tower and a text tower (`vision`, `text`)

Numbers count from 0, as the checkpoint's module paths do. A name stands for all positions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from refl.arguments import received
from refl.errors import ReflError, nearest, shown

KINDS = ("neuron", "head", "block")

STACKS = ({"encoder", "decoder"}, {"text_model", "vision_model"})
"""What the module paths of blocks begin with where a net has two kinds of them."""

_NAME = re.compile(r"((encoder|decoder|text|vision)\.)?L[0-9]+(\..*)?")
"""Of a neuron, a head or a block: no module path begins so."""


def is_name(name: str) -> bool:
    """Whether it is meant as the name of a neuron, a head or a block."""
    return _NAME.fullmatch(name) is not None


@dataclass(frozen=True)
class Mlp:
    """The MLP of a block, or of an expert.

    label     L3, or L3.E1
    neurons   site of its neurons, (T, width): what its last linear layer reads
    output    site of that layer's output, (T, D)
    tokens    of an expert: site of the tokens that chose it, whose rows its sites have
    """

    label: str
    block: str
    neurons: str
    output: str
    width: int
    tokens: str | None = None


@dataclass(frozen=True)
class Attention:
    """The attention of a block; `cross` where its keys and values are those of an encoder.

    context               site of what its heads give, (heads, T, d)
    output                site of the linear layer after them, (T, D)
    query, key, value     sites of what makes them: three linear layers, or three slices of one
    """

    label: str
    block: str
    context: str
    output: str
    heads: int
    query: str
    key: str
    value: str
    cross: bool = False


@dataclass(frozen=True)
class Block:
    """A block: its module path, whose site is its output."""

    label: str
    site: str


@dataclass(frozen=True)
class Part:
    """One neuron, head or block.

    site      where it is found; number is its entry there (None for a block): the last axis of
              neurons, the first of heads
    """

    kind: str
    name: str
    block: str
    site: str
    number: int | None = None

    @property
    def index(self) -> tuple[Any, ...]:
        """At every position, as NumPy indexes the activation of one example."""
        if self.number is None:
            return (Ellipsis,)
        return (..., self.number) if self.kind == "neuron" else (self.number, Ellipsis)


@dataclass(frozen=True)
class Components:
    """All of a net, in the order they run."""

    blocks: tuple[Block, ...]
    mlps: tuple[Mlp, ...]
    attentions: tuple[Attention, ...]

    def part(self, name: str) -> Part:
        """A neuron, head or block by its name. Raises ReflError for what is none of this net."""
        if not isinstance(name, str):
            raise self._strange(name)
        label, _, last = name.rpartition(".")
        if found := re.fullmatch(r"([NH])(0|[1-9][0-9]{0,8})", last):
            return self._numbered(name, label, found[1], int(found[2]))
        for block in self.blocks:
            if name == block.label:
                return Part("block", name, block.label, block.site)
        raise self._strange(name)

    def _numbered(self, name: str, label: str, letter: str, number: int) -> Part:
        kind, owners = ("neuron", self.mlps) if letter == "N" else ("head", self.attentions)
        for owner in owners:
            if owner.label == label:
                if number >= size(owner):
                    raise ReflError(
                        f"{shown(name)} is not there: {label} has {size(owner)} {kind}s, "
                        f"{label}.{letter}0 to {label}.{letter}{size(owner) - 1}"
                    )
                return Part(kind, name, owner.block, site_of(owner), number)
        raise self._strange(name)

    def _strange(self, name: Any) -> ReflError:
        text = name if isinstance(name, str) else ""
        labels = [b.label for b in self.blocks]
        near = ", ".join(nearest(text, [*self.examples(), *labels], 3)) or "none"
        return ReflError(
            f"{_said(name)} names no neuron, head or block of this model: expected one such as "
            f"{', '.join(self.examples())} (nearest: {near})"
        )

    def examples(self) -> list[str]:
        """A name of each kind that there is."""
        found = [f"{m.label}.N0" for m in self.mlps[-1:]]
        found += [f"{a.label}.H0" for a in self.attentions[-1:]]
        return [*found, *(b.label for b in self.blocks[-1:])]

    def neurons_of(self, block: str) -> list[Mlp]:
        """The MLPs of a block by its label: several where it has experts."""
        return [m for m in self.mlps if m.block == block]

    def as_dict(self) -> dict[str, list[dict[str, Any]]]:
        """For a file."""
        return {key: [vars(one) for one in getattr(self, key)] for key in vars(self)}

    @classmethod
    def from_dict(cls, said: dict[str, Any]) -> Components:
        """Raises TypeError or KeyError for what is none."""
        kinds = {"blocks": Block, "mlps": Mlp, "attentions": Attention}
        return cls(**{k: tuple(kind(**one) for one in said[k]) for k, kind in kinds.items()})


def _said(name: Any) -> str:
    """A name as it is, where there is something to see of it."""
    return shown(name) if isinstance(name, str) and name.strip() else received(name)


def size(owner: Mlp | Attention) -> int:
    """How many neurons, or heads."""
    return owner.width if isinstance(owner, Mlp) else owner.heads


def site_of(owner: Mlp | Attention) -> str:
    """Where they are."""
    return owner.neurons if isinstance(owner, Mlp) else owner.context


def names_of(owner: Mlp | Attention) -> Iterator[str]:
    """Of its neurons, or its heads."""
    letter = "N" if isinstance(owner, Mlp) else "H"
    return (f"{owner.label}.{letter}{n}" for n in range(size(owner)))


def labels_of(paths: Sequence[str]) -> dict[str, str]:
    """Module path of each block -> its label: counted where they run, an encoder's apart from a
    decoder's.
    """
    stacks = {path: path.removeprefix("model.").partition(".")[0] for path in paths}
    both = set(stacks.values()) in STACKS
    counts: dict[str, int] = {}
    found = {}
    for path in paths:
        stack = f"{stacks[path].removesuffix('_model')}." if both else ""
        number = counts[stack] = counts.get(stack, -1) + 1
        found[path] = f"{stack}L{number}"
    return found
