"""Which query may look at which key."""

from __future__ import annotations

from refl.arrays import Array, namespace


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
