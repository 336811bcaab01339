"""Which query may look at which key."""

from __future__ import annotations

from refl.arrays import Array, namespace


def causal(ids: Array, real: Array | None = None) -> Array:  # (B, T), bool (B, T) -> bool (1|B, 1, T, T)
    """A token sees itself and what came before; with `real`, only tokens that are no padding."""
    xp = namespace(ids)
    device = {} if xp.__name__ == "cupy" else {"device": ids.device}
    t = xp.arange(ids.shape[-1], **device)
    mask = (t[None, :] <= t[:, None])[None, None, :, :]
    return mask if real is None else xp.logical_and(mask, real[:, None, None, :])
