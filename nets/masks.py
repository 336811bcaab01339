"""Which query may look at which key."""

from __future__ import annotations

from collections.abc import Sequence

from refl.arrays import Array
from refl.errors import ReflError, shown
from refl.mask import Mask
from refl.nets.batch import Batch

FULL, SLIDING = "full_attention", "sliding_attention"
"""What config.json's layer_types call a block that attends to everything before it, and one that
reaches back over a window.
"""


def causal(
    ids: Array,
    attention_mask: Array | None = None,
    window: int | None = None,
    past: int = 0,
    segments: Array | None = None,
) -> Mask:  # (B, T), bool (B, past + T) -> (T, past + T)
    """A token sees itself and what came before, the `past` tokens ahead of `ids` too: of that only
    the last `window`, only tokens that are no padding (`attention_mask`), and only those of its
    own text where several stand one behind the other (`segments`, (B, T)).
    """
    length = ids.shape[-1]
    return Mask(ids, length, past + length, True, window, attention_mask, past, segments)


def causal_of_blocks(
    batch: Batch, windows: Sequence[int | None]
) -> list[Mask]:  # -> for each block (T, past + T)
    """One for each size of window."""
    by_window = {
        window: causal(batch.ids, batch.attention_mask, window, batch.past)
        for window in set(windows)
    }
    return [by_window[window] for window in windows]


def keys(attention_mask: Array | None, queries: int) -> Mask | None:  # bool (B, I) -> (J, I)
    """Every query sees every token that is no padding; None where nothing is padded."""
    if attention_mask is None:
        return None
    return Mask(attention_mask, queries, attention_mask.shape[1], unpadded=attention_mask)


def windows(
    layer_types: Sequence[str] | None, sliding: Sequence[bool], window: int | None
) -> tuple[int | None, ...]:
    """For each block how many tokens back attention reaches, None for all: `window` for the blocks
    that config.json's layer_types call sliding, or, where it has none, for those that `sliding`
    marks.

    Raises ReflError for layer_types of another length, of unknown kinds, or that slide without a
    window.
    """
    kinds = (
        layer_types
        if layer_types is not None
        else [SLIDING if s and window is not None else FULL for s in sliding]
    )
    if len(kinds) != len(sliding):
        raise ReflError(
            f"config.json has {len(kinds)} layer_types for num_hidden_layers = {len(sliding)}"
        )
    for kind in kinds:
        _check_kind(kind, window)
    return tuple(window if kind == SLIDING else None for kind in kinds)


def _check_kind(kind: str, window: int | None) -> None:
    if kind not in (FULL, SLIDING):
        raise ReflError(
            f"config.json has {shown(kind)!r} among layer_types, which is not implemented: "
            f"there are {FULL} and {SLIDING}"
        )
    if kind == SLIDING and window is None:
        raise ReflError(
            f"config.json has {SLIDING} among layer_types, but no sliding_window in use"
        )
