"""Which query may look at which key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from refl.arrays import Array
from refl.errors import ReflError, shown
from refl.mask import Mask
from refl.nets import heads
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
) -> Mask:  # (B, T), bool (B, past + T), or (B, T, T) -> (T, past + T)
    """A token sees itself and what came before, the `past` tokens ahead of `ids` too: of that only
    the last `window`, only what `attention_mask` allows (refl.nets.batch), and only those of its
    own text where several stand one behind the other (`segments`, (B, T)).
    """
    length = ids.shape[-1]
    mask = Mask(ids, length, past + length, True, window, allowed=attention_mask, past=past)
    return mask if segments is None else replace(mask, segments=segments)


def causal_of_blocks(
    batch: Batch, windows: Sequence[int | None]
) -> list[Mask]:  # -> for each block (T, past + T)
    """One for each size of window."""
    by_window = {
        window: causal(batch.ids, batch.attention_mask, window, batch.past)
        for window in set(windows)
    }
    return [by_window[window] for window in windows]


def keys(
    attention_mask: Array | None, queries: int
) -> Mask | None:  # bool (B, I), or (B, J, I) -> (J, I)
    """Every query sees every token that `attention_mask` allows (refl.nets.batch); None where that
    is None.
    """
    if attention_mask is None:
        return None
    return Mask(attention_mask, queries, attention_mask.shape[-1], allowed=attention_mask)


def around(batch: Batch, window: int | None) -> Mask | None:  # -> (T, T)
    """A token sees itself and window // 2 tokens to either side, of those that are allowed; all of
    these where there is no window.
    """
    length = batch.ids.shape[-1]
    if window is None:
        return keys(batch.attention_mask, length)
    return Mask(batch.ids, length, length, reach=window // 2, allowed=batch.attention_mask)


def of_net(config: Any, ids: Array, allowed: Array) -> list[Mask]:  # (1, T), (1, T) or (1, T, T)
    """What a net hides from one text together with what is allowed, for each size of window; of an
    encoder-decoder in its encoder.
    """
    batch = Batch(ids=ids, attention_mask=allowed)
    sizes = list(dict.fromkeys(getattr(config, "windows", (None,))))
    if isinstance(config, heads.OfDecoder):
        return causal_of_blocks(batch, sizes)
    return [mask for size in sizes if (mask := around(batch, size)) is not None]


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
