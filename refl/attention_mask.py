"""Attention masks of the caller: which tokens may be looked at, or which query may look where.

Either is combined with what the net itself hides (what comes later, what lies beyond a window,
padding), and positions stay those of the tokens, 0..T-1, whatever is hidden: what transformers'
forward computes from `attention_mask` and the same ids.

A query that may look at nothing has no probabilities to give away: its row of attention is 0. That
is harmless for a token that is itself hidden from all others, as padding on the left of a decoder's
text is; where anything reads such a row it is refused (transformers' softmax of equal numbers would
spread it evenly over all tokens, the hidden ones among them).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refl import arguments
from refl.errors import ReflError, argument
from refl.mask import Mask

Allowed = NDArray[np.bool_]
"""(T,): the tokens that may be looked at; or (T, T): query j may look at key i."""

ROWS = 128
"""Queries that are looked at together."""


def mask_of(said: Any, length: int) -> Allowed:  # -> (T,), or (T, T)
    """The mask of an input of so many tokens, once checked. Raises ReflError for what is none."""
    array = _array(said)
    if array is None or array.dtype.kind not in "biuf" or not np.isin(array, (0, 1)).all():
        what = "True or False (1 or 0) for each token, or (T, T) of them, queries by keys"
        raise arguments.expected("attention_mask", what, said)
    if array.shape not in ((length,), (length, length)):
        raise ReflError(
            f"{argument('attention_mask')} has the shape {array.shape}, and the input {length} "
            f"tokens: expected {(length,)}, or {(length, length)} for queries by keys"
        )
    if not array.any():
        raise ReflError(f"{argument('attention_mask')} hides every token: leave one to look at")
    return array.astype(bool)


def _array(said: Any) -> NDArray[Any] | None:
    try:
        return np.asarray(arguments.members(said))
    except ValueError:  # rows of several lengths
        return None


def together(
    each: Sequence[Allowed | None], lengths: Sequence[int]
) -> Allowed:  # -> (B, T), or (B, T, T) where any says which query may look where
    """Of a padded batch: padding is hidden, and a padded query may look as if it were none."""
    longest = max(lengths)
    pairs = any(allowed is not None and allowed.ndim == 2 for allowed in each)
    shape = (longest, longest) if pairs else (longest,)
    found = np.zeros((len(each), *shape), dtype=bool)
    for row, allowed, length in zip(found, each, lengths, strict=True):
        row[..., :length] = True if allowed is None or allowed.ndim == 2 else allowed
        if allowed is not None and allowed.ndim == 2:
            row[:length, :length] = allowed
    return found


def refuse_blind(masks: Sequence[Mask], rows: Collection[int]) -> None:
    """Raises ReflError where a query that may look at nothing is read: as one of `rows`, or by
    another query. `masks`: of one example, those of all its blocks.
    """
    for mask in masks:
        for j in np.flatnonzero(_blind(mask)):
            if j in rows or _is_looked_at(int(j), masks):
                raise ReflError(
                    f"{argument('attention_mask')} leaves the token at {j} nothing to look at, and "
                    "its output is read: let it look at a token that the net shows it, itself say"
                )


def _blind(mask: Mask) -> NDArray[np.bool_]:  # -> (J,)
    """The queries that see nothing."""
    found = np.zeros(mask.queries, dtype=bool)
    for start in range(0, mask.queries, ROWS):
        rows = slice(start, min(start + ROWS, mask.queries))
        part = mask.part(rows, mask.visible(rows))
        if part is not None:
            found[rows] = ~part[0, 0].any(axis=-1)
    return found


def _is_looked_at(key: int, masks: Sequence[Mask]) -> bool:
    """By another query than itself."""
    column = slice(key, key + 1)
    for mask in masks:
        part = mask.part(slice(0, mask.queries), column)
        if part is None or np.delete(part[0, 0, :, 0], key).any():
            return True
    return False


def how_much(allowed: Allowed) -> str:
    """How much is hidden, for who reads an explanation."""
    hidden, what = int((~allowed).sum()), "tokens" if allowed.ndim == 1 else "pairs of tokens"
    return f"{hidden} of {allowed.size} {what} hidden"
