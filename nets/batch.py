"""What a net is run on."""

from __future__ import annotations

from dataclasses import dataclass, replace

from refl.arrays import Array, namespace

Wanted = int | tuple[int, ...]
"""The position whose output is wanted, or several."""


@dataclass(frozen=True)
class Batch:
    """A padded batch of inputs, on the device of the computation. A net reads the fields of its
    kind of input.

    ids                      int (B, T), token ids
    attention_mask           bool (B, T), False where a token is padding, or may not be looked at;
                             or bool (B, T, T), which query may look where; None where nothing is
                             hidden
    unpadded                 bool (B, T), False where a token is padding; None where nothing is
                             padded
    types                    int (B, T), token type ids (sentence A or B); None for zeros
    pixels                   (B, C, H, W), a normalized image
    decoder_ids              int (B, U), the decoder's prefix of an encoder-decoder
    decoder_attention_mask   bool (B, U), as `unpadded`
    texts                    for each example the lengths of the texts that stand one behind the
                             other in its ids; None for one text each
    rows                     for each example the position whose output is wanted, B integers, or
                             several, B tuples of R; None for every position
    past                     how many tokens of every text were run before: the ids of the text
                             (of a decoder's, where there is one) are those that follow, and the
                             trace has the keys and values of the others (see refl.cache)
    """

    ids: Array = None
    attention_mask: Array = None
    unpadded: Array = None
    types: Array = None
    pixels: Array = None
    decoder_ids: Array = None
    decoder_attention_mask: Array = None
    texts: tuple[tuple[int, ...], ...] | None = None
    rows: tuple[Wanted, ...] | None = None
    past: int = 0

    def after(self, past: int) -> Batch:
        """What follows the first `past` tokens of every text, or of what a decoder has written."""
        rows = None if self.rows is None else tuple(_less(row, past) for row in self.rows)
        name = "ids" if self.decoder_ids is None else "decoder_ids"
        return replace(self, **{name: getattr(self, name)[:, past:]}, rows=rows, past=past)


def _less(row: Wanted, past: int) -> Wanted:
    return row - past if isinstance(row, int) else tuple(t - past for t in row)


def positions(ids: Array, past: int = 0) -> Array:  # (B, T) -> int (B, T)
    """past, past + 1, ..., past + T - 1 in every row."""
    xp = namespace(ids)
    return xp.cumulative_sum(xp.ones_like(ids), axis=1) + (past - 1)
