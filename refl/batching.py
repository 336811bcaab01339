"""Which inputs are run together.

Inputs of about one length share a batch, so that little of it is padding, and a batch holds so many
tokens at most, padding counted: memory is bounded however long a list is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

TOKENS = 1024
"""Of a batch, padding counted: enough for full matrix products, and about 1 GiB of activations for
a net of the size of GPT-2."""

Lengths = tuple[int, ...]
"""Tokens of an input by kind: those that are read, and those that a decoder has written."""


def grouped(
    lengths: Sequence[Lengths], bound: int, padding_matters: Callable[[int], bool]
) -> list[list[int]]:
    """The numbers of the inputs of each batch, in their order within it; an input that is longer
    than the bound stands alone. `padding_matters`: whether inputs of this length may only stand
    beside inputs of the same.
    """
    groups: list[list[int]] = []
    widths: Lengths = ()
    for b in sorted(range(len(lengths)), key=lambda b: (lengths[b], b)):
        wider = tuple(map(max, widths, lengths[b])) if groups else ()
        alike = lengths[b] == widths or not any(map(padding_matters, lengths[b]))
        if groups and alike and (len(groups[-1]) + 1) * sum(wider) <= bound:
            groups[-1].append(b)
            widths = wider
        else:
            groups.append([b])
            widths = lengths[b]
    return [sorted(group) for group in groups]
