"""The names of the tensors: a file may leave out the prefix of the whole model, or spell some of
them otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from refl.arrays import Array
from refl.io.weights import expect

Shapes = Iterable[tuple[str, tuple[int, ...], str]]
"""Tensors that a net needs: name, shape, and the options of config.json that ask for it."""


def named_weights(weights: Mapping[str, Array], prefix: str, shapes: Shapes) -> Prefixed:
    """The weights under the names of the whole model, `read` being those that `shapes` lists.

    Raises ReflError where a tensor is missing, of another shape, or stored as no floats.
    """
    named, read = Prefixed(weights, prefix), set()
    for name, shape, why in shapes:  # made one by one: the first that is missing ends it
        expect(weights, named.inner(name), shape, why)
        read.add(named.inner(name))
    named.read = frozenset(read)
    return named


_OTHER_NAMES = {
    "LayerNorm.weight": "LayerNorm.gamma",  # as the first BERT was published
    "LayerNorm.bias": "LayerNorm.beta",
    # one tensor under two names, of which a file holds either or both:
    "predictions.bias": "predictions.decoder.bias",
    "lm_head.bias": "lm_head.decoder.bias",
    "shared.weight": "encoder.embed_tokens.weight",
}
"""End of a tensor's name -> what some files call it in its place."""


class Prefixed(Mapping[str, Array]):
    """Weights under the names of the whole model, also where the file
    holds the bare model without its prefix.
    """

    def __init__(self, weights: Mapping[str, Array], prefix: str) -> None:
        self.weights = weights
        self.read: frozenset[str] = frozenset()
        """The names in the file of the tensors that the net reads."""
        self.cut = "" if any(name.startswith(prefix) for name in weights) else prefix

    def inner(self, name: str) -> str:
        """The name in the file."""
        name = name.removeprefix(self.cut)
        if name not in self.weights:
            for ours, other in _OTHER_NAMES.items():
                if (
                    name.endswith(ours)
                    and (older := name.removesuffix(ours) + other) in self.weights
                ):
                    return older
        return name

    def __getitem__(self, name: str) -> Array:
        return self.weights[self.inner(name)]

    def __iter__(self) -> Iterator[str]:
        return map(self.outer, self.weights)

    def outer(self, name: str) -> str:
        """The name in the whole model."""
        name = name if name.startswith("lm_head") else self.cut + name
        for ours, other in _OTHER_NAMES.items():
            if name.endswith(other) and self.inner(
                newer := name.removesuffix(other) + ours
            ) == name.removeprefix(self.cut):
                return newer
        return name

    def __len__(self) -> int:
        return len(self.weights)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.inner(name) in self.weights
