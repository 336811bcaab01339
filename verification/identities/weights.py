"""Weights of a model as a function of the stored ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from refl.arrays import Array, asnumpy


class ChangedWeights(Mapping[str, Array]):
    """Tensors as `change(name, tensor)` makes them, each when it is first asked for."""

    def __init__(self, weights: Mapping[str, Array], change: Callable[[str, Array], Array]) -> None:
        self.weights, self.change, self.known = weights, change, dict[str, Array]()

    def __getitem__(self, name: str) -> Array:
        if name not in self.known:
            self.known[name] = self.change(name, self.weights[name])
        return self.known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)

    def __contains__(self, name: object) -> bool:
        return name in self.weights


def cast(weights: Mapping[str, Array], dtype: str) -> ChangedWeights:
    return ChangedWeights(weights, lambda name, tensor: asnumpy(tensor).astype(dtype))
