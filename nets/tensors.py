"""The tensors of a checkpoint, as a net lists them: name, shape, and the options of config.json
that ask for them.
"""

from __future__ import annotations

from collections.abc import Iterator

Tensors = Iterator[tuple[str, tuple[int, ...], str]]


def linear(name: str, out: int, into: int, why: str, *, bias: bool = False) -> Tensors:
    yield f"{name}.weight", (out, into), why
    if bias:
        yield f"{name}.bias", (out,), why


def norm(name: str, width: int, why: str = "hidden_size", *, bias: bool = False) -> Tensors:
    yield f"{name}.weight", (width,), why
    if bias:
        yield f"{name}.bias", (width,), why
