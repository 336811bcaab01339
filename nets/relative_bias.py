"""T5's bias of attention scores (Raffel et al. 2020, arXiv 1910.10683, section 2.1): per head a
number for each bucket of distances.
"""

from __future__ import annotations

from typing import Protocol

from refl.arrays import Array, device_of, namespace
from refl.trace import Trace, Value


class Buckets(Protocol):
    """What a config says about distances."""

    @property
    def num_heads(self) -> int: ...
    @property
    def relative_attention_num_buckets(self) -> int: ...
    @property
    def relative_attention_max_distance(self) -> int: ...


def bias(
    t: Trace, c: Buckets, ids: Array, causal: bool, past: int = 0
) -> Value:  # (B, T) -> (B, H, T, past + T)
    """Looked up for each example, so that the table's relevance is absorbed for each."""
    xp, (size, length), keys = namespace(ids), ids.shape, past + ids.shape[1]
    found = xp.broadcast_to(buckets(c, ids, causal, past)[None, :, :], (size, length, keys))
    rows = t.embedding("relative_attention_bias", found, role="position")  # (B, T, past + T, H)
    flat = t.move("bias.flat", "reshape", rows, shape=(-1, length * keys, c.num_heads))
    return t.move(
        "bias",
        "reshape",
        t.move("bias.transposed", "transpose", flat),
        shape=(-1, c.num_heads, length, keys),
    )


def buckets(
    c: Buckets, ids: Array, causal: bool, past: int = 0
) -> Array:  # (B, T) -> int (T, past + T): for query j and key i the row of the table
    """Keys behind the query share the table with those ahead, where those can be seen."""
    xp, device, length = namespace(ids), device_of(ids), past + ids.shape[1]
    each = c.relative_attention_num_buckets // (1 if causal else 2)
    row = xp.asarray(
        [bucket(n, each, c.relative_attention_max_distance) for n in range(length)], **device
    )
    t = xp.arange(length, **device)
    ahead = t[None, :] - t[past:, None]
    distance = xp.clip(-ahead, 0, None) if causal else xp.abs(ahead)
    found = xp.reshape(xp.take(row, xp.reshape(distance, (-1,)), axis=0), ahead.shape)
    return found if causal else found + each * xp.astype(ahead > 0, ids.dtype)


def bucket(n: int, each: int, farthest: int) -> int:
    """A bucket for each distance up to half of them, from there on of equal widths in log n up to
    the farthest, and the last for all beyond:

        half + floor((each - half) log(n/half) / log(farthest/half)),

    in whole numbers, for which no logarithm can round.
    """
    half = each // 2
    if n < half:
        return n
    wide = each - half
    k = 1
    while k < wide and n**wide * half**k >= farthest**k * half**wide:
        k += 1
    return half + k - 1
