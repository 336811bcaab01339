"""Which query may look at which key."""

from __future__ import annotations

from collections.abc import Sequence

from refl.arrays import Array, namespace
from refl.errors import ReflError, shown

FULL, SLIDING = "full_attention", "sliding_attention"
"""What config.json's layer_types call a block that attends to everything before it, and one that
reaches back over a window.
"""


def causal(
    ids: Array, attention_mask: Array | None = None, window: int | None = None
) -> Array:  # (B, T), bool (B, T) -> bool (1|B, 1, T, T)
    """A token sees itself and what came before: of that only the last `window`, and only tokens
    that are no padding (`attention_mask`).
    """
    xp = namespace(ids)
    device = {} if xp.__name__ == "cupy" else {"device": ids.device}
    t = xp.arange(ids.shape[-1], **device)
    mask = (t[None, :] <= t[:, None])[None, None, :, :]
    if window is not None:
        mask = xp.logical_and(mask, (t[None, :] > t[:, None] - window)[None, None, :, :])
    return (
        mask if attention_mask is None else xp.logical_and(mask, attention_mask[:, None, None, :])
    )


def causal_of_blocks(
    ids: Array, attention_mask: Array | None, windows: Sequence[int | None]
) -> list[Array]:  # -> for each block bool (1|B, 1, T, T)
    """Formed once for each size of window."""
    by_window = {window: causal(ids, attention_mask, window) for window in set(windows)}
    return [by_window[window] for window in windows]


def keys(
    attention_mask: Array | None, queries: int
) -> Array | None:  # bool (B, I) -> bool (B, 1, J, I)
    """Every query sees every token that is no padding; None where nothing is padded."""
    if attention_mask is None:
        return None
    return namespace(attention_mask).broadcast_to(
        attention_mask[:, None, None, :],
        (attention_mask.shape[0], 1, queries, attention_mask.shape[1]),
    )


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
