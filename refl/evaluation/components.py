"""Where the parts of a net are: its blocks, and in each what it adds to the residual stream. Asked
of the net itself, whatever the checkpoint calls them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from refl.arrays import Array
from refl.errors import ReflError
from refl.network import CLASSIFIES, Network
from refl.trace import Trace, Value

KINDS = ("residual", "attention", "mlp")
"""A block's output; the output of its attention; that of its MLP (or of its experts, added up)."""

_ROLES = {"attention": ("attention.output",), "mlp": ("mlp.down", "expert.sum")}


class Watching(Trace):
    """A trace that takes down the paths of blocks, and knows in which it is."""

    def __init__(self, network: Network, weights: Mapping[str, Array] | None = None) -> None:
        super().__init__(network.weights if weights is None else weights)
        self.blocks: list[str] = []
        self.inside_block = False

    def block(self, name: str, function: Callable[..., Value], x: Value, *rest: Any) -> Value:
        self.blocks.append(self.site(name))
        self.inside_block = True
        y = super().block(name, function, x, *rest)
        self.inside_block = False
        return y


def watched(network: Network, watching: Watching | None = None) -> Watching:
    """The plainest input there is, run."""
    trace = watching or Watching(network)
    decoder = [[0]] if network.task == "sequence-to-sequence" else None
    position = None if network.task in CLASSIFIES else 0
    network.forward(trace, network.batch([network.blank()], position, decoder_prefix=decoder))
    return trace


def blocks(network: Network) -> list[str]:
    """The module paths of the blocks in the order they run, an encoder's first."""
    return watched(network).blocks


def sites(network: Network, kind: str) -> list[str]:
    """The sites of one of KINDS, in the order they run. A mixture of experts has one for the sum of
    its experts. Raises ReflError for what is none.
    """
    if kind not in KINDS:
        raise ReflError(f"unknown kind of component {kind!r}: expected {', '.join(KINDS)}")
    trace = watched(network)
    if kind == "residual":
        return trace.blocks
    roles: Sequence[str] = _ROLES[kind]
    found = [r.output.site for r in trace.records if r.role in roles]
    return [site for site in found if ".experts." not in site]
