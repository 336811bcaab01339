"""What a net is run on."""

from __future__ import annotations

from dataclasses import dataclass

from refl.arrays import Array, namespace


@dataclass(frozen=True)
class Batch:
    """A padded batch of inputs, on the device of the computation. A net reads the fields of its
    kind of input.

    ids                      int (B, T), token ids
    attention_mask           bool (B, T), False where a token is padding; None where nothing is
                             padded
    types                    int (B, T), token type ids (sentence A or B); None for zeros
    pixels                   (B, C, H, W), a normalized image
    decoder_ids              int (B, U), the decoder's prefix of an encoder-decoder
    decoder_attention_mask   bool (B, U), as `attention_mask`
    rows                     for each example the position whose output is wanted, B integers; None
                             for every position
    """

    ids: Array = None
    attention_mask: Array = None
    types: Array = None
    pixels: Array = None
    decoder_ids: Array = None
    decoder_attention_mask: Array = None
    rows: tuple[int, ...] | None = None


def positions(ids: Array) -> Array:  # (B, T) -> int (B, T): 0, 1, ..., T - 1 in every row
    xp = namespace(ids)
    return xp.cumulative_sum(xp.ones_like(ids), axis=1) - 1
